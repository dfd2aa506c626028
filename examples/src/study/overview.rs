//! What a study writes that has its own methods: tables, a plot and the page of both.

use std::path::Path;

use anyhow::Result;
use serde::Serialize;

use super::Outcome;
use super::report::{Described, words};
use crate::files;
use crate::page::Page;
use crate::plot::{Curve, Labels, Style, curves};
use crate::progress::Progress;
use crate::table::{Table, with_deviation};

/// What came out of one setting.
pub trait Ran: Serialize {
    /// The method's name.
    fn method(&self) -> &'static str;

    /// Its setting in words.
    fn words(&self) -> String;

    /// Accuracy on the samples for choosing, in `[0, 1]`.
    fn choice(&self) -> f64;

    /// Accuracy on each test set, in `[0, 1]`. The first is in distribution, the others are shifted.
    fn accuracy(&self) -> &[f64];

    /// Mean accuracy on the shifted sets.
    fn ood(&self) -> f64 {
        super::mean(&self.accuracy()[1..])
    }
}

impl Ran for Outcome {
    fn method(&self) -> &'static str {
        self.setting.method.name()
    }

    fn words(&self) -> String {
        words(&self.setting)
    }

    fn choice(&self) -> f64 {
        self.scores.choice
    }

    fn accuracy(&self) -> &[f64] {
        &self.scores.accuracy
    }
}

/// Writes the tables of a study into a folder, with `report.html`, and shows the main one. `all` are the outcomes of the first seed;
/// `chosen` has one outcome per seed for each method. The folder is one that [`folder::prepare`](crate::folder::prepare) has made
/// ready: the page shows the options that it wrote.
///
/// # Errors
///
/// A file cannot be written.
pub fn write_overview<O: Ran>(
    out: &Path,
    described: Described<'_>,
    (main, note): (&Table, &str),
    (all, chosen): (&[O], &[Vec<O>]),
    progress: &Progress,
) -> Result<()> {
    let choices = choices(all, chosen);
    for (name, table) in [("table", main), ("choices", &choices)] {
        files::write(&out.join(name).with_extension("md"), table.markdown())?;
        files::write(&out.join(name).with_extension("csv"), table.csv())?;
    }
    let others: Vec<_> = chosen.iter().flat_map(|outcomes| outcomes.iter().skip(1)).collect();
    files::write_json(&out.join("outcomes.json"), &all)?;
    files::write_json(&out.join("other_seeds.json"), &others)?;
    let svg = frontier(described, all, chosen)?;
    files::write(&out.join("frontier.svg"), &svg)?;
    let mut page = Page::new(described.page);
    page.table("Accuracy", note, main);
    page.plot(&format!("Accuracy under shift {}", described.ood), described.title, &svg);
    page.table("Choice of settings", "Made on held-out samples, never on test data.", &choices);
    page.settings("Settings", &files::read_json::<serde_json::Value>(&out.join("config.json"))?)?;
    page.write(out)?;
    progress.line(format!("\naccuracy in percent\n{}", main.text()));
    Ok(())
}

/// How each method's setting was chosen: of how many, and how well it does on the samples for choosing.
pub(super) fn choices<O: Ran>(all: &[O], chosen: &[Vec<O>]) -> Table {
    let mut table = Table::new(["method", "setting", "settings tried", "held-out", "seeds"]);
    for outcomes in chosen.iter().filter(|outcomes| !outcomes.is_empty()) {
        let method = outcomes[0].method();
        let tried = all.iter().filter(|outcome| outcome.method() == method).count();
        let shares: Vec<_> = outcomes.iter().map(|outcome| 100.0 * outcome.choice()).collect();
        table.rows.push(vec![
            method.to_owned(),
            outcomes[0].words(),
            tried.to_string(),
            with_deviation(&shares, 1),
            outcomes.len().to_string(),
        ]);
    }
    table
}

/// Every setting, accuracy in distribution against that under shift.
fn frontier<O: Ran>(described: Described<'_>, all: &[O], chosen: &[Vec<O>]) -> Result<String> {
    let point = |outcome: &O| (100.0 * outcome.accuracy()[0], 100.0 * outcome.ood());
    let of_method = |outcomes: &Vec<O>| {
        let method = outcomes[0].method();
        let (x, y): (Vec<_>, Vec<_>) = outcomes.iter().map(point).unzip();
        let tried =
            all.iter().filter(|outcome| outcome.method() == method).map(|outcome| vec![point(outcome)]);
        let chosen = Some((super::mean(&x), super::mean(&y)));
        Curve { name: method.to_owned(), lines: tried.collect(), chosen }
    };
    let labels = Labels {
        title: described.title,
        x: &format!("accuracy {} (ID), %", described.id),
        y: &format!("mean accuracy {} (OOD), %", described.ood),
    };
    curves(labels, Style::Marks, &chosen.iter().map(of_method).collect::<Vec<_>>())
}
