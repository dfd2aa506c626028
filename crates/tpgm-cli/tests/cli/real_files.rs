//! Files as people have them: each is right, or an error that names it and what to do.

use candle_core::{DType, Device, Tensor};

use crate::common::{Folder, numbers, real_file, tpgm};

fn file(name: &str) -> String {
    real_file(&format!("real_files/{name}"))
}

/// A file that is inspected: its model, the key of its weights, the number of tensors, and what is unused.
fn inspected(
    name: &str,
    key: Option<&str>,
    options: &[&str],
    model: Option<&str>,
    tensors: usize,
    unused: &[&str],
) {
    let file = file(name);
    let json = tpgm(["inspect", &file, "--json"].iter().chain(options)).json();
    assert_eq!(json["model"].as_str(), model, "{name}");
    assert_eq!(json["tensors"].as_array().unwrap().len(), tensors, "{name}");
    assert_eq!(json["unused"], serde_json::json!(unused), "{name}");
    assert_eq!(json["keys"][0]["key"].as_str(), key, "{name}");
}

const BERT: Option<&str> = Some("BERT or RoBERTa (Hugging Face)");
const VIT: Option<&str> = Some("ViT or DINOv2 (timm)");

#[test]
fn models_are_told_by_their_names() {
    inspected("text/bert", None, &[], BERT, 21, &[]);
    inspected("text/roberta", None, &[], BERT, 21, &[]);
    inspected("text/xlmr", None, &[], BERT, 21, &[]);
    let old = [
        "bert.embeddings.LayerNorm.beta",
        "bert.embeddings.LayerNorm.gamma",
        "bert.encoder.layer.0.attention.output.LayerNorm.beta",
        "bert.encoder.layer.0.attention.output.LayerNorm.gamma",
        "bert.encoder.layer.0.output.LayerNorm.beta",
        "bert.encoder.layer.0.output.LayerNorm.gamma",
        "cls.predictions.bias",
    ];
    inspected("text/bert_gamma/model.safetensors", None, &[], BERT, 22, &old);
    let new = ["--rename", "*.gamma=*.weight", "--rename", "*.beta=*.bias"];
    inspected("text/bert_gamma/model.safetensors", None, &new, BERT, 22, &["cls.predictions.bias"]);
    let text = tpgm(["inspect", &file("text/bert_gamma/model.safetensors")]);
    assert!(text.text().contains("--rename '*.gamma=*.weight'"), "{text:?}");
    inspected("image/vit", None, &[], VIT, 30, &[]);
    inspected("image/vit_qk_norm", None, &[], VIT, 38, &[]);
    inspected("image/dinov2_gamma1", None, &[], VIT, 35, &["mask_token"]);
    inspected("image/dinov2_gamma1e-5", None, &[], VIT, 35, &["mask_token"]);
    inspected("lora/modules_to_save", None, &[], Some("LoRA adapter (PEFT)"), 4, &[]);
    inspected("lora/bin_only", None, &[], Some("LoRA adapter (PEFT)"), 2, &[]);
    inspected("merge/base_untied.safetensors", None, &[], None, 3, &[]);
}

#[test]
fn weights_are_found_wherever_a_run_put_them() {
    for (name, key, tensors, model) in [
        ("load/vit_best_acc1.pth.tar", Some("state_dict"), 30, VIT),
        ("load/vit_epoch.pth.tar", Some("state_dict"), 30, VIT),
        ("load/vit_ema.pth", Some("model"), 30, VIT),
        ("load/best_acc1.pth.tar", Some("state_dict"), 2, None),
        ("load/no_metric.pth.tar", Some("state_dict"), 2, None),
        ("load/epoch_tensor.pth", Some("model"), 2, None),
        ("load/timm_with_ema.pth.tar", Some("state_dict"), 2, None),
        ("load/under_state_dict_ema.pth", Some("state_dict_ema"), 2, None),
        ("load/two_deep.pth", Some("state.model"), 2, None),
        ("load/pth_named.safetensors", None, 2, None),
        ("load/st_named.bin", None, 2, None),
    ] {
        inspected(name, key, &[], model, tensors, &[]);
    }
    inspected("load/vit_ema.pth", Some("model_ema"), &["--key", "model_ema"], VIT, 30, &[]);
    let text = tpgm(["inspect", &file("load/vit_ema.pth")]);
    assert!(text.text().contains("weights: under `model`; --key takes those under `model_ema`"), "{text:?}");
    let text = tpgm(["inspect", &file("load/vit_epoch.pth.tar")]);
    assert!(text.text().contains("`tpgm convert --rename 'module.*=*'` takes it off"), "{text:?}");
    let none = tpgm(["inspect", &file("load/vit_ema.pth"), "--key", "nope"]);
    assert!(none.fails(2).contains("`nope`") && none.err.contains("`model_ema` (30)"), "{none:?}");
    let vain = tpgm(["inspect", &file("image/vit"), "--key", "model"]);
    assert!(vain.fails(2).contains("have no keys"), "{vain:?}");

    // The same weights, whichever way they were saved.
    let folder = Folder::new();
    let (plain, out) = (file("image/vit"), folder.text("out"));
    for run in ["load/vit_best_acc1.pth.tar", "load/vit_epoch.pth.tar"] {
        let run = file(run);
        tpgm(["convert", &run, "--rename", "module.*=*", "--out", &out]).text();
        let same = tpgm(["distances", "--anchor", &plain, &out, "--json"]).json();
        assert_eq!(same["models"][0]["l2"], 0.0);
        assert_eq!(same["models"][0]["tensors"].as_array().unwrap().len(), 30);
        let same = tpgm(["distances", "--anchor", &plain, &run, "--rename", "module.*=*", "--json"]).json();
        assert_eq!(same["models"][0]["l2"], 0.0);
    }
}

#[test]
fn what_the_models_would_refuse_is_told() {
    for (name, parts) in [
        ("text/mpnet", &["refused: `config.json` says `mpnet`", "`roberta`"][..]),
        ("text/distilbert", &["refused: `config.json` says `distilbert`"]),
        ("merge/int8_base.safetensors", &["refused: it is quantized: `l.weight`"]),
    ] {
        let run = tpgm(["inspect", &file(name)]);
        assert!(parts.iter().all(|part| run.text().contains(part)), "{name}: {run:?}");
    }
    for name in ["text/bert", "text/roberta", "text/xlmr", "image/vit"] {
        let run = tpgm(["inspect", &file(name)]);
        assert!(!run.text().contains("refused"), "{name}: {run:?}");
    }
    for (name, part) in [
        ("load/lfs.bin", "git lfs pull"),
        ("load/lfs.safetensors", "git lfs pull"),
        ("image/open_clip_config.json", "is it a configuration?"),
    ] {
        let run = tpgm(["inspect", &file(name)]);
        assert!(run.fails(3).contains(part), "{name}: {run:?}");
    }
}

#[test]
fn merges_are_right_or_refused() {
    let folder = Folder::new();
    let out = folder.text("out");
    let merge = |method: &str, anchor: Option<&str>, models: &[&str]| {
        let mut args = vec!["merge".to_owned(), method.to_owned(), "--out".to_owned(), out.clone()];
        args.extend(anchor.iter().flat_map(|anchor| ["--anchor".to_owned(), file(anchor)]));
        args.extend(models.iter().map(|model| file(model)));
        tpgm(args)
    };
    let [base, tied, untied] = ["merge/base_tied.safetensors"; 3];
    let untied = untied.replace("tied", "untied");
    let nan = "merge/tuned_nan.safetensors";
    let int8 = "merge/int8_tuned.safetensors";
    for (run, parts) in [
        (merge("wise", Some("merge/int8_base.safetensors"), &[int8]), &["is quantized", "int8_base"][..]),
        (merge("soup", None, &[int8, "merge/int8_base.safetensors"]), &["is quantized", "int8_tuned"]),
        (merge("soup", None, &[tied, &untied]), &["base_tied", "no tensor `lm_head.weight`", "--drop"]),
        (merge("soup", None, &[&untied, tied]), &["base_tied", "no tensor `lm_head.weight`", "--copy"]),
        (merge("wise", Some(base), &[nan]), &["`model.q.weight`", "tuned_nan", "not finite"]),
        (merge("soup", None, &[base, nan]), &["`model.q.weight`", "tuned_nan", "not finite"]),
    ] {
        let error = run.fails(4);
        assert!(parts.iter().all(|part| error.contains(part)), "{parts:?}: {error}");
        assert!(!folder.path("out").exists());
    }
    // Other types and formats: the anchor's type, and halfway to values that are read alike.
    let anchor = candle_core::safetensors::load(file(base), &Device::Cpu).unwrap();
    for model in ["merge/tuned_bf16.safetensors", "merge/pytorch_model.bin"] {
        merge("wise", Some(base), &[model]).text();
        let merged = folder.load("out");
        // A PyTorch file carries no text, and transformers reads no file without this one.
        assert_eq!(folder.metadata("out")["format"], "pt", "{model}");
        let tuned = folder.text("tuned");
        tpgm(["convert", &file(model), "--dtype", "f32", "--out", &tuned]).text();
        let tuned = folder.load("tuned");
        for (name, anchor) in &anchor {
            assert_eq!(merged[name].dtype(), DType::F32);
            let halfway: Tensor = ((anchor + &tuned[name]).unwrap() / 2.0).unwrap();
            for (got, expected) in numbers(&merged[name]).iter().zip(numbers(&halfway)) {
                assert!((got - expected).abs() < 1e-6, "{model} {name}: {got} {expected}");
            }
        }
    }
}

#[test]
fn distances_want_the_same_names() {
    let [plain, prefixed] = ["merge/bert_plain.safetensors", "merge/bert_prefixed.safetensors"].map(file);
    let apart = tpgm(["distances", "--anchor", &plain, &prefixed]);
    assert!(apart.fails(4).contains("nothing to compare") && apart.err.contains("--rename"), "{apart:?}");
    let rename = ["distances", "--anchor", &plain, &prefixed, "--rename", "bert.*=*", "--json"];
    let json = tpgm(rename).json();
    let tensor = &json["models"][0]["tensors"][0];
    // Each of 16 values differs by 0.1.
    assert_eq!(tensor["name"], "encoder.w");
    assert!((tensor["l2"].as_f64().unwrap() - 0.4).abs() < 1e-6, "{tensor}");
    // BERT under the old names of its norms is BERT.
    let args =
        ["--rename", "bert.*=*", "--rename", "*.gamma=*.weight", "--rename", "*.beta=*.bias", "--json"];
    let [anchor, gamma] = ["text/bert", "text/bert_gamma/model.safetensors"].map(file);
    let json = tpgm(["distances", "--anchor", &anchor, &gamma].iter().copied().chain(args)).json();
    assert_eq!(
        (&json["models"][0]["l2"], json["models"][0]["tensors"].as_array().unwrap().len()),
        (&0.0.into(), 21)
    );
    // Gammas of LayerScale differ, and nothing else.
    let [one, small] = ["image/dinov2_gamma1", "image/dinov2_gamma1e-5"].map(file);
    let json = tpgm(["distances", "--anchor", &one, &small, "--json"]).json();
    let moved = json["models"][0]["tensors"].as_array().unwrap().iter().filter(|it| it["l2"] != 0.0);
    let names: Vec<_> = moved.map(|it| it["name"].as_str().unwrap().to_owned()).collect();
    assert!(names.len() == 4 && names.iter().all(|name| name.ends_with(".gamma")), "{names:?}");
}
