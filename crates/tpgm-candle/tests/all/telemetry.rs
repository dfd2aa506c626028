//! Telemetry files, as others read them.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};
use tpgm_candle::core::TensorScalars;
use tpgm_candle::{JsonlWriter, Telemetry, TensorBoardWriter};

fn tensors() -> Vec<(String, TensorScalars)> {
    let scalars = |norm, radius| TensorScalars {
        norm,
        radius,
        ratio: radius / norm,
        fire_rate: 0.25,
        ..TensorScalars::default()
    };
    vec![("body.weight".into(), scalars(2.0, 1.0)), ("head.weight".into(), scalars(4.0, 3.0))]
}

fn lines(path: &Path) -> Vec<Value> {
    fs::read_to_string(path).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn jsonl_has_one_object_per_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("new/log.jsonl");
    let mut log = JsonlWriter::create(&path).unwrap();
    log.scalar("loss", 1, 0.1).unwrap();
    log.scalar("a \"quoted\"\ntag", 1, f64::NAN).unwrap();
    log.scalar("loss", 2, f64::INFINITY).unwrap();
    log.tensors(2, &tensors()[1..]).unwrap();
    log.flush().unwrap();
    assert_eq!(
        lines(&path),
        [
            json!({"step": 1, "tag": "loss", "value": 0.1}),
            json!({"step": 1, "tag": "a \"quoted\"\ntag", "value": null}),
            json!({"step": 2, "tag": "loss", "value": null}),
            json!({"step": 2, "tensor": "head.weight", "norm": 4.0, "radius": 3.0, "ratio": 0.75, "fire_rate": 0.25}),
        ]
    );
}

#[test]
fn jsonl_goes_on_without_repeating_steps() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log.jsonl");
    let mut log = JsonlWriter::resume(&path, 1).unwrap();
    for step in 1..=5 {
        log.scalar("loss", step, step as f64).unwrap();
    }
    drop(log);
    // As a killed process leaves it.
    let mut text = fs::read_to_string(&path).unwrap();
    text.push_str(r#"{"step":3,"tag":"lo"#);
    fs::write(&path, text).unwrap();

    let mut log = JsonlWriter::resume(&path, 4).unwrap();
    log.scalar("loss", 4, 40.0).unwrap();
    log.flush().unwrap();
    let found: Vec<_> = lines(&path).iter().map(|l| (l["step"].as_u64(), l["value"].as_f64())).collect();
    assert_eq!(found, [(1, 1.0), (2, 2.0), (3, 3.0), (4, 40.0)].map(|(s, v)| (Some(s), Some(v))));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn jsonl_leaves_other_files_alone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notes.txt");
    let notes = "{\"step\":1,\"tag\":\"x\",\"value\":0}\nbuy milk\n";
    fs::write(&path, notes).unwrap();
    let error = JsonlWriter::resume(&path, 4).unwrap_err();
    assert!(matches!(error, tpgm_candle::telemetry::Error::TelemetryLine { line: 2, .. }), "{error}");
    assert!(error.to_string().contains("notes.txt, line 2"), "{error}");
    assert_eq!(fs::read_to_string(&path).unwrap(), notes);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn errors_name_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    for error in [
        JsonlWriter::create(file.join("log.jsonl")).unwrap_err(),
        TensorBoardWriter::create(file.join("tensorboard")).unwrap_err(),
    ] {
        assert!(error.to_string().contains(file.to_str().unwrap()), "{error}");
    }
    #[cfg(target_os = "linux")]
    {
        let mut full = JsonlWriter::create("/dev/full").unwrap();
        full.scalar("loss", 1, 0.5).unwrap();
        let error = full.flush().unwrap_err().to_string();
        assert!(error.starts_with("/dev/full: No space left"), "{error}");
    }
}

#[test]
fn several_writers_get_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let paths = [dir.path().join("a.jsonl"), dir.path().join("b.jsonl")];
    let [a, b] = paths.clone().map(|path| JsonlWriter::create(path).unwrap());
    let mut log = (a, Some((b, None::<JsonlWriter>)));
    log.scalar("loss", 1, 0.5).unwrap();
    log.tensors(1, &tensors()).unwrap();
    log.flush().unwrap();
    assert_eq!(lines(&paths[0]).len(), 3);
    assert_eq!(lines(&paths[0]), lines(&paths[1]));
}

/// Reads every scalar of a run as TensorBoard itself does.
#[test]
fn tensorboard_reads_what_was_written() {
    let Ok(python) = std::env::var("TPGM_TENSORBOARD_PYTHON") else {
        println!("skipped: TPGM_TENSORBOARD_PYTHON does not name a Python that has tensorboard");
        return;
    };
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");

    let mut first = TensorBoardWriter::create(&run).unwrap();
    for step in 0..=400 {
        first.scalar("loss", step, 1.0 / (1.0 + step as f64)).unwrap();
    }
    first.scalar("accuracy/ü", 3_000_000_000, f64::NAN).unwrap();
    first.scalar("lr", 1, f64::INFINITY).unwrap();
    first.tensors(7, &tensors()).unwrap();
    drop(first);
    // Goes on from step 299 (twice): what the first file has from step 300 on is taken back, the far NaN too.
    for value in [10.0, 20.0] {
        let mut again = TensorBoardWriter::resume(&run, 300).unwrap();
        again.scalar("loss", 300, value).unwrap();
        again.flush().unwrap();
    }
    let mut other = TensorBoardWriter::create(dir.path().join("other")).unwrap();
    other.scalar("accuracy/ü", 3_000_000_000, f64::NAN).unwrap();
    drop(other);

    let read = |folder: &Path| {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/read_tensorboard.py");
        let output = Command::new(&python).arg(script).arg(folder).env("PYTHONIOENCODING", "utf-8").output();
        let output = output.unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let mut expected = String::new();
    for step in 0..300 {
        expected += &format!("loss {step} {:?}\n", f64::from(1.0 / (1.0 + step as f64) as f32));
    }
    expected += "loss 300 20.0\n";
    expected += "lr 1 inf\n";
    for (tag, body, head) in
        [("fire_rate", 0.25, 0.25), ("norm", 2.0, 4.0), ("radius", 1.0, 3.0), ("ratio", 0.5, 0.75)]
    {
        expected += &format!("{tag}/body.weight 7 {body:?}\n{tag}/head.weight 7 {head:?}\n");
    }
    let sorted = |text: &str| {
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    };
    assert_eq!(sorted(&read(&run)), sorted(&expected));
    assert_eq!(read(&dir.path().join("other")), "accuracy/ü 3000000000 nan\n");
}
