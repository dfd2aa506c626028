//! Checkpoints through the command line, against numbers worked out by hand.

#![allow(clippy::unwrap_used, reason = "helpers of tests, too")]

// The modules of the example, as its main file has them: an example is not a library that a test could use.
#[path = "../examples/project_checkpoints/cli.rs"]
mod cli;
#[path = "../examples/project_checkpoints/report.rs"]
mod report;

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;
use candle_core::{Device, Tensor};
use clap::{CommandFactory, Parser};
use tpgm_candle::weight_space::{MergePlan, distances, merge_files};
use tpgm_examples::progress::Progress;

use crate::cli::{Args, run};
use crate::report::{After, Report};

/// A folder with an anchor and two models of it, one of which has a head.
struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        let this = Self(tempfile::tempdir().unwrap());
        let tensor = |rows: &[[f32; 2]]| {
            Tensor::from_slice(rows.as_flattened(), (rows.len(), 2), &Device::Cpu).unwrap()
        };
        let counter = |n: i64| Tensor::new(&[n], &Device::Cpu).unwrap();
        let anchor = tensor(&[[3.0, 0.0], [0.0, 4.0]]);
        this.save("anchor", &[("a.weight", anchor), ("count", counter(1))]);
        // Rows are 1 + 2 and 6 + 0 away: L2 sqrt(41), MARS 3 and 6. The anchor's norm is 5.
        let one = tensor(&[[4.0, 2.0], [6.0, 4.0]]);
        let head = tensor(&[[7.0, -7.0]]);
        this.save("one", &[("a.weight", one), ("count", counter(2)), ("head.weight", head)]);
        let two = tensor(&[[3.0, 0.0], [0.0, 6.0]]);
        this.save("two", &[("a.weight", two), ("count", counter(3))]);
        this
    }

    fn save(&self, name: &str, tensors: &[(&str, Tensor)]) {
        let tensors: HashMap<&str, Tensor> = tensors.iter().cloned().collect();
        candle_core::safetensors::save(&tensors, self.path(name)).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name).with_extension("safetensors")
    }

    fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    /// Runs the command line with the models of these names; `options` come last.
    fn run(&self, method: &str, models: &[&str], options: &[&str]) -> Result<()> {
        let mut args = vec!["project_checkpoints".to_owned(), method.to_owned()];
        args.extend(["--anchor".to_owned(), self.text("anchor")]);
        args.extend(models.iter().map(|name| self.text(name)));
        if method != "distances" && !options.contains(&"--out") {
            args.extend(["--out".to_owned(), self.text("out")]);
        }
        args.extend(["--report".to_owned(), self.0.path().join("report").to_str().unwrap().to_owned()]);
        args.extend(options.iter().map(|option| (*option).to_owned()));
        run(&Args::try_parse_from(args)?, &Progress::hidden())
    }

    fn csv(&self) -> Vec<Vec<String>> {
        let text = fs::read_to_string(self.0.path().join("report/distances.csv")).unwrap();
        text.lines().map(|line| line.split(',').map(str::to_owned).collect()).collect()
    }

    fn merged(&self) -> HashMap<String, Tensor> {
        candle_core::safetensors::load(self.path("out"), &Device::Cpu).unwrap()
    }
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn the_command_line_is_well_formed() {
    Args::command().debug_assert();
}

#[test]
fn distances_are_measured_and_nothing_is_merged() {
    let folder = Folder::new();
    folder.run("distances", &["one"], &[]).unwrap();
    assert_eq!(
        folder.csv(),
        [
            vec!["tensor", "shape", "L2", "MARS", "relative"],
            vec!["a.weight", "2 x 2", "6.403", "4.500", "1.281"]
        ]
    );
    folder.run("distances", &["one", "two"], &[]).unwrap();
    let csv = folder.csv();
    assert_eq!(csv[0][2..], ["L2 one", "MARS one", "relative one", "L2 two", "MARS two", "relative two"]);
    assert_eq!(csv[1][2..], ["6.403", "4.500", "1.281", "2.000", "1.000", "0.4000"]);
    assert!(!folder.path("out").exists());
}

#[test]
fn a_new_head_may_have_another_shape() {
    let folder = Folder::new();
    let head = |classes: usize| Tensor::ones((classes, 2), candle_core::DType::F32, &Device::Cpu).unwrap();
    let weight = |x: f32| Tensor::new(&[[x, 0.0]], &Device::Cpu).unwrap();
    folder.save("anchor", &[("a.weight", weight(1.0)), ("head.weight", head(3))]);
    folder.save("one", &[("a.weight", weight(3.0)), ("head.weight", head(5))]);
    let error = format!("{:#}", folder.run("distances", &["one"], &[]).unwrap_err());
    assert!(error.contains("head.weight") && error.contains("one.safetensors"), "{error}");
    folder.run("distances", &["one"], &["--new", "head.*"]).unwrap();
    assert_eq!(folder.csv()[1..], [["a.weight", "1 x 2", "2.000", "2.000", "2.000"]]);
    folder.run("wise", &["one"], &["--copy", "head.*"]).unwrap();
    assert_eq!(folder.merged()["head.weight"].dims(), [5, 2]);
    assert_eq!(folder.csv().len(), 2);
}

#[test]
fn interpolation_halves_the_distance_and_copies_what_is_named() {
    let folder = Folder::new();
    folder.run("wise", &["one"], &["--share", "0.5", "--copy", "head.*"]).unwrap();
    let merged = folder.merged();
    assert_eq!(numbers(&merged["a.weight"]), [3.5, 1.0, 3.0, 4.0]);
    assert_eq!(numbers(&merged["head.weight"]), [7.0, -7.0]);
    assert_eq!(merged["count"].to_vec1::<i64>().unwrap(), [2]);
    assert_eq!(
        folder.csv()[1],
        ["a.weight", "2 x 2", "6.403", "4.500", "1.281", "3.202", "2.250", "0.6403", "0.5000"]
    );
    let plot = fs::read_to_string(folder.0.path().join("report/distances.svg")).unwrap();
    for word in ["a.weight", "before", "after", ">1.281<", ">0.640<"] {
        assert!(plot.contains(word), "{word}: {plot}");
    }
    let markdown = fs::read_to_string(folder.0.path().join("report/distances.md")).unwrap();
    assert!(markdown.starts_with("| tensor | shape | L2 before |"), "{markdown}");
}

#[test]
fn projection_limits_rows_or_tensors() {
    let folder = Folder::new();
    folder.run("fixed-radius", &["one"], &["--radius", "3", "--copy", "head.*"]).unwrap();
    assert_eq!(numbers(&folder.merged()["a.weight"]), [4.0, 2.0, 3.0, 4.0]);
    // Ratios 1 and 1/2; rows are 3 and 3 away.
    assert_eq!(folder.csv()[1][6..], ["3.000", "0.7483", "0.7500"]);
    folder.run("fixed-radius", &["two"], &["--radius", "1", "--norm", "l2"]).unwrap();
    assert_eq!(numbers(&folder.merged()["a.weight"]), [3.0, 0.0, 0.0, 5.0]);
    assert_eq!(folder.csv()[1][8], "0.5000");
}

#[test]
fn soups_and_model_stock_take_several_models() {
    let folder = Folder::new();
    let head = ["--drop", "head.*"];
    folder.run("soup", &["two", "one"], &head).unwrap();
    assert_eq!(numbers(&folder.merged()["a.weight"]), [3.5, 1.0, 3.0, 5.0]);
    assert_eq!(folder.csv()[1].last().unwrap(), "");
    // The displacements (1, 2, 6, 0) and (0, 0, 0, 2) are at right angles: no share of their mean is kept.
    folder.run("model-stock", &["two", "one"], &head).unwrap();
    assert_eq!(numbers(&folder.merged()["a.weight"]), [3.0, 0.0, 0.0, 4.0]);
    assert_eq!(folder.csv()[1].last().unwrap(), "0");
}

#[test]
fn errors_name_file_and_tensor_and_leave_the_output_alone() {
    let folder = Folder::new();
    fs::write(folder.path("out"), "as it was").unwrap();
    let error = |method: &str, models: &[&str], options: &[&str]| {
        let error = format!("{:#}", folder.run(method, models, options).unwrap_err());
        assert_eq!(fs::read_to_string(folder.path("out")).unwrap(), "as it was");
        error
    };
    let missing = error("wise", &["one"], &[]);
    assert!(missing.contains("head.weight") && missing.contains("anchor.safetensors"), "{missing}");
    for models in [["one", "two"], ["two", "one"]] {
        let missing = error("soup", &models, &[]);
        assert!(missing.contains("two.safetensors has no tensor `head.weight`"), "{missing}");
    }
    assert!(error("distances", &["none"], &[]).contains("none.safetensors"));
    assert!(error("wise", &["two"], &["--share", "1.5"]).contains("1.5"));
    assert!(error("wise", &["two"], &["--copy", "tail.*"]).contains("tail.*"));
    assert!(error("fixed-radius", &["two"], &["--radius", "0"]).contains("radius"));
    assert!(error("wise", &["one", "two"], &[]).contains("one model"));
    assert!(error("model-stock", &["two"], &[]).contains("two or more models"));
    assert!(error("soup", &[], &[]).contains("MODEL"));
    folder
        .save("wide", &[("a.weight", Tensor::ones((2, 3), candle_core::DType::F32, &Device::Cpu).unwrap())]);
    let shape = error("distances", &["wide"], &[]);
    assert!(shape.contains("a.weight") && shape.contains("wide.safetensors"), "{shape}");
    let anchor = fs::read(folder.path("anchor")).unwrap();
    let lost = folder.run("wise", &["two"], &["--out", &folder.text("anchor")]);
    assert!(lost.unwrap_err().to_string().contains("is the anchor"));
    assert_eq!(fs::read(folder.path("anchor")).unwrap(), anchor);
}

#[test]
fn other_names_and_other_types_come_together() {
    let folder = Folder::new();
    let w = |x: f32| Tensor::new(&[[x, 0.0]], &Device::Cpu).unwrap();
    folder.save("anchor", &[("norm.weight", w(1.0))]);
    let half = w(3.0).to_dtype(candle_core::DType::BF16).unwrap();
    folder.save("one", &[("bert.norm.gamma", half), ("cls.bias", w(9.0))]);
    let rename = ["--rename", "bert.*=*", "--rename", "*.gamma=*.weight"];
    let apart = format!("{:#}", folder.run("distances", &["one"], &[]).unwrap_err());
    assert!(apart.contains("no floating-point tensor of the same name"), "{apart}");
    folder.run("distances", &["one"], &rename).unwrap();
    assert_eq!(folder.csv()[1..], [["norm.weight", "1 x 2", "2.000", "2.000", "2.000"]]);
    let options = [&rename[..], &["--drop", "cls.*"]].concat();
    folder.run("wise", &["one"], &options).unwrap();
    let merged = folder.merged();
    assert_eq!(merged.keys().collect::<Vec<_>>(), ["norm.weight"]);
    assert_eq!(merged["norm.weight"].dtype(), candle_core::DType::F32);
    assert_eq!(numbers(&merged["norm.weight"]), [2.0, 0.0]);
    folder.run("wise", &["one"], &[&options[..], &["--dtype", "f16"]].concat()).unwrap();
    assert_eq!(folder.merged()["norm.weight"].dtype(), candle_core::DType::F16);
    assert!(folder.run("distances", &["one"], &["--rename", "bert.*=b"]).is_err());
}

#[test]
fn what_is_neither_measured_nor_merged_is_told() {
    let folder = Folder::new();
    let plan = MergePlan::wise(0.5).copy("head.*");
    let (anchor, one) = (folder.path("anchor"), folder.path("one"));
    let merged = merge_files(&plan, Some(&anchor), &[&one], folder.path("out")).unwrap();
    let found = distances(&anchor, &one).unwrap();
    let models = [one];
    let after = After { distances: found.clone(), merged, method: plan.method };
    let report = Report { models: &models, before: vec![found], after: Some(after) };
    let notes = report.notes().join("\n");
    for part in [
        "one.safetensors: measured: 1 tensor\n",
        "not measured: 1 tensor of integers in ",
        "not measured: 1 tensor that only ",
        "one.safetensors has: head.weight\n",
        "merged: 1 tensor\ncopied from the first model, not merged: 2 tensors: count, head.weight",
    ] {
        assert!(notes.contains(part), "{part}: {notes}");
    }
}

/// A checkpoint of 96 MiB in 48 tensors. What is held is one tensor's merge, not the model. Mapped files are the
/// system's to drop, so they are not counted.
#[cfg(target_os = "linux")]
#[test]
fn what_is_held_is_a_tensor_and_not_the_checkpoint() {
    use tpgm_candle::weight_space::{DistanceOptions, FilePass, MergePlan, distances_with, merge_files_with};

    let held = || {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("RssAnon:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<usize>().unwrap() / 1024
    };
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str| folder.path().join(name);
    write_checkpoint(&file("anchor"), 48, 1 << 19, 0.0);
    write_checkpoint(&file("tuned"), 48, 1 << 19, 1.0);
    let (before, mut most) = (held(), 0);
    let mut watch = |_: FilePass<'_>| most = most.max(held());
    let (anchor, tuned) = (file("anchor"), file("tuned"));
    merge_files_with(&MergePlan::wise(0.5), Some(&anchor), &[&tuned], file("out"), &mut watch).unwrap();
    let distances =
        distances_with(&anchor, file("out"), &DistanceOptions::default(), &mut watch).unwrap().tensors;
    assert!(most < before + 24, "{before} MiB before, {most} MiB at most");
    // Every element moved by 1/2.
    assert!(distances.iter().all(|distance| (distance.l2 - 0.5 * f64::from(1 << 19).sqrt()).abs() < 1e-6));
    assert_eq!(distances.len(), 48);
}

/// Writes tensors of `len` numbers of the same value, one after the other.
#[cfg(target_os = "linux")]
fn write_checkpoint(path: &Path, tensors: usize, len: usize, value: f32) {
    use std::io::Write;

    let bytes = len * 4;
    let entry = |i: usize| {
        let (start, end) = (i * bytes, (i + 1) * bytes);
        format!(r#""t{i:03}":{{"dtype":"F32","shape":[{len}],"data_offsets":[{start},{end}]}}"#)
    };
    let header = format!("{{{}}}", (0..tensors).map(entry).collect::<Vec<_>>().join(","));
    let mut file = std::io::BufWriter::new(fs::File::create(path).unwrap());
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    let data = value.to_le_bytes().repeat(len);
    (0..tensors).for_each(|_| file.write_all(&data).unwrap());
}
