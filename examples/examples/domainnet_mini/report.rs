//! Tables and plots.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;
use tpgm_examples::mosaic::Mosaic;
use tpgm_examples::plot::{Curve, Labels, Style, curves};
use tpgm_examples::table::{Table, with_deviation};

use crate::data::{Domain, Images, Request, SIDE, Split};
use crate::lab::{Outcome, Setting};
use crate::method::Method;

/// Methods x domains in percent. `chosen` has one outcome per seed for each method.
pub(crate) fn table(chosen: &[Vec<Outcome>]) -> Table {
    let domains = Domain::ALL.map(|domain| match domain {
        Domain::Real => "real (ID)".to_owned(),
        domain => domain.name().to_owned(),
    });
    let mut table = Table::new(["method".to_owned(), "setting".to_owned()]);
    table.header.extend(domains);
    table.header.extend(["OOD mean".to_owned(), "seconds".to_owned()]);
    for outcomes in chosen {
        let Some(first) = outcomes.first() else { continue };
        let percent = |share: &dyn Fn(&Outcome) -> f64| {
            with_deviation(&outcomes.iter().map(|outcome| 100.0 * share(outcome)).collect::<Vec<_>>(), 1)
        };
        let mut row = vec![first.setting.method.name().to_owned(), described(&first.setting)];
        row.extend((0..Domain::ALL.len()).map(|domain| percent(&|outcome| outcome.domains[domain])));
        row.push(percent(&Outcome::ood));
        let seconds: f64 = outcomes.iter().map(|outcome| outcome.seconds).sum();
        row.push(format!("{:.0}", seconds / outcomes.len() as f64));
        table.rows.push(row);
    }
    table
}

/// Learning rate and strength.
fn described(setting: &Setting) -> String {
    let lr = (setting.method != Method::LinearProbe).then(|| format!("lr {}", setting.lr));
    let strength = setting.method.strength_name().zip(setting.strength);
    let strength = strength.map(|(name, value)| format!("{name} {value}"));
    lr.into_iter().chain(strength).collect::<Vec<_>>().join("; ")
}

/// ID against OOD accuracy of all outcomes, a curve per method; the chosen ones are stressed.
pub(crate) fn frontier(all: &[Outcome], chosen: &[Vec<Outcome>], title: &str) -> Result<String> {
    let point = |outcome: &Outcome| (100.0 * outcome.id(), 100.0 * outcome.ood());
    let mut plotted = Vec::new();
    for method in Method::ALL {
        let mut points: Vec<_> =
            all.iter().filter(|outcome| outcome.setting.method == method).map(point).collect();
        points.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
        let of_method = |outcomes: &&Vec<Outcome>| outcomes[0].setting.method == method;
        let chosen = chosen.iter().filter(|outcomes| !outcomes.is_empty()).find(of_method).map(|outcomes| {
            let mean = |value: &dyn Fn(&Outcome) -> f64| {
                outcomes.iter().map(value).sum::<f64>() / outcomes.len() as f64
            };
            (mean(&|outcome| point(outcome).0), mean(&|outcome| point(outcome).1))
        });
        if !points.is_empty() || chosen.is_some() {
            plotted.push(Curve { name: method.name().to_owned(), points, chosen });
        }
    }
    let labels = Labels {
        title,
        x: "accuracy on real images (ID), %",
        y: "mean accuracy in five other domains (OOD), %",
    };
    curves(labels, Style::Marks, &plotted)
}

/// What is plotted of a log.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Quantity {
    Radius,
    Ratio,
}

/// A line of a log that is about a tensor.
#[derive(Deserialize)]
struct Line {
    step: u64,
    tensor: Option<String>,
    radius: Option<f64>,
    ratio: Option<f64>,
}

/// Radius or ratio of every matrix of the backbone over the steps, from the log of a run.
pub(crate) fn over_steps(log: &Path, method: Method, quantity: Quantity) -> Result<String> {
    let text = std::fs::read_to_string(log).with_context(|| format!("cannot read {}", log.display()))?;
    let mut tensors = BTreeMap::<String, Vec<(f64, f64)>>::new();
    for line in text.lines() {
        let line: Line = serde_json::from_str(line).with_context(|| format!("{}: {line}", log.display()))?;
        let value = match quantity {
            Quantity::Radius => line.radius,
            Quantity::Ratio => line.ratio,
        };
        if let (Some(tensor), Some(value)) = (line.tensor, value)
            && tensor.ends_with(".weight")
            && !tensor.contains("norm")
            && !tensor.starts_with(crate::backbone::HEAD)
        {
            tensors.entry(tensor).or_default().push((line.step as f64, value));
        }
    }
    let plotted: Vec<_> = tensors
        .into_iter()
        .map(|(name, points)| Curve {
            name: name.trim_end_matches(".weight").to_owned(),
            points,
            chosen: None,
        })
        .collect();
    let (title, y) = match quantity {
        Quantity::Radius => {
            (format!("{}: radius of each matrix", method.name()), "radius (MARS: L1 norm of a row)")
        }
        Quantity::Ratio => (format!("{}: ratio of each matrix", method.name()), "mean ratio over the rows"),
    };
    curves(Labels { title: &title, x: "step", y }, Style::Lines, &plotted)
}

/// A few classes in all domains.
pub(crate) fn samples(seed: u64, classes: usize) -> Result<String> {
    let request = Request::fine_tuning(seed, classes.min(8)).of(Split::Train, 2);
    let drawn: Vec<Images> = Domain::ALL.iter().map(|domain| request.draw(&[*domain])).collect();
    let rows = Domain::ALL
        .iter()
        .zip(&drawn)
        .map(|(domain, images)| (domain.name(), (0..images.len()).map(|image| images.image(image)).collect()))
        .collect();
    Mosaic { title: "two images of each of some classes", side: SIDE, rows }.svg()
}
