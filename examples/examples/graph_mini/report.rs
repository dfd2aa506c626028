//! Tables.

use std::path::Path;

use anyhow::Result;
use tpgm_examples::files;
use tpgm_examples::progress::Progress;
use tpgm_examples::table::{Table, with_deviation};

use super::lab::Outcome;
use super::world::TESTS;

/// Writes the tables of a study into a folder, and shows the main one. `chosen` has one outcome per seed for each method.
///
/// # Errors
///
/// A file cannot be written.
pub(super) fn write(out: &Path, all: &[Outcome], chosen: &[Vec<Outcome>], progress: &Progress) -> Result<()> {
    let main = table(chosen);
    for (name, table) in [("table", &main), ("choices", &choices(all, chosen))] {
        files::write(&out.join(name).with_extension("md"), table.markdown())?;
        files::write(&out.join(name).with_extension("csv"), table.csv())?;
    }
    files::write_json(&out.join("outcomes.json"), &all)?;
    progress.line(format!("\naccuracy in percent\n{}", main.text()));
    Ok(())
}

fn percent(outcomes: &[Outcome], share: impl Fn(&Outcome) -> f64) -> String {
    with_deviation(&outcomes.iter().map(|outcome| 100.0 * share(outcome)).collect::<Vec<_>>(), 1)
}

/// Methods x test sets in percent, and what they cost.
fn table(chosen: &[Vec<Outcome>]) -> Table {
    let mut table = Table::new(["method", "setting"]);
    let names = TESTS.iter().enumerate();
    table
        .header
        .extend(names.map(|(at, name)| if at == 0 { format!("{name} (ID)") } else { (*name).to_owned() }));
    table.header.extend(["OOD mean", "trained numbers", "seconds"].map(str::to_owned));
    for outcomes in chosen {
        let Outcome { setting, trained, .. } = &outcomes[0];
        let mut row = vec![setting.method.name().to_owned(), setting.words()];
        row.extend((0..TESTS.len()).map(|test| percent(outcomes, |outcome| outcome.accuracy[test])));
        row.push(percent(outcomes, Outcome::ood));
        row.push(trained.to_string());
        let seconds: f64 = outcomes.iter().map(|outcome| outcome.seconds).sum();
        row.push(format!("{:.1}", seconds / outcomes.len() as f64));
        table.rows.push(row);
    }
    table
}

/// How each method's setting was chosen: of how many, and how well it does on the graphs for choosing.
fn choices(all: &[Outcome], chosen: &[Vec<Outcome>]) -> Table {
    let mut table = Table::new(["method", "setting", "settings tried", "held-out", "seeds"]);
    for outcomes in chosen {
        let setting = &outcomes[0].setting;
        let tried = all.iter().filter(|outcome| outcome.setting.method == setting.method).count();
        table.rows.push(vec![
            setting.method.name().to_owned(),
            setting.words(),
            tried.to_string(),
            percent(outcomes, |outcome| outcome.choice),
            outcomes.len().to_string(),
        ]);
    }
    table
}
