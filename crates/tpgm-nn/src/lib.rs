//! Layers, losses and models for candle that can be trained: every parameter gets a gradient. Fused and parallel on the CPU.
//!
//! You need this crate when you fine-tune a transformer or a CNN. Several layers of candle 0.11 return a tensor that is cut from
//! the graph, without an error, so nothing in front of them is trained:
//!
//! | candle | its gradient | here |
//! |---|---|---|
//! | `candle_nn::LayerNorm::forward`, `ops::layer_norm` | none | [`LayerNorm`], [`layer_norm`] |
//! | `candle_nn::RmsNorm::forward`, `ops::rms_norm` | none | [`RmsNorm`], [`rms_norm`] |
//! | `candle_nn::ops::softmax_last_dim` | none | [`softmax_last_dim`], [`log_softmax_last_dim`] |
//! | `candle_nn::rotary_emb::rope`, `rope_i` | none | [`rope`], [`rope_i`] |
//! | `candle_nn::ops::sdpa` | none | [`matmul_transposed`], [`masked_softmax`], [`matmul`] |
//! | `Tensor::max_pool2d` | too small by the area of the window; error where stride and window differ | [`MaxPool2d`], [`max_pool2d`] |
//! | `candle_nn::Conv2d` | yes; error where the stride leaves other remainders of height and width | [`Conv2d`] |
//! | `clamp`, for ReLU6 | half of it where a value lies on a bound | [`relu6`], [`hard_sigmoid`], [`hard_swish`] |
//! | `candle_nn::Dropout` | yes, but its masks cannot be seeded or resumed on the CPU | [`Dropout`] |
//!
//! These have a gradient in candle and are here because they are faster (`benches/layers.rs` measures most of
//! them):
//! [`BatchNorm`], [`Conv2d`] (also in groups and depthwise), [`cross_entropy`], [`gelu`], [`gelu_tanh`], [`quick_gelu`],
//! [`gated_silu`], [`silu`], [`relu`], [`sigmoid`], [`Embedding`], [`global_avg_pool`], [`scale_channels`], [`Linear`], [`matmul`], [`matmul_transposed`]. And
//! [`ConvNorm`] is a convolution, its norm and its activation as one operation, [`ConvBlock`] several of them.
//!
//! ```
//! use candle_core::{Device, Module, Tensor, Var};
//! use tpgm_nn::{LayerNorm, cross_entropy};
//!
//! let device = Device::Cpu;
//! let weight = Var::ones(3, candle_core::DType::F32, &device)?;
//! let bias = Var::zeros(3, candle_core::DType::F32, &device)?;
//! let norm = LayerNorm::new(weight.as_tensor().clone(), bias.as_tensor().clone(), 1e-5);
//! let x = Tensor::new(&[[1f32, 2., 6.], [0., 1., -1.]], &device)?;
//! let loss = cross_entropy(&norm.forward(&x)?, &Tensor::new(&[2u32, 0], &device)?)?;
//! let grads = loss.backward()?;
//! assert!(grads.get(&weight).is_some() && grads.get(&bias).is_some());
//! # Ok::<(), candle_core::Error>(())
//! ```
//!
//! # What they have in common
//!
//! - f64 and f32 are computed as they are; f16 and bf16 in f32, rounded once at the end.
//! - Inputs may be strided, of any leading shape, and without elements.
//! - The result, and every gradient, has the same bits on any number of threads: work is cut into pieces of fixed size, and
//!   sums over rows add the pieces in order, in f64.
//! - Small networks train fastest on a thread that is one of rayon's: a thread outside of the pool and the pool wake each other at
//!   every layer. Before anything else uses rayon, `rayon::ThreadPoolBuilder::new().num_threads(n).use_current_thread()
//!   .build_global()` makes the caller's thread one of n (at least two, if other threads use the pool while it waits for them).
//! - Each has its own backward pass, which reads the input (or the result) once more and keeps nothing else; [`ConvBlock`] keeps
//!   what lies between its layers. Gradients are first-order: a second derivative through these layers is not supported.
//! - On a CUDA GPU, with the feature `cuda`, these are computed by the kernels of `tpgm-cuda`, forward and backward, in f32, bf16 and
//!   f16: norms, softmax and its logarithm, also masked, cross-entropy, [`gelu`], [`gelu_tanh`], [`quick_gelu`], [`silu`], [`relu`],
//!   [`gated_silu`], biases, rotary embedding, [`Dropout`] (the masks of the CPU, bit for bit), the gradient of [`Embedding`],
//!   [`MaxPool2d`], [`BatchNorm`]; and [`Linear`], [`matmul`] and [`matmul_transposed`] by candle's matrix product, without the gradients
//!   that nobody wants. These kernels are tested in an emulator; the layers on top of them have not been run on a GPU yet.
//! - Everything else on a GPU, and everything on Metal, is composed of candle's own operations, which is the same function in more
//!   launches, each through memory: see [`composed`]. On a CUDA GPU these are f64; tensors without elements; rows of more than 2^30
//!   elements; a norm whose `eps` is 0 in f32; GPUs older than compute capability 7.5; a build without the feature; and
//!   [`Conv2d`], [`global_avg_pool`], [`scale_channels`], factors of features (LayerScale) and the activations of MobileNet.
//! - A transformer block of [`models`] is one operation of candle's, with a backward pass of its own inside: the first part of a gradient
//!   is the gradient, where candle clears memory and adds. `loss.backward()` finds the gradients of its parameters as ever, as often as
//!   it is called. Layer by layer where a layer is composed.
//! - Errors name the operation and the shapes.
//!
//! # Map
//!
//! | you want | look at |
//! |---|---|
//! | a layer or a loss | this page |
//! | a loss of robust fine-tuning | [`losses`] |
//! | the same, composed of candle's operations | [`composed`] |
//! | a trainable BERT, ViT, ResNet, EfficientNet, MobileNet, CLIP or Llama | [`models`] |
//! | to train low-rank factors | [`lora`] |
//! | to train prompts | [`prompts`] |
//! | to write a layer of your own | [`dtype`] |
//! | random numbers that stay the same in every release | [`random`] |

pub mod dtype;
mod error;
mod layers;
pub mod lora;
pub mod losses;
pub mod models;
pub mod prompts;
pub mod random;

pub use self::error::{Error, Result};
pub use self::layers::{
    BatchNorm, Conv2d, ConvActivation, ConvBlock, ConvNorm, Dropout, DropoutRng, DropoutState, Embedding,
    LayerNorm, Linear, MaxPool2d, Padding, RmsNorm, Shortcut, Statistics, add_bias, batch_norm, composed,
    conv2d_no_bias, cross_entropy, cross_entropy_smoothed, embedding, gated_silu, gelu, gelu_tanh,
    global_avg_pool, hard_sigmoid, hard_swish, layer_norm, linear, linear_no_bias, log_softmax_last_dim,
    masked_softmax, matmul, matmul_transposed, max_pool2d, quick_gelu, relu, relu6, rms_norm, rope, rope_i,
    scale_channels, sigmoid, silu, softmax_last_dim,
};
#[doc(hidden)]
pub use self::layers::{Recorded, recorded};

/// Runs the example of the README as a documentation test.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeDoctests;
