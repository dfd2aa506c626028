//! What goes wrong on one rank is an error on all of them, and never a wait without end.

use std::sync::{Arc, Barrier};
use std::thread;

use candle_core::{DType, Device, Tensor, Var};
use tpgm_candle::distributed::{Communicator, InProcess, RankProblem};
use tpgm_candle::{
    Error, Ftp, Param, Params, RobustOptimizer, TpgmConfig, audit, distributed, memory, params,
};

use super::{Net, ROWS, numbers, part, ranks, tensor};

#[test]
fn a_nan_on_one_rank_is_refused_by_all() {
    let results = ranks(3, |communicator| {
        let (net, rank, rows) = (Net::new(DType::F32), communicator.rank(), part(&communicator));
        let builder = RobustOptimizer::builder(&net.params).constraint(Ftp::default());
        let mut optimizer = builder.communicator(Arc::new(communicator)).build().unwrap();
        let before = net.bits();
        let mut grads = net.loss(11, rows.clone()).unwrap().backward().unwrap();
        if rank == 1 {
            grads.insert(&net.vars[3], Tensor::new(&[0.0f32, f32::NAN, 0.0, 0.0], &Device::Cpu).unwrap());
        }
        let error = Error::from(optimizer.step(&grads).unwrap_err());
        let core = tpgm_candle::core::Error::NonFiniteGradient { tensor: "b.bias".to_owned(), count: 1 };
        assert!(matches!(&error, Error::Core(error) if *error == core), "{error}");
        assert_eq!(net.bits(), before);
        // The group is as good as before.
        optimizer.backward_step(&net.loss(11, rows).unwrap()).unwrap();
        assert_ne!(net.bits(), before);
        net.bits()
    });
    assert!(results.iter().all(|bits| *bits == results[0]));
}

#[test]
fn a_rank_that_fails_before_the_call_tells_the_others_why() {
    let net = |communicator| {
        let net = Net::new(DType::F32);
        let builder = RobustOptimizer::builder(&net.params).constraint(TpgmConfig::default());
        let optimizer = builder.communicator(Arc::new(communicator)).build().unwrap();
        (net, optimizer)
    };
    let refused = |error: &Error, expected: &str| match error {
        Error::Distributed(distributed::Error::Ranks(RankProblem::Refused { rank: 1, reason })) => {
            assert!(reason.contains(expected), "{reason}");
        }
        error => panic!("{error}"),
    };
    ranks(2, |communicator: InProcess| {
        let (rank, rows) = (communicator.rank(), part(&communicator));
        let (net, mut optimizer) = net(communicator);
        let before = net.bits();
        let factor = if rank == 1 { f64::NAN } else { 1.0 };
        let loss = || net.loss(11, rows.clone());
        let error = Error::from(optimizer.backward_step(&(loss().unwrap() * factor).unwrap()).unwrap_err());
        match rank {
            1 => assert!(matches!(error, Error::Audit(audit::Error::NonFiniteLoss { .. })), "{error}"),
            _ => refused(&error, "the loss is NaN"),
        }
        assert_eq!((net.bits(), optimizer.steps()), (before, 0));

        let mut grads = loss().unwrap().backward().unwrap();
        if rank == 1 {
            grads.insert(&net.vars[1], tensor(1, &[2]));
        }
        let error = Error::from(optimizer.step(&grads).unwrap_err());
        match rank {
            1 => assert!(matches!(error, Error::Params(params::Error::ShapeMismatch { .. })), "{error}"),
            _ => refused(&error, "tensor `a.bias`: its gradient has shape [2]"),
        }

        // A projection update in which one rank's closure fails leaves the weights as they are.
        optimizer.backward_step(&loss().unwrap()).unwrap();
        let before = net.bits();
        let error = optimizer.tpgm().unwrap().update_n(2, |i| match (rank, i) {
            (1, 1) => candle_core::bail!("no more held-out data"),
            _ => loss(),
        });
        match rank {
            1 => assert!(error.unwrap_err().to_string().contains("no more held-out data")),
            _ => refused(&error.unwrap_err().into(), "no more held-out data"),
        }
        assert_eq!(net.bits(), before);
        optimizer.tpgm().unwrap().update(loss).unwrap();
    });
}

#[test]
fn a_rank_that_leaves_or_panics_is_an_error_on_the_others() {
    let results: Vec<Option<distributed::Error>> = thread::scope(|scope| {
        let thread = |communicator: InProcess| {
            let rank = communicator.rank();
            scope.spawn(move || {
                communicator.barrier().unwrap();
                if rank == 2 {
                    std::panic::resume_unwind(Box::new("out of memory"));
                }
                let error = communicator.barrier().unwrap_err();
                // So it stays.
                assert_eq!(communicator.barrier().unwrap_err().to_string(), error.to_string());
                error
            })
        };
        let threads: Vec<_> = InProcess::group(3).into_iter().map(thread).collect();
        threads.into_iter().map(|thread| thread.join().ok()).collect()
    });
    assert!(results[2].is_none());
    for error in results.into_iter().flatten() {
        assert!(matches!(error, distributed::Error::Ranks(RankProblem::Left { rank: 2 })), "{error}");
    }
}

#[test]
fn a_rank_that_is_done_takes_nothing_from_the_others() {
    for _ in 0..200 {
        let met = ranks(2, |communicator| communicator.barrier());
        met.into_iter().for_each(|met| met.unwrap());
    }
}

fn differing(tensors: impl Fn(usize) -> Vec<(&'static str, Tensor)> + Sync) -> (String, String, String) {
    let errors = ranks(2, |communicator| {
        let tensors = tensors(communicator.rank());
        let before: Vec<_> = tensors.iter().map(|(_, tensor)| numbers(tensor)).collect();
        let named: Vec<_> = tensors.iter().map(|(name, tensor)| (*name, tensor)).collect();
        let error = communicator.all_reduce_mean(&named).unwrap_err();
        assert_eq!(before, tensors.iter().map(|(_, tensor)| numbers(tensor)).collect::<Vec<_>>());
        communicator.barrier().unwrap();
        error
    });
    assert_eq!(errors[0].to_string(), errors[1].to_string());
    match errors.into_iter().next().unwrap() {
        distributed::Error::Ranks(RankProblem::Differs { tensor, rank: 1, got, expected }) => {
            (tensor, got, expected)
        }
        error => panic!("{error}"),
    }
}

#[test]
fn different_sets_are_an_error_that_names_the_tensor() {
    let zeros = |shape: &[usize], dtype| Tensor::zeros(shape, dtype, &Device::Cpu).unwrap();
    let own = |x: &str, got: &str, expected: &str| (x.to_owned(), got.to_owned(), expected.to_owned());
    let a = || ("a", zeros(&[2], DType::F32));
    let b = || ("b", zeros(&[2, 3], DType::F32));
    let missing = differing(|rank| if rank == 0 { vec![a(), b()] } else { vec![b()] });
    assert_eq!(missing, own("a", "missing", "f32 [2]"));
    let more = differing(|rank| if rank == 0 { vec![a()] } else { vec![a(), b()] });
    assert_eq!(more, own("b", "f32 [2, 3]", "missing"));
    let shape = differing(|rank| vec![a(), ("b", zeros(&[2, 3 + rank], DType::F32))]);
    assert_eq!(shape, own("b", "f32 [2, 4]", "f32 [2, 3]"));
    let dtype = differing(|rank| vec![("a", zeros(&[2], [DType::F32, DType::BF16][rank])), b()]);
    assert_eq!(dtype, own("a", "bf16 [2]", "f32 [2]"));
    let order = differing(|rank| if rank == 0 { vec![a(), b()] } else { vec![b(), a()] });
    assert_eq!(order, own("a", "at another position of the list", "at position 0"));

    // A gradient that only one rank has.
    ranks(2, |communicator| {
        let (net, rank) = (Net::new(DType::F32), communicator.rank());
        let builder = RobustOptimizer::builder(&net.params).communicator(Arc::new(communicator));
        let mut optimizer = builder.build().unwrap();
        let mut grads = net.loss(11, 0..ROWS).unwrap().backward().unwrap();
        if rank == 1 {
            grads.remove(&net.vars[2]);
        }
        let error = optimizer.step(&grads).unwrap_err().to_string();
        let expected = "tensor `b.weight` is missing on rank 1, but f32 [4, 16] on rank 0; \
                        nothing was changed on any rank";
        assert_eq!(error, expected);
    });
}

#[test]
fn different_anchors_are_an_error_that_names_the_tensor() {
    ranks(2, |communicator| {
        let (net, rank) = (Net::new(DType::F32), communicator.rank());
        // The weights are those of rank 0 then, but an anchor was taken before.
        net.vars[1].set(&(net.vars[1].as_tensor() + rank as f64).unwrap()).unwrap();
        let vars = net.params.all().into_iter().map(|param| (param.name().to_owned(), param.var().clone()));
        let params = vars.map(|(name, var)| Param::anchored_here(name, var).unwrap());
        let params = Params::from_params(params).unwrap();
        let error =
            RobustOptimizer::builder(&params).communicator(Arc::new(communicator)).build().err().unwrap();
        let expected = "tensor `a.bias` is anchored at one value on rank 1, but at another on rank 0";
        assert!(error.to_string().contains(expected), "{error}");
    });
}

#[test]
fn different_calls_and_shared_memory_are_errors() {
    let errors = ranks(2, |communicator| match communicator.rank() {
        0 => communicator.barrier().unwrap_err(),
        _ => communicator.broadcast(&[]).unwrap_err(),
    });
    let expected = "rank 1 called `share` where rank 0 called `barrier`; nothing was changed on any rank";
    assert!(errors.iter().all(|error| error.to_string() == expected), "{errors:?}");

    let var = Var::new(&[1.0f32], &Device::Cpu).unwrap();
    for error in ranks(2, |communicator| communicator.broadcast(&[("w", &var)]).unwrap_err()) {
        let distributed::Error::Ranks(RankProblem::Shared { tensor, rank: 1 }) = error else {
            panic!("{error}")
        };
        assert_eq!(tensor, "w");
    }

    // Nor may ranks have different rows of one storage.
    let rows = Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap();
    let calls: [fn(&InProcess, &Tensor) -> distributed::Result<()>; 3] = [
        |ranks, row| ranks.all_reduce_mean(&[("row", row)]),
        |ranks, row| ranks.reduce_mean(&[("row", row)], &[0]),
        |ranks, row| ranks.broadcast(&[("row", row)]),
    ];
    for call in calls {
        let errors = ranks(2, |communicator| {
            let row = rows.narrow(0, communicator.rank(), 1).unwrap();
            call(&communicator, &row).unwrap_err()
        });
        for error in errors {
            assert!(
                matches!(&error, distributed::Error::Ranks(RankProblem::Shared { tensor, rank: 1 }) if tensor == "row"),
                "{error}"
            );
        }
    }
    // One rank may.
    ranks(2, |communicator| {
        let (rank, rows) = (communicator.rank(), tensor(communicator.rank() as u64 + 1, &[2, 3]));
        let [first, second] = [0, 1].map(|row| rows.narrow(0, row, 1).unwrap());
        communicator.share(&[("first", &first), ("second", &second)], &[0, 1]).unwrap();
        let row = |seed, row| numbers(&tensor(seed, &[2, 3]).narrow(0, row, 1).unwrap());
        assert_eq!(numbers(&rows), [row(1, 0), row(2, 1)].concat(), "rank {rank}");
    });

    // Integers have no mean; the other rank is told.
    let errors = ranks(2, |communicator| {
        let dtype = [DType::F32, DType::U32][communicator.rank()];
        let tensor = Tensor::zeros(2, dtype, &Device::Cpu).unwrap();
        communicator.all_reduce_mean(&[("t", &tensor)]).unwrap_err()
    });
    assert!(matches!(errors[1], distributed::Error::Memory(memory::Error::ElementType { .. })));
    assert!(
        matches!(&errors[0], distributed::Error::Ranks(RankProblem::Refused { rank: 1, reason }) if reason.contains("`t`"))
    );
}

#[test]
fn two_calls_of_one_rank_at_a_time_are_an_error() {
    let mut group = InProcess::group(2);
    let (second, first) = (group.pop().unwrap(), Arc::new(group.pop().unwrap()));
    let both = Barrier::new(2);
    let results = thread::scope(|scope| {
        let call = || {
            both.wait();
            first.barrier()
        };
        let threads = [scope.spawn(call), scope.spawn(call)];
        // One of the two is refused at once; the other waits for the second rank.
        while !threads.iter().any(|thread| thread.is_finished()) {
            thread::yield_now();
        }
        second.barrier().unwrap();
        threads.map(|thread| thread.join().unwrap())
    });
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
}
