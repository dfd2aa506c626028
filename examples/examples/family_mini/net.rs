//! The pair of towers: CLIP in miniature.

use candle_core::{D, DType, Device, Result, Tensor};
use candle_nn::VarBuilder;
use tpgm_candle::models::Activation;
use tpgm_candle::models::clip::{
    ClipConfig, ClipImage, ClipImageConfig, ClipLayout, ClipText, ClipTextConfig, ClipVitConfig,
};
use tpgm_examples::mini::SIDE;
use tpgm_examples::mini::data::{BYTES, END, Images, LONGEST, VOCABULARY};

/// Width of both towers and of the space that they share.
pub(crate) const WIDTH: usize = 64;
/// Blocks of the image tower.
pub(crate) const BLOCKS: usize = 4;
/// Side of a patch in pixels: 16 patches an image.
pub(crate) const PATCH: usize = 8;
/// The parameter of a trained head.
pub(crate) const HEAD: &str = "classifier.weight";

/// The shape of the towers.
pub(crate) fn config() -> ClipConfig {
    let (intermediate_size, num_attention_heads) = (3 * WIDTH, 4);
    let text = ClipTextConfig {
        vocab_size: VOCABULARY,
        hidden_size: WIDTH,
        intermediate_size,
        num_hidden_layers: 2,
        num_attention_heads,
        max_position_embeddings: LONGEST,
        hidden_act: Activation::QuickGelu,
        eos_token_id: END,
        ..ClipTextConfig::default()
    };
    let image = ClipVitConfig {
        hidden_size: WIDTH,
        intermediate_size,
        num_hidden_layers: BLOCKS,
        num_attention_heads,
        image_size: SIDE,
        patch_size: PATCH,
        hidden_act: Activation::QuickGelu,
        ..ClipVitConfig::default()
    };
    ClipConfig { projection_dim: WIDTH, text, image: ClipImageConfig::Vit(image) }
}

/// Both towers.
pub(crate) struct Pair {
    pub(crate) image: ClipImage,
    pub(crate) text: ClipText,
    log_scale: Tensor,
    /// Projections of images and of texts, of shape (width, features): what CaRot's penalties are of.
    pub(crate) projections: [Tensor; 2],
}

impl Pair {
    /// Asks `vb` for every tensor.
    pub(crate) fn new(vb: VarBuilder) -> anyhow::Result<Self> {
        let (config, layout) = (config(), ClipLayout::HuggingFace);
        let projection = |name: &str| vb.get((WIDTH, WIDTH), name)?.t();
        Ok(Self {
            image: ClipImage::new(&config, layout, vb.clone())?,
            text: ClipText::new(&config, layout, vb.clone())?,
            log_scale: vb.get((), "logit_scale")?,
            projections: [projection("visual_projection.weight")?, projection("text_projection.weight")?],
        })
    }

    /// Directions of images, of shape (images, features).
    pub(crate) fn images(&self, images: &Tensor) -> Result<Tensor> {
        unit(&self.image.forward(images, true)?)
    }

    /// Directions of texts, from token ids of shape (texts, length).
    pub(crate) fn texts(&self, ids: &Tensor) -> Result<Tensor> {
        unit(&self.text.forward(ids)?)
    }

    /// What cosines are multiplied by.
    pub(crate) fn scale(&self) -> Result<Tensor> {
        self.log_scale.exp()
    }
}

/// Rows of length 1.
pub(crate) fn unit(x: &Tensor) -> Result<Tensor> {
    x.broadcast_div(&x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?)
}

/// Images as the tower takes them: (images, 3, side, side), values about -2 to 2.
pub(crate) fn pixels(images: &Images, positions: impl Iterator<Item = usize>) -> Result<Tensor> {
    let mut values = Vec::new();
    for position in positions {
        values.extend(images.image(position).iter().map(|byte| f32::from(*byte) / 64.0 - 2.0));
    }
    let count = values.len() / BYTES;
    Tensor::from_vec(values, (count, SIDE, SIDE, 3), &Device::Cpu)?.permute((0, 3, 1, 2))?.contiguous()
}

/// Token ids of texts of one length, of shape (texts, length).
pub(crate) fn ids(texts: &[Vec<u32>]) -> Result<Tensor> {
    let length = texts.first().map_or(0, Vec::len);
    Tensor::from_vec(texts.concat(), (texts.len(), length), &Device::Cpu)?.to_dtype(DType::U32)
}
