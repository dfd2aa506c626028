//! The sections on whole training steps.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use tpgm_benches::options::file_stem;
use tpgm_benches::report::{Line, TRAIN};

use super::plots::{Stack, stacks};
use super::{Runs, newest};

/// Network, device, threads. A section each.
type Place = (String, String, usize);

/// The parts of a step, as the rows name them.
const PARTS: [&str; 4] = ["forward", "backward", "optimizer", "projection"];

/// What rows call the processor.
const CPU: &str = "cpu";
/// On devices that work by themselves.
const APART: &str = " Parts are those of other steps, after each of whose parts the device was waited for: together they take longer \
                     than the step.";

/// Adds a section for each place.
pub(super) fn write(lines: &[&Line], page: &mut String, plots: &mut Vec<(String, String)>) {
    let mut places = BTreeMap::<Place, Vec<&Line>>::new();
    for line in lines {
        let place = (line.run.model.clone(), line.run.device.clone(), line.run.threads);
        places.entry(place).or_default().push(line);
    }
    for ((network, device, threads), lines) in &places {
        let newest = newest(lines);
        let runs = Runs::of(&newest);
        let _ = write!(
            page,
            "\n## Training steps: {network}, {device}, {threads} threads\n\nMilliseconds, medians of alternating steps; the optimizer's \
             share is of its own step. Our program keeps freed memory for the next tensor; contestants ending in `_as_is` leave it to the C \
             library, which hands large blocks back to the system, and `candle` is candle-nn.{}\n\n| method | who | step | spread | {} | optimizer's share | x ours | others | run |\n\
             |---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
            if device == CPU { "" } else { APART },
            PARTS.join(" | ")
        );
        let mut bars = Vec::new();
        for whole in newest.iter().filter(|line| !line.row.contestant.contains(": ")) {
            let row = &whole.row;
            let seconds = PARTS.map(|part| {
                let name = format!("{}: {part}", row.contestant);
                let part =
                    newest.iter().find(|line| line.row.method == row.method && line.row.contestant == name);
                part.map(|line| line.row.median_s)
            });
            let ms = |seconds: Option<f64>| {
                seconds.map_or(String::new(), |seconds| format!("{:.1}", 1e3 * seconds))
            };
            let percent =
                |share: Option<f64>| share.map_or(String::new(), |share| format!("{:.1} %", 100.0 * share));
            let method = row.method.strip_prefix(TRAIN).unwrap_or(&row.method);
            let _ = writeln!(
                page,
                "| {method} | {} | {} | {} | {} | {} | {} | {} | {} |",
                row.contestant,
                ms(Some(row.median_s)),
                ms(row.spread_s),
                seconds.map(ms).join(" | "),
                percent(seconds[2].map(|optimizer| optimizer / row.median_s)),
                row.times_ours.map_or(String::new(), |times| format!("{times:.2}")),
                percent(row.others),
                runs.number(&whole.run),
            );
            let name = format!("{method}: {}", row.contestant);
            bars.push(Stack { name, parts: seconds.map(|part| 1e3 * part.unwrap_or_default()).to_vec() });
        }
        *page += &runs.list();
        let name = format!("{}-train-{}-{threads}.svg", device.replace(' ', "-"), file_stem(network));
        let title = format!("{network}, {device}, {threads} threads: milliseconds of a training step");
        let _ = writeln!(page, "\n![parts of a training step](results/{name})");
        plots.push((name, stacks(&title, &PARTS, &bars)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(method: &str, who: &str, seconds: f64, times: &str) -> Line {
        let text = format!(
            r#"{{"date":"2026-01-01","commit":"c1","cpu":"some cpu","os":"linux","version":"0.1.0","torch":"2.15",
            "model":"MiniLM, 32 texts of 64 tokens","params":3,"tensors":2,"threads":2,"method":"{method}","contestant":"{who}",
            "rounds":7,"median_s":{seconds},"min_s":0.01,"max_s":0.05,"spread_s":0.001,"bytes_per_param":null,"gb_per_s":null,
            "of_copy":null,"of_in_place":null,"times_ours":{times},"others":0.004}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn parts_stand_beside_their_step() {
        let lines = [
            line("train adamw", "ours", 0.2, "null"),
            line("train adamw", "ours: forward", 0.1, "null"),
            line("train adamw", "ours: backward", 0.096, "null"),
            line("train adamw", "ours: optimizer", 0.004, "null"),
            line("train adamw", "torch", 0.3, "1.5"),
            line("train adamw", "torch: forward", 0.3, "null"),
        ];
        let (mut page, mut plots) = (String::new(), Vec::new());
        write(&lines.iter().collect::<Vec<_>>(), &mut page, &mut plots);
        for part in [
            "## Training steps: MiniLM, 32 texts of 64 tokens, cpu, 2 threads",
            "| adamw | ours | 200.0 | 1.0 | 100.0 | 96.0 | 4.0 |  | 2.0 % |  | 0.4 % | 1 |",
            "| adamw | torch | 300.0 | 1.0 | 300.0 |  |  |  |  | 1.50 |",
            "(results/cpu-train-minilm-32-texts-of-64-tokens-2.svg)",
        ] {
            assert!(page.contains(part), "{part}: {page}");
        }
        assert!(!page.contains("waited for"), "{page}");
        // The white ground, a legend of four, and the parts that take time.
        assert_eq!(plots[0].1.matches("<rect").count(), 1 + 4 + 4, "{}", plots[0].1);
    }

    #[test]
    fn steps_on_a_gpu_say_where_their_parts_come_from() {
        let mut line = line("train adamw", "ours", 0.2, "null");
        line.run.device = "Some GPU 80GB".into();
        let (mut page, mut plots) = (String::new(), Vec::new());
        write(&[&line], &mut page, &mut plots);
        for part in ["## Training steps: MiniLM, 32 texts of 64 tokens, Some GPU 80GB", "was waited for"] {
            assert!(page.contains(part), "{part}: {page}");
        }
        assert_eq!(plots[0].0, "Some-GPU-80GB-train-minilm-32-texts-of-64-tokens-2.svg");
    }
}
