//! Sweeps: settings of methods that a search asks for, and the one of each method that held-out samples choose.

use std::num::NonZero;
use std::ops::Range;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde::Serialize;
use tpgm_candle::search::{Grid, Record, Space, Study};

/// Where the settings of a sweep come from.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Sampler {
    /// Every learning rate with every strength
    #[default]
    Grid,
    /// A tree-structured Parzen estimator, between the smallest and the largest values of the grid
    Tpe,
}

/// The options of a sweep.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, clap::Args)]
pub struct SearchArgs {
    /// Where a sweep has its settings from
    #[arg(long, value_enum, default_value_t, requires_if("tpe", "full"))]
    pub search: Sampler,
    /// Settings of each method with --search tpe [default: as many as the grid has]
    #[arg(long, value_name = "N", hide_short_help = true)]
    pub trials: Option<NonZero<u64>>,
}

impl SearchArgs {
    /// Whether they are what they are if not given.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Refuses options that do not fit together.
    ///
    /// # Errors
    ///
    /// Names the option.
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.trials.is_none() || self.search == Sampler::Tpe,
            "--trials: a grid has a fixed number of settings; add --search tpe"
        );
        Ok(())
    }
}

/// A learning rate, and the strength of a method that has one.
pub type Point = (f64, Option<f64>);

/// What is tried of one method.
#[derive(Debug, Clone, PartialEq)]
pub struct Axes {
    /// Learning rates; none: it has no learning rate of its own, which is 0 then.
    pub rates: Vec<f64>,
    /// Strengths; none: it has no strength.
    pub strengths: Vec<f64>,
    /// What lies between strengths.
    pub between: Between,
    /// All of these are tried, and nothing else, whatever the sampler.
    pub given: bool,
}

/// What lies between the strengths of a method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Between {
    /// Numbers, even in their logarithm if all strengths are above 0.
    Factors,
    /// Numbers, all alike.
    Shares,
    /// Integers.
    Counts,
}

const RATE: &str = "lr";
const STRENGTH: &str = "strength";

/// Random trials before the sampler is asked: a sweep has few.
const RANDOM: usize = 3;

impl Axes {
    fn rates(&self) -> &[f64] {
        if self.rates.is_empty() { &[0.0] } else { &self.rates }
    }

    fn grid(&self) -> Grid {
        let grid = Grid::default().values(RATE, self.rates().iter().copied());
        if self.strengths.is_empty() { grid } else { grid.values(STRENGTH, self.strengths.iter().copied()) }
    }

    /// What lies between; none if that is nothing.
    fn space(&self) -> Option<Space> {
        let ends = |values: &[f64]| {
            let low = values.iter().copied().fold(f64::INFINITY, f64::min);
            let high = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            (low < high).then_some((low, high))
        };
        let mut space = Space::default();
        if let Some((low, high)) = ends(self.rates()) {
            space = space.log(RATE, low, high);
        }
        if let Some((low, high)) = ends(&self.strengths) {
            space = match self.between {
                Between::Counts => space.integer(STRENGTH, low as i64, high as i64),
                Between::Factors if low > 0.0 => space.log(STRENGTH, low, high),
                Between::Factors | Between::Shares => space.uniform(STRENGTH, low, high),
            };
        }
        (!self.given && !space.ranges().is_empty()).then_some(space)
    }

    /// The setting of a trial.
    fn point(&self, record: &Record, sampler: Sampler) -> Point {
        let value = |name| {
            let value = record.values.get(name).copied();
            // Short numbers, so that a setting that was read from a file is the same.
            if sampler == Sampler::Tpe { value.map(short) } else { value }
        };
        let lr = value(RATE).unwrap_or(self.rates()[0]);
        (lr, value(STRENGTH).or(self.strengths.first().copied()))
    }
}

/// A number to four digits.
fn short(value: f64) -> f64 {
    format!("{value:.3e}").parse().unwrap_or(value)
}

/// All outcomes of a method, and which is the best.
#[derive(Debug, Clone, PartialEq)]
pub struct Tried<O> {
    /// In the order in which they were asked for.
    pub outcomes: Vec<O>,
    /// The setting of each.
    pub points: Vec<Point>,
    /// Position of the best: of equal ones the first of a grid, the last of a search.
    pub best: usize,
}

impl<O> Tried<O> {
    /// The best outcome.
    pub fn best(&self) -> &O {
        &self.outcomes[self.best]
    }
}

/// The search of one method.
struct Search<O> {
    axes: Axes,
    sampler: Sampler,
    study: Study,
    trials: u64,
    outcomes: Vec<O>,
    points: Vec<Point>,
}

impl<O> Search<O> {
    fn open(args: &SearchArgs, axes: Axes, journal: &Path, seed: u64) -> Result<Self> {
        let grid = axes.grid();
        let combinations = grid.len();
        let (sampler, study, trials) = match axes.space().filter(|_| args.search == Sampler::Tpe) {
            Some(space) => {
                if let Some(folder) = journal.parent() {
                    std::fs::create_dir_all(folder)
                        .with_context(|| format!("cannot make {}", folder.display()))?;
                }
                let study = Study::open_with_random(journal, space, seed, RANDOM)?;
                (Sampler::Tpe, study, args.trials.map_or(combinations, NonZero::get))
            }
            // Without a journal: it asks for the same whatever comes out, so kept outcomes are enough to go on.
            None => (Sampler::Grid, Study::grid(grid)?, combinations),
        };
        Ok(Self { axes, sampler, study, trials, outcomes: Vec::new(), points: Vec::new() })
    }

    /// All that can be asked for now: the rest of a grid, or one trial, as the next one depends on how it went.
    fn ask(&mut self) -> Result<Vec<Asked>> {
        let told = self.study.records().len() as u64;
        let count = match self.sampler {
            Sampler::Grid => self.trials - told,
            Sampler::Tpe => u64::from(told < self.trials),
        };
        let one = |_| {
            let trial = self.study.ask()?;
            let record = Record { trial: trial.number(), values: trial.values().clone(), loss: None };
            Ok(Asked { point: self.axes.point(&record, self.sampler), trial: Some(trial) })
        };
        (0..count).map(one).collect()
    }
}

/// Something to run.
struct Asked {
    point: Point,
    /// None if an earlier run has told how it went, and only its outcome is wanted.
    trial: Option<tpgm_candle::search::Trial>,
}

/// Runs a sweep of some methods, each with a name. `run` gets settings and returns their outcomes in the same order, those that
/// are known without running them again; `None` if it was stopped. `choice` is the accuracy on held-out samples. Trials of a
/// search go into journals in the folder `journals`, one for each method, with which it goes on after an interruption.
///
/// # Errors
///
/// What `run` returns, or a journal that cannot be read or is of other settings.
pub fn sweep<M: Copy, O>(
    args: &SearchArgs,
    journals: &Path,
    seed: u64,
    methods: Vec<(M, &str, Axes)>,
    mut run: impl FnMut(Vec<(M, Point)>) -> Result<Option<Vec<O>>>,
    choice: impl Fn(&O) -> f64,
) -> Result<Option<Vec<Tried<O>>>> {
    let open = |(method, name, axes): (M, &str, Axes)| {
        let journal = journals.join(name.replace([' ', ','], "-")).with_extension("jsonl");
        anyhow::Ok((method, Search::open(args, axes, &journal, seed)?))
    };
    let mut searches = methods.into_iter().map(open).collect::<Result<Vec<_>>>()?;
    let mut asked: Vec<(usize, Asked)> = Vec::new();
    for (at, (_, search)) in searches.iter().enumerate() {
        let told = search.study.records().iter();
        asked.extend(
            told.map(|record| (at, Asked { point: search.axes.point(record, search.sampler), trial: None })),
        );
    }
    // In rounds: methods side by side, so that trials are the same however many run at once.
    loop {
        for (at, (_, search)) in searches.iter_mut().enumerate() {
            asked.extend(search.ask()?.into_iter().map(|asked| (at, asked)));
        }
        if asked.is_empty() {
            break;
        }
        let points = asked.iter().map(|(at, asked)| (searches[*at].0, asked.point)).collect();
        let Some(outcomes) = run(points)? else { return Ok(None) };
        ensure!(outcomes.len() == asked.len(), "{} outcomes of {} runs", outcomes.len(), asked.len());
        for ((at, asked), outcome) in asked.drain(..).zip(outcomes) {
            let search = &mut searches[at].1;
            if let Some(trial) = asked.trial {
                search.study.tell(&trial, 1.0 - choice(&outcome))?;
            }
            search.outcomes.push(outcome);
            search.points.push(asked.point);
        }
    }
    let tried = |(_, search): (M, Search<O>)| {
        let best = search.study.best().context("a search has told trials")?;
        let of_best = |record: &Record| record.trial == best.trial;
        let best = search.study.records().iter().position(of_best).context("the best trial was told")?;
        Ok(Tried { best, outcomes: search.outcomes, points: search.points })
    };
    searches.into_iter().map(tried).collect::<Result<_>>().map(Some)
}

/// What [`sweep_over_seeds`] ran.
#[derive(Debug, Clone, PartialEq)]
pub struct Swept<O> {
    /// All outcomes of the first seed.
    pub all: Vec<O>,
    /// For each method the outcome that was chosen, then those of its setting with the other seeds.
    pub chosen: Vec<Vec<O>>,
}

/// A [`sweep`] with the first of some seeds, then the best setting of each method with the others. `run` gets methods, their
/// settings and seeds.
///
/// # Errors
///
/// As [`sweep`].
pub fn sweep_over_seeds<M: Copy, O: Clone>(
    args: &SearchArgs,
    journals: &Path,
    mut seeds: Range<u64>,
    methods: Vec<(M, &str, Axes)>,
    mut run: impl FnMut(Vec<(M, Point, u64)>) -> Result<Option<Vec<O>>>,
    choice: impl Fn(&O) -> f64,
) -> Result<Option<Swept<O>>> {
    let first = seeds.next().context("a sweep has a seed")?;
    let names: Vec<M> = methods.iter().map(|(method, ..)| *method).collect();
    let with_first = |points: Vec<(M, Point)>| {
        run(points.into_iter().map(|(method, point)| (method, point, first)).collect())
    };
    let Some(tried) = sweep(args, journals, first, methods, with_first, choice)? else { return Ok(None) };
    let best: Vec<_> =
        names.into_iter().zip(&tried).map(|(name, tried)| (name, tried.points[tried.best])).collect();
    let again = seeds.flat_map(|seed| best.iter().map(move |(method, point)| (*method, *point, seed)));
    let again: Vec<_> = again.collect();
    let Some(others) = run(again)? else { return Ok(None) };
    let mut chosen: Vec<Vec<O>> = tried.iter().map(|tried| vec![tried.best().clone()]).collect();
    let count = chosen.len();
    others.into_iter().enumerate().for_each(|(at, outcome)| chosen[at % count].push(outcome));
    Ok(Some(Swept { all: tried.into_iter().flat_map(|tried| tried.outcomes).collect(), chosen }))
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATES: [f64; 2] = [3e-4, 1e-3];

    fn axes(strengths: &[f64], between: Between) -> Axes {
        Axes { rates: RATES.to_vec(), strengths: strengths.to_vec(), between, given: false }
    }

    fn tpe(trials: u64) -> SearchArgs {
        SearchArgs { search: Sampler::Tpe, trials: NonZero::new(trials) }
    }

    /// Best at the largest learning rate, and at strength 0.5.
    fn choice((lr, strength): &Point) -> f64 {
        0.5 + 100.0 * lr - (strength.unwrap_or(0.5) - 0.5).abs() / 10.0
    }

    #[test]
    fn a_grid_asks_for_everything_at_once_and_the_first_of_equals_wins() {
        let folder = tempfile::tempdir().unwrap();
        let methods = vec![
            ('a', "a", axes(&[0.3, 0.7], Between::Shares)),
            ('b', "b", axes(&[], Between::Factors)),
            ('c', "c", Axes { rates: vec![], ..axes(&[], Between::Factors) }),
        ];
        let mut rounds = Vec::new();
        let run = |points: Vec<(char, Point)>| {
            rounds.push(points.clone());
            Ok(Some(points.into_iter().map(|(_, point)| point).collect()))
        };
        let tried = sweep(&SearchArgs::default(), folder.path(), 0, methods, run, choice).unwrap().unwrap();
        let strengths = [0.3, 0.7].map(Some);
        let a = RATES.into_iter().flat_map(|lr| strengths.map(|strength| ('a', (lr, strength))));
        let others = [('b', (RATES[0], None)), ('b', (RATES[1], None)), ('c', (0.0, None))];
        assert_eq!(rounds, [a.chain(others).collect::<Vec<_>>()]);
        // Both strengths are equally good.
        assert_eq!(tried.iter().map(|tried| tried.best).collect::<Vec<_>>(), [2, 1, 0]);
        assert_eq!(*tried[0].best(), (1e-3, Some(0.3)));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "a grid needs no journal");
    }

    #[test]
    fn a_search_is_the_same_after_an_interruption_and_finds_more_than_the_ends() {
        let methods = || {
            vec![
                ("a b", "a b", axes(&[0.3, 0.7], Between::Shares)),
                ("c", "c", axes(&[1.0, 8.0], Between::Counts)),
                ("d", "d", Axes { rates: vec![1e-3], ..axes(&[2.0], Between::Factors) }),
                ("e", "e", Axes { given: true, ..axes(&[], Between::Factors) }),
            ]
        };
        // `None` from the run after so many rounds.
        let in_folder = |folder: &Path, rounds: usize| {
            let mut left = rounds;
            let run = |points: Vec<(&str, Point)>| {
                if left == 0 {
                    return Ok(None);
                }
                left -= 1;
                Ok(Some(points.into_iter().map(|(_, point)| point).collect()))
            };
            sweep(&tpe(9), folder, 5, methods(), run, choice).unwrap()
        };
        let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let expected = in_folder(whole.path(), usize::MAX).unwrap();
        assert!(in_folder(parts.path(), 4).is_none() && in_folder(parts.path(), 2).is_none());
        assert_eq!(in_folder(parts.path(), usize::MAX).unwrap(), expected);
        assert!(whole.path().join("a-b.jsonl").exists());
        assert_eq!(expected.iter().map(|tried| tried.outcomes.len()).collect::<Vec<_>>(), [9, 9, 1, 2]);
        assert_eq!(expected[2].outcomes, [(1e-3, Some(2.0))]);
        assert_eq!(expected[3].outcomes, RATES.map(|lr| (lr, None)));
        for (lr, strength) in expected[0].outcomes.iter().chain(&expected[1].outcomes) {
            assert!((RATES[0]..=RATES[1]).contains(lr), "{lr}");
            // Read from a file, it is the same setting.
            for value in [lr, &strength.unwrap()] {
                let read: f64 = serde_json::from_str(&serde_json::to_string(value).unwrap()).unwrap();
                assert!(read == *value && format!("{value}").len() < 10, "{value}");
            }
        }
        assert!(expected[1].outcomes.iter().all(|(_, count)| count.unwrap().fract() == 0.0));
        assert!(choice(expected[0].best()) > 0.58, "{:?}", expected[0].best());
    }

    #[test]
    fn factors_with_zero_are_searched_evenly() {
        let range = |strengths: &[f64], between| {
            let space = axes(strengths, between).space().unwrap();
            format!("{:?}", space.ranges()["strength"])
        };
        assert!(range(&[0.3, 0.03], Between::Factors).starts_with("Log { low: 0.03, high: 0.3"));
        assert!(range(&[1.0, 0.0], Between::Factors).starts_with("Uniform { low: 0.0, high: 1.0"));
        assert!(range(&[2.0, 8.0], Between::Counts).starts_with("Integer { low: 2, high: 8"));
        assert!(!axes(&[1.0], Between::Factors).space().unwrap().ranges().contains_key("strength"));
    }

    #[test]
    fn trials_are_of_a_search() {
        assert!(tpe(3).check().is_ok() && SearchArgs::default().is_default());
        let args = SearchArgs { search: Sampler::Grid, ..tpe(3) };
        assert!(args.check().unwrap_err().to_string().contains("add --search tpe"));
    }

    #[test]
    fn the_best_setting_of_each_method_is_run_with_the_other_seeds() {
        let methods =
            || vec![('a', "a", axes(&[0.3, 0.7], Between::Shares)), ('b', "b", axes(&[], Between::Factors))];
        let mut asked = Vec::new();
        let run = |points: Vec<(char, Point, u64)>| {
            asked.extend(points.iter().map(|point| point.2));
            Ok(Some(points))
        };
        let choice = |(_, point, _): &(char, Point, u64)| choice(point);
        let args = SearchArgs::default();
        let swept =
            sweep_over_seeds(&args, Path::new("nowhere"), 5..8, methods(), run, choice).unwrap().unwrap();
        assert_eq!(swept.all.len(), 6);
        assert!(swept.all.iter().all(|(.., seed)| *seed == 5));
        let best = [('a', (1e-3, Some(0.3))), ('b', (1e-3, None))];
        let expected = best.map(|(method, point)| [5, 6, 7].map(|seed| (method, point, seed)).to_vec());
        assert_eq!(swept.chosen, expected);
        assert_eq!(asked, [[5; 6].as_slice(), &[6, 6, 7, 7]].concat());

        let stopped = |points: Vec<(char, Point, u64)>| {
            Ok(points.iter().all(|(.., seed)| *seed == 5).then_some(points))
        };
        let stopped =
            sweep_over_seeds(&args, Path::new("nowhere"), 5..8, methods(), stopped, choice).unwrap();
        assert_eq!(stopped, None);
    }
}
