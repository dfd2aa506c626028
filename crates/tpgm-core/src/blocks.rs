//! Passes over slices of any element type, in small blocks and fixed chunks.
//!
//! Weight-space operations run once per merge or projection and are bound by memory traffic, so nothing of parameter
//! size is allocated: operands are converted [`BLOCK`] elements at a time on the stack, and not at all when they have
//! the compute type. Work is cut into chunks of [`CHUNK`] elements whose bounds depend only on the lengths, so results
//! do not depend on the number of threads. Everything runs on the current rayon pool.

use std::ops::Range;

use crate::element::{DType, Real, Slice, SliceMut};
use crate::error::{Error, Result};

pub(crate) use crate::plan::BLOCK;

/// Elements of one unit of parallel work.
pub(crate) const CHUNK: usize = 64 * BLOCK;

/// The type in which operands of these types meet: f64 if one of them is f64, else f32.
pub(crate) fn widest(operands: impl IntoIterator<Item = DType>) -> DType {
    if operands.into_iter().any(|dtype| dtype == DType::F64) { DType::F64 } else { DType::F32 }
}

/// Runs `$body` with the type `$real` standing for the compute type of `$dtype`: f64 for f64, else f32.
macro_rules! with_real {
    ($dtype:expr, $real:ident => $body:expr) => {
        match $dtype {
            $crate::element::DType::F64 => {
                type $real = f64;
                $body
            }
            _ => {
                type $real = f32;
                $body
            }
        }
    };
}
pub(crate) use with_real;

/// `start..end` cut into ranges of `size` elements, the last one shorter.
pub(crate) fn ranges(whole: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    let end = whole.end;
    whole.step_by(size).map(move |start| start..end.min(start + size))
}

/// Cuts a mutable slice in two.
fn split_at_mut(slice: SliceMut<'_>, mid: usize) -> (SliceMut<'_>, SliceMut<'_>) {
    macro_rules! split {
        ($($tag:ident),*) => {
            match slice {
                $(SliceMut::$tag(data) => {
                    let (head, tail) = data.split_at_mut(mid);
                    (SliceMut::$tag(head), SliceMut::$tag(tail))
                })*
            }
        };
    }
    split!(F64, F32, F16, BF16)
}

/// Cuts a mutable slice into consecutive parts of the given sizes, which add up to its length.
pub(crate) fn split_mut<'a>(
    slice: SliceMut<'a>,
    sizes: impl IntoIterator<Item = usize>,
) -> Vec<SliceMut<'a>> {
    let mut rest = slice;
    let mut parts = Vec::new();
    for size in sizes {
        let (head, tail) = split_at_mut(rest, size);
        parts.push(head);
        rest = tail;
    }
    parts
}

/// Cuts a mutable slice into chunks of [`CHUNK`] elements, with their ranges.
pub(crate) fn chunks_mut(slice: SliceMut<'_>) -> impl Iterator<Item = (Range<usize>, SliceMut<'_>)> {
    let len = slice.len();
    let parts = split_mut(slice, ranges(0..len, CHUNK).map(|range| range.len()));
    ranges(0..len, CHUNK).zip(parts)
}

/// A mutable view of `range`.
pub(crate) fn sub_mut<'a>(slice: &'a mut SliceMut<'_>, range: Range<usize>) -> SliceMut<'a> {
    match slice {
        SliceMut::F64(data) => SliceMut::F64(&mut data[range]),
        SliceMut::F32(data) => SliceMut::F32(&mut data[range]),
        SliceMut::F16(data) => SliceMut::F16(&mut data[range]),
        SliceMut::BF16(data) => SliceMut::BF16(&mut data[range]),
    }
}

/// The elements of a block in the compute type: themselves, or converted into `scratch`.
#[inline(always)]
pub(crate) fn load<'a, T: Real>(src: Slice<'a>, scratch: &'a mut [T; BLOCK]) -> &'a [T] {
    match T::direct(src) {
        Some(data) => data,
        None => {
            let dst = &mut scratch[..src.len()];
            T::load(src, dst);
            dst
        }
    }
}

/// Lets `fill` write `range` of `dst` in the compute type, through `scratch` if the types differ.
#[inline(always)]
pub(crate) fn write<T: Real>(
    dst: &mut SliceMut<'_>,
    range: Range<usize>,
    scratch: &mut [T; BLOCK],
    fill: impl FnOnce(&mut [T]),
) {
    let len = range.len();
    let target = sub_mut(dst, range);
    if target.dtype() == T::DTYPE {
        if let Some(data) = T::direct_mut(target) {
            fill(data);
        }
    } else {
        let block = &mut scratch[..len];
        fill(block);
        T::store(block, target);
    }
}

/// `dst[i] = f([sources[0][i], sources[1][i], ...])` in the compute type `T`, on one thread. All have `dst`'s length.
pub(crate) fn map<T: Real, const N: usize>(
    mut dst: SliceMut<'_>,
    sources: [Slice<'_>; N],
    f: impl Fn([T; N]) -> T,
) {
    let mut scratch = [[T::ZERO; BLOCK]; N];
    let mut out = [T::ZERO; BLOCK];
    for range in ranges(0..dst.len(), BLOCK) {
        let len = range.len();
        let mut source = sources.iter();
        let blocks = scratch.each_mut().map(|scratch| {
            let block = source.next().map_or(&[][..], |s| load(s.sub(range.clone()), scratch));
            &block[..len]
        });
        write(&mut dst, range, &mut out, |out| {
            for (i, out) in out[..len].iter_mut().enumerate() {
                *out = f(blocks.map(|block| block[i]));
            }
        });
    }
}

/// Copies on one thread: bit for bit within one element type, else rounded to nearest even.
pub(crate) fn copy(mut dst: SliceMut<'_>, src: Slice<'_>) {
    match (dst.reborrow(), src) {
        (SliceMut::F64(dst), Slice::F64(src)) => dst.copy_from_slice(src),
        (SliceMut::F32(dst), Slice::F32(src)) => dst.copy_from_slice(src),
        (SliceMut::F16(dst), Slice::F16(src)) => dst.copy_from_slice(src),
        (SliceMut::BF16(dst), Slice::BF16(src)) => dst.copy_from_slice(src),
        (_, src) => with_real!(widest([dst.dtype(), src.dtype()]), T => map::<T, 1>(dst, [src], |[x]| x)),
    }
}

/// `sum[i] += x[i]` on one thread. `sum` has type `T`; both have the same length.
pub(crate) fn accumulate<T: Real>(sum: SliceMut<'_>, x: Slice<'_>) {
    let Some(sum) = T::direct_mut(sum) else { return };
    let mut scratch = [T::ZERO; BLOCK];
    for range in ranges(0..sum.len(), BLOCK) {
        let x = load(x.sub(range.clone()), &mut scratch);
        for (sum, x) in sum[range].iter_mut().zip(x) {
            *sum += *x;
        }
    }
}

/// `sum(a[i] * b[i])`, products and sums in f64, in a fixed order.
pub(crate) fn dot<T: Real>(a: &[T], b: &[T]) -> f64 {
    const LANES: usize = 8;
    let mut sums = [0.0; LANES];
    let (a, b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    let tail = a.remainder().iter().zip(b.remainder());
    let tail: f64 = tail.map(|(x, y)| x.to_f64() * y.to_f64()).sum();
    for (a, b) in a.zip(b) {
        for lane in 0..LANES {
            sums[lane] += a[lane].to_f64() * b[lane].to_f64();
        }
    }
    ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7])) + tail
}

/// Checks the length of an operand.
pub(crate) fn check_len(tensor: &str, what: &'static str, expected: usize, got: usize) -> Result<()> {
    if got == expected {
        Ok(())
    } else {
        Err(Error::LengthMismatch { tensor: tensor.to_owned(), what, expected, got })
    }
}

/// Checks the element type of an operand.
pub(crate) fn check_dtype(tensor: &str, what: &'static str, expected: DType, got: DType) -> Result<()> {
    if got == expected {
        Ok(())
    } else {
        Err(Error::DTypeMismatch { tensor: tensor.to_owned(), what, expected, got })
    }
}

/// Checks the number of operands.
pub(crate) fn check_count(what: &'static str, expected: usize, got: usize) -> Result<()> {
    if got == expected { Ok(()) } else { Err(Error::CountMismatch { what, expected, got }) }
}

/// Checks that there are enough of something.
pub(crate) fn at_least(what: &'static str, needed: usize, got: usize) -> Result<()> {
    if got >= needed { Ok(()) } else { Err(Error::TooFew { what, needed, got }) }
}

#[cfg(test)]
pub(crate) mod testing {
    use super::{BLOCK, CHUNK};

    /// Lengths at which blocked and chunked loops go wrong.
    pub(crate) const LENGTHS: [usize; 9] =
        [0, 1, 3, 123, BLOCK - 1, BLOCK + 1, CHUNK - 1, CHUNK + 1, 2 * CHUNK + 17];

    /// Runs `f` on pools of several sizes and checks that the answers are equal; returns the answer.
    pub(crate) fn on_any_pool<R: PartialEq + std::fmt::Debug + Send>(f: impl Fn() -> R + Sync) -> R {
        let run = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(&f)
        };
        let first = run(1);
        for threads in [2, 3, 8] {
            assert!(run(threads) == first, "{threads} threads give another answer than one");
        }
        first
    }

    /// Pseudo-random numbers in `(-1, 1)`, the same for the same seed.
    pub(crate) fn noise(seed: u64, len: usize) -> Vec<f64> {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        (0..len)
            .map(|_| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 11) as f64 / (1u64 << 52) as f64 - 1.0
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::testing::{LENGTHS, noise};
    use super::*;
    use crate::element::Buffer;

    #[test]
    fn map_reads_and_writes_every_type_at_every_length() {
        for len in LENGTHS {
            let (a, b) = (noise(1, len), noise(2, len));
            for src in DType::ALL {
                for dst in DType::ALL {
                    let (a, b) = (Buffer::from_f64(src, &a), Buffer::from_f64(dst, &b));
                    let mut out = Buffer::zeros(dst, len);
                    map::<f64, 2>(out.as_mut(), [a.as_slice(), b.as_slice()], |[x, y]| x - 2.0 * y);
                    let (a, b) = (a.to_f64(), b.to_f64());
                    let expected: Vec<f64> = a.iter().zip(&b).map(|(x, y)| x - 2.0 * y).collect();
                    assert_eq!(out, Buffer::from_f64(dst, &expected), "{src} to {dst}, {len}");
                }
            }
        }
    }

    #[test]
    fn copy_keeps_the_bits_of_one_type_and_rounds_between_types() {
        let odd = [f32::from_bits(0x7fa0_0001), -0.0, f32::INFINITY, 1e-42];
        let mut out = [0.0f32; 4];
        copy((&mut out).into(), (&odd).into());
        assert_eq!(out.map(f32::to_bits), odd.map(f32::to_bits));
        let mut half = Buffer::zeros(DType::BF16, 2);
        copy(half.as_mut(), (&[1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0]).into());
        assert_eq!(half.to_f64(), [1.0, 1.0 + 4.0 / 256.0]);
    }

    #[test]
    fn dot_is_the_sum_of_products() {
        for len in [0, 1, 7, 8, 9, 1000] {
            let a: Vec<f64> = (0..len).map(|i| f64::from(i) - 3.0).collect();
            let b: Vec<f64> = (0..len).map(|i| f64::from(i % 5)).collect();
            let expected: f64 = a.iter().zip(&b).map(|(x, y)| x * y).sum();
            assert_eq!(dot(&a, &b), expected, "integers add exactly");
        }
    }

    #[test]
    fn parts_cover_the_slice_in_order() {
        let mut data: Vec<f32> = (0..CHUNK + 5).map(|i| i as f32).collect();
        let whole = data.clone();
        let parts: Vec<_> = chunks_mut((&mut data).into()).collect();
        assert_eq!(
            parts.iter().map(|(range, _)| range.clone()).collect::<Vec<_>>(),
            [0..CHUNK, CHUNK..CHUNK + 5]
        );
        for (range, part) in parts {
            assert_eq!(part.as_slice(), Slice::F32(&whole[range]));
        }
    }
}
