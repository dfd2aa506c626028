//! The transformer over the patches of an image that ViT and CLIP's image tower have in common.

use candle_core::{Module, ModuleT, Result, Shape, Tensor};
use candle_nn::VarBuilder;

use super::attention::{Place, check_heads};
use super::block::{BlockNames, BlockParts, BlockShape, block};
use super::config::{check_sizes, full_name};
use super::hook::{Hook, tapped};
use super::transformer::Transformer;
use crate::error::{Error, Result as OurResult};
use crate::layers::{Dropout, DropoutRng, LayerNorm, Linear, layer_norm};

/// What a checkpoint calls the parts, and what parts it has.
#[derive(Debug, Clone, Copy)]
pub(super) struct ImageNames {
    pub(super) patches: &'static str,
    pub(super) patch_bias: bool,
    pub(super) class_token: &'static str,
    /// What register tokens may be called; in a model made anew, the first.
    pub(super) registers: &'static [&'static str],
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
    /// Register tokens; 0 for as many as the checkpoint has.
    pub(super) registers: usize,
}

impl ImageShape {
    fn side(&self) -> usize {
        self.image / self.patch
    }

    fn patches(&self) -> usize {
        self.side() * self.side()
    }

    pub(super) fn validate(&self) -> OurResult<()> {
        check_heads("hidden_size", self.block.size, self.block.heads)?;
        check_sizes(&[
            ("hidden_size", self.block.size),
            ("intermediate_size", self.block.inner),
            ("num_hidden_layers", self.blocks),
            ("num_channels", self.channels),
            ("num_register_tokens", self.registers),
            ("image_size", self.image),
        ])?;
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
    /// Of shape (1, count, size) (Darcet et al., arXiv 2309.16588).
    registers: Option<Tensor>,
    positions: Tensor,
    dropout: Dropout,
    first_norm: Option<LayerNorm>,
    blocks: Vec<Transformer>,
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
        let registers = registers(shape, names, vb)?;
        let count = registers.as_ref().map_or(Ok(0), |registers| registers.dim(1))?;
        let blocks = vb.pp(names.blocks);
        let parts = BlockParts::find(&shape.block, &names.block, &blocks.pp(0))?;
        Ok(Self {
            shape: *shape,
            patch_weight: patches.get((size, channels, patch, patch), "weight")?,
            patch_bias: names.patch_bias.then(|| patches.get(size, "bias")).transpose()?,
            class_token: vb.get(leading(&[size]), names.class_token)?,
            registers,
            positions: positions(shape.patches(), count, names, |rows| {
                vb.get(leading(&[rows, size]), names.positions)
            })?,
            dropout: Dropout::new(shape.block.dropout, dropout)?,
            first_norm: names.first_norm.map(norm).transpose()?,
            blocks: (0..shape.blocks)
                .map(|i| block(&shape.block, &names.block, &parts, dropout, &blocks.pp(i)))
                .collect::<OurResult<_>>()?,
            last_norm: norm(names.last_norm)?,
        })
    }

    /// Token vectors after the last norm, of shape (batch, 1 + registers + patches, size), in this order.
    pub(super) fn tokens(&self, images: &Tensor, train: bool, hook: &mut Hook<'_>) -> Result<Tensor> {
        self.last_norm.forward(&self.encode(images, train, hook)?)
    }

    /// The class token after the last norm, of shape (batch, size).
    pub(super) fn class_token(&self, images: &Tensor, train: bool, hook: &mut Hook<'_>) -> Result<Tensor> {
        self.last_norm.forward(&self.encode(images, train, hook)?.narrow(1, 0, 1)?.squeeze(1)?)
    }

    fn encode(&self, images: &Tensor, train: bool, hook: &mut Hook<'_>) -> Result<Tensor> {
        let patches = self.patches(images)?;
        let (batch, count, size) = patches.dims3()?;
        let class_token = self.class_token.reshape((1, 1, size))?;
        let first = match &self.registers {
            Some(registers) => Tensor::cat(&[&class_token, registers], 1)?,
            None => class_token,
        };
        let positions = self.positions.reshape((1, (), size))?;
        // Those of the patches are the last; of what is in front of them all, none or the class token have one.
        let (all, placed) = (first.dim(1)?, positions.dim(1)? - count);
        let together = |first: &Tensor, patches: &Tensor| {
            Tensor::cat(&[&first.broadcast_as((batch, all, size))?, patches], 1)
        };
        let x = if placed == all {
            together(&first, &patches)?.broadcast_add(&positions)?
        } else {
            let patches = patches.broadcast_add(&positions.narrow(1, placed, count)?)?;
            if placed == 0 {
                together(&first, &patches)?
            } else {
                let front = (first.narrow(1, 0, placed)? + positions.narrow(1, 0, placed)?)?;
                let rest = first.narrow(1, placed, all - placed)?;
                together(&Tensor::cat(&[&front, &rest], 1)?, &patches)?
            }
        };
        let mut x = self.dropout.forward_t(&x, train)?;
        if let Some(norm) = &self.first_norm {
            x = norm.forward(&x)?;
        }
        for (i, block) in self.blocks.iter().enumerate() {
            x = block.forward(&tapped(hook, i, x)?, Place::default(), train)?;
        }
        tapped(hook, self.blocks.len(), x)
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

/// The register tokens: as many as the shape says, or else as many as the checkpoint has.
fn registers(shape: &ImageShape, names: &ImageNames, vb: &VarBuilder) -> OurResult<Option<Tensor>> {
    let size = shape.block.size;
    let found = names.registers.iter().copied().find(|name| vb.contains_tensor(name));
    let Some(name) = found.or(names.registers.first().copied().filter(|_| shape.registers > 0)) else {
        return Ok(None);
    };
    if shape.registers > 0 {
        return Ok(Some(vb.get((1, shape.registers, size), name)?));
    }
    let registers = vb.get_unchecked_dtype(name, vb.dtype())?;
    match *registers.dims() {
        [1, count, width] if count > 0 && width == size => Ok(Some(registers)),
        _ => {
            let problem = format!("with shape {:?}, where [1, count, {size}] is needed", registers.dims());
            Err(Error::ModelTensor { tensor: full_name(vb, name), problem })
        }
    }
}

/// The table of positions, whose length says what has one: class token and patches, or, where there can be registers, patches
/// alone (timm's `no_embed_class`) or all tokens.
fn positions(
    patches: usize,
    registers: usize,
    names: &ImageNames,
    get: impl Fn(usize) -> Result<Tensor>,
) -> OurResult<Tensor> {
    let usual = match get(patches + 1) {
        Err(error) if !names.registers.is_empty() => error,
        usual => return Ok(usual?),
    };
    let others = [patches, patches + 1 + registers];
    Ok(others.into_iter().find_map(|rows| get(rows).ok()).ok_or(usual)?)
}
