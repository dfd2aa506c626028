//! A call over divided state happens on all ranks or on none, wherever it fails.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{DType, Device, Tensor};
use tpgm_candle::core::{Error as CoreError, RadiusAdam};
use tpgm_candle::distributed::{Communicator, InProcess, Named, RankProblem, Result};
use tpgm_candle::{
    AdamW, Constraint, Digrap, Ema, Error, Ftp, Projection, Pull, PullWeights, RobustOptimizer, StateDict,
    TpgmConfig, distributed,
};

use super::net::cut;
use super::{Net, part, ranks};

/// Leaves the group in place of one of its calls.
#[derive(Debug)]
pub(super) struct Leaving {
    inner: Mutex<Option<InProcess>>,
    rank: usize,
    size: usize,
    calls: AtomicUsize,
    /// How many calls it still takes part in.
    left: AtomicUsize,
}

impl Leaving {
    pub(super) fn new(inner: InProcess) -> Self {
        let (rank, size) = (inner.rank(), inner.size());
        let (calls, left) = (AtomicUsize::new(0), AtomicUsize::new(usize::MAX));
        Self { inner: Mutex::new(Some(inner)), rank, size, calls, left }
    }

    /// Leaves after `calls` more calls.
    pub(super) fn after(&self, calls: usize) {
        self.calls.store(0, Ordering::Relaxed);
        self.left.store(calls, Ordering::Relaxed);
    }

    fn call(&self, call: impl FnOnce(&InProcess) -> Result<()>) -> Result<()> {
        let mut inner = self.inner.lock().unwrap();
        if self.calls.fetch_add(1, Ordering::Relaxed) >= self.left.load(Ordering::Relaxed) {
            inner.take();
        }
        match &*inner {
            Some(inner) => call(inner),
            None => Err(RankProblem::Left { rank: self.rank }.into()),
        }
    }
}

impl Communicator for Leaving {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn all_reduce_mean(&self, tensors: &[Named<'_>]) -> Result<()> {
        self.call(|inner| inner.all_reduce_mean(tensors))
    }

    fn reduce_mean(&self, tensors: &[Named<'_>], owners: &[usize]) -> Result<()> {
        self.call(|inner| inner.reduce_mean(tensors, owners))
    }

    fn share(&self, tensors: &[Named<'_>], owners: &[usize]) -> Result<()> {
        self.call(|inner| inner.share(tensors, owners))
    }

    fn barrier(&self) -> Result<()> {
        self.call(InProcess::barrier)
    }

    fn refuse(&self, reason: &str) -> Result<()> {
        self.call(|inner| inner.refuse(reason))
    }
}

/// Makes a call on three ranks, of which one leaves after each possible number of their meetings, until none is left to be
/// missed. Returns how many meetings the call has.
fn meetings(
    net: impl Fn() -> Net + Sync,
    constraint: Constraint,
    call: impl Fn(&Net, &mut RobustOptimizer, std::ops::Range<usize>) -> tpgm_candle::optim::Result<()> + Sync,
) -> usize {
    for left in 0..100 {
        let done = ranks(3, |inner| {
            let (net, rows) = (net(), part(&inner));
            let communicator = Arc::new(Leaving::new(inner));
            let builder = RobustOptimizer::builder(&net.params).constraint(constraint).max_grad_norm(0.1);
            let builder = cut(builder);
            let mut optimizer = builder.communicator(communicator.clone()).divide_state().build().unwrap();
            optimizer.set_projection(Projection::Defer);
            optimizer.backward_step(&net.loss(11, rows.clone()).unwrap()).unwrap();
            optimizer.set_projection(Projection::Apply);
            let before = (net.bits(), optimizer.state().unwrap(), optimizer.steps());
            if communicator.rank() == 1 {
                communicator.after(left);
            }
            let result = call(&net, &mut optimizer, rows);
            let after = (net.bits(), optimizer.state().unwrap(), optimizer.steps());
            match result {
                Ok(()) => {
                    assert_ne!(after.0, before.0);
                    true
                }
                Err(error) => {
                    assert!(after == before, "rank {} after {left} meetings", communicator.rank());
                    let expected = "rank 1 has left the group";
                    assert!(error.to_string().contains(expected), "{error}");
                    false
                }
            }
        });
        // What one rank has done, all have done: the one that left missed nothing.
        assert!(done.iter().all(|rank| *rank == done[0]), "after {left} meetings: {done:?}");
        if done[0] {
            return left;
        }
    }
    panic!("the call never ends")
}

#[test]
fn a_rank_that_leaves_anywhere_in_a_step_leaves_the_others_as_they_were() {
    for dtype in [DType::F32, DType::F16] {
        let count = meetings(
            || Net::new(dtype),
            Ftp::default().into(),
            |net, optimizer, rows| {
                optimizer.backward_step(&net.loss(12, rows)?)?;
                Ok(())
            },
        );
        // Gradients, their norms, weights, and that all have them.
        assert_eq!(count, 4);
    }
}

#[test]
fn a_rank_that_leaves_anywhere_in_a_step_of_blocks_leaves_the_others_as_they_were() {
    // `a.weight` is five blocks of ranks 1, 2, 1, 2 and 1; a bucket has one of each: three buckets. Of each gradients and weights go,
    // and in between sums of all; the scalars of rows under FTP; and that all have them.
    let count = |constraint| {
        meetings(
            || Net::wide(DType::F32),
            constraint,
            |net, optimizer, rows| {
                optimizer.backward_step(&net.loss(12, rows)?)?;
                Ok(())
            },
        )
    };
    assert_eq!(count(Ftp::default().into()), 3 + 1 + 3 + 1 + 1);
    assert_eq!(count(Digrap::default().into()), 3 + 1 + 3 + 1);
}

#[test]
fn one_rank_refuses_what_a_step_without_ranks_refuses() {
    // Finite gradients whose product with the displacement that FTP remembers is not.
    let run = |ranks: Option<InProcess>| {
        let net = Net::new(DType::F64);
        let divided = ranks.is_some();
        let builder = RobustOptimizer::builder(&net.params).rule(AdamW::default().lr(1e3));
        let builder = builder.constraint(Ftp::default());
        let builder = match ranks {
            Some(ranks) => builder.communicator(Arc::new(ranks)).divide_state(),
            None => builder,
        };
        let mut optimizer = builder.build().unwrap();
        for seed in 11..14 {
            optimizer.backward_step(&net.loss(seed, 0..8).unwrap()).unwrap();
        }
        let before = (net.bits(), optimizer.state().unwrap(), optimizer.steps());
        let mut grads = net.loss(14, 0..8).unwrap().backward().unwrap();
        // Of the last tensor: whatever comes before it must not have moved.
        let huge = Tensor::full(1e308, &[4], &Device::Cpu).unwrap();
        grads.insert(&net.vars[3], huge);
        let error = optimizer.step(&grads).unwrap_err().to_string();
        assert!((net.bits(), optimizer.state().unwrap(), optimizer.steps()) == before, "{divided}: {error}");
        error
    };
    let expected = run(None);
    assert!(expected.contains("`b.bias`") && expected.contains("is not finite"), "{expected}");
    assert_eq!(ranks(1, |communicator| run(Some(communicator))), [expected]);
}

#[test]
fn a_rank_that_leaves_anywhere_in_a_projection_leaves_the_others_as_they_were() {
    for dtype in [DType::F32, DType::F16] {
        let count = meetings(
            || Net::new(dtype),
            TpgmConfig::default().into(),
            |_, optimizer, _| {
                optimizer.tpgm()?.project()?;
                Ok(())
            },
        );
        assert_eq!(count, 2);
    }
}

#[test]
fn a_rank_that_leaves_anywhere_in_an_update_leaves_the_weights_as_they_were() {
    // Radii that still limit the short displacements after two iterations.
    let slow = TpgmConfig { adam: RadiusAdam { lr: 1e-5, ..RadiusAdam::default() }, ..TpgmConfig::default() };
    for left in 0..100 {
        let done = ranks(3, |inner| {
            let (net, rows) = (Net::new(DType::F16), part(&inner));
            let communicator = Arc::new(Leaving::new(inner));
            let builder = RobustOptimizer::builder(&net.params).constraint(slow);
            let mut optimizer = builder.communicator(communicator.clone()).divide_state().build().unwrap();
            optimizer.set_projection(Projection::Defer);
            optimizer.backward_step(&net.loss(11, rows.clone()).unwrap()).unwrap();
            let masters = |state: StateDict| -> StateDict {
                state.into_iter().filter(|(key, _)| key.ends_with("/master")).collect()
            };
            let before = (net.bits(), masters(optimizer.state().unwrap()));
            if communicator.rank() == 1 {
                communicator.after(left);
            }
            let result = optimizer.tpgm().unwrap().update_n(2, |i| net.loss(21 + i as u64, rows.clone()));
            // State can be had again: no update is left running.
            let after = (net.bits(), masters(optimizer.state().unwrap()));
            match result {
                Ok(_) => assert_ne!(after.0, before.0),
                Err(_) => assert!(after == before, "rank {} after {left} meetings", communicator.rank()),
            }
            result.is_ok()
        });
        assert!(done.iter().all(|rank| *rank == done[0]), "after {left} meetings: {done:?}");
        if done[0] {
            // One to begin; per iteration two to write, a reduction, and one before the radii learn; two to finish.
            assert_eq!(left, 1 + 2 * 4 + 2);
            return;
        }
    }
    panic!("the call never ends")
}

#[test]
fn a_rank_that_leaves_while_averages_are_written_leaves_live_weights() {
    for left in 0..3 {
        let done = ranks(2, |inner| {
            let net = Net::new(DType::F32);
            let communicator = Arc::new(Leaving::new(inner));
            let mut ema = Ema::divided(&net.params, 0.5, communicator.clone()).unwrap();
            net.vars.iter().for_each(|var| var.set(&var.affine(2.0, 1.0).unwrap()).unwrap());
            ema.update().unwrap();
            let before = net.bits();
            if communicator.rank() == 1 {
                communicator.after(left);
            }
            let done = ema.apply().is_ok();
            assert_eq!(net.bits(), before);
            done
        });
        assert_eq!(done, [left == 2; 2]);
    }
}

#[test]
fn a_gradient_that_only_its_owner_sees_as_bad_is_refused_by_all() {
    for accumulate in [1, 2] {
        let results = ranks(3, |communicator| {
            let (net, rank, rows) = (Net::new(DType::F32), communicator.rank(), part(&communicator));
            let builder =
                RobustOptimizer::builder(&net.params).constraint(Ftp::default()).accumulate(accumulate);
            let mut optimizer = builder.communicator(Arc::new(communicator)).divide_state().build().unwrap();
            let before = (net.bits(), optimizer.state().unwrap());
            let mut grads = net.loss(11, rows.clone()).unwrap().backward().unwrap();
            if rank == 1 {
                // A NaN of rank 1 in a tensor of rank 2.
                grads.insert(&net.vars[3], Tensor::new(&[0.0f32, f32::NAN, 0.0, 0.0], &Device::Cpu).unwrap());
            }
            let error = Error::from(optimizer.step(&grads).unwrap_err());
            match rank {
                2 => {
                    let core = CoreError::NonFiniteGradient { tensor: "b.bias".to_owned(), count: 1 };
                    assert!(matches!(&error, Error::Core(error) if *error == core), "{error}");
                }
                _ => match &error {
                    Error::Distributed(distributed::Error::Ranks(RankProblem::Refused {
                        rank: 2,
                        reason,
                    })) => {
                        assert!(reason.contains("`b.bias` is not finite"), "{reason}");
                    }
                    error => panic!("{error}"),
                },
            }
            assert!((net.bits(), optimizer.state().unwrap()) == before);
            (0..accumulate).for_each(|_| {
                optimizer.backward_step(&net.loss(11, rows.clone()).unwrap()).unwrap();
            });
            assert_ne!(net.bits(), before.0);
            net.bits()
        });
        assert!(results.iter().all(|bits| *bits == results[0]));
    }
}

#[test]
fn importance_that_one_rank_refuses_is_taken_by_none() {
    ranks(2, |communicator| {
        let (net, rank, rows) = (Net::new(DType::F32), communicator.rank(), part(&communicator));
        let pull = Pull { anchor_l2: 0.4, weights: PullWeights::Fisher, ..Pull::default() };
        let builder = RobustOptimizer::builder(&net.params).constraint(pull);
        let mut optimizer = builder.communicator(Arc::new(communicator)).divide_state().build().unwrap();
        let before = optimizer.state().unwrap();
        let mut grads = net.loss(11, rows.clone()).unwrap().backward().unwrap();
        grads.insert(&net.vars[0], (net.vars[0].as_tensor() * f64::INFINITY).unwrap());
        let error = optimizer.update_importance(&grads).unwrap_err().to_string();
        // `a.weight` is of rank 0.
        let expected =
            if rank == 0 { "the gradient of tensor `a.weight`" } else { "rank 0 could not take part" };
        assert!(error.starts_with(expected), "{error}");
        assert!(optimizer.state().unwrap() == before);
        optimizer.backward_importance(&net.loss(11, rows).unwrap()).unwrap();
        assert!(optimizer.state().unwrap() != before);

        let ones = Tensor::ones(4, DType::F32, &Device::Cpu).unwrap();
        optimizer.set_importance("b.bias", &ones).unwrap();
        match optimizer.holds("b.bias").unwrap() {
            true => assert_eq!(optimizer.importance("b.bias").unwrap(), [1.0; 4]),
            false => assert!(optimizer.importance("b.bias").is_err()),
        }
    });
    ranks(2, |communicator| {
        let (net, rows) = (Net::new(DType::F32), part(&communicator));
        let builder = RobustOptimizer::builder(&net.params).communicator(Arc::new(communicator));
        let mut optimizer = builder.divide_state().build().unwrap();
        let error = optimizer.backward_importance(&net.loss(11, rows).unwrap()).unwrap_err().to_string();
        assert!(error.contains("no tensor of the set keeps an importance"), "{error}");
    });
}
