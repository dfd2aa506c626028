//! Every seed goes through its target, and there are some for each.

#![allow(clippy::unwrap_used)] // in helpers of tests

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn targets() -> Vec<Value> {
    serde_json::from_str(include_str!("../targets.json")).unwrap()
}

fn seeds(target: &Value) -> Vec<PathBuf> {
    let texts =
        |key: &str| target[key].as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned());
    let mut open: Vec<PathBuf> = texts("seeds").map(|seed| root().join(seed)).collect();
    let mut found = vec![];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if texts("endings").any(|ending| path.to_string_lossy().ends_with(&ending)) {
            found.push(path);
        }
    }
    found
}

#[test]
fn every_seed_is_read() {
    for target in targets() {
        let name = target["name"].as_str().unwrap();
        let run = tpgm_fuzz::target(name).unwrap_or_else(|| panic!("`{name}` is only in targets.json"));
        let seeds = seeds(&target);
        assert!(!seeds.is_empty(), "{name} has no seeds");
        for seed in seeds {
            println!("{name}: {}", seed.display());
            let bytes = fs::read(&seed).unwrap();
            run(&bytes);
            // Cut in half, and with one byte changed.
            run(&bytes[..bytes.len() / 2]);
            let mut changed = bytes.clone();
            if let Some(byte) = changed.get_mut(bytes.len() / 3) {
                *byte ^= 0x20;
            }
            run(&changed);
        }
    }
}

#[test]
fn the_list_has_every_target_once() {
    let listed: Vec<String> =
        targets().iter().map(|target| target["name"].as_str().unwrap().to_owned()).collect();
    let names: BTreeSet<_> = listed.iter().map(String::as_str).collect();
    assert_eq!(names.len(), listed.len());
    assert_eq!(names, tpgm_fuzz::TARGETS.iter().map(|(name, _)| *name).collect());
}
