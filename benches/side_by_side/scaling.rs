//! Cost per parameter as a model grows, and as the same parameters lie in more tensors: flat is the aim.

use std::io::Write;
use std::path::Path;

use anyhow::Result;
use tpgm_benches::{Method, Target, report};
use tpgm_core::{DType, ParamSet};

use crate::compare::{Bench, Limits};
use crate::options::Args;
use crate::{progress, provenance};

/// What rows call the set.
pub(crate) const MODEL: &str = "equal tensors";

/// Methods if none is asked for.
const METHODS: [&str; 4] = ["adamw", "adamw+ftp", "project-mars", "project-l2"];
/// Parameters of a row; every tensor has whole rows.
const WIDTH: usize = 1000;
/// Tensors while the number of parameters changes.
pub(crate) const TENSORS: usize = 100;
/// Parameters while the number of tensors changes.
pub(crate) const PARAMS: usize = 30_000_000;

/// A number of equal tensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Point {
    params: usize,
    tensors: usize,
}

impl Point {
    /// From small to large.
    fn all() -> Vec<Point> {
        let params = [1, 3, 10, 30, 100, 300, 1000].map(|millions| millions * 1_000_000);
        let sizes = params.map(|params| Point { params, tensors: TENSORS });
        let counts = [1, 10, 100, 1000, 10_000].map(|tensors| Point { params: PARAMS, tensors });
        let mut all = [&sizes[..], &counts].concat();
        all.sort();
        all.dedup();
        all
    }

    fn set(self, dtype: DType) -> Result<ParamSet> {
        let rows = self.params / self.tensors / WIDTH;
        let tensors = (0..self.tensors).map(|i| format!("tensors.{i}"));
        let set = tensors.fold(ParamSet::builder(), |set, name| set.tensor(name, [rows, WIDTH], dtype));
        Ok(set.build()?)
    }
}

/// Measures every point, prints the tables, and appends the rows to `out`.
///
/// # Errors
///
/// If our side fails, or the rows cannot be written.
pub(crate) fn run<T: Target>(args: &Args, target: &mut T, limits: Limits, out: Option<&Path>) -> Result<()> {
    let methods = match args.methods.is_empty() {
        true => {
            METHODS.map(Method::by_name).into_iter().collect::<Result<_, _>>().map_err(anyhow::Error::msg)?
        }
        false => args.methods.clone(),
    };
    let points = Point::all();
    let mut left = points.len() * methods.len();
    for point in points {
        if limits.over() {
            progress("the other points are left out: --time-limit is over");
            break;
        }
        let set = point.set(args.dtype)?;
        let run = provenance(args, target, MODEL, &set)?;
        let mut rows = Vec::new();
        for method in &methods {
            let title = format!("{}, {} tensors, {} parameters", method.name, point.tensors, point.params);
            progress(&title);
            left -= 1;
            let parts = method.operation.parts();
            // Points that need more memory than there is are left out.
            match Bench::new(target, set.clone(), args.dtype, parts, limits) {
                Ok(mut bench) => rows.append(&mut bench.compare(method, false, left + 1)?),
                Err(error) => progress(&format!("  left out: {error:#}")),
            }
        }
        if rows.is_empty() {
            continue;
        }
        writeln!(std::io::stdout().lock(), "{}\n{}", run.heading(), report::table(&rows))?;
        // Point by point: an interrupted run keeps what it has.
        if let Some(path) = out {
            report::append(path, &run, &rows)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_has_its_parameters_and_both_series_are_there() {
        let all = Point::all();
        assert_eq!((all.len(), all.iter().filter(|point| point.tensors == TENSORS).count()), (11, 7));
        assert_eq!(all.iter().filter(|point| point.params == PARAMS).count(), 5);
        for point in all {
            let set = point.set(DType::F32).unwrap();
            assert_eq!((set.len(), set.numel()), (point.tensors, point.params));
        }
        for name in METHODS {
            Method::by_name(name).unwrap();
        }
    }
}
