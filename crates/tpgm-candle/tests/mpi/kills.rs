//! A process that is killed, while all take steps or save.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use candle_core::{DType, Device, Tensor};
use tpgm_candle::core::Buffer;
use tpgm_candle::distributed::{Communicator, Mpi};
use tpgm_candle::{Checkpoint, Checkpointer, Ftp, RobustOptimizer, StateDict, TrainState};

use super::net::cut;
use super::{Net, part};

/// For a rank that lives and says nothing; long, for a machine with much else to do. One that is gone is named before.
const TIMEOUT: Duration = Duration::from_secs(15);

/// From here on it may be killed.
fn ready(rank: usize) {
    println!("rank {rank} pid {}", std::process::id());
}

/// Takes steps until a rank is lost: then everything is as before the step that failed, and the checkpoint loads.
pub(crate) fn step(folder: &Path, world: Mpi) {
    let group = Arc::new(world.timeout(TIMEOUT));
    // With a tensor that is cut by rows.
    let (net, rows, rank) = (Net::wide(DType::F16), part(&*group), group.rank());
    let builder = cut(RobustOptimizer::builder(&net.params).constraint(Ftp::default()).max_grad_norm(0.1));
    let mut optimizer = builder.communicator(group.clone()).divide_state().build().unwrap();
    let state = |net: &Net, optimizer: &RobustOptimizer| {
        let state = TrainState::new(optimizer.steps()).weights(net.params.values()).unwrap();
        state.state("optimizer", optimizer.state().unwrap()).unwrap()
    };
    let all = |optimizer: &RobustOptimizer| (net.bits(), optimizer.state().unwrap(), optimizer.steps());
    let mut kept = all(&optimizer);
    for step in 0.. {
        if step == 3 {
            Checkpointer::new(folder).save_on_ranks(&state(&net, &optimizer), &*group).unwrap();
            kept = all(&optimizer);
            ready(rank);
        }
        let before = all(&optimizer);
        let loss = net.loss(11 + step % 7, rows.clone()).unwrap();
        if let Err(error) = optimizer.backward_step(&loss) {
            assert!(all(&optimizer) == before);
            let saved = Checkpointer::new(folder).latest_valid().unwrap().unwrap();
            assert!(saved.skipped.is_empty());
            saved.checkpoint.restore(&net.params).unwrap();
            let state = saved.checkpoint.state_where("optimizer", |key| kept.1.contains_key(key)).unwrap();
            assert!((net.bits(), state, saved.checkpoint.step()) == kept);
            println!("rank {rank} after {step} steps: {error}");
            return;
        }
    }
}

const ELEMENTS: usize = 20_000;

fn values(step: u64) -> Vec<f32> {
    (0..ELEMENTS).map(|i| (step as u32 * 1000 + i as u32 % 1000) as f32).collect()
}

fn saved(step: u64, rank: usize) -> TrainState {
    let slot = StateDict::from([(format!("t{rank}/exp_avg"), Buffer::F32(values(step + rank as u64)))]);
    let weights = Tensor::new(values(step), &Device::Cpu).unwrap();
    let state = TrainState::new(step).weights([("w".to_owned(), weights)]).unwrap();
    state.state("optimizer", slot).unwrap()
}

/// Saves until a rank is lost.
pub(crate) fn save(folder: &Path, world: Mpi) {
    let group = world.timeout(TIMEOUT);
    let (rank, checkpoints) = (group.rank(), Checkpointer::new(folder).keep(2));
    for step in 1.. {
        if step == 3 {
            ready(rank);
        }
        if let Err(error) = checkpoints.save_on_ranks(&saved(step, rank), &group) {
            println!("rank {rank} after {} saves: {error}", step - 1);
            return;
        }
    }
}

/// Looks at what a save that was interrupted has left. Says whether something lay there half written.
pub(crate) fn check(folder: &Path, ranks: usize) {
    let temporaries = || {
        let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().starts_with(".tmp-")).count()
    };
    let interrupted = temporaries() > 0;
    let checkpoints = Checkpointer::new(folder).keep(2);
    let found = checkpoints.latest_valid().unwrap().expect("some were saved");
    assert!(found.skipped.is_empty(), "{:?}", found.skipped);
    let whole = |checkpoint: &Checkpoint| {
        let step = checkpoint.step();
        assert_eq!(checkpoint.ranks(), ranks);
        let weights = checkpoint.weights(&Device::Cpu).unwrap()["w"].to_vec1::<f32>().unwrap();
        assert!(weights == values(step));
        let state = checkpoint.state("optimizer").unwrap();
        for rank in 0..ranks {
            assert!(state[&format!("t{rank}/exp_avg")] == Buffer::F32(values(step + rank as u64)));
        }
    };
    for entry in checkpoints.list().unwrap() {
        whole(&Checkpoint::load(entry.path).unwrap());
    }
    let last = found.checkpoint.step();
    drop(found);
    checkpoints.save(&saved(last + 1, 0)).unwrap();
    assert_eq!(temporaries(), 0, "the next save cleans up");
    println!("step {last} interrupted {interrupted}");
}
