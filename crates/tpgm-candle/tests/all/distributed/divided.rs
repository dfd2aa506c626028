//! Divided state gives the bits of undivided state on the same number of ranks.

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Var};
use tpgm_candle::core::gradient::KernelProjection;
use tpgm_candle::distributed::{Communicator, InProcess};
use tpgm_candle::{
    AuditPolicy, Constraint, Ema, FixedScale, Ftp, Group, OptimizerBuilder, RobustOptimizer, StateDict, Tpgm,
    TpgmConfig,
};

use super::methods::{Outcome, constraints, rules, train};
use super::{Net, ROWS, part, ranks, tensor};

/// All ranks as one: their state is put together, and everything else is the same on all.
fn join(ranks: Vec<Outcome>) -> Outcome {
    let mut ranks = ranks.into_iter();
    let mut whole = ranks.next().unwrap();
    for rank in ranks {
        assert_eq!((&rank.bits, &rank.norms), (&whole.bits, &whole.norms), "ranks differ");
        whole.state.extend(rank.state);
        whole.scalars.extend(rank.scalars);
        whole.rows.extend(rank.rows);
    }
    whole
}

/// Divided and undivided.
fn both<R: Send>(
    size: usize,
    work: impl Fn(&dyn Fn(OptimizerBuilder) -> OptimizerBuilder, Range<usize>) -> R + Sync,
) -> [Vec<R>; 2] {
    [false, true].map(|divided| {
        ranks(size, |communicator| {
            let rows = part(&communicator);
            let communicator: Arc<dyn Communicator> = Arc::new(communicator);
            let group = |builder: OptimizerBuilder| {
                let builder = builder.communicator(communicator.clone());
                if divided { builder.divide_state() } else { builder }
            };
            work(&group, rows)
        })
    })
}

#[track_caller]
fn assert_same([undivided, divided]: [Vec<Outcome>; 2], context: &str) {
    let (expected, got) = (join(undivided), join(divided));
    assert_eq!(got.bits, expected.bits, "{context}: weights differ");
    assert!(got == expected, "{context}: {got:?}\n{expected:?}");
}

#[test]
fn all_methods_give_the_bits_of_undivided_state() {
    for (rule, constraint) in
        rules().into_iter().flat_map(|rule| constraints().into_iter().map(move |c| (rule, c)))
    {
        for size in 1..=3 {
            for dtype in [DType::F32, DType::F16] {
                let outcomes =
                    both(size, |group, rows| train(&Net::new(dtype), (rule, constraint), group, rows));
                let clipped = outcomes[0][0].norms.iter().flatten().any(|norm| f64::from_bits(*norm) > 0.2);
                assert!(clipped, "nothing was clipped: the test shows less than it says");
                assert_same(outcomes, &format!("{rule:?} under {constraint:?}, {size} ranks, {dtype:?}"));
            }
        }
    }
}

#[test]
fn ranks_hold_different_tensors_and_all_of_them() {
    let held = ranks(3, |communicator| {
        let net = Net::new(DType::F32);
        let builder = RobustOptimizer::builder(&net.params).communicator(Arc::new(communicator));
        let optimizer = builder.divide_state().build().unwrap();
        assert!(optimizer.holds("c").is_err());
        let names = ["a.bias", "a.weight", "b.bias", "b.weight"];
        let held = names.map(|name| optimizer.holds(name).unwrap());
        for (name, held) in names.iter().zip(held) {
            let error = optimizer.norms(name).err().map(|error| error.to_string());
            assert_eq!(error.is_none(), held);
            assert!(error.is_none_or(|error| error.contains("ask that rank")));
            assert_eq!(optimizer.state().unwrap().contains_key(&format!("{name}/exp_avg")), held);
        }
        held
    });
    // 128 elements, 64, 16 and 4: the last two go where there is least.
    let (t, f) = (true, false);
    assert_eq!(held, [[f, t, f, f], [f, f, f, t], [t, f, t, f]]);
}

#[test]
fn accumulation_scaling_and_missing_gradients_change_nothing() {
    for size in 1..=3 {
        let constraints: [Constraint; 2] = [Ftp::default().into(), TpgmConfig::default().into()];
        for (constraint, accumulate) in constraints.into_iter().flat_map(|c| [(c, 1), (c, 3)]) {
            let outcomes = both(size, |group, rows| {
                let net = Net::new(DType::F32);
                let builder = RobustOptimizer::builder(&net.params).constraint(constraint).loss_scale(64.0);
                let builder = builder.audit(AuditPolicy::Except(vec!["*bias".to_owned()]));
                let mut optimizer = group(builder.accumulate(accumulate).max_grad_norm(0.5)).build().unwrap();
                let (mut bits, mut norms) = (Vec::new(), Vec::new());
                for call in 0..7 {
                    let mut grads =
                        (net.loss(11 + call, rows.clone()).unwrap() * 64.0).unwrap().backward().unwrap();
                    // A tensor is projected under TPGM, whether it has a gradient or not.
                    if call % 2 == 0 {
                        grads.remove(&net.vars[1]);
                    }
                    let info = optimizer.step(&grads).unwrap();
                    assert_eq!(info.taken, (call + 1) % accumulate as u64 == 0);
                    norms.push(info.grad_norm.map(f64::to_bits));
                    bits.push(net.bits());
                }
                // With three batches a step, the seventh call has left one over.
                assert_eq!(optimizer.pending_batches(), if accumulate == 3 { 1 } else { 0 });
                Outcome::of(bits, norms, &optimizer)
            });
            assert_same(outcomes, &format!("{size} ranks, {accumulate} batches"));
        }
    }
}

#[test]
fn transforms_and_running_variances_change_nothing() {
    for size in 1..=3 {
        let outcomes = both(size, |group, rows| {
            let net = Net::new(DType::F32);
            let (current, anchor) =
                ((tensor(5, &[16]).sqr().unwrap() + 0.1).unwrap(), tensor(6, &[16]).sqr().unwrap());
            let groups =
                net.params.clone().group(Group::new("a.bias").constraint(FixedScale { radius: 0.01 }));
            let builder = RobustOptimizer::builder(&groups).constraint(Ftp::default());
            let mut optimizer = group(builder.variance("a.bias", &current, &anchor)).build().unwrap();
            let mut transform = KernelProjection::new(optimizer.set());
            let kept = optimizer.host_gradients(&net.loss(41, 0..ROWS).unwrap().backward().unwrap()).unwrap();
            let kept: Vec<_> = kept.iter().map(|grad| grad.as_ref().map(|grad| grad.as_slice())).collect();
            transform.keep(&kept).unwrap();
            let mut bits = Vec::new();
            for step in 0..3 {
                let grads = net.loss(11 + step, rows.clone()).unwrap().backward().unwrap();
                optimizer.step_with_transform(&grads, &mut transform).unwrap();
                bits.push(net.bits());
            }
            Outcome::of(bits, vec![], &optimizer)
        });
        assert_same(outcomes, &format!("{size} ranks"));
    }
}

#[test]
fn a_trainer_of_divided_radii_beside_another_optimizer() {
    for size in 1..=3 {
        let learn = |divided| {
            ranks(size, |communicator: InProcess| {
                let (net, rows) = (Net::new(DType::F32), part(&communicator));
                let communicator: Arc<dyn Communicator> = Arc::new(communicator);
                let mut tpgm = match divided {
                    true => Tpgm::divided(&net.params, TpgmConfig::default(), communicator).unwrap(),
                    false => {
                        let tpgm = Tpgm::new(&net.params, TpgmConfig::default()).unwrap();
                        tpgm.communicator(communicator).unwrap()
                    }
                };
                net.vars[0].set(&net.vars[0].affine(1.25, 0.125).unwrap()).unwrap();
                let losses = tpgm.update_n(3, |i| net.loss(21 + i as u64, rows.clone())).unwrap();
                net.vars[2].set(&net.vars[2].affine(1.5, -0.25).unwrap()).unwrap();
                tpgm.project().unwrap();
                let state = tpgm.state().unwrap();
                tpgm.load_state(&state).unwrap();
                (net.bits(), losses.last().copied(), state, tpgm.scalars().unwrap().len())
            })
        };
        let (undivided, divided) = (learn(false), learn(true));
        let mut state = StateDict::new();
        for (rank, undivided) in divided.iter().zip(&undivided) {
            assert_eq!((&rank.0, rank.1), (&undivided.0, undivided.1));
            state.extend(rank.2.clone());
        }
        assert_eq!(state, undivided[0].2);
        assert_eq!(divided.iter().map(|rank| rank.3).sum::<usize>(), 4);
    }
}

#[test]
fn averages_are_divided() {
    for size in 1..=3 {
        let average = |divided| {
            ranks(size, |communicator: InProcess| {
                let net = Net::new(DType::F16);
                let communicator: Arc<dyn Communicator> = Arc::new(communicator);
                let mut ema = match divided {
                    true => Ema::divided(&net.params, 0.75, communicator).unwrap(),
                    false => Ema::new(&net.params, 0.75).unwrap(),
                };
                for step in 1..4 {
                    let moved =
                        |var: &Var| var.set(&var.affine(1.0, 0.125 * f64::from(step)).unwrap()).unwrap();
                    net.vars.iter().for_each(moved);
                    ema.update().unwrap();
                }
                let live = net.bits();
                let averaged = ema.apply().unwrap();
                let bits = net.bits();
                assert_ne!(bits, live);
                averaged.restore().unwrap();
                assert_eq!(net.bits(), live);
                let state = ema.state().unwrap();
                ema.load_state(&state).unwrap();
                (bits, state)
            })
        };
        let (undivided, divided) = (average(false), average(true));
        let mut state = StateDict::new();
        for rank in divided {
            assert_eq!(rank.0, undivided[0].0);
            state.extend(rank.1);
        }
        assert_eq!(state, undivided[0].1);
    }
}
