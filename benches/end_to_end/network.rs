//! What is trained, and on what.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;

use anyhow::Result;
use candle_core::{DType, Device, Module, Tensor};
use candle_nn::{VarBuilder, VarMap};
use clap::ValueEnum;
use tempfile::TempDir;
use tpgm_candle::models::bert::{BertClassifier, BertConfig, BertInput, Pooling};
use tpgm_candle::models::efficientnet::{EfficientNetClassifier, EfficientNetConfig, EfficientNetLayout};
use tpgm_candle::models::resnet::{ResNetClassifier, ResNetConfig};
use tpgm_candle::models::vit::{Vit, VitConfig, VitLayout};
use tpgm_candle::nn::{DropoutRng, Statistics, cross_entropy, linear};
use tpgm_examples::mini::{Backbone, HEAD, SIDE, STRIDE, TOKENS as PATCHES, WINDOW};

// The same numbers as in torch_networks.py.
/// Texts of a batch, and their length in tokens.
const TEXTS: usize = 32;
const TOKENS: usize = 64;
/// Classes of texts.
const TOPICS: usize = 10;
/// Images of a batch; of those with 224 pixels a side.
const IMAGES: usize = 32;
const LARGE_IMAGES: usize = 8;
/// Side of EfficientNet-Lite0's images in pixels, and of the large ones.
const MIDDLE: usize = 96;
const LARGE: usize = 224;
/// Classes of images.
const CLASSES: usize = 40;

/// A network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Network {
    /// EfficientNet-Lite0 with frozen norms, 32 images of 96 pixels a side
    #[value(name = "efficientnet-lite0")]
    EfficientNetLite0,
    /// ResNet-50 with frozen norms, 8 images of 224 pixels a side
    #[value(name = "resnet-50")]
    ResNet50,
    /// ViT-B/16, 8 images of 224 pixels a side
    #[value(name = "vit-b-16")]
    VitB16,
    /// all-MiniLM-L6-v2 with a linear head, 32 texts of 64 tokens
    #[value(name = "minilm")]
    MiniLm,
    /// The backbone of the example domainnet_mini, 32 images
    Mini,
}

/// Two files that go when this is dropped. Anchors that are mapped from them stay.
pub(crate) struct Checkpoint(TempDir);

impl Checkpoint {
    /// What there is to fine-tune: all but the head.
    pub(crate) fn path(&self) -> PathBuf {
        self.0.path().join("random.safetensors")
    }

    /// The same with the head's first values.
    pub(crate) fn with_head(&self) -> PathBuf {
        self.0.path().join("with_head.safetensors")
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Network::EfficientNetLite0 => write!(f, "EfficientNet-Lite0, {IMAGES} images of {MIDDLE} pixels"),
            Network::ResNet50 => write!(f, "ResNet-50, {LARGE_IMAGES} images of {LARGE} pixels"),
            Network::VitB16 => write!(f, "ViT-B/16, {LARGE_IMAGES} images of {LARGE} pixels"),
            Network::MiniLm => write!(f, "MiniLM, {TEXTS} texts of {TOKENS} tokens"),
            Network::Mini => write!(f, "DomainNet in miniature, {IMAGES} images"),
        }
    }
}

/// What a network sees of a batch, and the classes.
pub(crate) struct Batch {
    inputs: Tensor,
    labels: Tensor,
}

/// Loss of a batch; the flag is true in training.
pub(crate) type Loss = Box<dyn Fn(&Batch, bool) -> candle_core::Result<Tensor>>;

impl Network {
    /// As `torch_networks.py` names it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Network::EfficientNetLite0 => "efficientnet-lite0",
            Network::ResNet50 => "resnet-50",
            Network::VitB16 => "vit-b-16",
            Network::MiniLm => "minilm",
            Network::Mini => "mini",
        }
    }

    /// Names of the head's tensors begin so.
    pub(crate) fn head(self) -> &'static str {
        match self {
            Network::EfficientNetLite0 => EfficientNetLayout::EfficientNetPytorch.head(),
            Network::ResNet50 => "fc",
            Network::VitB16 => "head",
            Network::MiniLm => "classifier",
            Network::Mini => HEAD,
        }
    }

    /// Whether a step drops out at random, so that losses behind it differ.
    pub(crate) const fn drops(self) -> bool {
        matches!(self, Network::MiniLm)
    }

    /// Takes its tensors from `vb`.
    ///
    /// # Errors
    ///
    /// `vb` lacks one.
    pub(crate) fn loss(self, vb: VarBuilder, dropout: &DropoutRng) -> Result<Loss> {
        Ok(match self {
            Network::EfficientNetLite0 => {
                let config = EfficientNetConfig::lite0().statistics(Statistics::Running);
                let layout = EfficientNetLayout::EfficientNetPytorch;
                let model = EfficientNetClassifier::with_layout(&config, CLASSES, layout, dropout, vb)?;
                Box::new(move |batch, train| {
                    cross_entropy(&model.forward(&batch.inputs, train)?, &batch.labels)
                })
            }
            Network::ResNet50 => {
                let config = ResNetConfig::resnet50().statistics(Statistics::Running);
                let model = ResNetClassifier::new(&config, CLASSES, vb)?;
                Box::new(move |batch, train| {
                    cross_entropy(&model.forward(&batch.inputs, train)?, &batch.labels)
                })
            }
            Network::VitB16 => {
                let config = VitConfig::base_patch16_224();
                let model = Vit::with_layout(&config, VitLayout::Timm, dropout, vb.clone())?;
                let head = linear(config.hidden_size, CLASSES, vb.pp(self.head()))?;
                Box::new(move |batch, train| {
                    cross_entropy(&head.forward(&model.forward(&batch.inputs, train)?)?, &batch.labels)
                })
            }
            Network::MiniLm => {
                let model = BertClassifier::new(&minilm(), TOPICS, Pooling::Mean, dropout, vb)?;
                Box::new(move |batch, train| {
                    let mask = batch.inputs.ones_like()?;
                    cross_entropy(
                        &model.forward(&BertInput::new(&batch.inputs, &mask), train)?,
                        &batch.labels,
                    )
                })
            }
            Network::Mini => {
                let model = Backbone::new(CLASSES, vb)?;
                Box::new(move |batch, _| cross_entropy(&model.forward(&batch.inputs)?, &batch.labels))
            }
        })
    }

    /// A batch on a device; another for every `seed`.
    ///
    /// # Errors
    ///
    /// The device has no memory for it.
    pub(crate) fn batch(self, seed: u32, device: &Device) -> Result<Batch> {
        let numbers = |n: usize, below: u32| -> Vec<u32> {
            // Any numbers do: a multiplicative hash of their position.
            (0..n as u32).map(|i| (i + 1 + 7919 * seed).wrapping_mul(2_654_435_761) % below).collect()
        };
        let pictures = |count: usize, side: usize| -> Vec<f32> {
            numbers(count * 3 * side * side, 256).iter().map(|byte| *byte as f32 / 64.0 - 2.0).collect()
        };
        let images = |count: usize, side: usize| -> Result<Batch> {
            Ok(Batch {
                inputs: Tensor::from_vec(pictures(count, side), (count, 3, side, side), device)?,
                labels: Tensor::from_vec(numbers(count, CLASSES as u32), count, device)?,
            })
        };
        Ok(match self {
            Network::EfficientNetLite0 => images(IMAGES, MIDDLE)?,
            Network::ResNet50 | Network::VitB16 => images(LARGE_IMAGES, LARGE)?,
            Network::MiniLm => Batch {
                inputs: Tensor::from_vec(
                    numbers(TEXTS * TOKENS, minilm().vocab_size as u32),
                    (TEXTS, TOKENS),
                    device,
                )?,
                labels: Tensor::from_vec(numbers(TEXTS, TOPICS as u32), TEXTS, device)?,
            },
            Network::Mini => {
                let shape = (IMAGES * PATCHES * PATCHES, 3 * WINDOW * WINDOW);
                Batch {
                    inputs: Tensor::from_vec(windows(&pictures(IMAGES, SIDE)), shape, device)?,
                    labels: Tensor::from_vec(numbers(IMAGES, CLASSES as u32), IMAGES, device)?,
                }
            }
        })
    }

    /// Files with random weights.
    ///
    /// # Errors
    ///
    /// They cannot be written.
    pub(crate) fn checkpoint(self) -> Result<Checkpoint> {
        let checkpoint = Checkpoint(tempfile::tempdir()?);
        let weights = VarMap::new();
        // Asking for the tensors makes them.
        drop(self.loss(VarBuilder::from_varmap(&weights, DType::F32, &Device::Cpu), &DropoutRng::new(0))?);
        let weights = weights.data().lock().map_err(|_| anyhow::anyhow!("a model could not be made"))?;
        let mut all = HashMap::new();
        for (name, var) in weights.iter() {
            let mut value = var.as_tensor().clone();
            if self == Network::ResNet50 && name.ends_with("bn3.weight") {
                // With the norms of a trained network each block adds little: random ones would add up to numbers without sense.
                value = (value * 0.25)?;
            }
            all.insert(name.clone(), value);
        }
        candle_core::safetensors::save(&all, checkpoint.with_head())?;
        all.retain(|name, _| !name.starts_with(self.head()));
        candle_core::safetensors::save(&all, checkpoint.path())?;
        Ok(checkpoint)
    }
}

/// The windows of the miniature network's stem: a row for each, channel after channel. Outside the image lies zero.
fn windows(images: &[f32]) -> Vec<f32> {
    let before = (WINDOW - STRIDE) / 2;
    let mut windows = Vec::with_capacity(IMAGES * PATCHES * PATCHES * 3 * WINDOW * WINDOW);
    for image in images.chunks(3 * SIDE * SIDE) {
        for patch in 0..PATCHES * PATCHES {
            let corner = [patch / PATCHES * STRIDE, patch % PATCHES * STRIDE];
            for i in 0..3 * WINDOW * WINDOW {
                let (channel, y, x) =
                    (i / WINDOW / WINDOW, corner[0] + i / WINDOW % WINDOW, corner[1] + i % WINDOW);
                let inside = |at: usize| (before..SIDE + before).contains(&at);
                windows.push(if inside(y) && inside(x) {
                    image[(channel * SIDE + y - before) * SIDE + x - before]
                } else {
                    0.0
                });
            }
        }
    }
    windows
}

/// The configuration of all-MiniLM-L6-v2, as in its `config.json`.
fn minilm() -> BertConfig {
    BertConfig {
        hidden_size: 384,
        num_hidden_layers: 6,
        num_attention_heads: 12,
        intermediate_size: 1536,
        ..BertConfig::default()
    }
}
