//! What goes wrong, and interruptions. Images are few and small runs short: nothing here is about accuracy.

#![allow(clippy::unwrap_used, reason = "helpers of tests, too")]

// The modules of the example, as its main file has them: an example is not a library that a test could use.
#[path = "../examples/domainnet_mini/cli.rs"]
mod cli;
mod common;
#[path = "../examples/domainnet_mini/evaluate.rs"]
mod evaluate;
#[path = "../examples/domainnet_mini/pretrain.rs"]
mod pretrain;
#[path = "../examples/domainnet_mini/samples.rs"]
mod samples;
#[path = "../examples/domainnet_mini/task.rs"]
mod task;
#[path = "../examples/domainnet_mini/windows.rs"]
mod windows;
#[path = "../examples/domainnet_mini/world.rs"]
mod world;

use std::fs;
use std::path::Path;

use anyhow::Result;
use candle_core::{DType, Device, Tensor, Var};
use clap::{CommandFactory, Parser};
use tpgm_candle::Params;
use tpgm_examples::mini::{Backbone, neighbors};
use tpgm_examples::progress::Progress;
use tpgm_examples::stop::Stop;
use tpgm_examples::study::{Lab, Method, Setting};

use crate::cli::{Args, recipe, run};
use crate::common::results;
use crate::windows::{labels, windows};
use crate::world::{Scale, World};
use tpgm_examples::mini::data::{Domain, Request, Split};

fn checkpoint() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/domainnet_mini/pretrained.safetensors")
}

/// Runs the command line in a folder.
fn command(out: &Path, options: &[&str], stop: &Stop) -> Result<()> {
    let out = out.to_str().unwrap();
    let args = ["domainnet_mini", "--quick", "--jobs", "1", "--out", out];
    run(&Args::try_parse_from(args.iter().chain(options))?, &Progress::hidden(), stop)
}

#[test]
fn the_help_fits_a_screen() {
    common::check_help(Args::command());
}

#[test]
fn pixels_do_not_depend_on_threads_or_on_what_else_is_drawn() {
    let request = Request::fine_tuning(3, 4).of(Split::Test, 3);
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| request.draw(&Domain::ALL))
    };
    let (one, three) = (on(1), on(3));
    assert!((0..one.len()).all(|image| one.image(image) == three.image(image)));
    // The third class's sketches alone, from the second on.
    let sketches = request.of(Split::Test, 2).from(1).draw(&[Domain::Sketch]);
    assert_eq!(sketches.image(2 * 2), one.image(2 * 18 + 3 + 1));
    assert_eq!(sketches.labels()[4], 2);
}

#[test]
fn splits_seeds_and_domains_have_different_images() {
    let request = Request::fine_tuning(3, 2);
    let image = |request: Request, split, domain| request.of(split, 1).draw(&[domain]).image(0).to_vec();
    let images = [
        image(request, Split::Train, Domain::Real),
        image(request, Split::Radii, Domain::Real),
        image(request, Split::Choice, Domain::Real),
        image(request, Split::Test, Domain::Real),
        image(request, Split::Test, Domain::Sketch),
        image(Request::fine_tuning(4, 2), Split::Test, Domain::Real),
        image(Request::pretraining(3, 2), Split::Test, Domain::Real),
    ];
    for (number, one) in images.iter().enumerate() {
        assert!(images[..number].iter().all(|other| other != one), "image {number}");
    }
}

#[test]
fn a_window_shows_the_pixels_around_its_token() {
    let images = Request::fine_tuning(0, 2).of(Split::Train, 1).draw(&[Domain::Real]);
    let values = windows(&images, &[1]).unwrap().to_vec2::<f32>().unwrap();
    let value = |row: usize, column: usize, channel: usize| {
        f32::from(images.image(1)[(row * 32 + column) * 3 + channel]) / 64.0 - 2.0
    };
    // Token (1, 2) begins two pixels above and left of pixel (4, 8).
    assert_eq!(values[10][0], value(2, 6, 0));
    assert_eq!(values[10][(3 * 8 + 5) * 3 + 2], value(5, 11, 2));
    assert!(values[0][..8 * 3 * 2].iter().all(|margin| *margin == 0.0));
    assert_eq!(labels(&images, &[1, 0]).unwrap().to_vec1::<u32>().unwrap(), [1, 0]);
}

#[test]
fn neighbors_are_those_of_the_picture_and_their_gradient_is_right() {
    let values: Vec<f32> = (0..2 * 3 * 4 * 2).map(|number| (number as f32 * 0.7).sin()).collect();
    let x = Var::from_vec(values.clone(), (2, 3, 4, 2), &Device::Cpu).unwrap();
    let found = neighbors(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    let at = |image: usize, row: isize, column: isize, channel: usize| {
        let inside = (0..3).contains(&row) && (0..4).contains(&column);
        let position = |row: usize, column: usize| ((image * 3 + row) * 4 + column) * 2 + channel;
        if inside { values[position(row as usize, column as usize)] } else { 0.0 }
    };
    let mut expected = Vec::new();
    for (image, row, column) in
        (0..24).map(|token| (token / 12, (token / 4 % 3) as isize, (token % 4) as isize))
    {
        for (slot, channel) in (0..18).map(|entry| ((entry / 2) as isize, entry % 2)) {
            expected.push(at(image, row + slot / 3 - 1, column + slot % 3 - 1, channel));
        }
    }
    assert_eq!(found, expected);

    // The map is linear: <neighbors(x), weights> has the gradient whose product with x is itself, for every x.
    let weights: Vec<f32> = (0..found.len()).map(|number| (number as f32 * 1.3).cos()).collect();
    let weights = Tensor::from_vec(weights, (2, 3, 4, 18), &Device::Cpu).unwrap();
    let loss = |x: &Tensor| (neighbors(x).unwrap() * &weights).unwrap().sum_all().unwrap();
    let grad = loss(&x).backward().unwrap().get(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for (position, grad) in grad.iter().enumerate() {
        let mut unit = vec![0f32; values.len()];
        unit[position] = 1.0;
        let unit = Tensor::from_vec(unit, (2, 3, 4, 2), &Device::Cpu).unwrap();
        let along = loss(&unit).to_scalar::<f32>().unwrap();
        assert!((grad - along).abs() < 1e-5, "{position}: {grad} {along}");
    }
}

#[test]
fn the_device_is_an_option() {
    let folder = tempfile::tempdir().unwrap();
    common::check_device_option(|device| {
        command(folder.path(), &[&["--steps", "2"], device].concat(), &Stop::never())
    });
}

#[test]
fn no_images_and_images_of_one_class_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let error =
        |options: &[&str]| format!("{:#}", command(folder.path(), options, &Stop::never()).unwrap_err());
    assert!(error(&["--images", "0"]).contains("there are no training images"));
    assert!(error(&["--classes", "0"]).contains("there are no training images"));
    assert!(error(&["--classes", "1"]).contains("all training images are of one class"));
    assert!(error(&["--batch", "0"]).contains("--batch"));
}

#[test]
fn batches_of_one_image_are_trained_on() {
    let folder = tempfile::tempdir().unwrap();
    command(folder.path(), &["--batch", "1", "--steps", "2"], &Stop::never()).unwrap();
    assert!(folder.path().join("table.md").exists());
}

#[test]
fn a_loss_that_is_not_finite_is_reported_with_step_and_learning_rate() {
    let folder = tempfile::tempdir().unwrap();
    let world = World::draw(0, &Scale::QUICK).unwrap();
    let lab = Lab {
        task: &world,
        recipe: &recipe(&Scale::QUICK, true),
        checkpoint: checkpoint(),
        tuned: None,
        runs: folder.path().to_owned(),
        records: None,
        device: &Device::Cpu,
        progress: &Progress::hidden(),
        stop: &Stop::never(),
    };
    let setting = Setting { method: Method::FineTuning, lr: 1e25, strength: None, seed: 0 };
    let error = format!("{:#}", lab.train(setting, None).unwrap_err());
    assert!(error.contains("fine-tuning: step 1 at learning rate 9.33e24: the loss is NaN"), "{error}");
}

#[test]
fn a_head_pattern_that_matches_nothing_is_an_error() {
    let params = Params::open(checkpoint(), &Device::Cpu).unwrap().head("classifier.*");
    let error = Backbone::new(4, params.var_builder()).err().unwrap().to_string();
    assert!(error.contains("head.weight"), "{error}");
}

#[test]
fn a_checkpoint_of_half_precision_is_trained_in_single_precision() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("half.safetensors");
    let tensors = candle_core::safetensors::load(checkpoint(), &Device::Cpu).unwrap();
    let half = |(name, tensor): (String, Tensor)| (name, tensor.to_dtype(DType::F16).unwrap());
    let tensors: std::collections::HashMap<_, _> = tensors.into_iter().map(half).collect();
    candle_core::safetensors::save(&tensors, &path).unwrap();
    let path = path.to_str().unwrap();
    command(&folder.path().join("out"), &["--checkpoint", path, "--steps", "2"], &Stop::never()).unwrap();
}

#[test]
fn an_interrupted_run_goes_on_to_the_same_bits() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, cut) = (folder.path().join("whole"), folder.path().join("cut"));
    command(&whole, &[], &Stop::never()).unwrap();
    // Stopped within the probe, LP-FT, and after that in every later run.
    command(&cut, &[], &Stop::after(3)).unwrap();
    assert!(!cut.join("table.md").exists());
    for _ in 0..6 {
        command(&cut, &["--resume"], &Stop::after(8)).unwrap();
    }
    command(&cut, &["--resume"], &Stop::never()).unwrap();
    let ((outcomes, models), (expected, expected_models)) = (results(&cut), results(&whole));
    assert_eq!(outcomes, expected);
    assert_eq!(models.len(), 9);
    for ((name, bytes), (expected_name, expected_bytes)) in models.iter().zip(&expected_models) {
        assert_eq!(name, expected_name);
        assert!(bytes == expected_bytes, "{name}");
    }
}

#[test]
fn resuming_needs_a_run_of_the_same_options() {
    let folder = tempfile::tempdir().unwrap();
    let error =
        |options: &[&str]| format!("{:#}", command(folder.path(), options, &Stop::never()).unwrap_err());
    assert!(error(&["--resume"]).contains("leave out --resume"));
    command(folder.path(), &["--steps", "2"], &Stop::after(1)).unwrap();
    assert!(error(&["--resume"]).contains("was begun with other options"));
}

#[test]
fn the_quick_run_leaves_tables_plots_logs_and_checkpoints() {
    let folder = tempfile::tempdir().unwrap();
    command(folder.path(), &[], &Stop::never()).unwrap();
    let table = fs::read_to_string(folder.path().join("table.md")).unwrap();
    assert_eq!(table.lines().count(), 2 + Method::ALL.len());
    for word in Method::ALL.map(Method::name).iter().chain(&[
        "real (ID)",
        "sketch",
        "quickdraw",
        "OOD mean",
        "seconds",
    ]) {
        assert!(table.contains(word), "{word}: {table}");
    }
    for file in [
        "report.html",
        "table.csv",
        "samples.svg",
        "frontier.svg",
        "radius_tpgm.svg",
        "ratio_ftp.svg",
        "config.json",
    ] {
        assert!(folder.path().join(file).exists(), "{file}");
    }
    common::check_page(folder.path(), &["Radii of TPGM at the end", "<td>scale.classes</td>", "quickdraw"]);
    let run = folder.path().join("runs/FTP_lr0.001_1_seed0");
    for file in ["log.jsonl", "tensorboard", "checkpoints", "model.safetensors", "outcome.json"] {
        assert!(run.join(file).exists(), "{file}");
    }
}

/// By hand, with `--ignored` where Chromium is installed: `TPGM_SCREENSHOT=page.png` keeps the picture.
#[test]
#[ignore = "takes Chromium"]
fn a_browser_shows_the_page() {
    let folder = tempfile::tempdir().unwrap();
    command(folder.path(), &[], &Stop::never()).unwrap();
    let page = format!("file://{}", folder.path().join("report.html").display());
    let picture = std::env::var_os("TPGM_SCREENSHOT")
        .map_or_else(|| folder.path().join("page.png"), std::path::PathBuf::from);
    let browser = |options: &[&str]| {
        let shared = ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1200,3000"];
        let output = std::process::Command::new("chromium").args(shared).args(options).arg(&page).output();
        let output = output.expect("Chromium starts");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let shown = browser(&["--dump-dom"]);
    common::has(&shown, &["<svg", "quickdraw", "Radii of TPGM at the end"]);
    browser(&[&format!("--screenshot={}", picture.display())]);
    let pixels = image::open(&picture).unwrap().to_rgb8();
    assert_eq!(pixels.dimensions(), (1200, 3000));
    // Text, lines and marks of several colors, from top to bottom.
    for part in 0..5 {
        let rows = (part * 600..(part + 1) * 600).flat_map(|y| (0..1200).map(move |x| (x, y)));
        let colors: std::collections::HashSet<_> = rows.map(|(x, y)| pixels.get_pixel(x, y).0).collect();
        assert!(colors.len() > 10, "{} colors from line {}", colors.len(), part * 600);
    }
}

/// Sends this process a real Ctrl-C.
#[cfg(unix)]
#[test]
fn ctrl_c_saves() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("runs/linear-probe_lr0_seed0");
    let stop = Stop::never();
    stop.on_ctrl_c().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !run.join("log.jsonl").exists() {
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            let own = std::process::id().to_string();
            assert!(std::process::Command::new("kill").args(["-INT", &own]).status().unwrap().success());
        });
        command(folder.path(), &["--steps", "1000000"], &stop).unwrap();
    });
    assert_eq!(fs::read_dir(run.join("checkpoints")).unwrap().filter(is_checkpoint).count(), 1);
    assert!(!folder.path().join("table.md").exists());
}

#[cfg(unix)]
fn is_checkpoint(entry: &std::io::Result<fs::DirEntry>) -> bool {
    entry.as_ref().unwrap().file_name().to_str().unwrap().starts_with("step-")
}
