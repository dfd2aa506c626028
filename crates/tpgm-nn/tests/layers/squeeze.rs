use candle_core::{DType, Device, Result, Tensor};
use tpgm_nn::{composed, global_avg_pool, scale_channels};

use crate::gradients::{
    DTYPES, assert_close, check_gradients, compare_gradients, flat, gradients, message, tolerance, values,
};

/// Shapes of one and several planes, over several pieces of work, and not of images.
const SHAPES: [&[usize]; 5] = [&[1, 1, 1, 1], &[2, 3, 5, 7], &[3, 40, 33, 35], &[2, 3, 200, 180], &[4, 5, 6]];

fn inputs(shape: &[usize]) -> [Tensor; 2] {
    [values(shape, 1), values((shape[0], shape[1]), 2)]
}

fn pool(x: &[Tensor]) -> Result<Tensor> {
    global_avg_pool(&x[0])
}

fn scale(x: &[Tensor]) -> Result<Tensor> {
    scale_channels(&x[0], &x[1])
}

#[test]
fn values_are_those_of_the_definition() {
    for shape in SHAPES {
        let inputs = inputs(shape);
        let (x, s, size) = (flat(&inputs[0]), flat(&inputs[1]), shape[2..].iter().product::<usize>());
        let means: Vec<f64> = x.chunks(size).map(|plane| plane.iter().sum::<f64>() / size as f64).collect();
        let scaled: Vec<f64> = x.iter().enumerate().map(|(i, x)| x * s[i / size]).collect();
        for dtype in DTYPES {
            let inputs = inputs.each_ref().map(|x| x.to_dtype(dtype).unwrap());
            let expected = |values: &[f64], shape: &[usize]| {
                Tensor::from_vec(values.to_vec(), shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
            };
            let epsilon = 2.0 * tolerance(dtype);
            assert_close("pool", &pool(&inputs).unwrap(), &expected(&means, &shape[..2]), epsilon);
            assert_close("scale", &scale(&inputs).unwrap(), &expected(&scaled, shape), 2.0 * epsilon);
        }
    }
}

#[test]
fn gradients_are_difference_quotients() {
    for shape in SHAPES {
        let [x, s] = inputs(shape);
        check_gradients("pool", std::slice::from_ref(&x), pool);
        check_gradients("scale", &[x.clone(), s.clone()], scale);
        let with_ones = s.reshape((shape[0], shape[1], 1, 1)).unwrap();
        check_gradients("scale", &[x, with_ones], scale);
    }
    check_gradients("strided", &[values((2, 4, 5, 3), 1), values((3, 2), 2)], |x| {
        scale(&[x[0].permute((0, 3, 1, 2))?, x[1].t()?])
    });
    check_gradients("strided", &[values((2, 4, 5, 3), 1)], |x| pool(&[x[0].permute((0, 3, 1, 2))?]));
}

#[test]
fn composed_is_the_same() {
    for dtype in DTYPES {
        let inputs = inputs(&[2, 3, 5, 7]).map(|x| x.to_dtype(dtype).unwrap());
        let epsilon = 4.0 * tolerance(dtype);
        let pooled = |x: &[Tensor]| composed::global_avg_pool(&x[0]);
        assert_close("pool", &pool(&inputs).unwrap(), &pooled(&inputs).unwrap(), epsilon);
        compare_gradients("pool", &inputs[..1], epsilon, pool, pooled);
        let scaled = |x: &[Tensor]| composed::scale_channels(&x[0], &x[1].unsqueeze(2)?.unsqueeze(3)?);
        assert_close("scale", &scale(&inputs).unwrap(), &scaled(&inputs).unwrap(), epsilon);
        if dtype == DType::F64 || dtype == DType::F32 {
            // In half precision candle adds the products up in half precision.
            compare_gradients("scale", &inputs, epsilon, scale, scaled);
        }
    }
}

#[test]
fn no_images() {
    let inputs = [values((0, 3, 2, 2), 1), values((0, 3), 2)];
    assert_eq!(pool(&inputs).unwrap().dims(), [0, 3]);
    assert_eq!(gradients(&inputs[..1], pool)[0].dims(), [0, 3, 2, 2]);
    assert_eq!(scale(&inputs).unwrap().dims(), [0, 3, 2, 2]);
    assert_eq!(gradients(&inputs, scale)[1].dims(), [0, 3]);
    // Channels without elements have no mean, but can be scaled.
    let inputs = [values((2, 3, 0), 1), values((2, 3), 2)];
    assert_eq!(flat(&gradients(&inputs, scale)[1]), [0.0; 6]);
    assert!(message(pool(&inputs)).contains("at least one element per channel"));
}

#[test]
fn errors_name_what_is_wrong() {
    let text = message(global_avg_pool(&values((2, 3), 1)));
    assert!(text.contains("global-avg-pool") && text.contains("[2, 3]"), "{text}");
    for wrong in [vec![2, 4], vec![3, 3], vec![2, 3, 5], vec![2]] {
        let text = message(scale_channels(&values((2, 3, 5, 7), 1), &values(wrong.as_slice(), 2)));
        assert!(text.contains("scale-channels") && text.contains(&format!("{wrong:?}")), "{text}");
    }
    let text =
        message(scale_channels(&values((2, 3, 5), 1), &values((2, 3), 2).to_dtype(DType::F32).unwrap()));
    assert!(text.contains("F64") && text.contains("F32"), "{text}");
}
