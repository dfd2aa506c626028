//! The preset for emoji and pre-training, with a tiny network on generated images.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use anyhow::Result;
use candle_core::Device;
use candle_nn::VarMap;
use clap::Parser;
use tpgm_candle::models::efficientnet::{
    EfficientNetActivation, EfficientNetClassifier, EfficientNetConfig, EfficientNetLayout, InvertedResidual,
};
use tpgm_candle::nn::DropoutRng;
use tpgm_examples::progress::Progress;
use tpgm_examples::stop::Stop;
use tpgm_examples::study::Method;

use crate::cli::run;
use crate::common::{has, outcomes, results, save};
use crate::options::Args;
use crate::{builder, folder};

/// A network with two blocks, under the names of the package's checkpoint.
fn efficientnet(folder: &Path) {
    let block = |expanded, kernel, stride, outputs| InvertedResidual {
        expanded,
        kernel,
        stride,
        outputs,
        squeezed: None,
        activation: EfficientNetActivation::Relu6,
    };
    let config = EfficientNetConfig {
        stem: 4,
        stages: vec![vec![block(4, 3, 1, 4)], vec![block(12, 5, 2, 6), block(18, 3, 1, 6)]],
        last: 10,
        ..EfficientNetConfig::lite0()
    };
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("shape.json"), serde_json::to_string(&config).unwrap()).unwrap();
    let map = VarMap::new();
    let layout = EfficientNetLayout::EfficientNetPytorch;
    EfficientNetClassifier::with_layout(&config, 9, layout, &DropoutRng::new(0), builder(&map)).unwrap();
    save(&map, &folder.join("model.safetensors"), "", HashMap::new());
}

/// The folders of a study, and a network.
fn set() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (name, count, shade) in [
        ("train", 6, 20),
        ("val", 3, 20),
        ("radii", 3, 20),
        ("test/id", 4, 20),
        ("test/fluent-flat", 2, 80),
        ("test/monotone", 3, 120),
    ] {
        folder(&root.path().join("set").join(name), count, shade);
    }
    efficientnet(&root.path().join("net"));
    root
}

fn arguments(root: &Path, options: &[&str]) -> Vec<String> {
    let replaced = options.iter().map(|option| option.replace("ROOT", root.to_str().unwrap()));
    std::iter::once("finetune_image".to_owned()).chain(replaced).collect()
}

const STUDY: [&str; 12] = [
    "--preset",
    "emoji",
    "--set",
    "ROOT/set",
    "--arch",
    "efficientnet-lite0",
    "--model",
    "ROOT/net/model.safetensors",
    "--config",
    "ROOT/net/shape.json",
    "--outcomes",
    "ROOT/outcomes.jsonl",
];

fn study(root: &Path, out: &str, options: &[&str]) -> Result<String> {
    let small = ["--out", out, "--epochs", "1", "--batch", "9", "--side", "16"];
    let all = arguments(root, &[&STUDY[..], &small, options].concat());
    let progress = Progress::hidden();
    run(&Args::try_parse_from(all)?, &progress, &Stop::never())?;
    Ok(progress.lines())
}

#[test]
fn a_sweep_gives_every_method_as_many_settings_and_goes_on_from_its_records() {
    let root = set();
    let methods = "linear-probe,fine-tuning,lp-ft,wise-ft,tpgm-post-hoc,tpgm,fine-tuning-more";
    let options = ["--full", "--seeds", "2", "--methods", methods];
    study(root.path(), "ROOT/a", &options).unwrap();
    let read = |out: &str, file: &str| fs::read_to_string(root.path().join(out).join(file)).unwrap();
    let choices = read("a", "choices.csv");
    assert_eq!(choices.lines().count(), 1 + 7, "{choices}");
    for line in choices.lines().skip(1) {
        // Method, setting, settings tried: four learning rates, of the head where nothing else is trained.
        let line = line.replace("fine-tuning, radii", "fine-tuning radii");
        assert_eq!(line.split(',').nth(2), Some("4"), "{line}");
    }
    has(&read("a", "table.md"), &["id (ID)", "color mean", "silhouettes mean", "OOD mean"]);
    has(&read("a", "rates.md"), &["| fine-tuning | 0.00003 | ", "derailed", "silhouettes"]);
    let against = read("a", "against_fine_tuning.md");
    has(&against, &["| TPGM | 2 | ", "radii's samples too", "linear probe", "["]);
    assert!(!against.contains("| fine-tuning |"), "{against}");
    has(&read("a", "against_probe.md"), &["| fine-tuning | 2 | "]);
    assert!(root.path().join("a/frontier_silhouettes.svg").exists());
    let before = outcomes(&root.path().join("a/outcomes.json"));
    assert!(before.iter().all(|outcome| outcome.scores.right.len() == 3));
    assert_eq!(before[0].scores.right[2].as_slice().len(), 9);

    // Elsewhere, from the records: the same tables, and nothing is trained.
    let lines = fs::read_to_string(root.path().join("outcomes.jsonl")).unwrap();
    let said = study(root.path(), "ROOT/b", &options).unwrap();
    let known = lines.lines().count();
    has(&said, &[&format!("{known} outcomes of this study are known")]);
    assert!(!root.path().join("b/runs").exists(), "runs were made again");
    for file in ["table.csv", "choices.csv", "rates.csv", "against_fine_tuning.csv"] {
        assert_eq!(read("a", file), read("b", file), "{file}");
    }
    assert_eq!(fs::read_to_string(root.path().join("outcomes.jsonl")).unwrap(), lines);

    // Without one line, what it takes to have it again is made again: WiSE-FT of one rate, from two models.
    let wise = |line: &&str| {
        line.contains("\"wise-ft\"") && line.contains("\"lr\":0.001,") && line.contains("\"seed\":0")
    };
    let left: String = lines.lines().filter(|line| !wise(line)).map(|line| format!("{line}\n")).collect();
    assert!(left.len() < lines.len());
    fs::write(root.path().join("outcomes.jsonl"), left).unwrap();
    study(root.path(), "ROOT/c", &options).unwrap();
    let models = results(&root.path().join("c")).1;
    assert_eq!(models.len(), 2, "{:?}", models.iter().map(|(name, _)| name).collect::<Vec<_>>());
    assert_eq!(
        read("a", "table.csv").replace(char::is_numeric, ""),
        read("c", "table.csv").replace(char::is_numeric, "")
    );
    let again = outcomes(&root.path().join("c/outcomes.json"));
    let scores =
        |all: &[tpgm_examples::study::Outcome]| all.iter().map(|one| one.scores.clone()).collect::<Vec<_>>();
    assert_eq!(scores(&again), scores(&before), "the same bits");

    // Another recipe is another study.
    let said = study(root.path(), "ROOT/d", &["--methods", "fine-tuning", "--head-lr", "0.5"]).unwrap();
    has(&said, &["0 outcomes of this study are known"]);
}

#[test]
fn methods_start_from_the_probed_head() {
    let root = set();
    study(
        root.path(),
        "ROOT/a",
        &["--probed-head", "--methods", "linear-probe,lp-ft,tpgm,ftp", "--rates", "1e-12"],
    )
    .unwrap();
    let all = outcomes(&root.path().join("a/outcomes.json"));
    let of =
        |method: Method| all.iter().find(|outcome| outcome.setting.method == method).unwrap().scores.clone();
    let best = |method: Method| {
        let of = all.iter().filter(|outcome| outcome.setting.method == method);
        of.map(|outcome| outcome.scores.choice).fold(0.0, f64::max)
    };
    // Nothing but the head moves at this rate: what FTP does is what LP-FT does.
    assert_eq!(of(Method::Ftp), of(Method::LpFt));
    assert!(best(Method::LinearProbe) > 0.0);
    let error = study(root.path(), "ROOT/b", &["--probed-head", "--methods", "fine-tuning"]).unwrap_err();
    has(&error.to_string(), &["fine-tuning does not start from a linear probe, or is LP-FT if it does"]);
}

#[test]
fn a_run_that_derails_is_counted() {
    let root = set();
    let options = ["--methods", "linear-probe,fine-tuning,lp-ft,wise-ft", "--rates", "1e30"];
    let said = study(root.path(), "ROOT/a", &options).unwrap();
    has(&said, &["fine-tuning_lr1000000000000000000000000000000_seed0: derailed: fine-tuning: step"]);
    let rates = fs::read_to_string(root.path().join("a/rates.csv")).unwrap();
    let line = rates.lines().find(|line| line.starts_with("fine-tuning,")).unwrap();
    assert!(line.contains(",1,1,0.0,"), "{rates}");
}

#[test]
fn folders_that_a_set_lacks_are_named() {
    let root = set();
    let error = |out: &str, options: &[&str]| format!("{:#}", study(root.path(), out, options).unwrap_err());
    has(&error("ROOT/a", &["--group", "x=nothing"]), &["--group x: there is no test set `nothing`"]);
    fs::remove_dir_all(root.path().join("set/test/id")).unwrap();
    has(&error("ROOT/a", &[]), &["it has no folder test/id; `cargo xtask data emoji` makes such folders"]);
    fs::remove_dir_all(root.path().join("set/val")).unwrap();
    folder(&root.path().join("set/test/id"), 1, 20);
    has(&error("ROOT/a", &[]), &["it has no folder val"]);
    let error = Args::try_parse_from(arguments(root.path(), &STUDY[..2])).unwrap_err().to_string();
    has(&error, &["--model", "--arch"]);
}

#[test]
fn an_interrupted_pre_training_goes_on_to_the_same_bits_and_is_fine_tuned() {
    let root = set();
    let pretrain = |out: &str, stop: &Stop, more: &[&str]| {
        let checkpoint = format!("ROOT/{out}.safetensors");
        let out = format!("ROOT/{out}");
        let options = [
            &["pretrain", "--model", "ROOT/net/model.safetensors", "--config", "ROOT/net/shape.json"][..],
            &["--images", "ROOT/set/train", "--out", &out, "--checkpoint", &checkpoint],
            &["--epochs", "3", "--batch", "4", "--side", "16"],
            more,
        ];
        run(
            &Args::try_parse_from(arguments(root.path(), &options.concat())).unwrap(),
            &Progress::hidden(),
            stop,
        )
    };
    pretrain("whole", &Stop::never(), &[]).unwrap();
    pretrain("cut", &Stop::after(5), &[]).unwrap();
    assert!(!root.path().join("cut.safetensors").exists());
    pretrain("cut", &Stop::never(), &["--resume"]).unwrap();
    let read = |name: &str| fs::read(root.path().join(name)).unwrap();
    assert!(read("whole.safetensors") == read("cut.safetensors"));
    let tensors =
        candle_core::safetensors::load(root.path().join("whole.safetensors"), &Device::Cpu).unwrap();
    assert!(tensors.contains_key("_conv_stem.weight") && !tensors.contains_key("_fc.weight"));
    // The statistics of the norms are those of the checkpoint, and everything else has moved.
    let first =
        candle_core::safetensors::load(root.path().join("net/model.safetensors"), &Device::Cpu).unwrap();
    let values = |of: &HashMap<String, candle_core::Tensor>, name: &str| {
        of[name].flatten_all().unwrap().to_vec1::<f32>().unwrap()
    };
    assert_eq!(values(&tensors, "_bn0.running_mean"), values(&first, "_bn0.running_mean"));
    assert_ne!(values(&tensors, "_bn0.weight"), values(&first, "_bn0.weight"));
    assert_ne!(values(&tensors, "_conv_stem.weight"), values(&first, "_conv_stem.weight"));
    study(root.path(), "ROOT/a", &["--model", "ROOT/whole.safetensors", "--methods", "fine-tuning"]).unwrap();
}
