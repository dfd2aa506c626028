//! Files with tensors, and what lies beside them.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{DType, Device, Tensor};
use candle_nn::Linear;
use tpgm_candle::lora::{LoraConfig, LoraLinear, load_adapter};
use tpgm_candle::weight_space::{MergePlan, distances, merge_files};
use tpgm_candle::{Checkpoint, Checkpointer, JsonlWriter, Params, TrainState};

use crate::scratch;

const CPU: Device = Device::Cpu;

/// Reads every tensor that a checkpoint lists, as a model would.
fn load(path: &Path) {
    let Ok(params) = Params::open(path, &CPU) else { return };
    let builder = params.var_builder();
    let Ok(report) = params.report() else { return };
    for name in &report.unused {
        let _ = builder.get_unchecked_dtype(name, DType::F32);
    }
    let _ = params.report().map(|report| report.to_string());
    let _ = params.set();
}

pub(crate) fn safetensors(bytes: &[u8]) {
    let path = scratch::file("model.safetensors", bytes);
    load(&path);
    let _ = distances(&path, &path);
    let _ = merge_files(&MergePlan::uniform_soup(), None, &[&path, &path], scratch::path("soup.safetensors"));
}

pub(crate) fn pytorch(bytes: &[u8]) {
    load(&scratch::file("pytorch_model.bin", bytes));
}

fn tensors(names: &[&str]) -> Vec<u8> {
    let tensor = |i: usize| Tensor::full(i as f32, (2, 3), &CPU).expect("six numbers");
    let tensors: HashMap<String, Tensor> =
        (0..).zip(names).map(|(i, name)| ((*name).to_owned(), tensor(i))).collect();
    safetensors::serialize(&tensors, None).expect("six numbers")
}

pub(crate) fn index(bytes: &[u8]) {
    scratch::once("sharded/model-00001-of-00002.safetensors", || tensors(&["a", "b"]));
    scratch::once("sharded/model-00002-of-00002.safetensors", || tensors(&["c"]));
    let path = scratch::file("sharded/model.safetensors.index.json", bytes);
    load(&path);
    let _ = distances(&path, &path);
}

pub(crate) fn adapter(bytes: &[u8]) {
    scratch::once("adapter/adapter_model.safetensors", || {
        let prefix = "base_model.model.encoder.query";
        tensors(&[&format!("{prefix}.lora_A.weight"), &format!("{prefix}.lora_B.weight")])
    });
    let path = scratch::file("adapter/adapter_config.json", bytes);
    let folder = path.parent().expect("it was joined to a folder");
    let Ok(config) = LoraConfig::from_adapter(folder) else { return };
    // A rank that no file could have is not the reader's business.
    if config.rank > 64 {
        return;
    }
    let params = Params::default();
    let base = || Linear::new(Tensor::ones((2, 3), DType::F32, &CPU).expect("six numbers"), None);
    let _ = LoraLinear::new(base(), "encoder.query", &config, &params);
    let _ = config.check_targets(&params);
    let _ = load_adapter(folder, &params);
}

/// The first byte chooses the file. Checksums are made to fit, so that what is behind them is reached, unless the checksums
/// are the file.
pub(crate) fn checkpoint(bytes: &[u8]) {
    const FILES: [&str; 4] = ["state.json", "state.safetensors", "weights.safetensors", "checksums.txt"];
    let Some((choice, content)) = bytes.split_first() else { return };
    let chosen = FILES[usize::from(*choice) % FILES.len()];
    let good = scratch::path("good");
    if !good.exists() {
        let weights =
            HashMap::from([("w".to_owned(), Tensor::ones(3, DType::F32, &CPU).expect("three numbers"))]);
        let state = TrainState::new(7).weights(weights);
        let state = state
            .and_then(|state| state.state("optimizer", [("w/exp_avg".to_owned(), vec![1f32].into())].into()));
        let state = state.and_then(|state| state.value("epoch", &0.1)).expect("it can be saved");
        let saved = Checkpointer::new(scratch::path("saved")).save(&state).expect("there is room");
        std::fs::rename(saved, &good).expect("it was just made");
    }
    let mut sums = String::new();
    for name in FILES {
        let stored = std::fs::read(good.join(name)).expect("the good checkpoint has all files");
        let bytes = if name == chosen { content } else { &stored };
        scratch::file(&format!("step-00000007/{name}"), bytes);
        if name != "checksums.txt" {
            sums += &format!("{:08x} {} {name}\n", crc32c::crc32c(bytes), bytes.len());
        }
    }
    if chosen != "checksums.txt" {
        scratch::file("step-00000007/checksums.txt", sums.as_bytes());
    }
    let Ok(loaded) = Checkpoint::load(scratch::path("step-00000007")) else { return };
    let _ = loaded.weights(&CPU);
    for section in loaded.sections() {
        let _ = loaded.state(section);
        let _ = loaded.tensors(section, &CPU);
    }
    for name in loaded.values() {
        let _ = loaded.value::<f64>(name);
    }
}

pub(crate) fn telemetry(bytes: &[u8]) {
    let _ = JsonlWriter::resume(scratch::file("log.jsonl", bytes), 3);
}
