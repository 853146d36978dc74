//! Plain values and tensors, as PyTorch's files hold them.

use std::borrow::Cow;
use std::fmt;

use crate::error::{Error, Result};

/// The element type of a tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// `torch.float32`
    F32,
    /// `torch.float64`
    F64,
    /// `torch.float16`
    F16,
    /// `torch.bfloat16`
    BF16,
    /// `torch.int64`
    I64,
    /// `torch.int32`
    I32,
    /// `torch.int16`
    I16,
    /// `torch.int8`
    I8,
    /// `torch.uint8`
    U8,
    /// `torch.bool`, one byte an element
    Bool,
}

impl Dtype {
    /// Every type, with its size in bytes, its name and the class that names it in a PyTorch file.
    const ALL: [(Self, usize, &'static str, &'static str); 10] = [
        (Self::F32, 4, "f32", "FloatStorage"),
        (Self::F64, 8, "f64", "DoubleStorage"),
        (Self::F16, 2, "f16", "HalfStorage"),
        (Self::BF16, 2, "bf16", "BFloat16Storage"),
        (Self::I64, 8, "i64", "LongStorage"),
        (Self::I32, 4, "i32", "IntStorage"),
        (Self::I16, 2, "i16", "ShortStorage"),
        (Self::I8, 1, "i8", "CharStorage"),
        (Self::U8, 1, "u8", "ByteStorage"),
        (Self::Bool, 1, "bool", "BoolStorage"),
    ];

    fn row(self) -> (usize, &'static str, &'static str) {
        Self::ALL
            .into_iter()
            .find(|row| row.0 == self)
            .map_or((1, "u8", "ByteStorage"), |(_, size, name, storage)| (size, name, storage))
    }

    /// Bytes of one element.
    #[must_use]
    pub fn size(self) -> usize {
        self.row().0
    }

    /// A short name, such as `bf16`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.row().1
    }

    /// The class in module `torch` that stands for this type in a file, such as `FloatStorage`.
    pub(super) fn storage(self) -> &'static str {
        self.row().2
    }

    /// The type that the class `name` in module `torch` stands for.
    pub(super) fn from_storage(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|row| row.3 == name).map(|row| row.0)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A tensor's type, shape and elements.
#[derive(Clone, PartialEq)]
pub struct TensorData<'a> {
    /// The type of an element.
    pub dtype: Dtype,
    /// The length of each dimension; empty for a scalar.
    pub shape: Vec<usize>,
    /// The elements, little-endian, in C order (the last dimension runs fastest).
    pub data: Cow<'a, [u8]>,
}

impl<'a> TensorData<'a> {
    /// An f32 tensor that borrows its elements.
    #[must_use]
    pub fn f32(shape: impl Into<Vec<usize>>, elements: &'a [f32]) -> Self {
        Self { dtype: Dtype::F32, shape: shape.into(), data: little_endian(elements) }
    }

    /// A 0-dimensional f32 tensor, such as the `step` of an optimizer's state.
    #[must_use]
    pub fn scalar(value: f32) -> Self {
        Self { dtype: Dtype::F32, shape: Vec::new(), data: Cow::Owned(value.to_le_bytes().to_vec()) }
    }

    /// How many elements the shape has, or `None` where that overflows.
    #[must_use]
    pub fn numel(&self) -> Option<usize> {
        self.shape.iter().try_fold(1_usize, |n, &d| n.checked_mul(d))
    }

    /// The elements as f32, whatever floating-point type they are stored in.
    ///
    /// # Errors
    ///
    /// A data error where the tensor is not of a floating-point type.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        Ok(match self.dtype {
            Dtype::F32 => elements(&self.data, f32::from_le_bytes),
            Dtype::F64 => elements(&self.data, |b| f64::from_le_bytes(b) as f32),
            Dtype::F16 => elements(&self.data, |b| half::f16::from_le_bytes(b).to_f32()),
            Dtype::BF16 => elements(&self.data, |b| half::bf16::from_le_bytes(b).to_f32()),
            other => return Err(Error::data(format!("a tensor of {other} where floats are needed"))),
        })
    }

    /// The same tensor, borrowing the elements.
    #[must_use]
    pub fn borrowed(&self) -> TensorData<'_> {
        TensorData { dtype: self.dtype, shape: self.shape.clone(), data: Cow::Borrowed(&self.data) }
    }

    /// The single element of a tensor of one element, as f64.
    fn single(&self) -> Option<f64> {
        (self.numel() == Some(1)).then_some(())?;
        match self.dtype {
            Dtype::F64 => elements(&self.data, f64::from_le_bytes).first().copied(),
            Dtype::I64 => elements(&self.data, i64::from_le_bytes).first().map(|&n| n as f64),
            Dtype::I32 => elements(&self.data, i32::from_le_bytes).first().map(|&n| f64::from(n)),
            _ => self.to_f32().ok()?.first().map(|&x| f64::from(x)),
        }
    }
}

/// Elements would fill a screen, so only their number is shown.
impl fmt::Debug for TensorData<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:?} ({} bytes)", self.dtype, self.shape, self.data.len())
    }
}

/// `bytes` as elements of `N` bytes each; a rest shorter than that is left out.
fn elements<const N: usize, T>(bytes: &[u8], convert: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.as_chunks::<N>().0.iter().map(|&chunk| convert(chunk)).collect()
}

#[cfg(target_endian = "little")]
fn little_endian(elements: &[f32]) -> Cow<'_, [u8]> {
    Cow::Borrowed(bytemuck::cast_slice(elements))
}

#[cfg(target_endian = "big")]
fn little_endian(elements: &[f32]) -> Cow<'_, [u8]> {
    elements.iter().flat_map(|x| x.to_le_bytes()).collect()
}

/// What a checkpoint is made of.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'a> {
    /// Python's `None`
    None,
    /// `bool`
    Bool(bool),
    /// `int` within 64 bits
    Int(i64),
    /// `float`
    Float(f64),
    /// `str`
    Str(String),
    /// `list`
    List(Vec<Value<'a>>),
    /// `tuple`
    Tuple(Vec<Value<'a>>),
    /// `dict` or `OrderedDict`, in insertion order, without a key twice
    Dict(Vec<(Value<'a>, Value<'a>)>),
    /// A tensor or parameter
    Tensor(TensorData<'a>),
    /// Something harmless that was read but is not interpreted, such as a NumPy array; the text names its type.
    /// It cannot be written.
    Opaque(Cow<'static, str>),
}

impl<'a> Value<'a> {
    /// A dict with string keys.
    pub fn dict<K: Into<String>>(items: impl IntoIterator<Item = (K, Value<'a>)>) -> Self {
        Self::Dict(items.into_iter().map(|(k, v)| (Self::Str(k.into()), v)).collect())
    }

    /// The value of a string key, where this is a dict that has it.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<&Value<'a>> {
        let Self::Dict(items) = self else { return None };
        items.iter().find(|(k, _)| k.as_str() == Some(key)).map(|(_, v)| v)
    }

    /// The text of a string.
    #[must_use]
    pub fn as_str(&self) -> Option<&str> {
        if let Self::Str(text) = self { Some(text) } else { None }
    }

    /// A number that counts something.
    #[must_use]
    pub fn whole(n: u64) -> Self {
        Self::Int(i64::try_from(n).unwrap_or(i64::MAX))
    }

    /// The value of an int.
    #[must_use]
    pub fn as_int(&self) -> Option<i64> {
        if let Self::Int(n) = self { Some(*n) } else { None }
    }

    /// The truth value of a bool.
    #[must_use]
    pub fn as_bool(&self) -> Option<bool> {
        if let Self::Bool(b) = self { Some(*b) } else { None }
    }

    /// The value of an int, a float or a tensor of one element: PyTorch keeps numbers in all three.
    #[must_use]
    pub fn as_number(&self) -> Option<f64> {
        match self {
            Self::Int(n) => Some(*n as f64),
            Self::Float(x) => Some(*x),
            Self::Tensor(tensor) => tensor.single(),
            _ => None,
        }
    }

    /// What this is, for a message: "a list", "a tensor of f32 [2, 3]".
    #[must_use]
    pub fn describe(&self) -> String {
        match self {
            Self::None => "None".into(),
            Self::Bool(_) => "a bool".into(),
            Self::Int(_) => "an int".into(),
            Self::Float(_) => "a float".into(),
            Self::Str(_) => "a string".into(),
            Self::List(_) => "a list".into(),
            Self::Tuple(_) => "a tuple".into(),
            Self::Dict(_) => "a dict".into(),
            Self::Tensor(tensor) => format!("a tensor of {} {:?}", tensor.dtype, tensor.shape),
            Self::Opaque(kind) => format!("a {kind}"),
        }
    }
}

impl From<bool> for Value<'_> {
    fn from(value: bool) -> Self {
        Self::Bool(value)
    }
}

impl From<i64> for Value<'_> {
    fn from(value: i64) -> Self {
        Self::Int(value)
    }
}

impl From<f64> for Value<'_> {
    fn from(value: f64) -> Self {
        Self::Float(value)
    }
}

impl From<&str> for Value<'_> {
    fn from(value: &str) -> Self {
        Self::Str(value.to_owned())
    }
}

impl From<String> for Value<'_> {
    fn from(value: String) -> Self {
        Self::Str(value)
    }
}

impl<'a> From<TensorData<'a>> for Value<'a> {
    fn from(value: TensorData<'a>) -> Self {
        Self::Tensor(value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_has_its_own_row() {
        let all = Dtype::ALL.map(|row| row.0);
        for dtype in all {
            assert_eq!(Dtype::from_storage(dtype.storage()), Some(dtype));
        }
        assert_eq!(all.map(Dtype::size), [4, 8, 2, 2, 8, 4, 2, 1, 1, 1]);
        assert_eq!(Dtype::from_storage("ComplexFloatStorage"), None);
    }

    #[test]
    fn floats_of_every_width_become_f32() {
        let tensor = |dtype, data: &[u8]| TensorData { dtype, shape: vec![1], data: data.to_vec().into() };
        assert_eq!(tensor(Dtype::F32, &1.5_f32.to_le_bytes()).to_f32().unwrap(), [1.5]);
        assert_eq!(tensor(Dtype::F64, &1.5_f64.to_le_bytes()).to_f32().unwrap(), [1.5]);
        assert_eq!(tensor(Dtype::F16, &[0x00, 0x3e]).to_f32().unwrap(), [1.5]);
        assert_eq!(tensor(Dtype::BF16, &[0xc0, 0x3f]).to_f32().unwrap(), [1.5]);
        assert!(tensor(Dtype::I64, &[0; 8]).to_f32().is_err());
    }

    #[test]
    fn numbers_hide_in_ints_floats_and_scalars() {
        assert_eq!(Value::Int(3).as_number(), Some(3.0));
        assert_eq!(Value::Float(0.1).as_number(), Some(0.1));
        assert_eq!(Value::from(TensorData::scalar(5.0)).as_number(), Some(5.0));
        assert_eq!(Value::from(TensorData::f32([2], &[1.0, 2.0])).as_number(), None);
        assert_eq!(Value::Bool(true).as_number(), None);
    }
}
