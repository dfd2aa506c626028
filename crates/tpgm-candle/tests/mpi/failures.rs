//! What goes wrong on one process is an error on all of them that names it.

use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

use candle_core::{DType, Device, Tensor};
use tpgm_candle::distributed::{Communicator, Error, Mpi, RankProblem, require_same};
use tpgm_candle::{AdamW, Ftp, RobustOptimizer};

use super::{Net, Ranks, part, with_threads};

fn zeros(len: usize, dtype: DType) -> Tensor {
    Tensor::zeros(len, dtype, &Device::Cpu).unwrap()
}

pub(crate) fn all(world: &Arc<Mpi>) {
    // Messages are those of threads, word for word, and the group goes on after each.
    let checks: [fn(Ranks) -> String; 8] = [
        other_tensors,
        other_owners,
        other_calls,
        refusals,
        no_mean_of_integers,
        other_data,
        other_options,
        a_nan_on_one_rank,
    ];
    for (i, check) in checks.into_iter().enumerate() {
        let (got, expected) = (check(world.clone()), with_threads(&**world, check));
        assert_eq!(got, expected, "check {i}");
        world.barrier().unwrap();
    }
    shared_memory(world);
    two_calls_at_a_time(world);
    a_rank_that_leaves(world);
}

/// Rank 1 differs.
fn other_tensors(ranks: Ranks) -> String {
    let (a, b) = (zeros(2, DType::F32), zeros(3 + usize::from(ranks.rank() == 1), DType::F32));
    let error = ranks.all_reduce_mean(&[("a", &a), ("b", &b)]).unwrap_err().to_string();
    assert!(error.contains("tensor `b` is f32 [4] on rank 1, but f32 [3] on rank 0"), "{error}");
    error
}

fn other_owners(ranks: Ranks) -> String {
    let error = ranks.share(&[("a", &zeros(2, DType::F32))], &[usize::from(ranks.rank() == 1)]);
    error.unwrap_err().to_string()
}

fn other_calls(ranks: Ranks) -> String {
    let call = if ranks.rank() == 1 { ranks.broadcast(&[]) } else { ranks.barrier() };
    call.unwrap_err().to_string()
}

fn refusals(ranks: Ranks) -> String {
    match ranks.rank() {
        1 => format!("{:?}", ranks.refuse("no \u{201c}data\u{201d}")),
        _ => ranks.barrier().unwrap_err().to_string(),
    }
}

fn no_mean_of_integers(ranks: Ranks) -> String {
    let dtype = if ranks.rank() == 1 { DType::U32 } else { DType::F32 };
    ranks.all_reduce_mean(&[("t", &zeros(2, dtype))]).unwrap_err().to_string()
}

fn other_data(ranks: Ranks) -> String {
    let data: &[u8] = if ranks.rank() == 1 { b"2001 images" } else { b"2000 images" };
    require_same(&*ranks, "training data", data, &Device::Cpu).unwrap_err().to_string()
}

fn other_options(ranks: Ranks) -> String {
    let net = Net::new(DType::F32);
    let lr = if ranks.rank() == 1 { 0.1 } else { 0.2 };
    let builder = RobustOptimizer::builder(&net.params).rule(AdamW::default().lr(lr));
    let error = builder.communicator(ranks).divide_state().build().err().unwrap().to_string();
    assert!(error.contains("the configuration of the optimizer of rank 1"), "{error}");
    error
}

fn a_nan_on_one_rank(ranks: Ranks) -> String {
    let (net, rank, rows) = (Net::new(DType::F32), ranks.rank(), part(&*ranks));
    let builder = RobustOptimizer::builder(&net.params).constraint(Ftp::default()).communicator(ranks);
    let mut optimizer = builder.divide_state().build().unwrap();
    let before = (net.bits(), optimizer.state().unwrap());
    let mut grads = net.loss(11, rows.clone()).unwrap().backward().unwrap();
    if rank == 1 {
        grads.insert(&net.vars[3], Tensor::new(&[0.0f32, f32::NAN, 0.0, 0.0], &Device::Cpu).unwrap());
    }
    let error = optimizer.step(&grads).unwrap_err().to_string();
    assert!((net.bits(), optimizer.state().unwrap()) == before);
    optimizer.backward_step(&net.loss(11, rows).unwrap()).unwrap();
    assert_ne!(net.bits(), before.0);
    format!("{error} {:?}", net.bits())
}

fn shared_memory(world: &Arc<Mpi>) {
    let a = zeros(2, DType::F32);
    let rank = world.rank();
    let second = if rank == 1 { a.clone() } else { zeros(2, DType::F32) };
    let error = world.all_reduce_mean(&[("a", &a), ("b", &second)]).unwrap_err();
    let own = RankProblem::Shared { tensor: "b".to_owned(), rank: 1 };
    match &error {
        Error::Ranks(problem) if rank == 1 => assert_eq!(*problem, own),
        Error::Ranks(RankProblem::Refused { rank: 1, reason }) => {
            assert!(reason.contains(&own.to_string()), "{reason}");
        }
        error => panic!("{error}"),
    }
}

/// As with threads: one of the two is refused at once, and the other waits for the ranks.
fn two_calls_at_a_time(world: &Arc<Mpi>) {
    // The others come when one was refused.
    let signal = Mpi::world().unwrap().timeout(Duration::from_secs(60));
    if world.rank() == 0 {
        let both = Barrier::new(2);
        let results = thread::scope(|scope| {
            let call = || {
                both.wait();
                let result = world.barrier();
                if result.is_err() {
                    signal.barrier().unwrap();
                }
                result
            };
            [scope.spawn(call), scope.spawn(call)].map(|thread| thread.join().unwrap())
        });
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    } else {
        signal.barrier().unwrap();
        world.barrier().unwrap();
    }
}

/// In a group of its own: the others name it, without waiting for a timeout, and the first group is as good as before.
fn a_rank_that_leaves(world: &Arc<Mpi>) {
    for _ in 0..3 {
        let group = Mpi::world().unwrap();
        group.barrier().unwrap();
        if group.rank() == 1 {
            drop(group);
        } else {
            let begun = Instant::now();
            for _ in 0..2 {
                let error = group.barrier().unwrap_err();
                assert!(matches!(error, Error::Ranks(RankProblem::Left { rank: 1 })), "{error}");
            }
            assert!(begun.elapsed() < Duration::from_secs(60));
        }
        world.barrier().unwrap();
    }
    // One that is done takes nothing from the others.
    for _ in 0..20 {
        Mpi::world().unwrap().barrier().unwrap();
    }
}

/// Rank 1 sleeps past the timeout in place of a call: all are told, itself included, and have changed nothing.
pub(crate) fn a_late_rank_is_named(world: Mpi) {
    const TIMEOUT: Duration = Duration::from_secs(10);
    let group = Arc::new(world.timeout(TIMEOUT));
    let (net, rows, rank) = (Net::new(DType::F16), part(&*group), group.rank());
    let builder = RobustOptimizer::builder(&net.params).constraint(Ftp::default()).max_grad_norm(0.1);
    let mut optimizer = builder.communicator(group.clone()).divide_state().build().unwrap();
    optimizer.backward_step(&net.loss(11, rows.clone()).unwrap()).unwrap();
    let before = (net.bits(), optimizer.state().unwrap(), optimizer.steps());
    if rank == 1 {
        thread::sleep(TIMEOUT * 3 / 2);
    }
    let begun = Instant::now();
    let error = optimizer.backward_step(&net.loss(12, rows).unwrap()).unwrap_err().to_string();
    assert!(error.contains("rank 1 did not answer within 10s"), "{error}");
    assert!((net.bits(), optimizer.state().unwrap(), optimizer.steps()) == before);
    assert!(begun.elapsed() < 3 * TIMEOUT);
    // So it stays, and nobody waits again.
    let begun = Instant::now();
    assert!(group.barrier().unwrap_err().to_string().contains("rank 1 did not answer"));
    assert!(begun.elapsed() < TIMEOUT);
}
