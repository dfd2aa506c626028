//! An adapted layer inside a block.

use candle_core::{DType, Device, ModuleT, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};

use super::{Lora, LoraConfig, VarFactors};
use crate::layers::{Linear, Parts, block};

fn numbers(shape: &[usize], step: usize, dtype: DType) -> Tensor {
    let count: usize = shape.iter().product();
    let data: Vec<f64> = (0..count).map(|i| ((i * step + 3) % 23) as f64 / 11.5 - 1.0).collect();
    Tensor::from_vec(data, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

fn flat(x: &Tensor) -> Vec<f64> {
    x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Output, and the gradients of the input and of both factors.
fn run(dtype: DType, train: bool, in_block: bool) -> Vec<Vec<f64>> {
    let base = Linear::new(numbers(&[6, 8], 5, dtype), Some(numbers(&[6], 7, dtype)));
    let map = VarMap::new();
    let config = LoraConfig { rank: 2, alpha: 3.0, dropout: 0.3, seed: 4, ..LoraConfig::default() };
    let layer =
        Lora::new(base, "layer", &config, &VarFactors::new(VarBuilder::zeros(dtype, &Device::Cpu), &map))
            .unwrap();
    let mut factors: Vec<(String, Var)> =
        map.data().lock().unwrap().iter().map(|(name, var)| (name.clone(), var.clone())).collect();
    factors.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(factors.len(), 2);
    for (step, (_, var)) in factors.iter().enumerate() {
        var.set(&numbers(var.dims(), 9 + step, var.dtype())).unwrap();
    }
    let x = Var::from_tensor(&numbers(&[2, 3, 8], 11, dtype)).unwrap();
    let y = match in_block {
        true => {
            block("test", x.as_tensor(), Parts::default(), |tape, x| layer.in_block(tape, x, train)).unwrap()
        }
        false => layer.forward_t(x.as_tensor(), train).unwrap(),
    };
    assert_eq!(y.dtype(), dtype);
    let weighted = (&y * numbers(y.dims(), 13, dtype)).unwrap();
    let grads = weighted.sum_all().unwrap().backward().unwrap();
    let vars = [&x].into_iter().chain(factors.iter().map(|(_, var)| var));
    [flat(&y)].into_iter().chain(vars.map(|var| flat(grads.get(var).unwrap()))).collect()
}

#[test]
fn a_block_of_one_layer_is_the_layer_bit_for_bit() {
    for dtype in [DType::F64, DType::F32, DType::BF16, DType::F16] {
        for train in [false, true] {
            assert_eq!(run(dtype, train, true), run(dtype, train, false), "{dtype:?}, train: {train}");
        }
    }
    assert_ne!(run(DType::F64, true, true), run(DType::F64, false, true), "dropout drops");
}
