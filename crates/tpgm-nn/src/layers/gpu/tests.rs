//! Whole layers, forward and backward through candle's graph, by the emulated kernels on the host's memory: against the same layers of
//! the CPU in f64. What is not run here is `cuda.rs`.

mod attention;
mod images;

use candle_core::{D, DType, Device, Module, Result, Tensor, Var};

use super::host::Host;
use crate::layers::{
    Activation, AttentionMask, Dropout, LayerNorm, Linear, Parts, RmsNorm, add_bias, block, composed,
    cross_entropy_smoothed, cross_entropy_soft_smoothed, gated_silu, gelu, gelu_tanh, log_softmax_last_dim,
    quick_gelu, relu, silu, softmax_last_dim,
};

type Layer = fn(&[Tensor]) -> Result<Tensor>;

/// The element types of kernels.
const TYPES: [DType; 3] = [DType::F32, DType::BF16, DType::F16];

/// Columns: one; ends inside what is read at once, at it, and behind it.
const WIDTHS: [usize; 5] = [1, 3, 37, 64, 260];

/// Reproducible values in -2..2, as the element type has them, of f64.
fn values(shape: &[usize], seed: u64, dtype: DType) -> Tensor {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 11) as f64 / (1u64 << 53) as f64 * 4.0 - 2.0
    };
    let data: Vec<f64> = (0..shape.iter().product::<usize>() + 8).map(|_| next()).skip(8).collect();
    let exact = Tensor::from_vec(data, shape, &Device::Cpu).unwrap();
    exact.to_dtype(dtype).unwrap().to_dtype(DType::F64).unwrap()
}

fn flat(x: &Tensor) -> Vec<f64> {
    x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// How arguments lie in memory: columns in front of each row and behind it, which the layer does not see.
#[derive(Debug, Clone, Copy)]
struct Margins(usize, usize);

/// Without; where nothing can be read four at a time; and where all can.
const MARGINS: [Margins; 3] = [Margins(0, 0), Margins(1, 2), Margins(4, 8)];

/// The result of a layer, and the gradient of every argument with its margins.
struct Outcome {
    y: Vec<f64>,
    grads: Vec<Vec<f64>>,
}

/// Arguments of these shapes with margins. What comes back to the layer has them too: it is a part of wider rows.
fn outcome(layer: Layer, shapes: &[Vec<usize>], margins: Margins, of: DType, dtype: DType) -> Outcome {
    let Margins(before, behind) = margins;
    let vars: Vec<Var> = (1..)
        .zip(shapes)
        .map(|(seed, shape)| {
            let mut shape = shape.clone();
            *shape.last_mut().unwrap() += before + behind;
            Var::from_tensor(&values(&shape, seed, of).to_dtype(dtype).unwrap()).unwrap()
        })
        .collect();
    let args: Vec<Tensor> = vars
        .iter()
        .zip(shapes)
        .map(|(var, shape)| var.narrow(D::Minus1, before, *shape.last().unwrap()).unwrap())
        .collect();
    let y = layer(&args).unwrap();
    let widened = match (y.rank(), before + behind) {
        (0, _) | (_, 0) => y.clone(),
        _ => {
            let edge = |width| {
                let mut shape = y.dims().to_vec();
                *shape.last_mut().unwrap() = width;
                Tensor::zeros(shape, y.dtype(), &Device::Cpu).unwrap()
            };
            Tensor::cat(&[&edge(before), &y, &edge(behind)], D::Minus1).unwrap()
        }
    };
    let weights = values(widened.dims(), 99, of).to_dtype(widened.dtype()).unwrap();
    let grads = (widened * weights).unwrap().sum_all().unwrap().backward().unwrap();
    let grads = vars.iter().map(|var| {
        let grad = grads.get(var).unwrap();
        assert_eq!((grad.dims(), grad.dtype()), (var.dims(), dtype));
        flat(grad)
    });
    Outcome { y: flat(&y), grads: grads.collect() }
}

/// Numbers that were rounded `roundings` times to the element type, of sums and functions in f32.
fn assert_near(what: &str, dtype: DType, roundings: f64, got: &[f64], expected: &[f64]) {
    assert_eq!(got.len(), expected.len(), "{what}");
    let largest = expected.iter().fold(1.0, |most: f64, x| most.max(x.abs()));
    let (half_unit, smallest) = match dtype {
        DType::BF16 => (2f64.powi(-8), 0.0),
        DType::F16 => (2f64.powi(-11), 2f64.powi(-25)),
        _ => (0.0, 0.0),
    };
    for (i, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        // What a later rounding cannot know of the first is as large as the largest number.
        let again = (roundings - 1.0) * half_unit * largest;
        let tolerance = 1.01 * half_unit * expected.abs() + again + smallest + 4e-6 * largest;
        assert!(
            (got - expected).abs() <= tolerance,
            "{what}: element {i} is {got:e}, not {expected:e} (tolerance {tolerance:e})"
        );
    }
}

/// Compares a layer by kernels with the same layer in f64. `calls` is how often kernels must have been called, forward and backward;
/// `roundings` are those of the result, and of gradients.
fn check(host: &Host, name: &str, calls: usize, roundings: [f64; 2], shapes: &[Vec<usize>], layer: Layer) {
    let [of_result, of_gradients] = roundings;
    for (margins, dtype) in MARGINS.into_iter().flat_map(|margins| TYPES.map(|dtype| (margins, dtype))) {
        let what = format!("{name} of {shapes:?} in {dtype:?}, {margins:?}");
        let exact = outcome(layer, shapes, margins, dtype, DType::F64);
        let (got, called) = host.run(|| outcome(layer, shapes, margins, dtype, dtype));
        assert_eq!(called, calls, "{what}");
        // Losses are f32.
        let result = if got.y.len() == 1 { DType::F32 } else { dtype };
        assert_near(&what, result, of_result, &got.y, &exact.y);
        for (i, (got, expected)) in got.grads.iter().zip(&exact.grads).enumerate() {
            assert_near(&format!("gradient {i} of {what}"), dtype, of_gradients, got, expected);
        }
        // And the CPU's layer in the same type.
        let here = outcome(layer, shapes, margins, dtype, dtype);
        assert_near(&what, result, 2.0 * of_result, &got.y, &here.y);
    }
}

#[test]
fn activations_are_those_of_the_cpu() {
    let Some(host) = Host::new() else { return };
    let layers: [(&str, Layer); 5] = [
        ("gelu", |t| gelu(&t[0])),
        ("gelu_tanh", |t| gelu_tanh(&t[0])),
        ("quick_gelu", |t| quick_gelu(&t[0])),
        ("silu", |t| silu(&t[0])),
        ("relu", |t| relu(&t[0])),
    ];
    for ((name, layer), width) in layers.into_iter().flat_map(|layer| WIDTHS.map(|width| (layer, width))) {
        check(&host, name, 2, [1.0, 1.0], &[vec![5, width]], layer);
    }
    check(&host, "gelu", 2, [1.0, 1.0], &[vec![2, 3, 4, 5]], layers[0].1);
    check(&host, "gelu", 2, [1.0, 1.0], &[vec![7]], layers[0].1);
}

#[test]
fn gated_products_are_those_of_the_cpu() {
    let Some(host) = Host::new() else { return };
    for width in WIDTHS {
        check(&host, "gated_silu", 2, [1.0, 1.0], &[vec![5, width], vec![5, width]], |t| {
            gated_silu(&t[0], &t[1])
        });
    }
    // Both in rows twice as wide, as one product makes them.
    check(&host, "gated_silu", 2, [1.0, 1.0], &[vec![2, 3, 16]], |t| {
        gated_silu(&t[0].narrow(D::Minus1, 0, 8)?, &t[0].narrow(D::Minus1, 8, 8)?)
    });
}

#[test]
fn norms_are_those_of_the_cpu() {
    let Some(host) = Host::new() else { return };
    // Of rows of one, the variance is 0, and the gradient is what rounding leaves.
    let shapes = WIDTHS[1..].iter().map(|&width| (5, width)).chain([(300, 6)]);
    for (rows, width) in shapes {
        let [x, of_columns] = [vec![rows, width], vec![width]];
        check(
            &host,
            "layer_norm",
            2,
            [1.0, 1.0],
            &[x.clone(), of_columns.clone(), of_columns.clone()],
            |t| LayerNorm::new(t[1].clone(), t[2].clone(), 1e-1).forward(&t[0]),
        );
        check(&host, "layer_norm without bias", 2, [1.0, 1.0], &[x.clone(), of_columns.clone()], |t| {
            LayerNorm::new_no_bias(t[1].clone(), 1e-1).forward(&t[0])
        });
        check(&host, "rms_norm", 2, [1.0, 1.0], &[x, of_columns], |t| {
            RmsNorm::new(t[1].clone(), 1e-1).forward(&t[0])
        });
    }
}

#[test]
fn softmax_is_that_of_the_cpu() {
    let Some(host) = Host::new() else { return };
    for width in WIDTHS {
        // Backward reads the rounded result: its sum over the row is off by as much.
        check(&host, "softmax", 2, [1.0, 4.0], &[vec![2, 3, width]], |t| softmax_last_dim(&t[0]));
        check(&host, "log_softmax", 2, [1.0, 4.0], &[vec![2, 3, width]], |t| log_softmax_last_dim(&t[0]));
    }
}

#[test]
fn cross_entropy_is_that_of_the_cpu() {
    let Some(host) = Host::new() else { return };
    fn labels(logits: &Tensor, dtype: DType) -> Result<Tensor> {
        let (rows, classes) = logits.dims2()?;
        let labels: Vec<u32> = (0..rows).map(|row| (row * 7 % classes) as u32).collect();
        Tensor::from_vec(labels, rows, &Device::Cpu)?.to_dtype(dtype)
    }
    for classes in &WIDTHS[1..] {
        let shapes = [vec![5, *classes]];
        check(&host, "cross_entropy", 2, [1.0, 1.0], &shapes, |t| {
            cross_entropy_smoothed(&t[0], &labels(&t[0], DType::U32)?, 0.0)
        });
        check(&host, "smoothed cross_entropy", 2, [1.0, 1.0], &shapes, |t| {
            cross_entropy_smoothed(&t[0], &labels(&t[0], DType::U8)?, 0.1)
        });
        check(&host, "cross_entropy", 2, [1.0, 1.0], &shapes, |t| {
            cross_entropy_smoothed(&t[0], &labels(&t[0], DType::I64)?, 0.0)
        });
        // The gradient of widened logits is rounded once.
        check(&host, "soft cross_entropy", 2, [1.0, 1.0], &shapes, |t| {
            let targets = composed::softmax_last_dim(&values(t[0].dims(), 5, DType::F32))?;
            cross_entropy_soft_smoothed(&t[0], &targets.to_dtype(DType::F32)?, 0.2)
        });
    }
}

#[test]
fn linear_layers_and_biases_are_those_of_the_cpu() {
    let Some(host) = Host::new() else { return };
    for (inputs, outputs) in [(1, 3), (37, 4), (64, 37)] {
        let [x, weight, bias] = [vec![2, 3, inputs], vec![outputs, inputs], vec![outputs]];
        // On the CPU candle rounds products of f16 more than once.
        check(&host, "linear without bias", 0, [2.0, 2.0], &[x.clone(), weight.clone()], |t| {
            Linear::new(t[1].clone(), None).forward(&t[0])
        });
        // The product is rounded, and the sum with the bias.
        check(&host, "linear", 2, [3.0, 2.0], &[x, weight, bias], |t| {
            Linear::new(t[1].clone(), Some(t[2].clone())).forward(&t[0])
        });
        check(&host, "add_bias", 2, [1.0, 1.0], &[vec![300, outputs], vec![outputs]], |t| {
            add_bias(&t[0], &t[1])
        });
    }
}

/// Gradients that a call of kernels was asked for: none for what is frozen or outside of the graph.
#[test]
fn gradients_that_nobody_wants_are_not_computed() {
    let Some(host) = Host::new() else { return };
    let tensor = |shape: &[usize]| values(shape, 3, DType::F32).to_dtype(DType::F32).unwrap();
    let [x, weight, bias] = [tensor(&[5, 4]), tensor(&[3, 4]), tensor(&[3])];
    let wanted = |x: &Tensor, weight: &Tensor, bias: &Tensor| {
        use crate::layers::fused::Fused;
        let grad = Tensor::ones((5, 3), DType::F32, &Device::Cpu).unwrap();
        let grads =
            Fused::<3>::backward_on(&crate::layers::linear::Affine, &host, [x, weight, bias], &grad, &grad);
        grads.unwrap().map(|grad| grad.is_some())
    };
    let var = |tensor: &Tensor| Var::from_tensor(tensor).unwrap().into_inner();
    assert_eq!(wanted(&var(&x), &weight, &bias), [true, false, false]);
    assert_eq!(wanted(&x, &var(&weight), &bias), [false, true, false]);
    assert_eq!(wanted(&x, &weight, &var(&bias)), [false, false, true]);

    // A norm's bias alone, for which the kernel sums for the weight too.
    let (weight, bias) = (tensor(&[4]), Var::from_tensor(&tensor(&[4])).unwrap());
    let (grads, _) = host.run(|| {
        let norm = LayerNorm::new(weight.clone(), bias.as_tensor().clone(), 1e-5);
        norm.forward(&x).unwrap().sum_all().unwrap().backward().unwrap()
    });
    assert_eq!(flat(grads.get(&bias).unwrap()), [5.0; 4]);
    assert!(grads.get(&weight).is_none());
}

#[test]
fn a_label_that_is_no_class_makes_the_loss_nan_where_the_host_does_not_look() {
    let Some(host) = Host::new() else { return };
    let logits = values(&[2, 3], 1, DType::F32).to_dtype(DType::F32).unwrap();
    let labels = Tensor::new(&[2u32, 3], &Device::Cpu).unwrap();
    let loss = |labels: &Tensor| cross_entropy_smoothed(&logits, labels, 0.0);
    let (result, calls) = host.run(|| loss(&labels));
    assert!(result.unwrap().to_scalar::<f32>().unwrap().is_nan());
    assert_eq!(calls, 1);
    assert!(loss(&labels).unwrap_err().to_string().contains("the label of row 1 is 3"));
    let floats = labels.to_dtype(DType::F32).unwrap();
    let text = host.run(|| loss(&floats)).0.unwrap_err().to_string();
    assert!(text.contains("labels must be u8, u32 or i64; got F32"), "{text}");
}

/// They are composed of candle's operations, and say nothing.
#[test]
fn what_has_no_kernel_is_composed() {
    let Some(host) = Host::new() else { return };
    let wide = values(&[5, 8], 1, DType::F32);
    let x = wide.to_dtype(DType::F32).unwrap();
    let ones = Tensor::ones(8, DType::F32, &Device::Cpu).unwrap();
    let none = Tensor::zeros((0, 8), DType::F32, &Device::Cpu).unwrap();
    let layers: [(&str, &dyn Fn() -> Result<Tensor>); 4] = [
        ("f64", &|| gelu(&wide)),
        ("no elements", &|| silu(&none)),
        ("an epsilon of 0", &|| LayerNorm::new(ones.clone(), ones.clone(), 1e-60).forward(&x)),
        ("an activation of MobileNet", &|| crate::layers::hard_swish(&x)),
    ];
    for (what, layer) in layers {
        let (by_kernels, calls) = host.run(layer);
        assert_eq!(calls, 0, "{what}");
        let (got, expected) = (flat(&by_kernels.unwrap()), flat(&layer().unwrap()));
        assert_near(what, DType::F32, 1.0, &got, &expected);
    }
}

/// A block with all that kernels compute of it; dropout and rotation apart.
fn whole_block(args: &[Tensor]) -> Result<Tensor> {
    let [x, wide, wide_bias, joined, weight, bias, mask] = args else { unreachable!("seven arguments") };
    let feed = Linear::new(wide.clone(), Some(wide_bias.clone()));
    let (norm, joined) =
        (LayerNorm::new(weight.clone(), bias.clone(), 1e-3), Linear::new(joined.clone(), None));
    let mask = AttentionMask::Added(mask.detach());
    block("test", x, Parts::default(), |tape, x| {
        let y = tape.activated(x, &feed, Activation::Gelu)?;
        let [sum, normed] = tape.add_norm(&y, x, &norm)?;
        let both = tape.linear(&normed, &joined)?;
        let [query, key, value] = tape.split_joined(&both, 2)?;
        let seen = tape.attention([&query, &key, &value], Some(&mask), &Dropout::never(), true)?;
        let past =
            tape.attention([&value, &query, &key], Some(&AttentionMask::Causal), &Dropout::never(), true)?;
        let y = tape.add(&seen, &past)?;
        tape.add(&y, &sum)
    })
}

#[test]
fn a_block_is_computed_by_kernels() {
    let Some(host) = Host::new() else { return };
    let shapes: [&[usize]; 7] = [&[2, 5, 8], &[8, 8], &[8], &[24, 8], &[8], &[8], &[2, 1, 1, 5]];
    let run = |dtype: DType| {
        let vars: Vec<Var> = (1..)
            .zip(shapes)
            .map(|(seed, shape)| {
                Var::from_tensor(&values(shape, seed, DType::F32).to_dtype(dtype).unwrap()).unwrap()
            })
            .collect();
        let args: Vec<Tensor> = vars.iter().map(|var| var.as_tensor().clone()).collect();
        let y = whole_block(&args).unwrap();
        let weights = values(y.dims(), 99, DType::F32).to_dtype(dtype).unwrap();
        let grads = (&y * weights).unwrap().sum_all().unwrap().backward().unwrap();
        let grads = vars[..6].iter().map(|var| flat(grads.get(var).unwrap()));
        [flat(&y)].into_iter().chain(grads).collect::<Vec<_>>()
    };
    let exact = run(DType::F64);
    let (got, calls) = host.run(|| run(DType::F32));
    // Each way: the activation, the sum with its norm, and the weights of two attentions.
    assert_eq!(calls, 2 * 4);
    for (which, (got, exact)) in got.iter().zip(&exact).enumerate() {
        let largest = exact.iter().fold(1.0, |most: f64, x| most.max(x.abs()));
        for (got, exact) in got.iter().zip(exact) {
            assert!((got - exact).abs() <= 2e-5 * largest, "{which}: {got} and {exact}");
        }
    }
    // In half precision the CPU rounds where kernels do: after each layer. Softmax makes much of a little, so that f64 is far from both.
    for dtype in [DType::BF16, DType::F16] {
        let exact = run(dtype);
        let (got, calls) = host.run(|| run(dtype));
        assert_eq!(calls, 2 * 4);
        // Half a unit in the last place of each of the roundings on the way, of which there are a few.
        let rounding = if dtype == DType::BF16 { 2f64.powi(-9) } else { 2f64.powi(-12) };
        for (which, (got, exact)) in got.iter().zip(&exact).enumerate() {
            let largest = exact.iter().fold(1.0, |most: f64, x| most.max(x.abs()));
            for (got, exact) in got.iter().zip(exact) {
                let off = (got - exact).abs();
                assert!(off <= 16.0 * rounding * largest, "{dtype:?}, {which}: {got} and {exact}");
            }
        }
    }
}
