use candle_core::{DType, Device, Module, Result, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use tpgm_nn::{Conv2d, composed, conv2d_no_bias};

use crate::gradients::{
    DTYPES, assert_close, check_gradients, compare_gradients, flat, gradients, message, tolerance, values,
};

/// Shapes of image and weight, stride, padding.
type Case = ([usize; 4], [usize; 4], usize, usize);

/// Kernels of one, three and seven, of unequal sides, larger than the image, gaps between windows, several images to a
/// product, more positions than one product takes.
const CASES: [Case; 9] = [
    ([2, 3, 5, 4], [4, 3, 1, 1], 1, 0),
    ([1, 3, 40, 30], [2, 3, 1, 1], 1, 0),
    ([2, 2, 6, 5], [3, 2, 1, 1], 2, 0),
    ([3, 2, 5, 7], [3, 2, 3, 3], 1, 1),
    ([2, 2, 7, 6], [2, 2, 3, 3], 2, 1),
    ([2, 1, 9, 12], [2, 1, 7, 7], 2, 3),
    ([1, 2, 6, 8], [2, 2, 2, 4], 3, 0),
    ([1, 1, 1, 2], [2, 1, 3, 3], 1, 2),
    ([3, 2, 33, 34], [2, 2, 3, 3], 1, 1),
];

fn conv(x: &[Tensor], stride: usize, padding: usize) -> Result<Tensor> {
    Conv2d::new(x[1].clone()).stride(stride).padding(padding).forward(&x[0])
}

fn inputs((image, weight, ..): Case) -> Vec<Tensor> {
    vec![values(&image[..], 1), values(&weight[..], 2)]
}

/// The definition, element by element.
fn by_definition((image, weight, stride, padding): Case, x: &[Tensor]) -> Tensor {
    let ([batch, inputs, height, width], [outputs, _, kernel_height, kernel_width]) = (image, weight);
    let (x, w) = (flat(&x[0]), flat(&x[1]));
    let (out_height, out_width) = (
        (height + 2 * padding - kernel_height) / stride + 1,
        (width + 2 * padding - kernel_width) / stride + 1,
    );
    let mut y = vec![];
    for b in 0..batch {
        for o in 0..outputs {
            for (row, column) in (0..out_height).flat_map(|r| (0..out_width).map(move |c| (r, c))) {
                let mut sum = 0.0;
                for i in 0..inputs {
                    for (ky, kx) in (0..kernel_height).flat_map(|r| (0..kernel_width).map(move |c| (r, c))) {
                        let (py, px) = (row * stride + ky, column * stride + kx);
                        if (padding..height + padding).contains(&py)
                            && (padding..width + padding).contains(&px)
                        {
                            let at = ((b * inputs + i) * height + py - padding) * width + px - padding;
                            sum += x[at] * w[((o * inputs + i) * kernel_height + ky) * kernel_width + kx];
                        }
                    }
                }
                y.push(sum);
            }
        }
    }
    Tensor::from_vec(y, (batch, outputs, out_height, out_width), &Device::Cpu).unwrap()
}

#[test]
fn values_are_those_of_the_definition() {
    for case in CASES {
        let exact = by_definition(case, &inputs(case));
        assert_close("conv", &conv(&inputs(case), case.2, case.3).unwrap(), &exact, 1e-13);
        for dtype in DTYPES {
            let inputs: Vec<_> = inputs(case).iter().map(|x| x.to_dtype(dtype).unwrap()).collect();
            let exact = by_definition(case, &inputs).to_dtype(dtype).unwrap();
            let epsilon = if dtype == DType::F32 { 5e-6 } else { tolerance(dtype) };
            assert_close("conv", &conv(&inputs, case.2, case.3).unwrap(), &exact, epsilon);
        }
    }
}

#[test]
fn gradients_are_difference_quotients() {
    for case in CASES {
        check_gradients(&format!("{case:?}"), &inputs(case), |x| conv(x, case.2, case.3));
    }
}

#[test]
fn gradients_are_those_of_candle() {
    // Square images, with which candle's backward pass can do.
    for (size, stride, padding) in [(6, 1, 1), (7, 2, 1), (40, 1, 1)] {
        for (dtype, tolerance) in [(DType::F64, 1e-12), (DType::F32, 2e-5)] {
            let inputs =
                [values((2, 3, size, size), 1), values((4, 3, 3, 3), 2)].map(|x| x.to_dtype(dtype).unwrap());
            compare_gradients(
                "conv",
                &inputs,
                tolerance,
                |x| conv(x, stride, padding),
                |x| composed::conv2d(&x[0], &x[1], stride, padding.into(), 1),
            );
        }
    }
}

#[test]
fn candle_fails_where_this_does_not() {
    // What the table in `nn` says of candle: a stride of two leaves nothing of 6 and something of 7.
    let inputs = [values((1, 2, 6, 7), 1), values((2, 2, 3, 3), 2)];
    assert_eq!(gradients(&inputs, |x| conv(x, 2, 1))[0].dims(), [1, 2, 6, 7]);
    let vars = inputs.map(|x| Var::from_tensor(&x).unwrap());
    let y = vars[0].conv2d(&vars[1], 1, 2, 1, 1).unwrap();
    assert!(y.sum_all().unwrap().backward().is_err());
}

#[test]
fn strided_inputs_and_views() {
    let inputs = [values((5, 3, 4, 2), 1), values((3, 2, 3, 3), 2)];
    let view = |x: &[Tensor]| {
        let image = x[0].permute((0, 3, 1, 2))?.narrow(0, 1, 3)?;
        Conv2d::new(x[1].transpose(2, 3)?).padding(1).forward(&image)
    };
    check_gradients("views", &inputs, view);
    let image = inputs[0].permute((0, 3, 1, 2)).unwrap().narrow(0, 1, 3).unwrap().force_contiguous().unwrap();
    let weight = inputs[1].transpose(2, 3).unwrap().contiguous().unwrap();
    assert_close("views", &view(&inputs).unwrap(), &conv(&[image, weight], 1, 1).unwrap(), 0.0);
    // An image that starts inside its storage and is contiguous there.
    let inputs = [values((3, 2, 4, 4), 1), values((2, 2, 1, 1), 2)];
    check_gradients("offset", &inputs, |x| conv(&[x[0].narrow(0, 1, 2)?, x[1].clone()], 1, 0));
}

#[test]
fn an_empty_batch() {
    let inputs = [values((0, 2, 4, 4), 1), values((3, 2, 3, 3), 2)];
    assert_eq!(conv(&inputs, 1, 1).unwrap().dims(), [0, 3, 4, 4]);
    let grads = gradients(&inputs, |x| conv(x, 1, 1));
    assert_eq!(grads[0].dims(), [0, 2, 4, 4]);
    assert!(flat(&grads[1]).iter().all(|&x| x == 0.0));
}

#[test]
fn a_layer_loads_its_weight() {
    let map = VarMap::new();
    let vb = VarBuilder::from_varmap(&map, DType::F64, &Device::Cpu);
    let layer = conv2d_no_bias(2, 3, 5, vb.pp("conv")).unwrap();
    assert_eq!(layer.weight().dims(), [3, 2, 5, 5]);
    assert_eq!(map.data().lock().unwrap().keys().collect::<Vec<_>>(), ["conv.weight"]);
}

#[test]
fn errors_name_what_is_wrong() {
    let (x, w) = (values((1, 2, 4, 4), 1), values((3, 2, 3, 3), 2));
    let text = message(conv(&[values((2, 4, 4), 1), w.clone()], 1, 0));
    assert!(text.contains("conv2d") && text.contains("[2, 4, 4]"), "{text}");
    let text = message(conv(&[x.clone(), values((3, 1, 3, 3), 2)], 1, 0));
    assert!(text.contains("channels") && text.contains("[3, 1, 3, 3]"), "{text}");
    assert!(message(conv(&[x.clone(), w.clone()], 0, 0)).contains("stride is 0"));
    let text = message(conv(&[values((1, 2, 2, 4), 1), w.clone()], 1, 0));
    assert!(text.contains("as large as the kernel") && text.contains("[1, 2, 2, 4]"), "{text}");
    let text = message(conv(&[x, w.to_dtype(DType::F32).unwrap()], 1, 0));
    assert!(text.contains("F64") && text.contains("F32"), "{text}");
}
