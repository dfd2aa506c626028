//! A convolution with its batch norm and activation.

use candle_core::{ModuleT, Result, Tensor};
use candle_nn::{VarBuilder, init};

use super::efficientnet::{EfficientNetActivation, EfficientNetPadding};
use crate::layers::{BatchNorm, Conv2d, Statistics, batch_norm};

/// Sizes of a convolution.
#[derive(Debug, Clone, Copy)]
pub(super) struct ConvShape {
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) kernel: usize,
    pub(super) stride: usize,
    pub(super) groups: usize,
}

impl ConvShape {
    /// A convolution of one.
    pub(super) fn pointwise(inputs: usize, outputs: usize) -> Self {
        Self { inputs, outputs, kernel: 1, stride: 1, groups: 1 }
    }
}

#[derive(Debug, Clone)]
pub(super) struct ConvNorm {
    shape: ConvShape,
    padding: EfficientNetPadding,
    conv: Conv2d,
    norm: BatchNorm,
    activation: Option<EfficientNetActivation>,
}

impl ConvNorm {
    /// `norm` is epsilon, momentum and statistics; `names` are those of convolution and norm.
    pub(super) fn new(
        shape: ConvShape,
        padding: EfficientNetPadding,
        (eps, momentum, statistics): (f64, f64, Statistics),
        activation: Option<EfficientNetActivation>,
        names: &[String; 2],
        vb: &VarBuilder,
    ) -> Result<Self> {
        let ConvShape { inputs, outputs, kernel, groups, .. } = shape;
        let weight = vb.pp(&names[0]).get_with_hints(
            (outputs, inputs / groups, kernel, kernel),
            "weight",
            init::DEFAULT_KAIMING_NORMAL,
        )?;
        let norm = batch_norm(outputs, eps, vb.pp(&names[1]))?.momentum(momentum)?.statistics(statistics);
        Ok(Self { shape, padding, conv: Conv2d::new(weight), norm, activation })
    }

    pub(super) fn forward(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        let ConvShape { kernel, stride, groups, .. } = self.shape;
        let pad = |size: usize| match self.padding {
            EfficientNetPadding::Symmetric => (kernel / 2, kernel / 2),
            EfficientNetPadding::Same => {
                let all = ((size.div_ceil(stride) - 1) * stride + kernel).saturating_sub(size);
                (all / 2, all - all / 2)
            }
        };
        let (a, b) = pad(x.dim(2)?);
        let x = x.pad_with_zeros(2, a, b)?;
        let (a, b) = pad(x.dim(3)?);
        let x = x.pad_with_zeros(3, a, b)?;
        let x = x.conv2d(self.conv.weight(), 0, stride, 1, groups)?;
        let x = self.norm.forward_t(&x, train)?;
        match self.activation {
            Some(activation) => activation.apply(&x),
            None => Ok(x),
        }
    }
}
