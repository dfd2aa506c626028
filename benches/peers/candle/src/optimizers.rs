//! The optimizers over synthetic tensors: f32, with weights, gradients and options of the same size as in the harness.

use crate::Error;

/// Names as the harness knows them, without the suffix.
pub const NAMES: [&str; 2] = ["candle_adamw", "candle_optimisers_adamw"];

/// An optimizer with its tensors.
pub trait Step {
    /// One step.
    fn step(&mut self) -> Result<(), Error>;
    /// Changes the sign of all gradients.
    fn flip_gradients(&mut self);
}

/// The optimizer of a name.
pub fn by_name(name: &str, shapes: &[Vec<usize>]) -> Result<Box<dyn Step>, Error> {
    match name {
        "candle_adamw" => {
            let options = candle_nn::ParamsAdamW { lr: LR, weight_decay: 0.0, ..Default::default() };
            let make = |vars| candle_nn::Optimizer::new(vars, options.clone());
            Ok(Box::new(own::Tensors::<candle_nn::AdamW>::new(shapes, make)?))
        }
        "candle_optimisers_adamw" => {
            let decay = Some(candle_optimisers::Decay::DecoupledWeightDecay(0.0));
            let options = candle_optimisers::adam::ParamsAdam { lr: LR, weight_decay: decay, ..Default::default() };
            let make = |vars| candle_nn_0_10::Optimizer::new(vars, options.clone());
            Ok(Box::new(optimisers::Tensors::<candle_optimisers::adam::Adam>::new(shapes, make)?))
        }
        _ => Err(format!("no peer `{name}`").into()),
    }
}

const LR: f64 = 1e-3;

/// The same numbers as in `data.rs`.
const WEIGHT_SCALE: f32 = 5e-2;
const GRADIENT_SCALE: f32 = 1e-3;

/// Numbers in `[-scale, scale)` that look random enough.
fn values(count: usize, seed: u32, scale: f32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_769) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        scale * (state as f32 / (1u64 << 31) as f32 - 1.0)
    };
    (0..count).map(|_| next()).collect()
}

/// The two crates are built with different candles, whose types are different: the same code for each.
macro_rules! tensors {
    ($module:ident, $core:ident, $nn:ident) => {
        mod $module {
            use $core::backprop::GradStore;
            use $core::{DType, Device, Tensor, Var};

            use super::{Error, GRADIENT_SCALE, Step, WEIGHT_SCALE, values};

            /// Weights under an optimizer, with their gradients of either sign.
            pub struct Tensors<O> {
                optimizer: O,
                grads: [GradStore; 2],
            }

            impl<O: $nn::Optimizer> Tensors<O> {
                pub fn new(
                    shapes: &[Vec<usize>],
                    make: impl Fn(Vec<Var>) -> $core::Result<O>,
                ) -> Result<Self, Error> {
                    let tensor = |shape: &Vec<usize>, seed: usize, scale| {
                        let count = shape.iter().product();
                        Tensor::from_vec(values(count, seed as u32, scale), shape.as_slice(), &Device::Cpu)
                    };
                    // A store without gradients, but for the loss itself.
                    let empty = || Tensor::zeros((), DType::F32, &Device::Cpu)?.backward();
                    let (mut plus, mut minus) = (empty()?, empty()?);
                    let mut vars = Vec::with_capacity(shapes.len());
                    for (number, shape) in shapes.iter().enumerate() {
                        let var = Var::from_tensor(&tensor(shape, 2 * number + 1, WEIGHT_SCALE)?)?;
                        let grad = tensor(shape, 2 * number + 2, GRADIENT_SCALE)?;
                        minus.insert(&var, grad.neg()?);
                        plus.insert(&var, grad);
                        vars.push(var);
                    }
                    Ok(Self { optimizer: make(vars)?, grads: [plus, minus] })
                }
            }

            impl<O: $nn::Optimizer> Step for Tensors<O> {
                fn step(&mut self) -> Result<(), Error> {
                    Ok(self.optimizer.step(&self.grads[0])?)
                }

                fn flip_gradients(&mut self) {
                    self.grads.swap(0, 1);
                }
            }
        }
    };
}

tensors!(own, candle_core, candle_nn);
tensors!(optimisers, candle_core_0_10, candle_nn_0_10);
