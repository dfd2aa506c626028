//! Between candle's tensors and the kernels: slices in, new storage out, in parallel over pieces of fixed size.

use std::any::Any;
use std::borrow::Cow;
use std::mem::MaybeUninit;
use std::ops::Range;

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, Device, Layout, Result, Shape, Storage, StorageRef, Tensor};
use rayon::prelude::*;
use tpgm_core::{Buffer, Element, Slice};

use super::float::Float;
use crate::dtype::cpu_slice;
use crate::error::Error;

/// Elements that one task writes, at most (unless a row is longer): 128 KiB of f32, which stays in the L2 cache between
/// clearing, computing and storing. Fixed, so that sums over pieces do not depend on the number of threads.
pub(super) const PIECE: usize = 32 * 1024;

/// Elements that are widened from half precision at a time, where rows do not matter.
pub(super) const BLOCK: usize = 1024;

/// Runs `$body` with `$T` the element type and `$C` the type it is computed in.
macro_rules! by_dtype {
    ($dtype:expr, $T:ident, $C:ident => $body:expr) => {
        match $dtype {
            tpgm_core::DType::F64 => {
                type $T = f64;
                type $C = f64;
                $body
            }
            tpgm_core::DType::F32 => {
                type $T = f32;
                type $C = f32;
                $body
            }
            tpgm_core::DType::F16 => {
                type $T = tpgm_core::element::f16;
                type $C = f32;
                $body
            }
            tpgm_core::DType::BF16 => {
                type $T = tpgm_core::element::bf16;
                type $C = f32;
                $body
            }
        }
    };
}
pub(super) use by_dtype;

/// How many rows of `width` elements one task takes.
pub(super) fn rows_per_piece(width: usize) -> usize {
    (PIECE / width.max(1)).max(1)
}

/// The elements of storage that an operation was given.
pub(super) fn elements<'a>(op: &'static str, storage: &'a CpuStorage, layout: &Layout) -> Result<Slice<'a>> {
    let data = data(op, storage)?;
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(data.sub(start..end)),
        None => Err(candle_core::Error::RequiresContiguous { op }.bt()),
    }
}

/// All elements of storage that an operation was given.
pub(super) fn data<'a>(op: &'static str, storage: &'a CpuStorage) -> Result<Slice<'a>> {
    Ok(cpu_slice(storage).ok_or_else(|| Error::LayerDType { op, dtypes: vec![storage.dtype()] })?)
}

/// A tensor's elements, under candle's read lock.
pub(super) struct Operand<'a> {
    op: &'static str,
    guard: StorageRef<'a>,
    layout: &'a Layout,
}

impl<'a> Operand<'a> {
    /// The tensor must be contiguous and on the CPU.
    pub(super) fn new(op: &'static str, tensor: &'a Tensor) -> Self {
        let (guard, layout) = tensor.storage_and_layout();
        Self { op, guard, layout }
    }

    pub(super) fn slice(&self) -> Result<Slice<'_>> {
        let (storage, layout) = self.storage()?;
        elements(self.op, storage, layout)
    }

    pub(super) fn storage(&self) -> Result<(&CpuStorage, &Layout)> {
        match &*self.guard {
            Storage::Cpu(storage) => Ok((storage, self.layout)),
            _ => Err(Error::LayerDevice { op: self.op }.into()),
        }
    }
}

/// New storage of candle.
pub(super) fn into_storage(buffer: Buffer) -> CpuStorage {
    match buffer {
        Buffer::F64(data) => CpuStorage::F64(data),
        Buffer::F32(data) => CpuStorage::F32(data),
        Buffer::F16(data) => CpuStorage::F16(data),
        Buffer::BF16(data) => CpuStorage::BF16(data),
    }
}

/// The elements of storage to write them, if they are of type `T`.
pub(super) fn typed_mut<T: Element>(storage: &mut CpuStorage) -> Option<&mut [T]> {
    let data: &mut dyn Any = match storage {
        CpuStorage::F64(data) => data,
        CpuStorage::F32(data) => data,
        CpuStorage::F16(data) => data,
        CpuStorage::BF16(data) => data,
        _ => return None,
    };
    data.downcast_mut::<Vec<T>>().map(Vec::as_mut_slice)
}

/// The elements of storage to read them, if they are of type `T`.
pub(super) fn typed<T: Element>(storage: &CpuStorage) -> Option<&[T]> {
    let data: &dyn Any = match storage {
        CpuStorage::F64(data) => data,
        CpuStorage::F32(data) => data,
        CpuStorage::F16(data) => data,
        CpuStorage::BF16(data) => data,
        _ => return None,
    };
    data.downcast_ref::<Vec<T>>().map(Vec::as_slice)
}

/// A new tensor on the CPU.
pub(super) fn into_tensor(buffer: Buffer, shape: &Shape) -> Result<Tensor> {
    match buffer {
        Buffer::F64(data) => Tensor::from_vec(data, shape, &Device::Cpu),
        Buffer::F32(data) => Tensor::from_vec(data, shape, &Device::Cpu),
        Buffer::F16(data) => Tensor::from_vec(data, shape, &Device::Cpu),
        Buffer::BF16(data) => Tensor::from_vec(data, shape, &Device::Cpu),
    }
}

/// A new vector of `len` elements, written piece by piece in parallel, and what `f` returned for each piece, in order.
///
/// `f` gets the range of elements that its piece covers, and the piece, cleared.
pub(super) fn fill<T: Element, R: Send>(
    len: usize,
    piece: usize,
    f: impl Fn(Range<usize>, &mut [T]) -> R + Sync,
) -> (Vec<T>, Vec<R>) {
    let mut out = Vec::with_capacity(len);
    let piece = piece.max(1);
    let write = |(i, uninit): (usize, &mut [MaybeUninit<T>])| {
        let start = i * piece;
        f(start..start + uninit.len(), cleared(uninit))
    };
    let spare = &mut out.spare_capacity_mut()[..len];
    // Waking the pool costs more than a piece of work that nobody can share.
    let results = if len <= piece {
        spare.chunks_mut(piece).enumerate().map(write).collect()
    } else {
        spare.par_chunks_mut(piece).enumerate().map(write).collect()
    };
    // SAFETY: the pieces cover the first `len` elements of the spare capacity, and `write` ran on all of them.
    unsafe { out.set_len(len) };
    (out, results)
}

/// The number of a piece, and the piece of two vectors.
type Both<'a, T> = (usize, (&'a mut [MaybeUninit<T>], &'a mut [MaybeUninit<T>]));

/// [`fill`] of two vectors of one length at once.
pub(super) fn fill2<T: Element>(
    len: usize,
    piece: usize,
    f: impl Fn(Range<usize>, [&mut [T]; 2]) + Sync,
) -> [Vec<T>; 2] {
    let [mut first, mut second] = [(); 2].map(|()| Vec::with_capacity(len));
    let piece = piece.max(1);
    let write = |(i, (a, b)): Both<'_, T>| {
        let start = i * piece;
        f(start..start + a.len(), [cleared(a), cleared(b)]);
    };
    let (a, b) = (&mut first.spare_capacity_mut()[..len], &mut second.spare_capacity_mut()[..len]);
    if len <= piece {
        a.chunks_mut(piece).zip(b.chunks_mut(piece)).enumerate().for_each(write);
    } else {
        a.par_chunks_mut(piece).zip(b.par_chunks_mut(piece)).enumerate().for_each(write);
    }
    for vec in [&mut first, &mut second] {
        // SAFETY: the pieces cover the first `len` elements of the spare capacity of both, and `write` ran on all of them.
        unsafe { vec.set_len(len) };
    }
    [first, second]
}

/// The first `len` elements of the spare capacity, in pieces.
pub(super) fn pieces<X>(
    vec: &mut Vec<X>,
    len: usize,
    piece: usize,
) -> std::slice::ChunksMut<'_, MaybeUninit<X>> {
    vec.spare_capacity_mut()[..len].chunks_mut(piece.max(1))
}

/// Clears a piece. It costs little: the piece is in the cache when it is written. Doing it for each piece, not for the whole
/// vector beforehand, spares a pass over memory on one thread.
pub(super) fn cleared<X: Element>(piece: &mut [MaybeUninit<X>]) -> &mut [X] {
    for x in piece.iter_mut() {
        x.write(X::default());
    }
    // SAFETY: `MaybeUninit<X>` is laid out as `X`, and the loop above wrote every element.
    unsafe { &mut *(std::ptr::from_mut(piece) as *mut [X]) }
}

/// What `f` returns for each piece of `len` elements, in order; computed in parallel.
pub(super) fn for_pieces<R: Send>(len: usize, piece: usize, f: impl Fn(Range<usize>) -> R + Sync) -> Vec<R> {
    let piece = piece.max(1);
    let one = |i: usize| f(i * piece..len.min((i + 1) * piece));
    let count = len.div_ceil(piece);
    if count <= 1 { (0..count).map(one).collect() } else { (0..count).into_par_iter().map(one).collect() }
}

/// Memory for one widened row, empty if rows are used in place.
pub(super) fn scratch<T: Element, C: Float>(width: usize) -> Vec<C> {
    vec![C::ZERO; if T::DTYPE == C::DTYPE { 0 } else { width }]
}

/// A row in the compute type: the row itself, or its copy in `scratch`.
#[inline(always)]
pub(super) fn load<'a, C: Float>(src: Slice<'a>, scratch: &'a mut [C]) -> &'a [C] {
    match C::direct(src) {
        Some(data) => data,
        None => {
            let dst = &mut scratch[..src.len()];
            C::load(src, dst);
            dst
        }
    }
}

/// Lets `f` write a row in the compute type: in place, or in `scratch` to be rounded.
#[inline(always)]
pub(super) fn store<T: Element, C: Float>(dst: &mut [T], scratch: &mut [C], f: impl FnOnce(&mut [C])) {
    let len = dst.len();
    if T::DTYPE == C::DTYPE {
        f(C::direct_mut(T::slice_mut(dst)).expect("the types have one tag"));
    } else {
        f(&mut scratch[..len]);
        C::store(&scratch[..len], T::slice_mut(dst));
    }
}

/// A whole tensor in the compute type; copied only if it has another.
pub(super) fn widen<'a, C: Float>(src: Slice<'a>) -> Cow<'a, [C]> {
    match C::direct(src) {
        Some(data) => Cow::Borrowed(data),
        None => {
            let mut data = vec![C::ZERO; src.len()];
            C::load(src, &mut data);
            Cow::Owned(data)
        }
    }
}

/// Rounds values that were summed in f64.
pub(super) fn round<T: Element>(values: &[f64]) -> Vec<T> {
    values.iter().map(|&x| T::from_f64(x)).collect()
}

/// Adds up vectors of one length, in order.
pub(super) fn sum_in_order(len: usize, parts: &[Vec<f64>]) -> Vec<f64> {
    let mut sum = vec![0.0; len];
    for part in parts {
        for (sum, x) in sum.iter_mut().zip(part) {
            *sum += x;
        }
    }
    sum
}

/// Sums columns: rows are added in the compute type, and every [`Columns::FLUSH`] rows the sum is added to one in f64.
pub(super) struct Columns<C> {
    recent: Vec<C>,
    rows: usize,
    total: Vec<f64>,
}

impl<C: Float> Columns<C> {
    /// Few enough that f32 loses nothing that matters, many enough that the additions in f64 cost little.
    const FLUSH: usize = 32;

    pub(super) fn new(width: usize) -> Self {
        Self { recent: vec![C::ZERO; width], rows: 0, total: vec![0.0; width] }
    }

    /// Lets `add` add one row.
    #[inline(always)]
    pub(super) fn row(&mut self, add: impl FnOnce(&mut [C])) {
        if self.rows == Self::FLUSH {
            self.flush();
        }
        add(&mut self.recent);
        self.rows += 1;
    }

    fn flush(&mut self) {
        for (total, recent) in self.total.iter_mut().zip(&mut self.recent) {
            *total += recent.to_f64();
            *recent = C::ZERO;
        }
        self.rows = 0;
    }

    pub(super) fn finish(mut self) -> Vec<f64> {
        self.flush();
        self.total
    }
}
