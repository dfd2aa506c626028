//! Linear layers: products by candle's matrix product (cuBLAS on a GPU), which has no epilogue, so that a bias is a launch of its own.

use candle_core::backend::{BackendDevice, BackendStorage};
use candle_core::{DType, Layout, Result, Tensor};
use tpgm_cuda::layers::{Activation, ActivationOperands};

use super::{Fresh, Home, Input, Lock, bias, failed};
use crate::layers::linear::Affine;

/// `x W^T`, and the bias.
pub(in crate::layers) fn forward<H: Home, const N: usize>(
    _op: &Affine,
    on: &H,
    args: [Input<'_, H>; N],
) -> Result<Fresh<H>> {
    let (x, weight) = (&args[0], &args[1]);
    let mut shape = x.shape().dims().to_vec();
    if let (Some(last), Some(&outputs)) = (shape.last_mut(), weight.shape().dims().first()) {
        *last = outputs;
    }
    let storage = product(&Matrix::of(x)?, &Matrix::of(weight)?.t()?)?;
    let product = Fresh { storage, shape: shape.into() };
    let Some(bias) = args.get(2) else { return Ok(product) };
    let layout = Layout::contiguous(&product.shape);
    let product = Input::<H>::new(on, &product.storage, &layout)?;
    let mut y = Fresh::like(&product)?;
    let mut out = y.output(on)?;
    let operands = ActivationOperands { x: product.rows()?, bias: Some(bias.elements()?), y: out.rows()? };
    on.layers().activation(Activation::Identity, operands).map_err(failed)?;
    drop(out);
    Ok(y)
}

/// Gradients of those that want one.
pub(in crate::layers) fn backward<H: Home, const N: usize>(
    _op: &Affine,
    on: &H,
    args: [&Tensor; N],
    _y: &Tensor,
    grad: &Tensor,
) -> Result<[Option<Tensor>; N]> {
    // candle's product takes whole matrices.
    let grad = grad.contiguous()?;
    let (x, weight) = (args[0], args[1]);
    let locks = [Lock::new(x), Lock::new(weight), Lock::new(&grad)];
    let (x_data, weight_data, grad_data) = (locks[0].input(on)?, locks[1].input(on)?, locks[2].input(on)?);
    let of = |tensor: &Tensor, x: &Matrix<'_, H::Storage>, y: &Matrix<'_, H::Storage>| {
        let found = Fresh::<H> { storage: product(x, y)?, shape: tensor.shape().clone() };
        Ok::<_, candle_core::Error>(found.into_tensor())
    };
    let grad_matrix = Matrix::of(&grad_data)?;
    let d_x = x.track_op().then(|| of(x, &grad_matrix, &Matrix::of(&weight_data)?)).transpose()?;
    let d_weight =
        weight.track_op().then(|| of(weight, &grad_matrix.t()?, &Matrix::of(&x_data)?)).transpose()?;
    let d_bias = match args.get(2) {
        Some(bias) => bias::gradient(on, bias, &grad)?,
        None => None,
    };
    let mut grads = [d_x, d_weight, d_bias];
    Ok(std::array::from_fn(|i| grads[i].take()))
}

/// All dimensions but the last by the last, of a contiguous tensor, or that transposed.
struct Matrix<'a, S> {
    storage: &'a S,
    layout: Layout,
}

impl<'a, S: BackendStorage> Matrix<'a, S> {
    fn of<H: Home<Storage = S>>(input: &Input<'a, H>) -> Result<Self> {
        let (Some((start, end)), Some(&columns)) =
            (input.layout.contiguous_offsets(), input.layout.dims().last())
        else {
            return Err(candle_core::Error::RequiresContiguous { op: "linear" }.bt());
        };
        let rows = (end - start).checked_div(columns).unwrap_or(0);
        Ok(Self { storage: input.storage, layout: Layout::contiguous_with_offset((rows, columns), start) })
    }

    fn t(&self) -> Result<Self> {
        Ok(Self { storage: self.storage, layout: self.layout.transpose(0, 1)? })
    }

    fn size(&self) -> (usize, usize) {
        (self.layout.dims()[0], self.layout.dims()[1])
    }

    fn dtype(&self) -> DType {
        self.storage.dtype()
    }
}

/// `x y`
fn product<S>(x: &Matrix<'_, S>, y: &Matrix<'_, S>) -> Result<S>
where
    S: BackendStorage<Device: BackendDevice<Storage = S>>,
{
    let ((m, k), (_, n)) = (x.size(), y.size());
    // cuBLAS refuses what has no elements.
    if m * n * k == 0 {
        return x.storage.device().zeros_impl(&(m, n).into(), x.dtype());
    }
    x.storage.matmul(y.storage, (1, m, n, k), &x.layout, &y.layout)
}
