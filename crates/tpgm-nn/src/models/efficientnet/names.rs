//! What checkpoints of networks of inverted residual blocks call their tensors.

use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};

use self::EfficientNetLayout as Layout;
use super::{EfficientNetConfig, EfficientNetPadding};
use crate::error::{Error, Result};

/// Whose names a checkpoint has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EfficientNetLayout {
    /// `_conv_stem`, `_blocks.0._depthwise_conv`, `_fc`: the packages `efficientnet_pytorch` and `efficientnet_lite_pytorch`.
    EfficientNetPytorch,
    /// `conv_stem`, `blocks.0.0.conv_dw`, `classifier`.
    Timm,
    /// torchvision's EfficientNet: `features.0.0`, `features.1.0.block.0.0`, `classifier.1`.
    Torchvision,
    /// torchvision's MobileNetV2: `features.0.0`, `features.1.conv.0.0`, `classifier.1`.
    TorchvisionV2,
    /// torchvision's MobileNetV3: `features.0.0`, `features.1.block.0.0`, `classifier.3`.
    TorchvisionV3,
}

/// By these tensors layouts are told apart.
const SIGNS: [(Layout, &str); 5] = [
    (Layout::EfficientNetPytorch, "_conv_stem.weight"),
    (Layout::Timm, "conv_stem.weight"),
    (Layout::Torchvision, "features.1.0.block.0.0.weight"),
    (Layout::TorchvisionV2, "features.1.conv.0.0.weight"),
    (Layout::TorchvisionV3, "features.1.block.0.0.weight"),
];

/// Names of a convolution and its norm, or of two convolutions.
pub(super) type Pair = [String; 2];

/// Names of a block's parts, without those it does not have.
#[derive(Debug)]
pub(super) struct BlockNames {
    pub(super) expand: Pair,
    pub(super) depthwise: Pair,
    pub(super) squeeze: Pair,
    pub(super) project: Pair,
}

/// Where a block is, counted from 0.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// Among all blocks.
    pub(super) index: usize,
    pub(super) stage: usize,
    /// In its stage.
    pub(super) layer: usize,
}

fn pair(prefix: &str, [a, b]: [&str; 2]) -> Pair {
    [format!("{prefix}{a}"), format!("{prefix}{b}")]
}

impl EfficientNetLayout {
    /// The layout of the network that `vb` has.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownLayout`], which lists the tensors that were looked for.
    pub fn find(vb: &VarBuilder) -> Result<Self> {
        let found = SIGNS.iter().find(|(_, tensor)| vb.contains_tensor(tensor));
        found.map(|(layout, _)| *layout).ok_or_else(|| Error::UnknownLayout {
            model: "EfficientNet",
            prefix: vb.prefix(),
            tensors: SIGNS.iter().map(|(_, tensor)| *tensor).collect(),
        })
    }

    /// The head's name: `Params::head` of `tpgm-candle` takes it with `.*` behind it, for another number of classes.
    pub fn head(self) -> &'static str {
        match self {
            Layout::EfficientNetPytorch => "_fc",
            Layout::Timm => "classifier",
            Layout::Torchvision | Layout::TorchvisionV2 => "classifier.1",
            Layout::TorchvisionV3 => "classifier.3",
        }
    }

    /// Refuses shapes that no network of these names has: with the wrong padding or a missing layer the weights are of no use.
    ///
    /// # Errors
    ///
    /// [`Error::ModelConfig`].
    pub(super) fn check(self, config: &EfficientNetConfig) -> Result<()> {
        let bad = |entry, problem: &str| Err(Error::ModelConfig { entry, problem: problem.to_owned() });
        match (self, config.padding) {
            (Layout::EfficientNetPytorch, EfficientNetPadding::Symmetric) => bad(
                "padding",
                "the checkpoint's names (`_conv_stem`) are those of networks with TensorFlow's padding: see \
                 `EfficientNetConfig::tensorflow`",
            ),
            (
                Layout::Torchvision | Layout::TorchvisionV2 | Layout::TorchvisionV3,
                EfficientNetPadding::Same,
            ) => bad(
                "padding",
                "the checkpoint's names (`features.0.0`) are torchvision's, whose networks have symmetric padding: see \
                 `EfficientNetConfig::pytorch`",
            ),
            _ => match (self, config.hidden) {
                (Layout::TorchvisionV3, None) => {
                    bad("hidden", "the checkpoint's names (`features.1.block.0.0`) are those of MobileNetV3")
                }
                (Layout::EfficientNetPytorch | Layout::Torchvision | Layout::TorchvisionV2, Some(_)) => bad(
                    "hidden",
                    "MobileNetV3 has a hidden layer, and the checkpoint's names are those of a network without",
                ),
                (Layout::TorchvisionV2, None)
                    if config.stages.iter().flatten().any(|block| block.squeezed.is_some()) =>
                {
                    bad(
                        "stages",
                        "a block has `squeezed`, and the checkpoint's names are those of MobileNetV2",
                    )
                }
                _ => Ok(()),
            },
        }
    }

    /// The first convolution.
    pub(super) fn stem(self) -> Pair {
        match self {
            Layout::EfficientNetPytorch => pair("_", ["conv_stem", "bn0"]),
            Layout::Timm => pair("", ["conv_stem", "bn1"]),
            Layout::Torchvision | Layout::TorchvisionV2 | Layout::TorchvisionV3 => {
                pair("features.0.", ["0", "1"])
            }
        }
    }

    /// The last convolution of a network of this shape.
    pub(super) fn last(self, config: &EfficientNetConfig) -> Pair {
        let stages = config.stages.len();
        let blocks: usize = config.stages.iter().map(Vec::len).sum();
        match self {
            Layout::EfficientNetPytorch => pair("_", ["conv_head", "bn1"]),
            // MobileNetV3's is a stage to timm.
            Layout::Timm if config.hidden.is_some() => pair(&format!("blocks.{stages}.0."), ["conv", "bn1"]),
            Layout::Timm => pair("", ["conv_head", "bn2"]),
            Layout::Torchvision => pair(&format!("features.{}.", stages + 1), ["0", "1"]),
            Layout::TorchvisionV2 | Layout::TorchvisionV3 => {
                pair(&format!("features.{}.", blocks + 1), ["0", "1"])
            }
        }
    }

    /// The hidden layer, and whether its weight is that of a convolution of one.
    pub(super) fn hidden(self) -> (&'static str, bool) {
        match self {
            Layout::Timm => ("conv_head", true),
            _ => ("classifier.0", false),
        }
    }

    /// A block that has a convolution to expand, or not, and a squeeze-and-excitation, or not.
    pub(super) fn block(self, place: Place, expands: bool, squeezes: bool) -> BlockNames {
        let Place { index, stage, layer } = place;
        match self {
            Layout::EfficientNetPytorch => {
                let names = |names| pair(&format!("_blocks.{index}._"), names);
                BlockNames {
                    expand: names(["expand_conv", "bn0"]),
                    depthwise: names(["depthwise_conv", "bn1"]),
                    squeeze: names(["se_reduce", "se_expand"]),
                    project: names(["project_conv", "bn2"]),
                }
            }
            Layout::Timm => {
                let names = |names| pair(&format!("blocks.{stage}.{layer}."), names);
                let [depthwise, project] = match expands {
                    true => [["conv_dw", "bn2"], ["conv_pwl", "bn3"]],
                    false => [["conv_dw", "bn1"], ["conv_pw", "bn2"]],
                };
                BlockNames {
                    expand: names(["conv_pw", "bn1"]),
                    depthwise: names(depthwise),
                    squeeze: names(["se.conv_reduce", "se.conv_expand"]),
                    project: names(project),
                }
            }
            Layout::TorchvisionV2 => {
                // Its last convolution and norm are not one module.
                let depthwise = usize::from(expands);
                let part = |i: usize| format!("features.{}.conv.{i}", index + 1);
                BlockNames {
                    expand: pair(&part(0), [".0", ".1"]),
                    depthwise: pair(&part(depthwise), [".0", ".1"]),
                    squeeze: Default::default(),
                    project: [part(depthwise + 1), part(depthwise + 2)],
                }
            }
            Layout::Torchvision | Layout::TorchvisionV3 => {
                let depthwise = usize::from(expands);
                let block = match self {
                    Layout::Torchvision => format!("features.{}.{layer}.block", stage + 1),
                    _ => format!("features.{}.block", index + 1),
                };
                let part = |i: usize, names| pair(&format!("{block}.{i}."), names);
                BlockNames {
                    expand: part(0, ["0", "1"]),
                    depthwise: part(depthwise, ["0", "1"]),
                    squeeze: part(depthwise + 1, ["fc1", "fc2"]),
                    project: part(depthwise + 1 + usize::from(squeezes), ["0", "1"]),
                }
            }
        }
    }
}
