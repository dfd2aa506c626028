//! The moving average of live weights.
#![allow(clippy::unwrap_used)]

use candle_core::{DType, Device, Tensor, Var};
use tpgm_candle::core::Buffer;
use tpgm_candle::core::element::bf16;
use tpgm_candle::{Anchor, Ema, Param, Params};

fn params(vars: &[(&str, &Var)]) -> Params {
    Params::from_params(vars.iter().map(|(name, var)| Param::new(*name, (*var).clone(), Anchor::None)))
        .unwrap()
}

#[test]
fn the_average_follows_its_formula() {
    let var = Var::new(&[1.0f64, -2.0], &Device::Cpu).unwrap();
    let mut ema = Ema::new(&params(&[("w", &var)]), 0.9).unwrap();
    let mut expected = [1.0, -2.0];
    for step in 1..=5 {
        var.set(&Tensor::new(&[f64::from(step), 0.5], &Device::Cpu).unwrap()).unwrap();
        ema.update().unwrap();
        expected = [0.9 * expected[0] + 0.1 * f64::from(step), 0.9 * expected[1] + 0.1 * 0.5];
    }
    let Buffer::F64(average) = &ema.state().unwrap()["w/ema"] else { panic!("not f64") };
    for (a, b) in average.iter().zip(expected) {
        assert!((a - b).abs() < 1e-15);
    }
}

#[test]
fn live_weights_return_bit_by_bit() {
    let wide = Var::new(&[0.1f32, f32::MIN_POSITIVE, -0.0], &Device::Cpu).unwrap();
    let half = Var::new(&[bf16::from_f32(1.0)], &Device::Cpu).unwrap();
    let mut ema = Ema::new(&params(&[("wide", &wide), ("half", &half)]), 0.5).unwrap();
    let live = [3.3f32, -7.7, 1e-30];
    wide.set(&Tensor::new(&live, &Device::Cpu).unwrap()).unwrap();
    half.set(&Tensor::new(&[bf16::from_f32(1.0078125)], &Device::Cpu).unwrap()).unwrap();
    ema.update().unwrap();
    let bits = |var: &Var| var.to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>();
    let before = bits(&wide);
    {
        let _averaged = ema.apply().unwrap();
        assert_eq!(wide.to_vec1::<f32>().unwrap()[0], 0.5 * 0.1 + 0.5 * 3.3);
        // The average of 1 and 1 + 2^-7 lies between two bf16 numbers and rounds to the even one.
        assert_eq!(half.to_vec1::<bf16>().unwrap()[0].to_f32(), 1.0);
    }
    assert_eq!(bits(&wide), before);
    assert_eq!(half.to_vec1::<bf16>().unwrap()[0].to_f32(), 1.0078125);
    ema.apply().unwrap().restore().unwrap();
    assert_eq!(bits(&wide), before);
}

#[test]
fn state_is_keyed_by_name_and_checked() {
    let var = Var::new(&[1.0f32, -2.0], &Device::Cpu).unwrap();
    let mut ema = Ema::new(&params(&[("w", &var)]), 0.5).unwrap();
    let saved = ema.state().unwrap();
    var.set(&Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap()).unwrap();
    ema.update().unwrap();
    assert_ne!(ema.state().unwrap(), saved);
    for (key, value) in [("v/ema", vec![1.0]), ("w/ema", vec![1.0])] {
        let mut wrong = saved.clone();
        wrong.insert(key.into(), Buffer::F32(value));
        assert!(ema.load_state(&wrong).unwrap_err().to_string().contains(&key[..1]));
    }
    ema.load_state(&saved).unwrap();
    assert_eq!(ema.state().unwrap(), saved);
    let other = Var::new(&[1.0f32], &Device::Cpu).unwrap();
    let mut other = Ema::new(&params(&[("v", &other)]), 0.5).unwrap();
    assert!(matches!(other.load_state(&saved), Err(tpgm_candle::optim::Error::Core(_))));
    assert!(Ema::new(&params(&[("w", &var)]), 1.5).is_err());
}
