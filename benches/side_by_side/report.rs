//! The table for people and the rows for the data file.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;
use tpgm_benches::Samples;

use crate::machine::Machine;

/// One contestant's result in one method.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Row {
    /// Method, or `floor`.
    pub(crate) method: String,
    /// `ours`, a peer's name, or the name of a floor.
    pub(crate) contestant: String,
    /// Number of measured rounds.
    pub(crate) rounds: usize,
    /// Median seconds of one round.
    pub(crate) median_s: f64,
    /// Fastest round.
    pub(crate) min_s: f64,
    /// Slowest round.
    pub(crate) max_s: f64,
    /// Bytes counted per parameter (per element for floors); none for peers, whose traffic is not counted.
    pub(crate) bytes_per_param: Option<usize>,
    /// Those bytes times the number of parameters over the median.
    pub(crate) gb_per_s: Option<f64>,
    /// Share of the bandwidth of the copy in the same rounds.
    pub(crate) of_copy: Option<f64>,
    /// Share of the bandwidth of the in-place triad in the same rounds.
    pub(crate) of_in_place: Option<f64>,
    /// Peers: their time over ours in the same rounds; above 1 we are faster.
    pub(crate) times_ours: Option<f64>,
    /// Share of the processors' time that other processes used during the method's rounds, where known.
    pub(crate) others: Option<f64>,
}

impl Row {
    /// A row with times only.
    pub(crate) fn new(method: &str, contestant: &str, samples: &Samples) -> Self {
        Self {
            method: method.to_owned(),
            contestant: contestant.to_owned(),
            rounds: samples.len(),
            median_s: samples.median(),
            min_s: samples.min(),
            max_s: samples.max(),
            bytes_per_param: None,
            gb_per_s: None,
            of_copy: None,
            of_in_place: None,
            times_ours: None,
            others: None,
        }
    }

    /// Adds the counted bytes per parameter of `params` parameters.
    pub(crate) fn moving(mut self, bytes_per_param: usize, params: usize) -> Self {
        self.bytes_per_param = Some(bytes_per_param);
        self.gb_per_s = Some((bytes_per_param * params) as f64 / self.median_s / 1e9);
        self
    }
}

/// The rows as an aligned text table.
pub(crate) fn table(rows: &[Row]) -> String {
    let head = [
        "method",
        "who",
        "median ms",
        "min .. max",
        "B/param",
        "GB/s",
        "of copy",
        "of in-place",
        "x ours",
        "others",
    ];
    let mut cells = vec![head.map(str::to_owned)];
    for row in rows {
        let ms = |seconds: f64| format!("{:.2}", 1e3 * seconds);
        let percent = |share: Option<f64>| share.map_or(String::new(), |s| format!("{:.0} %", 100.0 * s));
        cells.push([
            row.method.clone(),
            row.contestant.clone(),
            ms(row.median_s),
            format!("{} .. {}", ms(row.min_s), ms(row.max_s)),
            row.bytes_per_param.map_or(String::new(), |b| b.to_string()),
            row.gb_per_s.map_or(String::new(), |b| format!("{b:.1}")),
            percent(row.of_copy),
            percent(row.of_in_place),
            row.times_ours.map_or(String::new(), |x| format!("{x:.2}")),
            percent(row.others),
        ]);
    }
    let width = |column: usize| cells.iter().map(|c| c[column].len()).max().unwrap_or(0);
    let widths: [usize; 10] = std::array::from_fn(width);
    let mut out = String::new();
    for row in &cells {
        let line: Vec<_> = row
            .iter()
            .zip(widths)
            .enumerate()
            .map(|(i, (cell, w))| match i {
                0 | 1 => format!("{cell:<w$}"),
                _ => format!("{cell:>w$}"),
            })
            .collect();
        out.push_str(line.join("  ").trim_end());
        out.push('\n');
    }
    out
}

/// Appends one JSON line per row, each with the run's provenance, so that lines can be read alone.
///
/// # Errors
///
/// If the file cannot be written.
pub(crate) fn append(path: &Path, run: &Run<'_>, rows: &[Row]) -> Result<()> {
    #[derive(Serialize)]
    struct Line<'a> {
        #[serde(flatten)]
        run: &'a Run<'a>,
        #[serde(flatten)]
        row: &'a Row,
    }
    let mut text = String::new();
    for row in rows {
        text.push_str(&serde_json::to_string(&Line { run, row })?);
        text.push('\n');
    }
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("cannot append to `{}`", path.display()))
}

/// What all rows of a run share.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Run<'a> {
    #[serde(flatten)]
    pub(crate) machine: &'a Machine,
    /// Version of PyTorch, if peers ran.
    pub(crate) torch: Option<&'a str>,
    /// Model by name.
    pub(crate) model: &'a str,
    /// Number of its parameters.
    pub(crate) params: usize,
    /// Threads of every contestant.
    pub(crate) threads: usize,
}

impl Run<'_> {
    /// The provenance as the lines above the table.
    pub(crate) fn heading(&self, tensors: usize) -> String {
        let Self { model, params, threads, machine, .. } = self;
        let peers = match self.torch {
            Some(version) => format!("PyTorch {version}"),
            None => "no peers".to_owned(),
        };
        format!(
            "{model}: {tensors} tensors, {params} parameters; {threads} threads; {peers}\n\
             {}, {}; commit {}; {}\n",
            machine.cpu, machine.os, machine.commit, machine.date,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Row> {
        let mut samples = Samples::default();
        samples.push(0.1);
        samples.push(0.3);
        let mut peer = Row::new("adamw", "torch_adamw_fused", &samples);
        peer.times_ours = Some(1.234);
        peer.others = Some(0.25);
        vec![Row::new("adamw", "ours", &samples).moving(32, 1_000_000_000), peer]
    }

    #[test]
    fn columns_line_up_and_bytes_become_bandwidth() {
        let text = table(&rows());
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        // 32 GB in 0.2 s.
        assert!(lines[1].contains("200.00") && lines[1].contains(" 160.0"), "{text}");
        assert!(lines[2].ends_with(" 1.23    25 %"), "{text}");
        let column = lines[0].find("who").unwrap();
        assert_eq!(lines[1].find("ours"), Some(column));
        assert_eq!(lines[2].find("torch_adamw_fused"), Some(column));
    }

    #[test]
    fn rows_are_appended_as_lines_that_stand_alone() {
        let machine = Machine {
            date: "2024-01-02T03:04:05Z".into(),
            commit: "abc".into(),
            cpu: "some cpu".into(),
            os: "linux x86_64".into(),
            version: "0.1.0".into(),
        };
        let run = Run { machine: &machine, torch: None, model: "resnet-50", params: 3, threads: 2 };
        let path = std::env::temp_dir().join(format!("side_by_side_{}.jsonl", std::process::id()));
        append(&path, &run, &rows()).unwrap();
        append(&path, &run, &rows()).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(text.lines().count(), 4);
        let line: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!(line["cpu"], "some cpu");
        assert_eq!(line["contestant"], "torch_adamw_fused");
        assert_eq!((&line["rounds"], &line["others"]), (&2.into(), &0.25.into()));
    }
}
