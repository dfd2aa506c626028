use std::path::Path;

use candle_core::{DType, Device, ModuleT, Result, Tensor, Var};
use tpgm_nn::{
    BatchNorm, Conv2d, ConvActivation, ConvBlock, ConvNorm, Padding, Shortcut, Statistics, composed,
};

use crate::gradients::{
    DTYPES, assert_close, check_gradients, compare_gradients, flat, gradients, message, values,
};

const EPS: f64 = 1e-3;

const ACTIVATIONS: [ConvActivation; 5] = [
    ConvActivation::None,
    ConvActivation::Relu,
    ConvActivation::Relu6,
    ConvActivation::HardSwish,
    ConvActivation::Silu,
];

/// Outputs, inputs of a group, kernel, stride, padding, groups.
type Layer = (usize, usize, usize, usize, Padding, usize);

/// What is added to the result of the layers, and what follows the sum, as a number of [`ACTIVATIONS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Nothing,
    Input,
    InputAnd(usize),
    Projection(Layer),
    /// With an activation of its own.
    ProjectionAnd(Layer, usize, usize),
    /// Nothing is added.
    And(usize),
}

impl Way {
    /// The projection and its activation.
    fn projection(self) -> Option<(Layer, usize)> {
        match self {
            Way::Projection(layer) => Some((layer, 0)),
            Way::ProjectionAnd(layer, own, _) => Some((layer, own)),
            _ => None,
        }
    }

    /// What follows the sum.
    fn activation(self) -> ConvActivation {
        match self {
            Way::InputAnd(activation) | Way::And(activation) | Way::ProjectionAnd(_, _, activation) => {
                ACTIVATIONS[activation]
            }
            _ => ConvActivation::None,
        }
    }
}

/// Shape of the image, layers, what goes around them.
type Case = ([usize; 4], &'static [Layer], Way);

const CASES: [Case; 15] = [
    // One by one, ordinary, depthwise, in groups.
    ([3, 5, 6, 7], &[(4, 5, 1, 1, Padding::Symmetric(0), 1)], Way::Nothing),
    ([2, 3, 7, 6], &[(5, 3, 3, 2, Padding::Same, 1)], Way::Nothing),
    ([2, 18, 6, 5], &[(18, 1, 3, 1, Padding::Symmetric(1), 18)], Way::Input),
    ([2, 4, 6, 5], &[(6, 2, 3, 2, Padding::Symmetric(1), 2)], Way::Nothing),
    // Inverted residuals, with and without the input.
    (
        [3, 4, 6, 8],
        &[(24, 4, 1, 1, Padding::Same, 1), (24, 1, 5, 2, Padding::Same, 24), (6, 24, 1, 1, Padding::Same, 1)],
        Way::Nothing,
    ),
    (
        [9, 4, 3, 3],
        &[(12, 4, 1, 1, Padding::Same, 1), (12, 1, 3, 1, Padding::Same, 12), (4, 12, 1, 1, Padding::Same, 1)],
        Way::Input,
    ),
    // A bottleneck, and an image of one element.
    (
        [2, 8, 5, 5],
        &[
            (3, 8, 1, 1, Padding::Symmetric(0), 1),
            (3, 3, 3, 1, Padding::Symmetric(1), 1),
            (8, 3, 1, 1, Padding::Symmetric(0), 1),
        ],
        Way::Input,
    ),
    ([5, 2, 1, 1], &[(2, 2, 1, 1, Padding::Same, 1), (2, 1, 5, 1, Padding::Same, 2)], Way::Input),
    // The blocks of ResNet.
    (
        [2, 8, 5, 5],
        &[
            (3, 8, 1, 1, Padding::Symmetric(0), 1),
            (3, 3, 3, 1, Padding::Symmetric(1), 1),
            (8, 3, 1, 1, Padding::Symmetric(0), 1),
        ],
        Way::InputAnd(1),
    ),
    (
        [3, 5, 7, 6],
        &[
            (3, 5, 1, 1, Padding::Symmetric(0), 1),
            (3, 3, 3, 2, Padding::Symmetric(1), 1),
            (9, 3, 1, 1, Padding::Symmetric(0), 1),
        ],
        Way::ProjectionAnd((9, 5, 1, 2, Padding::Symmetric(0), 1), 0, 1),
    ),
    (
        [1, 4, 6, 5],
        &[(6, 4, 3, 2, Padding::Symmetric(1), 1), (6, 6, 3, 1, Padding::Symmetric(1), 1)],
        Way::ProjectionAnd((6, 4, 1, 2, Padding::Symmetric(0), 1), 0, 2),
    ),
    // What no published network has: activations that need what they were applied to, other projections, one layer.
    ([3, 4, 5, 3], &[(4, 4, 1, 1, Padding::Same, 1)], Way::InputAnd(4)),
    (
        [2, 18, 5, 6],
        &[(18, 1, 3, 2, Padding::Same, 18)],
        Way::ProjectionAnd((18, 1, 3, 2, Padding::Same, 18), 3, 3),
    ),
    ([2, 4, 6, 5], &[(6, 2, 3, 1, Padding::Same, 2)], Way::Projection((6, 4, 3, 1, Padding::Same, 1))),
    ([2, 4, 6, 5], &[(6, 4, 1, 1, Padding::Same, 1)], Way::And(3)),
];

/// The image, and weight and the norm's weight and bias of each layer.
fn inputs(case: Case) -> Vec<Tensor> {
    let mut all = vec![values(&case.0[..], 1).affine(2.0, 0.3).unwrap()];
    let projection = case.2.projection().map(|(layer, _)| layer);
    for (i, (outputs, of_group, kernel, ..)) in case.1.iter().copied().chain(projection).enumerate() {
        let seed = 10 * i as u64;
        all.push(values((outputs, of_group, kernel, kernel), seed + 2));
        all.push(values(outputs, seed + 3).affine(1.0, 0.2).unwrap());
        all.push(values(outputs, seed + 4));
    }
    all
}

/// Running mean and variance of a layer.
fn running(outputs: usize, dtype: DType) -> [Tensor; 2] {
    let mean = values(outputs, 5).to_dtype(dtype).unwrap();
    [mean, values(outputs, 6).affine(0.5, 1.5).unwrap().to_dtype(dtype).unwrap()]
}

/// Activations differ between layers: the first has `activation`, each following one the next.
fn activation_of(activation: usize, layer: usize) -> ConvActivation {
    ACTIVATIONS[(activation + layer) % ACTIVATIONS.len()]
}

/// Layer number `i` of a case; the projection comes last.
fn layer(x: &[Tensor], i: usize, layer: Layer, activation: ConvActivation) -> Result<ConvNorm> {
    let (outputs, _, _, stride, padding, groups) = layer;
    let [mean, variance] = running(outputs, x[0].dtype());
    let conv = Conv2d::new(x[3 * i + 1].clone()).stride(stride).padding(padding).groups(groups);
    let norm = BatchNorm::new(x[3 * i + 2].clone(), x[3 * i + 3].clone(), &mean, &variance, EPS)?;
    Ok(ConvNorm::new(conv, norm, activation))
}

fn block(x: &[Tensor], case: Case, activation: usize, statistics: Statistics) -> Result<ConvBlock> {
    let with = |layer: ConvNorm| {
        let norm = layer.norm().clone().statistics(statistics);
        ConvNorm::new(layer.conv().clone(), norm, layer.activation())
    };
    let layers = case.1.iter().enumerate();
    let layers = layers.map(|(i, &one)| layer(x, i, one, activation_of(activation, i)).map(with));
    let projection = case.2.projection();
    let projection = projection.map(|(one, own)| layer(x, case.1.len(), one, ACTIVATIONS[own]).map(with));
    let shortcut = match (projection.transpose()?, case.2) {
        (Some(layer), _) => Shortcut::Projection(Box::new(layer)),
        (None, Way::Input | Way::InputAnd(_)) => Shortcut::Input,
        (None, _) => Shortcut::None,
    };
    Ok(ConvBlock::new(layers.collect::<Result<_>>()?, shortcut).activation(case.2.activation()))
}

fn fused(x: &[Tensor], case: Case, activation: usize) -> Result<Tensor> {
    block(x, case, activation, Statistics::Running)?.forward_t(&x[0], true)
}

/// The same composed of candle's operations.
fn reference(x: &[Tensor], case: Case, activation: usize) -> Result<Tensor> {
    let apply = |y: Tensor, activation: ConvActivation| match activation {
        ConvActivation::None => Ok(y),
        ConvActivation::Relu => composed::relu(&y),
        ConvActivation::Relu6 => composed::relu6(&y),
        ConvActivation::HardSwish => composed::hard_swish(&y),
        ConvActivation::Silu => composed::silu(&y),
    };
    let layer = |y: &Tensor, i: usize, layer: Layer, activation: ConvActivation| {
        let (outputs, _, _, stride, padding, groups) = layer;
        let [mean, variance] = running(outputs, x[0].dtype());
        let y = composed::conv2d(y, &x[3 * i + 1], stride, padding, groups)?;
        let y = composed::batch_norm(&y, &x[3 * i + 2], &x[3 * i + 3], &mean, &variance, EPS)?;
        apply(y, activation)
    };
    let mut y = x[0].clone();
    for (i, &one) in case.1.iter().enumerate() {
        y = layer(&y, i, one, activation_of(activation, i))?;
    }
    let y = match (case.2.projection(), case.2) {
        (Some((one, own)), _) => (y + layer(&x[0], case.1.len(), one, ACTIVATIONS[own])?)?,
        (None, Way::Input | Way::InputAnd(_)) => (y + &x[0])?,
        (None, _) => y,
    };
    apply(y, case.2.activation())
}

#[test]
fn values_and_gradients_are_those_of_the_three() {
    for case in CASES {
        for activation in 0..ACTIVATIONS.len() {
            let (name, inputs) = (format!("{case:?} {activation}"), inputs(case));
            let expected = reference(&inputs, case, activation).unwrap();
            assert_close(&name, &fused(&inputs, case, activation).unwrap(), &expected, 1e-12);
            compare_gradients(
                &name,
                &inputs,
                1e-10,
                |x| fused(x, case, activation),
                |x| reference(x, case, activation),
            );
        }
    }
}

#[test]
fn gradients_are_difference_quotients() {
    for case in CASES {
        for activation in 0..ACTIVATIONS.len() {
            check_gradients(&format!("{case:?} {activation}"), &inputs(case), |x| fused(x, case, activation));
        }
    }
}

/// What `tests/reference/make_convolutions.py` wrote.
#[test]
fn values_and_gradients_are_those_of_pytorch() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reference/convolutions.safetensors");
    let all = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let pad = Padding::Symmetric;
    for (name, stride, padding, groups, activation) in [
        ("one_by_one", 1, pad(0), 1, ConvActivation::Relu6),
        ("depthwise_same", 2, Padding::Same, 18, ConvActivation::HardSwish),
        ("depthwise", 1, pad(1), 8, ConvActivation::Silu),
        ("ordinary_same", 2, Padding::Same, 1, ConvActivation::Relu6),
        ("groups", 1, pad(1), 2, ConvActivation::Relu),
        ("no_activation", 2, pad(1), 1, ConvActivation::None),
    ] {
        let saved = |key: &str| &all[&format!("{name}/{key}")];
        let keys = ["x", "weight", "gamma", "beta"];
        let vars = keys.map(|key| Var::from_tensor(saved(key)).unwrap());
        let [x, weight, gamma, beta] = vars.each_ref().map(|var| var.as_tensor().clone());
        let conv = Conv2d::new(weight).stride(stride).padding(padding).groups(groups);
        let norm = BatchNorm::new(gamma, beta, saved("mean"), saved("var"), EPS).unwrap();
        let y = ConvNorm::new(conv, norm, activation).forward_t(&x, false).unwrap();
        assert_close(name, &y, saved("y"), 1e-12);
        let grads = (y * saved("cotangent")).unwrap().sum_all().unwrap().backward().unwrap();
        for (var, key) in vars.iter().zip(keys) {
            let expected = saved(&format!("grad_{key}"));
            assert_close(&format!("{name}: {key}"), grads.get(var).unwrap(), expected, 1e-12);
        }
    }
}

/// Rounded inputs, exact arithmetic: what half precision and f32 should give.
#[test]
fn other_element_types() {
    for case in CASES {
        for activation in 0..ACTIVATIONS.len() {
            for dtype in DTYPES {
                let inputs: Vec<_> = inputs(case).iter().map(|x| x.to_dtype(dtype).unwrap()).collect();
                let wide: Vec<_> = inputs.iter().map(|x| x.to_dtype(DType::F64).unwrap()).collect();
                let y = fused(&inputs, case, activation).unwrap();
                assert_eq!(y.dtype(), dtype);
                let expected = fused(&wide, case, activation).unwrap();
                let size = flat(&expected).iter().fold(1.0f64, |size, y| size.max(y.abs()));
                // Running statistics are rounded too.
                let epsilon = match dtype {
                    DType::F64 => 1e-13,
                    DType::F32 => 3e-6,
                    DType::F16 => 4e-3,
                    _ => 3e-2,
                };
                for (i, (y, expected)) in flat(&y).iter().zip(flat(&expected)).enumerate() {
                    assert!(
                        (y - expected).abs() <= epsilon * size,
                        "{case:?} {dtype:?}: {i}: {y}, {expected}"
                    );
                }
            }
        }
    }
}

/// Evaluation is the same function, without statistics of a batch; training with them is that of the layers.
#[test]
fn statistics_of_the_batch() {
    let case = CASES[4];
    let inputs = inputs(case);
    let of_batch = block(&inputs, case, 1, Statistics::Batch).unwrap();
    let frozen = fused(&inputs, case, 1).unwrap();
    assert_close("evaluation", &of_batch.forward_t(&inputs[0], false).unwrap(), &frozen, 0.0);
    let layers = |x: &[Tensor], layers: &[ConvNorm]| -> Result<Tensor> {
        let mut y = x[0].clone();
        for layer in layers {
            y = candle_core::Module::forward(layer.conv(), &y)?;
            let (mean, variance) = composed::batch_statistics(&y)?;
            let norm = layer.norm();
            y = composed::batch_norm(&y, norm.weight(), norm.bias(), &mean, &variance, EPS)?;
            y = layer.activation().apply(&y)?;
        }
        Ok(y)
    };
    let f = |x: &[Tensor]| block(x, case, 1, Statistics::Batch)?.forward_t(&x[0], true);
    let g = |x: &[Tensor]| layers(x, block(x, case, 1, Statistics::Batch)?.layers());
    assert_close("training", &f(&inputs).unwrap(), &g(&inputs).unwrap(), 1e-11);
    compare_gradients("training", &inputs, 1e-9, f, g);
    of_batch.forward_t(&inputs[0], true).unwrap();
    let [mean, _] = running(24, DType::F64);
    assert_ne!(flat(of_batch.layers()[0].norm().running_mean()), flat(&mean));
}

/// What is frozen gets no gradient, and the others get the same.
#[test]
fn any_of_the_arguments_may_be_frozen() {
    let case = CASES[5];
    let inputs = inputs(case);
    let all = gradients(&inputs, |x| fused(x, case, 2));
    for trained in [vec![0], vec![1], vec![2], vec![3], vec![5], vec![4, 9], vec![6, 7]] {
        let some: Vec<_> = trained.iter().map(|&i| inputs[i].clone()).collect();
        let grads = gradients(&some, |some| {
            let mut x = inputs.clone();
            trained.iter().zip(some).for_each(|(&i, tensor)| x[i] = tensor.clone());
            fused(&x, case, 2)
        });
        for (&i, grad) in trained.iter().zip(&grads) {
            assert_eq!(flat(grad), flat(&all[i]), "{i} of {trained:?}");
        }
    }
    // Nothing to train: nothing is kept, and the result is no part of a graph.
    assert!(!fused(&inputs, case, 2).unwrap().track_op());
}

#[test]
fn a_parameter_used_twice_and_a_graph_gone_through_twice() {
    let case = CASES[5];
    let inputs = inputs(case);
    let x = Var::from_tensor(&inputs[0]).unwrap();
    let mut args = inputs.clone();
    args[0] = x.as_tensor().clone();
    let y = fused(&args, case, 1).unwrap();
    let (first, second) = (y.backward().unwrap(), y.backward().unwrap());
    assert_eq!(flat(first.get(&x).unwrap()), flat(second.get(&x).unwrap()));
    check_gradients("twice", &inputs, |x| {
        let y = fused(x, case, 1)?;
        let mut again = x.to_vec();
        again[0] = y;
        fused(&again, case, 3)
    });
}

#[test]
fn no_images() {
    for case in CASES {
        let mut case = case;
        case.0[0] = 0;
        let grads = gradients(&inputs(case), |x| fused(x, case, 1));
        assert_eq!(grads[0].dims(), case.0);
        assert!(grads[1..].iter().all(|grad| flat(grad).iter().all(|&x| x == 0.0)));
    }
}

#[test]
fn errors_name_what_is_wrong() {
    let case = CASES[4];
    let [mean, variance] = running(5, DType::F64);
    let inputs = inputs(case);
    let norm = BatchNorm::new(values(5, 1), values(5, 2), &mean, &variance, EPS).unwrap();
    let layer = ConvNorm::new(Conv2d::new(inputs[1].clone()), norm, ConvActivation::Relu);
    let text = message(layer.forward_t(&inputs[0], false));
    assert!(text.contains("conv-norm") && text.contains("outputs of the convolution"), "{text}");
    assert!(text.contains("[24, 4, 1, 1]") && text.contains("[5]"), "{text}");
    let added = (case.0, case.1, Way::Input);
    let text = message(fused(&inputs, added, 1));
    assert!(text.contains("must have the shape of the result") && text.contains("[3, 4, 6, 8]"), "{text}");
    let text = message(fused(&[&[values((3, 5, 6, 8), 1)], &inputs[1..]].concat(), case, 1));
    assert!(text.contains("channels") && text.contains("[3, 5, 6, 8]"), "{text}");
    let around: Case = (case.0, case.1, Way::Projection((6, 4, 1, 1, Padding::Same, 1)));
    let text = message(fused(&crate::conv_norm::inputs(around), around, 1));
    assert!(text.contains("projection") && text.contains("[6, 4, 1, 1]"), "{text}");
    let wrong = [&[inputs[0].to_dtype(DType::F32).unwrap()], &inputs[1..]].concat();
    assert!(message(fused(&wrong, case, 1)).contains("F32"));
    let empty = ConvBlock::new(vec![], Shortcut::None);
    assert_eq!(flat(&empty.forward_t(&inputs[0], true).unwrap()), flat(&inputs[0]));
    let one = Tensor::zeros((1, 4), DType::F64, &Device::Cpu).unwrap();
    assert!(
        message(block(&inputs, case, 1, Statistics::Running).unwrap().forward_t(&one, true))
            .contains("[1, 4]")
    );
}
