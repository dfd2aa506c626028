//! Linear layers.

use candle_core::{CpuStorage, CustomOp2, Layout, Module, Result, Shape, Tensor};
use candle_nn::VarBuilder;
use tpgm_core::{Buffer, Element, Slice};

use super::check::{Path, last_dim, same_kind, shape_error};
use super::composed;
use super::float::{Float, vectorized};
use super::storage::{
    Columns, Operand, by_dtype, elements, fill, for_pieces, into_storage, into_tensor, load, round,
    rows_per_piece, scratch, store, sum_in_order, widen,
};

const NAME: &str = "add-bias";

/// `x + bias`, the bias repeated for every row of `x` of shape (..., features).
///
/// # Errors
///
/// If the bias is not of shape (features), or element types or devices differ.
pub fn add_bias(x: &Tensor, bias: &Tensor) -> Result<Tensor> {
    same_kind(NAME, &[x, bias])?;
    if bias.dims() != [last_dim(NAME, x)?] {
        return Err(shape_error(NAME, "the bias must have the input's last dimension", &[x, bias]));
    }
    match Path::of(x) {
        Path::Fused => x.contiguous()?.apply_op2(&bias.contiguous()?, AddBias),
        Path::Composed => composed::add_bias(x, bias),
    }
}

#[derive(Debug)]
struct AddBias;

impl AddBias {
    fn forward<T: Element, C: Float>(x: Slice<'_>, bias: Slice<'_>) -> Buffer {
        let width = bias.len();
        let bias = widen::<C>(bias);
        let (y, _) = fill::<T, ()>(x.len(), rows_per_piece(width) * width, |range, piece| {
            let (mut x_scratch, mut y_scratch) = (scratch::<T, C>(width), scratch::<T, C>(width));
            for (row, y) in piece.chunks_mut(width).enumerate() {
                let start = range.start + row * width;
                let x = load(x.sub(start..start + width), &mut x_scratch);
                store(y, &mut y_scratch, |y: &mut [C]| add(x, &bias, y));
            }
        });
        T::buffer(y)
    }

    /// Sums of the columns.
    fn bias_gradient<T: Element, C: Float>(grad: Slice<'_>, width: usize) -> Buffer {
        let parts = for_pieces(grad.len(), rows_per_piece(width) * width, |range| {
            let mut grad_scratch = scratch::<T, C>(width);
            let mut sum = Columns::<C>::new(width);
            for start in range.step_by(width.max(1)) {
                let grad = load(grad.sub(start..start + width), &mut grad_scratch);
                sum.row(|sum| accumulate(grad, sum));
            }
            sum.finish()
        });
        T::buffer(round(&sum_in_order(width, &parts)))
    }
}

impl CustomOp2 for AddBias {
    fn name(&self) -> &'static str {
        NAME
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (x, bias) = (elements(NAME, x, x_layout)?, elements(NAME, bias, bias_layout)?);
        let y = by_dtype!(x.dtype(), T, C => Self::forward::<T, C>(x, bias));
        Ok((into_storage(y), x_layout.shape().clone()))
    }

    fn bwd(
        &self,
        _x: &Tensor,
        bias: &Tensor,
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let grad = grad.contiguous()?;
        let d_bias = if bias.track_op() {
            let data = Operand::new(NAME, &grad);
            let data = data.slice()?;
            let sum = by_dtype!(data.dtype(), T, C => Self::bias_gradient::<T, C>(data, bias.elem_count()));
            Some(into_tensor(sum, bias.shape())?)
        } else {
            None
        };
        Ok((Some(grad), d_bias))
    }
}

vectorized! {
    fn add<C>(x: &[C], bias: &[C], y: &mut [C]) {
        for ((y, &x), &bias) in y.iter_mut().zip(x).zip(bias) {
            *y = x + bias;
        }
    }
}

vectorized! {
    fn accumulate<C>(x: &[C], sum: &mut [C]) {
        for (sum, &x) in sum.iter_mut().zip(x) {
            *sum += x;
        }
    }
}

/// Linear layer `x W^T + b`, as `candle_nn::Linear`, with the bias added and its gradient summed in parallel.
#[derive(Debug, Clone)]
pub struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    /// A layer with `weight` of shape (outputs, inputs) and `bias` of shape (outputs).
    pub fn new(weight: Tensor, bias: Option<Tensor>) -> Self {
        Self { weight, bias }
    }

    /// The matrix, of shape (outputs, inputs).
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// What is added to each output.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }
}

impl Module for Linear {
    /// Maps `x` of shape (..., inputs) to (..., outputs).
    ///
    /// # Errors
    ///
    /// If shapes, element types or devices do not fit.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let inputs = last_dim("linear", x)?;
        let &[outputs, expected] = self.weight.dims() else {
            return Err(shape_error("linear", "the weight must be (outputs, inputs)", &[x, &self.weight]));
        };
        if inputs != expected {
            let expected = "the input's last dimension must be the weight's";
            return Err(shape_error("linear", expected, &[x, &self.weight]));
        }
        // One matrix product for all leading dimensions: candle's batched one would multiply the weight by the batch.
        let mut shape = x.dims().to_vec();
        let rows = shape[..shape.len() - 1].iter().product::<usize>();
        let y = x.reshape((rows, inputs))?.matmul(&self.weight.t()?)?;
        let y = match &self.bias {
            Some(bias) => add_bias(&y, bias)?,
            None => y,
        };
        shape.pop();
        shape.push(outputs);
        y.reshape(shape)
    }
}

/// Takes over the tensors of a layer that candle built.
impl From<candle_nn::Linear> for Linear {
    fn from(layer: candle_nn::Linear) -> Self {
        Self::new(layer.weight().clone(), layer.bias().cloned())
    }
}

/// Loads a layer with bias: `weight` of shape (outputs, inputs) and `bias`.
///
/// # Errors
///
/// If `vb` has no tensor of that name and shape and cannot make one.
pub fn linear(inputs: usize, outputs: usize, vb: VarBuilder) -> Result<Linear> {
    Ok(candle_nn::linear(inputs, outputs, vb)?.into())
}

/// Loads a layer without bias.
///
/// # Errors
///
/// If `vb` has no tensor of that name and shape and cannot make one.
pub fn linear_no_bias(inputs: usize, outputs: usize, vb: VarBuilder) -> Result<Linear> {
    Ok(candle_nn::linear_no_bias(inputs, outputs, vb)?.into())
}
