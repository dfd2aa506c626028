//! Search of hyperparameters.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use tpgm_candle::nn::random::SplitMix64;
use tpgm_candle::search::{Error, Grid, Range, Ranking, Space, Study, Trial};

fn space() -> Space {
    Space::default().log("lr", 1e-6, 1e-1).uniform("decay", 0.0, 1.0).integer("layers", 1, 12)
}

/// Its smallest loss is 0, at lr = 1e-3, decay = 0.7, layers = 4.
fn loss(trial: &Trial) -> f64 {
    let (lr, decay) = (trial.value("lr").unwrap(), trial.value("decay").unwrap());
    let layers = trial.integer("layers").unwrap() as f64;
    (lr.log10() + 3.0).powi(2) + 9.0 * (decay - 0.7).powi(2) + 0.1 * (layers - 4.0).powi(2)
}

fn run(study: &mut Study, trials: usize) {
    for _ in 0..trials {
        let trial = study.ask().unwrap();
        study.tell(&trial, loss(&trial)).unwrap();
    }
}

/// The median over seeds of the best loss after as many trials, the first of them random.
fn median(trials: usize, random: usize) -> f64 {
    let best = |seed| {
        let mut study = Study::with_random(space(), seed, random).unwrap();
        run(&mut study, trials);
        study.best().unwrap().loss.unwrap()
    };
    let mut best: Vec<f64> = (0..21).map(best).collect();
    best.sort_by(f64::total_cmp);
    best[10]
}

#[test]
fn it_beats_random_trials() {
    let (informed, random) = (median(60, 10), median(60, 60));
    assert!(informed < 0.5 * random, "informed {informed}, random {random}");
}

#[test]
fn values_are_inside_their_ranges_and_spread() {
    let mut study = Study::with_random(space(), 3, 400).unwrap();
    let mut below = [0; 2];
    let mut layers = [0; 12];
    for _ in 0..400 {
        let trial = study.ask().unwrap();
        let (lr, decay) = (trial.value("lr").unwrap(), trial.value("decay").unwrap());
        assert!((1e-6..=1e-1).contains(&lr) && (0.0..=1.0).contains(&decay));
        // The middle of a log range is the geometric mean.
        below[0] += usize::from(lr < 10f64.powf(-3.5));
        below[1] += usize::from(decay < 0.5);
        layers[trial.integer("layers").unwrap() as usize - 1] += 1;
    }
    assert!(below.iter().all(|count| (150..250).contains(count)), "{below:?}");
    // 33 of each are expected; the ends are as likely as the rest.
    assert!(layers.iter().all(|count| (12..60).contains(count)), "{layers:?}");
}

#[test]
fn later_trials_win_ties() {
    let mut study = Study::new(space(), 0).unwrap();
    let trials: Vec<Trial> = (0..4).map(|_| study.ask().unwrap()).collect();
    for (trial, loss) in trials.iter().zip([2.0, 1.0, 1.0, 3.0]) {
        study.tell(trial, loss).unwrap();
    }
    assert_eq!(study.best().unwrap().trial, 2);
    // Told in another order, it is still the later trial.
    let mut study = Study::new(space(), 0).unwrap();
    let trials: Vec<Trial> = (0..3).map(|_| study.ask().unwrap()).collect();
    for (i, loss) in [(2, 1e9), (1, 1e9), (0, 2e9)] {
        study.tell(&trials[i], loss).unwrap();
    }
    assert_eq!(study.best().unwrap().trial, 2);
}

#[test]
fn a_resumed_study_suggests_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let (whole, parts) = (dir.path().join("whole.jsonl"), dir.path().join("parts.jsonl"));
    let mut straight = Study::open(&whole, space(), 5).unwrap();
    run(&mut straight, 30);
    for trials in [7, 9, 14] {
        let mut study = Study::open(&parts, space(), 5).unwrap();
        assert_eq!(study.dropped(), None);
        run(&mut study, trials);
        let _never_told = study.ask().unwrap();
    }
    let resumed = Study::open(&parts, space(), 5).unwrap();
    assert_eq!(resumed.records(), straight.records());
    assert_eq!(fs::read_to_string(whole).unwrap(), fs::read_to_string(parts).unwrap());
}

#[test]
fn a_cut_last_line_is_dropped_with_a_word() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("study.jsonl");
    run(&mut Study::open(&path, space(), 1).unwrap(), 12);
    let text = fs::read_to_string(&path).unwrap();
    let expected = Study::open(&path, space(), 1).unwrap().records().to_vec();
    // Cut everywhere within the last line, and within the first.
    let last = text[..text.len() - 1].rfind('\n').unwrap() + 1;
    for cut in [last + 1, text.len() - 1] {
        fs::write(&path, &text[..cut]).unwrap();
        let mut study = Study::open(&path, space(), 1).unwrap();
        assert_eq!(study.records(), &expected[..11]);
        let dropped = study.dropped().unwrap();
        assert!(dropped.contains("line 13") && dropped.contains("study.jsonl"), "{dropped}");
        run(&mut study, 1);
        assert_eq!(fs::read_to_string(&path).unwrap(), text, "the trial is done again");
    }
    fs::write(&path, &text[..5]).unwrap();
    let study = Study::open(&path, space(), 1).unwrap();
    assert!(study.records().is_empty() && study.dropped().is_some());
    assert_eq!(fs::read_to_string(&path).unwrap(), text[..=text.find('\n').unwrap()]);
}

#[test]
fn failed_trials_are_kept_and_teach_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("study.jsonl");
    let mut study = Study::open(&path, space(), 2).unwrap();
    for i in 0..15 {
        let trial = study.ask().unwrap();
        match i % 3 {
            0 => study.fail(&trial).unwrap(),
            _ => study.tell(&trial, loss(&trial)).unwrap(),
        }
    }
    let next = study.ask().unwrap();
    assert_eq!(next.number(), 15);
    let mut again = Study::open(&path, space(), 2).unwrap();
    assert_eq!(again.records().iter().filter(|record| record.loss.is_none()).count(), 5);
    assert_eq!(again.ask().unwrap(), next);
}

fn message<T>(result: Result<T, Error>) -> String {
    match result {
        Ok(_) => panic!("no error"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn bad_input_is_named() {
    let study = |space| Study::new(space, 0);
    let mut good = study(space()).unwrap();
    let trial = good.ask().unwrap();
    let nan = message(good.tell(&trial, f64::NAN));
    good.tell(&trial, 1.0).unwrap();
    for (error, expected) in [
        (message(study(Space::default())), "the space has no parameters"),
        (
            message(study(Space::default().log("lr", 0.0, 1.0))),
            "parameter `lr`: its range is 0 to 1, but must be",
        ),
        (message(study(space().uniform("x", 1.0, 1.0))), "parameter `x`"),
        (message(study(space().uniform("x", 0.0, f64::INFINITY))), "parameter `x`"),
        (message(study(space().integer("n", 3, 2))), "parameter `n`: its range is 3 to 2"),
        (message(study(space().log("lr", 1.0, 2.0))), "two parameters named `lr`"),
        (nan, "trial 0: its loss is NaN"),
        (message(good.tell(&trial, 1.0)), "trial 0 is not one that this study waits for"),
        (message(trial.value("lrr")), "no parameter `lrr`; it has [\"decay\", \"layers\", \"lr\"]"),
        (message(trial.integer("lr")), "parameter `lr` is no integer"),
    ] {
        assert!(error.contains(expected), "{error}");
    }
}

/// Its numbers are those of published code: `tests/family`. Here: what it prefers, what it is like without trials, and what it
/// refuses.
#[test]
fn rankings_prefer_what_was_good() {
    let lr = Range::Log { low: 1e-6, high: 1e-1 };
    let trial = |i: i32| (10f64.powf(-6.0 + 0.1 * f64::from(i)), f64::from((i - 30).abs()));
    // Not in the order of their values: of the bad ones, the oldest count less.
    let trials: Vec<_> = (0..50).map(|i| trial(i * 17 % 50)).collect();
    let ranking = Ranking::new(lr, &trials).unwrap();
    assert_eq!((ranking.good().components().len(), ranking.bad().components().len()), (6, 46));
    let scores: Vec<f64> = [1e-6, 1e-4, 1e-3, 1e-2, 1e-1].iter().map(|lr| ranking.score(*lr)).collect();
    assert!(scores.iter().all(|score| score.is_finite() && *score <= scores[2]), "{scores:?}");
    // The mass of integers is 1.
    let some = [(2.0, 1.0), (7.0, 0.5), (8.0, 0.1), (3.0, 0.2)];
    let ranking = Ranking::new(Range::Integer { low: 1, high: 9 }, &some).unwrap();
    let mass: f64 = (1..=9).map(|n| ranking.bad().log_density(f64::from(n)).exp()).sum();
    assert!((mass - 1.0).abs() < 1e-12, "{mass}");
    assert_eq!(Ranking::new(lr, &[]).unwrap().score(1e-3), 0.0);

    let uniform = Range::Uniform { low: 0.0, high: 1.0 };
    for (error, expected) in [
        (message(Ranking::new(Range::Uniform { low: 1.0, high: 1.0 }, &[])), "its range is 1 to 1"),
        (message(Ranking::new(uniform, &[(0.5, 1.0), (1.5, 1.0)])), "trial 1: its value is 1.5, outside"),
        (message(Ranking::new(uniform, &[(0.5, f64::NAN)])), "trial 0: its loss is NaN"),
    ] {
        assert!(error.contains(expected), "{error}");
    }
}

#[test]
fn journals_of_other_studies_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("study.jsonl");
    run(&mut Study::open(&path, space(), 1).unwrap(), 3);
    let text = fs::read_to_string(&path).unwrap();
    let refused = |path: &Path, space, seed| {
        let before = fs::read(path).unwrap();
        let error = message(Study::open(path, space, seed));
        assert_eq!(fs::read(path).unwrap(), before, "unchanged after {error}");
        error
    };
    let smaller = Space::default().log("lr", 1e-6, 1e-1).uniform("decay", 0.0, 1.0);
    let wider = smaller.clone().integer("layers", 1, 20);
    for (error, expected) in [
        (refused(&path, space(), 2), "line 1: the journal has seed = 1, but this study 2"),
        (refused(&path, smaller, 1), "line 1: the journal searches"),
        (refused(&path, wider, 1), "the journal has `layers` in"),
    ] {
        assert!(error.contains(expected), "{error}");
    }
    for (from, to, expected) in [
        ("\"layers\":", "\"layer\":", "has no `layers`"),
        ("\"trial\":1", "\"trial\":", "line 3: "),
        ("\"loss\":", "\"lost\":", "line 2: "),
    ] {
        let (first, rest) = text.split_at(text.find('\n').unwrap());
        fs::write(&path, format!("{first}{}", rest.replace(from, to))).unwrap();
        let error = refused(&path, space(), 1);
        assert!(error.contains(expected), "{error}");
    }
    fs::write(&path, "{\"step\":1}\n").unwrap();
    assert!(refused(&path, space(), 1).contains("no journal of a search"));
    let n = SplitMix64::new(0).next_u64();
    fs::write(&path, format!("{n}\n")).unwrap();
    assert!(refused(&path, space(), 1).contains("line 1"));
}

fn grid() -> Grid {
    // Neither is a number of ten digits.
    Grid::default().values("lr", [1e-4, 1.0 / 3e3]).values("alpha", [0.0, 0.1 + 0.2, 2.0])
}

#[test]
fn a_grid_is_tried_in_its_order_and_goes_on_with_what_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("grid.jsonl");
    let mut study = Study::open_grid(&path, grid()).unwrap();
    assert_eq!(study.left(), Some(6));
    let trials: Vec<Trial> = (0..6).map(|_| study.ask().unwrap()).collect();
    let points: Vec<_> = trials.iter().map(|t| (t.value("lr").unwrap(), t.value("alpha").unwrap())).collect();
    let (a, b, c) = (1e-4, 1.0 / 3e3, 0.1 + 0.2);
    assert_eq!(points, [(a, 0.0), (a, c), (a, 2.0), (b, 0.0), (b, c), (b, 2.0)]);
    assert_eq!((trials[2].integer("alpha").unwrap(), study.left()), (2, Some(0)));
    assert!(message(trials[1].integer("alpha")).contains("`alpha` is no integer"));
    assert!(message(study.ask()).contains("all 6 combinations of the grid were asked for"));
    // Told in another order, and not all of them: of equal losses the earlier trial is the best.
    for (number, loss) in [(4, 0.5), (1, 0.5), (2, 0.7)] {
        study.tell(&trials[number], loss).unwrap();
    }
    assert_eq!(study.best().unwrap().trial, 1);

    let mut again = Study::open_grid(&path, grid()).unwrap();
    assert_eq!((again.records(), again.left()), (study.records(), Some(3)));
    let rest: Vec<_> = (0..3).map(|_| again.ask().unwrap()).collect();
    assert_eq!(rest, [trials[0].clone(), trials[3].clone(), trials[5].clone()]);
    again.tell(&rest[2], 0.1).unwrap();
    assert_eq!(again.best().unwrap().values["lr"], b);
    assert_eq!(Study::open_grid(&path, grid()).unwrap().left(), Some(2));
}

/// serde_json reads it as its neighbor.
const MISREAD: f64 = 0.025118864315095822;

#[test]
fn studies_go_on_whatever_digits_their_values_have() {
    assert_ne!(serde_json::from_str::<f64>(&MISREAD.to_string()).unwrap(), MISREAD);
    let dir = tempfile::tempdir().unwrap();
    let (path, searched) = (dir.path().join("grid.jsonl"), dir.path().join("search.jsonl"));
    let grid = |last| Grid::default().values("lr", [1e-2, MISREAD, last]);
    for (number, lr) in [1e-2, MISREAD, 1e-1].into_iter().enumerate() {
        let mut study = Study::open_grid(&path, grid(1e-1)).unwrap();
        let trial = study.ask().unwrap();
        assert_eq!((trial.number(), trial.value("lr").unwrap()), (number as u64, lr));
        study.tell(&trial, 1.0).unwrap();
        assert!(study.records().iter().all(|record| [1e-2, MISREAD, 1e-1].contains(&record.values["lr"])));
    }
    assert!(message(Study::open_grid(&path, grid(2e-1))).contains("of another grid"));
    let ranges = |high| Space::default().log("lr", MISREAD, high).uniform("decay", 0.0, MISREAD);
    for trials in 1..4 {
        let mut study = Study::open(&searched, ranges(1.0), 1).unwrap();
        let trial = study.ask().unwrap();
        study.tell(&trial, trial.value("decay").unwrap()).unwrap();
        assert_eq!(study.records().len(), trials);
    }
    assert!(message(Study::open(&searched, ranges(2.0), 1)).contains("the journal has `lr` in"));
}

#[test]
fn what_is_no_grid_or_another_one_is_refused() {
    for (grid, expected) in [
        (Grid::default(), "the grid has no parameters"),
        (grid().values("k", []), "the grid has no values of `k`"),
        (grid().values("k", [1.0, f64::NAN]), "parameter `k`: a value of the grid is NaN"),
        (grid().values("lr", [1.0]), "two parameters named `lr`"),
    ] {
        let error = message(Study::grid(grid));
        assert!(error.contains(expected), "{error}");
    }
    let dir = tempfile::tempdir().unwrap();
    let (path, searched) = (dir.path().join("grid.jsonl"), dir.path().join("search.jsonl"));
    run(&mut Study::open(&searched, space(), 1).unwrap(), 1);
    let mut study = Study::open_grid(&path, grid()).unwrap();
    for loss in [1.0, 2.0] {
        let trial = study.ask().unwrap();
        study.tell(&trial, loss).unwrap();
    }
    let text = fs::read_to_string(&path).unwrap();
    let changed = |from: &str, to: &str| {
        fs::write(&path, text.replace(from, to)).unwrap();
        message(Study::open_grid(&path, grid()))
    };
    for (error, expected) in [
        (
            message(Study::open_grid(&searched, grid())),
            "the journal is of a search, but this study of a grid",
        ),
        (message(Study::open(&path, space(), 1)), "the journal is of a grid, but this study searches"),
        (message(Study::open_grid(&path, grid().values("k", [1.0]))), "the journal is of another grid"),
        (changed("{\"trial\":1", "{\"trial\":0"), "line 3: trial 0 is there twice"),
        (changed("{\"trial\":1", "{\"trial\":9"), "line 3: there is no trial 9: the grid has 6"),
        (changed("{\"trial\":1", "{\"trial\":2"), "line 3: trial 2 is"),
    ] {
        assert!(error.contains(expected), "{error}");
    }
}
