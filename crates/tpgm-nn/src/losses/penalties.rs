//! Penalties of projections and of features.

use candle_core::{Result, Tensor};

use crate::layers::composed::widened;
use crate::layers::{matmul, matmul_transposed, shape_error};

/// How far a projection is from keeping lengths: the Frobenius norm `|P^T P - I|` (CaRot, arXiv 2311.01723; not squared, as
/// published).
///
/// `projection`: shape (width, features). At `P^T P = I` the norm has no gradient; it is 0 here.
///
/// # Errors
///
/// If it is no matrix.
pub fn orthogonality(projection: &Tensor) -> Result<Tensor> {
    const OP: &str = "orthogonality";
    let [_, features] = projection.dims() else {
        return Err(shape_error(OP, "the projection must be a matrix", &[projection]));
    };
    let p = widened(projection)?;
    let gram = matmul(&p.t()?.contiguous()?, &p)?;
    frobenius(&(gram - Tensor::eye(*features, p.dtype(), p.device())?)?)
}

/// How much two projections have in common: the Frobenius norm `|P_image P_text^T|` (CaRot's cross norm; not squared, as
/// published).
///
/// `image`: shape (width of images, features); `text`: shape (width of texts, features). Where the product is 0 the norm has no
/// gradient; it is 0 here.
///
/// # Errors
///
/// If they are no matrices with the same number of features.
pub fn cross_norm(image: &Tensor, text: &Tensor) -> Result<Tensor> {
    const OP: &str = "cross norm";
    let ([_, left], [_, right]) = (image.dims(), text.dims()) else {
        return Err(shape_error(OP, "the projections must be matrices", &[image, text]));
    };
    if left != right {
        return Err(shape_error(OP, "the projections must have the same number of features", &[image, text]));
    }
    frobenius(&matmul_transposed(&widened(image)?, &widened(text)?)?)
}

/// The root of the sum of squares. Its gradient at 0 is 0: the smallest of its subgradients.
fn frobenius(x: &Tensor) -> Result<Tensor> {
    let squares = x.sqr()?.sum_all()?;
    // One is added to a zero and taken from its root, so that the host need not look.
    let zero = squares.detach().eq(0.0)?.to_dtype(squares.dtype())?;
    (squares + &zero)?.sqrt()? - zero
}

/// How far a model's energies of random texts have moved from the pre-trained model's (Lipsum-FT, CVPR 2024, arXiv 2404.00860):
/// the mean over the images of `sum_m (scale * (image - anchor) . text_m)^2 / (2 M)`.
///
/// `image` and `anchor`: normalized image features of the model and of the pre-trained one, shape (images, width). `text`:
/// normalized features of `M` random texts, shape (M, width). `scale`: the exponential of the logit scale, a constant. No gradient
/// reaches `anchor` and `text`.
///
/// # Errors
///
/// If the shapes do not fit, or there is nothing to average over.
pub fn energy_gap(image: &Tensor, anchor: &Tensor, text: &Tensor, scale: f64) -> Result<Tensor> {
    const OP: &str = "energy gap";
    let ([images, width], [texts, other]) = (image.dims(), text.dims()) else {
        return Err(shape_error(OP, "features must be matrices", &[image, anchor, text]));
    };
    if image.dims() != anchor.dims() || width != other || images * texts == 0 {
        let expected =
            "images and anchors must have one shape, and texts the same width; at least one of each";
        return Err(shape_error(OP, expected, &[image, anchor, text]));
    }
    let moved = (widened(image)? - widened(anchor)?.detach())?;
    let gaps = (matmul_transposed(&moved, &widened(text)?.detach())? * scale)?;
    gaps.sqr()?.sum_all()? / (2.0 * (images * texts) as f64)
}
