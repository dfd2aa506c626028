//! Layer norm and RMS norm.

use super::columns::Groups;
use super::error::{Error, Result};
use super::rows::{Operands, Rows, RowsMut, Table as RowsTable};
use super::{Layers, modules};
use crate::device::Device;
use crate::memory::{View, ViewMut};

/// Which norm. With `s = x + residual`, or x alone: `y = (s - mean) / sqrt(variance + eps) * weight + bias`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Norm {
    /// What is added to the variance, or to the mean of the squares: finite and > 0.
    pub eps: f64,
    /// Subtract the mean of the row: layer norm. Without it `mean` is 0 and the variance is the mean of the squares: RMS norm.
    pub remove_mean: bool,
}

impl Norm {
    /// Layer normalization (Ba, Kiros and Hinton, 2016, equation 4).
    pub fn layer(eps: f64) -> Self {
        Self { eps, remove_mean: true }
    }

    /// RMS normalization (Zhang and Sennrich, 2019, equation 4).
    pub fn rms(eps: f64) -> Self {
        Self { eps, remove_mean: false }
    }

    fn name(self) -> &'static str {
        if self.remove_mean { "layer norm" } else { "RMS norm" }
    }

    fn check(self) -> Result<f32> {
        // Also in f32, which is what the kernels compute in.
        let eps = self.eps as f32;
        if eps.is_finite() && eps > 0.0 {
            return Ok(eps);
        }
        let requirement = "finite and above 0 in f32";
        Err(Error::Option { layer: self.name(), option: "eps", value: self.eps, requirement })
    }
}

/// What is added to x in front of a norm.
#[derive(Debug)]
pub struct Residual<'a> {
    /// What is added.
    pub value: Rows<'a>,
    /// Gets `x + value`, rounded to the element type; the norm is taken of what is there.
    pub sum: RowsMut<'a>,
}

/// Operands of [`Layers::norm`]: rows of one shape and element type.
#[derive(Debug)]
pub struct NormOperands<'a> {
    /// The input.
    pub x: Rows<'a>,
    /// What is added to it first.
    pub residual: Option<Residual<'a>>,
    /// The factor of each column.
    pub weight: View<'a>,
    /// What is added to each column.
    pub bias: Option<View<'a>>,
    /// The output.
    pub y: RowsMut<'a>,
}

/// Operands of [`Layers::norm_gradient`]: rows of one shape and element type, and what is wanted.
#[derive(Debug)]
pub struct NormGradients<'a> {
    /// What was normalized: the input, or its sum with the residual.
    pub x: Rows<'a>,
    /// The factor of each column.
    pub weight: View<'a>,
    /// The gradient of the output.
    pub grad: Rows<'a>,
    /// What is added to the gradient of x: what comes over the residual connection to `x + residual`.
    pub carried: Option<Rows<'a>>,
    /// Gets the gradient of x, which is that of the residual too.
    pub dx: Option<RowsMut<'a>>,
    /// Gets the gradient of the weight.
    pub d_weight: Option<ViewMut<'a>>,
    /// Gets the gradient of the bias; asked for with that of the weight alone.
    pub d_bias: Option<ViewMut<'a>>,
}

/// `NormTable` of `kernels/layers/norm.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Table {
    x: RowsTable,
    residual: RowsTable,
    sum: RowsTable,
    y: RowsTable,
    weight: u64,
    bias: u64,
    rows: u64,
    width: u32,
    vector: u32,
    remove_mean: u32,
    eps: f32,
}
const _: () = assert!(size_of::<Table>() == 104);

/// `NormGradientTable` of `kernels/layers/norm.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct GradientTable {
    x: RowsTable,
    grad: RowsTable,
    carried: RowsTable,
    dx: RowsTable,
    weight: u64,
    partial: u64,
    rows: u64,
    rows_per_group: u64,
    width: u32,
    vector: u32,
    remove_mean: u32,
    outputs: u32,
    groups: u32,
    eps: f32,
}
const _: () = assert!(size_of::<GradientTable>() == 120);

impl<D: Device> Layers<D> {
    /// Normalizes rows. One launch; 8 bytes per f32 element, with a residual 16.
    ///
    /// # Errors
    ///
    /// If operands do not fit each other, `eps` is not above 0, or the device fails.
    pub fn norm(&self, norm: Norm, operands: NormOperands<'_>) -> Result<()> {
        let NormOperands { x, residual, weight, bias, y } = operands;
        let eps = norm.check()?;
        let mut seen = Operands::new(norm.name(), "x", &x)?;
        let (value, sum) = residual.as_ref().map(|residual| (&residual.value, &residual.sum)).unzip();
        let table = Table {
            x: seen.rows("x", &x)?,
            residual: seen.maybe("residual", value)?,
            sum: seen.maybe_mut("sum", sum)?,
            y: seen.rows_mut("y", &y)?,
            weight: seen.columns("weight", weight)?,
            bias: bias.map_or(Ok(0), |bias| seen.columns("bias", bias))?,
            rows: seen.rows as u64,
            width: seen.width as u32,
            vector: seen.vector(),
            remove_mean: u32::from(norm.remove_mean),
            eps,
        };
        if seen.is_empty() {
            return Ok(());
        }
        self.launch_kernel(&modules::NORM_FORWARD, seen.dtype, seen.rows, &table)
    }

    /// Gradients of a norm, of those operands that want one. Nothing of the forward pass but its input is needed.
    ///
    /// With `n = (x - mean) / sqrt(variance + eps)` and `h = grad weight`:
    /// `dx = (h - mean(h) - n mean(h n)) / sqrt(variance + eps) + carried`, for RMS norm without `mean(h)`; `d_weight` is the sum of
    /// `grad n` over the rows, `d_bias` that of `grad`.
    ///
    /// One launch, and a small one more for gradients of weights; 12 bytes per f32 element, with a carried gradient 16.
    ///
    /// # Errors
    ///
    /// If operands do not fit each other, a gradient of the bias is asked for without that of the weight, `eps` is not above 0, or
    /// the device fails.
    pub fn norm_gradient(&self, norm: Norm, operands: NormGradients<'_>) -> Result<()> {
        let NormGradients { x, weight, grad, carried, dx, d_weight, d_bias } = operands;
        let eps = norm.check()?;
        let mut seen = Operands::new(norm.name(), "x", &x)?;
        let mut table = GradientTable {
            x: seen.rows("x", &x)?,
            grad: seen.rows("grad", &grad)?,
            carried: seen.maybe("carried", carried.as_ref())?,
            dx: seen.maybe_mut("dx", dx.as_ref())?,
            weight: seen.columns("weight", weight)?,
            partial: 0,
            rows: seen.rows as u64,
            rows_per_group: 0,
            width: seen.width as u32,
            vector: seen.vector(),
            remove_mean: u32::from(norm.remove_mean),
            outputs: 0,
            groups: 0,
            eps,
        };
        let mut outputs = Vec::new();
        for (operand, view) in [("d_weight", &d_weight), ("d_bias", &d_bias)] {
            if let Some(view) = view {
                outputs.push(seen.elements(operand, view.as_view(), seen.width)?);
            }
        }
        if d_weight.is_none() && d_bias.is_some() {
            let expected = "that of the weight is".into();
            return Err(Error::Shape {
                layer: norm.name(),
                operand: "d_bias",
                got: "no `d_weight` beside it".into(),
                expected,
            });
        }
        if seen.width == 0 || (dx.is_none() && outputs.is_empty()) {
            return Ok(());
        }
        let groups = Groups::of(seen.rows);
        table.outputs = outputs.len() as u32;
        (table.groups, table.rows_per_group) = (groups.count, groups.rows as u64);
        let launch = |table: &GradientTable| match seen.rows {
            0 => Ok(()),
            _ => self.launch_kernel(&modules::NORM_BACKWARD, seen.dtype, groups.count as usize, table),
        };
        if outputs.is_empty() {
            return launch(&table);
        }
        self.with_scratch(groups.bytes(outputs.len(), seen.width), |partial| {
            table.partial = partial;
            launch(&table)?;
            self.add_columns(seen.dtype, groups, seen.width, partial, &outputs)
        })
    }
}
