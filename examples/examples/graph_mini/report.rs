//! Tables.

use std::path::Path;

use anyhow::Result;
use tpgm_examples::progress::Progress;
use tpgm_examples::search::Swept;
use tpgm_examples::study::{Described, Ran, write_overview};
use tpgm_examples::table::{Table, with_deviation};

use super::lab::Outcome;
use super::world::TESTS;

/// What the page says of the main table.
const NOTE: &str = "In percent, with the sample standard deviation over seeds where there are several. The first set has the bases of the \
                    training graphs.";

/// Writes the tables of a study into a folder, with the page of all, and shows the main one.
///
/// # Errors
///
/// A file cannot be written.
pub(super) fn write(out: &Path, swept: &Swept<Outcome>, progress: &Progress) -> Result<()> {
    let described = Described {
        page: "A small graph network, fine-tuned on graphs with usual bases",
        title: "every setting of every method",
        id: "on usual bases",
        ood: "on other graphs",
    };
    let main = table(&swept.chosen);
    write_overview(out, described, (&main, NOTE), (&swept.all, &swept.chosen), progress)
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
