//! Training on parts of a batch is training on the batch.

use std::sync::Arc;

use candle_core::DType;
use tpgm_candle::distributed::Communicator;
use tpgm_candle::{
    AdamW, Constraint, Ftp, OptimizerBuilder, Projection, RobustOptimizer, Spd, Tpgm, TpgmConfig,
};

use super::{Net, ROWS, part, ranks};

/// Four steps, with an update of the radii after every second one for TPGM.
fn train(
    net: &Net,
    builder: OptimizerBuilder,
    learned: bool,
    rows: std::ops::Range<usize>,
) -> Vec<(String, u64)> {
    let mut optimizer = builder.build().unwrap();
    for step in 0..4 {
        let update = learned && step % 2 == 1;
        optimizer.set_projection(if update { Projection::Defer } else { Projection::Apply });
        optimizer.backward_step(&net.loss(11, rows.clone()).unwrap()).unwrap();
        if update {
            optimizer.tpgm().unwrap().update(|| net.loss(21, rows.clone())).unwrap();
        }
    }
    let radii = optimizer.scalars().unwrap().into_iter();
    radii.map(|(name, scalars)| (name, scalars.radius.to_bits())).collect()
}

#[test]
fn split_batches_train_like_the_whole_batch() {
    let constraints: [Constraint; 3] =
        [Ftp::default().into(), Spd { strength: 0.5 }.into(), TpgmConfig::default().into()];
    for (constraint, size) in constraints.into_iter().flat_map(|c| [(c, 2), (c, 3)]) {
        for (dtype, limit) in [(DType::F64, 1e-10), (DType::F32, 1e-4)] {
            let learned = matches!(constraint, Constraint::Tpgm(_));
            let builder = |net: &Net| {
                let rule = AdamW::default().lr(0.01);
                RobustOptimizer::builder(&net.params).rule(rule).constraint(constraint).max_grad_norm(0.3)
            };
            let whole = Net::new(dtype);
            train(&whole, builder(&whole), learned, 0..ROWS);
            let trained = ranks(size, |communicator| {
                let (net, rows) = (Net::new(dtype), part(&communicator));
                let radii = train(&net, builder(&net).communicator(Arc::new(communicator)), learned, rows);
                (net.bits(), radii, net.values())
            });
            for rank in &trained[1..] {
                assert_eq!(
                    (&rank.0, &rank.1),
                    (&trained[0].0, &trained[0].1),
                    "{constraint:?} {size} {dtype:?}"
                );
            }
            for (got, expected) in trained[0].2.iter().zip(whole.values()) {
                assert!((got - expected).abs() < limit, "{constraint:?} {size} {dtype:?}: {got} {expected}");
            }
        }
    }
}

#[test]
fn accumulated_batches_are_averaged_over_ranks() {
    let whole = Net::new(DType::F64);
    let builder = |net: &Net| RobustOptimizer::builder(&net.params).constraint(Ftp::default());
    let mut optimizer = builder(&whole).build().unwrap();
    (0..2).for_each(|_| assert!(optimizer.backward_step(&whole.loss(11, 0..ROWS).unwrap()).unwrap().taken));
    let trained = ranks(2, |communicator| {
        let (net, rows) = (Net::new(DType::F64), part(&communicator));
        let builder = builder(&net).accumulate(2).communicator(Arc::new(communicator));
        let mut optimizer = builder.build().unwrap();
        let middle = rows.start + rows.len() / 2;
        for _ in 0..2 {
            optimizer.backward_step(&net.loss(11, rows.start..middle).unwrap()).unwrap();
            let pending = optimizer.state().unwrap();
            let info = optimizer.backward_step(&net.loss(11, middle..rows.end).unwrap()).unwrap();
            assert!(info.taken && pending.keys().any(|key| key == "a.bias/accumulated"));
        }
        (net.bits(), net.values())
    });
    assert_eq!(trained[0].0, trained[1].0);
    for (got, expected) in trained[0].1.iter().zip(whole.values()) {
        assert!((got - expected).abs() < 1e-10, "{got} {expected}");
    }
}

#[test]
fn the_trainer_alone_learns_the_same_radii_on_all_ranks() {
    let learn = |net: &Net, mut tpgm: Tpgm, rows: std::ops::Range<usize>| {
        net.vars[0].set(&net.vars[0].affine(1.25, 0.125).unwrap()).unwrap();
        tpgm.update_n(3, |_| net.loss(21, rows.clone())).unwrap();
        tpgm.scalars().unwrap()[1].1.radius
    };
    let whole = Net::new(DType::F64);
    let expected = learn(&whole, Tpgm::new(&whole.params, TpgmConfig::default()).unwrap(), 0..ROWS);
    let radii = ranks(3, |communicator| {
        let (net, rows) = (Net::new(DType::F64), part(&communicator));
        let tpgm = Tpgm::new(&net.params, TpgmConfig::default()).unwrap();
        (learn(&net, tpgm.communicator(Arc::new(communicator)).unwrap(), rows), net.bits())
    });
    assert!(radii.iter().all(|rank| *rank == radii[0]));
    assert!(expected > 0.0 && (radii[0].0 - expected).abs() < 1e-12, "{} {expected}", radii[0].0);
}

#[test]
fn ranks_begin_with_the_weights_of_rank_0() {
    let trained = ranks(3, |communicator| {
        let net = Net::new(DType::F32);
        let rank = communicator.rank() as f64;
        net.vars[2].set(&net.vars[2].affine(1.0, rank).unwrap()).unwrap();
        RobustOptimizer::builder(&net.params).communicator(Arc::new(communicator)).build().unwrap();
        net.bits()
    });
    assert!(trained.iter().all(|bits| *bits == Net::new(DType::F32).bits()));
}
