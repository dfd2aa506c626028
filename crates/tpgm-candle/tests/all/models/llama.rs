//! Llama and Qwen2.

use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use candle_transformers::models::{llama as candle_llama, qwen2 as candle_qwen2};
use tpgm_candle::lora::{LoraConfig, load_adapter, save_adapter};
use tpgm_candle::models::llama::{Family, Llama, LlamaConfig, RopeScaling};
use tpgm_candle::{AdamW, Audit, Ftp, Params, RobustOptimizer, Spd, nn};

use super::{checkpoint, deviation};

/// Heads of 8 numbers, whose four frequencies fall into all three cases of `SCALING`: within 512 tokens 1 and 0.12 turn more
/// than 4 times, 0.0017 less than once, and 0.014 turns 1.15 times.
fn tiny(model_type: Family) -> LlamaConfig {
    LlamaConfig {
        model_type,
        vocab_size: 23,
        hidden_size: 32,
        intermediate_size: 20,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: Some(2),
        max_position_embeddings: 9,
        rope_theta: 5000.0,
        ..LlamaConfig::default()
    }
}

const SCALING: RopeScaling = RopeScaling::Llama3 {
    factor: 8.0,
    low_freq_factor: 1.0,
    high_freq_factor: 4.0,
    original_max_position_embeddings: 512,
};

/// Three sequences of 7, 3 and 5 tokens, padded with zeros.
const IDS: [[u32; 7]; 3] = [[1, 5, 22, 7, 2, 9, 3], [1, 8, 2, 0, 0, 0, 0], [1, 4, 4, 11, 2, 0, 0]];

fn ids() -> Tensor {
    Tensor::new(&IDS, &Device::Cpu).unwrap()
}

/// The second token of each sequence is a prompt, too.
fn counted() -> Tensor {
    let counted = IDS.map(|row| {
        let mut counted = row.map(|id| u8::from(id != 0));
        counted[1] = 0;
        counted
    });
    Tensor::new(&counted, &Device::Cpu).unwrap()
}

/// Compares the logits at every position with those of a model that gives the ones of the last position only.
fn compare(name: &str, model: &Llama, mut last: impl FnMut(&Tensor) -> candle_core::Result<Tensor>) {
    let logits = model.forward(&ids(), false).unwrap();
    assert_eq!(logits.dims(), [3, 7, 23]);
    let largest = logits.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
    for length in 1..=7 {
        let expected = last(&ids().narrow(1, 0, length).unwrap().contiguous().unwrap()).unwrap();
        let got = logits.narrow(1, length - 1, 1).unwrap();
        let deviation = deviation(&got, &expected.reshape((3, 1, 23)).unwrap()) / f64::from(largest);
        assert!(deviation < 2e-5, "{name}, {length} tokens: {deviation:e}");
    }
}

#[test]
fn it_computes_what_candle_transformers_computes_for_llama() {
    let folder = tempfile::tempdir().unwrap();
    for (name, tie, scaling) in
        [("untied", false, None), ("tied", true, None), ("scaled", false, Some(SCALING))]
    {
        let config = LlamaConfig { tie_word_embeddings: tie, rope_scaling: scaling, ..tiny(Family::Llama) };
        let map = VarMap::new();
        let vb = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
        let model = Llama::new(&config, vb.clone()).unwrap();
        checkpoint(&map, &folder.path().join("model.safetensors"));
        let json = serde_json::to_value(&config).unwrap();
        let other: candle_llama::LlamaConfig = serde_json::from_value(json).unwrap();
        let other = other.into_config(false);
        let mut cache = candle_llama::Cache::new(false, DType::F32, &other, &Device::Cpu).unwrap();
        let other = candle_llama::Llama::load(vb, &other).unwrap();
        compare(name, &model, |ids| other.forward(ids, 0, &mut cache));
    }
}

#[test]
fn it_computes_what_candle_transformers_computes_for_qwen2() {
    let folder = tempfile::tempdir().unwrap();
    for tie in [false, true] {
        let config = LlamaConfig { tie_word_embeddings: tie, ..tiny(Family::Qwen2) };
        let map = VarMap::new();
        let vb = VarBuilder::from_varmap(&map, DType::F32, &Device::Cpu);
        let model = Llama::new(&config, vb.clone()).unwrap();
        checkpoint(&map, &folder.path().join("model.safetensors"));
        let mut json = serde_json::to_value(&config).unwrap();
        json["sliding_window"] = 9.into();
        json["max_window_layers"] = 2.into();
        let other: candle_qwen2::Config = serde_json::from_value(json).unwrap();
        // Their head is tied where the checkpoint has none, which an empty `VarMap` always says.
        let stored = candle_core::safetensors::load(folder.path().join("model.safetensors"), &Device::Cpu);
        let vb = VarBuilder::from_tensors(stored.unwrap(), DType::F32, &Device::Cpu);
        let mut other = candle_qwen2::ModelForCausalLM::new(&other, vb).unwrap();
        compare("qwen2", &model, |ids| {
            other.clear_kv_cache();
            other.forward(ids, 0)
        });
    }
}

/// That it is changed in the right way is what the comparison with candle-transformers shows.
#[test]
fn scaling_changes_what_a_model_computes() {
    let logits = |scaling| {
        let map = VarMap::new();
        let vb = VarBuilder::from_varmap(&map, DType::F64, &Device::Cpu);
        let config = LlamaConfig { rope_scaling: scaling, ..tiny(Family::Llama) };
        let model = Llama::new(&config, vb).unwrap();
        checkpoint(&map, &tempfile::tempdir().unwrap().path().join("model.safetensors"));
        model.forward(&ids(), false).unwrap()
    };
    let plain = logits(None);
    assert!(deviation(&plain, &logits(Some(SCALING))) > 1e-4);
    assert!(deviation(&plain, &logits(Some(RopeScaling::Linear { factor: 2.0 }))) > 1e-4);
    assert_eq!(deviation(&plain, &logits(Some(RopeScaling::Default))), 0.0);
    assert!(deviation(&plain, &logits(Some(RopeScaling::Linear { factor: 1.0 }))) < 1e-12);
}

/// A checkpoint in f64.
fn params(config: &LlamaConfig, folder: &std::path::Path) -> Params {
    let path = folder.join("model.safetensors");
    let map = VarMap::new();
    Llama::new(config, VarBuilder::from_varmap(&map, DType::F64, &Device::Cpu)).unwrap();
    checkpoint(&map, &path);
    Params::open(&path, &Device::Cpu).unwrap().dtype(DType::F64)
}

#[test]
fn every_gradient_agrees_with_finite_differences() {
    let folder = tempfile::tempdir().unwrap();
    let biased = LlamaConfig { attention_bias: true, mlp_bias: true, ..tiny(Family::Llama) };
    let tied = LlamaConfig { tie_word_embeddings: true, rope_scaling: Some(SCALING), ..tiny(Family::Llama) };
    // Per block: two norms, seven matrices, and three (Qwen2) or seven biases.
    for (config, tensors) in
        [(tiny(Family::Llama), 21), (tied, 20), (biased, 21 + 14), (tiny(Family::Qwen2), 21 + 6)]
    {
        let params = params(&config, folder.path());
        let model = Llama::new(&config, params.var_builder()).unwrap();
        let loss = || model.loss(&ids(), &counted(), true);
        let report = Audit::new(&params).finite_differences(4, 1e-5).run(loss).unwrap();
        assert!(report.is_clean() && report.inconclusive.is_empty(), "{report}");
        assert_eq!(report.checked, tensors, "{report}");
    }
}

#[test]
fn a_head_beside_a_tied_embedding_must_be_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let tied = LlamaConfig { tie_word_embeddings: true, ..tiny(Family::Llama) };
    let path = folder.path().join("model.safetensors");
    let open = |untied: bool| {
        params(&tied, folder.path());
        let mut tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
        let mut head = tensors["model.embed_tokens.weight"].copy().unwrap();
        if untied {
            let last = Tensor::new(&[[1e-3f64]], &Device::Cpu).unwrap();
            let last = last.pad_with_zeros(0, 22, 0).unwrap().pad_with_zeros(1, 31, 0).unwrap();
            head = (head + last).unwrap();
        }
        tensors.insert("lm_head.weight".to_owned(), head);
        candle_core::safetensors::save(&tensors, &path).unwrap();
        Params::open(&path, &Device::Cpu).unwrap().dtype(DType::F64)
    };
    let error = Llama::new(&tied, open(true).var_builder()).unwrap_err();
    assert!(matches!(&error, nn::Error::ModelTensor { tensor, .. } if tensor == "lm_head.weight"), "{error}");
    assert!(error.to_string().contains("tie_word_embeddings"), "{error}");
    let lora = LoraConfig { targets: vec!["q_proj".to_owned()], ..LoraConfig::default() };
    let error = Llama::with_lora(&tied, &lora, &open(true).freeze("*")).unwrap_err().to_string();
    assert!(error.contains("lm_head.weight"), "{error}");
    // As the message says: it is used.
    let untied = LlamaConfig { tie_word_embeddings: false, ..tied.clone() };
    let used = Llama::new(&untied, open(true).var_builder()).unwrap().forward(&ids(), false).unwrap();

    // A copy is a tied model, which trains with the copy frozen.
    let copied = open(false).freeze("lm_head.weight");
    let model = Llama::new(&tied, copied.var_builder()).unwrap();
    assert!(deviation(&model.forward(&ids(), false).unwrap(), &used) > 1e-4);
    let mut optimizer = RobustOptimizer::new(&copied, AdamW::default(), Ftp::default()).unwrap();
    optimizer.backward_step(&model.loss(&ids(), &counted(), true).unwrap()).unwrap();
    assert_eq!(copied.all().len(), 20);
}

/// All linear layers but the head, and `v_proj` of the second block only.
fn lora() -> LoraConfig {
    let targets = ["q_proj", "k_proj", "layers.1.self_attn.v_proj", "o_proj", "*.mlp.*", "lm_head"];
    LoraConfig { rank: 2, alpha: 3.0, targets: targets.map(Into::into).to_vec(), ..LoraConfig::default() }
}

/// A frozen model with factors that are not zero.
fn adapted(folder: &std::path::Path) -> (Params, Llama) {
    let config = tiny(Family::Qwen2);
    let params = params(&config, folder).freeze("*");
    let model = Llama::with_lora(&config, &lora(), &params).unwrap();
    for (seed, param) in params.all().iter().enumerate() {
        let count = param.var().elem_count();
        let values: Vec<f64> = (0..count).map(|i| ((i * 7 + seed * 3) as f64).sin() / 4.0).collect();
        param.var().set(&Tensor::from_vec(values, param.var().shape(), &Device::Cpu).unwrap()).unwrap();
    }
    (params, model)
}

#[test]
fn every_gradient_of_a_factor_agrees_with_finite_differences() {
    let folder = tempfile::tempdir().unwrap();
    let (params, model) = adapted(folder.path());
    let report =
        Audit::new(&params).finite_differences(4, 1e-5).run(|| model.loss(&ids(), &counted(), true)).unwrap();
    assert!(report.is_clean() && report.inconclusive.is_empty(), "{report}");
    // q, k, o, gate, up, down of two blocks, one v, and the head; nothing of the base.
    assert_eq!(report.checked, 2 * (2 * 6 + 1 + 1), "{report}");
    assert!(params.all().iter().all(|param| param.name().contains("lora_")));
}

/// The update of a weight is `alpha / rank` times `B A`: a full model with that added computes the same.
#[test]
fn an_adapted_model_is_a_full_model_with_other_weights() {
    let folder = tempfile::tempdir().unwrap();
    let (factors, model) = adapted(folder.path());
    let config = tiny(Family::Qwen2);
    let full = Params::open(folder.path().join("model.safetensors"), &Device::Cpu).unwrap().dtype(DType::F64);
    let plain = Llama::new(&config, full.var_builder()).unwrap();
    let before = deviation(&model.forward(&ids(), false).unwrap(), &plain.forward(&ids(), false).unwrap());
    assert!(before > 0.1, "{before}");
    for a in factors.all().iter().filter(|param| param.name().ends_with(".lora_A.weight")) {
        let module = a.name().trim_end_matches(".lora_A.weight");
        let b = factors.get(&format!("{module}.lora_B.weight")).unwrap();
        let weight = full.get(&format!("{module}.weight")).unwrap();
        let delta = (b.var().matmul(a.var()).unwrap() * 1.5).unwrap();
        weight.var().set(&(weight.var().as_tensor() + delta).unwrap()).unwrap();
    }
    let after = deviation(&model.forward(&ids(), false).unwrap(), &plain.forward(&ids(), false).unwrap());
    assert!(after < 1e-10, "{after:e}");
}

#[test]
fn an_adapter_comes_back_under_the_names_of_peft() {
    let folder = tempfile::tempdir().unwrap();
    let (params, model) = adapted(folder.path());
    let adapter = folder.path().join("adapter");
    save_adapter(&adapter, &lora(), &params).unwrap();
    let stored = candle_core::safetensors::load(adapter.join("adapter_model.safetensors"), &Device::Cpu);
    let stored = stored.unwrap();
    let name = "base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight";
    assert_eq!(stored[name].dims(), [16, 2]);
    assert_eq!(stored.len(), 28);

    let config = tiny(Family::Qwen2);
    let again = Params::open(folder.path().join("model.safetensors"), &Device::Cpu).unwrap();
    let again = again.dtype(DType::F64).freeze("*");
    let options = LoraConfig::from_adapter(&adapter).unwrap();
    let loaded = Llama::with_lora(&config, &options, &again).unwrap();
    load_adapter(&adapter, &again).unwrap();
    let (a, b) = (model.forward(&ids(), false).unwrap(), loaded.forward(&ids(), false).unwrap());
    assert_eq!(deviation(&a, &b), 0.0);
}

#[test]
fn padding_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let config = tiny(Family::Llama);
    let params = params(&config, folder.path());
    let model = Llama::new(&config, params.var_builder()).unwrap();
    let all = model.forward(&ids(), false).unwrap();
    let short = ids().narrow(0, 1, 1).unwrap().narrow(1, 0, 3).unwrap();
    let alone = model.forward(&short, false).unwrap();
    let same = all.narrow(0, 1, 1).unwrap().narrow(1, 0, 3).unwrap();
    assert!(deviation(&same, &alone) < 1e-12);
}

/// Tokens that do not count: the loss is the mean of `ln(sum exp) - logit` over the others, from the logits.
#[test]
fn the_loss_is_the_mean_over_the_tokens_that_count() {
    let folder = tempfile::tempdir().unwrap();
    let config = tiny(Family::Llama);
    let params = params(&config, folder.path());
    let model = Llama::new(&config, params.var_builder()).unwrap();
    let logits = model.forward(&ids(), false).unwrap().to_vec3::<f64>().unwrap();
    let mean = |counted: &Tensor| {
        let counted = counted.to_vec2::<u8>().unwrap();
        let places = (0..3).flat_map(|row| (1..7).map(move |at| (row, at)));
        let losses: Vec<f64> = places
            .filter(|(row, at)| counted[*row][*at] != 0)
            .map(|(row, at)| {
                let logits = &logits[row][at - 1];
                logits.iter().map(|x| x.exp()).sum::<f64>().ln() - logits[IDS[row][at] as usize]
            })
            .collect();
        (losses.iter().sum::<f64>() / losses.len() as f64, losses.len())
    };
    for (counted, count) in [(counted(), 5 + 1 + 3), (counted().ones_like().unwrap(), 18)] {
        let got = model.loss(&ids(), &counted, false).unwrap().to_scalar::<f64>().unwrap();
        let (expected, places) = mean(&counted);
        assert_eq!(places, count);
        assert!((got - expected).abs() < 1e-12, "{got} {expected}");
    }
}

#[test]
fn a_few_steps_fit_a_batch() {
    let folder = tempfile::tempdir().unwrap();
    let config = tiny(Family::Llama);
    let params = params(&config, folder.path());
    let model = Llama::new(&config, params.var_builder()).unwrap();
    let loss = || model.loss(&ids(), &counted(), true).unwrap();
    let value = || loss().to_scalar::<f64>().unwrap();
    let before = value();
    let mut optimizer = RobustOptimizer::new(&params, AdamW::default().lr(0.02), Ftp::default()).unwrap();
    for _ in 0..30 {
        optimizer.backward_step(&loss()).unwrap();
    }
    assert!(value() < 0.5 * before, "{before} to {}", value());
}

#[test]
fn a_few_steps_on_factors_fit_a_batch_and_leave_the_base_alone() {
    let folder = tempfile::tempdir().unwrap();
    let config = tiny(Family::Qwen2);
    let params = params(&config, folder.path()).freeze("*");
    let model = Llama::with_lora(&config, &lora(), &params).unwrap();
    let base = |params: &Params| {
        params.frozen().into_iter().map(|(name, tensor)| (name, tensor.copy().unwrap())).collect::<Vec<_>>()
    };
    let frozen = base(&params);
    assert_eq!(frozen.len(), 27);
    let loss = || model.loss(&ids(), &counted(), true).unwrap();
    let value = || loss().to_scalar::<f64>().unwrap();
    let before = value();
    let mut optimizer = RobustOptimizer::new(&params, AdamW::default().lr(0.02), Spd::default()).unwrap();
    for _ in 0..60 {
        optimizer.backward_step(&loss()).unwrap();
    }
    assert!(value() < 0.5 * before, "{before} to {}", value());
    for ((name, was), (_, is)) in frozen.iter().zip(base(&params)) {
        assert_eq!(deviation(was, &is), 0.0, "{name}");
    }
}

#[test]
fn configurations_of_both_generations_of_transformers_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    let read = |text: &str| {
        std::fs::write(&path, text).unwrap();
        LlamaConfig::from_file(&path).unwrap()
    };
    let llama3 = r#"{"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 512, "rope_type": "llama3""#;
    let old = read(&format!(
        r#"{{"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "rope_theta": 5e5,
            "torch_dtype": "bfloat16", "rope_scaling": {llama3}}}}}"#
    ));
    assert_eq!((old.rope_theta, old.rope_scaling), (5e5, Some(SCALING)));
    assert_eq!((old.num_hidden_layers, old.num_key_value_heads), (32, None));
    let new = read(&format!(
        r#"{{"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4, "dtype": "bfloat16",
            "rope_parameters": {llama3}, "rope_theta": 5e5}}}}"#
    ));
    assert_eq!(new, old);
    let null = read(r#"{"model_type": "qwen2", "rope_scaling": null, "sliding_window": 4096}"#);
    assert_eq!((null.model_type, null.rope_scaling), (Family::Qwen2, None));
}

#[test]
fn bad_configurations_and_inputs_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.json");
    let read = |text: &str| {
        std::fs::write(&path, text).unwrap();
        LlamaConfig::from_file(&path).unwrap_err()
    };
    for (text, named) in [
        (r#"{"hidden_size": 100}"#, "hidden_size"),
        (r#"{"num_attention_heads": 0}"#, "hidden_size"),
        (r#"{"num_key_value_heads": 5}"#, "num_key_value_heads"),
        (r#"{"num_key_value_heads": 0}"#, "num_key_value_heads"),
        (r#"{"head_dim": 7}"#, "head_dim"),
        (r#"{"hidden_act": "gelu"}"#, "hidden_act"),
        (r#"{"rope_theta": 0}"#, "rope_theta"),
        (r#"{"rope_scaling": {"rope_type": "linear", "factor": 0}}"#, "rope_scaling"),
        (r#"{"use_sliding_window": true}"#, "use_sliding_window"),
    ] {
        let error = read(text);
        assert!(matches!(&error, nn::Error::ModelConfig { entry, .. } if *entry == named), "{text}: {error}");
        assert!(error.to_string().contains(named));
    }
    for (text, word) in [
        (r#"{"model_type": "gemma2"}"#, "gemma2"),
        (r#"{"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}"#, "yarn"),
        (r#"{"rope_parameters": {"rope_type": "llama3", "factor": 4.0}}"#, "low_freq_factor"),
        (r#"{"hidden_size": -1}"#, "-1"),
    ] {
        let error = read(text).to_string();
        assert!(error.contains("config.json") && error.contains(word), "{error}");
    }

    let config = tiny(Family::Llama);
    let params = params(&config, folder.path());
    let model = Llama::new(&config, params.var_builder()).unwrap();
    let error = |result: candle_core::Result<Tensor>| result.unwrap_err().to_string();
    let long = Tensor::zeros((1, 10), DType::U32, &Device::Cpu).unwrap();
    assert!(error(model.forward(&long, false)).contains("10 tokens"));
    let unknown = Tensor::new(&[[0u32, 1], [22, 23]], &Device::Cpu).unwrap();
    assert!(error(model.forward(&unknown, false)).contains("token 23 of sequence 1"));
    let none = Tensor::zeros((3, 7), DType::U8, &Device::Cpu).unwrap();
    assert!(error(model.loss(&ids(), &none, false)).contains("no token of the batch counts"));
    let one = ids().narrow(1, 0, 1).unwrap();
    assert!(
        error(model.loss(&one, &one.ones_like().unwrap(), false)).contains("no token of the batch counts")
    );
    assert!(error(model.loss(&ids(), &long, false)).contains("[1, 10]"));

    let targets = vec!["q_proj".to_owned(), "embed_tokens".to_owned()];
    let lora = LoraConfig { targets, ..LoraConfig::default() };
    let error = Llama::with_lora(&config, &lora, &params).unwrap_err();
    assert!(
        matches!(&error, tpgm_candle::lora::Error::Nn(nn::Error::LoraTarget { target, .. }) if target == "embed_tokens"),
        "{error}"
    );
    let wider = LlamaConfig { intermediate_size: 21, ..config };
    let fresh = Params::open(folder.path().join("model.safetensors"), &Device::Cpu).unwrap();
    let error = Llama::new(&wider, fresh.var_builder()).unwrap_err().to_string();
    assert!(error.contains("model.layers.0.mlp.gate_proj.weight"), "{error}");
}
