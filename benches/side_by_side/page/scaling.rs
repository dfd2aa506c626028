//! The section on equal tensors: cost per parameter over their size and over their number.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use tpgm_benches::report::{Line, OURS};

use super::Runs;
use super::plots::{Curve, curves};
use crate::scaling::{PARAMS, TENSORS};

/// Device, element type, threads. A section each.
type Place = (String, &'static str, usize);

/// Adds a section for each place.
pub(super) fn write(lines: &[&Line], page: &mut String, plots: &mut Vec<(String, String)>) {
    let mut places = BTreeMap::<Place, Vec<&Line>>::new();
    for line in lines.iter().filter(|line| line.row.contestant == OURS) {
        let place = (line.run.device.clone(), line.run.dtype.name(), line.run.threads);
        places.entry(place).or_default().push(line);
    }
    for ((device, dtype, threads), lines) in &places {
        let newest = newest(lines);
        let runs = Runs::of(&newest);
        let _ = write!(
            page,
            "\n## Scaling, {dtype}, {device}, {threads} threads\n\nEqual tensors in rows of 1000. Points that need more memory than \
             the machine had are missing.\n\n| method | parameters | tensors | ns per parameter | B/param | GB/s | of in-place triad | \
             others | run |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|\n"
        );
        for line in &newest {
            let (row, run) = (&line.row, &line.run);
            let percent =
                |share: Option<f64>| share.map_or(String::new(), |share| format!("{:.0} %", 100.0 * share));
            let _ = writeln!(
                page,
                "| {} | {} | {} | {:.3} | {} | {:.1} | {} | {} | {} |",
                row.method,
                run.params,
                run.tensors.unwrap_or_default(),
                nanoseconds(line),
                row.bytes_per_param.unwrap_or_default(),
                row.gb_per_s.unwrap_or_default(),
                percent(row.of_in_place),
                percent(row.others),
                runs.number(run),
            );
        }
        *page += &runs.list();
        let stem = format!("{device}-scaling-{dtype}-{threads}").replace(' ', "-");
        let by_params = |line: &Line| (line.run.tensors == Some(TENSORS)).then_some(line.run.params as f64);
        let by_tensors = |line: &Line| {
            line.run.tensors.filter(|_| line.run.params == PARAMS).map(|tensors| tensors as f64)
        };
        for (end, title, axis, curves_of) in [
            ("parameters", format!("{TENSORS} tensors"), "parameters", series(&newest, by_params)),
            ("tensors", format!("{PARAMS} parameters"), "tensors", series(&newest, by_tensors)),
        ] {
            let name = format!("{stem}-{end}.svg");
            let title = format!("{title}, {dtype}, {device}, {threads} threads");
            let _ = writeln!(page, "\n![cost per parameter over the number of {axis}](results/{name})");
            plots.push((name, curves(&title, axis, "ns per parameter", &curves_of)));
        }
    }
}

fn nanoseconds(line: &Line) -> f64 {
    1e9 * line.row.median_s / line.run.params as f64
}

/// A curve for each method, over what `at` says of a line; lines of which it says nothing are left out.
fn series(lines: &[&Line], at: impl Fn(&Line) -> Option<f64>) -> Vec<Curve> {
    let mut curves: Vec<Curve> = Vec::new();
    for line in lines {
        let Some(x) = at(line) else { continue };
        let point = (x, nanoseconds(line));
        match curves.iter_mut().find(|(name, _)| *name == line.row.method) {
            Some((_, points)) => points.push(point),
            None => curves.push((line.row.method.clone(), vec![point])),
        }
    }
    curves.iter_mut().for_each(|(_, points)| points.sort_by(|a, b| a.0.total_cmp(&b.0)));
    curves
}

/// The newest row of each method and point: methods in the order in which they first appear, points from small to large.
fn newest<'a>(lines: &[&'a Line]) -> Vec<&'a Line> {
    let mut methods = Vec::<&str>::new();
    let mut newest = BTreeMap::<(usize, usize, usize), &Line>::new();
    for line in lines {
        let method = methods.iter().position(|name| *name == line.row.method).unwrap_or_else(|| {
            methods.push(&line.row.method);
            methods.len() - 1
        });
        let point = (method, line.run.params, line.run.tensors.unwrap_or_default());
        let known = newest.entry(point).or_insert(line);
        if known.run.machine.date <= line.run.machine.date {
            *known = line;
        }
    }
    newest.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(date: &str, method: &str, params: usize, tensors: usize, seconds: f64) -> Line {
        let text = format!(
            r#"{{"date":"{date}","commit":"c1","cpu":"some cpu","os":"linux","version":"0.1.0","torch":null,
            "model":"equal tensors","params":{params},"tensors":{tensors},"threads":2,"method":"{method}","contestant":"ours",
            "rounds":7,"median_s":{seconds},"min_s":0.01,"max_s":0.05,"bytes_per_param":32,"gb_per_s":20.5,"of_copy":null,
            "of_in_place":0.75,"times_ours":null,"others":0.004}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn points_are_sorted_and_the_newest_of_each_counts() {
        let lines = [
            line("2026-02-01", "adamw", 30_000_000, 100, 0.03),
            line("2026-01-01", "adamw", 1_000_000, 100, 0.002),
            line("2026-02-01", "adamw", 1_000_000, 100, 0.001),
            line("2026-02-01", "adamw", 30_000_000, 1, 0.06),
            line("2026-02-01", "project-l2", 1_000_000, 100, 0.0005),
        ];
        let (mut page, mut plots) = (String::new(), Vec::new());
        write(&lines.iter().collect::<Vec<_>>(), &mut page, &mut plots);
        for part in [
            "## Scaling, f32, cpu, 2 threads",
            "| adamw | 1000000 | 100 | 1.000 | 32 | 20.5 | 75 % | 0 % | 1 |",
            "| adamw | 30000000 | 1 | 2.000 |",
            "| project-l2 | 1000000 | 100 | 0.500 |",
            "(results/cpu-scaling-f32-2-tensors.svg)",
        ] {
            assert!(page.contains(part), "{part}: {page}");
        }
        assert!(!page.contains("2026-01-01"), "{page}");
        let names: Vec<_> = plots.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["cpu-scaling-f32-2-parameters.svg", "cpu-scaling-f32-2-tensors.svg"]);
        assert_eq!(plots.iter().map(|(_, svg)| svg.matches("<polyline").count()).collect::<Vec<_>>(), [2, 1]);
    }
}
