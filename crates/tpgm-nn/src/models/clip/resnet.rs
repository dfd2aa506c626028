//! CLIP's ResNet (Radford et al., arXiv 2103.00020, section 2.4): three convolutions as a stem, halving by averages (Zhang,
//! arXiv 1904.11486), and an attention instead of the mean over the image.

use candle_core::{Module, ModuleT, Result, Tensor};
use candle_nn::VarBuilder;

use super::ClipResNetConfig;
use crate::error::Result as OurResult;
use crate::layers::{ConvActivation, ConvBlock, Linear, Shortcut, attend, linear};
use crate::models::hook::Hook;
use crate::models::residual::{Stages, conv_norm};

#[derive(Debug, Clone)]
pub(super) struct ClipResNet {
    stem: ConvBlock,
    stages: Stages,
    pool: AttentionPool,
    channels: usize,
    image: usize,
}

impl ClipResNet {
    pub(super) fn new(config: &ClipResNetConfig, outputs: usize, vb: &VarBuilder) -> OurResult<Self> {
        let &ClipResNetConfig { width, channels, image_size, statistics, .. } = config;
        let half = width / 2;
        let stages = config.stages();
        let conv = |channels, stride, names| {
            conv_norm(channels, (3, stride), statistics, ConvActivation::Relu, names, vb)
        };
        let stem = vec![
            conv((channels, half), 2, ["conv1", "bn1"])?,
            conv((half, half), 1, ["conv2", "bn2"])?,
            conv((half, width), 1, ["conv3", "bn3"])?,
        ];
        Ok(Self {
            stem: ConvBlock::new(stem, Shortcut::None),
            stages: Stages::new(&stages, vb)?,
            pool: AttentionPool::new(
                (image_size / 32).pow(2),
                stages.outputs(),
                config.heads,
                outputs,
                &vb.pp("attnpool"),
            )?,
            channels,
            image: image_size,
        })
    }

    pub(super) fn forward(&self, images: &Tensor, train: bool, hook: &mut Hook<'_>) -> Result<Tensor> {
        let &Self { channels, image, .. } = self;
        if images.rank() != 4 || images.dims()[1..] != [channels, image, image] {
            let shape = images.dims();
            candle_core::bail!(
                "images of shape {shape:?}: the model takes (batch, {channels}, {image}, {image})"
            )
        }
        let x = self.stem.forward_t(images, train)?;
        self.pool.forward(&self.stages.forward(&x.avg_pool2d(2)?, train, Some(hook))?)
    }
}

/// The mean over the image asks all positions, by an attention.
#[derive(Debug, Clone)]
struct AttentionPool {
    positions: Tensor,
    query: Linear,
    key: Linear,
    value: Linear,
    heads: usize,
    output: Linear,
}

impl AttentionPool {
    fn new(positions: usize, size: usize, heads: usize, outputs: usize, vb: &VarBuilder) -> OurResult<Self> {
        Ok(Self {
            positions: vb.get((positions + 1, size), "positional_embedding")?,
            query: linear(size, size, vb.pp("q_proj"))?,
            key: linear(size, size, vb.pp("k_proj"))?,
            value: linear(size, size, vb.pp("v_proj"))?,
            heads,
            output: linear(size, outputs, vb.pp("c_proj"))?,
        })
    }

    /// From (batch, size, height, width) to (batch, outputs).
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let x = x.flatten_from(2)?.transpose(1, 2)?.contiguous()?;
        let x = Tensor::cat(&[&x.mean_keepdim(1)?, &x], 1)?.broadcast_add(&self.positions)?;
        let query = self.query.forward(&x.narrow(1, 0, 1)?)?;
        let (key, value) = (self.key.forward(&x)?, self.value.forward(&x)?);
        let mixed = attend([&query, &key, &value], self.heads)?;
        self.output.forward(&mixed.squeeze(1)?)
    }
}
