//! The runner of golden cases against folders that are damaged, wrong or merely different.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};
use tpgm_core::DType;
use tpgm_core::testing::golden::{Mode, OracleSubject, Outcome, Report, run_folder};

/// One tensor as it lies in a file.
#[derive(Clone)]
struct Stored {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

type Tensors = BTreeMap<String, Stored>;

/// A folder with a copy of one golden case, under `name`.
struct Folder {
    dir: PathBuf,
    case: &'static str,
}

impl Folder {
    fn new(name: &str, case: &'static str) -> Self {
        let golden: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests", "golden"].iter().collect();
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = fs::remove_dir_all(&dir);
        let folder = Self { dir, case };
        fs::create_dir_all(folder.json().parent().unwrap()).unwrap();
        for extension in ["json", "f64.safetensors", "f32.safetensors"] {
            let file = format!("{case}.{extension}");
            fs::write(folder.dir.join(&file), fs::read(golden.join(&file)).unwrap()).unwrap();
        }
        folder.write_index(&json!({ "cases": [folder.entry()] }));
        folder
    }

    fn entry(&self) -> Value {
        let case = self.case;
        json!({
            "case": case,
            "json": format!("{case}.json"),
            "files": { "f64": format!("{case}.f64.safetensors"), "f32": format!("{case}.f32.safetensors") },
        })
    }

    fn write_index(&self, index: &Value) {
        fs::write(self.dir.join("index.json"), index.to_string()).unwrap();
    }

    fn json(&self) -> PathBuf {
        self.dir.join(format!("{}.json", self.case))
    }

    fn tensors(&self) -> PathBuf {
        self.dir.join(format!("{}.f64.safetensors", self.case))
    }

    fn edit_json(&self, edit: impl FnOnce(&mut Value)) {
        let mut json: Value = serde_json::from_slice(&fs::read(self.json()).unwrap()).unwrap();
        edit(&mut json);
        fs::write(self.json(), json.to_string()).unwrap();
    }

    fn read_tensors(&self) -> Tensors {
        let bytes = fs::read(self.tensors()).unwrap();
        SafeTensors::deserialize(&bytes)
            .unwrap()
            .tensors()
            .into_iter()
            .map(|(name, view)| {
                let stored =
                    Stored { dtype: view.dtype(), shape: view.shape().to_vec(), bytes: view.data().to_vec() };
                (name, stored)
            })
            .collect()
    }

    fn write_tensors(&self, tensors: &Tensors) {
        let views = tensors
            .iter()
            .map(|(name, t)| (name, TensorView::new(t.dtype, t.shape.clone(), &t.bytes).unwrap()));
        fs::write(self.tensors(), safetensors::serialize(views, None).unwrap()).unwrap();
    }

    fn edit_tensors(&self, edit: impl FnOnce(&mut Tensors)) {
        let mut tensors = self.read_tensors();
        edit(&mut tensors);
        self.write_tensors(&tensors);
    }

    fn run(&self) -> Report {
        run_folder(&self.dir, &OracleSubject, None).unwrap()
    }

    /// The report says that something failed, and all of `words`.
    #[track_caller]
    fn expect_failure(&self, words: &[&str]) {
        let report = self.run();
        assert_eq!(report.counts(), (0, 1), "{report}");
        let text = report.to_string();
        for word in words {
            assert!(text.contains(word), "`{word}` is not in:\n{text}");
        }
    }

    #[track_caller]
    fn expect_refusal(&self, words: &[&str]) {
        let error = run_folder(&self.dir, &OracleSubject, None).unwrap_err();
        let text = format!(
            "{error}: {}",
            std::error::Error::source(&error).map_or(String::new(), |e| e.to_string())
        );
        for word in words {
            assert!(text.contains(word), "`{word}` is not in: {text}");
        }
    }
}

#[test]
fn a_copy_of_one_case_passes() {
    let report = Folder::new("copy", "ftp_sgdp/plain").run();
    assert_eq!(report.counts(), (1, 0), "{report}");
    assert!(report.to_string().ends_with("1 passed, 0 failed"));
    let ways: Vec<(DType, Mode)> = report.cases[0].runs.iter().map(|run| (run.dtype, run.mode)).collect();
    assert_eq!(
        ways,
        [
            (DType::F64, Mode::Fed),
            (DType::F64, Mode::EndToEnd),
            (DType::F32, Mode::Fed),
            (DType::F32, Mode::EndToEnd)
        ]
    );
}

#[test]
fn damaged_tensors_are_named() {
    let folder = Folder::new("truncated", "ftp_sgdp/plain");
    let bytes = fs::read(folder.tensors()).unwrap();
    for len in [0, 7, 100, bytes.len() / 2, bytes.len() - 1] {
        fs::write(folder.tensors(), &bytes[..len]).unwrap();
        folder.expect_failure(&["plain.f64.safetensors", "damaged"]);
    }
    fs::remove_file(folder.tensors()).unwrap();
    folder.expect_failure(&["plain.f64.safetensors cannot be read"]);
}

#[test]
fn tensors_that_are_missing_unknown_or_misshapen_are_named() {
    let folder = Folder::new("tensors", "ftp_sgdp/plain");
    let whole = folder.read_tensors();
    for missing in [
        "anchor/fc1.weight",
        "start/fc2.bias",
        "lr",
        "step03/gamma/fc1.bias",
        "step07/weight/fc2.weight",
        "final/weight/fc1.weight",
        "step05/grad/fc1.weight",
    ] {
        let mut tensors = whole.clone();
        tensors.remove(missing);
        folder.write_tensors(&tensors);
        let words = match missing {
            // Fed, the parameter is not stepped, and nothing explains what the file says of its step.
            "step05/grad/fc1.weight" => ["unknown, the first is `step05/gamma/fc1.weight`", "was computed"],
            other => [other, "is missing"],
        };
        folder.expect_failure(&words);
    }
    for missing in ["x", "y", "step01/loss"] {
        let mut tensors = whole.clone();
        tensors.remove(missing);
        folder.write_tensors(&tensors);
        folder.expect_failure(&[&format!("tensor `{missing}` is missing")]);
    }

    let mut tensors = whole.clone();
    tensors.insert("step21/weight/fc1.weight".into(), whole["anchor/fc1.weight"].clone());
    folder.write_tensors(&tensors);
    folder.expect_failure(&["1 tensors are unknown", "step21/weight/fc1.weight"]);

    let mut tensors = whole.clone();
    tensors.get_mut("start/fc1.weight").unwrap().shape.reverse();
    folder.write_tensors(&tensors);
    folder.expect_failure(&["start/fc1.weight", "[7, 13]", "[13, 7]"]);

    let mut tensors = whole;
    let grad = tensors.get_mut("step02/grad/fc1.bias").unwrap();
    grad.dtype = Dtype::F32;
    grad.bytes.truncate(13 * 4);
    folder.write_tensors(&tensors);
    folder.expect_failure(&["step02/grad/fc1.bias", "F32", "F64"]);
}

#[test]
fn a_wrong_index_is_refused_and_a_wrong_entry_fails() {
    let folder = Folder::new("index", "wise/plain");
    let edited = |field: &str, value: Value| {
        let mut entry = folder.entry();
        entry[field] = value;
        folder.write_index(&json!({ "cases": [entry] }));
    };
    edited("case", json!("wise/other"));
    folder.expect_failure(&["wise/plain", "wise/other"]);
    edited("json", json!("wise/nothing.json"));
    folder.expect_failure(&["nothing.json cannot be read"]);
    edited("json", json!("../plain.json"));
    folder.expect_failure(&["../plain.json", "inside the folder"]);
    edited("files", json!({ "f16": "wise/plain.f64.safetensors" }));
    folder.expect_failure(&["f16"]);
    edited("files", json!({}));
    folder.expect_failure(&["FAILED wise/plain"]);

    folder.write_index(&json!({ "cases": [folder.entry(), folder.entry()] }));
    folder.expect_refusal(&["index.json", "wise/plain", "twice"]);
    folder.write_index(&json!({ "cases": [] }));
    folder.expect_refusal(&["`cases` is empty"]);
    folder.write_index(&json!({ "kases": [] }));
    folder.expect_refusal(&["index.json", "kases"]);
    fs::write(folder.dir.join("index.json"), "{").unwrap();
    folder.expect_refusal(&["index.json", "EOF"]);
    fs::remove_file(folder.dir.join("index.json")).unwrap();
    folder.expect_refusal(&["index.json cannot be read"]);

    folder.write_index(&json!({ "cases": [folder.entry()] }));
    let error = run_folder(&folder.dir, &OracleSubject, Some("tpgm")).unwrap_err().to_string();
    assert!(error.contains("none with `tpgm`"), "{error}");
}

#[test]
fn cases_that_say_something_unknown_fail_with_the_word() {
    let check = |case: &'static str, field: &str, value: Value, words: &[&str]| {
        let folder = Folder::new(&format!("unknown-{}", field.replace('/', "-")), case);
        folder.edit_json(|json| {
            let mut place = json;
            for part in field.split('/') {
                place = match part.parse::<usize>() {
                    Ok(i) => &mut place[i],
                    Err(_) => &mut place[part],
                };
            }
            *place = value;
        });
        folder.expect_failure(words);
    };
    let ftp = "ftp_sgdp/plain";
    check(ftp, "method", json!("ftp_lamb"), &["method", "ftp_lamb"]);
    check(ftp, "momentum_schedule", json!(1), &["momentum_schedule"]);
    check(ftp, "model/kind", json!("rnn"), &["rnn"]);
    check(ftp, "model/depth", json!(3), &["depth"]);
    check(ftp, "model/dims", json!([7, 12, 5]), &["model", "fc1.weight", "[12, 7]"]);
    check(ftp, "model/dims/0", json!(0), &["model", "without inputs"]);
    check(ftp, "optimizer/betas", json!([0.9, 0.99]), &["optimizer.betas"]);
    check(ftp, "optimizer/momentum", json!(-1.0), &["Sgd::momentum", "-1"]);
    check(ftp, "ftp/gamma_init", json!(0.5), &["ftp.gamma_init"]);
    check(ftp, "ftp", Value::Null, &["`ftp` is missing"]);
    check(ftp, "steps", json!(21), &["lr", "[20]", "[21]"]);
    check(ftp, "n_batches", json!(3), &["tensor `y`"]);
    check(ftp, "params/1/name", json!("fc1.weight"), &["params", "twice"]);
    let tpgm = "tpgm_mars/exclude_head";
    check(tpgm, "norm", json!("l1"), &["l1"]);
    check(tpgm, "adam/weight_decay", json!(0.1), &["adam.weight_decay"]);
    check(tpgm, "rounds/0/iters", json!(9), &["iter09", "is missing"]);
    check(tpgm, "params/2/excluded", json!(false), &["fc2.weight", "is missing"]);
    check(tpgm, "params/0/excluded", json!(true), &["tensors are unknown", "fc1.weight"]);
    check("wise/fisher", "fisher_floor", Value::Null, &["`fisher_floor` is missing"]);
    check("wise/fisher", "fisher", json!(false), &["unknown", "fisher0/fc1.bias"]);
}

#[test]
fn labels_outside_the_model_are_refused() {
    let folder = Folder::new("labels", "ftp_sgdp/plain");
    for label in [5i64, -1] {
        folder.edit_tensors(|tensors| {
            tensors.get_mut("y").unwrap().bytes[..8].copy_from_slice(&label.to_le_bytes());
        });
        folder.expect_failure(&["`y`", &format!("label {label}")]);
    }
}

#[test]
fn without_a_model_a_case_is_fed_only() {
    let folder = Folder::new("no-model", "tpgm_l2/base");
    folder.edit_json(|json| json["model"] = Value::Null);
    let report = folder.run();
    assert!(report.passed(), "{report}");
    assert!(report.cases[0].runs.iter().all(|run| run.mode == Mode::Fed));
}

#[test]
fn the_order_of_parameters_is_free() {
    for case in ["ftp_adamp/scalar_param", "tpgm_mars/conv"] {
        let folder = Folder::new(&format!("order-{}", &case[..4]), case);
        folder.edit_json(|json| json["params"].as_array_mut().unwrap().reverse());
        let report = folder.run();
        assert!(report.passed(), "{report}");
    }
}

/// Changes one element of every tensor of a few steps, one tensor at a time: each change must be noticed.
#[test]
fn every_number_of_a_file_is_looked_at() {
    for (case, parts) in [
        (
            "tpgm_mars/exclude_head",
            &["anchor", "round1/start", "round1/iter01", "round1/iter08", "round1/apply", "round1/weight"][..],
        ),
        ("ftp_adamp/conv_exclude_amsgrad_wd", &["anchor", "start", "step01", "step02", "step20", "final"]),
        ("ftp_sgdp/k05_nesterov_wd", &["lr", "x", "y", "step03", "final"]),
        ("adam_spd/wd05_amsgrad", &["anchor", "start", "step01", "step09", "final"]),
        ("wise/fisher", &["theta0", "theta1", "fisher0", "fisher1", "alpha1"]),
    ] {
        let folder = Folder::new(&format!("change-{}", case.replace('/', "-")), case);
        let mut entry = folder.entry();
        entry["files"].as_object_mut().unwrap().remove("f32");
        folder.write_index(&json!({ "cases": [entry] }));
        let whole = folder.read_tensors();
        // An excluded parameter has an anchor in the file, and no use for it.
        let mut unused = Vec::new();
        folder.edit_json(|json| {
            let excluded = json["params"].as_array().unwrap().iter().filter(|p| p["excluded"] == true);
            unused = excluded.map(|p| format!("anchor/{}", p["name"].as_str().unwrap())).collect();
        });
        let mut changed = 0;
        for (name, stored) in &whole {
            let chosen = parts.iter().any(|part| name == part || name.starts_with(&format!("{part}/")));
            if !chosen || unused.contains(name) {
                continue;
            }
            let mut tensors = whole.clone();
            let bytes = &mut tensors.get_mut(name).unwrap().bytes;
            let first = <[u8; 8]>::try_from(&bytes[..8]).unwrap();
            let other = match stored.dtype {
                Dtype::I64 => (1 - i64::from_le_bytes(first).min(1)).to_le_bytes(),
                _ => {
                    let x = f64::from_le_bytes(first);
                    // Fisher values below their floor all count the same.
                    let x = if name.starts_with("fisher") { x + 1.0 } else { x };
                    (x + 1e-5 * x.abs().max(1e-2)).to_le_bytes()
                }
            };
            bytes[..8].copy_from_slice(&other);
            folder.write_tensors(&tensors);
            let report = folder.run();
            assert!(!report.passed(), "{case}: a change of {name} went unnoticed");
            changed += 1;
        }
        assert!(changed > 10, "{case}: only {changed} tensors were changed");
        folder.write_tensors(&whole);
        assert!(folder.run().passed(), "{case}");
    }
}

#[test]
fn a_deviation_is_reported_with_its_place() {
    let folder = Folder::new("place", "wise/plain");
    folder.edit_tensors(|tensors| {
        let bytes = &mut tensors.get_mut("alpha2/weight/fc1.bias").unwrap().bytes;
        bytes[8 * 4..8 * 5].copy_from_slice(&2.0f64.to_le_bytes());
    });
    let report = folder.run();
    let Outcome::Compared { worst: Some(worst), .. } = &report.cases[0].runs[0].outcome else {
        panic!("{report}");
    };
    assert_eq!((worst.tensor.as_str(), worst.element, worst.expected), ("alpha2/weight/fc1.bias", 4, 2.0));
    assert!((worst.value - (worst.got - 2.0).abs() / 2.0).abs() < 1e-15);
}

#[test]
fn a_number_that_is_none_fails() {
    let folder = Folder::new("nan", "wise/plain");
    folder.edit_tensors(|tensors| {
        let bytes = &mut tensors.get_mut("alpha0/weight/fc2.bias").unwrap().bytes;
        bytes[..8].copy_from_slice(&f64::NAN.to_le_bytes());
    });
    folder.expect_failure(&["alpha0/weight/fc2.bias[0]", "inf"]);
}
