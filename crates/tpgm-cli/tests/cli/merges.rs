//! Distances and merges through the command line, against numbers worked out by hand.

use std::fs;

use candle_core::{DType, Device, Tensor};
use clap::CommandFactory;

use crate::args::Args;
use crate::common::{Folder, Run, numbers, tpgm};
#[cfg(target_os = "linux")]
use crate::common::{tpgm_in_64_mib, write_checkpoint};

/// A folder with an anchor and two models of it, one of which has a head.
fn models() -> Folder {
    let folder = Folder::new();
    let tensor =
        |rows: &[[f32; 2]]| Tensor::from_slice(rows.as_flattened(), (rows.len(), 2), &Device::Cpu).unwrap();
    let counter = |n: i64| Tensor::new(&[n], &Device::Cpu).unwrap();
    let anchor = tensor(&[[3.0, 0.0], [0.0, 4.0]]);
    folder.save("anchor", &[("a.weight", anchor), ("count", counter(1))]);
    // Rows are 1 + 2 and 6 + 0 away: L2 sqrt(41), MARS 3 and 6. The anchor's norm is 5.
    let one = tensor(&[[4.0, 2.0], [6.0, 4.0]]);
    let head = tensor(&[[7.0, -7.0]]);
    folder.save("one", &[("a.weight", one), ("count", counter(2)), ("head.weight", head)]);
    let two = tensor(&[[3.0, 0.0], [0.0, 6.0]]);
    folder.save("two", &[("a.weight", two), ("count", counter(3))]);
    folder
}

impl Folder {
    /// Runs a method over the models of these names; `options` come last.
    fn run(&self, method: &str, models: &[&str], options: &[&str]) -> Run {
        let mut args: Vec<String> = match method {
            "distances" => vec![method.to_owned()],
            _ => vec!["merge".to_owned(), method.to_owned()],
        };
        args.extend(["--anchor".to_owned(), self.text("anchor")]);
        args.extend(models.iter().map(|name| self.text(name)));
        if method != "distances" && !options.contains(&"--out") {
            args.extend(["--out".to_owned(), self.text("out")]);
        }
        args.extend(["--report".to_owned(), self.0.path().join("report").to_str().unwrap().to_owned()]);
        args.extend(options.iter().map(|option| (*option).to_owned()));
        tpgm(args)
    }

    fn csv(&self) -> Vec<Vec<String>> {
        let text = fs::read_to_string(self.0.path().join("report/distances.csv")).unwrap();
        text.lines().map(|line| line.split(',').map(str::to_owned).collect()).collect()
    }
}

#[test]
fn the_command_line_is_well_formed() {
    Args::command().debug_assert();
}

#[test]
fn distances_are_measured_and_nothing_is_merged() {
    let folder = models();
    folder.run("distances", &["one"], &[]).text();
    assert_eq!(
        folder.csv(),
        [
            vec!["tensor", "shape", "L2", "MARS", "relative"],
            vec!["a.weight", "2 x 2", "6.403", "4.500", "1.281"]
        ]
    );
    folder.run("distances", &["one", "two"], &[]).text();
    let csv = folder.csv();
    assert_eq!(csv[0][2..], ["L2 one", "MARS one", "relative one", "L2 two", "MARS two", "relative two"]);
    assert_eq!(csv[1][2..], ["6.403", "4.500", "1.281", "2.000", "1.000", "0.4000"]);
    assert!(!folder.path("out").exists());
}

#[test]
fn a_new_head_may_have_another_shape() {
    let folder = models();
    let head = |classes: usize| Tensor::ones((classes, 2), DType::F32, &Device::Cpu).unwrap();
    let weight = |x: f32| Tensor::new(&[[x, 0.0]], &Device::Cpu).unwrap();
    folder.save("anchor", &[("a.weight", weight(1.0)), ("head.weight", head(3))]);
    folder.save("one", &[("a.weight", weight(3.0)), ("head.weight", head(5))]);
    let run = folder.run("distances", &["one"], &[]);
    let error = run.fails(4);
    assert!(error.contains("head.weight") && error.contains("one.safetensors"), "{error}");
    assert!(error.contains("--new PATTERN"), "{error}");
    folder.run("distances", &["one"], &["--new", "head.*"]).text();
    assert_eq!(folder.csv()[1..], [["a.weight", "1 x 2", "2.000", "2.000", "2.000"]]);
    folder.run("wise", &["one"], &["--copy", "head.*"]).text();
    assert_eq!(folder.load("out")["head.weight"].dims(), [5, 2]);
    assert_eq!(folder.csv().len(), 2);
}

#[test]
fn interpolation_halves_the_distance_and_copies_what_is_named() {
    let folder = models();
    folder.run("wise", &["one"], &["--share", "0.5", "--copy", "head.*"]).text();
    let merged = folder.load("out");
    assert_eq!(numbers(&merged["a.weight"]), [3.5, 1.0, 3.0, 4.0]);
    assert_eq!(numbers(&merged["head.weight"]), [7.0, -7.0]);
    assert_eq!(merged["count"].to_vec1::<i64>().unwrap(), [2]);
    assert_eq!(
        folder.csv()[1],
        ["a.weight", "2 x 2", "6.403", "4.500", "1.281", "3.202", "2.250", "0.6403", "0.5000"]
    );
    let plot = fs::read_to_string(folder.0.path().join("report/distances.svg")).unwrap();
    for word in ["a.weight", "before", "after", ">1.281<", ">0.6403<"] {
        assert!(plot.contains(word), "{word}: {plot}");
    }
    let markdown = fs::read_to_string(folder.0.path().join("report/distances.md")).unwrap();
    assert!(markdown.starts_with("| tensor | shape | L2 before |"), "{markdown}");
}

#[test]
fn projection_limits_rows_or_tensors() {
    let folder = models();
    folder.run("fixed-radius", &["one"], &["--radius", "3", "--copy", "head.*"]).text();
    assert_eq!(numbers(&folder.load("out")["a.weight"]), [4.0, 2.0, 3.0, 4.0]);
    // Ratios 1 and 1/2; rows are 3 and 3 away.
    assert_eq!(folder.csv()[1][6..], ["3.000", "0.7483", "0.7500"]);
    folder.run("fixed-radius", &["two"], &["--radius", "1", "--norm", "l2"]).text();
    assert_eq!(numbers(&folder.load("out")["a.weight"]), [3.0, 0.0, 0.0, 5.0]);
    assert_eq!(folder.csv()[1][8], "0.5000");
}

#[test]
fn soups_and_model_stock_take_several_models() {
    let folder = models();
    let head = ["--drop", "head.*"];
    folder.run("soup", &["two", "one"], &head).text();
    assert_eq!(numbers(&folder.load("out")["a.weight"]), [3.5, 1.0, 3.0, 5.0]);
    assert_eq!(folder.csv()[1].last().unwrap(), "");
    // The displacements (1, 2, 6, 0) and (0, 0, 0, 2) are at right angles: no share of their mean is kept.
    folder.run("model-stock", &["two", "one"], &head).text();
    assert_eq!(numbers(&folder.load("out")["a.weight"]), [3.0, 0.0, 0.0, 4.0]);
    assert_eq!(folder.csv()[1].last().unwrap(), "0");
}

#[test]
fn errors_name_file_and_tensor_and_leave_the_output_alone() {
    let folder = models();
    fs::write(folder.path("out"), "as it was").unwrap();
    let wide = Tensor::ones((2, 3), DType::F32, &Device::Cpu).unwrap();
    folder.save("wide", &[("a.weight", wide)]);
    let two = "two.safetensors has no tensor `head.weight`";
    /// Method, models, options, exit code, parts of the message.
    type Case<'a> = (&'a str, &'a [&'a str], &'a [&'a str], i32, &'a [&'a str]);
    let cases: [Case<'_>; 20] = [
        ("wise", &["one"], &[], 4, &["anchor.safetensors has no tensor `head.weight`", "--copy PATTERN"]),
        ("soup", &["one", "two"], &[], 4, &[two, "--drop PATTERN"]),
        ("soup", &["two", "one"], &[], 4, &[two]),
        ("distances", &["none"], &[], 3, &["none.safetensors"]),
        ("distances", &["wide"], &[], 4, &["a.weight", "wide.safetensors", "[2, 3]"]),
        ("wise", &["two"], &["--share", "1.5"], 2, &["1.5"]),
        ("wise", &["two"], &["--share", "half"], 2, &["half"]),
        ("wise", &["two"], &["--copy", "tail.*"], 2, &["tail.*"]),
        ("wise", &["one", "two"], &[], 2, &["one model"]),
        ("fixed-radius", &["two"], &["--radius", "0"], 2, &["radius"]),
        ("model-stock", &["two"], &[], 2, &["two or more models"]),
        ("soup", &[], &[], 2, &["MODEL"]),
        ("distances", &["one"], &["--rename", "bert.*=b"], 2, &["bert.*=b"]),
        ("distances", &["one"], &["--share", "1"], 2, &["--share"]),
        ("distances", &["one"], &["--new", "tail.*"], 2, &["`tail.*` matches no tensor"]),
        ("distances", &["one"], &["--rename", "bert.*=*"], 2, &["`bert.*=*` matches no tensor"]),
        // Nothing is measured before options are looked at: that would fail with the shape.
        ("wise", &["wide"], &["--share", "2"], 2, &["but must be"]),
        ("wise", &["wide"], &["--copy", "tail.*"], 2, &["tail.*"]),
        ("model-stock", &["wide"], &[], 2, &["two or more models"]),
        ("wise", &["one"], &["--drop", "*"], 2, &["leave no tensor of", "one.safetensors"]),
    ];
    for (method, models, options, code, parts) in cases {
        let run = folder.run(method, models, options);
        let error = run.fails(code);
        assert!(parts.iter().all(|part| error.contains(part)), "{method} {models:?} {options:?}: {error}");
        assert_eq!(fs::read_to_string(folder.path("out")).unwrap(), "as it was");
    }
    // One of two models has what a pattern names.
    folder.run("distances", &["two", "one"], &["--new", "head.*"]).text();
}

#[test]
fn an_output_is_none_of_the_inputs() {
    let folder = models();
    let inside = folder.0.path().join("run");
    fs::create_dir(&inside).unwrap();
    let weights = inside.join("model.safetensors");
    fs::copy(folder.path("two"), &weights).unwrap();
    let (run, weights) = (inside.to_str().unwrap(), weights.to_str().unwrap());
    let (anchor, two) = (folder.text("anchor"), folder.text("two"));
    let before = [&anchor, &two, weights].map(|path| fs::read(path).unwrap());
    for (args, part) in [
        (["wise", "--anchor", &anchor, "--out", &anchor, &two], "is the anchor: it would be lost"),
        (["wise", "--anchor", &anchor, "--out", &two, &two], "is a model: it would be lost"),
        (["wise", "--anchor", &anchor, "--out", weights, run], "is a file of a model: it would be lost"),
        (["wise", "--anchor", run, "--out", weights, &two], "is a file of the anchor: it would be lost"),
        (["soup", "--out", weights, &two, &anchor, run], "is a file of a model: it would be lost"),
    ] {
        let lost = tpgm([&["merge"][..], &args].concat());
        assert!(lost.fails(2).contains(part), "{args:?}: {lost:?}");
    }
    assert_eq!([&anchor, &two, weights].map(|path| fs::read(path).unwrap()), before);
}

#[test]
fn values_that_do_not_fit_are_told_with_a_wider_type() {
    let folder = Folder::new();
    let save = |name: &str, value: f64, dtype| {
        folder.save(name, &[("w", Tensor::new(&[value], &Device::Cpu).unwrap().to_dtype(dtype).unwrap())]);
    };
    for (dtype, value, advice) in [(DType::F32, 1e300, "--dtype f64"), (DType::F16, 1e30, "--dtype f32")] {
        save("anchor", 1.0, dtype);
        save("big", value, DType::F64);
        let run = folder.run("wise", &["big"], &[]);
        assert!(run.fails(4).contains("do not fit") && run.err.contains(advice), "{run:?}");
        let (name, wider) = advice.split_at(8);
        folder.run("wise", &["big"], &[name.trim(), wider]).text();
    }
}

#[test]
fn other_names_and_other_types_come_together() {
    let folder = models();
    let w = |x: f32| Tensor::new(&[[x, 0.0]], &Device::Cpu).unwrap();
    folder.save("anchor", &[("norm.weight", w(1.0))]);
    let half = w(3.0).to_dtype(DType::BF16).unwrap();
    folder.save("one", &[("bert.norm.gamma", half), ("cls.bias", w(9.0))]);
    let rename = ["--rename", "bert.*=*", "--rename", "*.gamma=*.weight"];
    let apart = folder.run("distances", &["one"], &[]);
    assert!(apart.fails(4).contains("no floating-point tensor of the same name"), "{apart:?}");
    assert!(apart.err.contains("tpgm inspect"), "{apart:?}");
    folder.run("distances", &["one"], &rename).text();
    assert_eq!(folder.csv()[1..], [["norm.weight", "1 x 2", "2.000", "2.000", "2.000"]]);
    let options = [&rename[..], &["--drop", "cls.*"]].concat();
    folder.run("wise", &["one"], &options).text();
    let merged = folder.load("out");
    assert_eq!(merged.keys().collect::<Vec<_>>(), ["norm.weight"]);
    assert_eq!(merged["norm.weight"].dtype(), DType::F32);
    assert_eq!(numbers(&merged["norm.weight"]), [2.0, 0.0]);
    folder.run("wise", &["one"], &[&options[..], &["--dtype", "f16"]].concat()).text();
    assert_eq!(folder.load("out")["norm.weight"].dtype(), DType::F16);
    // Rules that would match what they have made are applied once.
    folder.save("one", &[("w", w(3.0))]);
    folder.save("anchor", &[("w", w(1.0))]);
    folder.run("wise", &["one"], &["--rename", "*=model.*"]).text();
    assert_eq!(folder.csv()[1][..3], ["model.w", "1 x 2", "2.000"]);
    assert_eq!(folder.csv()[1][5], "1.000");
}

#[test]
fn what_is_neither_measured_nor_merged_is_told() {
    let folder = models();
    let run = folder.run("wise", &["one"], &["--copy", "head.*"]);
    for part in [
        "tensor    shape  L2 before  MARS before  relative before  L2 after  MARS after  relative after   ratio\n",
        "a.weight  2 x 2      6.403        4.500            1.281     3.202       2.250          0.6403  0.5000\n",
        "one.safetensors: measured: 1 tensor\n",
        "not measured: 1 tensor of integers in ",
        "not measured: 1 tensor of ",
        "one.safetensors, by pattern: head.weight\n",
        "merged: 1 tensor\ncopied from the first model, not merged: 2 tensors: count, head.weight",
        "\nL2 distance of all tensors together: before 6.403, after 3.202\n",
    ] {
        assert!(run.text().contains(part), "{part}: {}", run.out);
    }
}

#[test]
fn tables_are_json_with_all_digits() {
    let folder = models();
    let json = folder.run("wise", &["one"], &["--copy", "head.*", "--json"]).json();
    let (before, after) = (&json["models"][0], &json["out"]);
    assert_eq!(before["l2"].as_f64().unwrap(), 41f64.sqrt());
    assert_eq!(after["l2"].as_f64().unwrap(), 41f64.sqrt() / 2.0);
    let tensor = &after["tensors"][0];
    assert_eq!((tensor["name"].as_str(), tensor["mars"].as_f64()), (Some("a.weight"), Some(3.0)));
    assert_eq!(after["path"].as_str().unwrap(), folder.text("out"));
    assert_eq!(json["merge"]["copied"], serde_json::json!(["count", "head.weight"]));
    let json = folder.run("distances", &["one", "two"], &["--json"]).json();
    assert_eq!(json["models"][1]["l2"].as_f64(), Some(2.0));
    assert_eq!(json["models"][0]["left_out"][1]["why"], "alone");
    assert!(json.get("out").is_none() && json.get("merge").is_none());
}

#[test]
fn a_soup_needs_no_anchor() {
    let folder = models();
    let (out, two) = (folder.text("out"), folder.text("two"));
    let run = |options: &[&str]| {
        let args = ["merge", "soup", "--out", &out, &two, &folder.text("anchor")];
        tpgm(args.iter().chain(options))
    };
    assert!(run(&[]).text().starts_with("merged: 1 tensor\n"));
    assert_eq!(numbers(&folder.load("out")["a.weight"]), [3.0, 0.0, 0.0, 5.0]);
    assert_eq!(run(&["--json"]).json()["merge"]["merged"][0]["name"], "a.weight");
    assert!(run(&["--report", "nowhere"]).fails(2).contains("--anchor"));
}

/// Checkpoints of 96 MiB in 48 tensors. What is held is one tensor's merge, not the model: memory but for mapped files, which are
/// the system's to drop, is limited to 64 MiB.
#[cfg(target_os = "linux")]
#[test]
fn what_is_held_is_a_tensor_and_not_the_checkpoint() {
    let folder = Folder::new();
    write_checkpoint(&folder.path("anchor"), 48, 1 << 19, 0.0);
    write_checkpoint(&folder.path("tuned"), 48, 1 << 19, 1.0);
    let (anchor, tuned, out) = (folder.text("anchor"), folder.text("tuned"), folder.text("out"));
    let json =
        tpgm_in_64_mib(&["merge", "wise", "--json", "--anchor", &anchor, "--out", &out, &tuned]).json();
    let tensors = json["out"]["tensors"].as_array().unwrap();
    // Every element moved by 1/2.
    let right = |l2: f64| (l2 - 0.5 * f64::from(1 << 19).sqrt()).abs() < 1e-6;
    assert!(tensors.iter().all(|tensor| right(tensor["l2"].as_f64().unwrap())));
    assert_eq!(tensors.len(), 48);
}
