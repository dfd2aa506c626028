//! Audits: a stock model that cannot be trained, wrong gradients, and models that pass.

#![allow(clippy::unwrap_used)] // helpers of tests

use candle_core::{DType, Device, Result, Tensor, Var};
use candle_nn::{Conv2dConfig, Module, ModuleT, VarBuilder, batch_norm, conv2d, linear};
use candle_transformers::models::bert::{BertModel, Config};
use tpgm_candle::{Anchor, Audit, Cause, Param, Params, params};

const CPU: Device = Device::Cpu;

fn tiny_bert() -> Config {
    serde_json::from_str(
        r#"{"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2,
            "intermediate_size": 16, "hidden_act": "gelu", "hidden_dropout_prob": 0.0, "max_position_embeddings": 16,
            "type_vocab_size": 2, "initializer_range": 0.02, "layer_norm_eps": 1e-12, "pad_token_id": 0,
            "position_embedding_type": "absolute", "use_cache": true, "classifier_dropout": null, "model_type": null}"#,
    )
    .unwrap()
}

/// No layer norm of candle has a backward pass for contiguous inputs, and BERT ends in one.
#[test]
fn a_stock_bert_cannot_be_trained_and_the_message_says_why() {
    let params = Params::new(&CPU).head("*").seed(3);
    let vb = params.var_builder();
    let model = BertModel::load(vb.clone(), &tiny_bert()).unwrap();
    vb.get(3, "spare.weight").unwrap();
    let ids = Tensor::new(&[[1u32, 5, 7, 2]], &CPU).unwrap();
    let kinds = ids.zeros_like().unwrap();
    let loss = || model.forward(&ids, &kinds, None)?.sqr()?.narrow(2, 0, 4)?.mean_all();
    let before = params.values().into_iter().map(|(name, t)| (name, t.copy().unwrap())).collect();

    let error = params.audit(loss).unwrap_err();
    let text = error.to_string();
    println!("{text}");
    let tpgm_candle::audit::Error::NoGradient { missing, trainable } = error else { panic!("{text}") };
    assert_eq!((missing.len(), trainable), (38, 38));
    assert!(missing.is_sorted_by(|a, b| a.name < b.name));
    assert!(text.starts_with("38 of 38 trainable tensors get no gradient"), "{text}");
    assert!(text.contains("tpgm_candle::nn"), "{text}");
    assert!(text.contains("encoder.layer.*.attention.output.LayerNorm.bias (2 tensors)"), "{text}");
    assert!(text.contains("more tensors"), "{text}");
    for tensor in &missing {
        let cause = if tensor.name == "spare.weight" { Cause::Unused } else { Cause::Cut };
        // The loss does not depend on a key's bias but for rounding: softmax takes it out.
        assert!(tensor.cause == cause || tensor.name.ends_with("key.bias"), "{tensor:?}");
    }
    // The search for causes moved weights, and put them back.
    let before: std::collections::BTreeMap<String, Tensor> = before;
    for (name, tensor) in params.values() {
        let same = tensor.eq(&before[&name]).unwrap().min_all().unwrap().to_vec0::<u8>().unwrap();
        assert_eq!(same, 1, "{name}");
    }
    Audit::new(&params).allow(["*"]).run(loss).unwrap();
}

fn network(vb: &VarBuilder) -> impl Fn(&Tensor) -> Result<Tensor> + use<> {
    let first = linear(4, 6, vb.pp("first")).unwrap();
    let second = linear(6, 3, vb.pp("second")).unwrap();
    move |x| second.forward(&first.forward(x)?.gelu_erf()?)?.sqr()?.mean_all()
}

fn input(dtype: DType, shape: &[usize]) -> Tensor {
    let count: usize = shape.iter().product();
    let values: Vec<f64> = (0..count).map(|i| ((i * 37 + 11) % 101) as f64 / 50.0 - 1.0).collect();
    Tensor::from_vec(values, shape, &CPU).unwrap().to_dtype(dtype).unwrap()
}

#[test]
fn a_sound_model_passes_in_f32_and_f64() {
    for (dtype, eps) in [(DType::F32, 1e-2), (DType::F64, 1e-4)] {
        let params = Params::new(&CPU).head("*").dtype(dtype);
        let loss = network(&params.var_builder());
        let x = input(dtype, &[5, 4]);
        let report = Audit::new(&params).finite_differences(5, eps).run(|| loss(&x)).unwrap();
        assert!(report.is_clean(), "{report}");
        assert_eq!((report.trainable, report.checked), (4, 4));
        let text = report.to_string();
        assert!(text.contains("4 of 4 trainable tensors get a gradient; 4 agree"), "{text}");
    }
}

/// candle's gradient of max_pool2d is too small by the area of the window.
#[test]
fn finite_differences_find_a_wrong_gradient() {
    let params = Params::new(&CPU).head("*");
    let vb = params.var_builder();
    let conv = conv2d(1, 2, 3, Conv2dConfig { padding: 1, ..Default::default() }, vb.pp("conv")).unwrap();
    let head = linear(8, 3, vb.pp("head")).unwrap();
    let x = input(DType::F32, &[3, 1, 4, 4]);
    let loss = || head.forward(&conv.forward(&x)?.max_pool2d(2)?.flatten_from(1)?)?.sqr()?.mean_all();
    params.audit(loss).unwrap();
    let error = Audit::new(&params).finite_differences(4, 1e-3).run(loss).unwrap_err();
    let text = error.to_string();
    let tpgm_candle::audit::Error::WrongGradients { wrong } = error else { panic!("{text}") };
    assert_eq!(wrong.iter().map(|w| w.name.as_str()).collect::<Vec<_>>(), ["conv.bias", "conv.weight"]);
    for w in &wrong {
        let ratio = w.difference / w.gradient;
        assert!((ratio - 4.0).abs() < 0.1, "{w:?}");
    }
    assert!(text.contains("conv.weight: the gradient says"), "{text}");
}

#[test]
fn unused_tensors_are_told_from_cut_ones_and_can_be_allowed() {
    let params = Params::new(&CPU).head("*");
    let vb = params.var_builder();
    let used = vb.get_with_hints(3, "used", candle_nn::Init::Const(1.0)).unwrap();
    let cut = vb.get_with_hints(3, "cut", candle_nn::Init::Const(1.0)).unwrap();
    vb.get(3, "unused").unwrap();
    let loss = || used.mul(&cut.detach())?.sum_all();
    let error = params.audit(loss).unwrap_err();
    let tpgm_candle::audit::Error::NoGradient { missing, .. } = &error else { panic!("{error}") };
    let causes: Vec<_> = missing.iter().map(|m| (m.name.as_str(), m.cause)).collect();
    assert_eq!(causes, [("cut", Cause::Cut), ("unused", Cause::Unused)]);
    let report = Audit::new(&params).allow(["cut", "unus*"]).run(loss).unwrap();
    assert_eq!(report.without, ["cut", "unused"]);
    let error = Audit::new(&params).allow(["nothing"]).run(loss).unwrap_err();
    assert!(
        matches!(
            &error,
            tpgm_candle::audit::Error::Params(params::Error::UnmatchedPattern { option: "allow", .. })
        ),
        "{error}"
    );
    // A loss that differs from call to call tells no causes.
    let mut calls = 0.0;
    let noisy = || {
        calls += 1.0;
        loss()? + calls
    };
    let error = params.audit(noisy).unwrap_err().to_string();
    assert!(error.contains("either the graph is cut"), "{error}");
}

#[test]
fn zero_gradients_are_reported() {
    let fused = |name: &str, shape: &[usize]| {
        Param::new(name, Var::ones(shape, DType::F32, &CPU).unwrap(), Anchor::None)
    };
    let all = [fused("qkv.weight", &[6, 2]), fused("qkv.bias", &[6]), fused("dead", &[2])];
    let params = Params::from_params(all.clone()).unwrap();
    let [weight, bias, dead] = all.map(|param| param.var().as_tensor().clone());
    let loss = || {
        let x = Tensor::ones((1, 2), DType::F32, &CPU)?;
        let qkv = x.matmul(&weight.t()?)?.broadcast_add(&bias)?;
        qkv.narrow(1, 4, 2)?.sum_all()? + dead.relu()?.affine(-1.0, 0.5)?.relu()?.sum_all()?
    };
    let report = params.audit(loss).unwrap();
    assert_eq!(report.zero, ["dead"]);
    assert_eq!(
        report.zero_thirds,
        [("qkv.bias".to_owned(), vec![0, 1]), ("qkv.weight".to_owned(), vec![0, 1])]
    );
    assert!(!report.is_clean());
    assert!(report.to_string().contains("zero in thirds [0, 1] of its rows: qkv.weight"), "{report}");
}

#[test]
fn running_statistics_are_put_back() {
    let params = Params::new(&CPU).head("*");
    let norm = batch_norm(4, 1e-5, params.var_builder().pp("bn")).unwrap();
    let x = input(DType::F32, &[5, 4]);
    let loss = || norm.forward_t(&x, true)?.powf(3.0)?.mean_all();
    let report = Audit::new(&params).finite_differences(4, 1e-2).run(loss).unwrap();
    assert_eq!(report.trainable, 2);
    assert_eq!(norm.running_mean().to_vec1::<f32>().unwrap(), [0.0; 4]);
    loss().unwrap();
    assert_ne!(norm.running_mean().to_vec1::<f32>().unwrap(), [0.0; 4]);
}

#[test]
fn losses_that_are_none_are_named() {
    let params = Params::new(&CPU).head("*");
    let w = params.var_builder().get_with_hints(2, "w", candle_nn::Init::Const(1.0)).unwrap();
    let error = params.audit(|| Ok(w.clone())).unwrap_err();
    assert!(matches!(&error, tpgm_candle::audit::Error::LossShape { shape } if shape == &[2]), "{error}");
    let error = params.audit(|| w.affine(f64::NAN, 0.0)?.sum_all()).unwrap_err();
    assert!(
        matches!(&error, tpgm_candle::audit::Error::NonFiniteLoss { value } if value.is_nan()),
        "{error}"
    );
    let error = params.audit(|| w.affine(0.5, -0.5)?.sqrt()?.sum_all()).unwrap_err().to_string();
    assert!(error.contains("gradient of tensor `w` is not finite"), "{error}");
    let mut first = true;
    let changing = || {
        let loss = w.sum_all()?.affine(if first { 1.0 } else { 2.0 }, 0.0);
        first = false;
        loss
    };
    let error = Audit::new(&params).finite_differences(2, 1e-2).run(changing).unwrap_err();
    assert!(
        matches!(&error, tpgm_candle::audit::Error::RandomLoss { first, second } if second == &(2.0 * first)),
        "{error}"
    );
    let failing = params.audit(|| candle_core::bail!("out of data")).unwrap_err().to_string();
    assert!(failing.contains("out of data"), "{failing}");
}
