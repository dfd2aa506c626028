//! Layers by the kernels of `tpgm-cuda`, on tensors where candle keeps them.
//!
//! A layer fills in its calls, in a file of its own here: `forward` and `backward` over any [`Home`], which is the memory that
//! candle's tensors are in and the kernels that reach it. `cuda.rs` is candle's CUDA device, and all that is particular to it. The
//! tests have another home, the host's memory with the emulated kernels, so that all but that one file runs without a GPU.
//!
//! Memory comes from candle and goes back to it. Calls are queued on candle's stream, behind what made their operands and in front of
//! what will use their results.
//!
//! # What has no kernel
//!
//! These are composed of candle's operations, as every layer is on Metal: f64; tensors without elements; rows of more than 2^30
//! elements; a norm whose `eps` is 0 in f32; GPUs older than compute capability 7.5; and the layers that are not here:
//! convolution, `global_avg_pool`, `scale_channels`, factors of features (LayerScale), the activations of MobileNet.

#[cfg(any(feature = "cuda", test))]
pub(super) mod activation;
#[cfg(any(feature = "cuda", test))]
pub(super) mod batch_norm;
#[cfg(any(feature = "cuda", test))]
pub(super) mod bias;
#[cfg(any(feature = "cuda", test))]
pub(super) mod bias_activation;
#[cfg(any(feature = "cuda", test))]
mod choice;
#[cfg(any(feature = "cuda", test))]
pub(super) mod cross_entropy;
#[cfg(feature = "cuda")]
pub(super) mod cuda;
#[cfg(any(feature = "cuda", test))]
pub(super) mod dropout;
#[cfg(any(feature = "cuda", test))]
pub(super) mod embedding;
#[cfg(any(feature = "cuda", test))]
pub(super) mod gated;
#[cfg(test)]
pub(super) mod host;
#[cfg(any(feature = "cuda", test))]
pub(super) mod joins;
#[cfg(any(feature = "cuda", test))]
pub(super) mod linear;
#[cfg(any(feature = "cuda", test))]
pub(super) mod norm;
#[cfg(any(feature = "cuda", test))]
mod operands;
#[cfg(any(feature = "cuda", test))]
pub(super) mod pool;
#[cfg(any(feature = "cuda", test))]
pub(super) mod rotary;
#[cfg(any(feature = "cuda", test))]
mod rows;
#[cfg(any(feature = "cuda", test))]
pub(super) mod scores;
#[cfg(any(feature = "cuda", test))]
pub(super) mod softmax;
#[cfg(test)]
mod tests;

#[cfg(not(any(feature = "cuda", test)))]
use candle_core::{Result, Tensor};

#[cfg(any(feature = "cuda", test))]
pub(super) use self::choice::{laid_out, takes};
#[cfg(any(feature = "cuda", test))]
pub(super) use self::operands::{Fresh, Home, Input, Lock, failed, forward};

/// The two functions of [`Fused`](super::fused::Fused) that hand on to the kernels' calls in a module of this one.
macro_rules! on_gpu {
    ($n:literal, $module:ident) => {
        fn kernels(&self) -> bool {
            true
        }

        $crate::layers::gpu::on_gpu!(@calls $n, $module);
    };
    // Where this function of the operation says if it has kernels.
    ($n:literal, $module:ident, $kernels:ident) => {
        fn kernels(&self) -> bool {
            self.$kernels()
        }

        $crate::layers::gpu::on_gpu!(@calls $n, $module);
    };
    (@calls $n:literal, $module:ident) => {
        #[cfg(any(feature = "cuda", test))]
        fn forward_on<H: $crate::layers::gpu::Home>(
            &self,
            on: &H,
            args: [$crate::layers::gpu::Input<'_, H>; $n],
        ) -> Result<$crate::layers::gpu::Fresh<H>> {
            $crate::layers::gpu::$module::forward(self, on, args)
        }

        #[cfg(any(feature = "cuda", test))]
        fn backward_on<H: $crate::layers::gpu::Home>(
            &self,
            on: &H,
            args: [&Tensor; $n],
            y: &Tensor,
            grad: &Tensor,
        ) -> Result<[Option<Tensor>; $n]> {
            $crate::layers::gpu::$module::backward(self, on, args, y, grad)
        }
    };
}
pub(super) use on_gpu;

/// Without kernels nothing reaches a GPU's memory.
#[cfg(not(any(feature = "cuda", test)))]
pub(super) fn takes(_: &Tensor) -> Option<bool> {
    None
}

/// A tensor as an operation takes it.
#[cfg(not(any(feature = "cuda", test)))]
pub(super) fn laid_out(_kernels: bool, x: &Tensor) -> Result<Tensor> {
    x.contiguous()
}
