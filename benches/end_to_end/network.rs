//! What is trained, and on what.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use clap::ValueEnum;
use tempfile::TempDir;
use tpgm_candle::models::bert::{BertClassifier, BertConfig, BertInput, Pooling};
use tpgm_candle::nn::{DropoutRng, cross_entropy};
use tpgm_examples::mini::{Backbone, HEAD, TOKENS as PATCHES, WINDOW};

// The same numbers as in torch_training.py.
/// Texts of a batch, and their length in tokens.
const TEXTS: usize = 32;
const TOKENS: usize = 64;
/// Classes of texts.
const TOPICS: usize = 10;
/// Images of a batch.
const IMAGES: usize = 32;
/// Classes of images.
const CLASSES: usize = 40;

/// A network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Network {
    /// all-MiniLM-L6-v2 with a linear head, 32 texts of 64 tokens
    #[value(name = "minilm")]
    MiniLm,
    /// The backbone of the example domainnet_mini, 32 images
    Mini,
}

/// A file that goes when this is dropped. Anchors that are mapped from it stay.
pub(crate) struct Checkpoint(TempDir);

impl Checkpoint {
    pub(crate) fn path(&self) -> PathBuf {
        self.0.path().join("random.safetensors")
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
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
    /// As `torch_training.py` names it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Network::MiniLm => "minilm",
            Network::Mini => "mini",
        }
    }

    /// Names of the head's tensors begin so.
    pub(crate) const fn head(self) -> &'static str {
        match self {
            Network::MiniLm => "classifier",
            Network::Mini => HEAD,
        }
    }

    /// Takes its tensors from `vb`.
    ///
    /// # Errors
    ///
    /// `vb` lacks one.
    pub(crate) fn loss(self, vb: VarBuilder, dropout: &DropoutRng) -> Result<Loss> {
        Ok(match self {
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
        Ok(match self {
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
                let values =
                    numbers(shape.0 * shape.1, 256).iter().map(|byte| *byte as f32 / 64.0 - 2.0).collect();
                Batch {
                    inputs: Tensor::from_vec::<_, f32>(values, shape, device)?,
                    labels: Tensor::from_vec(numbers(IMAGES, CLASSES as u32), IMAGES, device)?,
                }
            }
        })
    }

    /// A file with random weights, without the head.
    ///
    /// # Errors
    ///
    /// It cannot be written.
    pub(crate) fn checkpoint(self) -> Result<Checkpoint> {
        let checkpoint = Checkpoint(tempfile::tempdir()?);
        self.write_weights(&checkpoint.path())?;
        Ok(checkpoint)
    }

    fn write_weights(self, path: &Path) -> Result<()> {
        let weights = VarMap::new();
        // Asking for the tensors makes them.
        drop(self.loss(VarBuilder::from_varmap(&weights, DType::F32, &Device::Cpu), &DropoutRng::new(0))?);
        let weights = weights.data().lock().map_err(|_| anyhow::anyhow!("a model could not be made"))?;
        let body: HashMap<_, _> = weights
            .iter()
            .filter(|(name, _)| !name.starts_with(self.head()))
            .map(|(name, var)| (name.clone(), var.as_tensor().clone()))
            .collect();
        Ok(candle_core::safetensors::save(&body, path)?)
    }
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
