//! The example as a user starts it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The binary beside this test's own: without a selection, `cargo test` builds examples before it runs tests.
fn binary() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let path = own.parent().unwrap().parent().unwrap().join("examples/domainnet_mini");
    let path = path.with_extension(std::env::consts::EXE_EXTENSION);
    assert!(path.exists(), "{} is missing: `cargo build -p tpgm-examples --examples`", path.display());
    path
}

fn start(out: &Path, options: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.arg("--quick").arg("--out").arg(out).args(options);
    command
}

fn text(output: &Output) -> String {
    let text =
        [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned()).concat();
    assert!(output.status.success(), "{text}");
    text
}

#[test]
fn the_quick_run_leaves_tables_plots_logs_and_checkpoints() {
    let folder = tempfile::tempdir().unwrap();
    let text = text(&start(folder.path(), &[]).output().unwrap());
    assert!(text.contains("get a gradient"), "{text}");
    let table = std::fs::read_to_string(folder.path().join("table.md")).unwrap();
    for word in
        ["linear probe", "fine-tuning", "LP-FT", "L2-SP", "fixed radius", "WiSE-FT", "TPGM post hoc", "TPGM"]
    {
        assert!(table.contains(word), "{word}: {table}");
    }
    for word in ["FTP", "SPD", "DiGraP", "real (ID)", "sketch", "quickdraw", "OOD mean", "seconds"] {
        assert!(table.contains(word), "{word}: {table}");
    }
    assert_eq!(table.lines().count(), 2 + 11);
    for file in
        ["table.csv", "samples.svg", "frontier.svg", "radius_tpgm.svg", "ratio_ftp.svg", "config.json"]
    {
        assert!(folder.path().join(file).exists(), "{file}");
    }
    let run = folder.path().join("runs/FTP_lr0.001_1_seed0");
    for file in ["log.jsonl", "tensorboard", "checkpoints", "model.safetensors", "outcome.json"] {
        assert!(run.join(file).exists(), "{file}");
    }
}

/// Sends a real Ctrl-C.
#[cfg(unix)]
#[test]
fn ctrl_c_saves_and_says_how_to_go_on() {
    use std::process::Stdio;
    use std::time::Duration;

    let folder = tempfile::tempdir().unwrap();
    let steps = ["--steps", "2000"];
    let child = start(folder.path(), &steps).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let log = folder.path().join("runs/fine-tuning_lr0.001_seed0/log.jsonl");
    for _ in 0..600 {
        if log.exists() {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let sent = Command::new("kill").arg("-INT").arg(child.id().to_string()).status().unwrap();
    assert!(sent.success());
    let text = text(&child.wait_with_output().unwrap());
    assert!(text.contains("stopped and saved") && text.contains("--resume"), "{text}");
    assert!(folder.path().join("runs/fine-tuning_lr0.001_seed0/checkpoints").exists());
    assert!(!folder.path().join("table.md").exists());
}
