//! Small experiments that a claim of the documentation rests on.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use candle_core::{D, DType, Device, Module, Result, Tensor, Var};
use candle_nn::ops::sigmoid;
use tpgm_candle::nn::losses::{Bayer, Translation, bilinear, periodic_consistency};
use tpgm_candle::nn::random::SplitMix64;
use tpgm_candle::nn::{Conv2d, Linear, cross_entropy, relu};
use tpgm_candle::weight_space::{Tensors, average_updates};
use tpgm_candle::{AdamW, Constraint, Ftp, Param, Params, Projection, RobustOptimizer, TpgmConfig};

const CPU: Device = Device::Cpu;

fn normal(random: &mut SplitMix64, shape: &[usize], scale: f64) -> Tensor {
    let values: Vec<f64> = (0..shape.iter().product()).map(|_| scale * random.normal()).collect();
    Tensor::from_vec(values, shape, &CPU).unwrap()
}

fn scalar(x: Tensor) -> f64 {
    x.to_dtype(DType::F64).unwrap().to_scalar().unwrap()
}

/// Variables with names, from values.
fn vars(tensors: &[(&str, Tensor)]) -> BTreeMap<String, Var> {
    tensors.iter().map(|(name, tensor)| ((*name).to_owned(), Var::from_tensor(tensor).unwrap())).collect()
}

/// All of them, anchored where they are now.
fn anchored(vars: &BTreeMap<String, Var>) -> Params {
    let param = |(name, var): (&String, &Var)| Param::anchored_here(name, var.clone()).unwrap();
    Params::from_params(vars.iter().map(param)).unwrap()
}

/// Trains with a constraint, TPGM's radii on the held-out loss. Returns how far the weights are from where they began.
fn fine_tune(
    vars: &BTreeMap<String, Var>,
    constraint: impl Into<Constraint>,
    steps: usize,
    train: impl Fn() -> Result<Tensor>,
    held_out: impl Fn() -> Result<Tensor>,
) -> f64 {
    let start: Vec<Tensor> = vars.values().map(|var| var.copy().unwrap().detach()).collect();
    let constraint = constraint.into();
    let rule = AdamW { weight_decay: 0.0, ..AdamW::default().lr(0.02) };
    let mut optimizer = RobustOptimizer::new(&anchored(vars), rule, constraint).unwrap();
    let learned = matches!(constraint, Constraint::Tpgm(_));
    if learned {
        optimizer.set_projection(Projection::Defer);
    }
    for _ in 0..steps {
        optimizer.backward_step(&train().unwrap()).unwrap();
        if learned {
            optimizer.tpgm().unwrap().update(&held_out).unwrap();
        }
    }
    let moved = |(var, start): (&Var, Tensor)| {
        scalar((var.as_tensor() - start).unwrap().sqr().unwrap().sum_all().unwrap())
    };
    vars.values().zip(start).map(moved).sum::<f64>().sqrt()
}

/// Fine-tunes from the same weights without a constraint, under TPGM and under FTP: both learn, and stay nearer to where they
/// began.
fn both_constraints_learn_and_stay_near(
    vars: &BTreeMap<String, Var>,
    steps: usize,
    loss: impl Fn(usize) -> Result<Tensor>,
) {
    const TRAIN: usize = 0;
    const HELD_OUT: usize = 1;
    const TEST: usize = 2;
    let start: Vec<Tensor> = vars.values().map(|var| var.copy().unwrap()).collect();
    let test = || scalar(loss(TEST).unwrap());
    let before = test();
    let run = |constraint: Constraint| {
        vars.values().zip(&start).for_each(|(var, start)| var.set(start).unwrap());
        let distance = fine_tune(vars, constraint, steps, || loss(TRAIN), || loss(HELD_OUT));
        (distance, test())
    };
    let (free, _) = run(Constraint::None);
    for constraint in [TpgmConfig::default().into(), Ftp::default().into()] {
        let (distance, after) = run(constraint);
        assert!(after < 0.7 * before, "{constraint:?}: {before} before, {after} after");
        assert!(distance > 0.0 && distance < 0.95 * free, "{constraint:?}: {distance}, free {free}");
    }
}

/// A recurrent regression under TPGM and FTP: from sequences to their sums with one decay, then with another. What works on the
/// time lags of processes do with TPGM can be expressed; nothing more is claimed of them.
#[test]
fn a_recurrent_regression_fine_tunes() {
    const LENGTH: usize = 6;
    const WIDTH: usize = 8;
    let mut random = SplitMix64::new(1);
    let net = vars(&[
        ("input", normal(&mut random, &[1, WIDTH], 0.5)),
        ("output", normal(&mut random, &[WIDTH, 1], 0.5)),
        ("recurrent", normal(&mut random, &[WIDTH, WIDTH], 0.3)),
    ]);
    let mut data = |count: usize, decay: f64, noise: f64| {
        let x = normal(&mut random, &[count, LENGTH], 0.5);
        let shares: Vec<f64> = (0..LENGTH).rev().map(|lag| decay.powi(lag as i32)).collect();
        let y = x.matmul(&Tensor::from_vec(shares, (LENGTH, 1), &CPU).unwrap()).unwrap();
        let y = (y + normal(&mut random, &[count, 1], noise)).unwrap();
        (x, y)
    };
    let loss = |(x, y): &(Tensor, Tensor)| -> Result<Tensor> {
        let mut state = Tensor::zeros((x.dim(0)?, WIDTH), DType::F64, &CPU)?;
        for at in 0..LENGTH {
            let seen = x.narrow(1, at, 1)?.matmul(&net["input"])?;
            state = (seen + state.matmul(&net["recurrent"])?)?.tanh()?;
        }
        (state.matmul(&net["output"])? - y)?.sqr()?.mean_all()
    };
    let first = data(100, 0.3, 0.0);
    fine_tune(&net, Constraint::None, 120, || loss(&first), || loss(&first));
    let second = [data(24, 0.8, 0.1), data(24, 0.8, 0.1), data(200, 0.8, 0.0)];
    both_constraints_learn_and_stay_near(&net, 60, |part| loss(&second[part]));
}

/// A network over a table under TPGM and FTP: numbers and categories of patients of one hospital, then of another where they
/// weigh differently. What works on such tables do with TPGM can be expressed; nothing more is claimed of them.
#[test]
fn a_network_over_a_table_fine_tunes() {
    const NUMBERS: usize = 5;
    const KINDS: usize = 3;
    const WIDTH: usize = 16;
    let mut random = SplitMix64::new(2);
    let net = vars(&[
        ("first", normal(&mut random, &[WIDTH, NUMBERS + KINDS], 0.4)),
        ("first_bias", normal(&mut random, &[WIDTH], 0.1)),
        ("second", normal(&mut random, &[2, WIDTH], 0.3)),
    ]);
    let weights = normal(&mut random, &[NUMBERS + KINDS, 1], 2.0);
    let others = (&weights + normal(&mut random, &[NUMBERS + KINDS, 1], 1.5)).unwrap();
    let mut data = |count: usize, weights: &Tensor| {
        let numbers = normal(&mut random, &[count, NUMBERS], 1.0);
        let kinds: Vec<u32> = (0..count).map(|_| random.below(KINDS as u64) as u32).collect();
        let kinds = tpgm_candle::nn::losses::one_hot(&Tensor::new(kinds, &CPU).unwrap(), KINDS, DType::F64);
        let x = Tensor::cat(&[numbers, kinds.unwrap()], 1).unwrap();
        let y = x.matmul(weights).unwrap().gt(0.0).unwrap().squeeze(1).unwrap();
        (x, y.to_dtype(DType::U32).unwrap())
    };
    let loss = |(x, y): &(Tensor, Tensor)| -> Result<Tensor> {
        let layer = |name: &str, bias: Option<&str>| {
            Linear::new(net[name].as_tensor().clone(), bias.map(|bias| net[bias].as_tensor().clone()))
        };
        let hidden = relu(&layer("first", Some("first_bias")).forward(x)?)?;
        cross_entropy(&layer("second", None).forward(&hidden)?, y)
    };
    let first = data(200, &weights);
    fine_tune(&net, Constraint::None, 100, || loss(&first), || loss(&first));
    let second = [data(48, &others), data(48, &others), data(300, &others)];
    both_constraints_learn_and_stay_near(&net, 60, |part| loss(&second[part]));
}

/// Periodic consistency under TPGM: raw images alone make a network that has seen other images better at filling in what their
/// filters hide.
#[test]
fn periodic_consistency_trains_under_tpgm() {
    const SIZE: usize = 12;
    let mut random = SplitMix64::new(3);
    let net = vars(&[
        ("first", normal(&mut random, &[8, 3, 3, 3], 0.2)),
        ("second", normal(&mut random, &[3, 8, 3, 3], 0.2)),
    ]);
    // Waves, the channels of which differ by a factor each.
    let mut images = |count: usize, factors: [f64; 3]| {
        let mut values = Vec::new();
        for _ in 0..count {
            let [a, b, c] = [0, 1, 2].map(|_| random.normal());
            for factor in factors {
                for at in 0..SIZE * SIZE {
                    let (y, x) = ((at / SIZE) as f64, (at % SIZE) as f64);
                    values.push(0.5 + 0.4 * factor * (0.8 * a * x + 0.8 * b * y + 6.0 * c).sin());
                }
            }
        }
        Tensor::from_vec(values, (count, 3, SIZE, SIZE), &CPU).unwrap()
    };
    let network = |x: &Tensor| {
        let conv = |name: &str| Conv2d::new(net[name].as_tensor().clone()).padding(1);
        sigmoid(&conv("second").forward(&relu(&conv("first").forward(x)?)?)?)
    };
    let raw = |images: &Tensor| Bayer::Rggb.mosaic(images);
    let to_truth = |images: &Tensor| (network(&bilinear(&raw(images)?)?)? - images)?.sqr()?.mean_all();
    let periodic = |images: &Tensor| {
        let raw = raw(images)?;
        let others = [Bayer::Bggr, Bayer::Gbrg, Bayer::Grbg];
        Ok(periodic_consistency(network, &bilinear(&raw)?, &raw, &others, Translation::Consistent)?.loss)
    };
    let first = images(6, [1.0, 0.9, 0.8]);
    fine_tune(&net, Constraint::None, 80, || to_truth(&first), || to_truth(&first));
    let second = [0, 1, 2].map(|_| images(6, [0.4, 1.0, -0.6]));
    let measure = || [to_truth(&second[2]), periodic(&second[2])].map(|loss| scalar(loss.unwrap()));
    let start: Vec<Tensor> = net.values().map(|var| var.copy().unwrap()).collect();
    let run = |constraint: Constraint| {
        net.values().zip(&start).for_each(|(var, start)| var.set(start).unwrap());
        fine_tune(&net, constraint, 60, || periodic(&second[0]), || periodic(&second[1]))
    };
    let before = measure();
    let distance = run(TpgmConfig::default().into());
    let after = measure();
    assert!(after[0] < 0.95 * before[0] && after[1] < 0.95 * before[1], "{before:?} before, {after:?} after");
    let free = run(Constraint::None);
    assert!(distance < 0.95 * free, "{distance}, free {free}");
}

/// Samples and labels.
type Samples = (Tensor, Tensor);

/// LOLSGD (arXiv 2311.01420): a model that is fine-tuned in a new domain on half of its classes forgets less of the others
/// there if steps are means over models that each see a part of the classes. As many steps of SGD one after the other as plain
/// fine-tuning.
#[test]
fn classes_left_out_survive_averaged_updates_better() {
    const INPUTS: usize = 8;
    const CLASSES: usize = 8;
    const SEEN: usize = 4;
    const WIDTH: usize = 32;
    const SEEDS: u64 = 5;
    const ROUNDS: usize = 3;
    const MODELS: usize = 4;
    const STEPS: usize = 30;
    let logits = |net: &Tensors, x: &Tensor| -> Result<Tensor> {
        relu(&x.matmul(&net["hidden"])?.broadcast_add(&net["bias"])?)?.matmul(&net["classes"])
    };
    let train =
        |net: &Tensors, (x, y): &Samples, steps: usize, lr: f64, trained: &[&str]| -> Result<Tensors> {
            let mut net = net.clone();
            for _ in 0..steps {
                let vars: Vec<Var> =
                    trained.iter().map(|name| Var::from_tensor(&net[*name])).collect::<Result<_>>()?;
                for (name, var) in trained.iter().zip(&vars) {
                    net.insert((*name).to_owned(), var.as_tensor().clone());
                }
                let grads = cross_entropy(&logits(&net, x)?, y)?.backward()?;
                for (name, var) in trained.iter().zip(&vars) {
                    let Some(grad) = grads.get(var) else { candle_core::bail!("no gradient of {name}") };
                    net.insert((*name).to_owned(), (var.as_tensor() - (grad * lr)?)?.detach());
                }
            }
            Ok(net)
        };
    let (mut plain, mut averaged) = ([0.0; 2], [0.0; 2]);
    for seed in 0..SEEDS {
        let mut random = SplitMix64::new(seed);
        let means = normal(&mut random, &[CLASSES, INPUTS], 1.0);
        let sample = |random: &mut SplitMix64, count: usize, classes: &[u32]| -> Samples {
            let labels: Vec<u32> = classes.iter().flat_map(|class| vec![*class; count]).collect();
            let labels = Tensor::new(labels, &CPU).unwrap();
            let noise = normal(random, &[count * classes.len(), INPUTS], 0.6);
            ((means.index_select(&labels, 0).unwrap() + noise).unwrap(), labels)
        };
        let all: Vec<u32> = (0..CLASSES as u32).collect();
        let (seen, unseen) = all.split_at(SEEN);
        let start = Tensors::from([
            ("hidden".to_owned(), normal(&mut random, &[INPUTS, WIDTH], (INPUTS as f64).powf(-0.5))),
            ("bias".to_owned(), Tensor::zeros(WIDTH, DType::F64, &CPU).unwrap()),
            ("classes".to_owned(), normal(&mut random, &[WIDTH, CLASSES], (WIDTH as f64).powf(-0.5))),
        ]);
        let first = sample(&mut random, 40, &all);
        let start = train(&start, &first, 60, 1.0, &["hidden", "bias", "classes"]).unwrap();
        // The new domain is turned and moved.
        let turn = (Tensor::eye(INPUTS, DType::F64, &CPU).unwrap()
            + normal(&mut random, &[INPUTS, INPUTS], 0.25))
        .unwrap();
        let shift = normal(&mut random, &[1, INPUTS], 0.5);
        let there = |(x, y): Samples| (x.matmul(&turn).unwrap().broadcast_add(&shift).unwrap(), y);
        let data = there(sample(&mut random, 40, seen));
        let tests = [seen, unseen].map(|classes| there(sample(&mut random, 100, classes)));
        // The classifier is frozen.
        let tuned =
            |net: &Tensors, data: &Samples, steps| train(net, data, steps, 1.0, &["hidden", "bias"]).unwrap();
        let alone = tuned(&start, &data, ROUNDS * STEPS);
        let mut net = start;
        for _ in 0..ROUNDS {
            let ends: Vec<Tensors> = (0..MODELS)
                .map(|_| {
                    // Two of the four classes.
                    let out = random.below(SEEN as u64) as u32;
                    let other = (out + 1 + random.below(SEEN as u64 - 1) as u32) % SEEN as u32;
                    let labels = data.1.to_vec1::<u32>().unwrap();
                    let kept =
                        (0..labels.len() as u32).filter(|i| ![out, other].contains(&labels[*i as usize]));
                    let kept = Tensor::new(kept.collect::<Vec<u32>>(), &CPU).unwrap();
                    let part = [&data.0, &data.1].map(|x| x.index_select(&kept, 0).unwrap());
                    let [x, y] = part;
                    tuned(&net, &(x, y), STEPS)
                })
                .collect();
            net = average_updates(&net, &ends.iter().collect::<Vec<_>>(), 1.0).unwrap();
        }
        for (sums, net) in [(&mut plain, &alone), (&mut averaged, &net)] {
            for (sum, (x, y)) in sums.iter_mut().zip(&tests) {
                let right = logits(net, x).unwrap().argmax(D::Minus1).unwrap().eq(y).unwrap();
                *sum += scalar(right.to_dtype(DType::F64).unwrap().mean_all().unwrap()) / SEEDS as f64;
            }
        }
    }
    assert!(
        averaged[1] > plain[1] + 0.02,
        "classes that were not seen: plain {plain:?}, averaged {averaged:?}"
    );
    assert!(averaged[0] > plain[0] - 0.05, "classes that were seen: plain {plain:?}, averaged {averaged:?}");
}
