//! Interpolation between the anchors and the current values of a model.

use std::collections::BTreeMap;

use tpgm_core::weight_space::{WiseEntry, WiseFt};
use tpgm_core::{Buffer, Slice};

use super::host::{Elements, overwrite};
use super::tensors::Tensors;
use crate::dtype::{core_dtype, to_buffer, to_tensor};
use crate::error::{Error, Result};
use crate::params::{Anchor, Param, Params};

/// The interpolation of every parameter between its anchor and its value now (WiSE-FT, arXiv 2109.01903), as new tensors
/// by name.
///
/// `alpha` in `[0, 1]` is the share of the current value. A parameter with the zero anchor is scaled by `alpha`, one
/// without an anchor (a new head) stays as it is. Reads anchors and values once.
///
/// # Errors
///
/// [`Error::Core`] for `alpha` outside its range, or the device fails.
pub fn wise(params: &Params, alpha: f64) -> Result<Tensors> {
    let wise = options(alpha)?;
    let mut merged = BTreeMap::new();
    for param in params.all() {
        let value = param.var().as_tensor();
        let mut out = Buffer::zeros(core_dtype(param.name(), value.dtype())?, value.elem_count());
        let current = Elements::new(param.name(), value)?;
        blend(&wise, &param, current.slice(), out.as_mut())?;
        drop(current);
        merged.insert(param.name().to_owned(), to_tensor(out.as_slice(), value.shape(), value.device())?);
    }
    Ok(merged)
}

/// Sets the parameters of a model to interpolations between their anchors and their fine-tuned values, and puts the
/// fine-tuned values back when it is dropped.
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use tpgm_candle::weight_space::Interpolation;
/// use tpgm_candle::{Param, Params};
/// let var = Var::new(&[0f32, 1.], &Device::Cpu)?;
/// let params = Params::from_params([Param::anchored_here("w", var.clone())?])?;
/// var.set(&Tensor::new(&[4f32, 3.], &Device::Cpu)?)?; // training
/// let mut between = Interpolation::new(&params)?;
/// between.set(0.25)?;
/// assert_eq!(var.to_vec1::<f32>()?, [1.0, 1.5]); // evaluate the model here
/// between.restore()?;
/// assert_eq!(var.to_vec1::<f32>()?, [4.0, 3.0]);
/// # Ok::<(), tpgm_candle::Error>(())
/// ```
///
/// Holds one copy of the parameters that have an anchor, on the host. Do not train meanwhile: what an optimizer writes is
/// lost.
#[derive(Debug)]
pub struct Interpolation {
    /// Parameters with an anchor, and their fine-tuned values.
    tuned: Vec<(Param, Buffer)>,
    /// True while the parameters may differ from the fine-tuned values.
    moved: bool,
}

impl Interpolation {
    /// Remembers the current values as the fine-tuned ones. Changes nothing yet.
    ///
    /// # Errors
    ///
    /// The device fails.
    pub fn new(params: &Params) -> Result<Self> {
        let anchored = params.all().into_iter().filter(|param| !matches!(param.anchor(), Anchor::None));
        let remember = |param: Param| {
            let value = to_buffer(param.name(), param.var().as_tensor())?;
            Ok((param, value))
        };
        Ok(Self { tuned: anchored.map(remember).collect::<Result<_>>()?, moved: false })
    }

    /// Writes `(1 - alpha) * anchor + alpha * fine-tuned` to the parameters, whatever was set before. 0 and 1 give the
    /// anchors and the fine-tuned values bit for bit. Per f32 parameter: 8 bytes read, 4 written.
    ///
    /// # Errors
    ///
    /// [`Error::Core`] for `alpha` outside `[0, 1]` (nothing has changed then), or the device fails.
    pub fn set(&mut self, alpha: f64) -> Result<()> {
        let wise = options(alpha)?;
        self.moved = true;
        for (param, tuned) in &self.tuned {
            overwrite(param.name(), param.var(), |out| blend(&wise, param, tuned.as_slice(), out))?;
        }
        Ok(())
    }

    /// Puts the fine-tuned values back. Dropping does the same, but cannot report a failure.
    ///
    /// # Errors
    ///
    /// The device fails.
    pub fn restore(mut self) -> Result<()> {
        self.put_back()
    }

    /// Leaves the parameters as they are set now.
    pub fn keep(mut self) {
        self.moved = false;
    }

    fn put_back(&mut self) -> Result<()> {
        if self.moved {
            let tuned = options(1.0)?;
            for (param, value) in &self.tuned {
                overwrite(param.name(), param.var(), |out| blend(&tuned, param, value.as_slice(), out))?;
            }
            self.moved = false;
        }
        Ok(())
    }
}

impl Drop for Interpolation {
    fn drop(&mut self) {
        // Only a failing device gets here with an error; whoever wants to know calls `restore`.
        let _ = self.put_back();
    }
}

fn options(alpha: f64) -> Result<WiseFt> {
    let wise = WiseFt { alpha, ..WiseFt::default() };
    wise.validate().map_err(Error::Core)?;
    Ok(wise)
}

/// Writes the interpolation of one parameter.
fn blend(
    wise: &WiseFt,
    param: &Param,
    tuned: Slice<'_>,
    out: tpgm_core::SliceMut<'_>,
) -> tpgm_core::Result<()> {
    let zeros;
    let anchor = match param.anchor() {
        Anchor::Pretrained(data) => data.slice(),
        Anchor::Zero => {
            zeros = Buffer::zeros(tuned.dtype(), tuned.len());
            zeros.as_slice()
        }
        Anchor::None => tuned,
    };
    // A parameter without an anchor stays: between two equal values rounding could still change it.
    let wise = if matches!(param.anchor(), Anchor::None) { WiseFt { alpha: 1.0, ..*wise } } else { *wise };
    wise.merge(&mut [WiseEntry::new(param.name(), anchor, tuned, out)])
}
