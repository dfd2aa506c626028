//! The folder of a run.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde_json::Value;

use crate::files;

/// Makes the folder `out` ready, and returns that in it whose name is `inner`: what is there is deleted, unless the run goes on.
/// `config` is what must be the same to go on: options, and a [`Fingerprint`](crate::fingerprint::Fingerprint) of what they
/// name.
///
/// # Errors
///
/// There is nothing to resume, or it was begun with another `config`, whose differences are named; files that cannot be
/// read, written or deleted.
pub fn prepare(out: &Path, inner: &str, resume: bool, config: &impl Serialize) -> Result<PathBuf> {
    let (inner, path) = (out.join(inner), out.join("config.json"));
    let saved: Option<Value> = files::read_json(&path)?;
    match saved {
        None if resume => bail!("there is no run in {}: leave out --resume to begin one", out.display()),
        Some(saved) if resume => {
            // Written and read, so that numbers are what they are in the file.
            let now = serde_json::from_str(&serde_json::to_string(config)?)?;
            let changes = changes(&saved, &now);
            ensure!(
                changes.is_empty(),
                "{} was begun with other options or other data: give the same ones, or leave out --resume to begin anew\n  {}",
                out.display(),
                changes.join("\n  ")
            );
        }
        // Only what an earlier run of this example wrote is deleted.
        Some(_) if inner.exists() => {
            fs::remove_dir_all(&inner).with_context(|| format!("cannot delete {}", inner.display()))?;
        }
        _ => {}
    }
    files::write_json(&path, config)?;
    Ok(inner)
}

/// The differences of two configurations, a line for each entry: `steps: 3 when it was begun, 5 now`.
pub fn changes(begun: &Value, now: &Value) -> Vec<String> {
    fn add(name: &str, begun: &Value, now: &Value, lines: &mut Vec<String>) {
        match (begun, now) {
            (Value::Object(begun), Value::Object(now)) => {
                let mut keys: Vec<_> = begun.keys().chain(now.keys()).collect();
                keys.sort();
                keys.dedup();
                for key in keys {
                    let name = if name.is_empty() { key.clone() } else { format!("{name}, {key}") };
                    let get =
                        |map: &serde_json::Map<String, Value>| map.get(key).cloned().unwrap_or_default();
                    add(&name, &get(begun), &get(now), lines);
                }
            }
            (begun, now) if begun != now => {
                let shown = |value: &Value| match value {
                    Value::Null => "none".to_owned(),
                    Value::String(text) => text.clone(),
                    other => other.to_string(),
                };
                let name = if name.is_empty() { "all" } else { name };
                lines.push(format!("{name}: {} when it was begun, {} now", shown(begun), shown(now)));
            }
            _ => {}
        }
    }
    let mut lines = Vec::new();
    add("", begun, now, &mut lines);
    lines
}

/// What to type to go on with the run that this process has interrupted.
pub fn how_to_resume() -> String {
    let again: String =
        std::env::args().skip(1).filter(|arg| arg != "--resume").map(|arg| format!("{arg} ")).collect();
    format!("\nstopped and saved. To go on: the same command with `-- {again}--resume`")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_run_goes_on_with_the_same_configuration_only() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("out");
        let config = json!({"lr": 3e-5, "data": {"train.csv": "3 bytes"}});
        let resume = |config: &Value| prepare(&out, "runs", true, config);
        assert!(resume(&config).unwrap_err().to_string().contains("leave out --resume to begin one"));
        let runs = prepare(&out, "runs", false, &config).unwrap();
        fs::create_dir_all(&runs).unwrap();
        fs::write(runs.join("a"), "").unwrap();
        resume(&config).unwrap();
        let error = resume(&json!({"lr": 3e-5, "data": {"train.csv": "4 bytes"}, "batch": 2})).unwrap_err();
        let error = error.to_string();
        assert!(error.contains("other options or other data"), "{error}");
        assert!(error.contains("\n  batch: none when it was begun, 2 now"), "{error}");
        assert!(error.contains("\n  data, train.csv: 3 bytes when it was begun, 4 bytes now"), "{error}");
        assert!(!error.contains("lr"), "{error}");
        // A refused run is as it was; one that begins anew is empty.
        resume(&config).unwrap();
        assert!(runs.join("a").exists());
        prepare(&out, "runs", false, &config).unwrap();
        assert!(!runs.exists());
    }

    #[test]
    fn changes_of_other_kinds_are_named() {
        assert_eq!(changes(&json!([1]), &json!({"a": 1})), [r#"all: [1] when it was begun, {"a":1} now"#]);
        assert_eq!(changes(&json!({"a": {"b": null}}), &json!({"a": {}})), Vec::<String>::new());
    }
}
