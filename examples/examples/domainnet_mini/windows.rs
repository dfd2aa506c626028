//! Batches as the backbone takes them.

use candle_core::{DType, Device, Result, Tensor};
use tpgm_examples::mini::{SIDE, STRIDE, TOKENS, WINDOW};

use tpgm_examples::mini::data::{BYTES, Images};

/// The stem's windows of some images: `[images * tokens, 192]`, values about -2 to 2, zeros beyond the border.
pub(crate) fn windows(images: &Images, positions: &[usize]) -> Result<Tensor> {
    const MARGIN: usize = (WINDOW - STRIDE) / 2;
    const SIZE: usize = WINDOW * WINDOW * 3;
    let mut values = vec![0f32; positions.len() * TOKENS * TOKENS * SIZE];
    for (token, window) in values.chunks_exact_mut(SIZE).enumerate() {
        let image = images.image(positions[token / (TOKENS * TOKENS)]);
        let (down, right) = (token / TOKENS % TOKENS * STRIDE, token % TOKENS * STRIDE);
        for (pixel, out) in window.chunks_exact_mut(3).enumerate() {
            let (row, column) = (down + pixel / WINDOW, right + pixel % WINDOW);
            // Rows and columns are counted from the margin: below it, and beyond the image, is nothing.
            let inside = |at: usize| (MARGIN..SIDE + MARGIN).contains(&at);
            if inside(row) && inside(column) {
                let at = ((row - MARGIN) * SIDE + column - MARGIN) * 3;
                out.iter_mut()
                    .zip(&image[at..at + 3])
                    .for_each(|(out, byte)| *out = f32::from(*byte) / 64.0 - 2.0);
            }
        }
    }
    debug_assert_eq!(BYTES, SIDE * SIDE * 3);
    Tensor::from_vec(values, (positions.len() * TOKENS * TOKENS, SIZE), &Device::Cpu)
}

/// The classes of some images, `[images]`.
pub(crate) fn labels(images: &Images, positions: &[usize]) -> Result<Tensor> {
    let labels: Vec<_> = positions.iter().map(|position| images.labels()[*position]).collect();
    Tensor::from_vec(labels, positions.len(), &Device::Cpu)?.to_dtype(DType::U32)
}
