//! The 3 x 3 surroundings of every token, side by side: with it, a convolution is one matrix product.
//!
//! candle's own convolution on the CPU was measured first; the README of `domainnet_mini` has the figures.

use candle_core::{CpuStorage, CustomOp1, Layout, Result, Shape, Tensor, bail};
use rayon::prelude::*;

/// Offsets of the window, row by row.
const WINDOW: [(isize, isize); 9] =
    [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 0), (0, 1), (1, -1), (1, 0), (1, 1)];

/// `[images, height, width, channels]` to `[images, height, width, 9 * channels]`; zeros beyond the border. On other devices
/// than the CPU from candle's own operations.
///
/// # Errors
///
/// `tokens` has another rank, or is not f32 on the CPU.
pub fn neighbors(tokens: &Tensor) -> Result<Tensor> {
    if tokens.device().is_cpu() { tokens.contiguous()?.apply_op1(Gather) } else { composed(tokens) }
}

/// The same as [`neighbors`], on any device.
fn composed(tokens: &Tensor) -> Result<Tensor> {
    let (_, height, width, _) = tokens.dims4()?;
    let padded = tokens.pad_with_zeros(1, 1, 1)?.pad_with_zeros(2, 1, 1)?;
    // The margin of one token makes offset -1 the first.
    let shifted = |(down, right): (isize, isize)| {
        padded.narrow(1, (down + 1) as usize, height)?.narrow(2, (right + 1) as usize, width)
    };
    Tensor::cat(&WINDOW.into_iter().map(shifted).collect::<Result<Vec<_>>>()?, 3)
}

struct Gather;

/// The transpose of [`Gather`]: adds every window entry to the token it came from.
struct Scatter;

/// Calls `visit(slot, token, source)` for every window slot of every token whose source lies in the image.
fn for_each_pair(height: usize, width: usize, mut visit: impl FnMut(usize, usize, usize)) {
    for row in 0..height {
        for column in 0..width {
            for (slot, (down, right)) in WINDOW.into_iter().enumerate() {
                if let (Some(r), Some(c)) = (row.checked_add_signed(down), column.checked_add_signed(right))
                    && r < height
                    && c < width
                {
                    visit(slot, row * width + column, r * width + c);
                }
            }
        }
    }
}

/// The values of a contiguous f32 tensor and its four dimensions.
fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<(&'a [f32], [usize; 4])> {
    let (Some((start, end)), &[n, h, w, c]) = (layout.contiguous_offsets(), layout.dims()) else {
        bail!("neighbors: a contiguous tensor of four dimensions is needed, not {:?}", layout.dims());
    };
    Ok((&storage.as_slice::<f32>()?[start..end], [n, h, w, c]))
}

impl CustomOp1 for Gather {
    fn name(&self) -> &'static str {
        "neighbors"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (source, [images, height, width, channels]) = values(storage, layout)?;
        let size = height * width * channels;
        let mut windows = vec![0f32; 9 * source.len()];
        if !source.is_empty() {
            windows.par_chunks_exact_mut(9 * size).zip(source.par_chunks_exact(size)).for_each(
                |(to, from)| {
                    for_each_pair(height, width, |slot, token, source| {
                        to[(9 * token + slot) * channels..][..channels]
                            .copy_from_slice(&from[source * channels..][..channels]);
                    });
                },
            );
        }
        Ok((CpuStorage::F32(windows), Shape::from((images, height, width, 9 * channels))))
    }

    fn bwd(&self, _tokens: &Tensor, _windows: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        grad.contiguous()?.apply_op1_no_bwd(&Scatter).map(Some)
    }
}

impl CustomOp1 for Scatter {
    fn name(&self) -> &'static str {
        "neighbors-backward"
    }

    fn cpu_fwd(&self, storage: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (grad, [images, height, width, channels]) = values(storage, layout)?;
        let channels = channels / 9;
        let size = height * width * channels;
        let mut tokens = vec![0f32; images * size];
        if !grad.is_empty() {
            tokens.par_chunks_exact_mut(size).zip(grad.par_chunks_exact(9 * size)).for_each(|(to, from)| {
                for_each_pair(height, width, |slot, token, source| {
                    let from = &from[(9 * token + slot) * channels..][..channels];
                    to[source * channels..][..channels]
                        .iter_mut()
                        .zip(from)
                        .for_each(|(to, from)| *to += from);
                });
            });
        }
        Ok((CpuStorage::F32(tokens), Shape::from((images, height, width, channels))))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;

    // Values to the bit; gradients are sums of the same nine numbers, in another order.
    #[test]
    fn composed_neighbors_are_the_same() {
        let number = |position: usize| (position as f32 * 0.7).sin();
        let values: Vec<_> = (0..2 * 3 * 4 * 5).map(number).collect();
        let tokens = Var::from_vec(values, (2, 3, 4, 5), &Device::Cpu).unwrap();
        let weights: Vec<_> = (0..2 * 3 * 4 * 45).map(|position| number(3 * position + 1)).collect();
        let weights = Tensor::from_vec(weights, (2, 3, 4, 45), &Device::Cpu).unwrap();
        let numbers = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let of = |found: Result<Tensor>| {
            let found = found.unwrap();
            let grads = (&found * &weights).unwrap().sum_all().unwrap().backward().unwrap();
            (numbers(&found), numbers(grads.get(&tokens).unwrap()))
        };
        let ((fused, fused_grad), (found, grad)) = (of(neighbors(&tokens)), of(composed(&tokens)));
        assert_eq!(found, fused);
        for (found, fused) in grad.iter().zip(&fused_grad) {
            assert!((found - fused).abs() <= 1e-5, "{found} {fused}");
        }
        assert_eq!(grad.len(), fused_grad.len());
    }
}
