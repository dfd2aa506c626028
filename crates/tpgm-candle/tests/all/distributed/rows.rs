//! Tensors that are cut by rows give the bits of whole ones.

use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::DType;
use tpgm_candle::core::FtpMemory;
use tpgm_candle::distributed::Communicator;
use tpgm_candle::{
    AuditPolicy, Constraint, Ftp, Group, OptimizerBuilder, RobustOptimizer, Rule, StateDict, TpgmConfig,
};

use super::methods::{Outcome, constraints, rules, train};
use super::net::cut;
use super::{Net, part, ranks};

/// The rows of `a.weight` that saved state has.
fn rows_of(state: &StateDict) -> Vec<std::ops::Range<usize>> {
    let rows = |key: &String| {
        let (start, end) = key.strip_prefix("a.weight[")?.strip_suffix("]/scalars")?.split_once("..")?;
        Some(start.parse().unwrap()..end.parse().unwrap())
    };
    let mut rows: Vec<_> = state.keys().filter_map(rows).collect();
    rows.sort_by_key(|rows| rows.start);
    rows
}

/// All ranks as one. Of the tensor that is cut they have the same scalars, and norms of their own rows.
fn join(ranks: Vec<Outcome>, whole: &mut RobustOptimizer) -> Outcome {
    let (mut state, mut norms) = (StateDict::new(), vec![f64::NAN; 300]);
    let (mut scalars, mut rows) = (BTreeMap::new(), BTreeMap::new());
    let mut keep = 0;
    for rank in &ranks {
        assert!((&rank.bits, &rank.norms) == (&ranks[0].bits, &ranks[0].norms), "ranks differ");
        let own = rows_of(&rank.state);
        keep += usize::from(!own.is_empty());
        let of_rank = rank.rows.get("a.weight");
        if of_rank.is_some_and(|norms| norms.len() == 1) {
            norms.clone_from(&rank.rows["a.weight"]); // The zero of a constraint without a norm.
        } else if !own.is_empty() {
            let mut of_rank = of_rank.into_iter().flatten();
            own.into_iter().flatten().for_each(|row| norms[row] = *of_rank.next().unwrap());
            assert!(of_rank.next().is_none());
        }
        for (name, numbers) in &rank.scalars {
            let earlier = scalars.insert(name.clone(), numbers.clone());
            assert!(earlier.is_none_or(|earlier| name == "a.weight" && earlier == *numbers), "{name}");
        }
        rows.extend(rank.rows.clone());
        state.extend(rank.state.clone());
    }
    assert!(keep != 1, "all rows are on one rank");
    if keep > 0 {
        rows.insert("a.weight".to_owned(), norms);
    }
    whole.load_state(&state).unwrap();
    let Some(first) = ranks.into_iter().next() else { panic!("no ranks") };
    Outcome { bits: first.bits, norms: first.norms, state: whole.state().unwrap(), scalars, rows }
}

/// Trains with state that is divided and cut, and with state that is neither. Says whether it was cut.
fn same(net: &(dyn Fn() -> Net + Sync), method: (Rule, Constraint), size: usize) -> bool {
    let run = |divided: bool| {
        ranks(size, |communicator| {
            let rows = part(&communicator);
            let communicator: Arc<dyn Communicator> = Arc::new(communicator);
            let group = |builder: OptimizerBuilder| {
                let builder = cut(builder).communicator(communicator.clone());
                if divided { builder.divide_state() } else { builder }
            };
            train(&net(), method, &group, rows)
        })
    };
    let (undivided, divided) = (run(false), run(true));
    let is_cut = divided.iter().any(|rank| !rows_of(&rank.state).is_empty());
    let net = net();
    let params = net.params.clone().group(Group::new("b.*").lr(0.02).weight_decay(0.01));
    let builder = RobustOptimizer::builder(&params).rule(method.0).constraint(method.1);
    let got = join(divided, &mut cut(builder).build().unwrap());
    let expected = undivided.into_iter().next().unwrap();
    assert!(got.bits == expected.bits, "{method:?}: weights differ");
    // Zeros and NaNs apart, and so compared as bits.
    let bits = |outcome: &Outcome| -> BTreeMap<String, Vec<u64>> {
        let bits = |rows: &Vec<f64>| rows.iter().map(|row| row.to_bits()).collect();
        outcome.rows.iter().map(|(name, rows)| (name.clone(), bits(rows))).collect()
    };
    assert!(got.scalars == expected.scalars, "{method:?}: {:?}\n{:?}", got.scalars, expected.scalars);
    assert!(got.state == expected.state && got.norms == expected.norms, "{method:?}: state differs");
    assert!(!is_cut || bits(&got) == bits(&expected), "{method:?}: {:?}\n{:?}", got.rows, expected.rows);
    is_cut
}

#[test]
fn all_methods_give_the_bits_of_whole_tensors() {
    let types = [DType::F32, DType::F16, DType::BF16, DType::F64].into_iter().cycle();
    let methods = rules().into_iter().flat_map(|rule| constraints().into_iter().map(move |c| (rule, c)));
    for ((i, (rule, constraint)), dtype) in methods.enumerate().zip(types) {
        let is_cut = same(&|| Net::wide(dtype), (rule, constraint), 2 + i % 2);
        let whole = match &constraint {
            Constraint::None | Constraint::L2Sp(_) | Constraint::Digrap(_) | Constraint::Ftp(_) => false,
            Constraint::FixedRadius(c) => c.norm != tpgm_candle::Norm::Mars,
            _ => true,
        };
        assert_eq!(is_cut, !whole, "{constraint:?}");
    }
}

#[test]
fn missing_gradients_and_accumulated_ones_change_nothing() {
    let ftp = |memory| Ftp { memory, ..Ftp::default() };
    let (exact, low): (Constraint, Constraint) = (ftp(FtpMemory::Exact).into(), ftp(FtpMemory::Low).into());
    // Under TPGM a group without an anchor is cut, and the others are not.
    let tpgm = TpgmConfig::default().into();
    for (constraint, accumulate) in [(exact, 1), (exact, 3), (low, 1), (tpgm, 1)] {
        let run = |divided: bool| {
            ranks(3, |communicator| {
                let rows = part(&communicator);
                let net = Net::wide(DType::F32);
                let params = match constraint {
                    Constraint::Tpgm(_) => net.params.clone().group(Group::new("a.weight").no_anchor()),
                    _ => net.params.clone(),
                };
                let builder = cut(RobustOptimizer::builder(&params).constraint(constraint));
                let builder = builder.audit(AuditPolicy::Except(vec!["a.weight".to_owned()]));
                let builder = builder.accumulate(accumulate).communicator(Arc::new(communicator));
                let builder = if divided { builder.divide_state() } else { builder };
                let mut optimizer = builder.build().unwrap();
                for call in 0..7 {
                    let mut grads = net.loss(11 + call, rows.clone()).unwrap().backward().unwrap();
                    if call % 4 < 2 {
                        grads.remove(&net.vars[0]);
                    }
                    optimizer.step(&grads).unwrap();
                    if matches!(constraint, Constraint::Tpgm(_)) {
                        optimizer.tpgm().unwrap().update(|| net.loss(31 + call, rows.clone())).unwrap();
                    }
                }
                (net.bits(), optimizer.state().unwrap(), optimizer.scalars().unwrap())
            })
        };
        let (undivided, divided) = (run(false), run(true));
        let mut state = StateDict::new();
        for (bits, own, scalars) in divided {
            assert!(bits == undivided[0].0, "{constraint:?}, {accumulate} batches");
            let numbers = |all: &[(String, tpgm_candle::TensorScalars)]| {
                all.iter().find(|(name, _)| name == "a.weight").map(|(_, numbers)| *numbers)
            };
            assert_eq!(numbers(&scalars).is_some(), !rows_of(&own).is_empty());
            assert!(numbers(&scalars).is_none_or(|own| Some(own) == numbers(&undivided[0].2)));
            state.extend(own);
        }
        assert_eq!(rows_of(&state), [0..60, 60..120, 120..180, 180..240, 240..300]);
        let net = Net::wide(DType::F32);
        let params = match constraint {
            Constraint::Tpgm(_) => net.params.clone().group(Group::new("a.weight").no_anchor()),
            _ => net.params.clone(),
        };
        let builder = cut(RobustOptimizer::builder(&params).constraint(constraint));
        let mut whole = builder.accumulate(accumulate).build().unwrap();
        whole.load_state(&state).unwrap();
        assert!(whole.state().unwrap() == undivided[0].1, "{constraint:?}, {accumulate} batches");

        // Rows that are not there are missed, by name.
        let (lost, _) = state.iter().find(|(key, _)| key.ends_with("]/exp_avg")).unwrap();
        let fewer = state.iter().filter(|(key, _)| *key != lost);
        let fewer: StateDict = fewer.map(|(key, slot)| (key.clone(), slot.clone())).collect();
        let error = whole.load_state(&fewer).unwrap_err().to_string();
        assert!(error.contains("lacks `a.weight/exp_avg`"), "{error}");
        assert!(whole.state().unwrap() == undivided[0].1);
    }
}

#[test]
fn a_gradient_that_is_not_finite_is_named_with_its_rows() {
    let errors = ranks(2, |communicator| {
        let net = Net::wide(DType::F32);
        let builder = cut(RobustOptimizer::builder(&net.params).constraint(Ftp::default()));
        let mut optimizer = builder.communicator(Arc::new(communicator)).divide_state().build().unwrap();
        let rows = 0..8;
        optimizer.backward_step(&net.loss(11, rows.clone()).unwrap()).unwrap();
        let (bits, state) = (net.bits(), optimizer.state().unwrap());
        let mut grads = net.loss(12, rows).unwrap().backward().unwrap();
        let grad = grads.get(&net.vars[0]).unwrap();
        let mut numbers: Vec<f32> = grad.flatten_all().unwrap().to_vec1().unwrap();
        // In three blocks of rank 1, of which the first is named.
        for row in [70, 130, 299] {
            numbers[8 * row] = f32::NAN;
        }
        let grad = candle_core::Tensor::from_vec(numbers, grad.shape(), grad.device()).unwrap();
        grads.insert(&net.vars[0], grad);
        let error = optimizer.step(&grads).unwrap_err().to_string();
        assert!(net.bits() == bits && optimizer.state().unwrap() == state, "{error}");
        error
    });
    // One tensor, though three of its blocks are affected.
    let expected = "the gradient of tensor `a.weight[60..120]` is not finite (1 tensors affected)";
    assert!(errors.iter().all(|error| error.contains(expected)), "{errors:?}");
}
