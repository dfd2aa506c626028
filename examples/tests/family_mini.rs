//! What goes wrong, interruptions, and what rows promise. Images are few and runs short: nothing here is about accuracy, but that
//! of the committed pair.

#![allow(clippy::unwrap_used, reason = "helpers of tests, too")]

// The modules of the example, as its main file has them: an example is not a library that a test could use.
#[path = "../examples/family_mini/cli.rs"]
mod cli;
mod common;
#[path = "family_mini/graph_mini.rs"]
mod graph_mini;
#[path = "../examples/family_mini/lab.rs"]
mod lab;
#[path = "../examples/family_mini/method.rs"]
mod method;
#[path = "../examples/family_mini/net.rs"]
mod net;
#[path = "../examples/family_mini/pretrain.rs"]
mod pretrain;
#[path = "../examples/family_mini/report.rs"]
mod report;
#[path = "../examples/family_mini/rows/mod.rs"]
mod rows;
#[path = "../examples/family_mini/world.rs"]
mod world;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::Result;
use candle_core::{D, Tensor};
use clap::{CommandFactory, Parser};
use tpgm_candle::nn::losses::energy_gap;
use tpgm_candle::search::Record;
use tpgm_candle::teacher::Teacher;
use tpgm_examples::metrics::share_of_right;
use tpgm_examples::mini::data::{Detail, Domain, Request, Split};
use tpgm_examples::progress::Progress;
use tpgm_examples::search::{Point, Sampler, SearchArgs, sweep, sweep_over_seeds};
use tpgm_examples::stop::Stop;

use crate::cli::{Args, run};
use crate::lab::{Lab, Net, Outcome, Spent, Trained, in_parts};
use crate::method::{Method, Setting};
use crate::net::{ids, pixels, unit};
use crate::world::{REPORTED, SHIFTED, Scale, World};

fn checkpoint() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/family_mini/pretrained.safetensors")
}

/// Runs the command line in a folder.
fn command(out: &Path, options: &[&str], stop: &Stop) -> Result<()> {
    let args = ["family_mini", "--quick", "--jobs", "1", "--out", out.to_str().unwrap()];
    run(&Args::try_parse_from(args.iter().chain(options))?, &Progress::hidden(), stop)
}

/// What must be the same after an interruption.
fn results(out: &Path) -> Vec<(Setting, f64, Vec<f64>, Vec<String>)> {
    let outcomes: Vec<Outcome> =
        serde_json::from_slice(&fs::read(out.join("outcomes.json")).unwrap()).unwrap();
    let kept = |outcome: Outcome| (outcome.setting, outcome.choice, outcome.accuracy, outcome.notes);
    outcomes.into_iter().map(kept).collect()
}

/// A very small laboratory.
fn in_lab(check: impl FnOnce(&Lab<'_>)) {
    let folder = tempfile::tempdir().unwrap();
    // Streams of several steps.
    let scale = Scale { choice: 12, test: 12, ..Scale::QUICK };
    let world = World::draw(0, &scale).unwrap();
    let lab = Lab {
        world: &world,
        scale,
        checkpoint: checkpoint(),
        head: folder.path().join("zero_shot.safetensors"),
        runs: folder.path().join("runs"),
        records: None,
        journal: folder.path().join("autoft.jsonl"),
        seed: 0,
        progress: &Progress::hidden(),
        stop: &Stop::never(),
    };
    lab.write_head().unwrap();
    check(&lab);
}

fn setting(method: Method) -> Setting {
    let (lr, strength) = method.setting();
    Setting { method, lr, strength, seed: 0 }
}

fn rows_of(tensor: &Tensor) -> Vec<Vec<f32>> {
    tensor.to_vec2().unwrap()
}

#[test]
fn the_help_fits_a_screen() {
    common::check_help(Args::command());
}

#[test]
fn a_quick_study_has_every_row_and_goes_on_after_an_interruption() {
    let (whole, stopped) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    command(whole.path(), &[], &Stop::never()).unwrap();
    let expected = results(whole.path());
    assert_eq!(
        expected.iter().map(|result| result.0.method).collect::<std::collections::BTreeSet<_>>().len(),
        25
    );
    let table = fs::read_to_string(whole.path().join("table.md")).unwrap();
    for method in Method::ALL {
        assert!(table.contains(&format!("| {} |", method.name())), "{table}");
    }
    assert!(!table.contains(SHIFTED.name()) && table.contains("sketch"), "{table}");
    let parts =
        ["AutoFT", "Choice of settings", "Accuracy under shift in the other domains", "<svg", "scale.steps"];
    common::check_page(whole.path(), &parts);
    for (setting, choice, accuracy, notes) in &expected {
        assert_eq!(accuracy.len(), REPORTED.len());
        assert!(accuracy.iter().chain([choice]).all(|share| (0.0..=1.0).contains(share)), "{setting:?}");
        let has_notes = matches!(setting.method, Method::AutoFt | Method::PromptsMoved);
        assert_eq!(!notes.is_empty(), has_notes, "{setting:?}");
    }

    command(stopped.path(), &[], &Stop::after(45)).unwrap();
    assert!(!stopped.path().join("outcomes.json").exists());
    let done = fs::read_dir(stopped.path().join("runs")).unwrap().count();
    assert!((2..24).contains(&done), "{done} files");
    command(stopped.path(), &["--resume"], &Stop::never()).unwrap();
    assert_eq!(results(stopped.path()), expected);
    // From records alone, without a run: a stop at once does not matter.
    let (elsewhere, records) = (tempfile::tempdir().unwrap(), stopped.path().join("kept/outcomes.jsonl"));
    let outcomes = ["--outcomes", records.to_str().unwrap()];
    command(stopped.path(), &outcomes, &Stop::never()).unwrap();
    assert_eq!(fs::read_dir(stopped.path().join("kept")).unwrap().count(), 2, "outcomes and trials");
    command(elsewhere.path(), &outcomes, &Stop::after(0)).unwrap();
    assert_eq!(results(elsewhere.path()), expected);
    let error = command(stopped.path(), &["--resume", "--steps", "7"], &Stop::never()).unwrap_err();
    assert!(format!("{error:#}").contains("steps: 6 when it was begun, 7 now"), "{error:#}");
}

/// The committed outcomes are read, and nothing is trained, drawn from them or chosen anew.
#[test]
fn committed_outcomes_lead_to_the_committed_table() {
    let results = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/family_mini/results");
    let outcomes: Vec<Outcome> = fs::read_to_string(results.join("outcomes.jsonl"))
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let methods = Method::ALL.map(|method| (method, method.name(), method.axes())).to_vec();
    let run = |points: Vec<(Method, Point, u64)>| {
        let of =
            |setting: Setting| outcomes.iter().find(|outcome| outcome.setting == setting).cloned().unwrap();
        let outcome = |(method, (lr, strength), seed)| of(Setting { method, lr, strength, seed });
        Ok(Some(points.into_iter().map(outcome).collect()))
    };
    let (args, nowhere) = (SearchArgs::default(), Path::new("nowhere"));
    let swept =
        sweep_over_seeds(&args, nowhere, 0..3, methods, run, |outcome| outcome.choice).unwrap().unwrap();
    let out = tempfile::tempdir().unwrap();
    fs::write(out.path().join("config.json"), "{}").unwrap();
    report::write(out.path(), &swept, &Progress::hidden()).unwrap();
    for name in ["table.md", "choices.md", "notes.md"] {
        let [new, committed] =
            [out.path(), &results].map(|folder| fs::read_to_string(folder.join(name)).unwrap());
        assert_eq!(new, committed, "{name}");
    }
}

/// A method that is made of another, one alone, and one with nothing to search: with a search, too, they go on.
#[test]
fn a_search_goes_on_from_its_journals() {
    in_lab(|lab| {
        let folder = tempfile::tempdir().unwrap();
        let methods = || {
            let of = [Method::ZeroShot, Method::WiseFt, Method::Levi];
            of.map(|method| (method, method.name(), method.axes())).to_vec()
        };
        let args = SearchArgs { search: Sampler::Tpe, trials: std::num::NonZero::new(5) };
        let in_rounds = |rounds: usize| {
            let mut left = rounds;
            let run = |points: Vec<(Method, Point)>| {
                if left == 0 {
                    return Ok(None);
                }
                left -= 1;
                let setting = |(method, (lr, strength))| Setting { method, lr, strength, seed: 0 };
                let outcome = |point| Ok(rows::run(lab, &[setting(point)])?.remove(0));
                points.into_iter().map(outcome).collect::<Result<Vec<_>>>().map(Some)
            };
            sweep(&args, folder.path(), 0, methods(), run, |outcome: &Outcome| outcome.choice).unwrap()
        };
        assert!(in_rounds(2).is_none());
        let tried = in_rounds(9).unwrap();
        assert_eq!(tried.iter().map(|tried| tried.outcomes.len()).collect::<Vec<_>>(), [1, 5, 5]);
        let mut settings: Vec<_> =
            tried.iter().flat_map(|tried| &tried.outcomes).map(|of| of.setting).collect();
        assert!(settings[1..6].iter().all(|of| (0.5..=0.7).contains(&of.amount()) && of.lr <= 1e-3));
        assert!(settings[6..].iter().all(|of| [0.0, 1.0].contains(&of.amount())));
        settings.dedup();
        assert_eq!(settings.len(), 11, "{settings:?}");
        let lines = fs::read_to_string(folder.path().join("WiSE-FT.jsonl")).unwrap().lines().count();
        assert_eq!(lines, 1 + 5);
    });
}

#[test]
fn what_does_not_fit_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let error =
        |options: &[&str]| format!("{:#}", command(folder.path(), options, &Stop::never()).unwrap_err());
    assert!(error(&["--steps", "0"]).contains("--steps is 0"));
    assert!(error(&["--checkpoint", "nowhere.safetensors"]).contains("nowhere.safetensors"));
    assert!(error(&["--resume"]).contains("there is no run in"));
    assert!(error(&["--trials", "3"]).contains("--trials: a grid has"));
}

#[test]
fn the_committed_pair_knows_classes_that_it_has_never_read_about() {
    in_lab(|lab| {
        let net = lab.net(Trained::Pair, 0).unwrap();
        // Of another world than that of the example, so that nothing of the table is looked at.
        let request = Request::fine_tuning(1_000, 24).of(Split::Test, 10);
        for domain in [Domain::Real, Domain::Sketch] {
            let images = request.draw(&[domain]);
            let texts: Vec<_> =
                request.words().iter().map(|words| words.text(domain, Detail::Name)).collect();
            let texts = unit(&net.pair.texts(&ids(&texts).unwrap()).unwrap()).unwrap();
            let seen = pixels(&images, 0..images.len()).unwrap();
            let scores = in_parts(&seen, |images| net.pair.images(images)?.matmul(&texts.t()?)).unwrap();
            let right = share_of_right(&scores, images.labels()).unwrap();
            // One in 24 by chance.
            assert!(right > 0.2, "{domain:?}: {right}");
        }
    });
}

#[test]
fn a_trained_head_begins_as_the_texts_of_the_classes() {
    in_lab(|lab| {
        let net = lab.net(Trained::Head, 0).unwrap();
        let images = &lab.world.choice.images;
        let head = net.text_head(&lab.world.templates, lab.world.classes()).unwrap();
        let by_texts = net.pair.images(images).unwrap().matmul(&head.t().unwrap()).unwrap();
        for (one, other) in
            rows_of(&net.logits(images).unwrap()).concat().iter().zip(rows_of(&by_texts).concat())
        {
            assert!((one - other).abs() < 1e-3, "{one} {other}");
        }
    });
}

#[test]
fn only_what_is_meant_to_be_is_trained() {
    in_lab(|lab| {
        let names = |trained| {
            let net = lab.net(trained, 0).unwrap();
            net.params.all().iter().map(|param| param.name().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names(Trained::Head), ["classifier.weight"]);
        let has = |trained, start: &str| names(trained).iter().any(|name| name.starts_with(start));
        let table = [
            (Trained::Image, [true, false, true, false]),
            (Trained::All, [true, true, true, false]),
            (Trained::Pair, [true, true, false, false]),
            (Trained::PairAndScale, [true, true, false, true]),
        ];
        for (trained, expected) in table {
            let starts = ["vision_model", "text_model", "classifier", "logit_scale"];
            assert_eq!(starts.map(|start| has(trained, start)), expected, "{trained:?}");
        }
    });
}

#[test]
fn energies_of_random_texts_have_not_moved_at_first() {
    in_lab(|lab| {
        let net = lab.net(Trained::Image, 0).unwrap();
        let mut teacher = Teacher::frozen(&net.params).unwrap();
        let images = &lab.world.train.images;
        let gap = |teacher: &mut Teacher| {
            let anchor = teacher.with(|| net.pair.images(images)).unwrap();
            let texts = net.pair.texts(&lab.world.pool.texts).unwrap();
            let gap = energy_gap(&net.pair.images(images).unwrap(), &anchor, &texts, 10.0).unwrap();
            gap.to_scalar::<f32>().unwrap()
        };
        assert_eq!(gap(&mut teacher), 0.0);
        let projection = net.params.get("visual_projection.weight").unwrap();
        projection.var().set(&(projection.var().as_tensor() * -1.0).unwrap()).unwrap();
        assert!(gap(&mut teacher) > 1e-3);
    });
}

/// How far the weights of a net are from their anchors.
fn moved(net: &Net) -> f32 {
    let values: BTreeMap<_, _> =
        net.params.values().into_iter().map(|(name, value)| (name, value.copy().unwrap())).collect();
    net.params.reset_to_anchors().unwrap();
    let far = |(name, value): (&String, &Tensor)| {
        let anchor = &net.params.values()[name];
        (value - anchor).unwrap().sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap()
    };
    values.iter().map(far).sum::<f32>().sqrt()
}

#[test]
fn the_learning_rate_that_autoft_has_found_is_used() {
    in_lab(|lab| {
        let record = |lr: f64| {
            let weights =
                ["entropy", "mistakes", "margin", "pairs", "zero_l1", "zero_l2", "anchor_l1", "anchor_l2"];
            let values = weights.iter().map(|name| ((*name).to_owned(), 1e-2));
            let others = [("lr".to_owned(), lr), ("weight decay".to_owned(), 0.0), ("seed".to_owned(), 0.0)];
            Record { trial: 0, values: values.chain(others).collect(), loss: None }
        };
        let far = |lr| moved(&rows::autoft::train(lab, &record(lr), 0, 4).unwrap().0);
        let (near, far) = (far(1e-5), far(1e-3));
        // Steps of AdamW are as long as the rate says.
        assert!(near > 0.0 && far > 50.0 * near && far < 200.0 * near, "{near} {far}");
    });
}

#[test]
fn a_stream_leaves_the_fine_tuned_weights_behind() {
    in_lab(|lab| {
        let net = lab.net(Trained::Image, 0).unwrap();
        let values = || -> Vec<Vec<f32>> {
            let all = net.params.values();
            all.values().map(|value| value.flatten_all().unwrap().to_vec1().unwrap()).collect()
        };
        let plain = |images: &Tensor| in_parts(images, |images| net.logits(images));
        let before = values();
        let still = lab.judge(&setting(Method::FineTuning), Spent::default(), Vec::new(), plain).unwrap();
        for method in [Method::Tent, Method::Fstta] {
            let wild = Setting { strength: Some(0.3), ..setting(method) };
            let outcome = match method {
                Method::Tent => rows::stream::tent(lab, &wild, &net, Spent::default()).unwrap(),
                _ => rows::stream::fstta(lab, &wild, &net, Spent::default()).unwrap(),
            };
            assert_eq!(values(), before, "{method:?}");
            assert!(outcome.kept > 0);
            // Steps of that size destroy the model, so predictions were those of adapted weights.
            let all = |outcome: &Outcome| [outcome.accuracy.clone(), vec![outcome.choice]].concat();
            assert_ne!(all(&outcome), all(&still), "{method:?}");
        }
    });
}

#[test]
fn batches_of_images_are_those_at_the_positions() {
    in_lab(|lab| {
        let train = &lab.world.train;
        let batch = train.batch(&[3, 0], 7).unwrap();
        assert_eq!(batch.labels.to_vec1::<u32>().unwrap(), [train.labels[3], train.labels[0]]);
        let sum =
            |images: &Tensor| images.sum(D::Minus1).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(sum(&batch.images.narrow(0, 0, 1).unwrap()), sum(&train.images.narrow(0, 3, 1).unwrap()));
        assert_eq!(batch.step, 7);
    });
}
