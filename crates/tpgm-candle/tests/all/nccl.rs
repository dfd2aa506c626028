//! Ranks with a GPU each. Every test prints why it skips where there are no two GPUs.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // helpers of tests

use std::sync::Arc;
use std::thread;

use candle_core::{DType, Device, Tensor, Var};
use tpgm_candle::distributed::{Communicator, GroupId, Nccl, RankProblem};
use tpgm_candle::{AdamW, Ftp, Param, Params, RobustOptimizer};

/// Runs two ranks in threads of their own, unless there are no two GPUs.
fn two_ranks<R: Send>(work: impl Fn(&Device, Nccl) -> R + Sync) -> Option<[R; 2]> {
    let devices = [0, 1].map(Device::new_cuda);
    if let Some(error) = devices.iter().find_map(|device| device.as_ref().err()) {
        println!("skipped: no two GPUs ({error})");
        return None;
    }
    let id = GroupId::from_bytes(GroupId::new().unwrap().to_bytes());
    let work = &work;
    thread::scope(|scope| {
        let rank = |rank: usize| {
            scope.spawn(move || {
                // A device of its own, because its stream belongs to the thread.
                let device = Device::new_cuda(rank).unwrap();
                let communicator = Nccl::new(&device, rank, 2, id).unwrap();
                work(&device, communicator)
            })
        };
        Some([rank(0), rank(1)].map(|thread| thread.join().unwrap()))
    })
}

#[test]
fn means_and_broadcasts() {
    for dtype in [DType::F64, DType::F32, DType::F16, DType::BF16] {
        let results = two_ranks(|device, communicator| {
            let rank = communicator.rank() as f64;
            let tensor = |x: f64| {
                Tensor::new(&[x, 4.0 * x, -3.0], device).unwrap().to_dtype(dtype).unwrap().copy().unwrap()
            };
            let (mean, same) = (tensor(1.0 + 2.0 * rank), tensor(rank));
            communicator.all_reduce_mean(&[("mean", &mean)]).unwrap();
            communicator.broadcast(&[("same", &same)]).unwrap();
            communicator.barrier().unwrap();
            [mean, same].map(|t| t.to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap())
        });
        let Some(results) = results else { return };
        for [mean, same] in results {
            assert_eq!((mean, same), (vec![2.0, 8.0, -3.0], vec![0.0, 0.0, -3.0]), "{dtype:?}");
        }
    }
}

#[test]
fn two_ranks_end_with_the_same_bits() {
    let trained = two_ranks(|device, communicator| {
        let rank = communicator.rank() as f64;
        let start = Tensor::arange(0f32, 12.0, device).unwrap().reshape((3, 4)).unwrap();
        let var = Var::from_tensor(&(start * 0.1).unwrap()).unwrap();
        let params = Params::from_params([Param::anchored_here("w", var.clone()).unwrap()]).unwrap();
        let builder = RobustOptimizer::builder(&params).rule(AdamW::default().lr(0.01));
        let builder = builder.constraint(Ftp::default()).max_grad_norm(1.0);
        let mut optimizer = builder.communicator(Arc::new(communicator)).build().unwrap();
        for step in 0..5 {
            let target = (var.detach() * (rank + 0.3 * f64::from(step))).unwrap();
            let loss = (var.as_tensor() - target).unwrap().sqr().unwrap().sum_all().unwrap();
            optimizer.backward_step(&loss).unwrap();
        }
        var.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f32::to_bits).collect::<Vec<_>>()
    });
    let Some([first, second]) = trained else { return };
    assert_eq!(first, second);
}

#[test]
fn what_differs_is_an_error_on_both() {
    let errors = two_ranks(|device, communicator| {
        let zeros = |len: usize| Tensor::zeros(len, DType::F32, device).unwrap();
        let rank = communicator.rank();
        let (a, b) = (zeros(2), zeros(3 + rank));
        let differs = communicator.all_reduce_mean(&[("a", &a), ("b", &b)]).unwrap_err();
        let refused = match rank {
            0 => communicator.all_reduce_mean(&[("a", &a)]).unwrap_err(),
            _ => {
                let here = Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap();
                communicator.all_reduce_mean(&[("a", &here)]).unwrap_err()
            }
        };
        communicator.barrier().unwrap();
        (differs, refused)
    });
    let Some([(differs, refused), (_, own)]) = errors else { return };
    let tpgm_candle::distributed::Error::Ranks(RankProblem::Unlike { position: 1, rank: 0, here }) = differs
    else {
        panic!("{differs}")
    };
    assert!(here.contains("`b`, f32 [3]"), "{here}");
    assert!(
        matches!(refused, tpgm_candle::distributed::Error::Ranks(RankProblem::Refused { rank: 1, .. })),
        "{refused}"
    );
    assert!(
        matches!(own, tpgm_candle::distributed::Error::Engine(tpgm_candle::engine::Error::Device { .. })),
        "{own}"
    );
}
