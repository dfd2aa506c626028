use super::*;
use crate::blocks::testing::noise;
use crate::element::DType;
use crate::error::Error;
use crate::params::Group;
use crate::{AdamW, Decay, FixedRadius, Ftp, Norm, Sgd};

/// Two tensors of which some entries are trained, one of which none is, and a head with its own learning rate.
fn set(dtype: DType) -> ParamSet {
    ParamSet::builder()
        .tensor("w", [4, 5], dtype)
        .tensor("b", [7], dtype)
        .tensor("still", [3], dtype)
        .tensor("head", [2, 2], dtype)
        .group(Group::new("b").weight_decay(0.3).lr(2e-2))
        .group(Group::new("still").lr(1.0))
        .group(Group::new("head").no_anchor().lr(5e-2))
        .build()
        .unwrap()
}

fn mask(set: &ParamSet) -> SaftMask {
    let entries = [vec![0, 3, 4, 11, 19], vec![1, 6], vec![]];
    let mut trained: Vec<_> = entries.map(Trained::Entries).into();
    trained.push(Trained::Whole);
    SaftMask::new(set, trained).unwrap()
}

fn start(set: &ParamSet) -> Vec<Buffer> {
    let tensors = set.tensors().iter().zip(1..);
    tensors.map(|(spec, seed)| Buffer::from_f64(spec.dtype, &noise(seed, spec.numel()))).collect()
}

fn grads(set: &ParamSet, step: u64) -> Vec<Buffer> {
    let tensors = set.tensors().iter().zip(100 * step..);
    tensors.map(|(spec, seed)| Buffer::from_f64(DType::F32, &noise(seed, spec.numel()))).collect()
}

fn io<'a>(weights: &'a mut [Buffer], grads: &'a [Buffer], anchors: &'a [Buffer]) -> Vec<TensorIo<'a, Cpu>> {
    let tensors = weights.iter_mut().zip(grads).zip(anchors);
    tensors.map(|((w, g), a)| TensorIo::new(w.as_mut()).grad(g.as_slice()).anchor(a.as_slice())).collect()
}

fn bits(x: f64) -> u64 {
    x.to_bits()
}

#[test]
fn trained_entries_step_as_in_a_dense_optimizer_and_others_keep_their_bits() {
    let rules: [Rule; 3] = [
        AdamW::default().lr(1e-2).weight_decay(0.1).into(),
        AdamW { amsgrad: true, decay: Decay::Coupled, ..AdamW::default().weight_decay(0.1) }.into(),
        Sgd::default().nesterov().weight_decay(0.1).into(),
    ];
    for dtype in DType::ALL {
        let set = set(dtype);
        for rule in rules {
            let (first, mask) = (start(&set), mask(&set));
            let mut sparse =
                SaftOptimizer::new(Cpu::new(), &set, mask.clone(), rule, Constraint::None).unwrap();
            let mut dense = Optimizer::new(Cpu::new(), &set, rule, Constraint::None).unwrap();
            let (mut weights, mut expected) = (first.clone(), first.clone());
            for step in 1..=4 {
                let (grads, options) = (grads(&set, step), StepOptions::lr(1e-2 / step as f64));
                sparse.step(&mut io(&mut weights, &grads, &first), &options).unwrap();
                dense.step(&mut io(&mut expected, &grads, &first), &options).unwrap();
            }
            for (t, trained) in mask.tensors().iter().enumerate() {
                for i in 0..first[t].len() {
                    let is_trained = match trained {
                        Trained::Whole => true,
                        Trained::Entries(indices) => indices.contains(&(i as u64)),
                    };
                    let source = if is_trained { &expected } else { &first };
                    let (got, expected) = (weights[t].as_slice().get(i), source[t].as_slice().get(i));
                    assert_eq!(bits(got), bits(expected), "{dtype} {rule:?} [{t}][{i}]");
                }
                assert_ne!(expected[t], first[t]);
            }
        }
    }
}

#[test]
fn state_is_of_the_size_of_the_selection() {
    let set = set(DType::BF16);
    let optimizer =
        SaftOptimizer::new(Cpu::new(), &set, mask(&set), AdamW::default(), Constraint::None).unwrap();
    let state = optimizer.state().unwrap();
    let len = |key: &str| state[key].len();
    assert_eq!((len("w/master"), len("w/exp_avg"), len("w/indices")), (5, 5, 5));
    assert_eq!((len("b/exp_avg_sq"), len("still/exp_avg"), len("head/master")), (2, 0, 4));
    assert_eq!(state["w/indices"].to_f64(), [0.0, 3.0, 4.0, 11.0, 19.0]);
    assert!(!state.contains_key("head/indices"));
}

#[test]
fn continuing_from_saved_state_gives_the_same_bits() {
    for constraint in [Constraint::None, Ftp::default().into()] {
        let set = set(DType::BF16);
        let first = start(&set);
        let new = |mask| SaftOptimizer::new(Cpu::new(), &set, mask, AdamW::default(), constraint).unwrap();
        let mut optimizer = new(mask(&set));
        let mut weights = first.clone();
        let run = |optimizer: &mut SaftOptimizer, weights: &mut [Buffer], steps: std::ops::Range<u64>| {
            for step in steps {
                let grads = grads(&set, step);
                let mut io = io(weights, &grads, &first);
                optimizer.step(&mut io, &StepOptions::default()).unwrap();
            }
        };
        run(&mut optimizer, &mut weights, 1..4);
        let (state, saved) = (optimizer.state().unwrap(), weights.clone());
        run(&mut optimizer, &mut weights, 4..7);

        // A fresh optimizer with another mask takes the saved one over.
        let other = SaftMask::new(&set, vec![Trained::Entries(vec![2]); 4]).unwrap();
        let mut resumed = new(other);
        resumed.load_state(&state).unwrap();
        assert_eq!(resumed.mask(), optimizer.mask());
        let mut again = saved;
        run(&mut resumed, &mut again, 4..7);
        assert_eq!(again, weights);
        assert_eq!(resumed.state().unwrap(), optimizer.state().unwrap());
    }
}

#[test]
fn a_constraint_bounds_the_selected_entries() {
    let set = set(DType::F32);
    let radius = FixedRadius { radius: 0.01, norm: Norm::Mars };
    let rule = Sgd::default().lr(0.1);
    let mut optimizer = SaftOptimizer::new(Cpu::new(), &set, mask(&set), rule, radius).unwrap();
    let first = start(&set);
    let mut weights = first.clone();
    for step in 1..4 {
        let grads = grads(&set, step);
        optimizer.step(&mut io(&mut weights, &grads, &first), &StepOptions::default()).unwrap();
    }
    for t in 0..2 {
        let (now, then) = (weights[t].to_f64(), first[t].to_f64());
        let moved: f64 = now.iter().zip(then).map(|(x, y)| (x - y).abs()).sum();
        assert!((moved - 0.01).abs() < 1e-6, "{t}: {moved}");
    }
    let head: f64 = weights[3].to_f64().iter().zip(first[3].to_f64()).map(|(x, y)| (x - y).abs()).sum();
    assert!(head > 0.01, "the head is free");
}

#[test]
fn mistakes_are_named_and_nothing_is_changed() {
    let set = set(DType::F32);
    let radius = FixedRadius::default();
    let mut optimizer = SaftOptimizer::new(Cpu::new(), &set, mask(&set), AdamW::default(), radius).unwrap();
    let (first, good) = (start(&set), grads(&set, 1));
    let before = optimizer.state().unwrap();
    let mut check = |change: &dyn Fn(&mut Vec<TensorIo<'_, Cpu>>), message: &str| {
        let mut weights = first.clone();
        let mut operands = io(&mut weights, &good, &first);
        change(&mut operands);
        let error = optimizer.step(&mut operands, &StepOptions::default()).unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
        assert_eq!(weights, first);
        assert_eq!(optimizer.state().unwrap(), before);
    };
    check(&|io| io.truncate(3), "4 tensors are in the set");
    check(&|io| io[1].grad = Some(Slice::F32(&[1.0])), "`b`: its gradient has 1 elements, but 7");
    check(&|io| io[0].anchor = None, "`w`: fixed radius needs its anchor");
    check(&|io| io[0].anchor = Some(Slice::F64(&[])), "`w`: its anchor has 0 elements, but 20");
    check(
        &|io| io[1].grad = Some(Slice::F32(&[0.0, f32::NAN, 0.0, 0.0, 0.0, 0.0, 0.0])),
        "`b` is not finite",
    );
    check(&|io| io.swap(0, 1), "`w`: its weight has 7 elements");

    // Not selected, not looked at.
    let mut weights = first.clone();
    let mut operands = io(&mut weights, &good, &first);
    operands[1].grad = Some(Slice::F32(&[f32::NAN, 1.0, 0.0, 0.0, 0.0, 0.0, 1.0]));
    optimizer.step(&mut operands, &StepOptions::default()).unwrap();

    let other = ParamSet::builder().tensor("w", [2], DType::F32).build().unwrap();
    let mismatch = SaftOptimizer::new(Cpu::new(), &other, mask(&set), AdamW::default(), radius);
    assert!(matches!(mismatch.err(), Some(Error::CountMismatch { .. })));
    let mut state = optimizer.state().unwrap();
    state.insert("w/indices".into(), vec![0.0f64, 1.0].into());
    let before = optimizer.state().unwrap();
    assert!(matches!(optimizer.load_state(&state), Err(Error::LengthMismatch { .. })));
    assert_eq!(optimizer.state().unwrap(), before);
}

#[test]
fn a_tensor_without_a_gradient_is_skipped() {
    let set = set(DType::F32);
    let mut optimizer =
        SaftOptimizer::new(Cpu::new(), &set, mask(&set), AdamW::default(), Constraint::None).unwrap();
    let (first, grads) = (start(&set), grads(&set, 1));
    let mut weights = first.clone();
    let mut operands = io(&mut weights, &grads, &first);
    operands[0].grad = None;
    optimizer.step(&mut operands, &StepOptions::default()).unwrap();
    assert_eq!(weights[0], first[0]);
    assert_ne!(weights[1], first[1]);
    assert_eq!(optimizer.scalars().unwrap()[0].step, 0.0);
}
