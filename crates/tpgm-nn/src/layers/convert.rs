//! Other element types, and numbers times a factor, by candle's own operations on its memory.

use candle_core::backend::BackendStorage;
use candle_core::{CpuStorage, DType, Result, Shape, Tensor};

use super::fused::{Arg, Custom, Fused};
#[cfg(any(feature = "cuda", test))]
use super::gpu::{Fresh, Home, Input};

/// From one element type to another.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cast {
    pub(super) to: DType,
    pub(super) from: DType,
}

impl Fused<1> for Cast {
    fn kernels(&self) -> bool {
        true
    }

    fn name(&self) -> &'static str {
        "cast"
    }

    fn forward(&self, [x]: [Arg<'_>; 1]) -> Result<(CpuStorage, Shape)> {
        Ok((x.storage.to_dtype(x.layout, self.to)?, x.shape().clone()))
    }

    fn backward(&self, _: [&Tensor; 1], _: &Tensor, grad: &Tensor) -> Result<[Option<Tensor>; 1]> {
        Ok([Some(Custom(Self { to: self.from, from: self.to }).run([grad])?)])
    }

    #[cfg(any(feature = "cuda", test))]
    fn forward_on<H: Home>(&self, _: &H, [x]: [Input<'_, H>; 1]) -> Result<Fresh<H>> {
        Ok(Fresh { storage: x.storage.to_dtype(x.layout, self.to)?, shape: x.shape().clone() })
    }

    #[cfg(any(feature = "cuda", test))]
    fn backward_on<H: Home>(
        &self,
        _: &H,
        args: [&Tensor; 1],
        y: &Tensor,
        grad: &Tensor,
    ) -> Result<[Option<Tensor>; 1]> {
        self.backward(args, y, grad)
    }
}

/// Times a factor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Scale(pub(super) f64);

impl Fused<1> for Scale {
    fn kernels(&self) -> bool {
        true
    }

    fn name(&self) -> &'static str {
        "scale"
    }

    fn forward(&self, [x]: [Arg<'_>; 1]) -> Result<(CpuStorage, Shape)> {
        Ok((x.storage.affine(x.layout, self.0, 0.0)?, x.shape().clone()))
    }

    fn backward(&self, _: [&Tensor; 1], _: &Tensor, grad: &Tensor) -> Result<[Option<Tensor>; 1]> {
        Ok([Some(Custom(*self).run([grad])?)])
    }

    #[cfg(any(feature = "cuda", test))]
    fn forward_on<H: Home>(&self, _: &H, [x]: [Input<'_, H>; 1]) -> Result<Fresh<H>> {
        Ok(Fresh { storage: x.storage.affine(x.layout, self.0, 0.0)?, shape: x.shape().clone() })
    }

    #[cfg(any(feature = "cuda", test))]
    fn backward_on<H: Home>(
        &self,
        _: &H,
        args: [&Tensor; 1],
        y: &Tensor,
        grad: &Tensor,
    ) -> Result<[Option<Tensor>; 1]> {
        self.backward(args, y, grad)
    }
}
