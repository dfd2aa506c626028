//! Layer normalization and RMS normalization.

mod kernels;
mod residual;

use candle_core::{CpuStorage, Module, Result, Shape, Tensor};
use candle_nn::{LayerNormConfig, VarBuilder};

use self::kernels::Grads;
pub(super) use self::kernels::Normalize;
pub(super) use self::residual::AddNorm;
use super::check::{Path, last_dim, same_kind, shape_error};
use super::composed;
use super::fused::{Arg, Fused, apply2, apply3};
use super::gpu::{self, on_gpu};
use super::storage::{Operand, into_storage, into_tensor};

/// Layer normalization over the last dimension: `(x - mean) / sqrt(variance + eps) * weight + bias`.
///
/// Use it in place of `candle_nn::LayerNorm`, whose `forward` has no gradient. The variance is that of the whole row
/// (divided by its length). Half-precision inputs are computed in f32 and rounded once.
///
/// Source: Ba, Kiros and Hinton, "Layer Normalization" (2016), equation 4.
#[derive(Debug, Clone)]
pub struct LayerNorm {
    weight: Tensor,
    bias: Option<Tensor>,
    remove_mean: bool,
    eps: f64,
}

impl LayerNorm {
    /// A layer with the given `weight` and `bias`, both of shape (features), and `eps` > 0, which is added to the
    /// variance (usual: 1e-5, BERT: 1e-12).
    pub fn new(weight: Tensor, bias: Tensor, eps: f64) -> Self {
        Self { weight, bias: Some(bias), remove_mean: true, eps }
    }

    /// A layer without bias.
    pub fn new_no_bias(weight: Tensor, eps: f64) -> Self {
        Self { weight, bias: None, remove_mean: true, eps }
    }

    /// The factor of each feature.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// What is added to each feature.
    pub fn bias(&self) -> Option<&Tensor> {
        self.bias.as_ref()
    }

    /// What is added to the variance.
    pub fn eps(&self) -> f64 {
        self.eps
    }
}

impl Module for LayerNorm {
    /// Normalizes `x` of shape (..., features).
    ///
    /// # Errors
    ///
    /// If the last dimension is not that of the weight, or element types or devices differ.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let op = Normalize { eps: self.eps, remove_mean: self.remove_mean };
        apply(op, x, &self.weight, self.bias.as_ref())
    }
}

/// Takes over the tensors of a layer that candle built.
impl From<candle_nn::LayerNorm> for LayerNorm {
    fn from(layer: candle_nn::LayerNorm) -> Self {
        Self {
            weight: layer.weight().clone(),
            bias: layer.bias().cloned(),
            remove_mean: layer.remove_mean(),
            eps: layer.eps(),
        }
    }
}

/// Loads a layer of `size` features: `weight` (or `gamma`) and, unless the configuration says otherwise, `bias` (or
/// `beta`). The configuration may be just `eps`.
///
/// # Errors
///
/// If `vb` has no tensor of that name and shape and cannot make one.
pub fn layer_norm(size: usize, config: impl Into<LayerNormConfig>, vb: VarBuilder) -> Result<LayerNorm> {
    Ok(candle_nn::layer_norm(size, config, vb)?.into())
}

/// RMS normalization over the last dimension: `x / sqrt(mean(x^2) + eps) * weight`.
///
/// Use it in place of `candle_nn::RmsNorm`, whose `forward` has no gradient. Half-precision inputs are computed in f32
/// and rounded once.
///
/// Source: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019), equation 4.
#[derive(Debug, Clone)]
pub struct RmsNorm {
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    /// A layer with the given `weight` of shape (features) and `eps` > 0, which is added to the mean of the squares
    /// (Llama: 1e-5 or 1e-6).
    pub fn new(weight: Tensor, eps: f64) -> Self {
        Self { weight, eps }
    }

    /// The factor of each feature.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// What is added to the mean of the squares.
    pub fn eps(&self) -> f64 {
        self.eps
    }
}

impl Module for RmsNorm {
    /// Normalizes `x` of shape (..., features).
    ///
    /// # Errors
    ///
    /// If the last dimension is not that of the weight, or element types or devices differ.
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        apply(Normalize { eps: self.eps, remove_mean: false }, x, &self.weight, None)
    }
}

/// Takes over the tensors of a layer that candle built.
impl From<candle_nn::RmsNorm> for RmsNorm {
    fn from(layer: candle_nn::RmsNorm) -> Self {
        Self { weight: layer.weight().clone(), eps: layer.eps() }
    }
}

/// Loads a layer of `size` features: `weight` (or `gamma`).
///
/// # Errors
///
/// If `vb` has no tensor of that name and shape and cannot make one.
pub fn rms_norm(size: usize, eps: f64, vb: VarBuilder) -> Result<RmsNorm> {
    Ok(candle_nn::rms_norm(size, eps, vb)?.into())
}

/// A norm with its tensors, whichever it is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AnyNorm<'a> {
    pub(super) op: Normalize,
    pub(super) weight: &'a Tensor,
    pub(super) bias: Option<&'a Tensor>,
}

impl AnyNorm<'_> {
    /// Whether kernels can compute it.
    pub(crate) fn has_kernel(&self) -> bool {
        self.op.has_kernel()
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        apply(self.op, x, self.weight, self.bias)
    }
}

impl<'a> From<&'a LayerNorm> for AnyNorm<'a> {
    fn from(norm: &'a LayerNorm) -> Self {
        let op = Normalize { eps: norm.eps, remove_mean: norm.remove_mean };
        Self { op, weight: &norm.weight, bias: norm.bias.as_ref() }
    }
}

impl<'a> From<&'a RmsNorm> for AnyNorm<'a> {
    fn from(norm: &'a RmsNorm) -> Self {
        Self { op: Normalize { eps: norm.eps, remove_mean: false }, weight: &norm.weight, bias: None }
    }
}

fn apply(op: Normalize, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
    match (op.path(x, weight, bias)?, bias) {
        (Path::Composed, _) => composed::norm(x, weight, bias, op.eps, op.remove_mean),
        (Path::Fused, None) => apply2(op, x, weight),
        (Path::Fused, Some(bias)) => apply3(op, x, weight, bias),
    }
}

impl Normalize {
    /// The kernels compute in f32, and want an epsilon there.
    fn has_kernel(&self) -> bool {
        self.eps as f32 > 0.0 && (self.eps as f32).is_finite()
    }

    /// Checks the arguments, and says who computes.
    pub(super) fn path(&self, x: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Result<Path> {
        let op = self;
        let name = op.op_name();
        let args: Vec<&Tensor> = [x, weight].into_iter().chain(bias).collect();
        same_kind(name, &args)?;
        let features = last_dim(name, x)?;
        if args[1..].iter().any(|arg| arg.dims() != [features]) {
            return Err(shape_error(name, "weight and bias must have the input's last dimension", &args));
        }
        Ok(match gpu::takes(x) {
            Some(_) if !op.has_kernel() => Path::Composed,
            _ => Path::with_kernels(x),
        })
    }

    fn op_name(&self) -> &'static str {
        if self.remove_mean { "layer-norm" } else { "rms-norm" }
    }

    /// Gradients of x, weight and bias, of those that need one.
    fn gradients_of(
        &self,
        x: &Tensor,
        weight: &Tensor,
        grad: &Tensor,
        bias_tracked: bool,
    ) -> Result<[Option<Tensor>; 3]> {
        let name = self.op_name();
        let grads = {
            let [x_data, weight_data, grad_data] = [x, weight, grad].map(|tensor| Operand::new(name, tensor));
            let wanted = Grads { x: x.track_op(), weight: weight.track_op(), bias: bias_tracked };
            self.gradients(x_data.slice()?, weight_data.slice()?, grad_data.slice()?, None, wanted)
        };
        let tensor = |buffer: Option<_>, shape| buffer.map(|buffer| into_tensor(buffer, shape)).transpose();
        Ok([
            tensor(grads.x, x.shape())?,
            tensor(grads.weight, weight.shape())?,
            tensor(grads.bias, weight.shape())?,
        ])
    }
}

impl Fused<2> for Normalize {
    on_gpu!(2, norm);

    fn name(&self) -> &'static str {
        self.op_name()
    }

    fn forward(&self, [x, weight]: [Arg<'_>; 2]) -> Result<(CpuStorage, Shape)> {
        Ok((into_storage(self.values(x.slice()?, weight.slice()?, None)), x.shape().clone()))
    }

    fn backward(&self, [x, weight]: [&Tensor; 2], _y: &Tensor, grad: &Tensor) -> Result<[Option<Tensor>; 2]> {
        let [x, weight, _] = self.gradients_of(x, weight, grad, false)?;
        Ok([x, weight])
    }
}

impl Fused<3> for Normalize {
    on_gpu!(3, norm);

    fn name(&self) -> &'static str {
        self.op_name()
    }

    fn forward(&self, [x, weight, bias]: [Arg<'_>; 3]) -> Result<(CpuStorage, Shape)> {
        Ok((into_storage(self.values(x.slice()?, weight.slice()?, Some(bias.slice()?))), x.shape().clone()))
    }

    fn backward(
        &self,
        [x, weight, bias]: [&Tensor; 3],
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        self.gradients_of(x, weight, grad, bias.track_op())
    }
}
