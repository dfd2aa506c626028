//! A rank that does not answer, or trains something else, is named on all others.

use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use candle_core::{DType, Device};
use tpgm_candle::distributed::{Communicator, InProcess, Named, RankProblem, Result, require_same};
use tpgm_candle::{AdamW, Ftp, RobustOptimizer, Tpgm, TpgmConfig, distributed};

use super::{Net, part, ranks};

const TIMEOUT: Duration = Duration::from_secs(1);

fn problem(error: distributed::Error) -> RankProblem {
    match error {
        distributed::Error::Ranks(problem) => problem,
        error => panic!("{error}"),
    }
}

#[test]
fn ranks_that_do_not_answer_are_named_on_all_others() {
    // The clock starts before any rank waits: a rank that comes a little later is told when the first has waited.
    let started = Instant::now();
    let errors = ranks(4, |communicator| {
        let communicator = communicator.timeout(TIMEOUT);
        communicator.barrier().unwrap();
        if [1, 3].contains(&communicator.rank()) {
            thread::sleep(2 * TIMEOUT);
        }
        let error = problem(communicator.barrier().unwrap_err());
        assert!(started.elapsed() >= TIMEOUT);
        // So it stays, and nobody waits again.
        let begun = Instant::now();
        assert_eq!(problem(communicator.refuse("no data").unwrap_err()), error);
        assert!(begun.elapsed() < TIMEOUT);
        error
    });
    let silent = RankProblem::Silent { ranks: vec![1, 3], waited: TIMEOUT };
    assert!(errors.iter().all(|error| *error == silent), "{errors:?}");
    assert_eq!(silent.to_string(), "ranks 1, 3 did not answer within 1s");
}

/// Sleeps past the timeout in place of one of its calls.
#[derive(Debug)]
struct Slow {
    inner: InProcess,
    calls: std::sync::atomic::AtomicUsize,
}

impl Slow {
    fn call(&self) {
        // Counts down to 0, and not below.
        let order = std::sync::atomic::Ordering::Relaxed;
        if self.calls.fetch_update(order, order, |calls| calls.checked_sub(1)) == Ok(1) {
            thread::sleep(2 * TIMEOUT);
        }
    }
}

impl Communicator for Slow {
    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn size(&self) -> usize {
        self.inner.size()
    }

    fn all_reduce_mean(&self, tensors: &[Named<'_>]) -> Result<()> {
        self.call();
        self.inner.all_reduce_mean(tensors)
    }

    fn reduce_mean(&self, tensors: &[Named<'_>], owners: &[usize]) -> Result<()> {
        self.call();
        self.inner.reduce_mean(tensors, owners)
    }

    fn share(&self, tensors: &[Named<'_>], owners: &[usize]) -> Result<()> {
        self.call();
        self.inner.share(tensors, owners)
    }

    fn barrier(&self) -> Result<()> {
        self.call();
        self.inner.barrier()
    }

    fn refuse(&self, reason: &str) -> Result<()> {
        self.inner.refuse(reason)
    }
}

#[test]
fn a_step_that_a_slow_rank_ends_has_changed_nothing_on_any_rank() {
    // Undivided there is one call; divided there are gradients, their norms, weights, and that all have them.
    for (divided, calls) in [(false, 1), (true, 1), (true, 2), (true, 3), (true, 4)] {
        ranks(3, |inner| {
            let (net, rank, rows) = (Net::new(DType::F16), inner.rank(), part(&inner));
            let slow = Arc::new(Slow { inner: inner.timeout(TIMEOUT), calls: 0.into() });
            let builder = RobustOptimizer::builder(&net.params).constraint(Ftp::default()).max_grad_norm(0.1);
            let builder = builder.communicator(slow.clone());
            let mut optimizer = if divided { builder.divide_state() } else { builder }.build().unwrap();
            optimizer.backward_step(&net.loss(11, rows.clone()).unwrap()).unwrap();
            let before = (net.bits(), optimizer.state().unwrap(), optimizer.steps());
            if rank == 2 {
                slow.calls.store(calls, std::sync::atomic::Ordering::Relaxed);
            }
            let error =
                optimizer.backward_step(&net.loss(12, rows.clone()).unwrap()).unwrap_err().to_string();
            assert!(error.contains("rank 2 did not answer within 1s"), "{error}");
            assert!(
                (net.bits(), optimizer.state().unwrap(), optimizer.steps()) == before,
                "rank {rank}, call {calls}"
            );
        });
    }
}

#[test]
fn ranks_with_other_data_configuration_or_model_are_named() {
    let errors = ranks(3, |communicator| {
        let data: &[u8] = if communicator.rank() == 1 { b"2001 images" } else { b"2000 images" };
        require_same(&communicator, "training data", b"same", &Device::Cpu).unwrap();
        let error = problem(require_same(&communicator, "training data", data, &Device::Cpu).unwrap_err());
        communicator.barrier().unwrap();
        error
    });
    let unequal = RankProblem::Unequal { what: "training data".to_owned(), rank: 1 };
    assert_eq!(unequal.to_string(), "the training data of rank 1 and that of rank 0 are not the same");
    assert_eq!(errors[1], unequal);
    for error in [&errors[0], &errors[2]] {
        assert_eq!(
            *error,
            RankProblem::Refused { rank: 1, reason: format!("{unequal}; nothing was changed on any rank") }
        );
    }

    for divided in [false, true] {
        let errors = ranks(2, |communicator| {
            let (net, rank) = (Net::new(DType::F32), communicator.rank());
            let builder = RobustOptimizer::builder(&net.params).rule(AdamW::default().lr(0.1 + rank as f64));
            let builder = builder.communicator(Arc::new(communicator));
            let built = if divided { builder.divide_state() } else { builder }.build();
            built.err().unwrap().to_string()
        });
        let expected = "the configuration of the optimizer of rank 1 and that of rank 0 are not the same";
        assert!(errors.iter().all(|error| error.contains(expected)), "{errors:?}");
    }
    let errors = ranks(2, |communicator| {
        let (net, rank) = (Net::new(DType::F32), communicator.rank());
        let config = TpgmConfig {
            norm: [tpgm_candle::Norm::Mars, tpgm_candle::Norm::L2][rank],
            ..TpgmConfig::default()
        };
        Tpgm::divided(&net.params, config, Arc::new(communicator)).err().unwrap().to_string()
    });
    assert!(errors.iter().all(|error| error.contains("the configuration of TPGM of rank 1")), "{errors:?}");

    // A model with another layer.
    let errors = ranks(2, |communicator| {
        let (net, rank) = (Net::new(DType::F32), communicator.rank());
        let all = net.params.all().into_iter().take(4 - rank);
        let params = tpgm_candle::Params::from_params(all).unwrap();
        let builder = RobustOptimizer::builder(&params).communicator(Arc::new(communicator));
        builder.divide_state().build().err().unwrap().to_string()
    });
    assert!(errors.iter().all(|error| error.contains("`b.weight` is missing on rank 1")), "{errors:?}");
}
