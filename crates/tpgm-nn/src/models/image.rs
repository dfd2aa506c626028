//! The transformer over the patches of an image that ViT and CLIP's image tower have in common.

use candle_core::{Module, ModuleT, Result, Shape, Tensor};
use candle_nn::VarBuilder;

use super::attention::check_heads;
use super::block::{Block, BlockNames, BlockShape};
use crate::error::{Error, Result as OurResult};
use crate::layers::{Dropout, DropoutRng, LayerNorm, Linear, layer_norm};

/// What a checkpoint calls the parts, and what parts it has.
#[derive(Debug, Clone, Copy)]
pub(super) struct ImageNames {
    pub(super) patches: &'static str,
    pub(super) patch_bias: bool,
    pub(super) class_token: &'static str,
    pub(super) positions: &'static str,
    /// Whether class token and positions have leading dimensions of one: (1, 1, size) and (1, tokens, size).
    pub(super) batched: bool,
    /// A norm in front of the blocks.
    pub(super) first_norm: Option<&'static str>,
    pub(super) blocks: &'static str,
    pub(super) block: BlockNames,
    pub(super) last_norm: &'static str,
}

/// Sizes and options.
#[derive(Debug, Clone, Copy)]
pub(super) struct ImageShape {
    pub(super) block: BlockShape,
    pub(super) blocks: usize,
    /// Side of an image in pixels.
    pub(super) image: usize,
    /// Side of a patch in pixels.
    pub(super) patch: usize,
    pub(super) channels: usize,
}

impl ImageShape {
    fn side(&self) -> usize {
        self.image / self.patch
    }

    /// Patches and the class token.
    fn tokens(&self) -> usize {
        self.side() * self.side() + 1
    }

    pub(super) fn validate(&self) -> OurResult<()> {
        check_heads("hidden_size", self.block.size, self.block.heads)?;
        if self.patch == 0 || self.image == 0 || !self.image.is_multiple_of(self.patch) {
            let problem = format!("{} pixels do not divide into patches of {}", self.image, self.patch);
            return Err(Error::ModelConfig { entry: "image_size", problem });
        }
        if self.channels == 0 {
            let problem = "0 channels make no image".to_owned();
            return Err(Error::ModelConfig { entry: "num_channels", problem });
        }
        Ok(())
    }
}

#[derive(Debug, Clone)]
pub(super) struct ImageTransformer {
    shape: ImageShape,
    patch_weight: Tensor,
    patch_bias: Option<Tensor>,
    class_token: Tensor,
    positions: Tensor,
    dropout: Dropout,
    first_norm: Option<LayerNorm>,
    blocks: Vec<Block>,
    last_norm: LayerNorm,
}

impl ImageTransformer {
    pub(super) fn new(
        shape: &ImageShape,
        names: &ImageNames,
        dropout: &DropoutRng,
        vb: &VarBuilder,
    ) -> OurResult<Self> {
        shape.validate()?;
        let &ImageShape { patch, channels, block: BlockShape { size, eps, .. }, .. } = shape;
        let norm = |name: &str| layer_norm(size, eps, vb.pp(name));
        let leading = |dims: &[usize]| match names.batched {
            true => Shape::from([vec![1; 3 - dims.len()], dims.to_vec()].concat()),
            false => Shape::from(dims),
        };
        let patches = vb.pp(names.patches);
        Ok(Self {
            shape: *shape,
            patch_weight: patches.get((size, channels, patch, patch), "weight")?,
            patch_bias: names.patch_bias.then(|| patches.get(size, "bias")).transpose()?,
            class_token: vb.get(leading(&[size]), names.class_token)?,
            positions: vb.get(leading(&[shape.tokens(), size]), names.positions)?,
            dropout: Dropout::new(shape.block.dropout, dropout)?,
            first_norm: names.first_norm.map(norm).transpose()?,
            blocks: (0..shape.blocks)
                .map(|i| Block::new(&shape.block, &names.block, dropout, &vb.pp(names.blocks).pp(i)))
                .collect::<OurResult<_>>()?,
            last_norm: norm(names.last_norm)?,
        })
    }

    /// Token vectors after the last norm, of shape (batch, 1 + patches, size), the class token first.
    pub(super) fn tokens(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        self.last_norm.forward(&self.encode(images, train)?)
    }

    /// The class token after the last norm, of shape (batch, size).
    pub(super) fn class_token(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        self.last_norm.forward(&self.encode(images, train)?.narrow(1, 0, 1)?.squeeze(1)?)
    }

    fn encode(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        let patches = self.patches(images)?;
        let (batch, _, size) = patches.dims3()?;
        let class_token = self.class_token.reshape((1, 1, size))?.broadcast_as((batch, 1, size))?;
        let positions = self.positions.reshape((1, (), size))?;
        let x = Tensor::cat(&[&class_token, &patches], 1)?.broadcast_add(&positions)?;
        let mut x = self.dropout.forward_t(&x, train)?;
        if let Some(norm) = &self.first_norm {
            x = norm.forward(&x)?;
        }
        for block in &self.blocks {
            x = block.forward(&x, None, train)?;
        }
        Ok(x)
    }

    /// The convolution over patches side by side, as one matrix product; (batch, patches, size).
    fn patches(&self, images: &Tensor) -> Result<Tensor> {
        let &ImageShape { image, patch, channels, .. } = &self.shape;
        let side = self.shape.side();
        let batch = match *images.dims() {
            [batch, c, h, w] if (c, h, w) == (channels, image, image) => batch,
            _ => candle_core::bail!(
                "images of shape {:?}: the model takes (batch, {channels}, {image}, {image})",
                images.dims()
            ),
        };
        let pixels = images
            .reshape(vec![batch, channels, side, patch, side, patch])?
            .permute(vec![0, 2, 4, 1, 3, 5])?
            .reshape((batch, side * side, channels * patch * patch))?;
        let weight = self.patch_weight.reshape(((), channels * patch * patch))?;
        Linear::new(weight, self.patch_bias.clone()).forward(&pixels)
    }
}
