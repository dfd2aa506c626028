//! Blocks as one operation against the same layer by layer, and against finite differences.

use candle_core::{DType, Device, Tensor, Var};
use candle_nn::{VarBuilder, VarMap};

use super::{Feed, Norm, Order, Transformer};
use crate::layers::{
    Activation, AttentionMask, Dropout, DropoutRng, apart, layer_norm, linear, recorded, rms_norm,
};
use crate::lora::{Lora, LoraConfig, VarFactors};
use crate::models::attention::{Attention, AttentionNames, InputNames, Inputs, Place};

const SIZE: usize = 8;
const LENGTH: usize = 5;

/// Kinds of blocks, which have all parts between them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Norms last, an added mask, dropout everywhere.
    Bert,
    /// One layer for query, key and value, norms of queries and keys, LayerScale.
    Vit,
    /// The same with a SwiGLU of one layer.
    Gated,
    /// RMS norms, rotation, a causal mask, keys that heads share, LoRA with dropout over frozen weights.
    Llama,
}

const KINDS: [Kind; 4] = [Kind::Bert, Kind::Vit, Kind::Gated, Kind::Llama];

struct Case {
    block: Transformer,
    /// What is trained, and the input.
    vars: Vec<(String, Var)>,
    mask: Option<AttentionMask>,
    angles: Option<[Tensor; 2]>,
    rng: DropoutRng,
}

/// Reproducible numbers around zero.
fn numbers(shape: &[usize], seed: usize, dtype: DType) -> Tensor {
    let count: usize = shape.iter().product();
    let data: Vec<f64> =
        (0..count).map(|i| ((i * 37 + seed * 101 + 11) % 97) as f64 / 48.5 - 1.0).map(|x| 0.7 * x).collect();
    Tensor::from_vec(data, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

impl Case {
    fn new(kind: Kind, dtype: DType) -> Self {
        let (map, factors) = (VarMap::new(), VarMap::new());
        let vb = VarBuilder::from_varmap(&map, dtype, &Device::Cpu);
        let rng = DropoutRng::new(7);
        let dropout = |p: f64| Dropout::new(p, &rng).unwrap();
        let norm = |name: &str| Norm::Layer(layer_norm(SIZE, 1e-5, vb.pp(name)).unwrap());
        let layer = |inputs, outputs, name: &str| linear(inputs, outputs, vb.pp(name)).unwrap();
        let inner = 12;
        let mut angles = None;
        let (block, mask) = match kind {
            Kind::Bert => {
                let names = AttentionNames { inputs: InputNames::Separate(["q", "k", "v"]), output: "o" };
                let hidden: Vec<f64> =
                    (0..2 * LENGTH).map(|i| if i == 8 || i == 9 { -1e30 } else { 0.0 }).collect();
                let mask = Tensor::from_vec(hidden, (2, 1, 1, LENGTH), &Device::Cpu).unwrap();
                let block = Transformer {
                    order: Order::NormLast,
                    norms: [norm("n0"), norm("n1")],
                    attention: Attention::new(SIZE, true, 2, dropout(0.2), &names, &vb).unwrap(),
                    feed: Feed::Plain {
                        wide: layer(SIZE, inner, "wide"),
                        activation: Activation::Gelu,
                        narrow: layer(inner, SIZE, "narrow"),
                    },
                    scales: None,
                    dropouts: [dropout(0.3), dropout(0.1)],
                };
                (block, Some(AttentionMask::Added(mask.to_dtype(dtype).unwrap())))
            }
            Kind::Vit | Kind::Gated => {
                let names = AttentionNames { inputs: InputNames::Joined("qkv"), output: "o" };
                let attention = Attention::new(SIZE, true, 2, dropout(0.0), &names, &vb).unwrap();
                let gated = kind == Kind::Gated;
                let wide = layer(SIZE, if gated { 2 * inner } else { inner }, "wide");
                let narrow = layer(inner, SIZE, "narrow");
                let scale = |name: &str| vb.get(SIZE, name).unwrap();
                let block = Transformer {
                    order: Order::NormFirst,
                    norms: [norm("n0"), norm("n1")],
                    attention: attention.with_norms(SIZE, 1e-5, ["qn", "kn"], &vb).unwrap(),
                    feed: match gated {
                        true => Feed::Joined { wide, narrow },
                        false => Feed::Plain { wide, activation: Activation::QuickGelu, narrow },
                    },
                    scales: Some([scale("s0"), scale("s1")]),
                    dropouts: [dropout(0.0), dropout(0.0)],
                };
                (block, None)
            }
            Kind::Llama => {
                let frozen = VarBuilder::zeros(dtype, &Device::Cpu);
                let config = LoraConfig { rank: 2, dropout: 0.25, ..LoraConfig::default() };
                let into = VarFactors::new(frozen.clone(), &factors);
                let adapted = |inputs, outputs, seed, name: &str| {
                    let weight = numbers(&[outputs, inputs], seed, dtype);
                    Lora::new(crate::Linear::new(weight, None), name, &config, &into)
                        .unwrap()
                        .dropout_rng(&rng)
                        .unwrap()
                };
                let rms = |name: &str| Norm::Rms(rms_norm(SIZE, 1e-5, vb.pp(name)).unwrap());
                let table = numbers(&[LENGTH, 1], 3, dtype);
                angles = Some([table.cos().unwrap(), table.sin().unwrap()]);
                let block = Transformer {
                    order: Order::NormFirst,
                    norms: [rms("n0"), rms("n1")],
                    attention: Attention {
                        inputs: Inputs::Separate(Box::new([
                            adapted(SIZE, SIZE, 1, "q"),
                            adapted(SIZE, 4, 2, "k"),
                            adapted(SIZE, 4, 3, "v"),
                        ])),
                        norms: None,
                        heads: 4,
                        groups: 2,
                        dropout: Dropout::never(),
                        output: adapted(SIZE, SIZE, 4, "o"),
                    },
                    feed: Feed::Gated(Box::new([
                        adapted(SIZE, inner, 5, "gate"),
                        adapted(SIZE, inner, 6, "up"),
                        adapted(inner, SIZE, 7, "down"),
                    ])),
                    scales: None,
                    dropouts: [Dropout::never(), Dropout::never()],
                };
                (block, Some(AttentionMask::Causal))
            }
        };
        let input = Var::from_tensor(&numbers(&[2, LENGTH, SIZE], 1, dtype)).unwrap();
        let mut vars = vec![("input".to_owned(), input)];
        for map in [map, factors] {
            let mut named: Vec<_> = map.data().lock().unwrap().clone().into_iter().collect();
            named.sort_by(|a, b| a.0.cmp(&b.0));
            for (i, (name, var)) in named.into_iter().enumerate() {
                var.set(&numbers(var.dims(), i + 5, var.dtype())).unwrap();
                vars.push((name, var));
            }
        }
        Self { block, vars, mask, angles, rng }
    }

    /// With the same masks of dropout every time.
    fn forward(&self, x: &Tensor) -> Tensor {
        let mut state = self.rng.state();
        state.draws = 0;
        self.rng.load_state(state);
        let rotary = self.angles.as_ref().map(|angles| angles.each_ref());
        self.block.forward(x, Place { mask: self.mask.as_ref(), rotary }, true).unwrap()
    }

    fn loss(&self) -> Tensor {
        let y = self.forward(self.vars[0].1.as_tensor());
        (&y * numbers(y.dims(), 50, y.dtype())).unwrap().sum_all().unwrap()
    }

    fn gradients(&self, loss: &Tensor) -> Vec<Vec<f64>> {
        let grads = loss.backward().unwrap();
        let one = |(name, var): &(String, Var)| flat(grads.get(var).unwrap_or_else(|| panic!("{name}")));
        self.vars.iter().map(one).collect()
    }
}

fn flat(x: &Tensor) -> Vec<f64> {
    x.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn a_block_is_one_operation_with_the_values_of_its_layers() {
    for (kind, dtype) in
        KINDS.into_iter().flat_map(|kind| [DType::F32, DType::BF16].map(|dtype| (kind, dtype)))
    {
        let case = Case::new(kind, dtype);
        let x = case.vars[0].1.as_tensor();
        let (together, operations) = recorded(|| case.forward(x));
        let layers = apart(|| case.forward(x));
        assert_eq!(flat(&together), flat(&layers), "{kind:?} in {dtype:?}");
        assert!(operations.len() > 10, "{operations:?}");
        // The input, a link for two parameters or three, and the result.
        let nodes = [&together, &layers].map(|y| y.sorted_nodes().len());
        assert!(nodes[0] <= case.vars.len() + case.vars.len() / 2 + 2 && nodes[0] < nodes[1], "{nodes:?}");
    }
}

#[test]
fn same_bits_on_any_number_of_threads() {
    for kind in [Kind::Vit, Kind::Gated] {
        let mut case = Case::new(kind, DType::F32);
        // Several pieces of work for each layer.
        case.vars[0].1 = Var::from_tensor(&numbers(&[300, 20, SIZE], 1, DType::F32)).unwrap();
        let run = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| {
                let loss = case.loss();
                (flat(&loss), case.gradients(&loss))
            })
        };
        let one = run(1);
        for threads in [2, 3, 8] {
            assert_eq!(run(threads), one, "{kind:?}, {threads} threads");
        }
    }
}

#[test]
fn gradients_are_those_of_the_layers() {
    for kind in KINDS {
        let case = Case::new(kind, DType::F64);
        let together = case.gradients(&case.loss());
        let layers = apart(|| case.gradients(&case.loss()));
        for ((got, expected), (name, _)) in together.iter().zip(&layers).zip(&case.vars) {
            let largest = expected.iter().fold(0.0, |most: f64, x| most.max(x.abs()));
            assert!(largest > 0.0, "{kind:?}: nothing reaches {name}");
            for (got, expected) in got.iter().zip(expected) {
                assert!((got - expected).abs() <= 1e-12 * largest, "{kind:?} {name}: {got} and {expected}");
            }
        }
    }
}

#[test]
fn gradients_are_slopes() {
    const STEP: f64 = 1e-6;
    for kind in KINDS {
        let case = Case::new(kind, DType::F64);
        let gradients = case.gradients(&case.loss());
        for ((name, var), gradient) in case.vars.iter().zip(&gradients) {
            let before = var.copy().unwrap();
            let values = flat(&before);
            for i in [0, values.len() / 3, values.len() - 1] {
                let moved = |by: f64| {
                    let mut values = values.clone();
                    values[i] += by;
                    let moved = Tensor::from_vec(values, before.shape(), &Device::Cpu).unwrap();
                    var.set(&moved.to_dtype(var.dtype()).unwrap()).unwrap();
                    case.loss().to_scalar::<f64>().unwrap()
                };
                let slope = (moved(STEP) - moved(-STEP)) / (2.0 * STEP);
                var.set(&before).unwrap();
                let error = (slope - gradient[i]).abs();
                assert!(
                    error <= 1e-6 * (1.0 + slope.abs()),
                    "{kind:?} {name}[{i}]: {} and {slope}",
                    gradient[i]
                );
            }
        }
    }
}

#[test]
fn a_graph_goes_back_as_often_and_on_as_many_threads_as_one_likes() {
    let case = Case::new(Kind::Bert, DType::F32);
    let loss = case.loss();
    let first = case.gradients(&loss);
    assert_eq!(first, case.gradients(&loss), "a second time");
    let doubled = (&loss * 2.0).unwrap();
    let twice: Vec<Vec<f64>> = first.iter().map(|grads| grads.iter().map(|x| 2.0 * x).collect()).collect();
    std::thread::scope(|scope| {
        for _ in 0..20 {
            let (one, two) =
                (scope.spawn(|| case.gradients(&loss)), scope.spawn(|| case.gradients(&doubled)));
            assert_eq!(one.join().unwrap(), first);
            assert_eq!(two.join().unwrap(), twice);
        }
    });
}

#[test]
fn blocks_that_share_parameters_add_their_gradients() {
    let case = Case::new(Kind::Vit, DType::F64);
    let run = || {
        let once = case.forward(case.vars[0].1.as_tensor());
        let y = case.forward(&once);
        case.gradients(&(&y * numbers(y.dims(), 50, y.dtype())).unwrap().sum_all().unwrap())
    };
    let (together, layers) = (run(), apart(run));
    for (got, expected) in together.iter().flatten().zip(layers.iter().flatten()) {
        assert!((got - expected).abs() <= 1e-11 * (1.0 + expected.abs()), "{got} and {expected}");
    }
}

#[test]
fn what_is_frozen_has_no_gradient_and_no_graph() {
    let case = Case::new(Kind::Llama, DType::F32);
    let input = case.vars[0].1.as_detached_tensor();
    let y = case.forward(&input);
    // The norms' weights and the factors, not the input.
    let grads = y.sum_all().unwrap().backward().unwrap();
    assert!(grads.get(&case.vars[0].1).is_none() && grads.get(&input).is_none());
    assert!(case.vars[1..].iter().all(|(_, var)| grads.get(var).is_some()));
    // Nothing at all is trained.
    let vb = VarBuilder::zeros(DType::F32, &Device::Cpu);
    let names = AttentionNames { inputs: InputNames::Joined("qkv"), output: "o" };
    let never = Dropout::never();
    let norm = || Norm::Layer(layer_norm(SIZE, 1e-5, vb.pp("n")).unwrap());
    let block = Transformer {
        order: Order::NormFirst,
        norms: [norm(), norm()],
        attention: Attention::new(SIZE, true, 2, never.clone(), &names, &vb).unwrap(),
        feed: Feed::Plain {
            wide: linear(SIZE, 12, vb.pp("wide")).unwrap(),
            activation: Activation::Relu,
            narrow: linear(12, SIZE, vb.pp("narrow")).unwrap(),
        },
        scales: None,
        dropouts: [never.clone(), never],
    };
    assert!(!block.forward(&input, Place::default(), true).unwrap().track_op());
    let y = block.forward(case.vars[0].1.as_tensor(), Place::default(), true).unwrap();
    assert_eq!(y.sorted_nodes().len(), 3, "the input, its link and the result");
}
