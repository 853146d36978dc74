//! Writes values as a pickle (protocol 2) with the few opcodes that `torch.load(weights_only=True)` allows.
//!
//! Format: Python's `pickletools`, and `torch.serialization` for how a tensor refers to its storage.

use super::value::{TensorData, Value};
use crate::error::{Error, Result};

/// Deeper than any checkpoint; a bound, because reading recurses.
pub(super) const MAX_DEPTH: usize = 64;

/// An object stream and the tensors that it refers to: the stream's storage `"0"` holds the first, and so on.
pub(super) struct Pickled<'v> {
    pub bytes: Vec<u8>,
    pub tensors: Vec<&'v TensorData<'v>>,
}

/// Translates `value`, borrowing its tensors.
///
/// # Errors
///
/// Where the value cannot be written: opaque, nested too deeply, or a tensor whose bytes do not fit its shape.
pub(super) fn pickle<'v>(value: &'v Value<'v>) -> Result<Pickled<'v>> {
    let mut writer = Writer { out: Pickled { bytes: b"\x80\x02".to_vec(), tensors: Vec::new() } };
    writer.value(value, 0)?;
    writer.out.bytes.push(b'.');
    Ok(writer.out)
}

struct Writer<'v> {
    out: Pickled<'v>,
}

impl<'v> Writer<'v> {
    fn op(&mut self, bytes: &[u8]) {
        self.out.bytes.extend_from_slice(bytes);
    }

    fn value(&mut self, value: &'v Value<'v>, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(Error::run(format!("a value nests deeper than {MAX_DEPTH} levels")));
        }
        match value {
            Value::None => self.op(b"N"),
            Value::Bool(true) => self.op(b"\x88"),
            Value::Bool(false) => self.op(b"\x89"),
            Value::Int(n) => self.int(*n),
            Value::Float(x) => {
                self.op(b"G");
                self.op(&x.to_be_bytes());
            }
            Value::Str(text) => self.str(text)?,
            Value::List(items) => {
                self.op(b"]");
                self.items(items, b"e", depth)?;
            }
            Value::Tuple(items) if items.is_empty() => self.op(b")"),
            Value::Tuple(items) => self.items(items, b"t", depth)?,
            Value::Dict(items) => self.dict(items, depth)?,
            Value::Tensor(tensor) => self.tensor(tensor)?,
            Value::Opaque(kind) => return Err(Error::run(format!("a {kind} cannot be written"))),
        }
        Ok(())
    }

    /// MARK, the items, and the opcode that collects them.
    fn items(&mut self, items: &'v [Value<'v>], collect: &[u8], depth: usize) -> Result<()> {
        if items.is_empty() {
            return Ok(());
        }
        self.op(b"(");
        for item in items {
            self.value(item, depth + 1)?;
        }
        self.op(collect);
        Ok(())
    }

    fn dict(&mut self, items: &'v [(Value<'v>, Value<'v>)], depth: usize) -> Result<()> {
        self.op(b"}");
        if items.is_empty() {
            return Ok(());
        }
        self.op(b"(");
        for (key, value) in items {
            self.value(key, depth + 1)?;
            self.value(value, depth + 1)?;
        }
        self.op(b"u");
        Ok(())
    }

    fn int(&mut self, n: i64) {
        if let Ok(byte) = u8::try_from(n) {
            self.op(&[b'K', byte]);
        } else if let Ok(n) = u16::try_from(n) {
            self.op(b"M");
            self.op(&n.to_le_bytes());
        } else if let Ok(n) = i32::try_from(n) {
            self.op(b"J");
            self.op(&n.to_le_bytes());
        } else {
            // LONG1 with all 8 bytes: two's complement needs no shortening.
            self.op(&[0x8a, 8]);
            self.op(&n.to_le_bytes());
        }
    }

    fn count(&mut self, n: usize) -> Result<()> {
        self.int(
            i64::try_from(n).map_err(|_| Error::run("a tensor has more elements than PyTorch can count"))?,
        );
        Ok(())
    }

    fn str(&mut self, text: &str) -> Result<()> {
        let length = u32::try_from(text.len()).map_err(|_| Error::run("a string is longer than 4 GiB"))?;
        self.op(b"X");
        self.op(&length.to_le_bytes());
        self.op(text.as_bytes());
        Ok(())
    }

    /// `torch._utils._rebuild_tensor_v2(storage, 0, size, stride, False, OrderedDict())`
    fn tensor(&mut self, tensor: &'v TensorData<'v>) -> Result<()> {
        let numel = tensor.numel().filter(|n| n.checked_mul(tensor.dtype.size()) == Some(tensor.data.len()));
        let Some(numel) = numel else {
            return Err(Error::run(format!("{tensor:?} has another number of bytes than its shape")));
        };
        let key = self.out.tensors.len().to_string();
        self.out.tensors.push(tensor);
        self.op(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        self.str("storage")?;
        self.op(format!("ctorch\n{}\n", tensor.dtype.storage()).as_bytes());
        self.str(&key)?;
        self.str("cpu")?;
        self.count(numel)?;
        self.op(b"tQK\0");
        self.counts(&tensor.shape)?;
        self.counts(&contiguous_strides(&tensor.shape))?;
        self.op(b"\x89ccollections\nOrderedDict\n)RtR");
        Ok(())
    }

    fn counts(&mut self, counts: &[usize]) -> Result<()> {
        if counts.is_empty() {
            self.op(b")");
            return Ok(());
        }
        self.op(b"(");
        for &n in counts {
            self.count(n)?;
        }
        self.op(b"t");
        Ok(())
    }
}

/// How far apart neighbours along each dimension lie in C order; an empty dimension counts as 1, as in PyTorch.
pub(super) fn contiguous_strides(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1_usize; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i].saturating_mul(shape[i].max(1));
    }
    strides
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(value: &Value) -> Vec<u8> {
        pickle(value).unwrap().bytes
    }

    #[test]
    fn values_take_the_opcodes_that_python_writes() {
        assert_eq!(bytes(&Value::None), b"\x80\x02N.");
        assert_eq!(bytes(&Value::Int(255)), b"\x80\x02K\xff.");
        assert_eq!(bytes(&Value::Int(256)), b"\x80\x02M\x00\x01.");
        assert_eq!(bytes(&Value::Int(-1)), b"\x80\x02J\xff\xff\xff\xff.");
        assert_eq!(bytes(&Value::Int(1 << 40)), b"\x80\x02\x8a\x08\0\0\0\0\0\x01\0\0.");
        assert_eq!(bytes(&Value::Float(1.0)), b"\x80\x02G\x3f\xf0\0\0\0\0\0\0.");
        assert_eq!(bytes(&Value::from("ñ")), b"\x80\x02X\x02\0\0\0\xc3\xb1.");
        assert_eq!(bytes(&Value::Tuple(vec![])), b"\x80\x02).");
        assert_eq!(
            bytes(&Value::dict([("a", Value::List(vec![Value::Bool(true)]))])),
            b"\x80\x02}(X\x01\0\0\0a](\x88eu."
        );
    }

    #[test]
    fn strides_are_those_of_c_order() {
        assert_eq!(contiguous_strides(&[2, 3, 4]), [12, 4, 1]);
        assert_eq!(contiguous_strides(&[2, 0, 4]), [4, 4, 1]);
        assert!(contiguous_strides(&[]).is_empty());
    }

    #[test]
    fn what_cannot_be_written_is_an_error() {
        let short = TensorData { shape: vec![2], ..TensorData::scalar(1.0) };
        let nested = (0..=MAX_DEPTH).fold(Value::None, |inner, _| Value::List(vec![inner]));
        for value in [short.into(), nested, Value::Opaque("numpy.ndarray".into())] {
            assert!(pickle(&value).is_err(), "{value:?}");
        }
    }
}
