//! `tpgm convert`: what was in a file is in the safetensors file, bit for bit unless another type is asked for.

use std::fs;

use candle_core::{DType, Device, Tensor};

use crate::common::{Folder, numbers, real_file, tpgm};
#[cfg(target_os = "linux")]
use crate::common::{tpgm_in_64_mib, write_checkpoint};

#[test]
fn pytorch_files_of_every_age_become_safetensors() {
    let folder = Folder::new();
    let out = folder.text("out");
    let eighths = |range: std::ops::Range<u8>| range.map(|i| f32::from(i) / 8.0).collect::<Vec<_>>();
    // What `make_pth.py` puts into them.
    for file in ["data/state_dict.pth", "data/legacy.pth"] {
        let json = tpgm(["convert", &real_file(file), "--out", &out, "--json"]).json();
        let written = folder.load("out");
        assert_eq!((json["tensors"].as_array().unwrap().len(), written.len()), (9, 9), "{file}");
        let is = |name: &str, dtype, shape: &[usize], values: &[f32]| {
            let tensor = &written[name];
            assert_eq!((tensor.dtype(), tensor.dims()), (dtype, shape), "{file} {name}");
            assert_eq!(numbers(tensor), values, "{file} {name}");
        };
        is("embed.weight", DType::F32, &[4, 3], &eighths(0..12));
        is("lm_head.weight", DType::F32, &[4, 3], &eighths(0..12));
        is("tail.weight", DType::F32, &[4], &eighths(8..12));
        is("half.weight", DType::F16, &[3], &[0.5, -1.25, 3.0]);
        is("brain.weight", DType::BF16, &[2, 1], &[0.5, -1.25]);
        is("double.weight", DType::F64, &[1], &[1.0 / 3.0]);
        is("transposed.weight", DType::F32, &[3, 2], &[0.0, 3.0, 1.0, 4.0, 2.0, 5.0]);
        is("bn.num_batches_tracked", DType::I64, &[], &[7.0]);
        assert_eq!(written["double.weight"].to_vec1::<f64>().unwrap(), [1.0 / 3.0]);
        let tied: Vec<_> =
            json["tensors"].as_array().unwrap().iter().filter(|it| it.get("tied_to").is_some()).collect();
        assert_eq!(tied.len(), 2, "{tied:?}");
        let text = tpgm(["convert", &real_file(file), "--out", &out, "--drop", "lm_head.weight"]);
        assert!(!text.text().contains("again"), "{text:?}");
        assert_eq!(folder.load("out").len(), 8);
    }
    tpgm(["convert", &real_file("data/strided.pth"), "--out", &out]).text();
    assert_eq!(numbers(&folder.load("out")["strided.weight"]), [0.0, 2.0, 4.0, 6.0]);
}

#[test]
fn names_types_and_tensors_change_as_asked() {
    let folder = Folder::new();
    let w = Tensor::new(&[[1.0f32, 2.5]], &Device::Cpu).unwrap();
    let count = Tensor::new(&[3i64], &Device::Cpu).unwrap();
    folder.save("in", &[("bert.norm.gamma", w.clone()), ("bert.count", count), ("cls.bias", w)]);
    let (file, out) = (folder.text("in"), folder.text("out"));
    let args = ["convert", &file, "--out", &out, "--rename", "bert.*=*", "--rename", "*.gamma=*.weight"];
    let run = tpgm(args.iter().chain(&["--drop", "cls.*", "--dtype", "bf16"]));
    assert!(run.text().contains("2 tensors") && run.text().contains("left out: cls.bias"), "{run:?}");
    let written = folder.load("out");
    assert_eq!(written.len(), 2);
    assert_eq!(written["norm.weight"].dtype(), DType::BF16);
    assert_eq!(numbers(&written["norm.weight"]), [1.0, 2.5]);
    assert_eq!(written["count"].to_vec1::<i64>().unwrap(), [3]);
    // transformers reads no file without it.
    assert_eq!(folder.metadata("out")["format"], "pt");

    for (options, part) in [
        (&["--rename", "roberta.*=*"][..], "roberta.*=*"),
        (&["--rename", "bert.*=x", "--rename", "cls.*=y"], "same number"),
        (&["--drop", "nothing.*"], "nothing.*"),
        (&["--drop", "*"], "leaves no tensor"),
    ] {
        let run = tpgm(["convert", &file, "--out", &out].iter().chain(options));
        assert!(run.fails(2).contains(part), "{run:?}");
    }
    let twice = ["--rename", "bert.norm.gamma=x", "--rename", "cls.bias=x"];
    assert!(tpgm(["convert", &file, "--out", &out].iter().chain(&twice)).fails(2).contains("so is"));
    let lost = tpgm(["convert", &file, "--out", &file]);
    assert!(lost.fails(2).contains("would be lost"), "{lost:?}");
    assert_eq!(folder.load("in").len(), 3);
    folder.save("empty", &[]);
    let empty = tpgm(["convert", &folder.text("empty"), "--out", &out]);
    assert!(empty.fails(4).contains("empty.safetensors has no tensor"), "{empty:?}");
}

#[test]
fn an_output_is_no_file_of_the_checkpoint() {
    let folder = Folder::new();
    folder.save("model", &[("w", Tensor::new(&[1f32], &Device::Cpu).unwrap())]);
    let (run, file) = (folder.0.path().to_str().unwrap().to_owned(), folder.text("model"));
    let before = fs::read(&file).unwrap();
    let lost = tpgm(["convert", &run, "--out", &file, "--dtype", "f16"]);
    assert!(lost.fails(2).contains("is a file of the checkpoint: it would be lost"), "{lost:?}");
    let index = folder.0.path().join("model.safetensors.index.json");
    fs::write(&index, r#"{"weight_map": {"w": "model.safetensors"}}"#).unwrap();
    for out in [index.to_str().unwrap(), &file] {
        let lost = tpgm(["convert", &run, "--out", out]);
        assert!(lost.fails(2).contains("would be lost"), "{lost:?}");
    }
    assert_eq!(fs::read(&file).unwrap(), before);
    // Another file of the folder is none of the checkpoint.
    tpgm(["convert", &run, "--out", &folder.text("half"), "--dtype", "f16"]).text();
    tpgm(["convert", &run, "--out", &folder.text("half")]).text();
}

/// A tensor of 32 MiB, of which f64 would take 64.
#[cfg(target_os = "linux")]
#[test]
fn long_tensors_are_converted_in_parts() {
    let folder = Folder::new();
    let len = (1 << 23) + 5;
    write_checkpoint(&folder.path("in"), 1, len, 1.5);
    tpgm_in_64_mib(&["convert", &folder.text("in"), "--out", &folder.text("out"), "--dtype", "f16"]).text();
    let written = &folder.load("out")["t000"];
    assert_eq!((written.dtype(), written.dims()), (DType::F16, &[len][..]));
    let bytes = fs::read(folder.path("out")).unwrap();
    let (data, _) = bytes[bytes.len() - 2 * len..].as_chunks::<2>();
    assert!(data.iter().all(|x| *x == [0x00, 0x3e]), "every number is 1.5");
}

#[test]
fn values_that_do_not_fit_are_named() {
    let folder = Folder::new();
    let big = Tensor::new(&[1e6f32, 1.0, f32::INFINITY], &Device::Cpu).unwrap();
    folder.save("in", &[("w", big)]);
    let (file, out) = (folder.text("in"), folder.text("out"));
    let run = tpgm(["convert", &file, "--out", &out, "--dtype", "f16"]);
    assert!(run.fails(4).contains("in.safetensors: tensor `w`: 1 values do not fit"), "{run:?}");
    assert!(!folder.path("out").exists());
    tpgm(["convert", &file, "--out", &out, "--dtype", "bf16"]).text();
    assert_eq!(numbers(&folder.load("out")["w"])[1..], [1.0, f32::INFINITY]);
}

#[test]
fn shards_become_one_file() {
    let folder = Folder::new();
    let w = |x: f32| Tensor::new(&[x], &Device::Cpu).unwrap();
    folder.save("model-1", &[("a", w(1.0))]);
    folder.save("model-2", &[("b", w(2.0))]);
    let index = folder.0.path().join("model.safetensors.index.json");
    fs::write(&index, r#"{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}"#).unwrap();
    let out = folder.text("whole");
    let folder_path = folder.0.path().to_str().unwrap();
    tpgm(["convert", folder_path, "--out", &out]).text();
    let whole = folder.load("whole");
    assert_eq!((numbers(&whole["a"]), numbers(&whole["b"])), (vec![1.0], vec![2.0]));
    let json = tpgm(["inspect", index.to_str().unwrap(), "--json"]).json();
    assert_eq!(json["files"].as_array().unwrap().len(), 2);
    let path = index.to_str().unwrap();
    let distances = tpgm(["distances", "--anchor", &out, path, "--json"]).json();
    assert_eq!(distances["models"][0]["l2"], 0.0);
    fs::remove_file(folder.path("model-2")).unwrap();
    assert!(tpgm(["inspect", path]).fails(3).contains("model-2.safetensors"));
}
