//! What a pickle's calls and references stand for. A "call" makes a node here; no function exists to be run.

use super::super::globals::{Global, lookup};
use super::{Id, Machine, Node, at, damaged, long};
use crate::error::{Error, Result};

/// The longest name of a storage.
const MAX_KEY: usize = 64;

impl Machine<'_> {
    /// BUILD sets attributes. Those of a dict (`state_dict()._metadata`) and of opaque values are not needed.
    pub(super) fn build(&mut self, target: Id, state: &[Id]) -> Result<()> {
        let big = match state {
            [state] => self
                .tuple(*state)
                .and_then(|parts| parts.get(1))
                .is_some_and(|&order| self.is_str(order, ">")),
            _ => false,
        };
        match self.nodes.get_mut(target.0 as usize) {
            Some(Node::NumpyDtype { big_endian, .. }) => *big_endian = big,
            Some(Node::Dict(_) | Node::Opaque(_)) => {}
            _ => return Err(damaged("attributes are set on a value that has none")),
        }
        Ok(())
    }

    /// `GLOBAL`, `STACK_GLOBAL`, `REDUCE`, `NEWOBJ`, `BINPERSID`
    pub(super) fn object(&mut self, op: u8) -> Result<()> {
        let node = match op {
            b'c' => {
                let module = self.line()?;
                Node::Global(known(module, self.line()?)?)
            }
            0x93 => {
                let (name, module) = (self.pop()?, self.pop()?);
                match (at(&self.nodes, module), at(&self.nodes, name)) {
                    (Node::Str(module), Node::Str(name)) => Node::Global(known(module, name)?),
                    _ => return Err(damaged("a class is named by something other than strings")),
                }
            }
            b'Q' => {
                let id = self.pop()?;
                self.storage(id)?
            }
            _ => {
                let (args, callable) = (self.pop()?, self.pop()?);
                return self.call(callable, args);
            }
        };
        self.push(node)
    }

    /// `("storage", torch.FloatStorage, key, location, numel)`
    fn storage(&self, id: Id) -> Result<Node> {
        let refused = || damaged("a reference to something other than a tensor's storage");
        let Some(&[kind, class, key, _, numel]) = self.tuple(id) else { return Err(refused()) };
        match (at(&self.nodes, class), at(&self.nodes, key), at(&self.nodes, numel)) {
            // The key is a number in PyTorch's files. It is looked up as often as the storage is used.
            (Node::Global(Global::Storage(dtype)), Node::Str(name), &Node::Int(numel))
                if self.is_str(kind, "storage") && name.len() <= MAX_KEY =>
            {
                let numel = u64::try_from(numel).map_err(|_| damaged("a storage of negative length"))?;
                Ok(Node::Storage { dtype: *dtype, key, numel })
            }
            _ => Err(refused()),
        }
    }

    /// What calling `callable` with `args` would give.
    fn call(&mut self, callable: Id, args: Id) -> Result<()> {
        let &Node::Global(callable) = at(&self.nodes, callable) else {
            return Err(damaged("a call of something that is no function"));
        };
        let Some(args) = self.tuple(args) else {
            return Err(damaged("a call whose arguments are no tuple"));
        };
        let node = match (callable, args) {
            (Global::Dict, []) => Node::Dict(Vec::new()),
            (Global::Opaque(kind), _) => Node::Opaque(kind),
            (Global::Bytes, []) => Node::Bytes(Vec::new()),
            (Global::Size, &[sizes]) | (Global::Parameter, &[sizes, ..]) => {
                // Both are read as what they wrap.
                let fits = match at(&self.nodes, sizes) {
                    Node::Tuple(_) => callable == Global::Size,
                    Node::Tensor { .. } => callable == Global::Parameter,
                    _ => false,
                };
                if !fits {
                    return Err(damaged("a torch.Size or parameter made of something else"));
                }
                return self.refer(sizes);
            }
            (Global::Tensor, &[storage, offset, shape, strides, ref rest @ ..]) => {
                // `requires_grad`, `backward_hooks`, and what `torch._utils.get_tensor_metadata` says of the view.
                if let Some(&metadata) = rest.get(2) {
                    self.refuse_lazy_bits(metadata)?;
                }
                self.tensor(storage, offset, shape, strides)?
            }
            (Global::NumpyDtype, &[code, ..]) => Node::NumpyDtype { code, big_endian: false },
            (Global::NumpyScalar, &[dtype, bytes]) => self.numpy_scalar(dtype, bytes),
            (Global::Encode, &[text, ..]) => {
                let bytes = self.latin1(text)?;
                self.decoded += bytes.len();
                if self.decoded > self.input.len() {
                    return Err(damaged("more byte strings than the stream has bytes"));
                }
                Node::Bytes(bytes)
            }
            _ => return Err(damaged(format!("{callable:?} is called with {} arguments", args.len()))),
        };
        self.push(node)
    }

    fn tensor(&self, storage: Id, offset: Id, shape: Id, strides: Id) -> Result<Node> {
        let refused = || damaged("a tensor whose storage, offset, shape or strides are something else");
        let &Node::Int(offset) = at(&self.nodes, offset) else { return Err(refused()) };
        let offset = u64::try_from(offset).map_err(|_| refused())?;
        let is_storage = matches!(at(&self.nodes, storage), Node::Storage { .. });
        if !is_storage || self.tuple(shape).is_none() || self.tuple(strides).is_none() {
            return Err(refused());
        }
        Ok(Node::Tensor { storage, offset, shape, strides })
    }

    /// Refuses a view whose elements are the negated or conjugated ones of its storage, which PyTorch notes in a dict
    /// such as `{"neg": True}`. Any other note may change their meaning too.
    fn refuse_lazy_bits(&self, metadata: Id) -> Result<()> {
        let unset = |&(key, value): &(Id, Id)| {
            (self.is_str(key, "neg") || self.is_str(key, "conj"))
                && matches!(at(&self.nodes, value), Node::Bool(false))
        };
        match at(&self.nodes, metadata) {
            Node::None => Ok(()),
            Node::Dict(bits) if bits.iter().all(unset) => Ok(()),
            _ => Err(Error::data(
                "a tensor is a negated, conjugated or otherwise marked view of what is stored",
            )
            .hint("save it with torch.save after tensor.resolve_conj().resolve_neg().clone()")),
        }
    }

    /// The number in a NumPy scalar of a common type; others stay opaque.
    fn numpy_scalar(&self, dtype: Id, bytes: Id) -> Node {
        let (&Node::NumpyDtype { code, big_endian }, Node::Bytes(bytes)) =
            (at(&self.nodes, dtype), at(&self.nodes, bytes))
        else {
            return Node::Opaque("NumPy scalar");
        };
        // The longest number has 8 bytes; longer ones are not even copied, because one may be used a million times.
        let Node::Str(code) = at(&self.nodes, code) else { return Node::Opaque("NumPy scalar") };
        let mut bytes = if bytes.len() <= 8 { bytes.clone() } else { Vec::new() };
        if big_endian {
            bytes.reverse();
        }
        decode_scalar(code, &bytes).unwrap_or(Node::Opaque("NumPy scalar"))
    }

    /// A string's characters as one byte each.
    fn latin1(&self, text: Id) -> Result<Vec<u8>> {
        let Node::Str(text) = at(&self.nodes, text) else {
            return Err(damaged("byte strings are made of something other than text"));
        };
        text.chars()
            .map(|c| u8::try_from(c).map_err(|_| damaged("a byte string with a character above 255")))
            .collect()
    }

    fn tuple(&self, id: Id) -> Option<&[Id]> {
        if let Node::Tuple(items) = at(&self.nodes, id) { Some(items) } else { None }
    }

    fn is_str(&self, id: Id, expected: &str) -> bool {
        matches!(at(&self.nodes, id), Node::Str(text) if text == expected)
    }
}

fn known(module: &str, name: &str) -> Result<Global> {
    lookup(module, name).ok_or_else(|| {
        let name: String = format!("{module}.{name}").chars().take(100).collect();
        Error::data(format!(
            "it asks to run `{}`, which is not among what a checkpoint needs",
            name.escape_debug()
        ))
        .hint(
            "slt-run never runs code from a file. If you trust it, load it in Python and save only its \
                 tensors: torch.save({\"model_state\": model.state_dict()}, path)",
        )
    })
}

/// The number that `bytes` are in NumPy's type `code`.
fn decode_scalar(code: &str, bytes: &[u8]) -> Option<Node> {
    Some(match (code, bytes) {
        ("f8", _) => Node::Float(f64::from_le_bytes(bytes.try_into().ok()?)),
        ("f4", _) => Node::Float(f64::from(f32::from_le_bytes(bytes.try_into().ok()?))),
        ("f2", _) => Node::Float(half::f16::from_le_bytes(bytes.try_into().ok()?).to_f64()),
        ("b1", &[byte]) => Node::Bool(byte != 0),
        ("i8" | "i4" | "i2" | "i1", _) if code.ends_with(&bytes.len().to_string()) => long(bytes),
        ("u8" | "u4" | "u2" | "u1", _) if code.ends_with(&bytes.len().to_string()) => {
            // A zero above makes it positive; nine bytes are too long for `long`, so the top one is looked at here.
            if bytes.len() == 8 && bytes.last().is_some_and(|b| b & 0x80 != 0) {
                return None;
            }
            let mut wide = bytes.to_vec();
            wide.resize(8, 0);
            long(&wide)
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::super::unpickle;
    use super::*;

    fn reason(input: &[u8]) -> String {
        unpickle(input).map(|_| ()).unwrap_err().to_string()
    }

    #[test]
    fn numpy_scalars_become_numbers() {
        let scalar = |code: &str, order: &str, bytes: &[u8]| {
            let mut input = b"\x80\x03cnumpy.core.multiarray\nscalar\ncnumpy\ndtype\n\x8c\x02".to_vec();
            input.extend_from_slice(code.as_bytes());
            input.extend_from_slice(b"\x89\x88\x87R(K\x03\x8c\x01");
            input.extend_from_slice(order.as_bytes());
            input.extend_from_slice(b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tbC");
            input.push(bytes.len() as u8);
            input.extend_from_slice(bytes);
            input.extend_from_slice(b"\x86R.");
            let mut graph = unpickle(&input).unwrap();
            graph.nodes.swap_remove(graph.root.0 as usize)
        };
        assert!(matches!(scalar("f8", "<", &0.25_f64.to_le_bytes()), Node::Float(0.25)));
        assert!(matches!(scalar("f4", ">", &0.25_f32.to_be_bytes()), Node::Float(0.25)));
        assert!(matches!(scalar("i8", "<", &(-3_i64).to_le_bytes()), Node::Int(-3)));
        assert!(matches!(scalar("u2", "<", &[0xff, 0xff]), Node::Int(0xffff)));
        assert!(matches!(scalar("f8", "<", &[0; 4]), Node::Opaque(_)));
        assert!(matches!(scalar("O8", "|", &[0; 8]), Node::Opaque(_)));
    }

    #[test]
    fn other_names_are_refused_by_name() {
        let refused = reason(b"\x80\x02cos\nsystem\nX\x04\0\0\0true\x85R.");
        assert!(refused.contains("`os.system`") && refused.contains("hint:"), "{refused}");
        let refused = reason(b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.");
        assert!(refused.contains("`builtins.eval`"), "{refused}");
    }

    #[test]
    fn one_long_string_cannot_become_many_byte_strings() {
        let mut input = b"\x80\x02c_codecs\nencode\nq\0X\xe8\x03\0\0".to_vec();
        input.extend([b'a'; 1000]);
        input.extend(b"q\x01\x85q\x02R");
        for _ in 0..100 {
            input.extend(b"h\0h\x02R");
        }
        input.push(b'.');
        assert!(reason(&input).contains("byte strings"));
    }
}
