//! Tokens cut into heads and put together again, in one pass over memory.

use candle_core::{CpuStorage, Result, Shape, Tensor};
use tpgm_core::{Buffer, Element};

use super::fused::{Arg, Custom, Fused};
#[cfg(any(feature = "cuda", test))]
use super::gpu::{Fresh, Home, Input, joins};
use super::storage::{by_dtype, fill, into_storage, rows_per_piece, typed};

/// From (batch, length, parts * heads * width) to (batch, heads, length, width), of one of the parts.
#[derive(Debug, Clone, Copy)]
pub(super) struct SplitHeads {
    pub(super) heads: usize,
    /// How many tensors lie in a row one behind the other: 3 where query, key and value come from one layer.
    pub(super) parts: usize,
    /// Which of them.
    pub(super) part: usize,
}

/// From `N` tensors of shape (batch, heads, length, width) to (batch, length, N * heads * width).
#[derive(Debug, Clone, Copy)]
pub(super) struct MergeHeads {
    pub(super) heads: usize,
}

impl SplitHeads {
    /// (batch, length, width of a head) of its argument.
    pub(super) fn sizes(&self, shape: &Shape) -> Result<(usize, usize, usize)> {
        let (batch, length, all) = shape.dims3()?;
        let of = self.parts * self.heads;
        if of == 0 || !all.is_multiple_of(of) {
            candle_core::bail!(
                "rows of {all} do not divide into {} parts of {} heads",
                self.parts,
                self.heads
            )
        }
        Ok((batch, length, all / of))
    }
}

/// Kernels, or candle's copies, in the place of both passes: what goes back is an operation of its own, on whatever device.
macro_rules! on_devices {
    ($n:expr, $forward:ident) => {
        fn kernels(&self) -> bool {
            true
        }

        #[cfg(any(feature = "cuda", test))]
        fn forward_on<H: Home>(&self, _: &H, args: [Input<'_, H>; $n]) -> Result<Fresh<H>> {
            joins::$forward(self, args)
        }

        #[cfg(any(feature = "cuda", test))]
        fn backward_on<H: Home>(
            &self,
            _: &H,
            args: [&Tensor; $n],
            y: &Tensor,
            grad: &Tensor,
        ) -> Result<[Option<Tensor>; $n]> {
            self.backward(args, y, &grad.contiguous()?)
        }
    };
}
pub(super) use on_devices;

impl Fused<1> for SplitHeads {
    on_devices!(1, split_heads);

    fn name(&self) -> &'static str {
        "split-heads"
    }

    fn forward(&self, [x]: [Arg<'_>; 1]) -> Result<(CpuStorage, Shape)> {
        let (batch, length, width) = self.sizes(x.shape())?;
        let &Self { heads, parts, part } = self;
        let source = |row: usize| {
            let (sequence, head, token) = (row / (heads * length), row / length % heads, row % length);
            (((sequence * length + token) * parts + part) * heads + head) * width
        };
        let y = by_dtype!(x.slice()?.dtype(), T, _C => {
            let x = typed_slice::<T>(&x)?;
            gather(batch * heads * length * width, width, |row| &x[source(row)..][..width])
        });
        Ok((into_storage(y), (batch, heads, length, width).into()))
    }

    /// Of the only part; where there are others, their gradients belong beside it.
    fn backward(&self, _: [&Tensor; 1], _: &Tensor, grad: &Tensor) -> Result<[Option<Tensor>; 1]> {
        if self.parts != 1 {
            candle_core::bail!("the gradient of one part is no gradient of all")
        }
        Ok([Some(Custom(MergeHeads { heads: self.heads }).run([grad])?)])
    }
}

impl<const N: usize> Fused<N> for MergeHeads {
    on_devices!(N, merge_heads);

    fn name(&self) -> &'static str {
        "merge-heads"
    }

    fn forward(&self, args: [Arg<'_>; N]) -> Result<(CpuStorage, Shape)> {
        let (batch, heads, length, width) = args[0].shape().dims4()?;
        let source = |row: usize| {
            let (head, part, token) = (row % heads, row / heads % N, row / (heads * N));
            let (sequence, token) = (token / length, token % length);
            (part, ((sequence * heads + head) * length + token) * width)
        };
        let y = by_dtype!(args[0].slice()?.dtype(), T, _C => {
            let data = args.iter().map(typed_slice::<T>).collect::<Result<Vec<_>>>()?;
            gather(N * batch * heads * length * width, width, |row| {
                let (part, start) = source(row);
                &data[part][start..][..width]
            })
        });
        Ok((into_storage(y), (batch, length, N * heads * width).into()))
    }

    fn backward(&self, _: [&Tensor; N], _: &Tensor, grad: &Tensor) -> Result<[Option<Tensor>; N]> {
        let mut grads = [const { None }; N];
        for (part, found) in grads.iter_mut().enumerate() {
            *found = Some(Custom(SplitHeads { heads: self.heads, parts: N, part }).run([grad])?);
        }
        Ok(grads)
    }
}

/// The elements of a contiguous argument.
fn typed_slice<'a, T: Element>(arg: &Arg<'a>) -> Result<&'a [T]> {
    match (typed::<T>(arg.storage), arg.layout.contiguous_offsets()) {
        (Some(data), Some((start, end))) => Ok(&data[start..end]),
        _ => candle_core::bail!("heads: tensors must be contiguous, of one floating point type"),
    }
}

/// Rows of `width` elements, each from where `source` says.
fn gather<'a, T: Element>(len: usize, width: usize, source: impl Fn(usize) -> &'a [T] + Sync) -> Buffer {
    let (y, _) = fill::<T, ()>(len, rows_per_piece(width) * width, |range, piece| {
        for (i, row) in piece.chunks_mut(width.max(1)).enumerate() {
            row.copy_from_slice(source(range.start / width + i));
        }
    });
    T::buffer(y)
}
