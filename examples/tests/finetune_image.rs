//! `finetune_image` from folders to tables, with generated images and tiny random networks. Nothing here is about accuracy.

#![allow(clippy::unwrap_used, reason = "helpers of tests, too")]

// The modules of the example, as its main file has them: an example is not a library that a test could use.
#[path = "../examples/finetune_image/cli.rs"]
mod cli;
mod common;
#[path = "finetune_image/emoji.rs"]
mod emoji;
#[path = "../examples/finetune_image/images.rs"]
mod images;
#[path = "../examples/finetune_image/network.rs"]
mod network;
#[path = "../examples/finetune_image/options.rs"]
mod options;
#[path = "../examples/finetune_image/prepare.rs"]
mod prepare;
#[path = "../examples/finetune_image/preset.rs"]
mod preset;
#[path = "../examples/finetune_image/pretrain.rs"]
mod pretrain;
#[path = "../examples/finetune_image/published.rs"]
mod published;
#[path = "finetune_image/real.rs"]
mod real;
#[path = "../examples/finetune_image/start.rs"]
mod start;
#[path = "../examples/finetune_image/task.rs"]
mod task;
#[path = "../examples/finetune_image/zero_shot.rs"]
mod zero_shot;

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use anyhow::Result;
use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use clap::{CommandFactory, Parser};
use image::{Rgb, RgbImage};
use serde_json::json;
use tpgm_candle::models::clip::{Clip, ClipConfig, ClipImageConfig, ClipLayout, ClipResNetConfig};
use tpgm_candle::models::resnet::{ResNet, ResNetBlock, ResNetConfig};
use tpgm_candle::models::vit::{Vit, VitConfig, VitLayout};
use tpgm_candle::nn::DropoutRng;
use tpgm_examples::progress::Progress;
use tpgm_examples::stop::Stop;

use crate::cli::run;
use crate::common::{outcomes, results, save, tokenizer};
use crate::options::Args;

const CLASSES: [&str; 3] = ["apple", "banana", "cherry"];

/// A folder of images: each class has a color of its own, which `shade` changes.
fn folder(root: &Path, count: usize, shade: u8) {
    for (class, name) in CLASSES.into_iter().enumerate() {
        fs::create_dir_all(root.join(name)).unwrap();
        for number in 0..count {
            let image = RgbImage::from_fn(11 + number as u32 % 3, 9, |x, y| {
                let mut color = [shade; 3];
                color[class] = 150 + (x * 7 + y * 5 + number as u32 * 11) as u8 % 80;
                Rgb(color)
            });
            image.save(root.join(name).join(format!("{number}.png"))).unwrap();
        }
    }
}

fn builder(map: &VarMap) -> VarBuilder<'static> {
    VarBuilder::from_varmap(map, DType::F32, &Device::Cpu)
}

fn resnet(folder: &Path, prefix: &str) {
    let config =
        ResNetConfig { block: ResNetBlock::Bottleneck, layers: [1; 4], width: 2, ..ResNetConfig::resnet50() };
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("shape.json"), serde_json::to_string(&config).unwrap()).unwrap();
    let map = VarMap::new();
    ResNet::new(&config, builder(&map)).unwrap();
    save(&map, &folder.join("model.safetensors"), prefix, HashMap::new());
}

fn vit(folder: &Path) {
    let config = json!({"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12,
        "image_size": 8, "patch_size": 4});
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let config = VitConfig::from_file(folder.join("config.json")).unwrap();
    let map = VarMap::new();
    Vit::with_layout(&config, VitLayout::HuggingFace, &DropoutRng::new(0), builder(&map)).unwrap();
    save(&map, &folder.join("model.safetensors"), "", HashMap::new());
}

/// CLIP with a vision transformer or a ResNet, and a tokenizer of words.
fn clip(folder: &Path, with_resnet: bool) {
    let tower =
        json!({"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12});
    let both = |more: serde_json::Value| {
        let mut tower = tower.clone();
        tower.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        tower
    };
    let text = both(json!({"vocab_size": 12, "max_position_embeddings": 10, "eos_token_id": 2}));
    let image = both(json!({"image_size": 8, "patch_size": 4}));
    let config = json!({"projection_dim": 6, "text_config": text, "vision_config": image});
    fs::create_dir_all(folder).unwrap();
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let mut config = ClipConfig::from_file(folder.join("config.json")).unwrap();
    let mut layout = ClipLayout::HuggingFace;
    if with_resnet {
        let resnet =
            ClipResNetConfig { layers: [1; 4], width: 2, heads: 2, image_size: 32, ..Default::default() };
        (config.image, layout) = (ClipImageConfig::ResNet(resnet), ClipLayout::OpenAi);
        fs::write(folder.join("shape.json"), serde_json::to_string(&config).unwrap()).unwrap();
    }
    let map = VarMap::new();
    Clip::with_layout(&config, layout, builder(&map)).unwrap();
    save(&map, &folder.join("model.safetensors"), "", HashMap::new());

    let words = [
        "[PAD]", "[UNK]", "a", "photo", "of", "apple", "banana", "cherry", ".", "drawing", "[START]", "[END]",
    ];
    tokenizer(&folder.join("tokenizer.json"), &words, [Some("[START]"), Some("[END]")]);
}

/// Images, without a network.
fn study() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (name, count, shade) in [("train", 8, 20), ("val", 4, 20), ("real", 3, 20), ("sketch", 2, 120)] {
        folder(&root.path().join(name), count, shade);
    }
    root
}

/// Runs the command line on the images, with some options more.
fn command(root: &Path, out: &str, options: &[&str], stop: &Stop) -> Result<()> {
    let path = |name: &str| root.join(name).to_str().unwrap().to_owned();
    let (train, held_out, out) = (path("train"), path("val"), path(out));
    let tests = [format!("real={}", path("real")), path("sketch")];
    let args = ["finetune_image", "--train", &train, "--held-out", &held_out, "--out", &out, "--side", "32"];
    let more = ["--test", &tests[0], "--test", &tests[1], "--epochs", "2", "--batch", "8"];
    let options = options.iter().map(|option| option.replace("ROOT", root.to_str().unwrap()));
    let args = args.iter().chain(&more).map(|arg| (*arg).to_owned()).chain(options);
    run(&Args::try_parse_from(args)?, &Progress::hidden(), stop)
}

const RESNET: [&str; 6] =
    ["--arch", "resnet50", "--model", "ROOT/resnet/model.safetensors", "--config", "ROOT/resnet/shape.json"];

#[test]
fn a_quick_run_needs_no_files() {
    let folder = tempfile::tempdir().unwrap();
    let made = tpgm_examples::quick::images(&folder.path().join("made")).unwrap();
    let out = folder.path().join("out");
    let given = ["--quick", "--epochs", "1", "--out", out.to_str().unwrap()];
    let args = ["finetune_image"].into_iter().chain(made.iter().map(String::as_str)).chain(given);
    run(&Args::try_parse_from(args).unwrap(), &Progress::hidden(), &Stop::never()).unwrap();
    common::check_page(&out, &["bright", "<td>epochs</td><td>1</td>"]);
}

#[test]
fn the_help_fits_a_screen() {
    common::check_help(Args::command());
}

#[test]
fn an_interrupted_run_of_a_resnet_goes_on_to_the_same_bits() {
    let root = study();
    resnet(&root.path().join("resnet"), "");
    let options = [&RESNET[..], &["--methods", "tpgm,wise-ft,ftp", "--save-every", "2"]].concat();
    command(root.path(), "whole", &options, &Stop::never()).unwrap();
    command(root.path(), "cut", &options, &Stop::after(4)).unwrap();
    assert!(!root.path().join("cut/table.md").exists());
    let again = [&options[..], &["--resume"]].concat();
    for _ in 0..2 {
        command(root.path(), "cut", &again, &Stop::after(7)).unwrap();
    }
    command(root.path(), "cut", &again, &Stop::never()).unwrap();
    let [(outcomes, models), (expected, expected_models)] =
        ["cut", "whole"].map(|out| results(&root.path().join(out)));
    assert_eq!(outcomes, expected);
    assert_eq!(models.len(), 4);
    assert!(models == expected_models);
    // Training has moved the running statistics, and they are saved.
    let load = |path: &str| candle_core::safetensors::load(root.path().join(path), &Device::Cpu).unwrap();
    let mean = |tensors: HashMap<String, Tensor>| tensors["bn1.running_mean"].to_vec1::<f32>().unwrap();
    assert_ne!(
        mean(load("whole/runs/TPGM_lr0.00001_0.01_seed0/model.safetensors")),
        mean(load("whole/start.safetensors"))
    );
}

#[test]
fn a_search_replaces_the_grid() {
    let root = study();
    resnet(&root.path().join("resnet"), "");
    common::check_search(root.path(), |out, options, stop| {
        command(root.path(), out, &[&RESNET[..], options].concat(), stop)
    });
}

#[test]
fn the_domainnet_preset_shows_published_beside_measured_numbers() {
    let root = study();
    resnet(&root.path().join("resnet"), "module.base_encoder.");
    let options = [&RESNET[..], &["--preset", "domainnet", "--prefix", "module.base_encoder."]].concat();
    command(root.path(), "out", &options, &Stop::never()).unwrap();
    let published = fs::read_to_string(root.path().join("out/published.md")).unwrap();
    assert!(published.contains("| TPGM | published | 81.30 | 35.68 |"), "{published}");
    assert_eq!(published.matches("| measured |").count(), 2, "{published}");
    let outcomes = outcomes(&root.path().join("out/outcomes.json"));
    let rates: Vec<_> = outcomes.iter().map(|outcome| outcome.setting.lr).collect();
    assert_eq!(rates, [5e-2, 1e-2]);
}

#[test]
fn the_imagenet_preset_goes_from_zero_shot_to_a_model_tuned_elsewhere() {
    let root = study();
    clip(&root.path().join("clip"), false);
    let names = root.path().join("names.txt");
    fs::write(&names, "apple\nbanana\ncherry\n").unwrap();
    let clip =
        ["--arch", "clip-vit", "--model", "ROOT/clip", "--zero-shot", "--template", "a photo of a {}."];
    let more = ["--template", "a drawing of a {}.", "--class-names", "ROOT/names.txt"];
    // Something to start from: fine-tuned here, then used as if it came from elsewhere.
    let tuned = [&clip[..], &more, &["--methods", "zero-shot,fine-tuning", "--rates", "1e-2"]].concat();
    command(root.path(), "tuned", &tuned, &Stop::never()).unwrap();
    let file = "ROOT/tuned/runs/fine-tuning_lr0.01_seed0/model.safetensors";
    let options =
        [&clip[..], &more, &["--preset", "imagenet", "--tuned", file, "--test", "ROOT/sketch"]].concat();
    command(root.path(), "out", &options, &Stop::never()).unwrap();

    let read = |out: &str| outcomes(&root.path().join(out).join("outcomes.json"));
    let (before, after) = (read("tuned"), read("out"));
    let names: Vec<_> =
        after.iter().map(|outcome| (outcome.setting.method.name(), outcome.setting.strength)).collect();
    let wise = [0.4, 0.5, 0.6, 0.7].map(|share| ("WiSE-FT", Some(share)));
    let expected =
        [&[("zero-shot", None), ("fine-tuning", None)], &wise[..], &[("TPGM post hoc", Some(6.0))]].concat();
    assert_eq!(names, expected);
    // The same two models, found the same.
    assert_eq!(after[0].scores.accuracy[..2], before[0].scores.accuracy[..]);
    assert_eq!(after[1].scores.accuracy[..2], before[1].scores.accuracy[..]);
    assert!(
        fs::read_to_string(root.path().join("out/published.md"))
            .unwrap()
            .contains("| WiSE-FT 0.5 | published |")
    );
}

#[test]
fn a_tokenizer_with_more_tokens_than_clip_is_named() {
    let root = study();
    clip(&root.path().join("clip"), false);
    // The same words, and `banana` where the model knows nothing more.
    let words = [
        "[PAD]", "[UNK]", "a", "photo", "of", "apple", "?", "cherry", ".", "drawing", "[START]", "[END]",
        "banana",
    ];
    tokenizer(&root.path().join("clip/tokenizer.json"), &words, [Some("[START]"), Some("[END]")]);
    let options = ["--arch", "clip-vit", "--model", "ROOT/clip", "--zero-shot", "--methods", "zero-shot"];
    let error = format!("{:#}", command(root.path(), "out", &options, &Stop::never()).unwrap_err());
    for part in [
        "a prompt of `banana`: token 12 (`banana`)",
        "clip/tokenizer.json",
        "clip/model.safetensors",
        "knows 12 tokens",
    ] {
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn a_vit_and_clips_resnet_are_fine_tuned_too() {
    let root = study();
    vit(&root.path().join("vit"));
    clip(&root.path().join("clip"), true);
    let vit = ["--arch", "vit", "--model", "ROOT/vit", "--methods", "fine-tuning,spd"];
    command(root.path(), "vit-out", &vit, &Stop::never()).unwrap();
    let clip = ["--arch", "clip-resnet50", "--model", "ROOT/clip", "--config", "ROOT/clip/shape.json"];
    let options = [&clip[..], &["--methods", "lp-ft,linear-probe"]].concat();
    command(root.path(), "clip-out", &options, &Stop::never()).unwrap();
    for out in ["vit-out", "clip-out"] {
        let table = fs::read_to_string(root.path().join(out).join("table.md")).unwrap();
        assert_eq!(table.lines().count(), 4, "{table}");
    }
    let tuned = root.path().join("clip-out/runs/LP-FT_lr0.00001_seed0/model.safetensors");
    let tuned = candle_core::safetensors::load(tuned, &Device::Cpu).unwrap();
    assert!(
        tuned.contains_key("visual.attnpool.positional_embedding")
            && tuned["classifier.weight"].dims() == [3, 6]
    );
}

#[test]
fn half_precision_trains_and_is_saved() {
    let root = study();
    vit(&root.path().join("vit"));
    for (dtype, expected) in [("bf16", DType::BF16), ("f16", DType::F16)] {
        let vit = ["--arch", "vit", "--model", "ROOT/vit", "--methods", "lp-ft", "--dtype", dtype];
        command(root.path(), dtype, &vit, &Stop::never()).unwrap();
        let tuned = root.path().join(dtype).join("runs/LP-FT_lr0.00001_seed0/model.safetensors");
        let tuned = candle_core::safetensors::load(tuned, &Device::Cpu).unwrap();
        assert!(tuned.values().all(|tensor| tensor.dtype() == expected), "{dtype}");
    }
}

#[test]
fn images_that_cannot_be_read_are_passed_over_or_named() {
    let root = study();
    resnet(&root.path().join("resnet"), "");
    for name in ["train/apple/0.png", "sketch/cherry/1.png"] {
        fs::write(root.path().join(name), "not an image").unwrap();
    }
    let options = [&RESNET[..], &["--methods", "fine-tuning"]].concat();
    command(root.path(), "out", &options, &Stop::never()).unwrap();
    let outcomes = outcomes(&root.path().join("out/outcomes.json"));
    // Five sketches are left: the accuracy is a multiple of a fifth.
    let fifths = outcomes[0].scores.accuracy[1] * 5.0;
    assert!((fifths - fifths.round()).abs() < 1e-9, "{fifths}");
    let strict = [&options[..], &["--strict"]].concat();
    let error = format!("{:#}", command(root.path(), "strict", &strict, &Stop::never()).unwrap_err());
    assert!(error.contains("train/apple/0.png: cannot be decoded"), "{error}");
}

#[test]
fn lists_are_read_and_what_does_not_fit_is_named() {
    let root = study();
    resnet(&root.path().join("resnet"), "");
    let mut list = String::new();
    for (class, name) in CLASSES.into_iter().enumerate() {
        (0..8).for_each(|number| writeln!(list, "train/{name}/{number}.png {class}").unwrap());
    }
    fs::write(root.path().join("real_train.txt"), list).unwrap();
    let lists = ["--train", "ROOT/real_train.txt", "--held-out", "ROOT/real_train.txt"];
    let methods = ["--methods", "fine-tuning", "--epochs", "1"];
    let with_tests = |tests: &[&str], more: &[&str]| {
        let root = root.path().to_str().unwrap();
        let args = ["finetune_image", "--out", "ROOT/lists", "--side", "32", "--batch", "8"];
        let all = args.iter().chain(&lists).chain(&methods).chain(&RESNET).chain(tests).chain(more);
        let args = all.map(|arg| arg.replace("ROOT", root));
        run(&Args::try_parse_from(args)?, &Progress::hidden(), &Stop::never())
    };
    with_tests(&["--test", "ROOT/real_train.txt"], &[]).unwrap();
    let fails = |tests: &[&str], more: &[&str]| format!("{:#}", with_tests(tests, more).unwrap_err());
    let has = |error: String, part: &str| assert!(error.contains(part), "{part}: {error}");
    let test = ["--test", "ROOT/real_train.txt"];
    has(fails(&["--test", "ROOT/nowhere"], &[]), "there is no folder or list file");
    has(fails(&["--test", "ROOT/sketch"], &[]), "folder `apple` is not one of the training set's classes");
    has(fails(&test, &["--methods", "zero-shot"]), "zero-shot needs a checkpoint that classifies already");
    has(fails(&test, &["--zero-shot"]), "zero-shot needs a text tower: CLIP");
    has(
        fails(&test, &["--zero-shot", "--methods", "lp-ft"]),
        "LP-FT makes a new head, but the checkpoint has one",
    );
    has(fails(&test, &["--tuned", "x.safetensors"]), "--tuned goes with --zero-shot");
    has(fails(&test, &["--smallest-area", "0"]), "--smallest-area");
    has(fails(&test, &["--prefix", "module."]), "does not fit the network");
    has(fails(&test, &["--model", "ROOT/nowhere"]), "there is no folder");
    has(fails(&test, &["--config", "ROOT/real_train.txt"]), "real_train.txt");
}

#[test]
fn the_device_is_an_option() {
    let root = study();
    resnet(&root.path().join("resnet"), "");
    common::check_device_option(|device| {
        let options = [&RESNET[..], &["--methods", "fine-tuning", "--epochs", "1"], device].concat();
        command(root.path(), "out", &options, &Stop::never())
    });
}
