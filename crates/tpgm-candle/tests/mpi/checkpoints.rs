//! A run that goes on with another number of processes.

use std::path::Path;

use candle_core::DType;
use tpgm_candle::{Checkpointer, Ema, Ftp, OptimizerBuilder, RobustOptimizer, TrainState};

use super::net::cut;
use super::{Net, ROWS, Ranks};

/// All ranks work on the same rows, so that their number changes nothing: the mean of equal f16 numbers, taken in f32, is that
/// number. Every second checkpoint has a pending batch.
fn builder(net: &Net) -> OptimizerBuilder {
    let builder = RobustOptimizer::builder(&net.params).constraint(Ftp::default());
    cut(builder).accumulate(2).max_grad_norm(0.3)
}

fn calls(optimizer: &mut RobustOptimizer, ema: &mut Ema, net: &Net, from: u64) {
    for call in from..from + 3 {
        optimizer.backward_step(&net.loss(11 + call, 0..ROWS).unwrap()).unwrap();
        ema.update().unwrap();
    }
}

/// Loads the newest checkpoint, unless it begins, takes three batches and saves.
pub(crate) fn go_on(folder: &Path, from: u64, ranks: Ranks) {
    let (net, checkpoints) = (Net::wide(DType::F16), Checkpointer::new(folder));
    let mut optimizer = builder(&net).communicator(ranks.clone()).divide_state().build().unwrap();
    let mut ema = Ema::divided(&net.params, 0.9, ranks.clone()).unwrap();
    if from > 0 {
        let found = checkpoints.latest_valid().unwrap().unwrap();
        assert!(found.skipped.is_empty() && found.checkpoint.step() == from);
        found.checkpoint.restore(&net.params).unwrap();
        let state = found.checkpoint.state_where("optimizer", |key| optimizer.takes(key)).unwrap();
        optimizer.resume(&found.checkpoint.value("config").unwrap(), &state).unwrap();
        ema.load_state(&found.checkpoint.state("ema").unwrap()).unwrap();
    }
    ranks.barrier().unwrap(); // All have read before one saves.
    calls(&mut optimizer, &mut ema, &net, from);
    let state = TrainState::new(from + 3).weights(net.params.values()).unwrap();
    let own = optimizer.state().unwrap();
    // Of three ranks the first has another tensor, which is as much.
    let has_rows = own.keys().any(|key| key.starts_with("a.weight["));
    assert_eq!(has_rows, ranks.size() == 2 || ranks.rank() > 0);
    let state = state.state("optimizer", own).unwrap();
    let state = state.state("ema", ema.state().unwrap()).unwrap();
    let state = state.value("config", optimizer.config()).unwrap();
    let path = checkpoints.save_on_ranks(&state, &*ranks).unwrap();
    assert_eq!(path.is_some(), ranks.rank() == 0);
    ranks.barrier().unwrap();
    assert_eq!(checkpoints.latest_valid().unwrap().unwrap().checkpoint.ranks(), ranks.size());
}

/// What is saved there is what a run without ranks and without checkpoints has.
pub(crate) fn compare(folder: &Path) {
    let saved = Checkpointer::new(folder).latest_valid().unwrap().unwrap().checkpoint;
    let net = Net::wide(DType::F16);
    let (mut optimizer, mut ema) = (builder(&net).build().unwrap(), Ema::new(&net.params, 0.9).unwrap());
    assert!(saved.step() == 12, "{}", saved.step());
    (0..4).for_each(|round| calls(&mut optimizer, &mut ema, &net, 3 * round));
    // One rank wrote it, which cuts nothing.
    assert_eq!(saved.state("optimizer").unwrap(), optimizer.state().unwrap());
    assert_eq!(saved.state("ema").unwrap(), ema.state().unwrap());
    let loaded = Net::wide(DType::F16);
    saved.restore(&loaded.params).unwrap();
    assert_eq!(loaded.bits(), net.bits());
    println!("the same bits");
}
