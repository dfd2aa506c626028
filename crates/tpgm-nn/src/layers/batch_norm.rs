//! Batch normalization.

mod kernels;

use candle_core::{CpuStorage, DType, Device, ModuleT, Result, Shape, Tensor, Var};
use candle_nn::{Init, VarBuilder};
use serde::{Deserialize, Serialize};

use self::kernels::{Moments, Normalize, moments};
use super::check::{Path, same_kind, shape_error};
use super::composed;
use super::conv::Norm;
use super::fused::{Arg, Fused, apply3};
use super::storage::{Operand, into_storage, into_tensor};
use crate::error::Error;

const NAME: &str = "batch-norm";

/// What a [`BatchNorm`] normalizes with while training. Otherwise it takes its running statistics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Statistics {
    /// Mean and variance of the batch, which move the running ones.
    #[default]
    Batch,
    /// The running ones, which stay as they are: for batches too small to have statistics, and where a model should keep
    /// those of its pre-training. Weight and bias are trained nevertheless, unless frozen.
    Running,
}

/// Batch normalization: `(x - mean) / sqrt(variance + eps) * weight + bias`, with mean and variance of each channel of `x`
/// of shape (batch, channels, ...).
///
/// While training these are the batch's (the variance divided by the number of elements), and the running statistics move:
/// `running = (1 - momentum) * running + momentum * batch`, where the variance is divided by the number of elements less
/// one, as in PyTorch. They are computed in f64, whatever the element type; by kernels the
/// sums of a group of elements are f32, and those of the groups f64. They stay as they are if a batch would make one
/// of them NaN or infinite; its result has the NaN all the same.
///
/// Under `Params` of `tpgm-candle` the running statistics are buffers: part of `Params::values` and
/// so of every checkpoint, without anchor, and not trained. Ranks of a distributed run move their own, each by its part of
/// the batch.
///
/// Source: Ioffe and Szegedy, "Batch Normalization" (2015), algorithms 1 and 2.
#[derive(Debug, Clone)]
pub struct BatchNorm {
    weight: Tensor,
    bias: Tensor,
    running_mean: Var,
    running_var: Var,
    eps: f64,
    momentum: f64,
    statistics: Statistics,
}

impl BatchNorm {
    /// A layer with the given tensors, all of shape (channels), and `eps` > 0, which is added to the variance (usual:
    /// 1e-5). Momentum is 0.1.
    ///
    /// Running statistics that are variables are moved in place; others are copied.
    ///
    /// # Errors
    ///
    /// If the shapes differ.
    pub fn new(
        weight: Tensor,
        bias: Tensor,
        running_mean: &Tensor,
        running_var: &Tensor,
        eps: f64,
    ) -> Result<Self> {
        let all = [&weight, &bias, running_mean, running_var];
        if weight.rank() != 1 || all.iter().any(|tensor| tensor.shape() != weight.shape()) {
            let expected = "weight, bias and running statistics must be of shape (channels)";
            return Err(shape_error(NAME, expected, &all));
        }
        let (running_mean, running_var) = (Var::from_tensor(running_mean)?, Var::from_tensor(running_var)?);
        let statistics = Statistics::default();
        Ok(Self { weight, bias, running_mean, running_var, eps, momentum: 0.1, statistics })
    }

    /// The share of the batch in the running statistics, in `[0, 1]`.
    ///
    /// # Errors
    ///
    /// A value outside this range.
    pub fn momentum(self, momentum: f64) -> Result<Self> {
        if !(0.0..=1.0).contains(&momentum) {
            let range = "in [0, 1]";
            return Err(
                Error::LayerOption { op: NAME, option: "the momentum", value: momentum, range }.into()
            );
        }
        Ok(Self { momentum, ..self })
    }

    /// What it normalizes with while training.
    #[must_use]
    pub fn statistics(self, statistics: Statistics) -> Self {
        Self { statistics, ..self }
    }

    /// The factor of each channel.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// What is added to each channel.
    pub fn bias(&self) -> &Tensor {
        &self.bias
    }

    /// Running mean of each channel.
    pub fn running_mean(&self) -> &Tensor {
        &self.running_mean
    }

    /// Running variance of each channel.
    pub fn running_var(&self) -> &Tensor {
        &self.running_var
    }

    /// What is added to the variance.
    pub fn eps(&self) -> f64 {
        self.eps
    }

    /// Takes the statistics of a batch of `count` elements per channel into the running ones, if all are finite then: one
    /// batch with a NaN would otherwise stay in them for good, though the step on it is refused.
    fn update(&self, batch: &Moments, count: usize) -> Result<()> {
        let unbiased = count as f64 / (count - 1) as f64;
        let moved = |running: &Var, batch: &[f64], factor: f64| {
            let mut values = numbers(running)?;
            for (running, batch) in values.iter_mut().zip(batch) {
                *running += self.momentum * (factor * batch - *running);
            }
            let values = Tensor::from_vec(values, running.shape(), &Device::Cpu)?;
            values.to_dtype(running.dtype())
        };
        let mean = moved(&self.running_mean, &batch.mean, 1.0)?;
        let variance = moved(&self.running_var, &batch.variance, unbiased)?;
        // In the type of the statistics: what is finite here may be too large for it.
        for values in [&mean, &variance] {
            if !numbers(values)?.iter().all(|value| value.is_finite()) {
                return Ok(());
            }
        }
        self.running_mean.set(&mean.to_device(self.running_mean.device())?)?;
        self.running_var.set(&variance.to_device(self.running_var.device())?)
    }

    /// Whether it normalizes with the statistics of the batch.
    pub(super) fn takes_batch(&self, train: bool) -> bool {
        train && self.statistics == Statistics::Batch
    }

    /// The norm with its running statistics, to be folded into the convolution in front of it.
    pub(super) fn folded(&self) -> Result<Norm> {
        let Moments { mean, variance } = self.running()?;
        let scale = variance.iter().map(|variance| (variance + self.eps).sqrt().recip()).collect();
        let (weight, bias) = (self.weight.contiguous()?, self.bias.contiguous()?);
        Ok(Norm { weight, bias, mean, scale })
    }

    /// The forward pass by kernels, where they take such images. The running statistics move on the device.
    #[cfg(any(feature = "cuda", test))]
    fn by_kernels(&self, x: &Tensor, batch: bool) -> Result<Option<Tensor>> {
        use super::gpu::{self, batch_norm::Normalize};

        let dtype = self.running_mean.dtype();
        let largest = match dtype {
            DType::F32 => f32::MAX,
            DType::F16 => 65504.0,
            DType::BF16 => f32::from_bits(0x7f7f_0000),
            _ => return Ok(None),
        };
        let eps = self.eps as f32;
        let takes = gpu::takes(x) == Some(true) && eps > 0.0 && eps.is_finite();
        if !takes || self.running_var.dtype() != dtype {
            return Ok(None);
        }
        let kernel = tpgm_cuda::layers::BatchNorm { eps: self.eps, momentum: self.momentum, largest };
        let running = [&self.running_mean, &self.running_var].map(|var| var.detach().to_dtype(DType::F32));
        let [mean, variance] = running;
        let running = Tensor::cat(&[mean?, variance?], 0)?;
        let op = Normalize::new(kernel, batch, running);
        let (y, moved) = op.apply([x, &self.weight, &self.bias])?;
        if let Some(moved) = moved {
            let channels = self.weight.elem_count();
            self.running_mean.set(&moved.narrow(0, 0, channels)?.to_dtype(dtype)?)?;
            self.running_var.set(&moved.narrow(0, channels, channels)?.to_dtype(dtype)?)?;
        }
        Ok(Some(y))
    }

    fn running(&self) -> Result<Moments> {
        Ok(Moments { mean: numbers(&self.running_mean)?, variance: numbers(&self.running_var)? })
    }
}

/// The values of a small tensor.
fn numbers(tensor: &Tensor) -> Result<Vec<f64>> {
    tensor.to_dtype(DType::F64)?.to_vec1()
}

impl ModuleT for BatchNorm {
    /// Normalizes `x` of shape (batch, channels, ...), by the statistics of the batch if `train` and
    /// [`Statistics::Batch`], else by the running ones.
    ///
    /// # Errors
    ///
    /// If channels, element types or devices differ, or a batch to train on has one element per channel: its variance is
    /// zero, and says nothing.
    fn forward_t(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let args = [x, &self.weight, &self.bias];
        same_kind(NAME, &args)?;
        if x.rank() < 2 || x.dims()[1] != self.weight.elem_count() {
            let expected = "the input must be (batch, channels, ...) with the weight's channels";
            return Err(shape_error(NAME, expected, &args));
        }
        let batch = self.takes_batch(train);
        let count = x.elem_count() / x.dims()[1].max(1);
        if batch && count < 2 {
            let expected = "a batch to train on must have more than one element per channel";
            return Err(shape_error(NAME, expected, &args));
        }
        #[cfg(any(feature = "cuda", test))]
        if let Some(y) = self.by_kernels(x, batch)? {
            return Ok(y);
        }
        match Path::of(x) {
            Path::Fused => {
                let x = x.contiguous()?;
                let moments =
                    if batch { moments(Operand::new(NAME, &x).slice()?, x.dims()) } else { self.running()? };
                let op = Normalize::new(&moments, self.eps, batch);
                let y = apply3(op, &x, &self.weight, &self.bias)?;
                if batch {
                    self.update(&moments, count)?;
                }
                Ok(y)
            }
            Path::Composed => {
                if !batch {
                    let (mean, variance) = (self.running_mean.detach(), self.running_var.detach());
                    return composed::batch_norm(x, &self.weight, &self.bias, &mean, &variance, self.eps);
                }
                let (mean, variance) = composed::batch_statistics(x)?;
                let y = composed::batch_norm(x, &self.weight, &self.bias, &mean, &variance, self.eps)?;
                let moments = Moments { mean: numbers(&mean)?, variance: numbers(&variance)? };
                self.update(&moments, count)?;
                Ok(y)
            }
        }
    }
}

/// Loads a layer of `channels`: `weight`, `bias`, `running_mean` and `running_var`. PyTorch's count of batches
/// (`num_batches_tracked`), which nothing depends on, is left alone.
///
/// # Errors
///
/// If `vb` has no tensors of these names and shapes and cannot make them.
pub fn batch_norm(channels: usize, eps: f64, vb: VarBuilder) -> Result<BatchNorm> {
    let get = |name, value| vb.get_with_hints(channels, name, Init::Const(value));
    let (mean, variance) = (get("running_mean", 0.0)?, get("running_var", 1.0)?);
    BatchNorm::new(get("weight", 1.0)?, get("bias", 0.0)?, &mean, &variance, eps)
}

impl Fused<3> for Normalize {
    fn name(&self) -> &'static str {
        NAME
    }

    fn forward(&self, [x, weight, bias]: [Arg<'_>; 3]) -> Result<(CpuStorage, Shape)> {
        let y = self.values(x.slice()?, x.dims(), weight.slice()?, bias.slice()?);
        Ok((into_storage(y), x.shape().clone()))
    }

    fn backward(
        &self,
        [x, weight, bias]: [&Tensor; 3],
        _y: &Tensor,
        grad: &Tensor,
    ) -> Result<[Option<Tensor>; 3]> {
        let [x_data, weight_data, grad_data] = [x, weight, grad].map(|tensor| Operand::new(NAME, tensor));
        let (x_slice, weight_slice, grad_slice) = (x_data.slice()?, weight_data.slice()?, grad_data.slice()?);
        let sums = self.sums(x_slice, grad_slice, x.dims());
        let dx =
            x.track_op().then(|| self.input_gradient(x_slice, weight_slice, grad_slice, &sums, x.dims()));
        let parameter = |tracked: bool, sums: &[f64]| {
            let tensor = || Tensor::new(sums, &Device::Cpu)?.to_dtype(x.dtype());
            tracked.then(tensor).transpose()
        };
        Ok([
            dx.map(|dx| into_tensor(dx, x.shape())).transpose()?,
            parameter(weight.track_op(), &sums.of_products)?,
            parameter(bias.track_op(), &sums.of_gradients)?,
        ])
    }
}
