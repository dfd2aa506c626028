use candle_core::{DType, Device, ModuleT, Tensor};
use tpgm_nn::{Dropout, DropoutRng, DropoutState};

use crate::gradients::{DTYPES, assert_close, check_gradients, flat, gradients, values};

fn ones(n: usize) -> Tensor {
    Tensor::ones(n, DType::F32, &Device::Cpu).unwrap()
}

#[test]
fn drops_as_many_as_it_should_and_scales_the_others() {
    const N: usize = 200_000;
    for probability in [0.1, 0.5, 0.9] {
        let layer = Dropout::new(probability, &DropoutRng::new(1)).unwrap();
        let y = flat(&layer.forward_t(&ones(N), true).unwrap());
        let scale = f64::from((1.0 / (1.0 - probability)) as f32);
        assert!(y.iter().all(|&y| y == 0.0 || y == scale));
        let rate = |y: &mut dyn Iterator<Item = f64>| {
            let (dropped, all) =
                y.fold((0, 0), |(dropped, all), y| (dropped + usize::from(y == 0.0), all + 1));
            (dropped as f64 / all as f64 - probability)
                * f64::sqrt(all as f64 / (probability * (1.0 - probability)))
        };
        // Within 4.5 standard deviations, also on even and odd positions, and where the left neighbor was dropped.
        assert!(rate(&mut y.iter().copied()).abs() < 4.5);
        assert!(rate(&mut y.iter().copied().step_by(2)).abs() < 4.5);
        assert!(rate(&mut y.iter().copied().skip(1).step_by(2)).abs() < 4.5);
        for distance in [1, 2, 1024] {
            let mut after_dropped =
                y.iter().zip(&y[distance..]).filter(|(left, _)| **left == 0.0).map(|(_, y)| *y);
            assert!(rate(&mut after_dropped).abs() < 4.5, "distance {distance}");
        }
    }
}

#[test]
fn evaluation_and_probability_zero_change_nothing() {
    let (rng, x) = (DropoutRng::new(1), values((3, 4), 1));
    assert_close("eval", &Dropout::new(0.5, &rng).unwrap().forward_t(&x, false).unwrap(), &x, 0.0);
    assert_close("p = 0", &Dropout::new(0.0, &rng).unwrap().forward_t(&x, true).unwrap(), &x, 0.0);
    assert_eq!(rng.state(), DropoutState { seed: 1, draws: 0 });
}

#[test]
fn masks_differ_from_draw_to_draw_and_seed_to_seed() {
    let x = ones(64);
    let rng = DropoutRng::new(1);
    let (a, b) = (Dropout::new(0.5, &rng).unwrap(), Dropout::new(0.5, &rng).unwrap());
    let other = Dropout::new(0.5, &DropoutRng::new(2)).unwrap();
    let masks: Vec<_> =
        [&a, &b, &a, &other].into_iter().map(|layer| flat(&layer.forward_t(&x, true).unwrap())).collect();
    for (i, mask) in masks.iter().enumerate() {
        assert!(!masks[..i].contains(mask));
    }
    let again = Dropout::new(0.5, &DropoutRng::new(1)).unwrap();
    assert_eq!(flat(&again.forward_t(&x, true).unwrap()), masks[0]);
}

#[test]
fn a_resumed_run_draws_the_same_masks() {
    let x = ones(1000);
    let rng = DropoutRng::new(u64::MAX - 3);
    let layer = Dropout::new(0.3, &rng).unwrap();
    let draw = |layer: &Dropout| flat(&layer.forward_t(&x, true).unwrap());
    draw(&layer);
    draw(&layer);
    let saved = serde_json::to_string(&rng.state()).unwrap();
    let uninterrupted = [draw(&layer), draw(&layer)];
    let resumed = DropoutRng::new(0);
    let layer = Dropout::new(0.3, &resumed).unwrap();
    resumed.load_state(serde_json::from_str(&saved).unwrap());
    assert_eq!([draw(&layer), draw(&layer)], uninterrupted);
}

#[test]
fn the_gradient_is_the_mask() {
    for n in [1usize, 2, 1023, 70_001] {
        let f = |x: &[Tensor]| Dropout::new(0.4, &DropoutRng::new(7))?.forward_t(&x[0], true);
        check_gradients("dropout", &[values(n, 1)], f);
        for dtype in DTYPES {
            let x = [values(n, 1).to_dtype(dtype).unwrap()];
            let (y, grad) = (flat(&f(&x).unwrap()), flat(&gradients(&x, f)[0]));
            assert!(y.iter().zip(&grad).all(|(y, grad)| (*y == 0.0) == (*grad == 0.0)), "{dtype:?}");
        }
    }
    check_gradients("strided", &[values((3, 5), 1)], |x| {
        Dropout::new(0.4, &DropoutRng::new(7))?.forward_t(&x[0].t()?, true)
    });
}

#[test]
fn probabilities_out_of_range_are_refused() {
    for probability in [-0.1, 1.0, f64::NAN] {
        let text = Dropout::new(probability, &DropoutRng::new(1)).unwrap_err().to_string();
        assert!(text.contains("dropout") && text.contains("probability"), "{text}");
    }
    let layer = Dropout::new(0.5, &DropoutRng::new(1)).unwrap();
    assert!(layer.forward_t(&Tensor::new(&[1u32], &Device::Cpu).unwrap(), true).is_err());
    assert_eq!(layer.forward_t(&values((0, 3), 1), true).unwrap().dims(), [0, 3]);
}
