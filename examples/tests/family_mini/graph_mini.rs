//! `graph_mini`: what goes wrong, interruptions, and what prompts of nodes promise. Graphs are few and runs short: nothing here is
//! about accuracy, but that of the committed network.

#[path = "../../examples/graph_mini/cli.rs"]
mod cli;
#[path = "../../examples/graph_mini/graphs.rs"]
mod graphs;
#[path = "../../examples/graph_mini/lab.rs"]
mod lab;
#[path = "../../examples/graph_mini/method.rs"]
mod method;
#[path = "../../examples/graph_mini/net.rs"]
mod net;
#[path = "../../examples/graph_mini/pretrain.rs"]
mod pretrain;
#[path = "../../examples/graph_mini/report.rs"]
mod report;
#[path = "../../examples/graph_mini/world.rs"]
mod world;

use std::fs;
use std::path::Path;

use anyhow::Result;
use candle_core::{DType, Device, Module, Tensor};
use candle_nn::{VarBuilder, VarMap};
use clap::{CommandFactory, Parser};
use tpgm_candle::{Anchor, Params};
use tpgm_examples::metrics::share_of_right;
use tpgm_examples::progress::Progress;
use tpgm_examples::stop::Stop;

use self::cli::{Args, run};
use self::graphs::{Bases, CLASSES, Graph, Request};
use self::lab::{Lab, Net, Outcome};
use self::method::{Method, Setting};
use self::net::{Batch, Gin, WIDTH};
use self::world::{Scale, TESTS, World};

#[test]
fn the_help_fits_a_screen() {
    crate::common::check_help(Args::command());
}

fn checkpoint() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/graph_mini/pretrained.safetensors")
}

/// Runs the command line in a folder.
fn command(out: &Path, options: &[&str], stop: &Stop) -> Result<()> {
    let args = ["graph_mini", "--quick", "--jobs", "1", "--out", out.to_str().unwrap()];
    run(&Args::try_parse_from(args.iter().chain(options))?, &Progress::hidden(), stop)
}

/// What must be the same after an interruption.
fn results(out: &Path) -> Vec<(Setting, f64, Vec<f64>)> {
    let outcomes: Vec<Outcome> =
        serde_json::from_slice(&fs::read(out.join("outcomes.json")).unwrap()).unwrap();
    outcomes.into_iter().map(|outcome| (outcome.setting, outcome.choice, outcome.accuracy)).collect()
}

#[test]
fn a_sweep_has_every_row_and_goes_on_after_an_interruption() {
    let (whole, stopped) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    command(whole.path(), &["--full"], &Stop::never()).unwrap();
    let expected = results(whole.path());
    assert_eq!(expected.len(), 4 * Method::ALL.len());
    let table = fs::read_to_string(whole.path().join("table.md")).unwrap();
    for word in TESTS.into_iter().chain(Method::ALL.map(Method::name)) {
        assert!(table.contains(word), "{word}: {table}");
    }
    assert!(table.contains(" ± "), "three seeds: {table}");

    command(stopped.path(), &["--full"], &Stop::after(100)).unwrap();
    assert!(!stopped.path().join("outcomes.json").exists());
    command(stopped.path(), &["--full", "--resume"], &Stop::never()).unwrap();
    assert_eq!(results(stopped.path()), expected);
    let error = command(stopped.path(), &["--full", "--resume", "--steps", "7"], &Stop::never());
    let error = format!("{:#}", error.unwrap_err());
    assert!(error.contains("steps: 8 when it was begun, 7 now"), "{error}");
    for (options, expected) in [
        (&["--steps", "0"][..], "--steps is 0"),
        (&["--trials", "3", "--full"], "--trials: a grid has"),
        (&["--search", "tpe"], "--full"),
        (&["--checkpoint", "nowhere.safetensors"], "nowhere.safetensors"),
    ] {
        let error = format!("{:#}", command(whole.path(), options, &Stop::never()).unwrap_err());
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn a_search_goes_on_from_its_journals() {
    let (whole, stopped) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let options = ["--full", "--search", "tpe", "--trials", "5"];
    command(whole.path(), &options, &Stop::never()).unwrap();
    let expected = results(whole.path());
    assert_eq!(expected.len(), 5 * Method::ALL.len());
    let rates: std::collections::BTreeSet<_> =
        expected.iter().map(|(setting, ..)| setting.lr.to_bits()).collect();
    assert!(rates.len() > 12, "{} learning rates", rates.len());
    command(stopped.path(), &options, &Stop::after(250)).unwrap();
    let journal = fs::read_to_string(stopped.path().join("runs/search/GPF-plus-under-FTP.jsonl")).unwrap();
    assert!((2..6).contains(&journal.lines().count()), "{journal}");
    command(stopped.path(), &[&options[..], &["--resume"]].concat(), &Stop::never()).unwrap();
    assert_eq!(results(stopped.path()), expected);
}

#[test]
fn prompts_are_anchored_at_zero_and_the_network_is_frozen_under_them() {
    for method in Method::ALL {
        let net = Net::open(&checkpoint(), &method.setting(3)).unwrap();
        let all = net.params.all();
        let names: Vec<_> = all.iter().map(|param| param.name()).collect();
        let prompted = method.name().starts_with("GPF");
        assert_eq!(names.iter().any(|name| name.starts_with("gin.")), method.trains_network(), "{method:?}");
        assert_eq!(names.iter().any(|name| name.starts_with("prompts.")), prompted, "{method:?}");
        for param in all {
            let anchor = param.anchor();
            let expected = match param.name().split('.').next() {
                Some("head") => matches!(anchor, Anchor::None),
                Some("prompts") => matches!(anchor, Anchor::Zero),
                _ => matches!(anchor, Anchor::Pretrained(_)),
            };
            assert!(expected, "{method:?}: {}", param.name());
        }
    }
}

#[test]
fn training_moves_prompts_and_leaves_the_network() {
    let scale = Scale::QUICK;
    let (world, folder) = (World::draw(0, &scale), tempfile::tempdir().unwrap());
    let lab = Lab {
        world: &world,
        scale,
        checkpoint: checkpoint(),
        runs: folder.path().to_owned(),
        records: None,
        progress: &Progress::hidden(),
        stop: &Stop::never(),
    };
    let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for method in [Method::GpfPlus, Method::GpfTpgm, Method::GpfFtp] {
        let setting = method.setting(0);
        let net = Net::open(&lab.checkpoint, &setting).unwrap();
        let before: Vec<_> =
            net.params.values().iter().map(|(name, value)| (name.clone(), values(value))).collect();
        lab.train(&net, &setting).unwrap();
        for (name, before) in before {
            let moved = values(&net.params.values()[&name]) != before;
            assert_eq!(moved, !name.starts_with("gin."), "{method:?}: {name}");
        }
    }
}

/// By hand: a path of two nodes and one of three, through layers that do nothing but add.
#[test]
fn nodes_hear_of_their_neighbors_and_graphs_are_means() {
    let vars = VarMap::new();
    let gin = Gin::new(&VarBuilder::from_varmap(&vars, DType::F32, &Device::Cpu)).unwrap();
    let path = |nodes: u32| {
        let edges = (1..nodes).flat_map(|i| [(i - 1, i), (i, i - 1)]).collect();
        Graph { nodes, edges, class: nodes - 2 }
    };
    let (two, three) = (path(2), path(3));
    let alone = |graph: &Graph| {
        let batch = Batch::new([graph].into_iter()).unwrap();
        gin.forward(&gin.embed(&batch).unwrap(), &batch).unwrap().to_vec2::<f32>().unwrap().concat()
    };
    let both = Batch::new([&two, &three].into_iter()).unwrap();
    assert_eq!(both.labels.to_vec1::<u32>().unwrap(), [0, 1]);
    let graphs = gin.forward(&gin.embed(&both).unwrap(), &both).unwrap().to_vec2::<f32>().unwrap();
    // Graphs of a batch do not hear of each other.
    for (together, alone) in graphs.iter().zip([alone(&two), alone(&three)]) {
        assert!(together.iter().zip(alone).all(|(a, b)| (a - b).abs() < 1e-5));
    }
    // Nodes that look alike and whose neighbors do are alike: any ring is as a ring of three.
    let ring = |nodes: u32| {
        let edges = (0..nodes).flat_map(|i| [(i, (i + 1) % nodes), ((i + 1) % nodes, i)]).collect();
        Graph { nodes, edges, class: 0 }
    };
    assert!(alone(&ring(3)).iter().zip(alone(&ring(7))).all(|(a, b)| (a - b).abs() < 1e-5));
    assert_ne!(alone(&ring(3)), alone(&three));
}

#[test]
fn the_committed_network_tells_motifs_apart_that_it_was_not_trained_on() {
    // A linear classifier over its features, by least squares, on graphs of another world than that of the example.
    let params = Params::open(checkpoint(), &Device::Cpu).unwrap();
    let gin = Gin::new(&params.var_builder().pp("gin")).unwrap();
    let request = Request { motifs: &CLASSES, bases: Bases::Known, nodes: (8, 16), noise: 0 };
    let features = |number| {
        let graphs = request.set(60, 77, number);
        let batch = Batch::new(graphs.iter()).unwrap();
        let features = gin.forward(&gin.embed(&batch).unwrap(), &batch).unwrap();
        (features.detach(), graphs.iter().map(|graph| graph.class).collect::<Vec<_>>(), batch.labels)
    };
    let (train, _, labels) = features(1);
    let head = Params::new(&Device::Cpu).head("*");
    let layer = tpgm_candle::nn::linear(WIDTH, CLASSES.len(), head.var_builder()).unwrap();
    let rule = tpgm_candle::AdamW::default().lr(0.05).weight_decay(0.0);
    let mut optimizer =
        tpgm_candle::RobustOptimizer::new(&head, rule, tpgm_candle::Constraint::None).unwrap();
    for _ in 0..200 {
        let loss = tpgm_candle::nn::cross_entropy(&layer.forward(&train).unwrap(), &labels).unwrap();
        optimizer.backward_step(&loss).unwrap();
    }
    let (test, classes, _) = features(2);
    let right = share_of_right(&layer.forward(&test).unwrap(), &classes).unwrap();
    // One in four by chance.
    assert!(right > 0.5, "{right}");
}
