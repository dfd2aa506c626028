//! CLIP's image tower.

use candle_core::{Module, Result, Tensor};
use candle_nn::VarBuilder;

use super::names::projection;
use super::resnet::ClipResNet;
use super::{ClipConfig, ClipImageConfig, ClipLayout};
use crate::error::{Error, Result as OurResult};
use crate::layers::{DropoutRng, Linear};
use crate::models::hook::untouched;
use crate::models::image::ImageTransformer;

/// The image tower: an embedding per image.
#[derive(Debug, Clone)]
pub struct ClipImage {
    tower: Tower,
}

#[derive(Debug, Clone)]
enum Tower {
    Vit { transformer: ImageTransformer, projection: Linear },
    ResNet(ClipResNet),
}

impl ClipImage {
    /// Takes `vision_model.*` and `visual_projection` (Hugging Face) or `visual.*` (OpenAI).
    ///
    /// # Errors
    ///
    /// [`Error::ModelConfig`], or a parameter that `vb` has not, or not in this shape.
    pub fn new(config: &ClipConfig, layout: ClipLayout, vb: VarBuilder) -> OurResult<Self> {
        config.validate()?;
        let outputs = config.projection_dim;
        let tower = match (&config.image, layout) {
            (ClipImageConfig::Vit(vit), _) => {
                let (shape, inner) = (vit.shape(), vb.pp(layout.image_prefix()));
                let (names, widths) = (layout.image(), (vit.hidden_size, outputs));
                Tower::Vit {
                    transformer: ImageTransformer::new(&shape, names, &DropoutRng::new(0), &inner)?,
                    projection: projection(layout, ["visual_projection", "visual.proj"], widths, &vb)?,
                }
            }
            (ClipImageConfig::ResNet(resnet), ClipLayout::OpenAi) => {
                Tower::ResNet(ClipResNet::new(resnet, outputs, &vb.pp(layout.image_prefix()))?)
            }
            (ClipImageConfig::ResNet(_), ClipLayout::HuggingFace) => {
                let problem = "there are no names of Hugging Face for a ResNet".to_owned();
                return Err(Error::ModelConfig { entry: "image", problem });
            }
        };
        Ok(Self { tower })
    }

    /// Embeddings of shape (batch, projection), not normalized, for images of shape (batch, channels, height, width). `train`
    /// matters to a ResNet's batch norms.
    ///
    /// # Errors
    ///
    /// Images of another size than the model's, or as [`BatchNorm`](crate::BatchNorm) while training.
    pub fn forward(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        self.forward_with(images, train, untouched)
    }

    /// [`ClipImage::forward`] with a hook: see [hidden states](crate::models#hidden-states). Hidden states of a transformer
    /// have the shape (batch, tokens, hidden size), those of a ResNet (batch, channels, height, width).
    ///
    /// # Errors
    ///
    /// As [`ClipImage::forward`], what the hook returns, or a hook that changes more than the number of tokens of a transformer.
    pub fn forward_with(
        &self,
        images: &Tensor,
        train: bool,
        mut hook: impl FnMut(usize, Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        match &self.tower {
            Tower::Vit { transformer, projection } => {
                projection.forward(&transformer.class_token(images, train, &mut hook)?)
            }
            Tower::ResNet(resnet) => resnet.forward(images, train, &mut hook),
        }
    }
}
