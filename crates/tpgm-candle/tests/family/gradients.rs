//! Changes of gradients: FSTTA's concordant gradient and GradMF's pair.

use candle_core::{Result, Tensor};
use tpgm_candle::core::gradient::{GradientTransform, OrthogonalPart, concordant};
use tpgm_candle::core::{Buffer, DType as CoreDType, ParamSet, Slice};

use crate::case::{Case, Outputs};

/// A tensor as the core has it.
pub(crate) fn buffer(tensor: &Tensor) -> Result<Buffer> {
    let dtype = match tensor.dtype() {
        candle_core::DType::F64 => CoreDType::F64,
        _ => CoreDType::F32,
    };
    Ok(Buffer::from_f64(dtype, &crate::case::numbers(tensor)?))
}

pub(crate) fn fstta_gradient(case: &Case) -> Result<Outputs> {
    let gradients = case.input("gradients")?;
    let rows = (0..gradients.dim(0)?).map(|i| buffer(&gradients.get(i)?)).collect::<Result<Vec<_>>>()?;
    let slices: Vec<Slice<'_>> = rows.iter().map(Buffer::as_slice).collect();
    let first = gradients.get(0)?;
    let mut out = Buffer::zeros(rows[0].dtype(), first.elem_count());
    let trace =
        concordant(&slices, case.number("/floor")?, out.as_mut()).map_err(candle_core::Error::wrap)?;
    let trace = Tensor::new(trace, first.device())?.to_dtype(first.dtype())?;
    Ok(vec![("gradient".into(), case.tensor(&out.to_f64(), &first)?), ("trace".into(), trace)])
}

pub(crate) fn gradient_pair(case: &Case) -> Result<Outputs> {
    let (first, second) = (case.input("first")?, case.input("second")?);
    let wrap = |error: tpgm_candle::core::Error| candle_core::Error::wrap(error);
    let (mut grad, other) = (buffer(&first)?, buffer(&second)?);
    let set = ParamSet::builder().tensor("all", [grad.len()], grad.dtype()).build().map_err(wrap)?;
    let transform = OrthogonalPart::new(&set).eps(case.number("/eps")?).map_err(wrap)?;
    let mut transform = transform.rounds(case.number("/rounds")? as usize).map_err(wrap)?;
    transform.second(&[Some(other.as_slice())]).map_err(wrap)?;
    transform.apply(&mut [Some(grad.as_mut())]).map_err(wrap)?;
    Ok(vec![("gradient".into(), case.tensor(&grad.to_f64(), &first)?)])
}
