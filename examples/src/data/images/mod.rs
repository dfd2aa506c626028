//! Classified images from folders and list files.

mod decode;
mod find;
mod list;
mod preprocess;
mod transform;

pub use self::decode::decode;
pub use self::find::{Source, parse_list};
pub use self::list::ImageList;
pub use self::preprocess::{PREPROCESSING_FILES, Preprocessing};
pub use self::transform::{Affine, Augmentation, Crop, Resample, Transform};

use anyhow::Result;
use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::Problems;
use crate::study::Batch;

/// Some images, ready for a model; read into the host's memory.
#[derive(Debug, Clone)]
pub struct ImageBatch {
    /// `[images, 3, side, side]`, normalized.
    pub pixels: Tensor,
    /// Classes, `[images]`.
    pub labels: Tensor,
    /// Positions of the images in their list: those of the request that could be read.
    pub positions: Vec<usize>,
}

impl Batch for ImageBatch {
    fn to_device(self, device: &Device) -> candle_core::Result<Self> {
        let Self { pixels, labels, positions } = self;
        Ok(Self { pixels: pixels.to_device(device)?, labels: labels.to_device(device)?, positions })
    }
}

/// Reads images and prepares them, on several threads. What cannot be read is noted in `problems` and left out; `None` if
/// nothing is left. `draw` seeds the augmentation of this pass over the data; the same image is then drawn the same.
///
/// # Errors
///
/// An image that is not to be passed over.
pub fn read_batch(
    list: &ImageList,
    positions: &[usize],
    transform: &Transform,
    draw: u64,
    problems: &Problems,
) -> Result<Option<ImageBatch>> {
    let read = |position: &usize| {
        let path = list.path(*position);
        let seed = draw.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ *position as u64;
        match transform.read(path, seed) {
            Ok(pixels) => Ok(Some((*position, pixels))),
            Err(error) => problems.note(path.display().to_string(), format!("{error:#}")).map(|()| None),
        }
    };
    let images = positions.par_iter().map(read).collect::<Result<Vec<_>>>()?;
    let images: Vec<_> = images.into_iter().flatten().collect();
    if images.is_empty() {
        return Ok(None);
    }
    let side = transform.side;
    let mut pixels = Vec::with_capacity(images.len() * 3 * side * side);
    images.iter().for_each(|(_, image)| pixels.extend_from_slice(image));
    let positions: Vec<_> = images.iter().map(|(position, _)| *position).collect();
    let labels: Vec<_> = positions.iter().map(|position| list.labels()[*position]).collect();
    Ok(Some(ImageBatch {
        pixels: Tensor::from_vec(pixels, (images.len(), 3, side, side), &Device::Cpu)?,
        labels: Tensor::from_vec(labels, images.len(), &Device::Cpu)?,
        positions,
    }))
}
