//! Zip-format PyTorch files, written and read.
//!
//! Format: `torch.serialization` and `caffe2/serialize/inline_container.cc`, version 3. A written file has
//! `archive/data.pkl`, `byteorder`, `data/0`, `data/1`, … and `version`; equal values give equal bytes.

use std::borrow::Cow;
use std::collections::{HashMap, HashSet};
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::thread;

use super::archive::Archive;
use super::atomic;
use super::pickle_read::{Graph, Id, MAX_NODES, Node, unpickle};
use super::pickle_write::{MAX_DEPTH, Pickled, contiguous_strides, pickle};
use super::value::{TensorData, Value};
use super::zip_write::ZipWriter;
use crate::error::{Error, Result};
use crate::files::Folder;

/// More dimensions than any tensor of a network has.
const MAX_DIMS: usize = 32;

/// Writes `value` to `out` from front to back. Tensors are not copied on the way.
///
/// # Errors
///
/// A run error where `value` holds something that cannot be written, or where `out` fails.
pub fn write(out: impl Write, value: &Value) -> Result<()> {
    let pickled = pickle(value)?;
    write_pickled(out, &pickled).map_err(|e| Error::run("a checkpoint cannot be written").cause(e))
}

/// Writes `value` to `path` so that, whatever happens, `path` holds either its old content or all of the new.
///
/// # Errors
///
/// A run error that names the path; the old file is whole.
pub fn save(path: &Path, value: &Value) -> Result<()> {
    let pickled = pickle(value).map_err(|e| e.context(format!("cannot save {}", path.display())))?;
    atomic::replace(path, |file| write_pickled(BufWriter::with_capacity(1 << 20, file), &pickled))
}

/// As [`save`], for the file `name` of an open folder.
///
/// # Errors
///
/// As [`save`].
pub fn save_in(folder: &Folder, name: &str, value: &Value) -> Result<()> {
    let context = |e: Error| e.context(format!("cannot save {}", folder.path().join(name).display()));
    let pickled = pickle(value).map_err(context)?;
    let old = folder.open_file(name).ok();
    let saved = atomic::replace_in(folder, name, |file| {
        write_pickled(BufWriter::with_capacity(1 << 20, file), &pickled)
    });
    // Whoever lets go of a file last waits for its pages to be freed, a quarter of a second for 1.2 GB: not the run.
    if let Some(old) = old {
        drop(thread::Builder::new().name("old checkpoint".into()).spawn(move || drop(old)));
    }
    saved
}

fn write_pickled(out: impl Write, pickled: &Pickled) -> io::Result<()> {
    let mut zip = ZipWriter::new(out);
    zip.entry("archive/data.pkl", &pickled.bytes)?;
    zip.entry("archive/byteorder", b"little")?;
    for (i, tensor) in pickled.tensors.iter().enumerate() {
        zip.entry(&format!("archive/data/{i}"), &tensor.data)?;
    }
    zip.entry("archive/version", b"3\n")?;
    zip.finish()
}

/// Reads the file at `path`. Nothing in it is run, and memory stays in proportion to its size.
///
/// # Errors
///
/// A data error that names the path and says what is wrong with the file.
pub fn load(path: &Path) -> Result<Value<'static>> {
    read(path).map_err(|mut e| {
        for problem in &mut e.problems {
            let hint = match problem.missing {
                Some(_) => "give the path of a checkpoint",
                None => "take another checkpoint, or save this one anew with torch.save",
            };
            problem.hint.get_or_insert_with(|| hint.to_owned());
        }
        e.context(format!("cannot read {} as a PyTorch file", path.display()))
    })
}

fn read(path: &Path) -> Result<Value<'static>> {
    let mut archive = Archive::open(path)?;
    let stream = archive.object_stream()?;
    let graph = unpickle(&stream)?;
    // A checkpoint's tensors are its file; views of one storage (tied weights) may double them.
    let budget = Budget {
        values: stream.len().min(MAX_NODES) + 1000,
        text: stream.len().saturating_mul(8).saturating_add(1000),
        tensors: archive.file_size.saturating_mul(4).saturating_add(1 << 20),
    };
    let mut survey = Survey { graph: &graph, archive: &mut archive, left: budget, uses: HashMap::new() };
    survey.value(graph.root, 0)?;
    let uses = survey.uses;
    TensorReader { graph: &graph, archive: &mut archive, uses, storages: HashMap::new() }.value(graph.root)
}

/// How much may still be made: shared parts are copied, so a small file could describe a huge value.
struct Budget {
    values: usize,
    text: usize,
    tensors: u64,
}

/// The first walk over the graph: everything is checked before a tensor is read.
struct Survey<'g, 'a> {
    graph: &'g Graph,
    archive: &'a mut Archive,
    left: Budget,
    /// How often each storage is needed.
    uses: HashMap<&'g str, usize>,
}

fn too_much() -> Error {
    Error::data("it describes far more data than it holds")
}

impl Survey<'_, '_> {
    fn value(&mut self, id: Id, depth: usize) -> Result<()> {
        if depth > MAX_DEPTH {
            return Err(Error::data(format!("its values nest deeper than {MAX_DEPTH} levels")));
        }
        self.left.values = self.left.values.checked_sub(1).ok_or_else(too_much)?;
        let graph = self.graph;
        match graph.node(id) {
            Node::Str(text) => {
                self.left.text = self.left.text.checked_sub(text.len()).ok_or_else(too_much)?;
            }
            Node::List(items) | Node::Tuple(items) => {
                for &item in items {
                    self.value(item, depth + 1)?;
                }
            }
            Node::Dict(items) => self.dict(items, depth)?,
            Node::Tensor { .. } => self.tensor(id)?,
            _ => {}
        }
        Ok(())
    }

    fn dict(&mut self, items: &[(Id, Id)], depth: usize) -> Result<()> {
        let (mut names, mut numbers) = (HashSet::new(), HashSet::new());
        for &(key, value) in items {
            let new = match self.graph.node(key) {
                Node::Str(name) => names.insert(name.as_str()),
                Node::Int(number) => numbers.insert(*number),
                _ => true,
            };
            if !new {
                return Err(Error::data("a dict has the same key twice"));
            }
            self.value(key, depth + 1)?;
            self.value(value, depth + 1)?;
        }
        Ok(())
    }

    fn tensor(&mut self, id: Id) -> Result<()> {
        let view = View::new(self.graph, id)?;
        let dims = view.strides.len();
        self.left.values = self.left.values.checked_sub(dims).ok_or_else(too_much)?;
        let stored = self.archive.size(&format!("data/{}", view.key));
        if stored != Some(view.storage_bytes) {
            return Err(Error::data(match stored {
                Some(stored) => format!(
                    "storage `{}` should have {} bytes and has {stored}",
                    view.key.escape_debug(),
                    view.storage_bytes
                ),
                None => format!("storage `{}` is missing", view.key.escape_debug()),
            }));
        }
        self.left.tensors = self.left.tensors.checked_sub(view.bytes as u64).ok_or_else(too_much)?;
        *self.uses.entry(view.key).or_default() += 1;
        Ok(())
    }
}

/// A tensor's place in its storage, checked to lie inside it.
struct View<'g> {
    tensor: TensorData<'static>,
    key: &'g str,
    storage_bytes: u64,
    /// Of the tensor, once contiguous.
    bytes: usize,
    /// In elements.
    offset: usize,
    strides: Vec<usize>,
}

impl<'g> View<'g> {
    fn new(graph: &'g Graph, id: Id) -> Result<Self> {
        let lies = || Error::data("a tensor's shape, strides or offset do not fit its storage");
        let &Node::Tensor { storage, offset, shape, strides } = graph.node(id) else { return Err(lies()) };
        let &Node::Storage { dtype, key, numel } = graph.node(storage) else { return Err(lies()) };
        let Node::Str(key) = graph.node(key) else { return Err(lies()) };
        let (shape, strides) = (counts(graph, shape)?, counts(graph, strides)?);
        if shape.len() != strides.len() {
            return Err(lies());
        }
        let last = (shape.iter().zip(&strides)).try_fold(offset, |last, (&length, &stride)| {
            let steps = (length as u64).saturating_sub(1);
            last.checked_add(steps.checked_mul(stride as u64)?)
        });
        let tensor = TensorData { dtype, shape, data: Cow::Owned(Vec::new()) };
        let elements = tensor.numel().ok_or_else(lies)?;
        if elements > 0 && last.is_none_or(|last| last >= numel) {
            return Err(lies());
        }
        Ok(Self {
            tensor,
            key,
            storage_bytes: numel.checked_mul(dtype.size() as u64).ok_or_else(lies)?,
            bytes: elements.checked_mul(dtype.size()).ok_or_else(lies)?,
            offset: usize::try_from(offset).map_err(|_| lies())?,
            strides,
        })
    }

    /// Whether the elements lie side by side in C order; strides of dimensions of length 1 mean nothing.
    fn is_contiguous(&self) -> bool {
        let expected = contiguous_strides(&self.tensor.shape);
        let mut dims = self.tensor.shape.iter().zip(self.strides.iter().zip(&expected));
        dims.all(|(&length, (stride, expected))| length == 1 || stride == expected)
    }

    /// The tensor's elements in C order, out of the whole storage.
    fn gather(&self, storage: &[u8]) -> Option<Vec<u8>> {
        let size = self.tensor.dtype.size();
        let start = self.offset.checked_mul(size)?;
        if self.is_contiguous() {
            return Some(storage.get(start..start.checked_add(self.bytes)?)?.to_vec());
        }
        let mut out = Vec::with_capacity(self.bytes);
        if self.bytes == 0 {
            return Some(out);
        }
        let mut index = vec![0; self.strides.len()];
        let mut at = start;
        loop {
            out.extend_from_slice(storage.get(at..at + size)?);
            // The next index in C order: the last dimension that is not at its end goes one on.
            let mut dim = index.len();
            loop {
                dim = match dim.checked_sub(1) {
                    Some(dim) => dim,
                    None => return Some(out),
                };
                let length = self.tensor.shape[dim];
                // The stride of a dimension of length 1 may be any number.
                let step = if length > 1 { self.strides[dim] * size } else { 0 };
                index[dim] += 1;
                if index[dim] < length {
                    at += step;
                    break;
                }
                at -= step * (index[dim] - 1);
                index[dim] = 0;
            }
        }
    }
}

/// A tuple of ints, none of them negative.
fn counts(graph: &Graph, id: Id) -> Result<Vec<usize>> {
    let refused = || Error::data("a tensor's shape or strides are not a few counts");
    let Node::Tuple(items) = graph.node(id) else { return Err(refused()) };
    if items.len() > MAX_DIMS {
        return Err(refused());
    }
    let count = |&item: &Id| match graph.node(item) {
        &Node::Int(n) => usize::try_from(n).map_err(|_| refused()),
        _ => Err(refused()),
    };
    items.iter().map(count).collect()
}

/// The second walk, over a graph that passed the survey: makes the value.
struct TensorReader<'g, 'a> {
    graph: &'g Graph,
    archive: &'a mut Archive,
    uses: HashMap<&'g str, usize>,
    /// Storages that will be needed again.
    storages: HashMap<&'g str, Vec<u8>>,
}

impl TensorReader<'_, '_> {
    fn value(&mut self, id: Id) -> Result<Value<'static>> {
        let graph = self.graph;
        Ok(match graph.node(id) {
            Node::None => Value::None,
            Node::Bool(b) => Value::Bool(*b),
            Node::Int(n) => Value::Int(*n),
            Node::Float(x) => Value::Float(*x),
            Node::Str(text) => Value::Str(text.clone()),
            Node::List(items) => Value::List(self.values(items)?),
            Node::Tuple(items) => Value::Tuple(self.values(items)?),
            Node::Dict(items) => {
                let mut pairs = Vec::with_capacity(items.len());
                for &(key, value) in items {
                    pairs.push((self.value(key)?, self.value(value)?));
                }
                Value::Dict(pairs)
            }
            Node::Tensor { .. } => Value::Tensor(self.tensor(id)?),
            Node::Opaque(kind) => Value::Opaque((*kind).into()),
            Node::Bytes(_) => Value::Opaque("byte string".into()),
            Node::Global(_) | Node::Storage { .. } | Node::NumpyDtype { .. } => {
                Value::Opaque("Python class".into())
            }
        })
    }

    fn values(&mut self, items: &[Id]) -> Result<Vec<Value<'static>>> {
        items.iter().map(|&item| self.value(item)).collect()
    }

    fn tensor(&mut self, id: Id) -> Result<TensorData<'static>> {
        let view = View::new(self.graph, id)?;
        let storage = match self.storages.remove(view.key) {
            Some(storage) => storage,
            None => self.archive.read(&format!("data/{}", view.key), view.storage_bytes)?,
        };
        let uses = self.uses.entry(view.key).or_default();
        *uses = uses.saturating_sub(1);
        let whole = view.bytes == storage.len() && view.is_contiguous();
        let data = if whole && *uses == 0 {
            storage
        } else {
            let data = view.gather(&storage);
            if *uses > 0 {
                self.storages.insert(view.key, storage);
            }
            data.ok_or_else(|| Error::data("a tensor reaches past its storage"))?
        };
        Ok(TensorData { data: Cow::Owned(data), ..view.tensor })
    }
}
