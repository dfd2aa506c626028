//! Tables and plots.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::{Lab, Method, Outcome, Outcomes, Setting, Task};
use crate::files;
use crate::plot::{Curve, Labels, Style, curves};
use crate::table::{Table, with_deviation};
use crate::timing::Part;

/// What the frontier's plot says.
#[derive(Debug, Clone, Copy)]
pub struct Described<'a> {
    /// Above it.
    pub title: &'a str,
    /// The domain of fine-tuning.
    pub id: &'a str,
    /// The others.
    pub ood: &'a str,
}

/// Writes tables and plots of a study into a folder, and shows the main table.
///
/// # Errors
///
/// Files that cannot be written, or a damaged log.
pub fn write<T: Task>(
    out: &Path,
    lab: &Lab<'_, T>,
    outcomes: &Outcomes,
    described: Described<'_>,
) -> Result<()> {
    let domains = lab.task.domains();
    let accuracy = table(&outcomes.chosen, &domains, |outcome| &outcome.scores.accuracy);
    let mut tables = vec![("table", accuracy)];
    if outcomes.all.iter().any(|outcome| !outcome.scores.macro_f1.is_empty()) {
        tables.push(("macro_f1", table(&outcomes.chosen, &domains, |outcome| &outcome.scores.macro_f1)));
    }
    tables.push(("times", times(&outcomes.chosen)));
    for (name, table) in &tables {
        files::write(&out.join(name).with_extension("md"), table.markdown())?;
        files::write(&out.join(name).with_extension("csv"), table.csv())?;
    }
    files::write_json(&out.join("outcomes.json"), &outcomes.all)?;
    let others: Vec<_> = outcomes.chosen.iter().flat_map(|outcomes| outcomes.iter().skip(1)).collect();
    files::write_json(&out.join("other_seeds.json"), &others)?;
    let methods = &lab.recipe.methods;
    files::write(&out.join("frontier.svg"), frontier(methods, &outcomes.all, &outcomes.chosen, described)?)?;
    for chosen in &outcomes.chosen {
        let setting = chosen[0].setting;
        if matches!(setting.method, Method::Tpgm | Method::Ftp) {
            let name = setting.method.name().to_lowercase();
            for (kind, quantity) in [("radius", Quantity::Radius), ("ratio", Quantity::Ratio)] {
                let plot = over_steps(&lab.log(&setting), setting.method, lab.task.head(), quantity)?;
                files::write(&out.join(format!("{kind}_{name}.svg")), plot)?;
            }
        }
    }
    lab.progress.line(format!("\naccuracy in percent\n{}", tables[0].1.text()));
    lab.progress.line(format!("time of a training step in milliseconds\n{}", times(&outcomes.chosen).text()));
    Ok(())
}

/// Methods x domains in percent. `chosen` has one outcome per seed for each method.
fn table(chosen: &[Vec<Outcome>], domains: &[String], of: impl Fn(&Outcome) -> &[f64]) -> Table {
    let mut table = Table::new(["method".to_owned(), "setting".to_owned()]);
    let names = domains.iter().enumerate();
    table.header.extend(names.map(|(n, name)| if n == 0 { format!("{name} (ID)") } else { name.clone() }));
    table.header.extend(["OOD mean".to_owned(), "seconds".to_owned()]);
    for outcomes in chosen {
        let Some(first) = outcomes.first() else { continue };
        let percent = |share: &dyn Fn(&[f64]) -> f64| {
            let shares = outcomes.iter().map(|outcome| 100.0 * share(of(outcome)));
            with_deviation(&shares.collect::<Vec<_>>(), 1)
        };
        let mut row = vec![first.setting.method.name().to_owned(), setting(&first.setting)];
        row.extend((0..domains.len()).map(|domain| percent(&|shares| shares[domain])));
        row.push(if domains.len() > 1 {
            percent(&|shares| super::mean(&shares[1..]))
        } else {
            String::new()
        });
        let seconds: f64 = outcomes.iter().map(|outcome| outcome.seconds).sum();
        row.push(format!("{:.0}", seconds / outcomes.len() as f64));
        table.rows.push(row);
    }
    table
}

/// Where the time of a training step went: milliseconds of each part.
fn times(chosen: &[Vec<Outcome>]) -> Table {
    let mut table = Table::new(["method".to_owned()]);
    table.header.extend(Part::ALL.map(|part| part.name().to_owned()));
    table.header.push("step, share".to_owned());
    for outcome in chosen.iter().filter_map(|outcomes| outcomes.first()) {
        let times = &outcome.times;
        if times.steps() > 0 {
            let mut row = vec![outcome.setting.method.name().to_owned()];
            row.extend(Part::ALL.map(|part| format!("{:.1}", times.milliseconds(part))));
            row.push(format!("{:.1} %", 100.0 * times.share(Part::Step)));
            table.rows.push(row);
        }
    }
    table
}

/// Learning rate and strength.
fn setting(setting: &Setting) -> String {
    let lr = (setting.lr > 0.0).then(|| format!("lr {}", setting.lr));
    let strength = setting.method.strength_name().zip(setting.strength);
    let strength = strength.map(|(name, value)| format!("{name} {value}"));
    lr.into_iter().chain(strength).collect::<Vec<_>>().join("; ")
}

/// ID against OOD accuracy of all outcomes, a curve per method; the chosen ones are stressed.
fn frontier(
    methods: &[Method],
    all: &[Outcome],
    chosen: &[Vec<Outcome>],
    described: Described<'_>,
) -> Result<String> {
    let point = |outcome: &Outcome| (100.0 * outcome.scores.id(), 100.0 * outcome.scores.ood());
    let mut plotted = Vec::new();
    for method in methods.iter().copied() {
        let mut points: Vec<_> =
            all.iter().filter(|outcome| outcome.setting.method == method).map(point).collect();
        points.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
        let of_method = |outcomes: &&Vec<Outcome>| outcomes[0].setting.method == method;
        let chosen = chosen.iter().filter(|outcomes| !outcomes.is_empty()).find(of_method).map(|outcomes| {
            let (x, y): (Vec<_>, Vec<_>) = outcomes.iter().map(point).unzip();
            (super::mean(&x), super::mean(&y))
        });
        if !points.is_empty() || chosen.is_some() {
            plotted.push(Curve { name: method.name().to_owned(), points, chosen });
        }
    }
    let labels = Labels {
        title: described.title,
        x: &format!("accuracy {} (ID), %", described.id),
        y: &format!("mean accuracy {} (OOD), %", described.ood),
    };
    curves(labels, Style::Marks, &plotted)
}

/// What is plotted of a log.
#[derive(Debug, Clone, Copy)]
enum Quantity {
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

/// Radius or ratio of every matrix but the head's over the steps, from the log of a run.
fn over_steps(log: &Path, method: Method, head: &str, quantity: Quantity) -> Result<String> {
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
            && !tensor.to_lowercase().contains("norm")
            && !tensor.starts_with(head)
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
