//! Initial values of fresh parameters. candle draws them from a generator that cannot be seeded on the CPU; here they
//! depend on the seed and the name alone, so neither the order of layers nor a new layer elsewhere changes them.

use candle_core::{DType, Device, Shape, Tensor};
use candle_nn::Init;
use candle_nn::init::NormalOrUniform;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tpgm_nn::random::fnv1a;

use crate::memory::cast;

/// What `init` asks for, in the distributions of candle.
pub(super) fn initial(
    init: Init,
    name: &str,
    seed: u64,
    shape: &Shape,
    dtype: DType,
    device: &Device,
) -> candle_core::Result<Tensor> {
    let draw = match init {
        // candle would fill it with a launch of no blocks: see `cast`.
        Init::Const(_) if shape.elem_count() == 0 => return Tensor::zeros(shape, dtype, device),
        Init::Const(value) => return Tensor::full(value, shape, device)?.to_dtype(dtype),
        Init::Uniform { lo, up } => Draw::Uniform { lo, up },
        Init::Randn { mean, stdev } => Draw::Normal { mean, stdev },
        Init::Kaiming { dist, fan, non_linearity } => {
            let stdev = non_linearity.gain() / (fan.for_shape(shape) as f64).sqrt();
            match dist {
                NormalOrUniform::Normal => Draw::Normal { mean: 0.0, stdev },
                NormalOrUniform::Uniform => {
                    let bound = 3f64.sqrt() * stdev;
                    Draw::Uniform { lo: -bound, up: bound }
                }
            }
        }
    };
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(fnv1a(name));
    let values = (0..shape.elem_count()).map(|_| draw.next(&mut rng));
    let tensor = match dtype {
        DType::F64 => Tensor::from_vec(values.collect::<Vec<f64>>(), shape, device)?,
        _ => Tensor::from_vec(values.map(|x| x as f32).collect::<Vec<f32>>(), shape, device)?,
    };
    cast(&tensor, dtype)
}

enum Draw {
    Uniform { lo: f64, up: f64 },
    Normal { mean: f64, stdev: f64 },
}

impl Draw {
    fn next(&self, rng: &mut ChaCha8Rng) -> f64 {
        match self {
            Draw::Uniform { lo, up } => lo + (up - lo) * rng.random::<f64>(),
            // Box and Muller; 1 - u is never 0, so the logarithm is finite.
            Draw::Normal { mean, stdev } => {
                let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
                mean + stdev * radius * (std::f64::consts::TAU * rng.random::<f64>()).cos()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_nn::init::DEFAULT_KAIMING_UNIFORM;

    use super::*;

    fn values(init: Init, name: &str, seed: u64, shape: (usize, usize)) -> Vec<f64> {
        let tensor = initial(init, name, seed, &shape.into(), DType::F64, &Device::Cpu).unwrap();
        tensor.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn values_depend_on_name_and_seed_only() {
        let init = Init::Randn { mean: 0.0, stdev: 1.0 };
        assert_eq!(values(init, "a", 1, (3, 5)), values(init, "a", 1, (3, 5)));
        assert_ne!(values(init, "a", 1, (3, 5)), values(init, "b", 1, (3, 5)));
        assert_ne!(values(init, "a", 1, (3, 5)), values(init, "a", 2, (3, 5)));
    }

    #[test]
    fn moments_are_those_asked_for() {
        let n = 40_000.0;
        let moments = |xs: &[f64]| {
            let mean = xs.iter().sum::<f64>() / n;
            (mean, (xs.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n).sqrt())
        };
        let (mean, sd) = moments(&values(Init::Randn { mean: 2.0, stdev: 0.5 }, "w", 0, (200, 200)));
        assert!((mean - 2.0).abs() < 0.01 && (sd - 0.5).abs() < 0.01, "{mean} {sd}");
        // ReLU gain, fan in 200: bound sqrt(3) * sqrt(2 / 200), standard deviation sqrt(2 / 200) = 0.1.
        let xs = values(DEFAULT_KAIMING_UNIFORM, "w", 0, (200, 200));
        let (mean, sd) = moments(&xs);
        assert!(mean.abs() < 0.003 && (sd - 0.1).abs() < 0.003, "{mean} {sd}");
        assert!(xs.iter().all(|x| x.abs() <= 0.1732051));
        assert_eq!(values(Init::Const(0.25), "w", 0, (1, 2)), [0.25, 0.25]);
    }
}
