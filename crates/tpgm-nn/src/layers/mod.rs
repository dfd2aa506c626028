//! The layers. What they have in common is said at the root of the crate, where they are used from.

pub mod composed;

mod activation;
mod batch_norm;
mod check;
mod conv;
mod conv_norm;
mod cross_entropy;
mod dropout;
mod embedding;
mod float;
mod fused;
mod gated;
mod gpu;
mod linear;
mod norm;
mod pool;
mod product;
mod rotary;
mod soft_cross_entropy;
mod softmax;
mod squeeze;
mod storage;

pub use activation::{gelu, gelu_tanh, hard_sigmoid, hard_swish, quick_gelu, relu, relu6, sigmoid, silu};
pub use batch_norm::{BatchNorm, Statistics, batch_norm};
pub(crate) use check::shape_error;
pub(crate) use conv::Order;
pub use conv::{Conv2d, Padding, conv2d_no_bias};
pub use conv_norm::{ConvActivation, ConvBlock, ConvNorm, Shortcut};
pub(crate) use cross_entropy::checked_labels;
pub use cross_entropy::{cross_entropy, cross_entropy_smoothed};
pub use dropout::{Dropout, DropoutRng, DropoutState};
pub use embedding::{Embedding, embedding};
pub use gated::gated_silu;
pub use linear::{Linear, add_bias, linear, linear_no_bias};
pub use norm::{LayerNorm, RmsNorm, layer_norm, rms_norm};
pub use pool::{MaxPool2d, max_pool2d};
pub use product::{matmul, matmul_transposed};
pub use rotary::{rope, rope_i};
pub use soft_cross_entropy::{cross_entropy_soft, cross_entropy_soft_smoothed};
pub use softmax::{log_softmax_last_dim, masked_softmax, softmax_last_dim};
pub use squeeze::{global_avg_pool, scale_channels};
