//! Dropout by a generator that counts.

use super::error::{Error, Result};
use super::rows::Operands;
use super::{Layers, modules};
use crate::device::Device;
use crate::memory::{View, ViewMut};

const NAME: &str = "dropout";

/// Which elements are dropped: a function of these numbers and of an element's index alone.
///
/// Element i is dropped if its 32 random bits are below `probability * 2^32`. They are number i % 4 of Philox4x32-10 (Salmon et al.,
/// "Parallel random numbers: as easy as 1, 2, 3", 2011) with the seed as key, at the counter whose lower 64 bits are i / 4, rounded
/// down, and whose upper ones are `draw`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// How likely an element is dropped, in 0..1.
    pub probability: f64,
    /// Of all masks.
    pub seed: u64,
    /// The number of this mask.
    pub draw: u64,
}

/// `DropoutTable` of `kernels/layers/dropout.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Table {
    x: u64,
    y: u64,
    count: u64,
    seed: u64,
    draw: u64,
    threshold: u32,
    vector: u32,
    scale: f32,
    pad: u32,
}
const _: () = assert!(size_of::<Table>() == 56);

impl<D: Device> Layers<D> {
    /// Zeroes elements at random, and scales the others by `1 / (1 - probability)`. One launch; 8 bytes per f32 element. No mask is
    /// kept: the gradient of `x` is the same function of the output's gradient.
    ///
    /// # Errors
    ///
    /// If operands do not fit each other, the probability is out of range, or the device fails.
    pub fn dropout(&self, dropout: Dropout, x: View<'_>, y: ViewMut<'_>) -> Result<()> {
        let Dropout { probability, seed, draw } = dropout;
        if !(0.0..1.0).contains(&probability) {
            let (option, requirement) = ("probability", "in 0..1");
            return Err(Error::Option { layer: NAME, option, value: probability, requirement });
        }
        let mut seen = Operands::of_elements(NAME, "x", x)?;
        let table = Table {
            x: seen.columns("x", x)?,
            y: seen.columns("y", y.as_view())?,
            count: seen.width as u64,
            seed,
            draw,
            // Saturates for probabilities within 2^-32 of one.
            threshold: (probability * 4_294_967_296.0).round() as u32,
            vector: seen.vector(),
            scale: (1.0 / (1.0 - probability)) as f32,
            pad: 0,
        };
        if seen.is_empty() {
            return Ok(());
        }
        let units = seen.width.div_ceil(4 * self.device.threads());
        self.launch_kernel(&modules::DROPOUT, seen.dtype, units, &table)
    }
}
