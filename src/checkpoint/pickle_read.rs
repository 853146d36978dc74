//! Reads a pickle into a graph of nodes, as a small stack machine that builds plain values and runs nothing.
//!
//! It takes the opcodes of protocols 2 to 5 that `torch.save` emits (see Python's `pickletools`). Nodes live in
//! one table and refer to each other by number, because a pickle fills containers after it has remembered them.

mod objects;

use std::collections::HashMap;

use super::globals::Global;
use super::value::Dtype;
use crate::error::{Error, Result};

/// More values than any checkpoint has (a tensor takes some 20), which bounds what a hostile stream of one-byte values
/// may take.
pub(super) const MAX_NODES: usize = 1_000_000;
/// More values and collections under construction than Python's own recursion limit lets it write.
const MAX_MARKS: usize = 10_000;

/// The place of a node in the graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Id(u32);

/// A value whose parts are other nodes.
#[derive(Debug)]
pub(super) enum Node {
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(String),
    Bytes(Vec<u8>),
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    Global(Global),
    /// `numel` elements, stored in the archive's `data/<key>`; `key` is a string node.
    Storage {
        dtype: Dtype,
        key: Id,
        numel: u64,
    },
    /// A view of a storage from `offset` on; `shape` and `strides` are tuple nodes of ints, counted in elements.
    Tensor {
        storage: Id,
        offset: u64,
        shape: Id,
        strides: Id,
    },
    /// The type of a NumPy scalar, such as `f8`.
    NumpyDtype {
        code: Id,
        big_endian: bool,
    },
    Opaque(&'static str),
}

/// Everything that a pickle described.
pub(super) struct Graph {
    nodes: Vec<Node>,
    /// The value that the pickle is.
    pub root: Id,
}

impl Graph {
    /// The node at `id`.
    pub fn node(&self, id: Id) -> &Node {
        at(&self.nodes, id)
    }
}

/// Ids are only made for nodes that exist and nodes are never removed, so the default is never taken.
fn at(nodes: &[Node], id: Id) -> &Node {
    nodes.get(id.0 as usize).unwrap_or(&Node::None)
}

/// Reads the pickle in `input`.
///
/// # Errors
///
/// A data error where the stream is damaged, names something that is not on the allow-list, or does what no
/// checkpoint does.
pub(super) fn unpickle(input: &[u8]) -> Result<Graph> {
    let mut machine = Machine {
        input,
        at: 0,
        nodes: Vec::new(),
        stack: Vec::new(),
        marks: Vec::new(),
        memo: HashMap::new(),
        decoded: 0,
        references: 0,
    };
    let root =
        machine.run().map_err(|error| error.cause(format!("at byte {} of the object stream", machine.at)))?;
    Ok(Graph { nodes: machine.nodes, root })
}

fn damaged(what: impl Into<String>) -> Error {
    Error::data(what)
}

fn too_many() -> Error {
    damaged(format!("more than {MAX_NODES} values"))
}

struct Machine<'p> {
    input: &'p [u8],
    at: usize,
    nodes: Vec<Node>,
    stack: Vec<Id>,
    /// The stack's height at each open MARK.
    marks: Vec<usize>,
    memo: HashMap<u64, Id>,
    /// Bytes made by `_codecs.encode`, which could be asked to copy one long string again and again.
    decoded: usize,
    /// How often a node was put on the stack.
    references: usize,
}

impl<'p> Machine<'p> {
    fn run(&mut self) -> Result<Id> {
        loop {
            let op = self.byte()?;
            if op == b'.' {
                return self.pop();
            }
            self.step(op)?;
        }
    }

    fn step(&mut self, op: u8) -> Result<()> {
        match op {
            // PROTO, FRAME
            0x80 => self.protocol(),
            0x95 => self.take(8).map(|_| ()),
            // MARK, POP, POP_MARK
            b'(' => {
                self.marks.push(self.stack.len());
                if self.marks.len() > MAX_MARKS {
                    return Err(damaged(format!("more than {MAX_MARKS} collections inside one another")));
                }
                Ok(())
            }
            b'0' => self.pop().map(|_| ()),
            b'1' => self.pop_mark().map(|_| ()),
            b'q' | b'r' | 0x94 | b'h' | b'j' => self.memory(op),
            b']' | b')' | b'}' | 0x8f | b'l' | b't' | b'd' | 0x91 | 0x85..=0x87 => self.collection(op),
            b'a' | b'e' | b's' | b'u' | 0x90 | b'b' => self.fill(op),
            b'c' | 0x93 | b'R' | 0x81 | b'Q' => self.object(op),
            _ => self.scalar(op),
        }
    }

    fn protocol(&mut self) -> Result<()> {
        match self.byte()? {
            2..=5 => Ok(()),
            other => Err(damaged(format!("pickle protocol {other} is not one that PyTorch writes"))),
        }
    }

    /// Opcodes that push a value without parts.
    fn scalar(&mut self, op: u8) -> Result<()> {
        let node = match op {
            b'N' => Node::None,
            0x88 => Node::Bool(true),
            0x89 => Node::Bool(false),
            b'K' => Node::Int(i64::from(self.byte()?)),
            b'M' => Node::Int(i64::from(u16::from_le_bytes(self.array()?))),
            b'J' => Node::Int(i64::from(i32::from_le_bytes(self.array()?))),
            // LONG1, LONG4
            0x8a => {
                let length = usize::from(self.byte()?);
                long(self.take(length)?)
            }
            0x8b => long(self.counted(4)?),
            b'G' => Node::Float(f64::from_be_bytes(self.array()?)),
            // SHORT_BINUNICODE, BINUNICODE, BINUNICODE8
            0x8c => text(self.counted(1)?)?,
            b'X' => text(self.counted(4)?)?,
            0x8d => text(self.counted(8)?)?,
            // SHORT_BINBYTES, BINBYTES, BINBYTES8, BYTEARRAY8
            b'C' => Node::Bytes(self.counted(1)?.to_vec()),
            b'B' => Node::Bytes(self.counted(4)?.to_vec()),
            0x8e | 0x96 => Node::Bytes(self.counted(8)?.to_vec()),
            other => return Err(damaged(format!("opcode {other:#04x} is not one that PyTorch writes"))),
        };
        self.push(node)
    }

    /// `BINPUT`, `LONG_BINPUT`, `MEMOIZE`, `BINGET`, `LONG_BINGET`
    fn memory(&mut self, op: u8) -> Result<()> {
        let key = match op {
            b'q' | b'h' => u64::from(self.byte()?),
            0x94 => self.memo.len() as u64,
            _ => u64::from(u32::from_le_bytes(self.array()?)),
        };
        if matches!(op, b'h' | b'j') {
            let id = *self.memo.get(&key).ok_or_else(|| damaged(format!("memo {key} was never stored")))?;
            self.refer(id)?;
        } else {
            let id = self.top()?;
            self.memo.insert(key, id);
            if self.memo.len() > MAX_NODES {
                return Err(too_many());
            }
        }
        Ok(())
    }

    /// Opcodes that make a list, tuple, dict or set.
    fn collection(&mut self, op: u8) -> Result<()> {
        let node = match op {
            b']' => Node::List(Vec::new()),
            b')' => Node::Tuple(Vec::new()),
            b'}' => Node::Dict(Vec::new()),
            // EMPTY_SET, FROZENSET
            0x8f => Node::Opaque("set"),
            0x91 => {
                self.pop_mark()?;
                Node::Opaque("set")
            }
            b'l' => Node::List(self.pop_mark()?),
            b't' => Node::Tuple(self.pop_mark()?),
            b'd' => Node::Dict(pairs(&self.pop_mark()?)?),
            // TUPLE1 to TUPLE3
            _ => {
                let mut items = Vec::with_capacity(3);
                for _ in 0x84..op {
                    items.push(self.pop()?);
                }
                items.reverse();
                Node::Tuple(items)
            }
        };
        self.push(node)
    }

    /// `APPEND`, `APPENDS`, `SETITEM`, `SETITEMS`, `ADDITEMS`, `BUILD`: put values into the container below them.
    fn fill(&mut self, op: u8) -> Result<()> {
        let values = match op {
            b'a' | b'b' => vec![self.pop()?],
            b's' => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.pop_mark()?,
        };
        let target = self.top()?;
        if op == b'b' {
            return self.build(target, &values);
        }
        match (op, self.nodes.get_mut(target.0 as usize)) {
            (b'a' | b'e', Some(Node::List(items))) => items.extend(values),
            (b's' | b'u', Some(Node::Dict(items))) => items.extend(pairs(&values)?),
            (_, Some(Node::Opaque(_))) => {}
            _ => return Err(damaged("values are put into something that cannot hold them")),
        }
        Ok(())
    }

    fn push(&mut self, node: Node) -> Result<()> {
        if self.nodes.len() >= MAX_NODES {
            return Err(too_many());
        }
        self.refer(Id(self.nodes.len() as u32))?;
        self.nodes.push(node);
        Ok(())
    }

    /// Puts a node on the stack, which takes two bytes where the node is remembered.
    fn refer(&mut self, id: Id) -> Result<()> {
        self.references += 1;
        if self.references > 4 * MAX_NODES {
            return Err(too_many());
        }
        self.stack.push(id);
        Ok(())
    }

    /// The lowest height to which the stack may be popped.
    fn floor(&self) -> usize {
        self.marks.last().copied().unwrap_or(0)
    }

    fn top(&self) -> Result<Id> {
        match self.stack.last() {
            Some(&id) if self.stack.len() > self.floor() => Ok(id),
            _ => Err(damaged("the stack is empty")),
        }
    }

    fn pop(&mut self) -> Result<Id> {
        let id = self.top()?;
        self.stack.pop();
        Ok(id)
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>> {
        let mark = self.marks.pop().ok_or_else(|| damaged("a collection without its start"))?;
        Ok(self.stack.split_off(mark.min(self.stack.len())))
    }

    fn take(&mut self, length: usize) -> Result<&'p [u8]> {
        let end = self.at.checked_add(length);
        let bytes = end.and_then(|end| self.input.get(self.at..end));
        let bytes = bytes.ok_or_else(|| damaged("the object stream ends in the middle of a value"))?;
        self.at += length;
        Ok(bytes)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| damaged("the object stream ends in the middle of a value"))
    }

    /// Bytes after their own number, which is `width` bytes, little-endian.
    fn counted(&mut self, width: usize) -> Result<&'p [u8]> {
        let mut length = [0; 8];
        for (to, from) in length.iter_mut().zip(self.take(width)?) {
            *to = *from;
        }
        self.take(usize::try_from(u64::from_le_bytes(length)).unwrap_or(usize::MAX))
    }

    fn line(&mut self) -> Result<&'p str> {
        let rest = self.input.get(self.at..).unwrap_or_default();
        let length = rest.iter().position(|&b| b == b'\n');
        let line = self.take(length.ok_or_else(|| damaged("a class name without an end"))?)?;
        self.at += 1;
        std::str::from_utf8(line).map_err(|_| damaged("a class name that is not text"))
    }
}

fn text(bytes: &[u8]) -> Result<Node> {
    let text = std::str::from_utf8(bytes).map_err(|_| damaged("a string that is not UTF-8"))?;
    Ok(Node::Str(text.to_owned()))
}

/// A two's complement number of any length; beyond 64 bits it is nothing that slt-run needs.
fn long(bytes: &[u8]) -> Node {
    let fill = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
    if bytes.len() > 8 {
        return Node::Opaque("Python int beyond 64 bits");
    }
    let mut all = [fill; 8];
    for (to, from) in all.iter_mut().zip(bytes) {
        *to = *from;
    }
    Node::Int(i64::from_le_bytes(all))
}

fn pairs(items: &[Id]) -> Result<Vec<(Id, Id)>> {
    match items.as_chunks::<2>() {
        (pairs, []) => Ok(pairs.iter().map(|&[key, value]| (key, value)).collect()),
        _ => Err(damaged("a dict with a key that has no value")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn root(input: &[u8]) -> Result<Node> {
        let mut graph = unpickle(input)?;
        Ok(graph.nodes.swap_remove(graph.root.0 as usize))
    }

    #[test]
    fn numbers_of_every_width() {
        for (input, expected) in [
            (&b"\x80\x02K\xff."[..], 255),
            (b"\x80\x02M\x01\x02.", 513),
            (b"\x80\x02J\xff\xff\xff\xff.", -1),
            (b"\x80\x02\x8a\x00.", 0),
            (b"\x80\x02\x8a\x02\x00\xff.", -256),
            (b"\x80\x02\x8b\x01\0\0\0\x7f.", 127),
        ] {
            assert!(matches!(root(input), Ok(Node::Int(n)) if n == expected), "{input:?}");
        }
        assert!(matches!(root(b"\x80\x02\x8a\x09\0\0\0\0\0\0\0\0\x01."), Ok(Node::Opaque(_))));
    }

    #[test]
    fn protocol_4_frames_memos_and_names() {
        let input = b"\x80\x04\x95\0\0\0\0\0\0\0\0\x8c\x05torch\x94\x8c\x04Size\x94\x93)\x85R.";
        assert!(matches!(root(input), Ok(Node::Tuple(items)) if items.is_empty()));
    }

    #[test]
    fn damaged_streams_are_refused() {
        for input in [
            &b""[..],
            b"\x80\x02",
            b"\x80\x09N.",
            b"\x80\x02.",
            b"\x80\x02(.",
            b"\x80\x02t.",
            b"\x80\x02N(0.",
            b"\x80\x02\x86.",
            b"\x80\x02X\xff\xff\xff\xffa.",
            b"\x80\x02\x8d\xff\xff\xff\xff\xff\xff\xff\xffa.",
            b"\x80\x02X\x01\0\0\0\xff.",
            b"\x80\x02h\x07.",
            b"\x80\x02}(Nu.",
            b"\x80\x02NNa.",
            b"\x80\x02NQ.",
            b"\x80\x02N)R.",
            b"\x80\x02ctorch\nSize\nN\x85R.",
            b"\x80\x02ctorch.ut",
            b"\x80\x02I7\n.",
        ] {
            assert!(root(input).is_err(), "{input:?}");
        }
    }
}
