//! Layers of networks on any [`Device`], forward and backward, each in as few launches and passes over memory as it takes.
//!
//! You need this to build a framework's operations from: it computes on rows in device memory, keeps nothing between
//! forward and backward but what it says, and leaves graphs and gradients to the framework. Operands are views of addresses
//! ([`View::from_raw`](crate::View::from_raw)) or lent slices, all of one element type: f32, bf16 or f16. Arithmetic is in
//! f32, and each result is rounded once.
//!
//! | call | launches | bytes per f32 element (half of it in bf16 and f16) |
//! |---|---|---|
//! | [`norm`](Layers::norm) | 1 | 8: x, y; with a residual 16 |
//! | [`norm_gradient`](Layers::norm_gradient) | 1; with gradients of weights 2 | 12: x, grad, dx; with a carried gradient 16 |
//! | [`softmax`](Layers::softmax) | 1 | 8: x, y |
//! | [`softmax_gradient`](Layers::softmax_gradient) | 1 | 12: y, grad, dx |
//! | [`cross_entropy`](Layers::cross_entropy) | 2 | 4: logits; with soft targets 8 |
//! | [`cross_entropy_gradient`](Layers::cross_entropy_gradient) | 1 | 8: logits and their gradient; with soft targets 12 |
//! | [`activation`](Layers::activation) | 1 | 8: x, y |
//! | [`activation_gradient`](Layers::activation_gradient) | 1; with the gradient of a bias 2 | 12: x, grad, dx |
//! | [`bias_gradient`](Layers::bias_gradient) | 2 | 4: grad |
//! | [`gated`](Layers::gated) | 1 | 12: gate, factor, y |
//! | [`gated_gradient`](Layers::gated_gradient) | 1 | 20: gate, factor, grad and two gradients |
//! | [`rotary`](Layers::rotary), and back | 1 | 8: x, y; angles come from a cache |
//! | [`dropout`](Layers::dropout), and its gradient | 1 | 8: x, y |
//! | [`embedding_gradient`](Layers::embedding_gradient) | 2 | 4 of what was looked up, 4 of the table |
//! | [`batch_norm`](Layers::batch_norm) | 3; with running statistics 2 | 12: x twice, y; 8 |
//! | [`batch_norm_gradient`](Layers::batch_norm_gradient) | 3 | 20: x and grad twice, dx |
//! | [`max_pool`](Layers::max_pool) | 1 | 4 of x, 4 of y |
//! | [`max_pool_gradient`](Layers::max_pool_gradient) | 1 | 8 of x and dx, 4 of grad |
//!
//! # What holds throughout
//!
//! - **Same bits** in every run and on any number of blocks: sums over columns are cut by the number of rows alone and added up in
//!   a fixed order, without atomics.
//! - **Nothing waits.** Calls are queued on the device's stream. Tables go with the launch, so a call can be part of a CUDA
//!   graph; gradients of weights need scratch memory, which the first call of that size allocates, so make one before the capture.
//! - **Any width and alignment.** Rows that do not start at multiples of four elements (and 16 bytes in f32) are read one element
//!   at a time. Rows of up to 32 x 256 elements are held in registers and read once; longer ones are read again from a
//!   cache.
//!
//! # Example
//!
//! ```no_run
//! use tpgm_core::{Backend, Buffer, DType};
//! use tpgm_cuda::layers::{Layers, Norm, NormOperands, Rows, RowsMut};
//! use tpgm_cuda::Cuda;
//!
//! let cuda = Cuda::new(0)?;
//! let layers = Layers::on(cuda.device().clone());
//! let (x, weight) = (cuda.zeros(DType::F32, 4 * 768)?, cuda.zeros(DType::F32, 768)?);
//! let mut y = cuda.zeros(DType::F32, 4 * 768)?;
//! layers.norm(
//!     Norm::rms(1e-6),
//!     NormOperands {
//!         x: Rows::new(x.view(), 768)?,
//!         residual: None,
//!         weight: weight.view(),
//!         bias: None,
//!         y: RowsMut::new(y.view_mut(), 768)?,
//!     },
//! )?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod activation;
mod batch_norm;
mod columns;
mod cross_entropy;
mod dropout;
mod embedding;
mod error;
mod labels;
mod modules;
mod norm;
mod pool;
mod rotary;
mod rows;
mod softmax;

use std::sync::{Arc, Mutex, PoisonError};

use bytemuck::NoUninit;

pub use self::activation::{
    Activation, ActivationGradients, ActivationOperands, GatedGradients, GatedOperands,
};
pub use self::batch_norm::{BatchNorm, BatchNormGradients, BatchNormOperands, Statistics};
pub use self::cross_entropy::{CrossEntropy, CrossEntropyGradients, CrossEntropyOperands, Target};
pub use self::dropout::Dropout;
pub use self::embedding::EmbeddingGradients;
pub use self::error::{Error, Result};
pub use self::labels::{LabelType, Labels};
use self::modules::Kernel;
pub(crate) use self::modules::modules;
pub use self::norm::{Norm, NormGradients, NormOperands, Residual};
pub use self::pool::{MaxPool, MaxPoolGradients};
pub use self::rotary::{Pairs, RotaryOperands, Turn};
pub use self::rows::{Rows, RowsMut};
pub use self::softmax::{Mask, Softmax, SoftmaxGradients, SoftmaxOperands};
use crate::device::Device;

/// The layers of a device. Cheap to clone; clones share scratch memory.
#[derive(Clone)]
pub struct Layers<D: Device> {
    device: D,
    scratch: Arc<Mutex<Option<Scratch<D>>>>,
}

/// Memory between two launches of one call. It grows to what the largest call needs.
struct Scratch<D: Device> {
    memory: D::Memory,
    bytes: usize,
}

impl<D: Device + std::fmt::Debug> std::fmt::Debug for Layers<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Layers").field(&self.device).finish()
    }
}

impl<D: Device> Layers<D> {
    /// The layers of a device, queued on its stream.
    pub fn on(device: D) -> Self {
        Self { device, scratch: Arc::default() }
    }

    /// The device.
    pub fn device(&self) -> &D {
        &self.device
    }

    /// Queues a kernel over `units` of work, of which a block takes one at a time.
    fn launch<T: NoUninit>(&self, kernel: &'static str, units: usize, table: &T) -> Result<()> {
        let blocks = units.min(self.device.resident_blocks(kernel)?);
        let words = bytemuck::cast_slice(std::slice::from_ref(table));
        Ok(self.device.launch_table(kernel, blocks.max(1), words)?)
    }

    /// Calls `launches` with the address of `bytes` bytes that nobody else uses until they are made. What comes behind them on
    /// the stream may use the same bytes.
    fn with_scratch(&self, bytes: usize, launches: impl FnOnce(u64) -> Result<()>) -> Result<()> {
        let mut scratch = self.scratch.lock().unwrap_or_else(PoisonError::into_inner);
        let held = match scratch.take() {
            Some(held) if held.bytes >= bytes => held,
            _ => Scratch { memory: self.device.allocate(bytes)?, bytes },
        };
        let address = self.device.address(&held.memory);
        *scratch = Some(held);
        launches(address)
    }

    /// Queues a kernel of a layer for an element type.
    fn launch_kernel<T: NoUninit>(
        &self,
        kernel: &Kernel,
        dtype: tpgm_core::DType,
        units: usize,
        table: &T,
    ) -> Result<()> {
        self.launch(kernel.name(dtype), units, table)
    }
}
