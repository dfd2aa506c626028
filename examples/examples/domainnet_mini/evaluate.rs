//! Accuracy and loss over a set of images.

use anyhow::{Result, ensure};
use candle_core::{D, Device, Tensor};

use crate::data::Images;
use crate::windows::windows;

/// Images at once.
const BATCH: usize = 200;

/// Share of images whose highest score, by a model on `device`, is that of their class, in `[0, 1]`.
///
/// # Errors
///
/// No images, or the model fails.
pub(crate) fn accuracy(
    images: &Images,
    device: &Device,
    scores: impl Fn(&Tensor) -> candle_core::Result<Tensor>,
) -> Result<f64> {
    ensure!(images.len() > 0, "accuracy of no images: ask for at least one test image per class");
    let positions: Vec<_> = (0..images.len()).collect();
    let mut right = 0;
    for batch in positions.chunks(BATCH) {
        let best =
            scores(&windows(images, batch)?.to_device(device)?)?.argmax(D::Minus1)?.to_vec1::<u32>()?;
        right +=
            batch.iter().zip(best).filter(|(position, best)| images.labels()[**position] == *best).count();
    }
    Ok(right as f64 / images.len() as f64)
}
