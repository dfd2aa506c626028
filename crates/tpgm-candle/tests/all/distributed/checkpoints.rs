//! Checkpoints that several ranks write at once.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use tpgm_candle::core::Buffer;
use tpgm_candle::distributed::{Communicator, InProcess};
use tpgm_candle::{
    Checkpoint, Checkpointer, Ema, Ftp, OptimizerBuilder, RobustOptimizer, StateDict, TrainState,
};

use super::divided_failures::Leaving;
use super::{Net, ROWS, ranks};

const DTYPE: DType = DType::F16;

fn builder(net: &Net) -> OptimizerBuilder {
    RobustOptimizer::builder(&net.params).constraint(Ftp::default()).accumulate(2).max_grad_norm(0.3)
}

/// Three calls, so that every second checkpoint has a pending batch. All ranks work on the same rows, so that their number
/// changes nothing: the mean of equal f16 numbers, taken in f32, is that number.
fn calls(optimizer: &mut RobustOptimizer, ema: &mut Ema, net: &Net, from: u64) {
    for call in from..from + 3 {
        optimizer.backward_step(&net.loss(11 + call, 0..ROWS).unwrap()).unwrap();
        ema.update().unwrap();
    }
}

fn resume(saved: &Checkpoint, net: &Net, optimizer: &mut RobustOptimizer, ema: &mut Ema) {
    saved.restore(&net.params).unwrap();
    let state = saved.state_where("optimizer", |key| optimizer.takes(key)).unwrap();
    optimizer.resume(&saved.value("config").unwrap(), &state).unwrap();
    ema.load_state(&saved.state("ema").unwrap()).unwrap();
}

fn state(step: u64, net: &Net, optimizer: &RobustOptimizer, ema: &Ema) -> TrainState {
    let state = TrainState::new(step).weights(net.params.values()).unwrap();
    let state = state.state("optimizer", optimizer.state().unwrap()).unwrap();
    state.state("ema", ema.state().unwrap()).unwrap().value("config", optimizer.config()).unwrap()
}

#[test]
fn checkpoints_go_from_any_number_of_ranks_to_any_other() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = Checkpointer::new(folder.path());
    for (size, from) in [(1, 0), (2, 3), (3, 6), (1, 9)] {
        ranks(size, |communicator| {
            let (net, rank) = (Net::new(DTYPE), communicator.rank());
            let communicator = Arc::new(communicator);
            let mut optimizer =
                builder(&net).communicator(communicator.clone()).divide_state().build().unwrap();
            let mut ema = Ema::divided(&net.params, 0.9, communicator.clone()).unwrap();
            if from > 0 {
                let found = checkpoints.latest_valid().unwrap().unwrap();
                assert!(found.skipped.is_empty() && found.checkpoint.step() == from);
                resume(&found.checkpoint, &net, &mut optimizer, &mut ema);
            }
            communicator.barrier().unwrap(); // All have read before one saves.
            calls(&mut optimizer, &mut ema, &net, from);
            let state =
                state(from + 3, &net, &optimizer, &ema).value("rank", &(0.1 + rank as f64 / 3.0)).unwrap();
            let path = checkpoints.save_on_ranks(&state, &*communicator).unwrap();
            assert_eq!(path.is_some(), rank == 0);
        });
        let saved = checkpoints.latest_valid().unwrap().unwrap().checkpoint;
        assert_eq!(saved.ranks(), size);
        for rank in 0..size {
            // To the last bit, of all ranks.
            assert_eq!(saved.value_of_rank::<f64>(rank, "rank").unwrap(), 0.1 + rank as f64 / 3.0);
        }
        assert!(saved.value_of_rank::<f64>(size, "rank").is_err());
    }
    // Undivided, and never saved.
    let (net, whole) = (Net::new(DTYPE), Net::new(DTYPE));
    let (mut optimizer, mut ema) = (builder(&net).build().unwrap(), Ema::new(&net.params, 0.9).unwrap());
    resume(&checkpoints.latest_valid().unwrap().unwrap().checkpoint, &net, &mut optimizer, &mut ema);
    calls(&mut optimizer, &mut ema, &net, 12);
    let (mut expected, mut expected_ema) =
        (builder(&whole).build().unwrap(), Ema::new(&whole.params, 0.9).unwrap());
    (0..5).for_each(|round| calls(&mut expected, &mut expected_ema, &whole, 3 * round));
    assert_eq!(net.bits(), whole.bits());
    assert_eq!(optimizer.state().unwrap(), expected.state().unwrap());
    assert_eq!(ema.state().unwrap(), expected_ema.state().unwrap());
}

#[test]
fn three_ranks_go_on_with_the_bits_of_three() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = Checkpointer::new(folder.path());
    let run = |interrupted: bool| {
        ranks(3, |communicator| {
            let (net, rows) = (Net::new(DTYPE), super::part(&communicator));
            let communicator: Arc<dyn Communicator> = Arc::new(communicator);
            let build = |net: &Net, divided: bool| {
                let builder = builder(net).communicator(communicator.clone());
                if divided { builder.divide_state() } else { builder }.build().unwrap()
            };
            let step = |optimizer: &mut RobustOptimizer, net: &Net, from: u64| {
                for call in from..from + 5 {
                    optimizer.backward_step(&net.loss(11 + call, rows.clone()).unwrap()).unwrap();
                }
            };
            let mut optimizer = build(&net, true);
            step(&mut optimizer, &net, 0);
            if !interrupted {
                step(&mut optimizer, &net, 5);
                return net.bits();
            }
            let state = TrainState::new(5).weights(net.params.values()).unwrap();
            let state = state.state("optimizer", optimizer.state().unwrap()).unwrap();
            checkpoints.save_on_ranks(&state, &*communicator).unwrap();
            // A new model on every rank, whose state is not divided any more.
            let saved = checkpoints.latest_valid().unwrap().unwrap().checkpoint;
            let other = Net::new(DTYPE);
            let mut optimizer = build(&other, false);
            saved.restore(&other.params).unwrap();
            optimizer.load_state(&saved.state("optimizer").unwrap()).unwrap();
            step(&mut optimizer, &other, 5);
            other.bits()
        })
    };
    assert_eq!(run(true), run(false));
}

fn tiny(step: u64, rank: usize) -> TrainState {
    let weights = Tensor::new(&[step as f32, 2.0], &Device::Cpu).unwrap();
    let slots = StateDict::from([(format!("t{rank}/exp_avg"), Buffer::F32(vec![step as f32; 3 + rank]))]);
    TrainState::new(step).weights([("w".to_owned(), weights)]).unwrap().state("optimizer", slots).unwrap()
}

fn check(folder: &Path, step: u64, ranks: usize) {
    let found = Checkpointer::new(folder).latest_valid().unwrap().unwrap();
    assert!(found.skipped.is_empty(), "{:?}", found.skipped);
    assert_eq!((found.checkpoint.step(), found.checkpoint.ranks()), (step, ranks));
    let state = found.checkpoint.state("optimizer").unwrap();
    assert_eq!(state.len(), ranks);
    for rank in 0..ranks {
        assert_eq!(state[&format!("t{rank}/exp_avg")], Buffer::F32(vec![step as f32; 3 + rank]));
    }
    assert_eq!(
        found.checkpoint.weights(&Device::Cpu).unwrap()["w"].to_vec1::<f32>().unwrap()[0],
        step as f32
    );
}

#[test]
fn a_rank_that_dies_anywhere_in_a_save_destroys_nothing() {
    for gone in 0..3 {
        let folder = tempfile::tempdir().unwrap();
        let checkpoints = Checkpointer::new(folder.path()).keep(2);
        ranks(3, |end| checkpoints.save_on_ranks(&tiny(1, end.rank()), &end).unwrap());
        let mut step = 2;
        for left in 0.. {
            let saved = ranks(3, |end| {
                let (rank, end) = (end.rank(), Leaving::new(end));
                if rank == gone {
                    end.after(left);
                }
                match checkpoints.save_on_ranks(&tiny(step, rank), &end) {
                    Ok(_) => true,
                    Err(error) => {
                        let expected = format!("rank {gone} has left the group");
                        assert!(error.to_string().contains(&expected), "{error}");
                        false
                    }
                }
            });
            // Ranks meet when it has begun, when all parts are there, when the whole is, and when old ones are gone.
            if left < 2 {
                check(folder.path(), step - 1, 3);
            } else {
                check(folder.path(), step, 3);
                step += 1;
            }
            if saved == [true; 3] {
                break;
            }
        }
        // The next save is as good as any, and cleans up.
        ranks(3, |end| checkpoints.save_on_ranks(&tiny(step, end.rank()), &end).unwrap());
        check(folder.path(), step, 3);
        let names = fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let names: Vec<String> = names.filter(|name| name != ".lock").collect();
        assert!(names.len() == 2 && names.iter().all(|name| name.starts_with("step-")), "{names:?}");
    }
}

#[test]
fn what_one_rank_cannot_write_is_saved_by_none() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = Checkpointer::new(folder.path());
    ranks(2, |end| checkpoints.save_on_ranks(&tiny(1, end.rank()), &end).unwrap());
    let refused = |work: &(dyn Fn(&InProcess) -> tpgm_candle::checkpoint::Result<()> + Sync)| {
        let errors = ranks(2, |end| work(&end).unwrap_err().to_string());
        check(folder.path(), 1, 2);
        errors
    };
    let errors = refused(&|end| {
        // The ranks are at different steps.
        checkpoints.save_on_ranks(&tiny(2 + end.rank() as u64, end.rank()), end).map(drop)
    });
    assert!(
        errors[1].contains(".tmp-ranks-step-00000003/state-00001-of-00002.safetensors: No such file"),
        "{errors:?}"
    );
    assert!(
        errors[0].contains("rank 1 could not take part") && errors[0].contains("No such file"),
        "{errors:?}"
    );
    let errors = refused(&|end| {
        let state = tiny(2, end.rank());
        let state = if end.rank() == 1 { state.state("ema", StateDict::new()).unwrap() } else { state };
        checkpoints.save_on_ranks(&state, end).map(drop)
    });
    assert!(
        errors[0].contains(
            "rank 0 has sections optimizer, but rank 1 has ema, optimizer; give the same on all ranks"
        ),
        "{errors:?}"
    );
    assert!(errors[1].contains("rank 0 could not take part"), "{errors:?}");
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let errors = refused(&|end| Checkpointer::new(&file).save_on_ranks(&tiny(2, end.rank()), end).map(drop));
    assert!(errors[1].contains("rank 0 could not take part"), "{errors:?}");
}

#[test]
fn damaged_parts_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoints = Checkpointer::new(folder.path());
    let paths = ranks(2, |end| checkpoints.save_on_ranks(&tiny(1, end.rank()), &end).unwrap());
    let path = paths[0].clone().unwrap();
    // Programs that know of one file of state say that they are too old for this.
    assert!(fs::read_to_string(path.join("state.json")).unwrap().contains(r#""version": 2,"#));
    let part = path.join("state-00001-of-00002.safetensors");
    let intact = fs::read(&part).unwrap();
    let mut bytes = intact.clone();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&part, &bytes).unwrap();
    let error = Checkpoint::load(&path).unwrap_err().to_string();
    assert!(error.contains("state-00001-of-00002.safetensors: damaged: its CRC-32C"), "{error}");
    fs::remove_file(&part).unwrap();
    let error = Checkpoint::load(&path).unwrap_err().to_string();
    assert!(error.contains("state-00001-of-00002.safetensors: No such file"), "{error}");
    fs::write(&part, &intact).unwrap();
    Checkpoint::load(&path).unwrap();
    let sums = path.join("checksums.txt");
    let text = fs::read_to_string(&sums).unwrap();
    let without: String =
        text.lines().filter(|line| !line.contains("00001-of")).map(|line| format!("{line}\n")).collect();
    fs::write(&sums, without).unwrap();
    let error = Checkpoint::load(&path).unwrap_err().to_string();
    assert!(error.contains("it has no line for state-00001-of-00002.safetensors"), "{error}");
}
