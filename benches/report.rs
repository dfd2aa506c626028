//! The table for people and the rows for the data file.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use tpgm_core::DType;

use crate::Samples;
use crate::machine::Machine;

/// Our name among the contestants.
pub const OURS: &str = "ours";
/// The method of the floors.
pub const FLOOR: &str = "floor";
/// The methods of whole training steps begin so.
pub const TRAIN: &str = "train ";

/// One contestant's result in one method.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Method, or [`FLOOR`].
    pub method: String,
    /// `ours`, `ours: ` and the name of a part, a peer's name, or the name of a floor.
    pub contestant: String,
    /// Number of measured rounds.
    pub rounds: usize,
    /// Median seconds of one round.
    pub median_s: f64,
    /// Fastest round.
    pub min_s: f64,
    /// Slowest round.
    pub max_s: f64,
    /// Distance between the quartiles of the rounds; older rows lack it.
    pub spread_s: Option<f64>,
    /// Median of the host's seconds to queue a round, where a device works by itself. A call that waits for the device, or queues
    /// more than the driver holds, waits for what came before it, too.
    pub host_s: Option<f64>,
    /// Bytes counted per parameter (per element for floors); none for peers, whose traffic is not counted.
    pub bytes_per_param: Option<usize>,
    /// Those bytes times the number of parameters over the median.
    pub gb_per_s: Option<f64>,
    /// Share of the bandwidth of the copy in the same rounds.
    pub of_copy: Option<f64>,
    /// Share of the bandwidth of the triad in the same rounds; older rows lack it.
    #[serde(default)]
    pub of_triad: Option<f64>,
    /// Share of the bandwidth of the in-place triad in the same rounds.
    pub of_in_place: Option<f64>,
    /// Kernels started in one round, on a device.
    pub launches: Option<usize>,
    /// State kept between two rounds, in bytes per parameter; ours only.
    pub state_per_param: Option<f64>,
    /// Memory besides that, at the peak of a round, in bytes per parameter: temporaries. On the CPU.
    pub extra_per_param: Option<f64>,
    /// Peers: their time over ours in the same rounds; above 1 we are faster.
    pub times_ours: Option<f64>,
    /// Share of the processors' time that other processes used during the method's rounds, where known.
    pub others: Option<f64>,
}

impl Row {
    /// A row with times only.
    pub fn new(method: &str, contestant: &str, samples: &Samples) -> Self {
        Self {
            method: method.to_owned(),
            contestant: contestant.to_owned(),
            rounds: samples.len(),
            median_s: samples.median(),
            min_s: samples.min(),
            max_s: samples.max(),
            spread_s: Some(samples.spread()),
            host_s: None,
            bytes_per_param: None,
            gb_per_s: None,
            of_copy: None,
            of_triad: None,
            of_in_place: None,
            launches: None,
            state_per_param: None,
            extra_per_param: None,
            times_ours: None,
            others: None,
        }
    }

    /// Adds the counted bytes per parameter of `params` parameters.
    pub fn moving(mut self, bytes_per_param: usize, params: usize) -> Self {
        self.bytes_per_param = Some(bytes_per_param);
        self.gb_per_s = Some((bytes_per_param * params) as f64 / self.median_s / 1e9);
        self
    }
}

/// The rows as an aligned text table, without columns in which no row has anything.
pub fn table(rows: &[Row]) -> String {
    let head = [
        "method",
        "who",
        "median ms",
        "spread",
        "min .. max",
        "host ms",
        "B/param",
        "GB/s",
        "of copy",
        "of triad",
        "of in-place",
        "launches",
        "state B",
        "extra B",
        "x ours",
        "others",
    ];
    let mut cells = vec![head.map(str::to_owned)];
    for row in rows {
        // GPU rounds may take microseconds.
        let ms = |seconds: f64| format!("{:.*}", if row.median_s < 1e-3 { 4 } else { 2 }, 1e3 * seconds);
        let percent = |share: Option<f64>| share.map_or(String::new(), |s| format!("{:.0} %", 100.0 * s));
        cells.push([
            row.method.clone(),
            row.contestant.clone(),
            ms(row.median_s),
            row.spread_s.map_or(String::new(), ms),
            format!("{} .. {}", ms(row.min_s), ms(row.max_s)),
            row.host_s.map_or(String::new(), |seconds| format!("{:.4}", 1e3 * seconds)),
            row.bytes_per_param.map_or(String::new(), |b| b.to_string()),
            row.gb_per_s.map_or(String::new(), |b| format!("{b:.1}")),
            percent(row.of_copy),
            percent(row.of_triad),
            percent(row.of_in_place),
            row.launches.map_or(String::new(), |n| n.to_string()),
            row.state_per_param.map_or(String::new(), |b| format!("{b:.2}")),
            row.extra_per_param.map_or(String::new(), |b| format!("{b:.2}")),
            row.times_ours.map_or(String::new(), |x| format!("{x:.2}")),
            percent(row.others),
        ]);
    }
    let used = |column: &usize| cells.iter().skip(1).any(|row| !row[*column].is_empty());
    let columns: Vec<_> = (0..head.len()).filter(used).collect();
    let width = |column: usize| cells.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let mut out = String::new();
    for row in &cells {
        let line: Vec<_> = columns
            .iter()
            .map(|&column| {
                let (cell, w) = (&row[column], width(column));
                if column < 2 { format!("{cell:<w$}") } else { format!("{cell:>w$}") }
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
pub fn append(path: &Path, run: &Run, rows: &[Row]) -> Result<()> {
    let mut text = String::new();
    for row in rows {
        let line = Line { run: run.clone(), row: row.clone() };
        text.push_str(&serde_json::to_string(&line)?);
        text.push('\n');
    }
    OpenOptions::new()
        .append(true)
        .create(true)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("cannot append to `{}`", path.display()))
}

/// One line of a result file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// What all rows of its run share.
    #[serde(flatten)]
    pub run: Run,
    /// The result itself.
    #[serde(flatten)]
    pub row: Row,
}

/// What all rows of a run share.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Where, when, from which commit.
    #[serde(flatten)]
    pub machine: Machine,
    /// Name of the device our methods ran on, `cpu` for the processor.
    #[serde(default = "cpu")]
    pub device: String,
    /// Version of the device's driver, where it has one.
    #[serde(default)]
    pub driver: Option<String>,
    /// Version of PyTorch, if peers ran.
    pub torch: Option<String>,
    /// Model by name.
    pub model: String,
    /// Element type of weights, gradients and anchors.
    #[serde(default = "f32_weights")]
    pub dtype: DType,
    /// Number of its parameters.
    pub params: usize,
    /// Number of its tensors; older rows lack it.
    #[serde(default)]
    pub tensors: Option<usize>,
    /// Threads of every contestant on the host.
    pub threads: usize,
}

// What was meant before rows said so.
fn cpu() -> String {
    "cpu".to_owned()
}

fn f32_weights() -> DType {
    DType::F32
}

impl Run {
    /// The provenance as the lines above the table.
    pub fn heading(&self) -> String {
        let Self { model, dtype, params, threads, machine, device, .. } = self;
        let tensors = self.tensors.unwrap_or_default();
        let peers = match &self.torch {
            Some(version) => format!("PyTorch {version}"),
            None => "no peers".to_owned(),
        };
        let on = match &self.driver {
            Some(driver) => format!("on {device}, driver {driver}; "),
            None => String::new(),
        };
        format!(
            "{model}: {tensors} tensors, {params} parameters, {dtype}; {on}{threads} threads; {peers}\n\
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
        samples.push(0.125);
        samples.push(0.375);
        let mut peer = Row::new("adamw", "torch_adamw_fused", &samples);
        peer.times_ours = Some(1.234);
        peer.others = Some(0.25);
        vec![Row::new("adamw", OURS, &samples).moving(32, 1_000_000_000), peer]
    }

    fn run() -> Run {
        let machine = Machine {
            date: "2024-01-02T03:04:05Z".into(),
            commit: "abc".into(),
            cpu: "some cpu".into(),
            os: "linux x86_64".into(),
            version: "0.1.0".into(),
        };
        Run {
            machine,
            device: "some gpu".into(),
            driver: Some("570.1".into()),
            torch: None,
            model: "resnet-50".into(),
            dtype: DType::BF16,
            params: 3,
            tensors: Some(7),
            threads: 2,
        }
    }

    #[test]
    fn columns_line_up_and_bytes_become_bandwidth() {
        let text = table(&rows());
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        // 32 GB in 0.25 s.
        assert!(lines[1].contains("250.00") && lines[1].contains(" 128.0"), "{text}");
        assert!(lines[2].ends_with(" 1.23    25 %"), "{text}");
        let column = lines[0].find("who").unwrap();
        assert_eq!(lines[1].find("ours"), Some(column));
        assert_eq!(lines[2].find("torch_adamw_fused"), Some(column));
    }

    #[test]
    fn columns_without_content_are_left_out() {
        let mut rows = rows();
        assert!(!table(&rows).contains("launches"));
        assert!(!table(&rows).contains("host ms"));
        rows[0].launches = Some(2);
        rows[0].median_s = 12.3e-6;
        rows[1].host_s = Some(45.6e-6);
        let text = table(&rows);
        for part in ["launches", "host ms", " 0.0123 ", " 0.0456 "] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(!text.contains("of copy"), "{text}");
    }

    #[test]
    fn the_heading_says_where_it_was_measured() {
        let text = run().heading();
        for part in ["resnet-50: 7 tensors", "bf16", "on some gpu, driver 570.1", "no peers", "commit abc"] {
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn rows_are_appended_as_lines_that_stand_alone() {
        let path = std::env::temp_dir().join(format!("side_by_side_{}.jsonl", std::process::id()));
        append(&path, &run(), &rows()).unwrap();
        append(&path, &run(), &rows()).unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(text.lines().count(), 4);
        let line: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!(line["cpu"], "some cpu");
        assert_eq!((&line["device"], &line["dtype"]), (&"some gpu".into(), &"bf16".into()));
        assert_eq!(line["contestant"], "torch_adamw_fused");
        assert_eq!((&line["rounds"], &line["others"]), (&2.into(), &0.25.into()));
        let read: Line = serde_json::from_str(text.lines().last().unwrap()).unwrap();
        assert_eq!((read.run, &read.row), (run(), &rows()[1]));
    }

    // The first row that this repository holds, from before devices and element types were measured.
    #[test]
    fn older_rows_can_be_read() {
        let line = r#"{"date":"2026-11-23T23:18:48Z","commit":"0d9209d33427","cpu":"AMD EPYC","os":"linux x86_64",
            "version":"0.1.0","torch":"2.15.0+cu132","model":"vit-b-16","params":86567656,"threads":2,"method":"floor",
            "contestant":"copy","rounds":105,"median_s":0.021082428,"min_s":0.015309264,"max_s":0.051996966,
            "bytes_per_param":8,"gb_per_s":25.465326479473806,"of_copy":null,"of_in_place":null,"times_ours":null,
            "others":null}"#;
        let Line { run, row } = serde_json::from_str(line).unwrap();
        assert_eq!((run.device.as_str(), run.driver, run.dtype), ("cpu", None, DType::F32));
        assert_eq!((row.median_s, row.spread_s, row.launches), (0.021082428, None, None));
        assert_eq!(row.host_s, None);
        assert_eq!((row.state_per_param, row.extra_per_param), (None, None));
    }
}
