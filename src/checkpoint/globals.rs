//! The classes and functions that a checkpoint may name. Nothing here is ever run: each stands for a value that
//! the reader builds itself, and any other name makes the reader refuse the file.

use super::value::Dtype;

/// A class or function that the reader knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Global {
    /// `collections.OrderedDict` and its kin: read as a dict.
    Dict,
    /// `torch._utils._rebuild_tensor_v2`
    Tensor,
    /// `torch._utils._rebuild_parameter`, with or without attributes: read as its tensor.
    Parameter,
    /// `torch.Size`: read as a tuple.
    Size,
    /// `torch.FloatStorage` and so on.
    Storage(Dtype),
    /// `numpy.core.multiarray.scalar`: read as an int or a float.
    NumpyScalar,
    /// `numpy.dtype`
    NumpyDtype,
    /// `_codecs.encode`, with which protocol 2 writes bytes.
    Encode,
    /// `bytes`, for the empty ones.
    Bytes,
    /// A class whose instances are read over without looking inside; the text is its name.
    Opaque(&'static str),
}

/// Classes of plain data that training scripts put into checkpoints and that slt-run has no use for.
const OPAQUE: [(&str, &[&str], &str); 14] = [
    ("torch", &["device"], "torch.device"),
    (
        "torch",
        &["float32", "float64", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"],
        "torch.dtype",
    ),
    ("numpy", &["ndarray"], "numpy.ndarray"),
    ("numpy.core.multiarray", &["_reconstruct"], "numpy.ndarray"),
    ("numpy._core.multiarray", &["_reconstruct"], "numpy.ndarray"),
    ("numpy.core.numeric", &["_frombuffer"], "numpy.ndarray"),
    ("numpy._core.numeric", &["_frombuffer"], "numpy.ndarray"),
    ("__builtin__", &["set", "frozenset", "complex", "bytearray"], "Python object"),
    ("builtins", &["set", "frozenset", "complex", "bytearray"], "Python object"),
    ("argparse", &["Namespace"], "argparse.Namespace"),
    ("collections", &["Counter"], "collections.Counter"),
    ("pathlib", &["PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"], "pathlib.Path"),
    ("pathlib._local", &["PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"], "pathlib.Path"),
    ("datetime", &["datetime", "date", "timedelta"], "datetime"),
];

/// What the file means by `module.name`, or `None` where that is not on the list.
pub(super) fn lookup(module: &str, name: &str) -> Option<Global> {
    Some(match (module, name) {
        ("collections", "OrderedDict") => Global::Dict,
        ("torch._utils", "_rebuild_tensor_v2") => Global::Tensor,
        ("torch._utils", "_rebuild_parameter" | "_rebuild_parameter_with_state") => Global::Parameter,
        ("torch", "Size") => Global::Size,
        ("numpy.core.multiarray" | "numpy._core.multiarray", "scalar") => Global::NumpyScalar,
        ("numpy", "dtype") => Global::NumpyDtype,
        ("_codecs", "encode") => Global::Encode,
        ("__builtin__" | "builtins", "bytes") => Global::Bytes,
        _ => return storage(module, name).or_else(|| opaque(module, name)),
    })
}

fn storage(module: &str, name: &str) -> Option<Global> {
    (module == "torch").then(|| Dtype::from_storage(name).map(Global::Storage))?
}

fn opaque(module: &str, name: &str) -> Option<Global> {
    OPAQUE
        .iter()
        .find(|(in_module, names, _)| *in_module == module && names.contains(&name))
        .map(|(_, _, kind)| Global::Opaque(kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_listed_names_are_known() {
        assert_eq!(lookup("torch", "HalfStorage"), Some(Global::Storage(Dtype::F16)));
        assert_eq!(lookup("pathlib", "PosixPath"), Some(Global::Opaque("pathlib.Path")));
        for (module, name) in [
            ("os", "system"),
            ("builtins", "eval"),
            ("collections", "HalfStorage"),
            ("torch", "load"),
            ("", ""),
        ] {
            assert_eq!(lookup(module, name), None, "{module}.{name}");
        }
    }
}
