//! CLIP (Radford et al., arXiv 2103.00020), with a vision transformer or a ResNet, for contrastive training and as a
//! classifier that starts from zero-shot.
//!
//! ```no_run
//! use candle_core::{DType, Device, Tensor};
//! use candle_nn::{VarBuilder, VarMap};
//! use tpgm_nn::models::clip::{Clip, ClipClassifier, ClipConfig};
//!
//! let config = ClipConfig::from_file("clip/config.json")?;
//! let prompts: Vec<Tensor> = vec![]; // of each class, the token ids of its prompts
//!
//! // The text tower is needed once.
//! let frozen = VarBuilder::from_pth("clip/model.pth", DType::F32, &Device::Cpu)?;
//! let zero_shot = Clip::new(&config, frozen)?.zero_shot(&prompts)?;
//!
//! let vars = VarMap::new(); // made anew; `Params::var_builder` of `tpgm-candle` is over a checkpoint
//! let vb = VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu);
//! let model = ClipClassifier::new(&config, prompts.len(), vb)?;
//! model.start_from(&zero_shot)?;
//! let images = Tensor::zeros((32, 3, 224, 224), DType::F32, &Device::Cpu)?; // normalized as in pre-training
//! let logits = model.forward(&images, true)?;
//! # Ok::<(), tpgm_nn::Error>(())
//! ```
//!
//! With `tpgm-candle` a new head has no anchor. To hold it near zero-shot too, save `zero_shot` as `classifier.weight` into a
//! safetensors file and open both files with `Params::open_all`, without declaring a head.
//!
//! OpenAI's own `.pt` files are TorchScript archives, which cannot be read here: save the model's `state_dict()`, or take
//! the same weights as OpenCLIP publishes them.

mod config;
mod file;
mod image;
mod names;
mod resnet;
mod text;

use candle_core::{D, Result, Tensor, Var};
use candle_nn::{VarBuilder, init};

pub use self::config::{ClipConfig, ClipImageConfig, ClipResNetConfig, ClipTextConfig, ClipVitConfig};
pub use self::image::ClipImage;
pub use self::names::ClipLayout;
pub use self::text::ClipText;
use crate::error::{Error, Result as OurResult};

/// Scales each row to length 1.
fn normalized(x: &Tensor) -> Result<Tensor> {
    x.broadcast_div(&x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?)
}

/// Logits: scaled cosines, given rows of length 1.
fn cosines(images: &Tensor, classes: &Tensor, logit_scale: &Tensor) -> Result<Tensor> {
    images.matmul(&classes.t()?)?.broadcast_mul(&logit_scale.exp()?)
}

/// Both towers.
#[derive(Debug, Clone)]
pub struct Clip {
    image: ClipImage,
    text: ClipText,
    logit_scale: Tensor,
}

impl Clip {
    /// Takes the parameters under the names that `vb` has: see [`ClipLayout`].
    ///
    /// # Errors
    ///
    /// [`Error::ModelConfig`], [`Error::UnknownLayout`], or a parameter that `vb` has not, or not in this shape.
    pub fn new(config: &ClipConfig, vb: VarBuilder) -> OurResult<Self> {
        config.validate()?;
        Self::with_layout(config, ClipLayout::find(&config.image, &vb)?, vb)
    }

    /// Takes the parameters under the names of a given layout, for models that are made anew.
    ///
    /// # Errors
    ///
    /// As [`Clip::new`].
    pub fn with_layout(config: &ClipConfig, layout: ClipLayout, vb: VarBuilder) -> OurResult<Self> {
        Ok(Self {
            image: ClipImage::new(config, layout, vb.clone())?,
            text: ClipText::new(config, layout, vb.clone())?,
            logit_scale: vb.get((), "logit_scale")?,
        })
    }

    /// The image tower.
    pub fn image(&self) -> &ClipImage {
        &self.image
    }

    /// The text tower.
    pub fn text(&self) -> &ClipText {
        &self.text
    }

    /// Logits of shape (images, texts): `exp(logit_scale)` times the cosines of their embeddings. Those of a batch and its
    /// captions have their labels on the diagonal.
    ///
    /// # Errors
    ///
    /// As [`ClipImage::forward`] and [`ClipText::forward`].
    pub fn forward(&self, images: &Tensor, ids: &Tensor, train: bool) -> Result<Tensor> {
        let images = normalized(&self.image.forward(images, train)?)?;
        cosines(&images, &normalized(&self.text.forward(ids)?)?, &self.logit_scale)
    }

    /// The weight of a linear head that classifies as the text tower would, of shape (classes, projection), a constant.
    ///
    /// `prompts` has the token ids of each class, of shape (templates, length): "a photo of a dog.", "a drawing of a dog.". A
    /// row is the mean of their embeddings' directions, scaled to length 1.
    ///
    /// Source: Radford et al., section 3.1.4.
    ///
    /// # Errors
    ///
    /// No class, a class without prompts, or as [`ClipText::forward`].
    pub fn zero_shot(&self, prompts: &[Tensor]) -> Result<Tensor> {
        let row = |(class, ids): (usize, &Tensor)| {
            if ids.elem_count() == 0 {
                candle_core::bail!("class {class} has no prompts")
            }
            normalized(&normalized(&self.text.forward(ids)?)?.mean_keepdim(0)?.detach())
        };
        if prompts.is_empty() {
            candle_core::bail!("there are no classes to make a head for")
        }
        Tensor::cat(&prompts.iter().enumerate().map(row).collect::<Result<Vec<_>>>()?, 0)
    }
}

/// The image tower with a linear head over directions, named `classifier`.
///
/// Logits are `exp(logit_scale)` times the products of an embedding's direction and the rows of `classifier.weight`. With
/// [`Clip::zero_shot`]'s rows they are those of the whole model.
#[derive(Debug, Clone)]
pub struct ClipClassifier {
    image: ClipImage,
    head: Tensor,
    logit_scale: Tensor,
}

impl ClipClassifier {
    /// Takes the image tower's parameters as [`ClipImage::new`] does, `logit_scale`, and `classifier.weight`, which a
    /// checkpoint of CLIP lacks: declare it with `Params::head` of `tpgm-candle`. The text tower is left alone.
    ///
    /// # Errors
    ///
    /// As [`Clip::new`].
    pub fn new(config: &ClipConfig, classes: usize, vb: VarBuilder) -> OurResult<Self> {
        config.validate()?;
        let layout = ClipLayout::find(&config.image, &vb)?;
        let shape = (classes, config.projection_dim);
        Ok(Self {
            image: ClipImage::new(config, layout, vb.clone())?,
            head: vb.get_with_hints(shape, "classifier.weight", init::DEFAULT_KAIMING_NORMAL)?,
            logit_scale: vb.get((), "logit_scale")?,
        })
    }

    /// Puts values into the head, of its shape (classes, projection): [`Clip::zero_shot`].
    ///
    /// # Errors
    ///
    /// [`Error::HeadShape`], or the head is frozen.
    pub fn start_from(&self, weight: &Tensor) -> OurResult<()> {
        if weight.shape() != self.head.shape() {
            return Err(Error::HeadShape {
                tensor: "classifier.weight".to_owned(),
                what: "value",
                expected: self.head.dims().to_vec(),
                got: weight.dims().to_vec(),
            });
        }
        if !self.head.is_variable() {
            return Err(Error::FrozenHead { tensor: "classifier.weight" });
        }
        let weight = weight.to_device(self.head.device())?.to_dtype(self.head.dtype())?;
        // A variable's tensor shares its memory, so this writes into the head.
        Ok(Var::from_tensor(&self.head)?.set(&weight)?)
    }

    /// The directions of the images' embeddings, of shape (batch, projection): what the head sees.
    ///
    /// # Errors
    ///
    /// As [`ClipImage::forward`].
    pub fn features(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        normalized(&self.image.forward(images, train)?)
    }

    /// Logits from features, of shape (batch, classes).
    ///
    /// # Errors
    ///
    /// A wrong shape.
    pub fn classify(&self, features: &Tensor) -> Result<Tensor> {
        cosines(features, &self.head, &self.logit_scale)
    }

    /// Logits, of shape (batch, classes).
    ///
    /// # Errors
    ///
    /// As [`ClipImage::forward`].
    pub fn forward(&self, images: &Tensor, train: bool) -> Result<Tensor> {
        self.classify(&self.features(images, train)?)
    }
}
