//! What the log of a run says: loss, and the radii of its layers.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

use crate::plot::{Curve, Labels, Style, curves};
use crate::table::Table;

/// What is plotted of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quantity {
    /// How far a tensor may be from its anchor.
    Radius,
    /// The smallest part of a row's displacement that the last projection kept.
    Ratio,
}

/// A line of a log: about a tensor, or a number by its tag.
#[derive(Deserialize)]
struct Line {
    step: u64,
    tag: Option<String>,
    value: Option<f64>,
    tensor: Option<String>,
    radius: Option<f64>,
    ratio: Option<f64>,
}

/// What a line says of a tensor.
struct Point {
    step: f64,
    radius: Option<f64>,
    ratio: Option<f64>,
}

/// What the log of a run says of every matrix but the head's, and the loss.
pub struct Log {
    /// Loss of a training batch at some steps.
    pub losses: Vec<(f64, f64)>,
    tensors: BTreeMap<String, Vec<Point>>,
}

impl Log {
    /// Reads a log. Tensors whose names begin with `head` are left out.
    ///
    /// # Errors
    ///
    /// The file cannot be read, or holds something else.
    pub fn read(path: &Path, head: Option<&str>) -> Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut log = Self { losses: Vec::new(), tensors: BTreeMap::new() };
        for line in text.lines() {
            let line: Line =
                serde_json::from_str(line).with_context(|| format!("{}: {line}", path.display()))?;
            let step = line.step as f64;
            match (line.tensor, line.tag.as_deref(), line.value) {
                (Some(tensor), ..)
                    if tensor.ends_with(".weight")
                        && !tensor.to_lowercase().contains("norm")
                        && head.is_none_or(|head| !tensor.starts_with(head)) =>
                {
                    let name = tensor.trim_end_matches(".weight").to_owned();
                    let point = Point { step, radius: line.radius, ratio: line.ratio };
                    log.tensors.entry(name).or_default().push(point);
                }
                (None, Some("loss"), Some(loss)) => log.losses.push((step, loss)),
                _ => {}
            }
        }
        Ok(log)
    }

    /// Radius and ratio of each matrix at the last step.
    pub fn last(&self) -> Table {
        let mut table = Table::new(["layer", "radius", "smallest ratio"]);
        let number = |x: Option<f64>| x.map(|x| format!("{x:.4}")).unwrap_or_default();
        for (name, points) in &self.tensors {
            if let Some(Point { radius, ratio, .. }) = points.last() {
                table.rows.push(vec![name.clone(), number(*radius), number(*ratio)]);
            }
        }
        table
    }

    /// A quantity of every matrix over the steps, under a method's name.
    ///
    /// # Errors
    ///
    /// plotters fails.
    pub fn over_steps(&self, method: &str, quantity: Quantity) -> Result<String> {
        let of = |point: &Point| {
            let value = match quantity {
                Quantity::Radius => point.radius,
                Quantity::Ratio => point.ratio,
            };
            value.map(|value| (point.step, value))
        };
        let plotted = self.tensors.iter().filter_map(|(name, points)| {
            let line: Vec<_> = points.iter().filter_map(of).collect();
            (!line.is_empty()).then(|| Curve { name: name.clone(), lines: vec![line], chosen: None })
        });
        let (what, y) = match quantity {
            Quantity::Radius => ("radius", "radius (MARS: L1 norm of a row)"),
            Quantity::Ratio => ("ratio", "smallest ratio of a row"),
        };
        let title = format!("{method}: {what} of each matrix");
        let plotted: Vec<_> = plotted.collect();
        curves(Labels { title: &title, x: "step", y }, Style::Lines, &plotted)
    }
}

/// What the table of radii shows.
pub const RADII: &str = "Radius: how far a row of each matrix may be from its anchor (L1 norm). Ratio: the part of its \
                         displacement that a row kept in the last projection, at least.";
