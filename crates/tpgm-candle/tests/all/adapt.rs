//! Adaptation at test time: what it promises. Its numbers against published code are in `tests/family`.
#![allow(clippy::unwrap_used)]

use candle_core::{Device, Module, Tensor, Var};
use tpgm_candle::adapt::{
    FastOptions, FastWeights, SlowDirection, SlowOptions, SlowWeights, Tent, norms, select,
};
use tpgm_candle::nn::LayerNorm;
use tpgm_candle::{AdamW, Constraint, FixedRadius, Param, Params};

use crate::common::numbers;

/// A norm in front of a fixed head, and what it makes of a stream.
struct Model {
    params: Params,
    norm: LayerNorm,
    head: Tensor,
    stream: Tensor,
}

impl Model {
    fn new() -> Self {
        let var = |values: &[f64]| Var::from_tensor(&Tensor::new(values, &Device::Cpu).unwrap()).unwrap();
        let (weight, bias) = (var(&[1.0, 0.9, 1.1, 1.0]), var(&[0.0, 0.1, -0.1, 0.0]));
        let norm = LayerNorm::new(weight.as_tensor().clone(), bias.as_tensor().clone(), 1e-5);
        let other = var(&[1.0, 2.0]);
        let params = Params::from_params([
            Param::anchored_here("blocks.0.norm1.weight", weight).unwrap(),
            Param::anchored_here("blocks.0.norm1.bias", bias).unwrap(),
            Param::anchored_here("head.bias", other).unwrap(),
        ])
        .unwrap();
        let values = |n: usize, seed: u64| {
            let mut random = tpgm_candle::nn::random::SplitMix64::new(seed);
            (0..n).map(|_| random.normal()).collect::<Vec<f64>>()
        };
        let head = Tensor::from_vec(values(12, 1), (4, 3), &Device::Cpu).unwrap();
        let stream = Tensor::from_vec(values(80, 2), (20, 4), &Device::Cpu).unwrap();
        Self { params, norm, head, stream }
    }

    fn logits(&self) -> Tensor {
        self.norm.forward(&self.stream).unwrap().matmul(&self.head).unwrap()
    }

    fn values(&self) -> Vec<f64> {
        self.params.all().iter().flat_map(|param| numbers(param.var())).collect()
    }
}

#[test]
fn tent_makes_predictions_certain_and_constraints_hold_it() {
    let free = Model::new();
    let before = free.values();
    let mut tent = Tent::new(&free.params, AdamW::default().lr(0.02), Constraint::None).unwrap();
    let entropies: Vec<f64> = (0..30).map(|_| tent.step(&free.logits()).unwrap()).collect();
    assert!(entropies[29] < 0.8 * entropies[0], "{entropies:?}");
    let after = free.values();
    assert_eq!(before[8..], after[8..], "only norms move");
    let moved =
        |model: &Model| before.iter().zip(model.values()).map(|(a, b)| (a - b).powi(2)).sum::<f64>().sqrt();
    let held = Model::new();
    let radius = FixedRadius { radius: 0.05, ..FixedRadius::default() };
    let mut tent = Tent::new(&held.params, AdamW::default().lr(0.02), radius).unwrap();
    for _ in 0..30 {
        tent.step(&held.logits()).unwrap();
    }
    // Two tensors, each within 0.05 of its anchor.
    assert!(
        moved(&held) <= 0.05 * 2f64.sqrt() + 1e-9 && moved(&free) > 0.2,
        "{} {}",
        moved(&held),
        moved(&free)
    );
}

#[test]
fn slow_weights_follow_the_fast_ones() {
    let model = Model::new();
    let chosen = norms(&model.params).unwrap();
    let options = FastOptions { every: 2, lr: 0.01, ..FastOptions::default() };
    let mut fast = FastWeights::new(&chosen, options, Constraint::None).unwrap();
    let mut slow = SlowWeights::new(&chosen, SlowOptions::default(), Constraint::None).unwrap();
    let start = model.values();
    for sample in 0..8 {
        for _ in 0..2 {
            fast.step(&model.logits()).unwrap();
        }
        let before = model.values();
        assert_eq!(slow.end_sample().unwrap(), sample % 4 == 3);
        if sample % 4 == 3 {
            // One step of AdamW from the slow weights: at most its learning rate each.
            let base = if sample == 3 { start.clone() } else { model.values() };
            let step = model.values().iter().zip(&base).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(step <= 1e-3 * 1.01 && model.values() != before, "{step}");
            if sample == 3 {
                // It goes the way that the fast weights went.
                let along: f64 =
                    (0..8).map(|i| (model.values()[i] - start[i]) * (before[i] - start[i])).sum();
                assert!(along > 0.0, "{along}");
            }
        } else {
            assert_eq!(model.values(), before);
        }
    }
}

#[test]
fn a_direction_without_length_leaves_the_fast_weights() {
    let model = Model::new();
    let chosen = norms(&model.params).unwrap();
    let options = SlowOptions { window: 2, direction: SlowDirection::Reciprocal, ..SlowOptions::default() };
    let mut slow = SlowWeights::new(&chosen, options, Constraint::None).unwrap();
    // Only one element has moved: the reciprocal of the others is infinite.
    let var = model.params.get("blocks.0.norm1.bias").unwrap();
    for step in 1..=2 {
        var.var().set(&Tensor::new(&[0.1 * f64::from(step), 0.1, -0.1, 0.0], &Device::Cpu).unwrap()).unwrap();
        let before = model.values();
        let ended = slow.end_sample();
        assert_eq!(model.values(), before);
        match step {
            1 => assert!(!ended.unwrap()),
            _ => assert!(ended.unwrap_err().to_string().contains("norm1"), "names the tensor"),
        }
    }
}

#[test]
fn bad_input_is_named() {
    let model = Model::new();
    let head = select(&model.params, &["head.*"]).unwrap();
    let chosen = norms(&model.params).unwrap();
    let fast = |options: FastOptions| {
        FastWeights::new(&chosen, options, Constraint::None).err().unwrap().to_string()
    };
    let slow = |options: SlowOptions| {
        SlowWeights::new(&chosen, options, Constraint::None).err().unwrap().to_string()
    };
    let mut blind = FastWeights::new(&head, FastOptions::default(), Constraint::None).unwrap();
    let before = model.values();
    for (error, expected) in [
        (norms(&head).err().unwrap().to_string(), "none of the 1 parameters is a weight or bias of a norm"),
        (select(&model.params, &["head.*", "hed.*"]).err().unwrap().to_string(), "`hed.*` matches none of 3"),
        (fast(FastOptions { every: 1, ..FastOptions::default() }), "FastOptions::every"),
        (fast(FastOptions { momentum: 1.5, ..FastOptions::default() }), "FastOptions::momentum"),
        (fast(FastOptions { threshold: f64::NAN, ..FastOptions::default() }), "FastOptions::threshold"),
        (fast(FastOptions { low: 2.0, ..FastOptions::default() }), "FastOptions::low"),
        (slow(SlowOptions { window: 0, ..SlowOptions::default() }), "SlowOptions::window"),
        (slow(SlowOptions { decay: 0.0, ..SlowOptions::default() }), "SlowOptions::decay"),
        (
            blind.step(&model.logits()).err().unwrap().to_string(),
            "tensor `head.bias`: the entropy has no gradient",
        ),
    ] {
        assert!(error.contains(expected), "{error}");
    }
    assert_eq!(model.values(), before);
}
