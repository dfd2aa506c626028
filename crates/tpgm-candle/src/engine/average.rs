//! A moving average on some device.

use tpgm_core::Buffer;
#[cfg(any(feature = "cuda", test))]
use tpgm_core::{TensorIo, weight_space::Interpolator};

use super::error::Result;
use super::{Bind, Operands};

/// [`tpgm_core::Ema`] on some device.
pub(crate) trait EmaEngine: Send {
    fn update(&mut self, operands: &Operands, decay: f64) -> Result<()>;
    /// Writes the averages into the weights.
    fn apply(&mut self, operands: &Operands) -> Result<()>;
    fn state(&self) -> Result<Vec<Buffer>>;
    fn load_state(&mut self, state: &[Buffer]) -> Result<()>;
}

/// An average, and what writes it into weights on a GPU.
pub(crate) struct Average<B: Bind> {
    pub(super) ema: tpgm_core::Ema<B>,
    #[cfg(any(feature = "cuda", test))]
    pub(super) writer: Interpolator<B>,
}

impl<B: Bind> Average<B> {
    /// Writes the averages into the variables, which may be of other types: the interpolation between the two that takes
    /// nothing of the weights.
    #[cfg(any(feature = "cuda", test))]
    pub(super) fn blend_into(&mut self, operands: &Operands) -> Result<()> {
        B::bind(operands, &[], move |io| {
            let pairs = io.iter_mut().zip(self.ema.averages());
            let pairs = pairs
                .map(|(io, average)| TensorIo::new(B::reborrow(&mut io.weight)).anchor(B::as_ref(average)));
            let mut io: Vec<_> = pairs.collect();
            self.writer.interpolate(&mut io, 0.0)
        })
    }
}

impl<B: Bind> EmaEngine for Average<B> {
    fn update(&mut self, operands: &Operands, decay: f64) -> Result<()> {
        B::bind(operands, &[], |io| {
            let weights: Vec<_> = io.iter().map(|io| B::read(&io.weight)).collect();
            self.ema.update(&weights, decay)
        })
    }

    fn apply(&mut self, operands: &Operands) -> Result<()> {
        B::write_averages(operands, self)
    }

    fn state(&self) -> Result<Vec<Buffer>> {
        Ok(self.ema.state()?)
    }

    fn load_state(&mut self, state: &[Buffer]) -> Result<()> {
        Ok(self.ema.load_state(state)?)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{DType, Device, Tensor, Var};
    use tpgm_core::Cpu;

    use super::*;
    use crate::params::{Anchor, Param, Params};

    fn values(var: &Var) -> Vec<f64> {
        var.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
    }

    /// The way that a GPU takes, on the CPU: the same numbers as the CPU's own, also over weights that are not finite.
    #[test]
    fn averages_are_blended_as_they_are_copied() {
        for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16] {
            let start = Tensor::new(&[[1.3f32, -0.7], [3.1, 1e-3]], &Device::Cpu).unwrap();
            let var = Var::from_tensor(&start.to_dtype(dtype).unwrap()).unwrap();
            let empty = Var::zeros((0, 2), dtype, &Device::Cpu).unwrap();
            let param = |name, var: &Var| Param::new(name, var.clone(), Anchor::None);
            let params = Params::from_params([param("empty", &empty), param("w", &var)]).unwrap();
            let (set, operands) = (params.set().unwrap(), Operands::new(&params.all()).unwrap());
            let ema = Cpu::bind(&operands, &[], |io| {
                let weights: Vec<_> = io.iter().map(|io| Cpu::read(&io.weight)).collect();
                tpgm_core::Ema::new(Cpu::new(), &set, &weights)
            });
            let writer = Interpolator::new(Cpu::new(), &set).unwrap();
            let mut average = Average { ema: ema.unwrap(), writer };
            var.set(&(var.as_tensor() * 3.0).unwrap()).unwrap();
            average.update(&operands, 0.3).unwrap();

            var.set(
                &Tensor::new(&[[f32::NAN, 1.0], [f32::INFINITY, -2.0]], &Device::Cpu)
                    .unwrap()
                    .to_dtype(dtype)
                    .unwrap(),
            )
            .unwrap();
            average.blend_into(&operands).unwrap();
            let blended = values(&var);
            average.apply(&operands).unwrap();
            assert_eq!(blended, values(&var), "{dtype:?}");
            assert!((blended[0] - 1.3 * 2.4).abs() < 0.05, "{blended:?}");
        }
    }
}
