//! Checkpoints when things go wrong around them: killed processes, full disks, folders that cannot be written.
#![cfg(unix)]
#![allow(clippy::unwrap_used, clippy::print_stdout)] // helpers of tests

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use candle_core::{Device, Tensor};
use tpgm_candle::core::{Buffer, StateDict};
use tpgm_candle::distributed::{Communicator, InProcess};
use tpgm_candle::{Checkpoint, Checkpointer, TrainState};

/// In a child process: the folder to save into.
const DIR: &str = "TPGM_TEST_CHECKPOINT_DIR";
const ELEMENTS: usize = 50_000;

/// A value for every element of every step.
fn value(step: u64, i: usize) -> f32 {
    f32::from_bits((step as u32).wrapping_mul(0x9e37_79b9).wrapping_add(i as u32) & 0x7f7f_ffff)
}

fn values(step: u64) -> Vec<f32> {
    (0..ELEMENTS).map(|i| value(step, i)).collect()
}

fn state(step: u64) -> TrainState {
    let weights = Tensor::new(values(step), &Device::Cpu).unwrap();
    TrainState::new(step)
        .weights([("w".into(), weights)])
        .unwrap()
        .state("optimizer", StateDict::from([("w/exp_avg".into(), Buffer::F32(values(step + 1)))]))
        .unwrap()
        .value("step", &step)
        .unwrap()
}

fn check(checkpoint: &Checkpoint) {
    let step = checkpoint.step();
    let same = |a: &[f32], b: &[f32]| a.iter().map(|x| x.to_bits()).eq(b.iter().map(|x| x.to_bits()));
    assert_eq!(checkpoint.value::<u64>("step").unwrap(), step);
    let weights = checkpoint.weights(&Device::Cpu).unwrap();
    assert!(same(&weights["w"].to_vec1().unwrap(), &values(step)));
    let state = checkpoint.state("optimizer").unwrap();
    let Buffer::F32(exp_avg) = &state["w/exp_avg"] else { panic!("{state:?}") };
    assert!(same(exp_avg, &values(step + 1)));
}

fn temporaries(dir: &Path) -> usize {
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    fs::read_dir(dir).unwrap().map(name).filter(|name| name.starts_with(".tmp-")).count()
}

/// This test program again, running one of its child functions.
fn child(test: &str, dir: &Path, shell: Option<&str>) -> Child {
    let program = std::env::current_exe().unwrap();
    let mut command = match shell {
        None => Command::new(program),
        Some(script) => {
            let mut command = Command::new("sh");
            command.args(["-c", script]).arg(program);
            command
        }
    };
    command.args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"]).env(DIR, dir);
    command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
}

fn child_dir() -> std::path::PathBuf {
    std::env::var_os(DIR).expect("the parent test sets the folder").into()
}

#[test]
#[ignore = "the child of another test"]
fn child_saves_forever() {
    let checkpoints = Checkpointer::new(child_dir()).keep(2);
    let mut step = checkpoints.latest().unwrap().map_or(0, |entry| entry.step);
    loop {
        step += 1;
        checkpoints.save(&state(step)).unwrap();
    }
}

/// What a rank of two saves.
fn part(step: u64, rank: usize) -> TrainState {
    let state = if rank == 0 {
        state(step)
    } else {
        TrainState::new(step).state("optimizer", StateDict::new()).unwrap()
    };
    let slot =
        StateDict::from([(format!("rank{rank}/exp_avg"), Buffer::F32(values(step + 2 + rank as u64)))]);
    state.state("divided", slot).unwrap()
}

fn check_parts(checkpoint: &Checkpoint) {
    check(checkpoint);
    assert_eq!(checkpoint.ranks(), 2);
    let state = checkpoint.state("divided").unwrap();
    for rank in 0..2 {
        let Buffer::F32(slot) = &state[&format!("rank{rank}/exp_avg")] else { panic!("{state:?}") };
        assert!(
            slot.iter()
                .map(|x| x.to_bits())
                .eq(values(checkpoint.step() + 2 + rank).iter().map(|x| x.to_bits()))
        );
    }
}

#[test]
#[ignore = "the child of another test"]
fn child_saves_on_ranks_forever() {
    let checkpoints = Checkpointer::new(child_dir()).keep(2);
    let first = checkpoints.latest().unwrap().map_or(0, |entry| entry.step);
    std::thread::scope(|scope| {
        for end in InProcess::group(2) {
            let checkpoints = &checkpoints;
            scope.spawn(move || {
                for step in first + 1.. {
                    checkpoints.save_on_ranks(&part(step, end.rank()), &end).unwrap();
                }
            });
        }
    });
}

#[test]
fn a_killed_process_leaves_whole_checkpoints() {
    kill("child_saves_forever", 60, check);
}

#[test]
fn killed_ranks_leave_whole_checkpoints() {
    kill("child_saves_on_ranks_forever", 20, check_parts);
}

/// Kills a child function that saves, again and again, and checks what it has left.
fn kill(saves: &str, times: usize, check: impl Fn(&Checkpoint)) {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpointer::new(dir.path()).keep(2);
    let start = Instant::now();
    let (mut kills, mut interrupted, mut newest) = (0, 0, 0);
    // Delays spread over more than the time of a save, in no rhythm with it.
    let mut random = 12345u32;
    while kills < times {
        let mut child = child(saves, dir.path(), None);
        // The clock starts when it has got as far as saving something.
        let before = newest;
        let alive = Instant::now();
        while checkpoints.latest().unwrap().map_or(0, |entry| entry.step) == before {
            assert!(alive.elapsed() < Duration::from_secs(60), "the child saves nothing");
            std::thread::sleep(Duration::from_micros(200));
        }
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        std::thread::sleep(Duration::from_micros(u64::from(random >> 16) % 30_000));
        child.kill().unwrap(); // SIGKILL
        child.wait().unwrap();
        kills += 1;
        interrupted += usize::from(temporaries(dir.path()) > 0);

        let found = checkpoints.latest_valid().unwrap().expect("there is a checkpoint");
        assert!(found.skipped.is_empty(), "{:?}", found.skipped);
        assert!(found.checkpoint.step() > before);
        check(&found.checkpoint);
        newest = found.checkpoint.step();
        for entry in checkpoints.list().unwrap() {
            check(&Checkpoint::load(entry.path).unwrap());
        }
    }
    println!(
        "{kills} kills in {:.1} s, {interrupted} of them while files were written or deleted; {newest} checkpoints",
        start.elapsed().as_secs_f64()
    );
    assert!(interrupted > 0, "no kill hit a save: the test shows nothing");
    checkpoints.save(&state(newest + 1)).unwrap();
    assert_eq!(temporaries(dir.path()), 0, "the next save cleans up");
}

#[test]
#[ignore = "the child of another test"]
fn child_saves_once() {
    let checkpoints = Checkpointer::new(child_dir()).keep(1);
    if let Err(error) = checkpoints.save(&state(2)) {
        eprintln!("save failed: {error}");
    }
}

/// A limit on the size of files stands in for a full disk: the system refuses the same `write`.
#[test]
fn no_space_leaves_the_previous_one() {
    let dir = tempfile::tempdir().unwrap();
    let checkpoints = Checkpointer::new(dir.path()).keep(1);
    checkpoints.save(&state(1)).unwrap();
    // 100 blocks of 512 bytes; the weights have 200 kB. Without the trap the signal would end the child.
    let script = r#"trap '' XFSZ; ulimit -f 100; exec "$0" "$@""#;
    let output = child("child_saves_once", dir.path(), Some(script)).wait_with_output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{message}");
    assert!(message.contains("save failed: "), "{message}");
    assert!(message.contains(".tmp-step-00000002/weights.safetensors: File too large"), "{message}");
    assert_eq!(temporaries(dir.path()), 0);
    assert_eq!(checkpoints.list().unwrap().len(), 1);
    check(&checkpoints.latest_valid().unwrap().unwrap().checkpoint);
}

#[test]
fn folders_that_cannot_be_written_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let error = Checkpointer::new(file.join("checkpoints")).save(&state(1)).unwrap_err();
    assert!(
        matches!(error, tpgm_candle::checkpoint::Error::Files(tpgm_candle::files::Error::Io { .. })),
        "{error}"
    );
    assert!(error.to_string().contains("file/checkpoints: Not a directory"), "{error}");

    let checkpoints = Checkpointer::new(dir.path().join("read-only"));
    checkpoints.save(&state(1)).unwrap();
    let mode = |mode| {
        let permissions = std::os::unix::fs::PermissionsExt::from_mode(mode);
        fs::set_permissions(checkpoints.dir(), permissions).unwrap();
    };
    mode(0o555);
    if fs::write(checkpoints.dir().join("probe"), "").is_ok() {
        println!("skipped: this user may write into read-only folders");
        return;
    }
    let error = checkpoints.save(&state(2)).unwrap_err().to_string();
    assert!(error.contains("read-only/.tmp-step-00000002: Permission denied"), "{error}");
    check(&checkpoints.latest_valid().unwrap().unwrap().checkpoint);
    mode(0o755);
}
