//! Activations, gates and biases.

use super::columns::Groups;
use super::error::Result;
use super::rows::{Operands, Rows, RowsMut, Table as RowsTable};
use super::{Layers, modules};
use crate::device::Device;
use crate::memory::{View, ViewMut};

const GATED: &str = "gated product";

/// A function of each element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Activation {
    /// x itself: a bias alone.
    Identity,
    /// `max(x, 0)`, with a slope of 0 at 0.
    Relu,
    /// `x Phi(x)` with the normal distribution function Phi.
    Gelu,
    /// `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`
    GeluTanh,
    /// `x / (1 + e^(-1.702 x))`
    QuickGelu,
    /// `x / (1 + e^-x)`
    Silu,
}

/// Operands of [`Layers::activation`]: rows of one shape and element type.
#[derive(Debug)]
pub struct ActivationOperands<'a> {
    /// The input.
    pub x: Rows<'a>,
    /// What is added to each column first.
    pub bias: Option<View<'a>>,
    /// The output.
    pub y: RowsMut<'a>,
}

/// Operands of [`Layers::activation_gradient`]: rows of one shape and element type, and what is wanted.
#[derive(Debug)]
pub struct ActivationGradients<'a> {
    /// The input.
    pub x: Rows<'a>,
    /// The bias.
    pub bias: Option<View<'a>>,
    /// The gradient of the output.
    pub grad: Rows<'a>,
    /// Gets the gradient of the input.
    pub dx: RowsMut<'a>,
    /// Gets the gradient of the bias: the sum over the rows.
    pub d_bias: Option<ViewMut<'a>>,
}

/// Operands of [`Layers::gated`]: rows of one shape and element type. Gate and factor may be halves of wider rows.
#[derive(Debug)]
pub struct GatedOperands<'a> {
    /// What is activated.
    pub gate: Rows<'a>,
    /// What is multiplied by it.
    pub up: Rows<'a>,
    /// The output.
    pub y: RowsMut<'a>,
}

/// Operands of [`Layers::gated_gradient`]: rows of one shape and element type.
#[derive(Debug)]
pub struct GatedGradients<'a> {
    /// As in the forward pass.
    pub gate: Rows<'a>,
    /// As in the forward pass.
    pub up: Rows<'a>,
    /// The gradient of the output.
    pub grad: Rows<'a>,
    /// Gets the gradient of the gate.
    pub d_gate: RowsMut<'a>,
    /// Gets the gradient of the factor.
    pub d_up: RowsMut<'a>,
}

/// `Units` of `kernels/layers/activation.cuh`: how work is cut.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
struct Units {
    rows: u64,
    rows_per_group: u64,
    width: u32,
    vector: u32,
    tiles: u32,
    pad: u32,
    units: u64,
}
const _: () = assert!(size_of::<Units>() == 40);

/// `ActivationTable` of `kernels/layers/activation.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Table {
    x: RowsTable,
    grad: RowsTable,
    out: RowsTable,
    bias: u64,
    partial: u64,
    cut: Units,
    kind: u32,
    pad: u32,
}
const _: () = assert!(size_of::<Table>() == 112);

/// `GatedTable` of `kernels/layers/activation.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct GatedTable {
    gate: RowsTable,
    up: RowsTable,
    grad: RowsTable,
    out: RowsTable,
    d_up: RowsTable,
    cut: Units,
    kind: u32,
    pad: u32,
}
const _: () = assert!(size_of::<GatedTable>() == 128);

impl Activation {
    fn name(self) -> &'static str {
        match self {
            Activation::Identity => "bias",
            Activation::Relu => "ReLU",
            Activation::Gelu => "GELU",
            Activation::GeluTanh => "tanh GELU",
            Activation::QuickGelu => "QuickGELU",
            Activation::Silu => "SiLU",
        }
    }
}

impl Units {
    /// Rows in groups, by columns in tiles of four a thread.
    fn of(seen: &Operands, groups: Groups, threads: usize) -> Self {
        let tiles = seen.width.div_ceil(4 * threads);
        Self {
            rows: seen.rows as u64,
            rows_per_group: groups.rows as u64,
            width: seen.width as u32,
            vector: seen.vector(),
            tiles: tiles as u32,
            pad: 0,
            units: u64::from(groups.count) * tiles as u64,
        }
    }

    /// As [`Units::of`] where nothing is the same for a whole column: then rows without gaps are one long row, of which every
    /// thread of a block has a part, however short they are.
    fn of_elements(seen: &mut Operands, tables: &mut [&mut RowsTable], threads: usize) -> Self {
        let all = seen.rows.checked_mul(seen.width).filter(|&all| all <= super::rows::MOST_COLUMNS);
        let dense = tables.iter().all(|table| table.address == 0 || table.stride == seen.width as u64);
        if let Some(all) = all.filter(|_| dense && seen.rows > 1) {
            seen.flatten(all, tables.iter().map(|table| table.address));
        }
        Self::of(seen, Groups::of(seen.rows), threads)
    }
}

impl<D: Device> Layers<D> {
    /// `f(x + bias)`. One launch; 8 bytes per f32 element.
    ///
    /// # Errors
    ///
    /// If operands do not fit each other, or the device fails.
    pub fn activation(&self, activation: Activation, operands: ActivationOperands<'_>) -> Result<()> {
        let ActivationOperands { x, bias, y } = operands;
        let mut seen = Operands::new(activation.name(), "x", &x)?;
        let (mut x, mut out) = (seen.rows("x", &x)?, seen.rows_mut("y", &y)?);
        let bias = bias.map(|bias| seen.columns("bias", bias)).transpose()?;
        if seen.is_empty() {
            return Ok(());
        }
        let threads = self.device.threads();
        let cut = match bias {
            Some(_) => Units::of(&seen, Groups::of(seen.rows), threads),
            None => Units::of_elements(&mut seen, &mut [&mut x, &mut out], threads),
        };
        let grad = RowsTable::default();
        let table =
            Table { x, grad, out, bias: bias.unwrap_or(0), partial: 0, cut, kind: activation as u32, pad: 0 };
        self.launch_kernel(&modules::ACTIVATION_FORWARD, seen.dtype, cut.units as usize, &table)
    }

    /// `dx = grad f'(x + bias)`, and its sum over the rows for the bias. One launch, with the gradient of a bias a small one
    /// more; 12 bytes per f32 element.
    ///
    /// # Errors
    ///
    /// If operands do not fit each other, or the device fails.
    pub fn activation_gradient(
        &self,
        activation: Activation,
        operands: ActivationGradients<'_>,
    ) -> Result<()> {
        let ActivationGradients { x, bias, grad, dx, d_bias } = operands;
        let mut seen = Operands::new(activation.name(), "x", &x)?;
        let (mut x, mut grad, mut out) =
            (seen.rows("x", &x)?, seen.rows("grad", &grad)?, seen.rows_mut("dx", &dx)?);
        let bias = bias.map(|bias| seen.columns("bias", bias)).transpose()?;
        let d_bias = d_bias.map(|view| seen.elements("d_bias", view.as_view(), seen.width)).transpose()?;
        if bias.is_none() && d_bias.is_none() && !seen.is_empty() {
            let mut rows = [&mut x, &mut grad, &mut out];
            let cut = Units::of_elements(&mut seen, &mut rows, self.device.threads());
            let table = Table { x, grad, out, bias: 0, partial: 0, cut, kind: activation as u32, pad: 0 };
            return self.launch_kernel(&modules::ACTIVATION_BACKWARD, seen.dtype, cut.units as usize, &table);
        }
        self.columns_of(activation, &seen, [x, grad, out], bias.unwrap_or(0), d_bias)
    }

    /// The gradient of a bias alone: the sum of `grad` over its rows. Two launches; 4 bytes per f32 element.
    ///
    /// # Errors
    ///
    /// If operands do not fit each other, or the device fails.
    pub fn bias_gradient(&self, grad: Rows<'_>, d_bias: ViewMut<'_>) -> Result<()> {
        let mut seen = Operands::new(Activation::Identity.name(), "grad", &grad)?;
        let grad = seen.rows("grad", &grad)?;
        let d_bias = seen.elements("d_bias", d_bias.as_view(), seen.width)?;
        let rows = [RowsTable::default(), grad, RowsTable::default()];
        self.columns_of(Activation::Identity, &seen, rows, 0, Some(d_bias))
    }

    /// The backward pass by columns: x, grad and dx, each of which may be absent.
    fn columns_of(
        &self,
        activation: Activation,
        seen: &Operands,
        [x, grad, out]: [RowsTable; 3],
        bias: u64,
        d_bias: Option<u64>,
    ) -> Result<()> {
        if seen.width == 0 {
            return Ok(());
        }
        let groups = Groups::of(seen.rows);
        let cut = Units::of(seen, groups, self.device.threads());
        let launch = |partial| match seen.rows {
            0 => Ok(()),
            _ => {
                let table = Table { x, grad, out, bias, partial, cut, kind: activation as u32, pad: 0 };
                self.launch_kernel(&modules::ACTIVATION_BACKWARD, seen.dtype, cut.units as usize, &table)
            }
        };
        let Some(d_bias) = d_bias else { return launch(0) };
        self.with_scratch(groups.bytes(1, seen.width), |partial| {
            launch(partial)?;
            self.add_columns(seen.dtype, groups, seen.width, partial, &[d_bias])
        })
    }

    /// `f(gate) up`: with [`Activation::Silu`] SwiGLU's product, with [`Activation::Gelu`] GEGLU's (Shazeer, 2020). One launch;
    /// 12 bytes per f32 element of the output.
    ///
    /// # Errors
    ///
    /// If operands do not fit each other, or the device fails.
    pub fn gated(&self, activation: Activation, operands: GatedOperands<'_>) -> Result<()> {
        let GatedOperands { gate, up, y } = operands;
        let mut seen = Operands::new(GATED, "gate", &gate)?;
        let (mut gate, mut up) = (seen.rows("gate", &gate)?, seen.rows("up", &up)?);
        let mut out = seen.rows_mut("y", &y)?;
        if seen.is_empty() {
            return Ok(());
        }
        let cut = Units::of_elements(&mut seen, &mut [&mut gate, &mut up, &mut out], self.device.threads());
        let (grad, d_up) = (RowsTable::default(), RowsTable::default());
        let table = GatedTable { gate, up, grad, out, d_up, cut, kind: activation as u32, pad: 0 };
        self.launch_kernel(&modules::GATED_FORWARD, seen.dtype, cut.units as usize, &table)
    }

    /// `d_gate = grad up f'(gate)` and `d_up = grad f(gate)`. One launch; 20 bytes per f32 element of the output.
    ///
    /// # Errors
    ///
    /// If operands do not fit each other, or the device fails.
    pub fn gated_gradient(&self, activation: Activation, operands: GatedGradients<'_>) -> Result<()> {
        let GatedGradients { gate, up, grad, d_gate, d_up } = operands;
        let mut seen = Operands::new(GATED, "gate", &gate)?;
        let (mut gate, mut up) = (seen.rows("gate", &gate)?, seen.rows("up", &up)?);
        let mut grad = seen.rows("grad", &grad)?;
        let (mut out, mut d_up) = (seen.rows_mut("d_gate", &d_gate)?, seen.rows_mut("d_up", &d_up)?);
        if seen.is_empty() {
            return Ok(());
        }
        let mut rows = [&mut gate, &mut up, &mut grad, &mut out, &mut d_up];
        let cut = Units::of_elements(&mut seen, &mut rows, self.device.threads());
        let table = GatedTable { gate, up, grad, out, d_up, cut, kind: activation as u32, pad: 0 };
        self.launch_kernel(&modules::GATED_BACKWARD, seen.dtype, cut.units as usize, &table)
    }
}

#[cfg(test)]
mod tests {
    use tpgm_core::DType;

    use super::*;

    fn units(rows: usize, width: usize, stride: usize, by_element: bool) -> Units {
        // SAFETY: nobody reads it.
        let view = unsafe { View::from_raw(4096, rows * stride, DType::F32) };
        let x = Rows::strided(view, rows, width, stride).unwrap();
        let mut seen = Operands::new("test", "x", &x).unwrap();
        let mut x = seen.rows("x", &x).unwrap();
        match by_element {
            true => Units::of_elements(&mut seen, &mut [&mut x], 64),
            false => Units::of(&seen, Groups::of(rows), 64),
        }
    }

    #[test]
    fn units_are_groups_of_rows_by_tiles_of_columns() {
        let of = |rows, rows_per_group, width, vector, tiles, units| Units {
            rows,
            rows_per_group,
            width,
            vector,
            tiles,
            pad: 0,
            units,
        };
        // 256 columns a tile.
        assert_eq!(units(20, 300, 300, false), of(20, 8, 300, 1, 2, 6));
        assert_eq!(units(20, 300, 304, true), of(20, 8, 300, 1, 2, 6), "gaps between rows");
        assert_eq!(units(20, 300, 300, true), of(1, 8, 6000, 1, 24, 24), "one long row");
        assert_eq!(
            units(4, 3, 3, true),
            of(1, 8, 12, 1, 1, 1),
            "rows of three together can be read four at a time"
        );
        assert_eq!(units(3, 3, 3, true), of(1, 8, 9, 0, 1, 1));
    }
}
