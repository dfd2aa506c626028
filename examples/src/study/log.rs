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
    /// How far a tensor is from its anchor before it is pulled back: its largest row norm (MARS).
    Distance,
    /// How far it may be.
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
    #[serde(default)]
    norm: Option<f64>,
    radius: Option<f64>,
    ratio: Option<f64>,
}

/// What a line says of a tensor.
struct Point {
    step: f64,
    distance: Option<f64>,
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
                    let point = Point { step, distance: line.norm, radius: line.radius, ratio: line.ratio };
                    log.tensors.entry(name).or_default().push(point);
                }
                (None, Some("loss"), Some(loss)) => log.losses.push((step, loss)),
                _ => {}
            }
        }
        Ok(log)
    }

    /// Distance, radius and ratio of each matrix at the last step. Methods without radii have none.
    pub fn last(&self) -> Table {
        let has_radii = self.tensors.values().flatten().any(|point| point.radius.is_some_and(|r| r > 0.0));
        let mut table = Table::new(["layer", "distance", "radius", "smallest ratio"]);
        let number = |x: Option<f64>| x.map(|x| format!("{x:.4}")).unwrap_or_default();
        for (name, points) in &self.tensors {
            if let Some(Point { distance, radius, ratio, .. }) = points.last() {
                let radius = radius.filter(|_| has_radii);
                table.rows.push(vec![name.clone(), number(*distance), number(radius), number(*ratio)]);
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
                Quantity::Distance => point.distance,
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
            Quantity::Distance => ("distance", "distance (MARS: L1 norm of a row)"),
            Quantity::Radius => ("radius", "radius (MARS: L1 norm of a row)"),
            Quantity::Ratio => ("ratio", "smallest ratio of a row"),
        };
        let title = format!("{method}: {what} of each matrix");
        let plotted: Vec<_> = plotted.collect();
        curves(Labels { title: &title, x: "step", y }, Style::Lines, &plotted)
    }
}

/// What the table of radii shows.
pub const RADII: &str = "Distance: how far the farthest row of each matrix was from its pre-trained values before the last projection \
                         (L1 norm). Radius: how far a row may be. Ratio: the part of its displacement that a row kept, at least.";
