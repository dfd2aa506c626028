//! Softmax and its logarithm over the last dimension, with scale and masks inside.

use super::error::{Error, Result};
use super::rows::{Operands, Rows, RowsMut, Table as RowsTable};
use super::{Layers, modules};
use crate::device::Device;
use crate::memory::View;

/// What is computed of `s = scale x + mask`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Softmax {
    /// `e^s / sum(e^s)`
    Probability,
    /// `s - ln(sum(e^s))`
    Logarithm,
}

/// Which keys a row sees. Rows are (batch, head, query) in that order, columns are keys.
#[derive(Debug, Clone, Copy)]
pub struct Mask<'a> {
    /// Heads of a batch; rows are a multiple of `heads * queries`.
    pub heads: usize,
    /// Queries of a head.
    pub queries: usize,
    /// Query `i` sees the keys up to `i + keys - queries` alone: the last query sees all.
    pub causal: bool,
    /// Numbers to add to the scaled scores, -inf for what is not seen, with the elements from one batch, head and query to the
    /// next: 0 where the numbers are the same. Keys lie one behind the other.
    pub added: Option<(View<'a>, [usize; 3])>,
}

/// Operands of [`Layers::softmax`]: rows of one shape and element type.
#[derive(Debug)]
pub struct SoftmaxOperands<'a> {
    /// The scores.
    pub x: Rows<'a>,
    /// The factor of the scores, in front of the mask: usually one over the root of the head's width.
    pub scale: f64,
    /// Which keys are seen; all without one.
    pub mask: Option<Mask<'a>>,
    /// The output.
    pub y: RowsMut<'a>,
}

/// Operands of [`Layers::softmax_gradient`]: rows of one shape and element type.
#[derive(Debug)]
pub struct SoftmaxGradients<'a> {
    /// The output of the forward pass; the scores are not needed.
    pub y: Rows<'a>,
    /// Its gradient.
    pub grad: Rows<'a>,
    /// The factor of the scores.
    pub scale: f64,
    /// Gets the gradient of the scores.
    pub dx: RowsMut<'a>,
}

/// `SoftmaxTable` of `kernels/layers/softmax.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Table {
    x: RowsTable,
    y: RowsTable,
    mask: u64,
    mask_strides: [u64; 3],
    rows: u64,
    heads: u32,
    queries: u32,
    width: u32,
    vector: u32,
    causal: u32,
    logarithm: u32,
    past: i32,
    scale: f32,
}
const _: () = assert!(size_of::<Table>() == 104);

/// `SoftmaxGradientTable` of `kernels/layers/softmax.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct GradientTable {
    y: RowsTable,
    grad: RowsTable,
    dx: RowsTable,
    rows: u64,
    width: u32,
    vector: u32,
    logarithm: u32,
    scale: f32,
}
const _: () = assert!(size_of::<GradientTable>() == 72);

impl Softmax {
    fn name(self) -> &'static str {
        match self {
            Softmax::Probability => "softmax",
            Softmax::Logarithm => "log-softmax",
        }
    }

    fn check(self, scale: f64) -> Result<f32> {
        match scale as f32 {
            finite if finite.is_finite() => Ok(finite),
            _ => Err(Error::Option {
                layer: self.name(),
                option: "scale",
                value: scale,
                requirement: "finite in f32",
            }),
        }
    }
}

impl Mask<'_> {
    /// Adds the mask to a call's table.
    fn enter(&self, layer: &'static str, seen: &mut Operands, table: &mut Table) -> Result<()> {
        let shape = |got, expected| Error::Shape { layer, operand: "mask", got, expected };
        let per_batch = self.heads.checked_mul(self.queries).filter(|&rows| rows > 0);
        let Some(batches) =
            per_batch.filter(|&rows| seen.rows.is_multiple_of(rows)).map(|rows| seen.rows / rows)
        else {
            let got = format!("{} heads of {} queries", self.heads, self.queries);
            return Err(shape(got, format!("a divisor of {} rows is", seen.rows)));
        };
        let (Ok(heads), Ok(queries)) = (u32::try_from(self.heads), u32::try_from(self.queries)) else {
            return Err(shape(
                format!("{} heads of {} queries", self.heads, self.queries),
                "fewer are".into(),
            ));
        };
        (table.heads, table.queries, table.causal) = (heads, queries, u32::from(self.causal));
        let past = seen.width as i64 - self.queries as i64;
        table.past = past.try_into().map_err(|_| shape(format!("{queries} queries"), "fewer are".into()))?;
        let Some((view, strides)) = self.added else { return Ok(()) };
        // The last element that is read.
        let counts = [batches, self.heads, self.queries];
        let last = counts.iter().zip(strides).try_fold(seen.width, |end, (&count, stride)| {
            count.saturating_sub(1).checked_mul(stride).and_then(|step| end.checked_add(step))
        });
        if batches > 0 && last.is_none_or(|last| last > view.len()) {
            let expected = format!("{counts:?} rows of {} with strides {strides:?} are", seen.width);
            return Err(shape(format!("{} elements", view.len()), expected));
        }
        table.mask = seen.broadcast("mask", view, &strides)?;
        table.mask_strides = strides.map(|stride| stride as u64);
        Ok(())
    }
}

impl<D: Device> Layers<D> {
    /// Softmax of rows, or its logarithm. Scores are read once and written once: 8 bytes per f32 element, one launch. Without a
    /// key that is seen a row is NaN.
    ///
    /// # Errors
    ///
    /// If operands do not fit each other, the scale is not finite, or the device fails.
    pub fn softmax(&self, softmax: Softmax, operands: SoftmaxOperands<'_>) -> Result<()> {
        let SoftmaxOperands { x, scale, mask, y } = operands;
        let scale = softmax.check(scale)?;
        let mut seen = Operands::new(softmax.name(), "x", &x)?;
        let mut table = Table {
            x: seen.rows("x", &x)?,
            y: seen.rows_mut("y", &y)?,
            mask: 0,
            mask_strides: [0; 3],
            rows: seen.rows as u64,
            heads: 1,
            queries: 1,
            width: seen.width as u32,
            vector: 0,
            causal: 0,
            logarithm: u32::from(softmax == Softmax::Logarithm),
            past: 0,
            scale,
        };
        if let Some(mask) = mask {
            mask.enter(softmax.name(), &mut seen, &mut table)?;
        }
        table.vector = seen.vector();
        if seen.is_empty() {
            return Ok(());
        }
        self.launch_kernel(&modules::SOFTMAX_FORWARD, seen.dtype, seen.rows, &table)
    }

    /// The gradient of the scores, from the output: `scale y (grad - sum(y grad))`, of the logarithm
    /// `scale (grad - e^y sum(grad))`; 0 for what a mask hides. An additive mask has the same without the scale. One launch, 12 bytes per
    /// f32 element.
    ///
    /// # Errors
    ///
    /// If operands do not fit each other, the scale is not finite, or the device fails.
    pub fn softmax_gradient(&self, softmax: Softmax, operands: SoftmaxGradients<'_>) -> Result<()> {
        let SoftmaxGradients { y, grad, scale, dx } = operands;
        let scale = softmax.check(scale)?;
        let mut seen = Operands::new(softmax.name(), "y", &y)?;
        let table = GradientTable {
            y: seen.rows("y", &y)?,
            grad: seen.rows("grad", &grad)?,
            dx: seen.rows_mut("dx", &dx)?,
            rows: seen.rows as u64,
            width: seen.width as u32,
            vector: seen.vector(),
            logarithm: u32::from(softmax == Softmax::Logarithm),
            scale,
        };
        if seen.is_empty() {
            return Ok(());
        }
        self.launch_kernel(&modules::SOFTMAX_BACKWARD, seen.dtype, seen.rows, &table)
    }
}
