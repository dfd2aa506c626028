//! Activation functions.

use candle_core::{CpuStorage, Result, Shape, Tensor};
use tpgm_core::{Buffer, Element, Slice};

use super::check::{Path, same_kind};
use super::composed;
use super::float::{Float, logistic, vectorized};
use super::fused::{Arg, Fused, apply1};
use super::gpu::on_gpu;
use super::storage::{
    BLOCK, Operand, PIECE, by_dtype, fill, into_storage, into_tensor, load, scratch, store,
};

/// `x Phi(x)` with the normal distribution function Phi: PyTorch's `gelu`, candle's `gelu_erf`; BERT and ViT.
///
/// Source: Hendrycks and Gimpel, "Gaussian Error Linear Units" (2016).
///
/// # Errors
///
/// If `x` is not of a floating point type.
pub fn gelu(x: &Tensor) -> Result<Tensor> {
    apply(Activation::Gelu, x)
}

/// `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`, an approximation of [`gelu`]: PyTorch's
/// `gelu(approximate="tanh")`, candle's `gelu`; GPT-2 and Gemma.
///
/// Source: Hendrycks and Gimpel, "Gaussian Error Linear Units" (2016).
///
/// # Errors
///
/// If `x` is not of a floating point type.
pub fn gelu_tanh(x: &Tensor) -> Result<Tensor> {
    apply(Activation::GeluTanh, x)
}

/// `x / (1 + e^(-1.702 x))`, an approximation of [`gelu`]; CLIP.
///
/// Source: Hendrycks and Gimpel, "Gaussian Error Linear Units" (2016).
///
/// # Errors
///
/// If `x` is not of a floating point type.
pub fn quick_gelu(x: &Tensor) -> Result<Tensor> {
    apply(Activation::QuickGelu, x)
}

/// `x / (1 + e^-x)`, also called swish; Llama.
///
/// # Errors
///
/// If `x` is not of a floating point type.
pub fn silu(x: &Tensor) -> Result<Tensor> {
    apply(Activation::Silu, x)
}

/// `max(x, 0)`. The gradient at 0 is 0, as in PyTorch (candle's own is 1).
///
/// # Errors
///
/// If `x` is not of a floating point type.
pub fn relu(x: &Tensor) -> Result<Tensor> {
    apply(Activation::Relu, x)
}

/// `min(max(x, 0), 6)`; MobileNetV2, EfficientNet-Lite. The gradient at 0 and at 6 is 0, as in PyTorch.
///
/// # Errors
///
/// If `x` is not of a floating point type.
pub fn relu6(x: &Tensor) -> Result<Tensor> {
    apply(Activation::Relu6, x)
}

/// `1 / (1 + e^-x)`, the gate of a squeeze-excite block.
///
/// # Errors
///
/// If `x` is not of a floating point type.
pub fn sigmoid(x: &Tensor) -> Result<Tensor> {
    apply(Activation::Sigmoid, x)
}

/// `relu6(x + 3) / 6`, an approximation of [`sigmoid`]; MobileNetV3's gate. The gradient at -3 and at 3 is 0.
///
/// Source: Howard et al., "Searching for MobileNetV3" (2019).
///
/// # Errors
///
/// If `x` is not of a floating point type.
pub fn hard_sigmoid(x: &Tensor) -> Result<Tensor> {
    apply(Activation::HardSigmoid, x)
}

/// `x relu6(x + 3) / 6`, an approximation of [`silu`]; MobileNetV3. The gradient at -3 is 0, and 1 at 3.
///
/// Source: Howard et al., "Searching for MobileNetV3" (2019).
///
/// # Errors
///
/// If `x` is not of a floating point type.
pub fn hard_swish(x: &Tensor) -> Result<Tensor> {
    apply(Activation::HardSwish, x)
}

pub(super) fn apply(op: Activation, x: &Tensor) -> Result<Tensor> {
    same_kind(op.name(), &[x])?;
    let path = if op.has_kernel() { Path::with_kernels(x) } else { Path::of(x) };
    match (path, op) {
        (Path::Fused, op) => apply1(op, x),
        (Path::Composed, Activation::Gelu) => composed::gelu(x),
        (Path::Composed, Activation::GeluTanh) => composed::gelu_tanh(x),
        (Path::Composed, Activation::QuickGelu) => composed::quick_gelu(x),
        (Path::Composed, Activation::Silu) => composed::silu(x),
        (Path::Composed, Activation::Relu) => composed::relu(x),
        (Path::Composed, Activation::Relu6) => composed::relu6(x),
        (Path::Composed, Activation::Sigmoid) => composed::sigmoid(x),
        (Path::Composed, Activation::HardSigmoid) => composed::hard_sigmoid(x),
        (Path::Composed, Activation::HardSwish) => composed::hard_swish(x),
    }
}

/// The slope of [`quick_gelu`]'s sigmoid.
pub(super) const QUICK: f64 = 1.702;

/// The operation. Backward needs the input only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Activation {
    Gelu,
    GeluTanh,
    QuickGelu,
    Silu,
    Relu,
    Relu6,
    Sigmoid,
    HardSigmoid,
    HardSwish,
}

impl Activation {
    /// False for those of MobileNet alone.
    pub(super) fn has_kernel(self) -> bool {
        !matches!(self, Self::Relu6 | Self::Sigmoid | Self::HardSigmoid | Self::HardSwish)
    }

    /// Its values at `x`.
    pub(super) fn apply<C: Float>(self, x: &[C], y: &mut [C]) {
        match self {
            Activation::Gelu => gelu_forward(x, y),
            Activation::GeluTanh => gelu_tanh_forward(x, y),
            Activation::QuickGelu => quick_gelu_forward(x, y),
            Activation::Silu => silu_forward(x, y),
            Activation::Relu => relu_forward(x, y),
            Activation::Relu6 => relu6_forward(x, y),
            Activation::Sigmoid => sigmoid_forward(x, y),
            Activation::HardSigmoid => hard_sigmoid_forward(x, y),
            Activation::HardSwish => hard_swish_forward(x, y),
        }
    }

    /// The gradient of `x` from that of the values there.
    pub(super) fn gradient_at<C: Float>(self, x: &[C], grad: &[C], dx: &mut [C]) {
        match self {
            Activation::Gelu => gelu_gradient(x, grad, dx),
            Activation::GeluTanh => gelu_tanh_gradient(x, grad, dx),
            Activation::QuickGelu => quick_gelu_gradient(x, grad, dx),
            Activation::Silu => silu_gradient(x, grad, dx),
            Activation::Relu => relu_gradient(x, grad, dx),
            Activation::Relu6 => relu6_gradient(x, grad, dx),
            Activation::Sigmoid => sigmoid_gradient(x, grad, dx),
            Activation::HardSigmoid => hard_sigmoid_gradient(x, grad, dx),
            Activation::HardSwish => hard_swish_gradient(x, grad, dx),
        }
    }

    fn values<T: Element, C: Float>(self, x: Slice<'_>) -> Buffer {
        let (y, _) = fill::<T, ()>(x.len(), PIECE, |range, piece| {
            let (mut x_scratch, mut y_scratch) = (scratch::<T, C>(BLOCK), scratch::<T, C>(BLOCK));
            for (i, y) in piece.chunks_mut(BLOCK).enumerate() {
                let start = range.start + i * BLOCK;
                let x = load(x.sub(start..start + y.len()), &mut x_scratch);
                store(y, &mut y_scratch, |y: &mut [C]| self.apply(x, y));
            }
        });
        T::buffer(y)
    }

    fn gradient<T: Element, C: Float>(self, x: Slice<'_>, grad: Slice<'_>) -> Buffer {
        let (dx, _) = fill::<T, ()>(x.len(), PIECE, |range, piece| {
            let [mut x_scratch, mut grad_scratch, mut dx_scratch] = [(); 3].map(|()| scratch::<T, C>(BLOCK));
            for (i, dx) in piece.chunks_mut(BLOCK).enumerate() {
                let start = range.start + i * BLOCK;
                let x = load(x.sub(start..start + dx.len()), &mut x_scratch);
                let grad = load(grad.sub(start..start + dx.len()), &mut grad_scratch);
                store(dx, &mut dx_scratch, |dx: &mut [C]| self.gradient_at(x, grad, dx));
            }
        });
        T::buffer(dx)
    }
}

impl Fused<1> for Activation {
    on_gpu!(1, activation, has_kernel);

    fn name(&self) -> &'static str {
        match self {
            Activation::Gelu => "gelu",
            Activation::GeluTanh => "gelu-tanh",
            Activation::QuickGelu => "quick-gelu",
            Activation::Silu => "silu",
            Activation::Relu => "relu",
            Activation::Relu6 => "relu6",
            Activation::Sigmoid => "sigmoid",
            Activation::HardSigmoid => "hard-sigmoid",
            Activation::HardSwish => "hard-swish",
        }
    }

    fn forward(&self, [x]: [Arg<'_>; 1]) -> Result<(CpuStorage, Shape)> {
        let data = x.slice()?;
        let y = by_dtype!(data.dtype(), T, C => self.values::<T, C>(data));
        Ok((into_storage(y), x.shape().clone()))
    }

    fn backward(&self, [x]: [&Tensor; 1], _y: &Tensor, grad: &Tensor) -> Result<[Option<Tensor>; 1]> {
        let (x_data, grad_data) = (Operand::new(self.name(), x), Operand::new(self.name(), grad));
        let (x_slice, grad_slice) = (x_data.slice()?, grad_data.slice()?);
        let dx = by_dtype!(x_slice.dtype(), T, C => self.gradient::<T, C>(x_slice, grad_slice));
        Ok([Some(into_tensor(dx, x.shape())?)])
    }
}

/// Defines the loops of an activation from its value and its slope at `x`.
macro_rules! activation {
    ($forward:ident, $gradient:ident, $c:ident, |$x:ident| $value:expr, $slope:expr) => {
        vectorized! {
            fn $forward<$c>(x: &[$c], y: &mut [$c]) {
                for (y, &$x) in y.iter_mut().zip(x) {
                    *y = $value;
                }
            }
        }

        vectorized! {
            fn $gradient<$c>(x: &[$c], grad: &[$c], dx: &mut [$c]) {
                for ((dx, &$x), &grad) in dx.iter_mut().zip(x).zip(grad) {
                    *dx = grad * $slope;
                }
            }
        }
    };
}

activation!(gelu_forward, gelu_gradient, C, |x| x * x.normal().0, {
    let (cdf, density) = x.normal();
    cdf + x * density
});

activation!(silu_forward, silu_gradient, C, |x| x * logistic(x).0, {
    let (s, slope) = logistic(x);
    s + x * slope
});

activation!(quick_gelu_forward, quick_gelu_gradient, C, |x| x * logistic(C::from_f64(QUICK) * x).0, {
    let v = C::from_f64(QUICK) * x;
    let (s, slope) = logistic(v);
    s + v * slope
});

// 1 + tanh(u) is twice the sigmoid of 2u, which does not cancel for negative u.
activation!(gelu_tanh_forward, gelu_tanh_gradient, C, |x| x * logistic(twice_u(x).0).0, {
    let (v, v_slope) = twice_u(x);
    let (s, slope) = logistic(v);
    s + x * slope * v_slope
});

activation!(
    relu_forward,
    relu_gradient,
    C,
    |x| if x < C::ZERO { C::ZERO } else { x }, // NaN stays NaN
    if x > C::ZERO { C::ONE } else { C::ZERO }
);

activation!(
    relu6_forward,
    relu6_gradient,
    C,
    |x| between(x, C::ZERO, C::from_f64(6.0)),
    if x > C::ZERO && x < C::from_f64(6.0) { C::ONE } else { C::ZERO }
);

activation!(sigmoid_forward, sigmoid_gradient, C, |x| logistic(x).0, logistic(x).1);

activation!(hard_sigmoid_forward, hard_sigmoid_gradient, C, |x| hard_gate(x), {
    let three = C::from_f64(3.0);
    if x > -three && x < three { C::from_f64(1.0 / 6.0) } else { C::ZERO }
});

activation!(hard_swish_forward, hard_swish_gradient, C, |x| hard_swish_at(x).0, hard_swish_at(x).1);

/// `x`, or the bound that it lies beyond. NaN stays NaN.
#[inline(always)]
pub(super) fn between<C: Float>(x: C, low: C, high: C) -> C {
    let x = if x < low { low } else { x };
    if x > high { high } else { x }
}

/// `relu6(x + 3) / 6`.
#[inline(always)]
fn hard_gate<C: Float>(x: C) -> C {
    between(x + C::from_f64(3.0), C::ZERO, C::from_f64(6.0)) * C::from_f64(1.0 / 6.0)
}

/// Hard swish and its slope.
#[inline(always)]
pub(super) fn hard_swish_at<C: Float>(x: C) -> (C, C) {
    let three = C::from_f64(3.0);
    let inner = x * C::from_f64(1.0 / 3.0) + C::from_f64(0.5);
    let slope = if x > -three { inner } else { C::ZERO };
    (x * hard_gate(x), if x < three { slope } else { C::ONE })
}

/// `2 sqrt(2 / pi) (x + 0.044715 x^3)` and its slope.
#[inline(always)]
fn twice_u<C: Float>(x: C) -> (C, C) {
    const CUBIC: f64 = 0.044_715;
    let factor = C::from_f64(std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::SQRT_2);
    let square = x * x;
    let value = factor * x * (C::ONE + C::from_f64(CUBIC) * square);
    (value, factor * (C::ONE + C::from_f64(3.0 * CUBIC) * square))
}
