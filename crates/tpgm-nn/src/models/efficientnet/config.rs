//! The shapes of networks of inverted residual blocks.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::timm;
use crate::error::{Error, Result};
use crate::layers::Statistics;
use crate::models::config::{Kind, check_sizes, in_file};

/// The shape of a network. The usual ones have presets: [`EfficientNetConfig::lite0`] and others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EfficientNetConfig {
    /// Channels of an image.
    pub channels: usize,
    /// Channels behind the first convolution.
    pub stem: usize,
    /// The blocks of each stage. Only names depend on where a stage begins.
    pub stages: Vec<Vec<InvertedResidual>>,
    /// Channels behind the last convolution.
    pub last: usize,
    /// Width of a linear layer between the mean over the image and the head: MobileNetV3's.
    pub hidden: Option<usize>,
    /// Activation behind the first and the last convolution, and behind the hidden layer.
    pub activation: EfficientNetActivation,
    /// What closes a squeeze-and-excitation.
    pub gate: EfficientNetGate,
    /// What lies around an image.
    pub padding: EfficientNetPadding,
    /// Epsilon of the batch norms, above 0.
    pub norm_eps: f64,
    /// Share of a batch in the running statistics, in `[0, 1]`.
    pub norm_momentum: f64,
    /// What batch norms normalize with while training.
    pub statistics: Statistics,
    /// Probability of dropout in front of the head, in `[0, 1)`.
    pub dropout: f64,
    /// Probability that the last block is skipped for an image, in `[0, 1)`; it grows from 0 at the first block in equal steps
    /// (stochastic depth, Huang et al., arXiv 1603.09382). Blocks whose input is not added to their result are never skipped.
    pub drop_connect: f64,
}

/// A block: a convolution of one that widens, one for each channel alone, squeeze-and-excitation, and a convolution of one that
/// narrows. Where stride is 1 and channels stay, the input is added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct InvertedResidual {
    /// Channels inside. The first convolution is left out where these are the input's.
    pub expanded: usize,
    /// Side of the window; odd.
    pub kernel: usize,
    /// Distance of windows.
    pub stride: usize,
    /// Channels of the result.
    pub outputs: usize,
    /// Channels inside the squeeze-and-excitation, if there is one.
    pub squeezed: Option<usize>,
    /// Activation behind the first two convolutions.
    pub activation: EfficientNetActivation,
}

/// An activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EfficientNetActivation {
    /// Rectified linear: the early blocks of MobileNetV3.
    Relu,
    /// The same, at most 6: EfficientNet-Lite and MobileNetV2.
    Relu6,
    /// `x sigmoid(x)`: EfficientNet.
    Silu,
    /// `x relu6(x + 3) / 6`: MobileNetV3.
    HardSwish,
}

/// What closes a squeeze-and-excitation: the factors of the channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EfficientNetGate {
    /// The logistic function, behind the block's own activation: EfficientNet.
    Sigmoid,
    /// `relu6(x + 3) / 6`, behind a rectified linear unit: MobileNetV3.
    HardSigmoid,
}

/// What lies around an image: zeros, on which sides? Weights are trained with one of the two, and are worse with the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EfficientNetPadding {
    /// TensorFlow's `SAME`: as many as the result needs to have the image's size divided by the stride, rounded up; half of
    /// them before it, rounded down, and the others behind.
    Same,
    /// PyTorch's: half a window on all sides.
    Symmetric,
}

const KIND: Kind = Kind {
    what: "the configuration of an EfficientNet or MobileNet",
    types: &[],
    entries: &["architecture", "stem", "stages", "last"],
};

impl EfficientNetConfig {
    /// As networks are trained in TensorFlow: padding `SAME`, epsilon 1e-3, momentum 0.01. timm's weights whose names begin with
    /// `tf_`, and those of the packages `efficientnet_pytorch` and `efficientnet_lite_pytorch`.
    #[must_use]
    pub fn tensorflow(self) -> Self {
        Self { padding: EfficientNetPadding::Same, norm_eps: 1e-3, norm_momentum: 0.01, ..self }
    }

    /// As networks are trained in PyTorch: symmetric padding, epsilon 1e-5, momentum 0.1. torchvision's weights, but for
    /// MobileNetV3, and all others of timm.
    #[must_use]
    pub fn pytorch(self) -> Self {
        Self { padding: EfficientNetPadding::Symmetric, norm_eps: 1e-5, norm_momentum: 0.1, ..self }
    }

    /// Keeps the running statistics of the pre-training, or not: see [`Statistics`].
    #[must_use]
    pub fn statistics(self, statistics: Statistics) -> Self {
        Self { statistics, ..self }
    }

    /// Numbers per image that the head sees.
    pub fn features(&self) -> usize {
        self.hidden.unwrap_or(self.last)
    }

    /// Reads a file with the entries of this type, all of them, where unknown entries are ignored; or timm's `config.json`,
    /// whose `architecture` is `efficientnet_lite0` to `efficientnet_lite4`, `efficientnet_b0`, `mobilenetv2_100`,
    /// `mobilenetv3_small_100` or `mobilenetv3_large_100`, for all but V2 also with `tf_` in front.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::BadFile`], [`Error::ModelType`] for other models, among them those of Hugging Face, which have
    /// other names, or [`Error::ModelConfig`].
    pub fn from_file(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let entries = KIND.read(path)?;
        let config = match entries.get("architecture") {
            Some(architecture) => {
                let name = architecture.as_str().unwrap_or_default();
                in_file(path, timm::read(name, &entries))?.ok_or_else(|| Error::ModelType {
                    path: path.to_owned(),
                    entry: "architecture",
                    value: architecture.as_str().map_or_else(|| architecture.to_string(), str::to_owned),
                    what: KIND.what,
                    supported: timm::SUPPORTED.to_vec(),
                })?
            }
            None => serde_json::from_value(Value::Object(entries))
                .map_err(|problem| Error::file(path, KIND.what, problem))?,
        };
        in_file(path, config.validate())?;
        Ok(config)
    }

    /// Checks that the numbers make a model.
    ///
    /// # Errors
    ///
    /// [`Error::ModelConfig`].
    pub fn validate(&self) -> Result<()> {
        let bad = |entry, problem: String| Err(Error::ModelConfig { entry, problem });
        let sizes = [
            ("channels", self.channels),
            ("stem", self.stem),
            ("last", self.last),
            ("hidden", self.hidden.unwrap_or(1)),
        ];
        if let Some((entry, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return bad(entry, "must be at least 1".to_owned());
        }
        check_sizes(&sizes)?;
        if self.stages.is_empty() || self.stages.iter().any(Vec::is_empty) {
            return bad("stages", "there must be stages, each with blocks".to_owned());
        }
        for (stage, blocks) in self.stages.iter().enumerate() {
            for (layer, block) in blocks.iter().enumerate() {
                if let Err(problem) = block.validate() {
                    return bad("stages", format!("stage {stage}, block {layer}: {problem}"));
                }
            }
        }
        if !(self.norm_eps > 0.0 && self.norm_eps.is_finite()) {
            return bad("norm_eps", format!("{} is no number above 0", self.norm_eps));
        }
        if !(0.0..=1.0).contains(&self.norm_momentum) {
            return bad("norm_momentum", format!("{} is not in [0, 1]", self.norm_momentum));
        }
        for (entry, probability) in [("dropout", self.dropout), ("drop_connect", self.drop_connect)] {
            if !(0.0..1.0).contains(&probability) {
                return bad(entry, format!("{probability} is not in [0, 1)"));
            }
        }
        Ok(())
    }
}

impl InvertedResidual {
    fn validate(&self) -> Result<(), String> {
        let sizes = [
            ("expanded", self.expanded),
            ("kernel", self.kernel),
            ("stride", self.stride),
            ("outputs", self.outputs),
            ("squeezed", self.squeezed.unwrap_or(1)),
        ];
        if let Some((entry, _)) = sizes.iter().find(|(_, size)| *size == 0) {
            return Err(format!("`{entry}` must be at least 1"));
        }
        if self.kernel.is_multiple_of(2) {
            return Err(format!("`kernel` is {}, but must be odd", self.kernel));
        }
        check_sizes(&sizes).map_err(|error| match error {
            Error::ModelConfig { entry, problem } => format!("`{entry}`: {problem}"),
            other => other.to_string(),
        })
    }
}
