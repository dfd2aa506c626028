//! Dropout whose masks are a function of a seed, so that a resumed run draws the same ones.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use candle_core::{CpuStorage, DType, ModuleT, Result, Shape, Tensor};
use serde::{Deserialize, Serialize};
use tpgm_core::{Buffer, Element, Slice};

use super::check::{Path, same_kind};
use super::float::{Float, vectorized};
use super::fused::{Arg, Custom, Fused, apply1};
use super::gpu::on_gpu;
use super::storage::{BLOCK, PIECE, by_dtype, fill, into_storage, load, scratch, store};
use crate::error::{Error, Result as OurResult};
use crate::random::{PHILOX_LANES, philox_lanes};

const NAME: &str = "dropout";

/// Where masks come from: a seed, and how many masks were drawn. All [`Dropout`] layers of a model share one, so that two
/// numbers are the whole state to save.
///
/// Clones share the count. Draw from one thread at a time: the order of calls decides which layer gets which mask.
#[derive(Debug, Clone)]
pub struct DropoutRng {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    seed: AtomicU64,
    draws: AtomicU64,
}

/// What [`DropoutRng`] saves in a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct DropoutState {
    /// The seed.
    pub seed: u64,
    /// Masks drawn so far.
    pub draws: u64,
}

impl DropoutRng {
    /// A source of masks at its start.
    pub fn new(seed: u64) -> Self {
        Self { shared: Arc::new(Shared { seed: AtomicU64::new(seed), draws: AtomicU64::new(0) }) }
    }

    /// What to save.
    pub fn state(&self) -> DropoutState {
        let load = |x: &AtomicU64| x.load(Ordering::Relaxed);
        DropoutState { seed: load(&self.shared.seed), draws: load(&self.shared.draws) }
    }

    /// Continues where a saved run stood: the next masks have the same bits as there, for all layers that share this
    /// source.
    pub fn load_state(&self, state: DropoutState) {
        self.shared.seed.store(state.seed, Ordering::Relaxed);
        self.shared.draws.store(state.draws, Ordering::Relaxed);
    }

    /// The seed, and the number of the next mask.
    fn draw(&self) -> DropoutState {
        let draws = self.shared.draws.fetch_add(1, Ordering::Relaxed);
        DropoutState { seed: self.shared.seed.load(Ordering::Relaxed), draws }
    }
}

/// Zeroes elements at random while training, and scales the others by `1 / (1 - probability)`, which keeps the mean.
///
/// Use it in place of `candle_nn::Dropout`, whose masks cannot be seeded on the CPU and are kept in memory for the
/// backward pass. Here a mask is computed anew from seed and number, with the same bits on any number of threads, and on a GPU by
/// kernels.
///
/// Source: Srivastava et al., "Dropout" (2014), in its inverted form. Random numbers:
/// [Philox4x32-10](crate::random::philox), 32 bits per element. Element i of mask n takes number i % 4 at the counter whose lower 64
/// bits are i / 4, rounded down, and whose upper ones are n, with the seed as key; it is zeroed if that is below
/// `probability * 2^32`.
#[derive(Debug, Clone)]
pub struct Dropout {
    probability: f64,
    rng: DropoutRng,
}

impl Dropout {
    /// A layer that zeroes each element with `probability` in 0..1, by masks from `rng`.
    ///
    /// # Errors
    ///
    /// If the probability is out of range.
    pub fn new(probability: f64, rng: &DropoutRng) -> OurResult<Self> {
        if !(0.0..1.0).contains(&probability) {
            let range = "in 0..1";
            return Err(Error::LayerOption {
                op: NAME,
                option: "the probability",
                value: probability,
                range,
            });
        }
        Ok(Self { probability, rng: rng.clone() })
    }

    /// A layer that zeroes nothing.
    pub(crate) fn never() -> Self {
        Self { probability: 0.0, rng: DropoutRng::new(0) }
    }

    /// True if elements are zeroed.
    pub(crate) fn drops(&self, train: bool) -> bool {
        train && self.probability != 0.0
    }

    /// The next mask.
    pub(super) fn draw(&self) -> Mask {
        Mask { drawn: self.rng.draw(), probability: self.probability }
    }

    /// How likely an element is zeroed.
    pub fn probability(&self) -> f64 {
        self.probability
    }
}

impl ModuleT for Dropout {
    /// Draws a mask if `train`, for an input of any shape; returns the input itself otherwise, or if the probability is 0.
    ///
    /// # Errors
    ///
    /// If `x` is not of a floating point type.
    fn forward_t(&self, x: &Tensor, train: bool) -> Result<Tensor> {
        if !self.drops(train) {
            return Ok(x.clone());
        }
        same_kind(NAME, &[x])?;
        let op = self.draw();
        match Path::with_kernels(x) {
            // The mask goes by an element's index.
            Path::Fused => apply1(op, &x.contiguous()?),
            // The mask is made on the host: a device's own generator could not be resumed.
            Path::Composed => {
                let ones = Tensor::ones(x.shape(), DType::F32, &candle_core::Device::Cpu)?;
                x.mul(&ones.apply_op1_no_bwd(&Custom(op))?.to_dtype(x.dtype())?.to_device(x.device())?)
            }
        }
    }
}

/// One mask, applied. Its own gradient is the same mask.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mask {
    /// The seed, and the masks drawn before.
    drawn: DropoutState,
    probability: f64,
}

impl Mask {
    /// What the kernels call it.
    #[cfg(any(feature = "cuda", test))]
    pub(super) fn kernel(&self) -> tpgm_cuda::layers::Dropout {
        let Self { drawn: DropoutState { seed, draws }, probability } = *self;
        tpgm_cuda::layers::Dropout { probability, seed, draw: draws }
    }

    fn apply<T: Element, C: Float>(&self, x: Slice<'_>) -> Buffer {
        let scale = C::from_f64(1.0 / (1.0 - self.probability));
        // Saturates for probabilities within 2^-32 of one.
        let threshold = (self.probability * 4_294_967_296.0).round() as u32;
        let (y, _) = fill::<T, ()>(x.len(), PIECE, |range, piece| {
            let (mut x_scratch, mut y_scratch) = (scratch::<T, C>(BLOCK), scratch::<T, C>(BLOCK));
            for (i, y) in piece.chunks_mut(BLOCK).enumerate() {
                let start = range.start + i * BLOCK;
                let x = load(x.sub(start..start + y.len()), &mut x_scratch);
                store(y, &mut y_scratch, |y: &mut [C]| {
                    apply_mask(self.drawn, start as u64, threshold, scale, x, y);
                });
            }
        });
        T::buffer(y)
    }
}

impl Fused<1> for Mask {
    on_gpu!(1, dropout);

    fn name(&self) -> &'static str {
        NAME
    }

    fn forward(&self, [x]: [Arg<'_>; 1]) -> Result<(CpuStorage, Shape)> {
        let data = x.slice()?;
        let y = by_dtype!(data.dtype(), T, C => self.apply::<T, C>(data));
        Ok((into_storage(y), x.shape().clone()))
    }

    fn backward(&self, _x: [&Tensor; 1], _y: &Tensor, grad: &Tensor) -> Result<[Option<Tensor>; 1]> {
        Ok([Some(apply1(*self, grad)?)])
    }
}

vectorized! {
    /// `start` is the index of the first element in its tensor, a multiple of four.
    fn apply_mask<C>(drawn: DropoutState, start: u64, threshold: u32, scale: C, x: &[C], y: &mut [C]) {
        const AT_ONCE: usize = 4 * PHILOX_LANES;
        let mut counter = start / 4;
        for (x, y) in x.chunks(AT_ONCE).zip(y.chunks_mut(AT_ONCE)) {
            let numbers = philox_lanes(counter, drawn.draws, drawn.seed);
            counter = counter.wrapping_add(PHILOX_LANES as u64);
            let mut bits = [0; AT_ONCE];
            for (i, bits) in bits.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                *bits = [numbers[0][i], numbers[1][i], numbers[2][i], numbers[3][i]];
            }
            for ((y, &x), &bits) in y.iter_mut().zip(x).zip(&bits) {
                *y = if bits < threshold { C::ZERO } else { x * scale };
            }
        }
    }
}
