//! Tables.

use std::path::Path;

use anyhow::Result;
use tpgm_examples::files;
use tpgm_examples::progress::Progress;
use tpgm_examples::search::Swept;
use tpgm_examples::study::{Described, Ran, write_overview};
use tpgm_examples::table::{Table, with_deviation};

use crate::lab::Outcome;
use crate::method::Method;
use crate::world::REPORTED;

/// What the page says of the main table.
const NOTE: &str = "In percent, with the sample standard deviation over seeds where there are several. Fine-tuning has seen the first \
                    domain alone. Memory is what a method keeps beyond fine-tuning.";

/// Writes the tables of a study into a folder, with the page of all, and shows the main one.
///
/// # Errors
///
/// A file cannot be written.
pub(crate) fn write(out: &Path, swept: &Swept<Outcome>, progress: &Progress) -> Result<()> {
    let described = Described {
        page: "A small pair of image and text towers, fine-tuned on real images",
        title: "every setting of every method",
        id: "on real images",
        ood: "in the other domains",
    };
    files::write(&out.join("notes.md"), notes(&swept.chosen))?;
    let main = table(&swept.chosen);
    write_overview(out, described, (&main, NOTE), (&swept.all, &swept.chosen), progress)
}

fn mean(values: impl Iterator<Item = f64>) -> f64 {
    let (count, sum) = values.fold((0.0, 0.0), |(count, sum), value| (count + 1.0, sum + value));
    sum / count
}

/// Methods x domains in percent, and what they cost.
fn table(chosen: &[Vec<Outcome>]) -> Table {
    let mut table = Table::new(["method", "setting"]);
    let domains = REPORTED.iter().enumerate();
    table.header.extend(domains.map(|(number, domain)| match number {
        0 => format!("{} (ID)", domain.name()),
        _ => domain.name().to_owned(),
    }));
    table.header.extend(["OOD mean", "seconds", "extra memory, KiB", "ms per image"].map(str::to_owned));
    let of = |method| chosen.iter().find(|outcomes| outcomes[0].setting.method == method);
    let usual = of(Method::FineTuning).map_or(0, |outcomes| outcomes[0].kept) as f64;
    for outcomes in chosen {
        let setting = &outcomes[0].setting;
        let percent = |share: &dyn Fn(&Outcome) -> f64| {
            with_deviation(&outcomes.iter().map(|outcome| 100.0 * share(outcome)).collect::<Vec<_>>(), 1)
        };
        let mean_of = |value: &dyn Fn(&Outcome) -> f64| mean(outcomes.iter().map(value));
        let mut row = vec![setting.method.name().to_owned(), setting.words()];
        row.extend((0..REPORTED.len()).map(|domain| percent(&|outcome| outcome.accuracy[domain])));
        row.push(percent(&Outcome::ood));
        row.push(format!("{:.1}", mean_of(&|outcome| outcome.seconds)));
        row.push(match setting.method {
            // It is not trained.
            Method::ZeroShot => String::new(),
            _ => format!("{:+.0}", (outcomes[0].kept as f64 - usual) / 1024.0),
        });
        row.push(format!("{:.2}", mean_of(&|outcome| outcome.milliseconds)));
        table.rows.push(row);
    }
    table
}

/// What the chosen runs of the first seed say besides: AutoFT's best trial, where prompts have moved.
fn notes(chosen: &[Vec<Outcome>]) -> String {
    let mut text = String::new();
    for outcome in chosen.iter().map(|outcomes| &outcomes[0]).filter(|outcome| !outcome.notes.is_empty()) {
        text += &format!("{}\n\n", outcome.setting.method.name());
        text.extend(outcome.notes.iter().map(|note| format!("- {note}\n")));
        text.push('\n');
    }
    text
}
