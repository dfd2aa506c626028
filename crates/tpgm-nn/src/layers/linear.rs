//! Linear layers.

use candle_core::{CpuStorage, Module, Result, Shape, Tensor};
use candle_nn::{Init, VarBuilder};
use rayon::prelude::*;
use tpgm_core::{Buffer, Element, Slice};

use super::check::{Path, last_dim, same_kind, shape_error};
use super::composed;
use super::float::{Float, accumulate, add};
use super::fused::{Arg, Fused, apply2, apply3};
use super::gpu::on_gpu;
use super::product::{Factor, gradient, product};
use super::storage::{
    Columns, Operand, by_dtype, fill, for_pieces, into_storage, into_tensor, load, round, rows_per_piece,
    scratch, store, sum_in_order, typed_mut, widen,
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
    match Path::with_kernels(x) {
        Path::Fused => apply2(AddBias, x, bias),
        Path::Composed => composed::add_bias(x, bias),
    }
}

#[derive(Debug)]
pub(super) struct AddBias;

impl AddBias {
    fn sum<T: Element, C: Float>(x: Slice<'_>, bias: Slice<'_>) -> Buffer {
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
}

/// The gradient of a bias, if it is wanted: sums of the columns of `grad`, which is contiguous.
fn bias_gradient(bias: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
    if !bias.track_op() {
        return Ok(None);
    }
    let data = Operand::new(NAME, grad);
    let data = data.slice()?;
    let sum = by_dtype!(data.dtype(), T, C => sum_columns::<T, C>(data, bias.elem_count()));
    into_tensor(sum, bias.shape()).map(Some)
}

fn sum_columns<T: Element, C: Float>(grad: Slice<'_>, width: usize) -> Buffer {
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

impl Fused<2> for AddBias {
    on_gpu!(2, bias);

    fn name(&self) -> &'static str {
        NAME
    }

    fn forward(&self, [x, bias]: [Arg<'_>; 2]) -> Result<(CpuStorage, Shape)> {
        let shape = x.shape().clone();
        let (x, bias) = (x.slice()?, bias.slice()?);
        let y = by_dtype!(x.dtype(), T, C => Self::sum::<T, C>(x, bias));
        Ok((into_storage(y), shape))
    }

    fn backward(&self, [_, bias]: [&Tensor; 2], _y: &Tensor, grad: &Tensor) -> Result<[Option<Tensor>; 2]> {
        Ok([Some(grad.clone()), bias_gradient(bias, grad)?])
    }
}

/// Linear layer `x W^T + b`, as `candle_nn::Linear`: one node of the graph instead of five, and neither the gradient of a
/// frozen weight nor that of an input outside the graph is computed.
///
/// On a GPU the product is candle's (cuBLAS), and a bias is added by a launch of its own: candle has no epilogue for it. In the
/// feed-forward network of a model the bias is part of the activation's launch.
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

    /// Whether `x` and the layer's own tensors fit.
    pub(super) fn check(&self, x: &Tensor) -> Result<()> {
        let inputs = last_dim("linear", x)?;
        let &[outputs, expected] = self.weight.dims() else {
            return Err(shape_error("linear", "the weight must be (outputs, inputs)", &[x, &self.weight]));
        };
        if inputs != expected {
            let expected = "the input's last dimension must be the weight's";
            return Err(shape_error("linear", expected, &[x, &self.weight]));
        }
        let mut args = vec![x, &self.weight];
        if let Some(bias) = &self.bias {
            args.push(bias);
            if bias.dims() != [outputs] {
                return Err(shape_error("linear", "the bias must be (outputs)", &args));
            }
        }
        same_kind("linear", &args)
    }
}

impl Module for Linear {
    /// Maps `x` of shape (..., inputs) to (..., outputs).
    ///
    /// # Errors
    ///
    /// If shapes, element types or devices do not fit.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.check(x)?;
        let bias = self.bias.as_ref();
        if Path::with_kernels(x) == Path::Composed {
            return composed::linear(x, &self.weight, bias);
        }
        // Products take whole matrices.
        let (x, weight) = (x.contiguous()?, self.weight.contiguous()?);
        match bias {
            None => apply2(Affine, &x, &weight),
            Some(bias) => apply3(Affine, &x, &weight, bias),
        }
    }
}

#[derive(Debug)]
pub(super) struct Affine;

impl Affine {
    const NAME: &'static str = "linear";

    fn product(x: Arg<'_>, weight: Arg<'_>) -> Result<(CpuStorage, Shape)> {
        let [x_matrix, weight_matrix] = [x, weight].map(|arg| Factor::matrix(arg.storage, arg.layout));
        let mut shape = x.dims().to_vec();
        shape.pop();
        shape.push(weight.dims()[0]);
        Ok((product(Self::NAME, x_matrix, weight_matrix.t())?, shape.into()))
    }

    fn add_bias<T: Element, C: Float>(y: &mut [T], bias: Slice<'_>) {
        let width = bias.len();
        let bias = widen::<C>(bias);
        y.par_chunks_mut((rows_per_piece(width) * width).max(1)).for_each(|piece| {
            let mut wide = scratch::<T, C>(width);
            for y in piece.chunks_mut(width) {
                match C::direct_mut(T::slice_mut(y)) {
                    Some(y) => accumulate(&bias, y),
                    None => {
                        C::load(T::slice(y), &mut wide);
                        accumulate(&bias, &mut wide);
                        C::store(&wide, T::slice_mut(y));
                    }
                }
            }
        });
    }

    /// The gradients of `x` and `weight`, each only if it is wanted.
    fn gradients(x: &Tensor, weight: &Tensor, grad: &Tensor) -> Result<[Option<Tensor>; 2]> {
        let [x_data, weight_data, grad] = [x, weight, grad].map(|tensor| Operand::new(Self::NAME, tensor));
        let matrix = |(storage, layout)| Factor::matrix(storage, layout);
        let (x_data, weight_data, grad) =
            (matrix(x_data.storage()?), matrix(weight_data.storage()?), matrix(grad.storage()?));
        let gradient = |of, a, b| gradient(Self::NAME, of, a, b);
        Ok([gradient(x, grad, weight_data)?, gradient(weight, grad.t(), x_data)?])
    }
}

impl Fused<2> for Affine {
    on_gpu!(2, linear);

    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn forward(&self, [x, weight]: [Arg<'_>; 2]) -> Result<(CpuStorage, Shape)> {
        Self::product(x, weight)
    }

    fn backward(&self, [x, weight]: [&Tensor; 2], _y: &Tensor, grad: &Tensor) -> Result<[Option<Tensor>; 2]> {
        Self::gradients(x, weight, grad)
    }
}

impl Fused<3> for Affine {
    on_gpu!(3, linear);

    fn name(&self) -> &'static str {
        Self::NAME
    }

    fn forward(&self, [x, weight, bias]: [Arg<'_>; 3]) -> Result<(CpuStorage, Shape)> {
        let bias = bias.slice()?;
        let (mut y, shape) = Self::product(x, weight)?;
        by_dtype!(bias.dtype(), T, C => {
            let y = typed_mut::<T>(&mut y).expect("products have the type of their factors");
            Self::add_bias::<T, C>(y, bias);
        });
        Ok((y, shape))
    }

    fn backward(
        &self,
        [x, weight, bias]: [&Tensor; 3],
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let [d_x, d_weight] = Self::gradients(x, weight, grad)?;
        Ok([d_x, d_weight, bias_gradient(bias, grad)?])
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
/// Made anew, both are uniform between `-1 / sqrt(inputs)` and `1 / sqrt(inputs)`, as PyTorch's `nn.Linear`. candle-nn draws
/// weights that are 2.4 times as large; as a head, these send gradients back that can ruin a pre-trained network in its first steps.
///
/// # Errors
///
/// If `vb` has no tensor of that name and shape and cannot make one.
pub fn linear(inputs: usize, outputs: usize, vb: VarBuilder) -> Result<Linear> {
    let weight = weight(inputs, outputs, &vb)?;
    Ok(Linear::new(weight, Some(vb.get_with_hints(outputs, "bias", uniform(inputs))?)))
}

/// Loads a layer without bias: see [`linear`].
///
/// # Errors
///
/// If `vb` has no tensor of that name and shape and cannot make one.
pub fn linear_no_bias(inputs: usize, outputs: usize, vb: VarBuilder) -> Result<Linear> {
    Ok(Linear::new(weight(inputs, outputs, &vb)?, None))
}

fn weight(inputs: usize, outputs: usize, vb: &VarBuilder) -> Result<Tensor> {
    vb.get_with_hints((outputs, inputs), "weight", uniform(inputs))
}

fn uniform(inputs: usize) -> Init {
    let bound = 1.0 / (inputs.max(1) as f64).sqrt();
    Init::Uniform { lo: -bound, up: bound }
}
