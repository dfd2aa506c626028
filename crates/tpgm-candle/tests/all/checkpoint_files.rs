//! Checkpoint files: shards, folders, PyTorch; and damaged, truncated and foreign ones, whose error names the file and,
//! where one is to blame, the tensor.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::path::{Path, PathBuf};

use candle_core::{DType, Device};
use candle_nn::linear;
use tempfile::TempDir;
use tpgm_candle::Params;

use crate::files::{anchor, flat, ramp, save};

const CPU: Device = Device::Cpu;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

#[test]
fn several_files_shards_and_folders() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    let first = save(&at("model-00001-of-00002.safetensors"), &[("a", ramp(&[2], DType::F32))]);
    let second = save(&at("model-00002-of-00002.safetensors"), &[("b", ramp(&[3], DType::F16))]);
    let ask = |params: Params| {
        let vb = params.var_builder();
        vb.get(2, "a").unwrap();
        vb.get(3, "b").unwrap();
        params.report().unwrap().require_all_used().unwrap();
        assert_eq!(anchor(&params, "b"), flat(&ramp(&[3], DType::F64)));
    };
    ask(Params::open_all([&first, &second], &CPU).unwrap());
    // Two files and nothing to say which is meant.
    let error = Params::open(folder.path(), &CPU).unwrap_err().to_string();
    assert!(error.contains("model-00001-of-00002.safetensors` and `model-00002"), "{error}");
    let index = at("model.safetensors.index.json");
    let map = r#"{"metadata": {"total_size": 14}, "weight_map":
        {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}"#;
    std::fs::write(&index, map).unwrap();
    ask(Params::open(&index, &CPU).unwrap());
    ask(Params::open(folder.path(), &CPU).unwrap());
    let error = Params::open_all([&first, &first], &CPU).unwrap_err();
    assert!(
        matches!(&error, tpgm_candle::params::Error::Files(tpgm_candle::files::Error::BadTensor { tensor, .. }) if tensor == "a"),
        "{error}"
    );
}

#[test]
fn pytorch_checkpoints() {
    // As PyTorch writes since version 1.6, and as it wrote before.
    state_dict("state_dict.pth");
    state_dict("legacy.pth");

    let params = Params::open(fixture("nested.pth"), &CPU).unwrap();
    let layer = linear(2, 2, params.var_builder().pp("fc")).unwrap();
    assert_eq!(flat(layer.weight()), [1.0; 4]);
    // Every second column of 0..8 in two rows: neither row-major nor column-major.
    let params = Params::open(fixture("strided.pth"), &CPU).unwrap();
    assert_eq!(flat(&params.var_builder().get((2, 2), "strided.weight").unwrap()), [0.0, 2.0, 4.0, 6.0]);
    assert_eq!(anchor(&params, "strided.weight"), [0.0, 2.0, 4.0, 6.0]);
}

fn state_dict(name: &str) {
    let params = Params::open(fixture(name), &CPU).unwrap();
    let vb = params.var_builder();
    let embed = vb.get((4, 3), "embed.weight").unwrap();
    let head = vb.get((4, 3), "lm_head.weight").unwrap();
    assert_eq!(embed.id(), head.id());
    let eighths: Vec<f64> = (0..12).map(|i| f64::from(i) / 8.0).collect();
    assert_eq!(flat(&embed), eighths);
    assert_eq!(flat(&vb.get(3, "half.weight").unwrap()), [0.5, -1.25, 3.0]);
    assert_eq!(flat(&vb.get((2, 1), "brain.weight").unwrap()), [0.5, -1.25]);
    assert_eq!(flat(&vb.get((3, 2), "transposed.weight").unwrap()), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    assert_eq!(flat(&vb.get(4, "tail.weight").unwrap()), eighths[8..]);
    vb.get(1, "double.weight").unwrap();
    assert_eq!(anchor(&params, "double.weight"), [1.0 / 3.0]);
    assert_eq!(anchor(&params, "transposed.weight"), [0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
    assert_eq!(flat(&vb.get(2, "bn.running_mean").unwrap()), [0.5, 0.25]);
    let report = params.report().unwrap();
    assert_eq!(report.tied, [("lm_head.weight".to_owned(), "embed.weight".to_owned())]);
    report.require_all_used().unwrap();
}

/// A safetensors file with this header and so many bytes of zeros behind it.
fn safetensors(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(vec![0; data]);
    bytes
}

fn message(path: &Path) -> String {
    match Params::open(path, &CPU) {
        Ok(params) => panic!("{params:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn damaged_safetensors_files() {
    let folder = TempDir::new().unwrap();
    let good = r#"{"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}"#;
    let two = |a: &str, b: &str| {
        format!(
            r#"{{"a": {{"dtype": "F32", "shape": [2], "data_offsets": {a}}},
                "b": {{"dtype": "F32", "shape": [2], "data_offsets": {b}}}}}"#
        )
    };
    let one = |dtype: &str, shape: &str, offsets: &str| {
        format!(r#"{{"w": {{"dtype": "{dtype}", "shape": {shape}, "data_offsets": {offsets}}}}}"#)
    };
    let length = |n: u64| [&n.to_le_bytes(), good.as_bytes(), &[0; 8]].concat();
    let huge = format!("[{0}, {0}, {0}]", u64::MAX / 2);
    let cases: Vec<(&str, Vec<u8>, Vec<&str>)> = vec![
        ("empty", vec![], vec!["it is empty"]),
        ("three_bytes", vec![1, 2, 3], vec!["not a safetensors file"]),
        ("text", b"just some text, longer than eight bytes".to_vec(), vec!["not a safetensors file"]),
        ("length_beyond_the_file", length(1000), vec!["header length"]),
        ("length_of_everything", length(u64::MAX), vec!["header too large"]),
        ("length_too_short", length(10), vec!["JSON"]),
        ("length_zero", length(0), vec!["JSON"]),
        ("not_json", safetensors("not json at all", 8), vec!["JSON"]),
        ("not_utf8", [&3u64.to_le_bytes()[..], &[0xff, 0xfe, 0xfd]].concat(), vec!["UTF-8"]),
        ("cut_off", safetensors(good, 5), vec!["tensor `w`", "is it cut off?"]),
        ("too_long", safetensors(good, 9), vec!["not fully covered"]),
        ("overlap", safetensors(&two("[0, 8]", "[4, 12]"), 12), vec!["tensor `b`", "overlaps that of `a`"]),
        ("gap", safetensors(&two("[0, 8]", "[12, 20]"), 20), vec!["`b`"]),
        ("backwards", safetensors(&one("F32", "[2]", "[8, 0]"), 8), vec!["tensor `w`", "before its start"]),
        (
            "wrong_size",
            safetensors(&one("F32", "[3]", "[0, 8]"), 8),
            vec!["tensor `w`", "[3] does not fit 8"],
        ),
        ("overflow", safetensors(&one("F64", &huge, "[0, 8]"), 8), vec!["tensor `w`", "does not fit"]),
        ("negative", safetensors(&one("F32", "[-2]", "[0, 8]"), 8), vec!["tensor `w`"]),
        ("unknown_type", safetensors(&one("F99", "[2]", "[0, 8]"), 8), vec!["tensor `w`", "F99"]),
        ("beyond_all_numbers", safetensors(&endless(), 8), vec!["tensor `a`", "is it cut off?"]),
        ("no_tensor", safetensors(r#"{"w": 3}"#, 8), vec!["tensor `w`"]),
    ];
    for (name, bytes, wanted) in cases {
        let path = folder.path().join(format!("{name}.safetensors"));
        std::fs::write(&path, bytes).unwrap();
        let text = message(&path);
        println!("{text}");
        assert!(text.contains(&format!("{name}.safetensors")), "{name}: {text}");
        for part in wanted {
            assert!(text.contains(part), "{name}: {text}");
        }
    }
    // The control: the same writer makes files that open.
    let path = folder.path().join("good.safetensors");
    std::fs::write(&path, safetensors(good, 8)).unwrap();
    Params::open(&path, &CPU).unwrap().var_builder().get(2, "w").unwrap();
}

/// Eight tensors whose sizes add up to the largest number there is, and a little more of the file.
fn endless() -> String {
    let eighth = u64::MAX / 8;
    let tensor = |(i, name): (u64, char)| {
        let (start, end) = (eighth * i, eighth * (i + 1));
        format!(r#""{name}": {{"dtype": "U8", "shape": [{eighth}], "data_offsets": [{start}, {end}]}}"#)
    };
    let tensors: Vec<String> = (0..8).zip('a'..='h').map(tensor).collect();
    format!("{{{}}}", tensors.join(", "))
}

#[test]
fn every_type_of_the_format_is_read_or_refused() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("types.safetensors");
    for (dtype, bits) in [
        ("BOOL", 8),
        ("F4", 4),
        ("F6_E2M3", 6),
        ("F6_E3M2", 6),
        ("U8", 8),
        ("I8", 8),
        ("F8_E5M2", 8),
        ("F8_E4M3", 8),
        ("F8_E8M0", 8),
        ("I16", 16),
        ("U16", 16),
        ("F16", 16),
        ("BF16", 16),
        ("I32", 32),
        ("U32", 32),
        ("F32", 32),
        ("C64", 64),
        ("F64", 64),
        ("I64", 64),
        ("U64", 64),
    ] {
        let header =
            format!(r#"{{"w": {{"dtype": "{dtype}", "shape": [4, 2], "data_offsets": [0, {bits}]}}}}"#);
        std::fs::write(&path, safetensors(&header, bits)).unwrap();
        let params = Params::open(&path, &CPU).unwrap_or_else(|error| panic!("{dtype}: {error}")).freeze("w");
        match params.var_builder().get((4, 2), "w") {
            Ok(tensor) => assert_eq!(flat(&tensor), [0.0; 8], "{dtype}"),
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains("types.safetensors") && text.contains("`w`"), "{dtype}: {text}");
            }
        }
    }
}

#[test]
fn types_that_candle_lacks_hurt_only_who_asks_for_them() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("bool.safetensors");
    let header = r#"{"mask": {"dtype": "BOOL", "shape": [2], "data_offsets": [0, 2]},
        "w": {"dtype": "F32", "shape": [1], "data_offsets": [2, 6]},
        "none": {"dtype": "F32", "shape": [0, 3], "data_offsets": [6, 6]}}"#;
    std::fs::write(&path, safetensors(header, 6)).unwrap();
    let params = Params::open(&path, &CPU).unwrap();
    let vb = params.var_builder();
    vb.get(1, "w").unwrap();
    assert_eq!(vb.get((0, 3), "none").unwrap().dtype(), DType::F32);
    let text = vb.get(2, "mask").unwrap_err().to_string();
    assert!(text.contains("bool.safetensors") && text.contains("`mask`") && text.contains("BOOL"), "{text}");
}

#[test]
fn damaged_indices_and_folders() {
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    let good = r#"{"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}"#;
    std::fs::write(at("shard"), safetensors(good, 8)).unwrap();
    let index = at("model.safetensors.index.json");
    let cases = [
        (r#"{"weight_map": {"w": "gone"}}"#, vec!["tensor `w`", "gone", "does not exist"]),
        (r#"{"weight_map": {"w": "shard", "v": "shard"}}"#, vec!["tensor `v`", "shard", "does not"]),
        (r#"{"weights": {}}"#, vec!["weight_map"]),
        ("", vec!["it is empty"]),
        (
            r#"{"weight_map": {"w": "../shard"}}"#,
            vec!["tensor `w`", "../shard", "not a file of the index's folder"],
        ),
        (r#"{"weight_map": {"w": "/etc/passwd"}}"#, vec!["tensor `w`", "not a file of the index's folder"]),
        (r#"{"hidden_size": 8}"#, vec!["weight_map", "is it a configuration?"]),
        (r#"{"weight_map": {"w": 3}}"#, vec!["not an index of shards"]),
    ];
    for (text, wanted) in cases {
        std::fs::write(&index, text).unwrap();
        for error in [message(&index), message(folder.path())] {
            assert!(error.contains("model.safetensors.index.json"), "{error}");
            wanted.iter().for_each(|part| assert!(error.contains(part), "{error}"));
        }
    }
    std::fs::write(&index, r#"{"weight_map": {"w": "shard"}}"#).unwrap();
    Params::open(folder.path(), &CPU).unwrap().var_builder().get(2, "w").unwrap();

    let empty = TempDir::new().unwrap();
    let text = message(empty.path());
    assert!(text.contains("no `*.safetensors` or `*.bin` file"), "{text}");
    let text = message(&empty.path().join("absent.safetensors"));
    assert!(text.contains("absent.safetensors") && text.contains("No such file"), "{text}");
}

#[test]
fn damaged_pytorch_files() {
    let folder = TempDir::new().unwrap();
    let text = message(&fixture("no_tensors.pth"));
    assert!(text.contains("no_tensors.pth") && text.contains("it has no tensors"), "{text}");
    let foreign = folder.path().join("foreign.bin");
    std::fs::write(&foreign, b"PK\x05\x06\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0").unwrap();
    let text = message(&foreign);
    assert!(text.contains("foreign.bin") && text.contains("an empty zip archive"), "{text}");

    // Every cut, and every byte changed: never a panic, never a silent success with wrong sizes.
    for (name, tensor, shape) in [("nested.pth", "fc.weight", [2, 2]), ("legacy.pth", "embed.weight", [4, 3])]
    {
        let whole = std::fs::read(fixture(name)).unwrap();
        let path = folder.path().join("damaged.pth");
        let open = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let Ok(params) = Params::open(&path, &CPU) else { return false };
            params.var_builder().get(&shape[..], tensor).is_ok_and(|w| w.dims() == shape)
        };
        assert!(open(&whole));
        let cuts = (0..whole.len()).step_by(7).filter(|&cut| open(&whole[..cut])).count();
        for i in (0..whole.len()).step_by(3) {
            let mut bytes = whole.clone();
            bytes[i] ^= 0x41;
            open(&bytes);
        }
        assert_eq!(cuts, 0, "{name}");
    }
}
