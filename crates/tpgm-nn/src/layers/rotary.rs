//! Rotary position embedding.

use candle_core::{CpuStorage, Result, Shape, Tensor};
use tpgm_core::{Buffer, Element, Slice};

use super::check::{Path, same_kind, shape_error};
use super::composed;
use super::float::{Float, vectorized};
use super::fused::{Arg, Custom, Fused, apply1};
use super::gpu::{self, on_gpu};
use super::storage::{Operand, by_dtype, fill, into_storage, load, rows_per_piece, scratch, store, widen};

/// Rotates the pairs (i, i + d/2) of each head by its position's angles, as Llama, Mistral and GPT-NeoX checkpoints want
/// it: `(a cos - b sin, a sin + b cos)`.
///
/// `x`: shape (batch, heads, steps, d), d even. `cos`, `sin`: shape (positions, d/2), or (batch, positions, d/2) where
/// sequences start at positions of their own, with positions >= steps; row t belongs to step t.
///
/// Use it in place of `candle_nn::rotary_emb::rope`, which has no gradient. Backward rotates the gradient back and needs
/// no tensor but the angles.
///
/// Source: Su et al., "RoFormer" (2021), equation 34, with the pairs laid out in halves.
///
/// # Errors
///
/// If shapes, element types or devices do not fit.
pub fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    apply("rope", Pairs::Halves, x, cos, sin)
}

/// As [`rope`], but rotates the pairs (2i, 2i + 1), as GPT-J and the original Llama checkpoints want it.
///
/// Use it in place of `candle_nn::rotary_emb::rope_i`, which has no gradient.
///
/// # Errors
///
/// If shapes, element types or devices do not fit.
pub fn rope_i(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    apply("rope_i", Pairs::Interleaved, x, cos, sin)
}

fn apply(op: &'static str, pairs: Pairs, x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Tensor> {
    same_kind(op, &[x, cos, sin])?;
    check_shapes(op, x, cos, sin)?;
    // Angles are constants nearly everywhere; where they are trained, candle's operations know their gradient.
    if Path::with_kernels(x) == Path::Composed || cos.track_op() || sin.track_op() {
        return match pairs {
            Pairs::Halves => composed::rope(x, cos, sin),
            Pairs::Interleaved => composed::rope_i(x, cos, sin),
        };
    }
    let (cos, sin) = (cos.contiguous()?, sin.contiguous()?);
    let op = Rotate { op, pairs, turn: Turn::Forward, cos, sin };
    // Kernels read heads where a linear layer has left them, beside each other.
    if gpu::takes(x) == Some(true) && x.stride().last() == Some(&1) {
        return x.apply_op1(Custom(op));
    }
    apply1(op, x)
}

/// The operation of [`rope`], for angles that are constants.
pub(super) fn rotation(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<Rotate> {
    let op = "rope";
    same_kind(op, &[x, cos, sin])?;
    check_shapes(op, x, cos, sin)?;
    let (cos, sin) = (cos.contiguous()?, sin.contiguous()?);
    Ok(Rotate { op, pairs: Pairs::Halves, turn: Turn::Forward, cos, sin })
}

fn check_shapes(op: &'static str, x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<()> {
    let fits = match (x.dims(), cos.dims()) {
        ([_, _, steps, d], [positions, pairs]) => pairs * 2 == *d && positions >= steps,
        ([batch, _, steps, d], [tables, positions, pairs]) => {
            pairs * 2 == *d && positions >= steps && tables == batch
        }
        _ => false,
    };
    if fits && cos.dims() == sin.dims() {
        return Ok(());
    }
    let expected = "x must be (batch, heads, steps, 2 pairs), cos and sin (positions, pairs) or \
                    (batch, positions, pairs) with positions >= steps";
    Err(shape_error(op, expected, &[x, cos, sin]))
}

/// Which elements of a head are rotated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pairs {
    Halves,
    Interleaved,
}

/// The direction: backward turns by the opposite angle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    Forward,
    Back,
}

impl Turn {
    pub(super) fn reversed(self) -> Self {
        match self {
            Turn::Forward => Turn::Back,
            Turn::Back => Turn::Forward,
        }
    }
}

#[derive(Debug)]
pub(super) struct Rotate {
    op: &'static str,
    pub(super) pairs: Pairs,
    pub(super) turn: Turn,
    pub(super) cos: Tensor,
    pub(super) sin: Tensor,
}

impl Rotate {
    /// Elements from the angles of one sequence to those of the next.
    pub(super) fn angles_stride(&self) -> usize {
        match *self.cos.dims() {
            [_, positions, pairs] => positions * pairs,
            _ => 0,
        }
    }

    fn rotate<T: Element, C: Float>(
        &self,
        x: Slice<'_>,
        cos: Slice<'_>,
        sin: Slice<'_>,
        dims: (usize, usize, usize, usize),
    ) -> Buffer {
        let (_, heads, steps, d) = dims;
        let (cos, sin) = (widen::<C>(cos), widen::<C>(sin));
        let sign = if self.turn == Turn::Forward { C::ONE } else { -C::ONE };
        let table = self.angles_stride();
        let (y, _) = fill::<T, ()>(x.len(), rows_per_piece(d) * d, |range, piece| {
            let (mut x_scratch, mut y_scratch) = (scratch::<T, C>(d), scratch::<T, C>(d));
            for (i, y) in piece.chunks_mut(d).enumerate() {
                let row = range.start / d + i;
                let angles = row / (heads * steps) * table + row % steps * (d / 2);
                let angles = angles..angles + d / 2;
                let (cos, sin) = (&cos[angles.clone()], &sin[angles]);
                let x = load(x.sub(row * d..(row + 1) * d), &mut x_scratch);
                store(y, &mut y_scratch, |y: &mut [C]| match self.pairs {
                    Pairs::Halves => rotate_halves(x, cos, sin, sign, y),
                    Pairs::Interleaved => rotate_interleaved(x, cos, sin, sign, y),
                });
            }
        });
        T::buffer(y)
    }
}

impl Fused<1> for Rotate {
    on_gpu!(1, rotary);

    fn name(&self) -> &'static str {
        self.op
    }

    fn forward(&self, [x]: [Arg<'_>; 1]) -> Result<(CpuStorage, Shape)> {
        let data = x.slice()?;
        let (cos, sin) = (Operand::new(self.op, &self.cos), Operand::new(self.op, &self.sin));
        let (cos, sin) = (cos.slice()?, sin.slice()?);
        let dims = x.shape().dims4()?;
        let y = by_dtype!(data.dtype(), T, C => self.rotate::<T, C>(data, cos, sin, dims));
        Ok((into_storage(y), x.shape().clone()))
    }

    fn backward(&self, _x: [&Tensor; 1], _y: &Tensor, grad: &Tensor) -> Result<[Option<Tensor>; 1]> {
        let turn = self.turn.reversed();
        let (cos, sin) = (self.cos.clone(), self.sin.clone());
        Ok([Some(apply1(Rotate { op: self.op, pairs: self.pairs, turn, cos, sin }, grad)?)])
    }
}

vectorized! {
    fn rotate_halves<C>(x: &[C], cos: &[C], sin: &[C], sign: C, y: &mut [C]) {
        let (a, b) = x.split_at(cos.len());
        let (y_a, y_b) = y.split_at_mut(cos.len());
        for (((((y_a, y_b), &a), &b), &cos), &sin) in y_a.iter_mut().zip(y_b).zip(a).zip(b).zip(cos).zip(sin) {
            let sin = sign * sin;
            *y_a = a * cos - b * sin;
            *y_b = a * sin + b * cos;
        }
    }
}

vectorized! {
    fn rotate_interleaved<C>(x: &[C], cos: &[C], sin: &[C], sign: C, y: &mut [C]) {
        let pairs = x.as_chunks::<2>().0.iter().zip(y.as_chunks_mut::<2>().0);
        for (((&[a, b], y), &cos), &sin) in pairs.zip(cos).zip(sin) {
            let sin = sign * sin;
            *y = [a * cos - b * sin, a * sin + b * cos];
        }
    }
}
