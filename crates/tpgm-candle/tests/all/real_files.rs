//! Files as people have them: weights under the keys of training scripts, and files that are not what their names say.

#![allow(clippy::unwrap_used)] // helpers of tests

use std::io::Write;
use std::path::{Path, PathBuf};

use candle_core::Device;
use tempfile::TempDir;
use tpgm_candle::Params;
use tpgm_candle::files::OpenOptions;
use zip::ZipWriter;
use zip::write::SimpleFileOptions;

use crate::files::flat;

const CPU: Device = Device::Cpu;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/real_files/load").join(name)
}

fn keyed(name: &str, key: &str) -> Result<Params, tpgm_candle::params::Error> {
    Params::open_with(fixture(name), &OpenOptions::new().key(key), &CPU)
}

/// The bias of the layer `fc`, whose names begin with `prefix`.
fn bias(params: &Params, prefix: &str) -> Vec<f64> {
    let vb = params.var_builder();
    vb.get((2, 3), &format!("{prefix}fc.weight")).unwrap();
    flat(&vb.get(2, &format!("{prefix}fc.bias")).unwrap())
}

fn message(path: &Path) -> String {
    match Params::open(path, &CPU) {
        Ok(params) => panic!("{params:?}"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn weights_are_found_beside_epochs_and_accuracies() {
    for (name, prefix, key) in [
        ("no_metric.pth.tar", "module.", Some("state_dict")),
        ("best_acc1.pth.tar", "module.", Some("state_dict")),
        ("epoch_tensor.pth", "", Some("model")),
        ("timm_with_ema.pth.tar", "", Some("state_dict")),
        ("under_state_dict_ema.pth", "", Some("state_dict_ema")),
        ("two_deep.pth", "", Some("state.model")),
        ("pth_named.safetensors", "", None),
    ] {
        let params = Params::open(fixture(name), &CPU).unwrap();
        assert_eq!(bias(&params, prefix).len(), 2, "{name}");
        let report = params.report().unwrap();
        report.require_all_used().unwrap();
        let chosen: Vec<_> = report.chosen.iter().map(|chosen| chosen.key.as_deref()).collect();
        assert_eq!(chosen, key.iter().map(|key| Some(*key)).collect::<Vec<_>>(), "{name}");
        if let Some(key) = key {
            let text = report.to_string();
            assert!(text.contains(&format!("{name}: weights under `{key}`")), "{text}");
        }
    }
}

#[test]
fn an_accuracy_beside_the_weights_changes_nothing() {
    let values = |name: &str| {
        let params = Params::open(fixture(name), &CPU).unwrap().rename("", "module.");
        let vb = params.var_builder();
        vb.get(8, "norm.weight").unwrap();
        vb.get((24, 8), "blocks.1.attn.qkv.weight").unwrap();
        params.tensors().values().map(flat).collect::<Vec<_>>()
    };
    assert_eq!(values("vit_best_acc1.pth.tar"), values("vit_epoch.pth.tar"));
}

#[test]
fn moving_averages_are_taken_when_they_are_asked_for() {
    let plain = Params::open(fixture("timm_with_ema.pth.tar"), &CPU).unwrap();
    let average = keyed("timm_with_ema.pth.tar", "state_dict_ema").unwrap();
    assert_ne!(bias(&plain, ""), bias(&average, ""));
    let text = plain.report().unwrap().to_string();
    assert!(text.contains("weights under `state_dict`, not under `state_dict_ema`"), "{text}");
    let text = average.report().unwrap().to_string();
    assert!(text.contains("weights under `state_dict_ema`, not under `state_dict`"), "{text}");
    for key in ["model", "model_ema"] {
        let params = keyed("vit_ema.pth", key).unwrap();
        params.var_builder().get(8, "norm.weight").unwrap();
    }
    assert_eq!(bias(&keyed("two_deep.pth", "state.model").unwrap(), "").len(), 2);

    let error = keyed("timm_with_ema.pth.tar", "model").unwrap_err().to_string();
    for part in ["timm_with_ema.pth.tar", "the key `model`", "`state_dict` (2)", "`state_dict_ema` (2)"] {
        assert!(error.contains(part), "{error}");
    }
    let error = keyed("st_named.bin", "model").unwrap_err().to_string();
    assert!(error.contains("st_named.bin") && error.contains("have no keys"), "{error}");
}

#[test]
fn names_that_lie_are_seen_through() {
    let params = Params::open(fixture("st_named.bin"), &CPU).unwrap();
    assert_eq!(bias(&params, ""), [9.0, 8.0]);
    for name in ["lfs.bin", "lfs.safetensors"] {
        let text = message(&fixture(name));
        for part in [name, "a Git LFS pointer", "438007537", "git lfs pull"] {
            assert!(text.contains(part), "{text}");
        }
    }
    // The same as the shards of an index, and in a folder.
    let folder = TempDir::new().unwrap();
    let at = |name: &str| folder.path().join(name);
    for (name, part) in
        [("lfs.safetensors", "a Git LFS pointer"), ("page", "a web page"), ("empty", "it is empty")]
    {
        let shard = at("model-00001-of-00001.safetensors");
        match name {
            "page" => std::fs::write(&shard, "\n<!DOCTYPE html>\n<html>").unwrap(),
            "empty" => std::fs::write(&shard, "").unwrap(),
            name => drop(std::fs::copy(fixture(name), &shard).unwrap()),
        }
        let map = r#"{"weight_map": {"w": "model-00001-of-00001.safetensors"}}"#;
        std::fs::write(at("model.safetensors.index.json"), map).unwrap();
        for path in [folder.path(), &at("model.safetensors.index.json")] {
            let text = message(path);
            assert!(text.contains("model-00001-of-00001.safetensors") && text.contains(part), "{text}");
        }
    }
    // The index itself may be one of these.
    std::fs::copy(fixture("lfs.bin"), at("model.safetensors.index.json")).unwrap();
    let text = message(folder.path());
    assert!(text.contains("index.json: it is a Git LFS pointer"), "{text}");
    // An index without its ending is one all the same.
    std::fs::copy(fixture("st_named.bin"), at("shard.bin")).unwrap();
    std::fs::write(at("index"), r#"{"weight_map": {"fc.weight": "shard.bin", "fc.bias": "shard.bin"}}"#)
        .unwrap();
    assert_eq!(bias(&Params::open(at("index"), &CPU).unwrap(), ""), [9.0, 8.0]);
}

/// Instructions of pickles.
mod code {
    pub(super) fn text(text: &str) -> Vec<u8> {
        [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
    }

    /// A dictionary of these keys and what makes their values.
    pub(super) fn dict(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
        let mut code = b"}(".to_vec();
        for (key, value) in entries {
            code.extend([text(key), value.clone()].concat());
        }
        code.push(b'u');
        code
    }

    /// A tensor of f32 in storage `0`.
    pub(super) fn tensor(shape: &[u8], strides: &[u8]) -> Vec<u8> {
        let numbers = |numbers: &[u8]| {
            let each: Vec<u8> = numbers.iter().flat_map(|&n| [b'K', n]).collect();
            [b"(", &each[..], b"t"].concat()
        };
        let storage = [
            b"(".to_vec(),
            text("storage"),
            b"ctorch\nFloatStorage\n".to_vec(),
            text("0"),
            text("cpu"),
            b"K\x04tQ".to_vec(),
        ];
        [
            b"ctorch._utils\n_rebuild_tensor_v2\n(".to_vec(),
            storage.concat(),
            b"K\0".to_vec(),
            numbers(shape),
            numbers(strides),
            b"\x89NtR".to_vec(),
        ]
        .concat()
    }

    pub(super) fn program(object: &[u8]) -> Vec<u8> {
        [b"\x80\x02", object, b"."].concat()
    }
}

/// An archive with these files in a folder.
fn archive(path: &Path, files: &[(&str, &[u8])]) {
    let mut zip = ZipWriter::new(std::fs::File::create(path).unwrap());
    let options = SimpleFileOptions::default().compression_method(zip::CompressionMethod::Stored);
    for (name, bytes) in files {
        zip.start_file(format!("archive/{name}"), options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap();
}

fn checkpoint(path: &Path, object: &[u8]) {
    archive(path, &[("data.pkl", &code::program(object)), ("data/0", &[0; 16])]);
}

#[test]
fn what_is_not_plain_is_listed() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("run.pth");
    let layer = || {
        code::dict(&[("fc.weight", code::tensor(&[2, 2], &[2, 1])), ("fc.bias", code::tensor(&[2], &[1]))])
    };
    let scalar = || code::tensor(&[], &[]);
    let open = |object: Vec<u8>| {
        checkpoint(&path, &object);
        Params::open(&path, &CPU).map(|params| params.report().unwrap().chosen[0].key.clone().unwrap())
    };
    let optimizer = || {
        // Adam's state as PyTorch has it, and by names as others have it.
        let moments = code::dict(&[("exp_avg", code::tensor(&[2], &[1]))]);
        let by_number = [b"}(K\0".to_vec(), moments, b"u".to_vec()].concat();
        code::dict(&[("state", by_number), ("fc.weight", code::tensor(&[2, 2], &[2, 1]))])
    };
    assert_eq!(open(code::dict(&[("net", layer()), ("optimizer", optimizer())])).unwrap(), "net");
    assert_eq!(open(code::dict(&[("optim_state", optimizer()), ("params", layer())])).unwrap(), "params");
    assert_eq!(open(code::dict(&[("teacher", layer()), ("epoch", scalar())])).unwrap(), "teacher");
    assert_eq!(open(code::dict(&[("student", layer()), ("teacher", layer())])).unwrap(), "student");
    let deep = code::dict(&[("model", code::dict(&[("module", layer())])), ("best", scalar())]);
    assert_eq!(open(deep).unwrap(), "model.module");
    // One dictionary under two keys is one.
    let shared = [
        b"}(".to_vec(),
        code::text("model"),
        layer(),
        b"q\x07".to_vec(),
        code::text("net"),
        b"h\x07u".to_vec(),
    ];
    assert_eq!(open(shared.concat()).unwrap(), "model");

    for (object, parts) in [
        (code::dict(&[("model", layer()), ("net", layer())]), vec!["`model` (2)", "`net` (2)"]),
        (code::dict(&[("backbone", layer()), ("acc", scalar())]), vec!["the top (1)", "`backbone` (2)"]),
        (code::dict(&[("encoder", code::dict(&[("a", layer())]))]), vec!["`encoder.a` (2)"]),
        (code::dict(&[("optimizer", optimizer())]), vec!["`optimizer` (1)"]),
        (
            code::dict(&[("model_ema", layer()), ("teacher", layer())]),
            vec!["`model_ema` (2)", "`teacher` (2)"],
        ),
    ] {
        let text = open(object).unwrap_err().to_string();
        assert!(text.contains("run.pth") && text.contains("`OpenOptions::key`"), "{text}");
        assert!(!text.contains("Params::head"), "{text}");
        parts.iter().for_each(|part| assert!(text.contains(part), "{text}"));
    }

    let module = b"cmodels\nNet\n)\x81}(X\x08\0\0\0trainingK\x01ub".to_vec();
    for object in [module.clone(), code::dict(&[("model", module)])] {
        let text = open(object).unwrap_err().to_string();
        assert!(text.contains("class `models.Net`") && text.contains("state_dict()"), "{text}");
    }
    archive(&path, &[("data.pkl", &code::program(&layer())), ("constants.pkl", b""), ("code/net.py", b"")]);
    let text = message(&path);
    assert!(
        text.contains("run.pth") && text.contains("TorchScript") && text.contains("torch.jit.load"),
        "{text}"
    );
    archive(&path, &[("w.npy", b"")]);
    assert!(message(&path).contains("NumPy"));
    archive(&path, &[("model.safetensors", b"")]);
    assert!(message(&path).contains("without `data.pkl`, with `archive/model.safetensors`"));
}

#[test]
fn files_made_to_harm_are_refused() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("bomb.pth");
    let refused = |object: &[u8]| {
        checkpoint(&path, object);
        let text = message(&path);
        assert!(text.contains("bomb.pth"), "{text}");
        text
    };
    // A text of four gigabytes, a list inside of itself, a tower of doublings, a call of nothing.
    assert!(refused(b"X\xff\xff\xff\xff").contains("cut off"));
    assert!(refused(b"]q\0h\0a").contains("no tensors"));
    let mut tower = b"]q\0".to_vec();
    (0..60).for_each(|_| tower.extend(b"h\0h\0\x86q\0"));
    assert!(refused(&tower).contains("no tensors"));
    assert!(refused(b"R").contains("stack is empty"));
    assert!(refused(&b"(".repeat(100_000)).contains("stack is empty"));
    assert!(refused(&b"\x85".repeat(100)).contains("stack is empty"));
    let deep = [b")".to_vec(), b"\x85".repeat(1_000_000)].concat();
    assert!(refused(&deep).contains("no tensors"));
    // A dictionary inside of itself.
    assert!(refused(b"}q\0X\x01\0\0\0mh\0s").contains("no tensors"));

    // Tensors beyond their storage, and one element mentioned 255^4 times.
    for (shape, strides) in [(&[5][..], &[1][..]), (&[2, 2], &[3, 1]), (&[255; 4], &[0; 4]), (&[2], &[1, 1])]
    {
        let text = refused(&code::dict(&[("fc.weight", code::tensor(shape, strides))]));
        assert!(text.contains("tensor `fc.weight`"), "{text}");
    }
    checkpoint(&path, &code::dict(&[("fc.weight", code::tensor(&[4], &[1]))]));
    assert_eq!(
        flat(&Params::open(&path, &CPU).unwrap().var_builder().get(4, "fc.weight").unwrap()),
        [0.0; 4]
    );
    // Its storage is not there.
    archive(&path, &[("data.pkl", &code::program(&code::dict(&[("fc.weight", code::tensor(&[4], &[1]))])))]);
    let text = message(&path);
    assert!(text.contains("tensor `fc.weight`") && text.contains("storage `0`"), "{text}");
}
