//! Interpolation between the anchors and the current values of a model.

use std::collections::BTreeMap;
use std::fmt;

#[cfg(any(feature = "cuda", test))]
use candle_core::Tensor;
use tpgm_core::weight_space::{WiseEntry, WiseFt};
use tpgm_core::{Buffer, Slice};

use super::MergeError;
use super::error::{Error, Result};
use super::non_finite;
use super::tensors::Tensors;
#[cfg(any(feature = "cuda", test))]
use crate::engine::{InterpolationEngine, Operands, Place};
use crate::memory::{Elements, core_dtype, overwrite, to_buffer, to_tensor};
use crate::params::{Anchor, Param, Params};

/// The interpolation of every parameter between its anchor and its value now (WiSE-FT, arXiv 2109.01903), as new tensors
/// by name.
///
/// `alpha` in `[0, 1]` is the share of the current value. A parameter with the zero anchor is scaled by `alpha`, one
/// without an anchor (a new head) stays as it is. Reads anchors and values once.
///
/// # Errors
///
/// [`Error::Core`] for `alpha` outside its range, [`MergeError::NonFinite`] for values that are not finite, or the device fails.
pub fn wise(params: &Params, alpha: f64) -> Result<Tensors> {
    let wise = options(alpha)?;
    let mut merged = BTreeMap::new();
    for param in params.all() {
        let value = param.var().as_tensor();
        let mut out = Buffer::zeros(core_dtype(param.name(), value.dtype())?, value.elem_count());
        let current = Elements::new(param.name(), value)?;
        blend(&wise, &param, current.slice(), out.as_mut())?;
        drop(current);
        let count = non_finite(out.as_slice());
        if count > 0 {
            let (tensor, model) = (param.name().to_owned(), "the model".to_owned());
            return Err(MergeError::NonFinite { tensor, model, count }.into());
        }
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
/// Holds one copy of the parameters that have an anchor, on the host. Parameters that are all on one GPU (feature `cuda`)
/// never leave it: the copy is there, and so is one of the anchors. Do not train meanwhile: what an optimizer writes is
/// lost.
pub struct Interpolation {
    tuned: Tuned,
    /// True while the parameters may differ from the fine-tuned values.
    moved: bool,
}

/// Parameters with an anchor, and their fine-tuned values.
enum Tuned {
    /// On the host, for parameters anywhere.
    Host(Vec<(Param, Buffer)>),
    /// Where the parameters are.
    #[cfg(any(feature = "cuda", test))]
    There(There),
}

impl Interpolation {
    /// Remembers the current values as the fine-tuned ones. Changes nothing yet.
    ///
    /// # Errors
    ///
    /// The device fails, or two parameters share memory of a GPU.
    pub fn new(params: &Params) -> Result<Self> {
        let anchored = params.all().into_iter().filter(|param| !matches!(param.anchor(), Anchor::None));
        let anchored: Vec<Param> = anchored.collect();
        #[cfg(feature = "cuda")]
        if let Some(first) = anchored.first().map(|param| param.var().device().clone())
            && first.is_cuda()
            && anchored.iter().all(|param| param.var().device().same_device(&first))
        {
            return Ok(Self { tuned: Tuned::There(There::new(anchored)?), moved: false });
        }
        let remember = |param: Param| {
            let value = to_buffer(param.name(), param.var().as_tensor())?;
            Ok((param, value))
        };
        let tuned = anchored.into_iter().map(remember).collect::<Result<_>>()?;
        Ok(Self { tuned: Tuned::Host(tuned), moved: false })
    }

    /// Writes `(1 - alpha) * anchor + alpha * fine-tuned` to the parameters, whatever was set before. 0 and 1 give the
    /// anchors and the fine-tuned values bit for bit. Per f32 parameter: 8 bytes read, 4 written; on a GPU 12 and 8, all of
    /// them there.
    ///
    /// # Errors
    ///
    /// [`Error::Core`] for `alpha` outside `[0, 1]` (nothing has changed then), or the device fails.
    pub fn set(&mut self, alpha: f64) -> Result<()> {
        let wise = options(alpha)?;
        self.moved = true;
        self.tuned.set(&wise)
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
            self.tuned.set(&options(1.0)?)?;
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

impl fmt::Debug for Interpolation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Interpolation").field("moved", &self.moved).finish_non_exhaustive()
    }
}

impl Tuned {
    fn set(&mut self, wise: &WiseFt) -> Result<()> {
        match self {
            Tuned::Host(tuned) => tuned.iter().try_for_each(|(param, tuned)| {
                Ok(overwrite(param.name(), param.var(), |out| blend(wise, param, tuned.as_slice(), out))?)
            }),
            #[cfg(any(feature = "cuda", test))]
            Tuned::There(there) => there.set(wise.alpha),
        }
    }
}

/// Variables on one device with their anchors and fine-tuned values, all of them there. Made for a GPU; runs on the CPU to
/// be tested.
#[cfg(any(feature = "cuda", test))]
struct There {
    operands: Operands,
    tuned: Vec<Tensor>,
    engine: Box<dyn InterpolationEngine>,
}

#[cfg(any(feature = "cuda", test))]
impl There {
    fn new(params: Vec<Param>) -> Result<Self> {
        let operands = Operands::new(&params)?.with_all_anchors(&params)?;
        let place = Place::of(&params, None)?;
        let engine = place.interpolator(&Params::from_params(params)?.set()?)?;
        let tuned = operands.vars().map(|(_, var)| var.copy()).collect::<candle_core::Result<_>>()?;
        Ok(Self { operands, tuned, engine })
    }

    fn set(&mut self, alpha: f64) -> Result<()> {
        if alpha == 0.0 {
            return Ok(self.operands.write_anchors()?);
        }
        for ((_, var), tuned) in self.operands.vars().zip(&self.tuned) {
            var.set(tuned)?;
        }
        if alpha == 1.0 {
            return Ok(());
        }
        Ok(self.engine.interpolate(&self.operands, alpha)?)
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

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Var};

    use super::*;
    use crate::files::AnchorData;
    use crate::memory::candle_dtype;

    /// Fine-tuned `w` with an anchor of another type where weights are halves, a LoRA factor, a head, and nothing at all.
    fn params(dtype: DType) -> Params {
        let var = |values: &[f32], shape: &[usize]| {
            let tensor = Tensor::from_slice(values, shape, &Device::Cpu).unwrap();
            Var::from_tensor(&tensor.to_dtype(dtype).unwrap()).unwrap()
        };
        let pretrained = |values: &[f64]| {
            let anchor = if dtype == DType::F64 { tpgm_core::DType::F64 } else { tpgm_core::DType::F32 };
            Anchor::Pretrained(AnchorData::new(Buffer::from_f64(anchor, values)))
        };
        Params::from_params([
            Param::new("w", var(&[4.1, f32::NAN, -2.3, 0.0], &[2, 2]), pretrained(&[0.1, 1.0, 2.7, -0.0])),
            Param::new("lora", var(&[8.3], &[1]), Anchor::Zero),
            Param::new("head", var(&[5.0], &[1]), Anchor::None),
            Param::new("empty", var(&[], &[0, 3]), pretrained(&[])),
        ])
        .unwrap()
    }

    fn bits(params: &Params) -> Vec<u64> {
        let vars = params.all().into_iter();
        vars.flat_map(|param| to_buffer(param.name(), param.var()).unwrap().to_f64())
            .map(f64::to_bits)
            .collect()
    }

    /// The way that a GPU takes, on the CPU.
    #[test]
    fn both_ways_write_the_same_bits() {
        for dtype in
            [tpgm_core::DType::F64, tpgm_core::DType::F32, tpgm_core::DType::F16, tpgm_core::DType::BF16]
        {
            let [host, there] = [(); 2].map(|()| params(candle_dtype(dtype)));
            let live = bits(&host);
            let mut by_host = Interpolation::new(&host).unwrap();
            assert!(matches!(by_host.tuned, Tuned::Host(_)));
            let anchored = there.all().into_iter().filter(|param| param.name() != "head").collect();
            let tuned = Tuned::There(There::new(anchored).unwrap());
            let mut by_device = Interpolation { tuned, moved: false };
            for alpha in [0.25, 0.0, 0.7, 1.0, 0.5] {
                by_host.set(alpha).unwrap();
                by_device.set(alpha).unwrap();
                assert_eq!(bits(&host), bits(&there), "{dtype:?} at {alpha}");
                assert_eq!(bits(&host) == live, alpha == 1.0);
            }
            assert!(by_device.set(1.5).is_err());
            by_device.restore().unwrap();
            assert_eq!(bits(&there), live);
        }
    }
}
