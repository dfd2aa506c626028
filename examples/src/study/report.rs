//! Tables and plots.

use std::path::Path;

use anyhow::Result;

use super::log::{Log, Quantity, RADII};
use super::overview::choices;
use super::{Head, Lab, Method, Outcome, Outcomes, Setting, Task, paired, rates};
use crate::files;
use crate::page::Page;
use crate::plot::{Curve, Labels, Style, curves};
use crate::table::{Table, with_deviation};
use crate::timing::Part;

/// What the frontier's plot says.
#[derive(Debug, Clone, Copy)]
pub struct Described<'a> {
    /// What was done, above the page.
    pub page: &'a str,
    /// Above the plot.
    pub title: &'a str,
    /// The domain of fine-tuning.
    pub id: &'a str,
    /// The others.
    pub ood: &'a str,
}

/// Writes tables and plots of a study into a folder, all of them as the page `report.html` too, and shows the main table. The folder
/// is one that [`folder::prepare`](crate::folder::prepare) has made ready: the page shows the options that it wrote.
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
    let groups = lab.task.groups();
    let accuracy = table(&outcomes.chosen, &domains, &groups, |outcome| &outcome.scores.accuracy);
    let mut tables = vec![("table", accuracy)];
    if outcomes.all.iter().any(|outcome| !outcome.scores.macro_f1.is_empty()) {
        tables.push((
            "macro_f1",
            table(&outcomes.chosen, &domains, &groups, |outcome| &outcome.scores.macro_f1),
        ));
    }
    let measures = paired::measures(domains.len(), &groups);
    let everything = outcomes.all.iter().chain(outcomes.chosen.iter().flat_map(|of| of.iter().skip(1)));
    tables.push(("choices", choices(&outcomes.all, &outcomes.chosen)));
    tables.push(("rates", rates::table(&lab.recipe.methods, &everything.collect::<Vec<_>>(), &measures)));
    let units = lab.task.units();
    for (name, base) in [
        (
            "against_fine_tuning",
            if lab.recipe.head == Head::Probed { Method::LpFt } else { Method::FineTuning },
        ),
        ("against_probe", Method::LinearProbe),
    ] {
        tables.extend(paired::table(&outcomes.chosen, base, &measures, &units).map(|table| (name, table)));
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
    let mut page = Page::new(described.page);
    for (name, table) in &tables {
        let (title, note) = entitled(name);
        page.table(title, note, table);
    }
    let mut plot = |name: &str, domains: &[usize], ood: &str| {
        let svg = frontier(methods, outcomes, domains, Described { ood, ..described })?;
        page.plot(&format!("Accuracy under shift {ood}"), described.title, &svg);
        files::write(&out.join(name), svg)
    };
    plot("frontier.svg", &(1..domains.len()).collect::<Vec<_>>(), described.ood)?;
    for (name, domains) in &groups {
        plot(&format!("frontier_{name}.svg"), domains, &format!("on {name}"))?;
    }
    let mut losses = Vec::new();
    for chosen in &outcomes.chosen {
        let setting = chosen[0].setting;
        // A run whose outcome is from a record has no log.
        if !lab.log(&setting).exists() {
            continue;
        }
        let method = setting.method.name();
        let log = Log::read(&lab.log(&setting), Some(lab.task.head()))?;
        losses.push(Curve { name: method.to_owned(), lines: vec![log.losses.clone()], chosen: None });
        if matches!(setting.method, Method::Tpgm | Method::Ftp) {
            page.table(&format!("Radii of {method} at the end"), RADII, &log.last());
            for (kind, quantity) in [("radius", Quantity::Radius), ("ratio", Quantity::Ratio)] {
                let plot = log.over_steps(method, quantity)?;
                page.plot(&format!("{method}: {kind} over the steps"), "", &plot);
                files::write(&out.join(format!("{kind}_{}.svg", method.to_lowercase())), plot)?;
            }
        }
    }
    if !losses.is_empty() {
        let labels = Labels { title: "training loss of the chosen settings", x: "step", y: "loss" };
        page.plot("Training loss", "Of a batch each, not smoothed.", &curves(labels, Style::Lines, &losses)?);
    }
    page.settings("Settings", &files::read_json::<serde_json::Value>(&out.join("config.json"))?)?;
    page.write(out)?;
    lab.progress.line(format!("\naccuracy in percent\n{}", tables[0].1.text()));
    lab.progress.line(format!("time of a training step in milliseconds\n{}", times(&outcomes.chosen).text()));
    Ok(())
}

/// Methods x domains in percent. `chosen` has one outcome per seed for each method.
fn table(
    chosen: &[Vec<Outcome>],
    domains: &[String],
    groups: &[(String, Vec<usize>)],
    of: impl Fn(&Outcome) -> &[f64],
) -> Table {
    let mut table = Table::new(["method".to_owned(), "setting".to_owned()]);
    let names = domains.iter().enumerate();
    table.header.extend(names.map(|(n, name)| if n == 0 { format!("{name} (ID)") } else { name.clone() }));
    table.header.extend(groups.iter().map(|(name, _)| format!("{name} mean")));
    table.header.extend(["OOD mean".to_owned(), "seconds".to_owned()]);
    for outcomes in chosen {
        let Some(first) = outcomes.first() else { continue };
        let percent = |share: &dyn Fn(&[f64]) -> f64| {
            let shares = outcomes.iter().map(|outcome| 100.0 * share(of(outcome)));
            with_deviation(&shares.collect::<Vec<_>>(), 1)
        };
        let mut row = vec![first.setting.method.name().to_owned(), words(&first.setting)];
        row.extend((0..domains.len()).map(|domain| percent(&|shares| shares[domain])));
        let mean = |shares: &[f64], of: &[usize]| {
            super::mean(&of.iter().map(|domain| shares[*domain]).collect::<Vec<_>>())
        };
        row.extend(groups.iter().map(|(_, of)| percent(&|shares| mean(shares, of))));
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
pub(super) fn words(setting: &Setting) -> String {
    let lr = (setting.lr > 0.0).then(|| format!("lr {}", setting.lr));
    let strength = setting.method.strength_name().zip(setting.strength);
    let strength = strength.map(|(name, value)| format!("{name} {value}"));
    lr.into_iter().chain(strength).collect::<Vec<_>>().join("; ")
}

/// Accuracy in distribution against the mean over `domains`: a curve for each method and strength, along the learning rates;
/// the chosen settings are stressed.
fn frontier(
    methods: &[Method],
    outcomes: &Outcomes,
    domains: &[usize],
    described: Described<'_>,
) -> Result<String> {
    let point = |outcome: &Outcome| {
        let shifted: Vec<_> = domains.iter().map(|domain| outcome.scores.accuracy[*domain]).collect();
        (100.0 * outcome.scores.id(), 100.0 * super::mean(&shifted))
    };
    let mut plotted = Vec::new();
    for method in methods.iter().copied() {
        let mut of_method: Vec<_> =
            outcomes.all.iter().filter(|outcome| outcome.setting.method == method).collect();
        let order = |outcome: &&Outcome| (outcome.setting.strength.unwrap_or(0.0), outcome.setting.lr);
        of_method.sort_by(|a, b| order(a).partial_cmp(&order(b)).unwrap_or(std::cmp::Ordering::Equal));
        let mut strengths: Vec<Vec<&Outcome>> = Vec::new();
        for outcome in of_method {
            match strengths.last_mut() {
                Some(last) if last[0].setting.strength == outcome.setting.strength => last.push(outcome),
                _ => strengths.push(vec![outcome]),
            }
        }
        let chosen = outcomes.chosen.iter().filter(|outcomes| !outcomes.is_empty());
        let chosen = chosen.clone().find(|outcomes| outcomes[0].setting.method == method).map(|outcomes| {
            let (x, y): (Vec<_>, Vec<_>) = outcomes.iter().map(point).unzip();
            (super::mean(&x), super::mean(&y))
        });
        let lines = strengths.into_iter().map(|of| of.into_iter().map(point).collect()).collect();
        let lines: Vec<Vec<_>> = lines;
        if !lines.is_empty() {
            plotted.push(Curve { name: method.name().to_owned(), lines, chosen });
        }
    }
    let labels = Labels {
        title: described.title,
        x: &format!("accuracy {} (ID), %", described.id),
        y: &format!("mean accuracy {} (OOD), %", described.ood),
    };
    curves(labels, Style::Marks, &plotted)
}

/// The title of a table on the page, and what to know of it.
fn entitled(name: &str) -> (&'static str, &'static str) {
    match name {
        "table" => (
            "Accuracy",
            "In percent, with the sample standard deviation over seeds where there are several. The first set is like the \
             training data, the others are shifted.",
        ),
        "macro_f1" => ("Macro-F1", "In percent."),
        "choices" => ("Choice of settings", "Made on held-out samples, never on test data."),
        "rates" => ("Every learning rate", "The first seed, or all where there are several."),
        "against_fine_tuning" => ("Against fine-tuning", "Differences on the same samples."),
        "against_probe" => ("Against the linear probe", "Differences on the same samples."),
        _ => ("Time of a training step", "In milliseconds."),
    }
}
