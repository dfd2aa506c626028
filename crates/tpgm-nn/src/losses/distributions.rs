//! Losses of logits against distributions, and of the distributions themselves.

use candle_core::{D, Result, Tensor};

use crate::dtype::cast;
use crate::error::Error;
use crate::layers::composed::widened;
use crate::layers::{checked_labels, cross_entropy_soft, log_softmax_last_dim, shape_error};

/// Logits as rows of a type that sums are taken in, and their logarithms of softmax.
fn log_probabilities(op: &'static str, logits: &Tensor) -> Result<Tensor> {
    let classes = logits.dims().last().copied().unwrap_or_default();
    if logits.elem_count() == 0 || classes == 0 {
        return Err(shape_error(op, "there must be at least one row and one class", &[logits]));
    }
    log_softmax_last_dim(&widened(&logits.reshape(((), classes))?)?)
}

pub(super) fn option(
    op: &'static str,
    option: &'static str,
    value: f64,
    range: &'static str,
) -> candle_core::Error {
    Error::LayerOption { op, option, value, range }.into()
}

/// The sum over the classes of `p * q`, averaged over the rows.
fn mean_dot(p: &Tensor, q: &Tensor) -> Result<Tensor> {
    let rows = p.dim(0)?;
    (p * q)?.sum_all()? / rows as f64
}

/// What [`distillation`] measures between the teacher's distribution `p` and the student's `q`, both at the temperature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Divergence {
    /// `-sum p ln q`: as the published code of CaRot and GIFT. The gradient of `ForwardKl`, and another value.
    #[default]
    CrossEntropy,
    /// `sum p ln(p / q)` (Hinton et al., 2015, arXiv 1503.02531).
    ForwardKl,
    /// `sum q ln(q / p)`: drawn to the teacher's largest mode.
    ReverseKl,
}

/// Distillation with a temperature: `T^2` times the divergence of `softmax(teacher / T)` and `softmax(student / T)`, averaged
/// over the rows. Source: Hinton et al., "Distilling the Knowledge in a Neural Network" (2015, arXiv 1503.02531).
///
/// `student` and `teacher`: logits of shape (..., classes). `temperature` is above 0. No gradient reaches the teacher. For logits
/// between images and texts, add the losses of both directions: of the logits and of their transposes.
///
/// # Errors
///
/// If the shapes differ, there is nothing to average over, or the temperature is out of its range.
pub fn distillation(
    student: &Tensor,
    teacher: &Tensor,
    temperature: f64,
    divergence: Divergence,
) -> Result<Tensor> {
    const OP: &str = "distillation";
    if student.dims() != teacher.dims() {
        return Err(shape_error(OP, "student and teacher must have one shape", &[student, teacher]));
    }
    if !(temperature > 0.0 && temperature.is_finite()) {
        return Err(option(OP, "temperature", temperature, "finite and above 0"));
    }
    // Logarithms of the teacher's have no graph: it is detached.
    let log_p = log_probabilities(OP, &(widened(&teacher.detach())? / temperature)?)?;
    let student = (widened(student)?.reshape(log_p.shape())? / temperature)?;
    let log_p = cast(&log_p, student.dtype())?;
    let cross = || cross_entropy_soft(&student, &log_p.exp()?);
    let loss = match divergence {
        Divergence::CrossEntropy => cross()?,
        Divergence::ForwardKl => (cross()? + mean_dot(&log_p.exp()?, &log_p)?)?,
        Divergence::ReverseKl => {
            let log_q = log_probabilities(OP, &student)?;
            mean_dot(&log_q.exp()?, &(&log_q - &log_p)?)?
        }
    };
    loss * (temperature * temperature)
}

/// The entropy of the predicted distributions in nats, averaged over the rows: `-sum p ln p`. Minimized at test time by Tent
/// (Wang et al., ICLR 2021, arXiv 2006.10726).
///
/// `logits`: shape (..., classes).
///
/// # Errors
///
/// If there is nothing to average over.
pub fn entropy(logits: &Tensor) -> Result<Tensor> {
    let log_p = log_probabilities("entropy", logits)?;
    mean_dot(&log_p.exp()?, &log_p)?.neg()
}

/// The entropy of the predictions that are wrong (DCM of Miller et al., in AutoFT, arXiv 2401.10220): its sum over rows whose
/// largest logit is not the label's, divided by the number of **all** rows. Which rows those are has no gradient.
///
/// `logits`: shape (rows, classes). `labels`: u8, u32 or i64 of shape (rows,). Of equal largest logits the first counts.
///
/// # Errors
///
/// If the shapes do not fit, or there are no rows.
pub fn entropy_of_mistakes(logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    const OP: &str = "entropy of mistakes";
    let labels = labels_of(OP, logits, labels)?;
    let log_p = log_probabilities(OP, logits)?;
    let mistakes = log_p.detach().argmax(D::Minus1)?.ne(&labels)?.to_dtype(log_p.dtype())?.unsqueeze(1)?;
    mean_dot(&log_p.exp()?.broadcast_mul(&mistakes)?, &log_p)?.neg()
}

/// The sum over the wrong classes of `max(0, logit_j - logit_label + margin)`, averaged over the rows: a multi-class hinge
/// (Weston and Watkins, 1999). PyTorch's `multi_margin_loss` divides by the number of classes besides; AutoFT does not.
///
/// `logits`: shape (rows, classes). `labels`: u8, u32 or i64 of shape (rows,). `margin` is at least 0; 1 is usual. At the kink the
/// gradient is 0.
///
/// # Errors
///
/// If the shapes do not fit, there are no rows, or the margin is out of its range.
pub fn multi_margin(logits: &Tensor, labels: &Tensor, margin: f64) -> Result<Tensor> {
    const OP: &str = "multi-class margin";
    if !(margin >= 0.0 && margin.is_finite()) {
        return Err(option(OP, "margin", margin, "finite and at least 0"));
    }
    let labels = labels_of(OP, logits, labels)?;
    let (rows, _) = logits.dims2()?;
    let logits = widened(logits)?;
    let of_label = logits.gather(&labels.unsqueeze(1)?, 1)?;
    let excess = (logits.broadcast_sub(&of_label)? + margin)?.relu()?;
    // Each row has its own label among the classes, with an excess of the margin.
    (excess.sum_all()? / rows as f64)? - margin
}

/// The labels as u32, each a class, one per row of two-dimensional logits.
fn labels_of(op: &'static str, logits: &Tensor, labels: &Tensor) -> Result<Tensor> {
    let &[rows, classes] = logits.dims() else {
        return Err(shape_error(op, "logits must have two dimensions", &[logits]));
    };
    if labels.dims() != [rows] || logits.elem_count() == 0 {
        let expected = "there must be a label for every row, and at least one row";
        return Err(shape_error(op, expected, &[logits, labels]));
    }
    Tensor::from_vec(checked_labels(op, labels, classes)?, rows, logits.device())
}
