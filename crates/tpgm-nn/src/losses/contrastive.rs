//! Pairs of images and texts.

use candle_core::{D, DType, Result, Tensor};

use super::distributions::option;
use crate::layers::composed::widened;
use crate::layers::{cross_entropy_smoothed, cross_entropy_soft, matmul_transposed, shape_error};

const OP: &str = "contrastive loss";

/// A contrastive loss and the logits that it was taken from.
#[derive(Debug, Clone)]
pub struct Contrastive {
    /// The mean of both directions: images among texts, texts among images.
    pub loss: Tensor,
    /// `scale * image . text`, shape (images, texts); its transpose is the other direction.
    pub logits: Tensor,
}

/// The symmetric contrastive loss of CLIP (InfoNCE; Radford et al., 2021, arXiv 2103.00020), as FLYP fine-tunes with it (Goyal
/// et al., CVPR 2023, arXiv 2212.00638): half of the cross-entropy of each image among the texts plus half of that of each text among the
/// images, with row `i` of one belonging to row `i` of the other.
///
/// `image` and `text`: features of shape (pairs, width), already normalized. `scale`: a scalar, the exponential of CLIP's logit
/// scale; it may be trained. `smoothing` of the labels is in 0..=1. With [`same_text_targets`] pairs that share a text belong
/// together.
///
/// # Errors
///
/// If the shapes do not fit, there are no pairs, or the smoothing is out of its range.
pub fn contrastive(image: &Tensor, text: &Tensor, scale: &Tensor, smoothing: f64) -> Result<Contrastive> {
    if image.dims() != text.dims() || image.rank() != 2 || image.dim(0)? == 0 {
        return Err(shape_error(
            OP,
            "images and texts must be pairs of features, at least one",
            &[image, text],
        ));
    }
    if scale.elem_count() != 1 {
        return Err(shape_error(OP, "the scale must be one number", &[scale]));
    }
    let logits = widened(&matmul_transposed(image, text)?)?;
    let logits = logits.broadcast_mul(&widened(scale)?.reshape(())?)?;
    let labels =
        Tensor::arange(0, u32::try_from(image.dim(0)?).map_err(candle_core::Error::wrap)?, image.device())?;
    let along = |logits: &Tensor| cross_entropy_smoothed(logits, &labels, smoothing);
    let loss = ((along(&logits)? + along(&logits.t()?.contiguous()?)?)? * 0.5)?;
    Ok(Contrastive { loss, logits })
}

/// Targets of a batch in which several pairs have the same text: row `i` is uniform over the pairs with the text of pair `i`. For
/// [`cross_entropy_soft`] of the logits and of their transpose (GIFT, arXiv 2503.04229).
///
/// `texts`: u8, u32 or i64 of shape (pairs,), equal for equal texts. Smoothed, a share of `smoothing` is uniform over all pairs.
///
/// # Errors
///
/// If there are no pairs, or the smoothing is out of its range.
pub fn same_text_targets(texts: &Tensor, dtype: DType, smoothing: f64) -> Result<Tensor> {
    if !(0.0..=1.0).contains(&smoothing) {
        return Err(option(OP, "label smoothing", smoothing, "in 0..=1"));
    }
    if texts.rank() != 1 || texts.elem_count() == 0 {
        return Err(shape_error(OP, "there must be a text for every pair, and at least one pair", &[texts]));
    }
    let pairs = texts.elem_count();
    let same = texts.unsqueeze(1)?.broadcast_eq(&texts.unsqueeze(0)?)?.to_dtype(dtype)?;
    let uniform = same.broadcast_div(&same.sum_keepdim(D::Minus1)?)?;
    (uniform * (1.0 - smoothing))? + smoothing / pairs as f64
}

impl Contrastive {
    /// The mean of both directions against other targets than the diagonal's: those of [`same_text_targets`].
    ///
    /// # Errors
    ///
    /// If the shapes do not fit.
    pub fn against(&self, targets: &Tensor) -> Result<Tensor> {
        let other = self.logits.t()?.contiguous()?;
        (cross_entropy_soft(&self.logits, targets)? + cross_entropy_soft(&other, targets)?)? * 0.5
    }
}
