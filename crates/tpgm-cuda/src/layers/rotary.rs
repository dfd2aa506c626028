//! Rotary position embedding.

use super::error::{Error, Result};
use super::rows::{Operands, Rows};
use super::{Layers, modules};
use crate::device::Device;
use crate::memory::{View, ViewMut};

const NAME: &str = "rotary embedding";

/// Which elements of a row are rotated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairs {
    /// i and i + half of the width, as Llama, Mistral and GPT-NeoX checkpoints want it.
    Halves,
    /// 2i and 2i + 1, as GPT-J and the original Llama checkpoints want it.
    Interleaved,
}

/// The direction of a rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// By the angles: the forward pass.
    Forward,
    /// By their negatives: the backward pass, of the gradient.
    Back,
}

/// Operands of [`Layers::rotary`], all of one element type.
#[derive(Debug)]
pub struct RotaryOperands<'a> {
    /// Batches, heads, steps, and the width of a row, which is even.
    pub shape: [usize; 4],
    /// The rows. Elements of a row lie one behind the other.
    pub x: View<'a>,
    /// Elements from one batch, head and step of `x` to the next.
    pub strides: [usize; 3],
    /// The cosines: a row of half the width for each step, one behind the other.
    pub cos: View<'a>,
    /// The sines, likewise.
    pub sin: View<'a>,
    /// Elements from the angles of one batch to those of the next; 0 where they are the same.
    pub angles_stride: usize,
    /// The output: rows of all steps, heads and batches, one behind the other.
    pub y: ViewMut<'a>,
}

/// `RotaryTable` of `kernels/layers/rotary.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Table {
    x: u64,
    strides: [u64; 3],
    y: u64,
    cos: u64,
    sin: u64,
    angles_stride: u64,
    units: u64,
    heads: u32,
    steps: u32,
    pairs: u32,
    quads: u32,
    vector: u32,
    interleaved: u32,
    direction: f32,
    pad: u32,
}
const _: () = assert!(size_of::<Table>() == 104);

/// Behind the last element of rows of `width`, by counts and strides; nothing if it has no number.
fn end(counts: &[usize], strides: &[usize], width: usize) -> Option<usize> {
    counts.iter().zip(strides).try_fold(width, |end, (count, stride)| {
        count.saturating_sub(1).checked_mul(*stride).and_then(|step| end.checked_add(step))
    })
}

impl<D: Device> Layers<D> {
    /// Rotates each pair (a, b) of a row by the angle of its step: `(a cos - b sin, a sin + b cos)`. One launch; 8 bytes per f32
    /// element, and the angles. The gradient of `x` is the gradient of the output, turned [`Turn::Back`].
    ///
    /// Source: Su et al., "RoFormer" (2021), equation 34.
    ///
    /// # Errors
    ///
    /// If operands do not fit each other, or the device fails.
    pub fn rotary(&self, pairs: Pairs, turn: Turn, operands: RotaryOperands<'_>) -> Result<()> {
        let RotaryOperands { shape, x, strides, cos, sin, angles_stride, y } = operands;
        let [batches, heads, steps, width] = shape;
        let refuse = |operand, got, expected| Err(Error::Shape { layer: NAME, operand, got, expected });
        if !width.is_multiple_of(2) {
            return refuse("x", format!("rows of {width}"), "an even width is".into());
        }
        let rows = Rows::new(y.as_view(), width)?;
        let mut seen = Operands::new(NAME, "y", &rows)?;
        let out = seen.rows("y", &rows)?;
        let all = batches.checked_mul(heads).and_then(|rows| rows.checked_mul(steps));
        if all != Some(seen.rows) {
            return refuse("y", format!("{} rows of {width}", seen.rows), format!("{shape:?} elements are"));
        }
        let half = width / 2;
        let angles_end = end(&[batches, steps], &[angles_stride, half], half);
        for (operand, view, needed) in [
            ("x", x, end(&[batches, heads, steps], &strides, width)),
            ("cos", cos, angles_end),
            ("sin", sin, angles_end),
        ] {
            if seen.rows > 0 && needed.is_none_or(|needed| needed > view.len()) {
                let expected =
                    format!("{shape:?} with strides {strides:?}, angles {angles_stride} apart, are");
                return refuse(operand, format!("{} elements", view.len()), expected);
            }
        }
        let quads = half.div_ceil(4);
        let units = seen.rows.checked_mul(quads).filter(|&units| u32::try_from(units).is_ok());
        let Some(units) = units else {
            return refuse("x", format!("{} rows of {width}", seen.rows), "fewer are".into());
        };
        let (x, cos, sin) = (
            seen.broadcast("x", x, &strides)?,
            seen.broadcast("cos", cos, &[angles_stride])?,
            seen.broadcast("sin", sin, &[angles_stride])?,
        );
        if seen.is_empty() {
            return Ok(());
        }
        let table = Table {
            x,
            strides: strides.map(|stride| stride as u64),
            y: out.address,
            cos,
            sin,
            angles_stride: angles_stride as u64,
            units: units as u64,
            heads: heads as u32,
            steps: steps as u32,
            pairs: half as u32,
            quads: quads as u32,
            vector: if half.is_multiple_of(4) { seen.vector() } else { 0 },
            interleaved: u32::from(pairs == Pairs::Interleaved),
            direction: if turn == Turn::Forward { 1.0 } else { -1.0 },
            pad: 0,
        };
        self.launch_kernel(&modules::ROTARY, seen.dtype, units.div_ceil(self.device.threads()), &table)
    }
}
