//! Heads made of texts, and predictions that are mixed as probabilities.

use candle_core::{D, Result, Tensor};

use super::distributions::option;
use crate::dtype::cast;
use crate::layers::composed::widened;
use crate::layers::{matmul_transposed, shape_error, softmax_last_dim};

/// A zero-shot head from embeddings of texts (CLIP, arXiv 2103.00020, section 3.1.4): for each class the mean over its texts of
/// the embeddings divided by their lengths, divided by its length, times `scale`. Shape (classes, features): the weight of
/// a linear layer over normalized image features.
///
/// `texts`: embeddings of shape (classes, texts of a class, features), or (classes, features) for one text each, such as a
/// description of the concept. They need not be normalized. `scale`: a scalar, the exponential of CLIP's logit scale.
///
/// # Errors
///
/// If the shapes do not fit, or there is no text.
pub fn zero_shot_head(texts: &Tensor, scale: &Tensor) -> Result<Tensor> {
    const OP: &str = "zero-shot head";
    if !matches!(texts.rank(), 2 | 3) || texts.elem_count() == 0 {
        let expected = "embeddings must have the shape (classes, texts, features) or (classes, features)";
        return Err(shape_error(OP, expected, &[texts]));
    }
    if scale.elem_count() != 1 {
        return Err(shape_error(OP, "the scale must be one number", &[scale]));
    }
    let units = unit(&widened(texts)?)?;
    let classes = if texts.rank() == 3 { unit(&units.mean(1)?)? } else { units };
    classes.broadcast_mul(&widened(scale)?.reshape(())?)
}

/// Rows divided by their lengths.
fn unit(x: &Tensor) -> Result<Tensor> {
    x.broadcast_div(&x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?)
}

/// The prediction of two zero-shot heads (DRM, arXiv 2411.19757): `share * softmax(basic image) + (1 - share) *
/// softmax(concept image)`, shape (images, classes). Probabilities are mixed, not logits.
///
/// `image`: normalized features of shape (images, features). `basic` (from templates with the class's name) and `concept` (from
/// descriptions): [`zero_shot_head`]s. `share` is in 0..=1; the authors take 0.5.
///
/// # Errors
///
/// If the shapes do not fit, or the share is out of its range.
pub fn mixed_probabilities(image: &Tensor, basic: &Tensor, concept: &Tensor, share: f64) -> Result<Tensor> {
    const OP: &str = "mixed probabilities";
    if !(0.0..=1.0).contains(&share) {
        return Err(option(OP, "share", share, "in 0..=1"));
    }
    if image.rank() != 2
        || basic.dims() != concept.dims()
        || basic.rank() != 2
        || basic.dim(1)? != image.dim(1)?
    {
        let expected = "heads must have one shape, (classes, features), for images of (images, features)";
        return Err(shape_error(OP, expected, &[image, basic, concept]));
    }
    let image = widened(image)?;
    let of = |head: &Tensor| softmax_last_dim(&matmul_transposed(&image, &cast(head, image.dtype())?)?);
    (of(basic)? * share)? + (of(concept)? * (1.0 - share))?
}
