use candle_core::{DType, Device, Module, Result, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};
use tpgm_nn::{Conv2d, Padding, composed, conv2d_no_bias};

use crate::gradients::{
    DTYPES, assert_close, check_gradients, compare_gradients, flat, gradients, message, tolerance, values,
};

/// Shapes of image and weight, stride, padding, groups.
type Case = ([usize; 4], [usize; 4], usize, Padding, usize);

const fn pad(elements: usize) -> Padding {
    Padding::Symmetric(elements)
}

/// Kernels of one, three and seven, of unequal sides, larger than the image, gaps between windows, several images to a task, more
/// rows than are made at a time; groups, kernels of each channel's own with one and several outputs, channels that are no multiple
/// of a vector; TensorFlow's padding, which is asymmetric for even sizes.
const CASES: [Case; 25] = [
    ([2, 3, 5, 4], [4, 3, 1, 1], 1, pad(0), 1),
    ([1, 3, 40, 30], [2, 3, 1, 1], 1, pad(0), 1),
    ([2, 2, 6, 5], [3, 2, 1, 1], 2, pad(0), 1),
    ([2, 2, 3, 3], [3, 2, 1, 1], 1, pad(1), 1),
    ([3, 2, 5, 7], [3, 2, 3, 3], 1, pad(1), 1),
    ([2, 2, 7, 6], [2, 2, 3, 3], 2, pad(1), 1),
    ([2, 1, 9, 12], [2, 1, 7, 7], 2, pad(3), 1),
    ([1, 2, 6, 8], [2, 2, 2, 4], 3, pad(0), 1),
    ([1, 1, 1, 2], [2, 1, 3, 3], 1, pad(2), 1),
    ([3, 2, 33, 34], [2, 2, 3, 3], 1, pad(1), 1),
    ([1, 100, 12, 11], [2, 100, 3, 3], 1, pad(1), 1),
    ([2, 3, 6, 7], [4, 3, 3, 3], 2, Padding::Same, 1),
    ([1, 2, 4, 6], [2, 2, 2, 5], 2, Padding::Same, 1),
    ([2, 4, 5, 6], [6, 2, 3, 3], 1, pad(1), 2),
    ([2, 6, 5, 4], [3, 2, 1, 1], 1, pad(0), 3),
    ([2, 3, 5, 4], [6, 1, 3, 3], 2, pad(1), 3),
    ([2, 3, 6, 5], [3, 1, 3, 3], 1, pad(1), 3),
    ([2, 19, 5, 9], [19, 1, 3, 3], 2, pad(1), 19),
    ([2, 27, 6, 8], [27, 1, 5, 5], 2, Padding::Same, 27),
    ([1, 16, 9, 11], [16, 1, 5, 5], 1, Padding::Same, 16),
    ([3, 8, 1, 1], [8, 1, 5, 5], 1, Padding::Same, 8),
    ([2, 2, 2, 3], [2, 1, 5, 5], 2, pad(2), 2),
    ([1, 2, 9, 8], [2, 1, 3, 3], 3, pad(0), 2),
    ([1, 2, 7, 8], [2, 1, 2, 7], 2, pad(3), 2),
    ([2, 4, 130, 150], [4, 1, 3, 3], 1, pad(1), 4),
];

fn conv(x: &[Tensor], (.., stride, padding, groups): Case) -> Result<Tensor> {
    Conv2d::new(x[1].clone()).stride(stride).padding(padding).groups(groups).forward(&x[0])
}

/// Without groups.
fn simple(x: &[Tensor], stride: usize, padding: usize) -> Result<Tensor> {
    Conv2d::new(x[1].clone()).stride(stride).padding(padding).forward(&x[0])
}

fn inputs((image, weight, ..): Case) -> Vec<Tensor> {
    vec![values(&image[..], 1), values(&weight[..], 2)]
}

/// What lies before the image, and how many windows there are, by PyTorch's formula or TensorFlow's.
fn windows(padding: Padding, stride: usize, size: usize, kernel: usize) -> (usize, usize) {
    match padding {
        Padding::Symmetric(padding) => (padding, (size + 2 * padding - kernel) / stride + 1),
        Padding::Same => {
            let out = size.div_ceil(stride);
            let total = ((out as i64 - 1) * stride as i64 + kernel as i64 - size as i64).max(0);
            (total as usize / 2, out)
        }
    }
}

/// The definition, element by element.
fn by_definition((image, weight, stride, padding, groups): Case, x: &[Tensor]) -> Tensor {
    let ([batch, inputs, height, width], [outputs, of_group, kernel_height, kernel_width]) = (image, weight);
    let (x, w) = (flat(&x[0]), flat(&x[1]));
    let (top, out_height) = windows(padding, stride, height, kernel_height);
    let (left, out_width) = windows(padding, stride, width, kernel_width);
    let mut y = vec![];
    for b in 0..batch {
        for o in 0..outputs {
            let first = o / (outputs / groups) * of_group;
            for (row, column) in (0..out_height).flat_map(|r| (0..out_width).map(move |c| (r, c))) {
                let mut sum = 0.0;
                for i in 0..of_group {
                    for (ky, kx) in (0..kernel_height).flat_map(|r| (0..kernel_width).map(move |c| (r, c))) {
                        let (py, px) = (row * stride + ky, column * stride + kx);
                        if (top..height + top).contains(&py) && (left..width + left).contains(&px) {
                            let at = ((b * inputs + first + i) * height + py - top) * width + px - left;
                            sum += x[at] * w[((o * of_group + i) * kernel_height + ky) * kernel_width + kx];
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
        assert_close(&format!("{case:?}"), &conv(&inputs(case), case).unwrap(), &exact, 1e-13);
        for dtype in DTYPES {
            let inputs: Vec<_> = inputs(case).iter().map(|x| x.to_dtype(dtype).unwrap()).collect();
            let exact = by_definition(case, &inputs).to_dtype(dtype).unwrap();
            // Rounding of a sum grows with the root of the number of its terms.
            let terms = case.1[1..].iter().product::<usize>() as f64;
            let of_sum = 5e-6 * (terms / 49.0).sqrt().max(1.0);
            let epsilon = if dtype == DType::F32 { of_sum } else { tolerance(dtype) };
            assert_close(&format!("{case:?}"), &conv(&inputs, case).unwrap(), &exact, epsilon);
        }
    }
}

#[test]
fn gradients_are_difference_quotients() {
    for case in CASES {
        check_gradients(&format!("{case:?}"), &inputs(case), |x| conv(x, case));
    }
}

#[test]
fn composed_is_the_same() {
    for case in CASES {
        let (.., stride, padding, groups) = case;
        let composed = |x: &[Tensor]| composed::conv2d(&x[0], &x[1], stride, padding, groups);
        let (name, inputs) = (format!("{case:?}"), inputs(case));
        assert_close(&name, &conv(&inputs, case).unwrap(), &composed(&inputs).unwrap(), 1e-12);
        compare_gradients(&name, &inputs, 1e-11, |x| conv(x, case), composed);
    }
}

/// Only the gradients that somebody wants are made, and they are the same.
#[test]
fn gradients_of_one_argument() {
    for case in [CASES[0], CASES[4], CASES[13], CASES[17]] {
        let [x, w] = inputs(case).try_into().unwrap();
        let both = gradients(&[x.clone(), w.clone()], |x| conv(x, case));
        let of_x = gradients(std::slice::from_ref(&x), |x| conv(&[x[0].clone(), w.clone()], case));
        let of_w = gradients(&[w], |w| conv(&[x.clone(), w[0].clone()], case));
        assert_eq!((flat(&of_x[0]), flat(&of_w[0])), (flat(&both[0]), flat(&both[1])), "{case:?}");
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
                |x| simple(x, stride, padding),
                |x| composed::conv2d(&x[0], &x[1], stride, pad(padding), 1),
            );
        }
    }
}

#[test]
fn candle_fails_where_this_does_not() {
    // What the table in `nn` says of candle: a stride of two leaves nothing of 6 and something of 7.
    let inputs = [values((1, 2, 6, 7), 1), values((2, 2, 3, 3), 2)];
    assert_eq!(gradients(&inputs, |x| simple(x, 2, 1))[0].dims(), [1, 2, 6, 7]);
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
    assert_close("views", &view(&inputs).unwrap(), &simple(&[image, weight], 1, 1).unwrap(), 0.0);
    // An image that starts inside its storage and is contiguous there.
    let inputs = [values((3, 2, 4, 4), 1), values((2, 2, 1, 1), 2)];
    check_gradients("offset", &inputs, |x| simple(&[x[0].narrow(0, 1, 2)?, x[1].clone()], 1, 0));
}

#[test]
fn an_empty_batch() {
    let inputs = [values((0, 2, 4, 4), 1), values((3, 2, 3, 3), 2)];
    assert_eq!(simple(&inputs, 1, 1).unwrap().dims(), [0, 3, 4, 4]);
    let grads = gradients(&inputs, |x| simple(x, 1, 1));
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
    let text = message(simple(&[values((2, 4, 4), 1), w.clone()], 1, 0));
    assert!(text.contains("conv2d") && text.contains("[2, 4, 4]"), "{text}");
    let text = message(simple(&[x.clone(), values((3, 1, 3, 3), 2)], 1, 0));
    assert!(text.contains("channels") && text.contains("[3, 1, 3, 3]"), "{text}");
    assert!(message(simple(&[x.clone(), w.clone()], 0, 0)).contains("stride is 0"));
    let text = message(simple(&[values((1, 2, 2, 4), 1), w.clone()], 1, 0));
    assert!(text.contains("as large as the kernel") && text.contains("[1, 2, 2, 4]"), "{text}");
    let text = message(simple(&[x, w.to_dtype(DType::F32).unwrap()], 1, 0));
    assert!(text.contains("F64") && text.contains("F32"), "{text}");
    let layer = || Conv2d::new(values((3, 2, 3, 3), 2));
    let text = message(layer().groups(0).forward(&values((1, 2, 4, 4), 1)));
    assert!(text.contains("number of groups is 0"), "{text}");
    let text = message(layer().groups(2).forward(&values((1, 2, 4, 4), 1)));
    assert!(text.contains("times the number of groups") && text.contains("[3, 2, 3, 3]"), "{text}");
    let text = message(layer().groups(2).forward(&values((1, 4, 4, 4), 1)));
    assert!(text.contains("multiple of the number of groups"), "{text}");
    let text = message(layer().padding(Padding::Same).forward(&values((1, 2, 0, 4), 1)));
    assert!(text.contains("only the batch may be empty") && text.contains("[1, 2, 0, 4]"), "{text}");
}
