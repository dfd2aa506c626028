//! Element types, and slices whose element type is known at run time.
//!
//! A model mixes element types (bf16 weights, f32 norms), so operands are passed as [`Slice`] and [`SliceMut`]:
//! a plain Rust slice plus a tag. Arithmetic happens in the *compute type* of the weights: f64 for f64, f32 for
//! everything else.

mod convert;

use std::fmt;
use std::ops::{Add, AddAssign, Div, Mul, Neg, Range, Sub};

use half::slice::HalfFloatSliceExt;
pub use half::{bf16, f16};

/// Element type of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum DType {
    /// IEEE double precision.
    F64,
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// bfloat16: the upper half of an f32.
    BF16,
}

impl DType {
    /// All element types.
    pub const ALL: [DType; 4] = [DType::F64, DType::F32, DType::F16, DType::BF16];

    /// Size of one element in bytes.
    pub const fn size(self) -> usize {
        match self {
            DType::F64 => 8,
            DType::F32 => 4,
            DType::F16 | DType::BF16 => 2,
        }
    }

    /// The type in which tensors of this type are computed and in which their state is kept: f64 for f64, else f32.
    pub const fn compute(self) -> DType {
        match self {
            DType::F64 => DType::F64,
            _ => DType::F32,
        }
    }

    /// True for f16 and bf16.
    pub const fn is_half(self) -> bool {
        matches!(self, DType::F16 | DType::BF16)
    }

    /// Lower-case name: `f64`, `f32`, `f16`, `bf16`.
    pub const fn name(self) -> &'static str {
        match self {
            DType::F64 => "f64",
            DType::F32 => "f32",
            DType::F16 => "f16",
            DType::BF16 => "bf16",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

mod sealed {
    pub trait Sealed {}
    impl Sealed for f64 {}
    impl Sealed for f32 {}
    impl Sealed for half::f16 {}
    impl Sealed for half::bf16 {}
}

/// A type that tensors can be made of: f64, f32, f16 or bf16.
pub trait Element: Copy + Default + PartialEq + fmt::Debug + Send + Sync + sealed::Sealed + 'static {
    /// The run-time tag of this type.
    const DTYPE: DType;
    /// Rounds an f64 to this type, to nearest even.
    fn from_f64(x: f64) -> Self;
    /// Widens to f64, exactly.
    fn to_f64(self) -> f64;
    /// Tags a slice.
    fn slice(data: &[Self]) -> Slice<'_>;
    /// Tags a mutable slice.
    fn slice_mut(data: &mut [Self]) -> SliceMut<'_>;
    /// Tags an owned vector.
    fn buffer(data: Vec<Self>) -> Buffer;
}

/// An element type in which arithmetic is done: f32 or f64.
pub trait Real:
    Element
    + PartialOrd
    + Add<Output = Self>
    + AddAssign
    + Sub<Output = Self>
    + Mul<Output = Self>
    + Div<Output = Self>
    + Neg<Output = Self>
{
    /// Zero.
    const ZERO: Self;
    /// One.
    const ONE: Self;
    /// Absolute value.
    fn abs(self) -> Self;
    /// Square root.
    fn sqrt(self) -> Self;
    /// The larger of two numbers; the other one if one is NaN.
    fn max(self, other: Self) -> Self;
    /// The smaller of two numbers; the other one if one is NaN.
    fn min(self, other: Self) -> Self;
    /// The slice itself if it has this element type.
    fn direct(src: Slice<'_>) -> Option<&[Self]>;
    /// The mutable slice itself if it has this element type.
    fn direct_mut(src: SliceMut<'_>) -> Option<&mut [Self]>;
    /// Converts every element of `src` into `dst`. Both have the same length.
    fn load(src: Slice<'_>, dst: &mut [Self]);
    /// Rounds every element of `src` into `dst`. Both have the same length.
    fn store(src: &[Self], dst: SliceMut<'_>);
}

macro_rules! element {
    ($type:ty, $tag:ident, $from:expr, $to:expr) => {
        impl Element for $type {
            const DTYPE: DType = DType::$tag;
            #[inline(always)]
            fn from_f64(x: f64) -> Self {
                $from(x)
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                $to(self)
            }
            #[inline(always)]
            fn slice(data: &[Self]) -> Slice<'_> {
                Slice::$tag(data)
            }
            #[inline(always)]
            fn slice_mut(data: &mut [Self]) -> SliceMut<'_> {
                SliceMut::$tag(data)
            }
            fn buffer(data: Vec<Self>) -> Buffer {
                Buffer::$tag(data)
            }
        }

        impl<'a> From<&'a [$type]> for Slice<'a> {
            fn from(data: &'a [$type]) -> Self {
                Slice::$tag(data)
            }
        }

        impl<'a> From<&'a Vec<$type>> for Slice<'a> {
            fn from(data: &'a Vec<$type>) -> Self {
                Slice::$tag(data)
            }
        }

        impl<'a, const N: usize> From<&'a [$type; N]> for Slice<'a> {
            fn from(data: &'a [$type; N]) -> Self {
                Slice::$tag(data)
            }
        }

        impl<'a> From<&'a mut [$type]> for SliceMut<'a> {
            fn from(data: &'a mut [$type]) -> Self {
                SliceMut::$tag(data)
            }
        }

        impl<'a> From<&'a mut Vec<$type>> for SliceMut<'a> {
            fn from(data: &'a mut Vec<$type>) -> Self {
                SliceMut::$tag(data)
            }
        }

        impl<'a, const N: usize> From<&'a mut [$type; N]> for SliceMut<'a> {
            fn from(data: &'a mut [$type; N]) -> Self {
                SliceMut::$tag(data)
            }
        }

        impl From<Vec<$type>> for Buffer {
            fn from(data: Vec<$type>) -> Self {
                Buffer::$tag(data)
            }
        }
    };
}

element!(f64, F64, |x| x, |x| x);
element!(f32, F32, |x: f64| x as f32, |x: f32| f64::from(x));
element!(f16, F16, convert::f64_to_f16, f16::to_f64);
element!(bf16, BF16, convert::f64_to_bf16, bf16::to_f64);

macro_rules! real {
    ($type:ident, $tag:ident, load: { $($src:ident => $load:expr),* }, store: { $($dst:ident => $store:expr),* }) => {
        impl Real for $type {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            #[inline(always)]
            fn abs(self) -> Self {
                $type::abs(self)
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                $type::sqrt(self)
            }
            #[inline(always)]
            fn max(self, other: Self) -> Self {
                $type::max(self, other)
            }
            #[inline(always)]
            fn min(self, other: Self) -> Self {
                $type::min(self, other)
            }
            #[inline(always)]
            fn direct(src: Slice<'_>) -> Option<&[Self]> {
                match src {
                    Slice::$tag(data) => Some(data),
                    _ => None,
                }
            }
            #[inline(always)]
            fn direct_mut(src: SliceMut<'_>) -> Option<&mut [Self]> {
                match src {
                    SliceMut::$tag(data) => Some(data),
                    _ => None,
                }
            }
            #[inline(always)]
            fn load(src: Slice<'_>, dst: &mut [Self]) {
                match src {
                    Slice::$tag(data) => dst.copy_from_slice(data),
                    $(Slice::$src(data) => $load(data, dst),)*
                }
            }
            #[inline(always)]
            fn store(src: &[Self], dst: SliceMut<'_>) {
                match dst {
                    SliceMut::$tag(data) => data.copy_from_slice(src),
                    $(SliceMut::$dst(data) => $store(src, data),)*
                }
            }
        }
    };
}

#[inline(always)]
fn load_each<S: Element, D: Real>(src: &[S], dst: &mut [D]) {
    for (d, s) in dst.iter_mut().zip(src) {
        *d = D::from_f64(s.to_f64());
    }
}

#[inline(always)]
fn store_each<S: Real, D: Element>(src: &[S], dst: &mut [D]) {
    for (d, s) in dst.iter_mut().zip(src) {
        *d = D::from_f64(s.to_f64());
    }
}

real!(f32, F32,
load: {
    F64 => load_each,
    F16 => |s: &[f16], d: &mut [f32]| s.convert_to_f32_slice(d),
    BF16 => convert::widen_bf16
},
store: {
    F64 => store_each,
    F16 => |s: &[f32], d: &mut [f16]| d.convert_from_f32_slice(s),
    BF16 => convert::narrow_bf16
});
real!(f64, F64,
    load: { F32 => load_each, F16 => load_each, BF16 => load_each },
    store: { F32 => store_each, F16 => store_each, BF16 => store_each });

/// Runs `$body` with `$data` bound to the typed slice inside a [`Slice`], [`SliceMut`] or [`Buffer`].
macro_rules! each_dtype {
    ($kind:ident, $value:expr, $data:ident => $body:expr) => {
        match $value {
            $kind::F64($data) => $body,
            $kind::F32($data) => $body,
            $kind::F16($data) => $body,
            $kind::BF16($data) => $body,
        }
    };
}

/// A read-only slice of any element type.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Slice<'a> {
    /// f64 elements.
    F64(&'a [f64]),
    /// f32 elements.
    F32(&'a [f32]),
    /// f16 elements.
    F16(&'a [f16]),
    /// bf16 elements.
    BF16(&'a [bf16]),
}

impl<'a> Slice<'a> {
    /// Element type.
    pub const fn dtype(&self) -> DType {
        match self {
            Slice::F64(_) => DType::F64,
            Slice::F32(_) => DType::F32,
            Slice::F16(_) => DType::F16,
            Slice::BF16(_) => DType::BF16,
        }
    }

    /// Number of elements.
    #[inline(always)]
    pub const fn len(&self) -> usize {
        match self {
            Slice::F64(data) => data.len(),
            Slice::F32(data) => data.len(),
            Slice::F16(data) => data.len(),
            Slice::BF16(data) => data.len(),
        }
    }

    /// True without elements.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements of `range`.
    ///
    /// # Panics
    ///
    /// If the range lies outside the slice, as for Rust's own slices.
    #[inline(always)]
    pub fn sub(&self, range: Range<usize>) -> Slice<'a> {
        match self {
            Slice::F64(data) => Slice::F64(&data[range]),
            Slice::F32(data) => Slice::F32(&data[range]),
            Slice::F16(data) => Slice::F16(&data[range]),
            Slice::BF16(data) => Slice::BF16(&data[range]),
        }
    }

    /// One element, widened to f64.
    ///
    /// # Panics
    ///
    /// If the index lies outside the slice.
    pub fn get(&self, index: usize) -> f64 {
        each_dtype!(Slice, self, data => data[index].to_f64())
    }

    /// All elements, widened to f64.
    pub fn to_f64(&self) -> Vec<f64> {
        each_dtype!(Slice, self, data => data.iter().map(|x| x.to_f64()).collect())
    }
}

/// A mutable slice of any element type.
#[derive(Debug, PartialEq)]
pub enum SliceMut<'a> {
    /// f64 elements.
    F64(&'a mut [f64]),
    /// f32 elements.
    F32(&'a mut [f32]),
    /// f16 elements.
    F16(&'a mut [f16]),
    /// bf16 elements.
    BF16(&'a mut [bf16]),
}

impl<'a> SliceMut<'a> {
    /// The elements of `range`.
    ///
    /// # Panics
    ///
    /// If the range lies outside the slice, as for Rust's own slices.
    pub fn sub_mut(self, range: Range<usize>) -> SliceMut<'a> {
        match self {
            SliceMut::F64(data) => SliceMut::F64(&mut data[range]),
            SliceMut::F32(data) => SliceMut::F32(&mut data[range]),
            SliceMut::F16(data) => SliceMut::F16(&mut data[range]),
            SliceMut::BF16(data) => SliceMut::BF16(&mut data[range]),
        }
    }

    /// The same elements, read-only.
    #[inline(always)]
    pub fn as_slice(&self) -> Slice<'_> {
        match self {
            SliceMut::F64(data) => Slice::F64(data),
            SliceMut::F32(data) => Slice::F32(data),
            SliceMut::F16(data) => Slice::F16(data),
            SliceMut::BF16(data) => Slice::BF16(data),
        }
    }

    /// A shorter-lived mutable slice of the same elements.
    #[inline(always)]
    pub fn reborrow(&mut self) -> SliceMut<'_> {
        match self {
            SliceMut::F64(data) => SliceMut::F64(data),
            SliceMut::F32(data) => SliceMut::F32(data),
            SliceMut::F16(data) => SliceMut::F16(data),
            SliceMut::BF16(data) => SliceMut::BF16(data),
        }
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.as_slice().dtype()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// True without elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// An owned vector of any element type.
#[derive(Debug, Clone, PartialEq)]
pub enum Buffer {
    /// f64 elements.
    F64(Vec<f64>),
    /// f32 elements.
    F32(Vec<f32>),
    /// f16 elements.
    F16(Vec<f16>),
    /// bf16 elements.
    BF16(Vec<bf16>),
}

impl Buffer {
    /// `len` zeros.
    pub fn zeros(dtype: DType, len: usize) -> Self {
        match dtype {
            DType::F64 => Buffer::F64(vec![0.0; len]),
            DType::F32 => Buffer::F32(vec![0.0; len]),
            DType::F16 => Buffer::F16(vec![f16::ZERO; len]),
            DType::BF16 => Buffer::BF16(vec![bf16::ZERO; len]),
        }
    }

    /// Rounds f64 values to `dtype`.
    pub fn from_f64(dtype: DType, values: &[f64]) -> Self {
        fn convert<T: Element>(values: &[f64]) -> Buffer {
            T::buffer(values.iter().map(|&x| T::from_f64(x)).collect())
        }
        match dtype {
            DType::F64 => convert::<f64>(values),
            DType::F32 => convert::<f32>(values),
            DType::F16 => convert::<f16>(values),
            DType::BF16 => convert::<bf16>(values),
        }
    }

    /// A copy of elements, part after part. `None` if there is no part, or their types differ.
    pub fn concat(parts: &[Slice<'_>]) -> Option<Self> {
        let (first, rest) = parts.split_first()?;
        let mut all = match first {
            Slice::F64(data) => Buffer::F64(data.to_vec()),
            Slice::F32(data) => Buffer::F32(data.to_vec()),
            Slice::F16(data) => Buffer::F16(data.to_vec()),
            Slice::BF16(data) => Buffer::BF16(data.to_vec()),
        };
        for part in rest {
            match (&mut all, part) {
                (Buffer::F64(all), Slice::F64(part)) => all.extend_from_slice(part),
                (Buffer::F32(all), Slice::F32(part)) => all.extend_from_slice(part),
                (Buffer::F16(all), Slice::F16(part)) => all.extend_from_slice(part),
                (Buffer::BF16(all), Slice::BF16(part)) => all.extend_from_slice(part),
                _ => return None,
            }
        }
        Some(all)
    }

    /// All elements, read-only.
    #[inline(always)]
    pub fn as_slice(&self) -> Slice<'_> {
        match self {
            Buffer::F64(data) => Slice::F64(data),
            Buffer::F32(data) => Slice::F32(data),
            Buffer::F16(data) => Slice::F16(data),
            Buffer::BF16(data) => Slice::BF16(data),
        }
    }

    /// All elements, mutable.
    #[inline(always)]
    pub fn as_mut(&mut self) -> SliceMut<'_> {
        match self {
            Buffer::F64(data) => SliceMut::F64(data),
            Buffer::F32(data) => SliceMut::F32(data),
            Buffer::F16(data) => SliceMut::F16(data),
            Buffer::BF16(data) => SliceMut::BF16(data),
        }
    }

    /// Element type.
    pub fn dtype(&self) -> DType {
        self.as_slice().dtype()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// True without elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All elements, widened to f64.
    pub fn to_f64(&self) -> Vec<f64> {
        self.as_slice().to_f64()
    }
}

#[cfg(test)]
mod tests;
