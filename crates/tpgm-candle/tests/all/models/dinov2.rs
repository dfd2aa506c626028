//! DINOv2, and what else some vision transformers have and others lack.

use candle_core::{DType, Device, Tensor};
use candle_nn::{VarBuilder, VarMap};
use tpgm_candle::models::vit::{Vit, VitClassifier, VitConfig, VitLayout};
use tpgm_candle::nn::{DropoutRng, cross_entropy};
use tpgm_candle::{Audit, Params, nn};

use super::{Reference, deviation, images, real_file, relative_deviation, written};

fn no_dropout() -> DropoutRng {
    DropoutRng::new(0)
}

/// As in `make_families.py`.
fn tiny() -> VitConfig {
    VitConfig {
        hidden_size: 12,
        num_hidden_layers: 2,
        num_attention_heads: 3,
        intermediate_size: 24,
        layer_norm_eps: 1e-6,
        image_size: 6,
        patch_size: 3,
        ..VitConfig::default()
    }
}

/// Names in `make_families.py`, with the configuration of those that have no file, and prefixes of classifiers.
fn all() -> Vec<(&'static str, Option<VitConfig>, &'static str)> {
    let gated = VitConfig { use_swiglu_ffn: true, ..tiny() };
    vec![
        ("dinov2", None, "dinov2."),
        ("dinov2_swiglu", None, "dinov2."),
        ("dinov2_registers", None, "dinov2_with_registers."),
        ("timm_scaled", Some(tiny()), ""),
        ("timm_qk_norm", Some(tiny()), ""),
        ("timm_registers", Some(tiny()), ""),
        ("timm_registers_embedded", Some(tiny()), ""),
        ("timm_swiglu", Some(gated), ""),
        ("timm_pre_norm", Some(tiny()), ""),
        ("original_registers", Some(tiny()), ""),
        ("original_swiglu", Some(tiny()), ""),
    ]
}

fn config(reference: &Reference, given: Option<VitConfig>) -> VitConfig {
    given.unwrap_or_else(|| VitConfig::from_file(reference.config()).unwrap())
}

#[test]
fn each_kind_computes_what_transformers_and_timm_compute() {
    for (name, given, prefix) in all() {
        let reference = Reference::family(name);
        let config = config(&reference, given);
        let params = reference.params();
        let model = Vit::new(&config, &no_dropout(), params.var_builder()).unwrap();
        let mask_token = |name: &String| name.ends_with("mask_token"); // of pre-training
        let unused = params.report().unwrap().unused;
        assert!(unused.iter().all(mask_token), "{name}: {unused:?}");
        let got = model.tokens(&reference.wide("images"), false).unwrap();
        let deviation = relative_deviation(&got, &reference.get("tokens"));
        assert!(deviation < 1e-12, "{name}: {deviation:e}");

        let head = if prefix.is_empty() { "head.*" } else { "classifier.*" };
        let params = reference.params_with(prefix, |_| true).head(head);
        let model = VitClassifier::new(&config, 3, &no_dropout(), params.var_builder()).unwrap();
        let first = got.narrow(1, 0, 1).unwrap().squeeze(1).unwrap();
        let features = model.features(&reference.wide("images"), false).unwrap();
        assert!(relative_deviation(&features, &first) < 1e-12, "{name}");
    }
}

#[test]
fn every_gradient_agrees_with_finite_differences() {
    for (name, given, prefix) in all() {
        let reference = Reference::family(name);
        let config = config(&reference, given);
        let head = if prefix.is_empty() { "head.*" } else { "classifier.*" };
        let params = reference.params().head(head);
        let model = VitClassifier::new(&config, 4, &no_dropout(), params.var_builder()).unwrap();
        let labels = Tensor::new(&[2u32, 0], &Device::Cpu).unwrap();
        let loss = || cross_entropy(&model.forward(&reference.wide("images"), false)?, &labels);
        let report = Audit::new(&params).finite_differences(4, 1e-5).run(loss).unwrap();
        // A key's bias adds the same to all scores of a row, which softmax does not see: its gradient is rounding errors.
        let expected = |name: &String| name.ends_with("key.bias") || name.ends_with("k_norm.bias");
        assert!(report.zero.is_empty() && report.inconclusive.iter().all(expected), "{name}: {report}");
        assert_eq!(report.checked, params.all().len() - report.inconclusive.len(), "{name}: {report}");
    }
}

/// The features that a real file's encoder gives for one image, and how many of its tensors it did not ask for.
fn features(folder: &str) -> (Tensor, Vec<String>) {
    let folder = real_file("image").join(folder);
    let config = VitConfig::from_file(folder.join("config.json")).unwrap();
    let params = Params::open(folder.join("model.safetensors"), &Device::Cpu).unwrap();
    let model = Vit::new(&config, &no_dropout(), params.var_builder()).unwrap();
    let features = model.forward(&images((1, 3, 8, 8), DType::F32), false).unwrap();
    (features, params.report().unwrap().unused)
}

#[test]
fn factors_of_layer_scale_change_what_a_real_file_computes() {
    let (one, unused) = features("dinov2_gamma1");
    assert_eq!(unused, ["mask_token"]);
    let (small, unused) = features("dinov2_gamma1e-5");
    assert_eq!(unused, ["mask_token"]);
    assert!(deviation(&one, &small) > 0.1);
    // Factors of one are none: the same weights without them.
    let (plain, unused) = features("vit");
    assert!(unused.is_empty());
    let (qk_norm, unused) = features("vit_qk_norm");
    assert!(unused.is_empty());
    assert!(deviation(&plain, &qk_norm) > 1e-3);
}

#[test]
fn factors_of_one_change_nothing_and_of_zero_leave_the_tokens_alone() {
    let reference = Reference::family("timm_scaled");
    let scaled = |value: Option<f64>| {
        let params = reference.params_with("", |name| value.is_some() || !name.contains(".ls"));
        let model = Vit::new(&tiny(), &no_dropout(), params.var_builder()).unwrap();
        for param in params.all().iter().filter(|param| param.name().contains(".ls")) {
            param.var().set(&(param.var().ones_like().unwrap() * value.unwrap()).unwrap()).unwrap();
        }
        (model.forward(&reference.wide("images"), false).unwrap(), model)
    };
    assert_eq!(deviation(&scaled(Some(1.0)).0, &scaled(None).0), 0.0);
    // Nothing is added to the class token, so it is the same for all images.
    let (zero, _) = scaled(Some(0.0));
    assert_eq!(deviation(&zero.get(0).unwrap(), &zero.get(1).unwrap()), 0.0);
}

#[test]
fn models_made_anew_have_the_parts_that_are_asked_for() {
    let config =
        VitConfig { num_register_tokens: 2, layerscale_value: Some(1e-5), use_swiglu_ffn: true, ..tiny() };
    for (layout, names) in [
        (VitLayout::Timm, ["reg_token", "blocks.1.ls2.gamma", "blocks.1.mlp.fc1.weight"]),
        (
            VitLayout::HuggingFaceDinov2,
            [
                "embeddings.register_tokens",
                "encoder.layer.1.layer_scale2.lambda1",
                "encoder.layer.1.mlp.weights_in.weight",
            ],
        ),
    ] {
        let map = VarMap::new();
        let vb = VarBuilder::from_varmap(&map, DType::F64, &Device::Cpu);
        let model = Vit::with_layout(&config, layout, &no_dropout(), vb).unwrap();
        assert_eq!(model.tokens(&images((1, 3, 6, 6), DType::F64), false).unwrap().dims(), [1, 7, 12]);
        let data = map.data().lock().unwrap();
        let [registers, scale, wide] = names.map(|name| data[name].clone());
        assert_eq!((registers.dims(), wide.dims()), (&[1, 2, 12][..], &[48, 12][..]));
        assert_eq!(scale.to_vec1::<f64>().unwrap(), [1e-5; 12]);
    }
}

#[test]
fn what_is_not_supported_or_missing_is_named() {
    let error = |reference: &Reference, config: &VitConfig, wanted: &dyn Fn(&str) -> bool| {
        let params = reference.params_with("", wanted);
        Vit::new(config, &no_dropout(), params.var_builder()).unwrap_err().to_string()
    };
    // Blocks have the same parts, and pairs of parts both.
    let scaled = Reference::family("timm_scaled");
    let missing = error(&scaled, &tiny(), &|name| name != "blocks.1.ls2.gamma");
    assert!(missing.contains("blocks.1.ls2.gamma"), "{missing}");
    let qk_norm = Reference::family("timm_qk_norm");
    let missing = error(&qk_norm, &tiny(), &|name| !name.contains("k_norm"));
    assert!(missing.contains("blocks.0.attn.k_norm.weight"), "{missing}");
    let no_bias = error(&qk_norm, &tiny(), &|name| !name.ends_with("q_norm.bias"));
    assert!(no_bias.contains("`blocks.0.attn.q_norm.weight`") && no_bias.contains("RMS norm"), "{no_bias}");
    // A configuration that says how many registers there are.
    let registers = Reference::family("timm_registers");
    let other = VitConfig { num_register_tokens: 4, ..tiny() };
    let wrong = error(&registers, &other, &|_| true);
    assert!(wrong.contains("reg_token") && wrong.contains("[1, 4, 12]"), "{wrong}");
    // Hugging Face's configuration says that there is LayerScale.
    let dinov2 = Reference::family("dinov2");
    let config = VitConfig::from_file(dinov2.config()).unwrap();
    let missing = error(&dinov2, &config, &|name| !name.contains("layer_scale"));
    assert!(missing.contains("encoder.layer.0.layer_scale1.lambda1"), "{missing}");
    // Positions of another size.
    let wide = VitConfig { image_size: 9, ..tiny() };
    let wrong = error(&registers, &wide, &|_| true);
    assert!(wrong.contains("pos_embed") && wrong.contains("[1, 10, 12]"), "{wrong}");

    for (extra, shape) in [("fc_norm.weight", vec![12]), ("dist_token", vec![1, 1, 12])] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        let mut tensors = std::collections::HashMap::new();
        for name in ["cls_token", extra] {
            let shape = if name == extra { shape.clone() } else { vec![1, 1, 12] };
            tensors.insert(name, Tensor::zeros(shape, DType::F32, &Device::Cpu).unwrap());
        }
        candle_core::safetensors::save(&tensors, &path).unwrap();
        let params = Params::open(&path, &Device::Cpu).unwrap();
        let error = Vit::new(&tiny(), &no_dropout(), params.var_builder()).unwrap_err();
        assert!(matches!(&error, nn::Error::ModelTensor { tensor, .. } if tensor == extra), "{error}");
    }
}

#[test]
fn configurations_of_dinov2_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let read = |text: &str| VitConfig::from_file(written(folder.path(), text));
    // Of facebook/dinov2-giant: the width of its SwiGLU is 2/3 of 4 * 1536, a multiple of 8.
    let giant = r#"{"model_type": "dinov2", "hidden_size": 1536, "num_hidden_layers": 40, "num_attention_heads": 24,
        "mlp_ratio": 4, "use_swiglu_ffn": true, "image_size": 518, "patch_size": 14, "layer_norm_eps": 1e-06,
        "layerscale_value": 1.0}"#;
    let config = read(giant).unwrap();
    assert_eq!(
        (config.intermediate_size, config.use_swiglu_ffn, config.num_register_tokens),
        (4096, true, 0)
    );
    let defaults = read(r#"{"model_type": "dinov2_with_registers"}"#).unwrap();
    assert_eq!((defaults.hidden_size, defaults.intermediate_size), (768, 3072));
    assert_eq!((defaults.num_register_tokens, defaults.layerscale_value), (4, Some(1.0)));
    assert_eq!((defaults.layer_norm_eps, defaults.patch_size, defaults.image_size), (1e-6, 14, 224));
    for (text, named) in [
        (r#"{"model_type": "dinov2", "mlp_ratio": -1}"#, "mlp_ratio"),
        (r#"{"model_type": "dinov2", "mlp_ratio": "four"}"#, "mlp_ratio"),
        (r#"{"model_type": "dinov2", "hidden_size": 1e300}"#, "hidden_size"),
    ] {
        let error = read(text).unwrap_err();
        assert!(matches!(&error, nn::Error::ModelConfig { entry, .. } if *entry == named), "{text}: {error}");
    }
}
