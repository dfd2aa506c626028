//! Mixtures of the samples of a batch, with targets that are mixed alike.

use candle_core::{DType, IndexOp, Result, Tensor};

use super::distributions::option;
use crate::dtype::cast;
use crate::layers::{checked_labels, shape_error};
use crate::random::SplitMix64;

/// A mixed batch.
#[derive(Debug, Clone)]
pub struct Mixed {
    /// Images, of the shape and type that was given.
    pub images: Tensor,
    /// Target distributions, of shape (batch, classes), for [`cross_entropy_soft`](super::cross_entropy_soft).
    pub targets: Tensor,
    /// The share of each sample's own image and target; the rest is its partner's.
    pub share: f64,
    /// The partner of each sample.
    pub partners: Vec<u32>,
}

/// Mixup (Zhang et al., ICLR 2018, arXiv 1710.09412): every image is blended with another one of the batch,
/// `share * image + (1 - share) * partner`, and so are the targets. One share per batch, from the Beta distribution with both
/// parameters `alpha`, and partners by a random permutation, as in the authors' code. Used by BANG (arXiv 2309.17230).
///
/// ```
/// use candle_core::{DType, Device, Tensor};
/// use tpgm_nn::losses::{Mixup, cross_entropy_soft, one_hot};
/// use tpgm_nn::random::SplitMix64;
///
/// let images = Tensor::zeros((4, 3, 8, 8), DType::F32, &Device::Cpu)?;
/// let targets = one_hot(&Tensor::new(&[0u32, 2, 1, 2], &Device::Cpu)?, 3, DType::F32)?;
/// let mut random = SplitMix64::named(7, "mixup"); // the same batches in every run with this seed
/// let mixed = Mixup { alpha: 0.2 }.mix(&images, &targets, &mut random)?;
/// let logits = Tensor::zeros((4, 3), DType::F32, &Device::Cpu)?; // of mixed.images
/// let loss = cross_entropy_soft(&logits, &mixed.targets)?;
/// # Ok::<(), candle_core::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mixup {
    /// Above 0; 0.1 to 0.4 for ImageNet, 1 for CIFAR (the paper). Near 0 nearly nothing is mixed.
    pub alpha: f64,
}

impl Mixup {
    /// Mixes a batch: `images` of shape (batch, ...), `targets` of shape (batch, classes), for labels [`one_hot`].
    ///
    /// # Errors
    ///
    /// If the shapes do not fit, or `alpha` is not above 0.
    pub fn mix(&self, images: &Tensor, targets: &Tensor, random: &mut SplitMix64) -> Result<Mixed> {
        let (share, partners) = draw("mixup", self.alpha, images, targets, random)?;
        let order = Tensor::from_slice(&partners, partners.len(), images.device())?;
        let images = blend(images, &images.index_select(&order, 0)?, share)?;
        Ok(Mixed { images, targets: blended_targets(targets, &partners, share)?, share, partners })
    }
}

/// CutMix (Yun et al., ICCV 2019, arXiv 1905.04899): a rectangle of every image is replaced by the same one of another image of the
/// batch, and targets are mixed by the area that is left.
///
/// The rectangle covers about `1 - share` of the image, with the sides' proportions, `share` from the Beta distribution with both
/// parameters `alpha`. Its center is uniform over the image, and what sticks out is cut off, so the share that is
/// returned is that of the area really left: as in the authors' code.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CutMix {
    /// Above 0; 1 in the paper.
    pub alpha: f64,
}

impl CutMix {
    /// Mixes a batch: `images` of shape (batch, channels, height, width), `targets` of shape (batch, classes), for labels
    /// [`one_hot`].
    ///
    /// # Errors
    ///
    /// If the shapes do not fit, or `alpha` is not above 0.
    pub fn mix(&self, images: &Tensor, targets: &Tensor, random: &mut SplitMix64) -> Result<Mixed> {
        const OP: &str = "CutMix";
        let &[_, _, height, width] = images.dims() else {
            let expected = "images must have the shape (batch, channels, height, width)";
            return Err(shape_error(OP, expected, &[images]));
        };
        let (share, partners) = draw(OP, self.alpha, images, targets, random)?;
        let side = (1.0 - share).sqrt();
        let mut span = |length: usize| {
            let half = (length as f64 * side) as usize / 2;
            let center = random.below(length as u64) as usize;
            center.saturating_sub(half)..(center + half).min(length)
        };
        let (rows, columns) = (span(height), span(width));
        let area = rows.len() * columns.len();
        let share = 1.0 - area as f64 / (height * width).max(1) as f64;
        let images = match area {
            0 => images.clone(),
            _ => {
                let order = Tensor::from_slice(&partners, partners.len(), images.device())?;
                let patch = images
                    .index_select(&order, 0)?
                    .i((.., .., rows.clone(), columns.clone()))?
                    .contiguous()?;
                let starts = [(2, rows.start), (3, columns.start)];
                let mut whole = images.i((.., .., rows, ..))?.contiguous()?;
                whole = whole.slice_scatter(&patch, 3, starts[1].1)?;
                images.slice_scatter(&whole, 2, starts[0].1)?
            }
        };
        Ok(Mixed { images, targets: blended_targets(targets, &partners, share)?, share, partners })
    }
}

/// Checks a batch and draws how it is mixed.
fn draw(
    op: &'static str,
    alpha: f64,
    images: &Tensor,
    targets: &Tensor,
    random: &mut SplitMix64,
) -> Result<(f64, Vec<u32>)> {
    if !(alpha > 0.0 && alpha.is_finite()) {
        return Err(option(op, "alpha", alpha, "finite and above 0"));
    }
    let batch = images.dims().first().copied().unwrap_or(0);
    if targets.rank() != 2 || targets.dim(0)? != batch || batch == 0 {
        let expected =
            "targets must have the shape (batch, classes), a row for every image, and at least one";
        return Err(shape_error(op, expected, &[images, targets]));
    }
    let share = random.beta(alpha, alpha);
    let mut partners: Vec<u32> = (0..u32::try_from(batch).map_err(candle_core::Error::wrap)?).collect();
    for last in (1..batch).rev() {
        partners.swap(last, random.below(last as u64 + 1) as usize);
    }
    Ok((share, partners))
}

/// `share * own + (1 - share) * other`
fn blend(own: &Tensor, other: &Tensor, share: f64) -> Result<Tensor> {
    (own * share)? + (other * (1.0 - share))?
}

fn blended_targets(targets: &Tensor, partners: &[u32], share: f64) -> Result<Tensor> {
    let order = Tensor::from_slice(partners, partners.len(), targets.device())?;
    blend(targets, &targets.index_select(&order, 0)?, share)
}

/// Labels as distributions: 1 for the label's class, else 0. Shape (rows, classes).
///
/// `labels`: u8, u32 or i64 of shape (rows,).
///
/// # Errors
///
/// A label that is no class, or a wrong shape.
pub fn one_hot(labels: &Tensor, classes: usize, dtype: DType) -> Result<Tensor> {
    const OP: &str = "one-hot labels";
    if labels.rank() != 1 {
        return Err(shape_error(OP, "labels must have one dimension", &[labels]));
    }
    let rows = labels.elem_count();
    let mut data = vec![0f32; rows * classes];
    for (row, label) in checked_labels(OP, labels, classes)?.into_iter().enumerate() {
        data[row * classes + label as usize] = 1.0;
    }
    cast(&Tensor::from_vec(data, (rows, classes), labels.device())?, dtype)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    /// Image `i` is `i` everywhere; its label is `i % 3`.
    fn batch(count: usize) -> (Tensor, Tensor) {
        let values: Vec<f64> = (0..count).flat_map(|i| vec![i as f64; 2 * 6 * 8]).collect();
        let images = Tensor::from_vec(values, (count, 2, 6, 8), &Device::Cpu).unwrap();
        let labels =
            Tensor::from_vec((0..count as i64).map(|i| i % 3).collect(), count, &Device::Cpu).unwrap();
        (images, one_hot(&labels, 3, DType::F64).unwrap())
    }

    fn rows(tensor: &Tensor) -> Vec<Vec<f64>> {
        tensor.flatten_from(1).unwrap().to_vec2().unwrap()
    }

    /// What a target must be, by the definition.
    fn expected_target(i: usize, mixed: &Mixed) -> [f64; 3] {
        let mut target = [0.0; 3];
        target[i % 3] += mixed.share;
        target[mixed.partners[i] as usize % 3] += 1.0 - mixed.share;
        target
    }

    #[test]
    fn images_and_targets_are_mixed_alike() {
        let (images, targets) = batch(7);
        let mut random = SplitMix64::new(3);
        let mut shares = Vec::new();
        for _ in 0..20 {
            let mixed = Mixup { alpha: 0.5 }.mix(&images, &targets, &mut random).unwrap();
            let mut partners = mixed.partners.clone();
            partners.sort_unstable();
            assert_eq!(partners, (0..7).collect::<Vec<u32>>());
            for (i, (image, target)) in rows(&mixed.images).iter().zip(rows(&mixed.targets)).enumerate() {
                let value = mixed.share * i as f64 + (1.0 - mixed.share) * f64::from(mixed.partners[i]);
                assert!(image.iter().all(|x| (x - value).abs() < 1e-12));
                for (got, expected) in target.iter().zip(expected_target(i, &mixed)) {
                    assert!((got - expected).abs() < 1e-12);
                }
            }
            shares.push(mixed.share);
        }
        assert!(shares.iter().any(|share| *share < 0.3) && shares.iter().any(|share| *share > 0.7));
        // The seed decides, and nothing else.
        let again = Mixup { alpha: 0.5 }.mix(&images, &targets, &mut SplitMix64::new(3)).unwrap();
        assert_eq!(again.share, shares[0]);
    }

    #[test]
    fn targets_follow_the_area_that_is_left() {
        let (images, targets) = batch(5);
        let mut random = SplitMix64::new(11);
        let mut cut = 0;
        for _ in 0..50 {
            let mixed = CutMix { alpha: 1.0 }.mix(&images, &targets, &mut random).unwrap();
            for (i, (image, target)) in rows(&mixed.images).iter().zip(rows(&mixed.targets)).enumerate() {
                let partner = f64::from(mixed.partners[i]);
                assert!(image.iter().all(|x| *x == i as f64 || *x == partner));
                if partner != i as f64 {
                    let own = image.iter().filter(|x| **x == i as f64).count() as f64;
                    assert!((own / image.len() as f64 - mixed.share).abs() < 1e-12, "{} {own}", mixed.share);
                    cut += usize::from(mixed.share < 1.0);
                    // The part that is replaced is a rectangle, the same in both channels.
                    let inside: Vec<usize> = (0..96).filter(|at| image[*at] == partner).collect();
                    let (first, second): (Vec<_>, Vec<_>) = inside.iter().partition(|at| **at < 48);
                    assert_eq!(first, second.iter().map(|at| at - 48).collect::<Vec<_>>());
                    let side = |of: fn(&usize) -> usize| {
                        let all: std::collections::BTreeSet<_> = first.iter().map(of).collect();
                        all.last().zip(all.first()).map_or(0, |(last, first)| last - first + 1)
                    };
                    assert_eq!(side(|at| at / 8) * side(|at| at % 8), first.len());
                }
                for (got, expected) in target.iter().zip(expected_target(i, &mixed)) {
                    assert!((got - expected).abs() < 1e-12);
                }
            }
        }
        assert!(cut > 50);
    }
}
