//! Which images of a set are classified rightly.

use anyhow::{Result, ensure};
use candle_core::{D, Device, Tensor};
use tpgm_examples::study::Marks;

use crate::windows::windows;
use tpgm_examples::mini::data::Images;

/// Images at once.
const BATCH: usize = 200;

/// Which images have their highest score, by a model on `device`, for their class.
///
/// # Errors
///
/// No images, or the model fails.
pub(crate) fn marks(
    images: &Images,
    device: &Device,
    scores: impl Fn(&Tensor) -> candle_core::Result<Tensor>,
) -> Result<Marks> {
    ensure!(!images.is_empty(), "accuracy of no images: ask for at least one test image per class");
    let positions: Vec<_> = (0..images.len()).collect();
    let mut right = Vec::with_capacity(images.len());
    for batch in positions.chunks(BATCH) {
        let best =
            scores(&windows(images, batch)?.to_device(device)?)?.argmax(D::Minus1)?.to_vec1::<u32>()?;
        right.extend(batch.iter().zip(best).map(|(position, best)| images.labels()[*position] == best));
    }
    Ok(Marks::new(right))
}
