//! Merging and measuring files as people have them.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::Dtype;
use tpgm_candle::core;
use tpgm_candle::core::FixedRadius;
use tpgm_candle::weight_space::{
    DistanceOptions, LeftOut, MergeError as Error, MergePlan, MergeReport, Rename, Why, distances,
    distances_with, merge_files,
};

use crate::weight_space_files::Folder;

/// A file of `tests/real_files`; without an ending, a safetensors file.
fn real(name: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/real_files").join(name);
    if path.exists() { path } else { path.with_extension("safetensors") }
}

fn load(path: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f64> {
    tensor.to_dtype(DType::F64).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn rules(rules: &[&str]) -> Vec<Rename> {
    rules.iter().map(|rule| rule.parse().unwrap()).collect()
}

fn with_rules(plan: MergePlan, text: &[&str]) -> MergePlan {
    rules(text).into_iter().fold(plan, MergePlan::rename)
}

impl Folder {
    /// A sharded checkpoint: a folder with an index and a shard for each tensor.
    fn shards(&self, name: &str, tensors: &[(&str, Dtype, &[usize], &[u8])]) -> PathBuf {
        fs::create_dir(self.path(name)).unwrap();
        let mut map = serde_json::Map::new();
        for (i, tensor) in tensors.iter().enumerate() {
            self.save(&format!("{name}/{i}.safetensors"), &[*tensor]);
            map.insert(tensor.0.to_owned(), format!("{i}.safetensors").into());
        }
        let index = self.path(name).join("model.safetensors.index.json");
        fs::write(&index, serde_json::json!({ "weight_map": map }).to_string()).unwrap();
        self.path(name)
    }

    fn merge(&self, plan: &MergePlan, anchor: Option<&Path>, models: &[&Path]) -> Result<MergeReport, Error> {
        merge_files(plan, anchor, models, self.path("out"))
    }

    fn out(&self) -> HashMap<String, Tensor> {
        load(&self.path("out"))
    }
}

fn f32s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn f16s(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| core::element::f16::from_f32(*x).to_le_bytes()).collect()
}

#[test]
fn values_that_are_not_finite_are_refused_by_every_method_with_file_and_tensor() {
    let folder = Folder::new();
    let (good, bad) = (real("merge/base_tied"), real("merge/tuned_nan"));
    let soup = MergePlan::uniform_soup();
    let project = MergePlan::project(FixedRadius { radius: 1.0, ..FixedRadius::default() });
    for (plan, anchor, models) in [
        (MergePlan::wise(0.5), Some(&good), vec![&bad]),
        (MergePlan::wise(0.5), Some(&bad), vec![&good]),
        // Either end is one of the models, and the other one is still looked at.
        (MergePlan::wise(0.0), Some(&good), vec![&bad]),
        (MergePlan::wise(1.0), Some(&bad), vec![&good]),
        (soup.clone(), None, vec![&bad]),
        (soup.clone(), None, vec![&good, &bad]),
        (soup, None, vec![&bad, &good]),
        (project.clone(), Some(&good), vec![&bad]),
        (project, Some(&bad), vec![&good]),
        (MergePlan::model_stock(), Some(&good), vec![&good, &bad]),
        (MergePlan::model_stock(), Some(&bad), vec![&good, &good]),
    ] {
        let models: Vec<&Path> = models.into_iter().map(PathBuf::as_path).collect();
        let error = folder.merge(&plan, anchor.map(PathBuf::as_path), &models).unwrap_err();
        let Error::NonFinite { tensor, model, count } = &error else { panic!("{error}") };
        assert_eq!((tensor.as_str(), *count), ("model.q.weight", 1), "{error}");
        assert_eq!(*model, bad.display().to_string());
        assert!(!folder.path("out").exists());
    }
    // What is copied is not looked at.
    folder.merge(&MergePlan::wise(0.5).copy("model.q.*"), Some(&good), &[&bad]).unwrap();
    assert!(numbers(&folder.out()["model.q.weight"])[6].is_nan());

    // Halves, infinity, and shards.
    let (one, infinite) = (f16s(&[1.0, 2.0]), f16s(&[1.0, f32::NEG_INFINITY]));
    let good = folder.save("good", &[("w", Dtype::F16, &[2], &one), ("v", Dtype::F16, &[2], &one)]);
    let bad = folder.shards("bad", &[("w", Dtype::F16, &[2], &one), ("v", Dtype::F16, &[2], &infinite)]);
    for (anchor, model) in [(&good, &bad), (&bad, &good)] {
        let error = folder.merge(&MergePlan::wise(0.5), Some(anchor), &[model]).unwrap_err();
        assert!(
            matches!(&error, Error::NonFinite { tensor, model, .. } if tensor == "v" && model.contains("bad")),
            "{error}"
        );
    }
}

#[test]
fn names_are_compared_in_both_directions_in_any_order() {
    let folder = Folder::new();
    let (tied, untied) = (real("merge/base_tied"), real("merge/base_untied"));
    let soup = MergePlan::uniform_soup();
    for models in [vec![&tied, &untied], vec![&untied, &tied], vec![&tied, &tied, &untied]] {
        let models: Vec<&Path> = models.into_iter().map(PathBuf::as_path).collect();
        let error = folder.merge(&soup, None, &models).unwrap_err();
        let Error::MissingTensor { tensor, model, other } = &error else { panic!("{error}") };
        assert_eq!(tensor, "lm_head.weight");
        assert!(model.contains("base_tied") && other.contains("base_untied"), "{error}");
    }
    for (plan, anchor, models) in [
        (MergePlan::wise(0.5), &tied, vec![untied.as_path()]),
        (MergePlan::wise(0.5), &untied, vec![tied.as_path()]),
        (MergePlan::model_stock(), &untied, vec![tied.as_path(), tied.as_path()]),
        (MergePlan::model_stock(), &tied, vec![tied.as_path(), untied.as_path()]),
    ] {
        let error = folder.merge(&plan, Some(anchor), &models).unwrap_err();
        assert!(matches!(&error, Error::MissingTensor { .. }), "{error}");
    }
    // Said by name, both ways are open, and the report has it.
    let report = folder.merge(&soup.clone().drop("lm_head.*"), None, &[&tied, &untied]).unwrap();
    assert_eq!(report.merged.len(), 2);
    let model = untied.display().to_string();
    let head = LeftOut { name: "lm_head.weight".to_owned(), model, why: Why::Asked };
    assert_eq!(report.left_out, std::slice::from_ref(&head));
    let report = folder.merge(&soup.clone().drop("lm_head.*"), None, &[&untied, &tied]).unwrap();
    assert_eq!((report.left_out, folder.out().len()), (vec![head], 2));
    let report = folder.merge(&soup.copy("lm_head.*"), None, &[&untied, &tied]).unwrap();
    assert_eq!((report.copied.as_slice(), folder.out().len()), (&["lm_head.weight".to_owned()][..], 3));
    let text = report.to_string();
    assert!(text.contains("copied from the first model, not merged: 1 tensor: lm_head.weight"), "{text}");
    let error = folder.merge(&MergePlan::uniform_soup().drop("haed.*"), None, &[&tied]).unwrap_err();
    assert!(error.to_string().contains("`haed.*`"), "{error}");
}

#[test]
fn quantized_checkpoints_are_refused_by_name() {
    let folder = Folder::new();
    let (base, tuned) = (real("merge/int8_base"), real("merge/int8_tuned"));
    let named = |error: Error| {
        let Error::Quantized { tensor, model, .. } = &error else { panic!("{error}") };
        assert!(tensor.starts_with("l."), "{error}");
        model.clone()
    };
    assert!(
        named(folder.merge(&MergePlan::wise(0.5), Some(&base), &[&tuned]).unwrap_err()).contains("tuned")
    );
    named(folder.merge(&MergePlan::uniform_soup(), None, &[&base, &tuned]).unwrap_err());
    named(folder.merge(&MergePlan::uniform_soup(), None, &[&tuned]).unwrap_err());
    named(distances(&base, &tuned).unwrap_err());
    // The matrix alone is not enough to ask for: the scales would still be merged.
    named(folder.merge(&MergePlan::wise(0.5).copy("l.weight"), Some(&base), &[&tuned]).unwrap_err());
    // All of the layer is.
    let plan = MergePlan::wise(0.5).copy("l.weight").copy("l.SCB");
    let report = folder.merge(&plan, Some(&base), &[&tuned]).unwrap();
    assert_eq!(report.copied, ["l.weight", "l.SCB"], "in the order of the file");
    let scales = numbers(&load_scales(&folder.path("out")));
    assert_eq!(scales, numbers(&load_scales(&tuned)));

    // A float model beside a quantized one, in either order.
    let whole = f32s(&[1.0, -0.5, 0.25, 1.0]);
    let zeros = f32s(&[0.0; 2]);
    let float = folder
        .save("float", &[("l.weight", Dtype::F32, &[2, 2], &whole), ("l.bias", Dtype::F32, &[2], &zeros)]);
    for (anchor, model) in [(&float, &tuned), (&tuned, &float)] {
        assert!(
            named(folder.merge(&MergePlan::wise(0.5), Some(anchor), &[model]).unwrap_err()).contains("int8")
        );
        named(distances(anchor, model).unwrap_err());
    }
}

/// candle has no int8, so the file is read tensor by tensor.
fn load_scales(path: &Path) -> Tensor {
    let bytes = fs::read(path).unwrap();
    let view = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let view = view.tensor("l.SCB").unwrap();
    Tensor::from_raw_buffer(view.data(), DType::F32, view.shape(), &Device::Cpu).unwrap()
}

#[test]
fn quantization_shows_in_many_ways() {
    let folder = Folder::new();
    let (one, ints) = (f32s(&[1.0]), [1u8, 2, 3, 4]);
    let float: (&str, Dtype, &[usize], &[u8]) = ("m.bias", Dtype::F32, &[1], &one);
    for (name, dtype, shape, bytes) in [
        ("m.weight.absmax", Dtype::F32, &[1][..], &one[..]),
        ("m.weight.quant_map", Dtype::F32, &[1], &one),
        ("m.weight.quant_state.bitsandbytes__nf4", Dtype::U8, &[4], &ints),
        ("m.weight_format", Dtype::U8, &[], &ints[..1]),
        ("m.qweight", Dtype::I32, &[1, 1], &ints),
        ("m.qzeros", Dtype::I32, &[1, 1], &ints),
        ("m.weight", Dtype::U8, &[4, 1], &ints),
        ("m.weight", Dtype::I8, &[2, 2], &ints),
        ("m.weight", Dtype::U32, &[1, 1], &ints),
        ("m.weight", Dtype::F8_E4M3, &[2, 2], &ints),
        ("m.in_proj_weight", Dtype::I8, &[2, 2], &ints),
        ("m.weight_packed", Dtype::I32, &[1, 1], &ints),
        ("m.weight_scale_inv", Dtype::F32, &[1], &one),
    ] {
        let file = folder.shards("quantized", &[float, (name, dtype, shape, bytes)]);
        let error = folder.merge(&MergePlan::uniform_soup(), None, &[&file, &file]).unwrap_err();
        assert!(matches!(&error, Error::Quantized { tensor, .. } if tensor == name), "{name}: {error}");
        let error = distances(&file, &file).unwrap_err();
        assert!(matches!(&error, Error::Quantized { tensor, .. } if tensor == name), "{name}: {error}");
        fs::remove_dir_all(file).unwrap();
    }
    // A scale that nothing of 8 bits is beside is a weight like any other; beside one it is not.
    let scale: (&str, Dtype, &[usize], &[u8]) = ("m.scales", Dtype::F32, &[1], &one);
    let file = folder.save("plain", &[float, scale]);
    assert_eq!(folder.merge(&MergePlan::uniform_soup(), None, &[&file]).unwrap().merged.len(), 2);
    let file = folder.save("blocks", &[float, scale, ("m.blocks", Dtype::U8, &[2, 2], &ints)]);
    let error = folder.merge(&MergePlan::uniform_soup(), None, &[&file]).unwrap_err();
    assert!(matches!(&error, Error::Quantized { tensor, .. } if tensor == "m.scales"), "{error}");
}

#[test]
fn integer_matrices_are_copied_when_they_agree_or_when_asked() {
    let folder = Folder::new();
    let one = f32s(&[1.0]);
    let file = |name: &str, positions: &[u8], mask: &[u8]| {
        folder.save(
            name,
            &[
                ("w", Dtype::F32, &[1], &one),
                ("count", Dtype::I64, &[], &[name.len() as u8; 8]),
                ("position_ids", Dtype::I64, &[1, 2], positions),
                ("mask", Dtype::BOOL, &[1, 1, 2, 2], mask),
            ],
        )
    };
    let (a, same) = (file("a", &[1; 16], &[1, 0, 1, 1]), file("same", &[2; 16], &[1, 0, 1, 1]));
    let other = file("other", &[1; 16], &[1, 1, 1, 1]);
    let soup = MergePlan::uniform_soup();
    let report = folder.merge(&soup, None, &[&a, &same]).unwrap();
    let mut copied = report.copied.clone();
    copied.sort();
    assert_eq!(copied, ["count", "mask", "position_ids"], "counters and positions may differ, as ever");
    let found = distances(&a, &same).unwrap();
    assert_eq!(found.left_out.iter().filter(|left| left.why == Why::Integer).count(), 3);
    for models in [[&a, &other], [&other, &a]] {
        let error = folder.merge(&soup, None, &[models[0], models[1]]).unwrap_err();
        assert!(
            matches!(&error, Error::IntegerMatrix { tensor, problem, .. }
                if tensor == "mask" && problem.contains("other values")),
            "{error}"
        );
        let error = distances(models[0], models[1]).unwrap_err();
        assert!(matches!(&error, Error::IntegerMatrix { .. }), "{error}");
    }
    folder.merge(&soup.clone().copy("mask"), None, &[&other, &a]).unwrap();
    let bytes = fs::read(folder.path("out")).unwrap();
    let merged = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(merged.tensor("mask").unwrap().data(), [1; 4]);
    let options = DistanceOptions { leave_out: vec!["mask".to_owned()], ..DistanceOptions::default() };
    assert_eq!(distances_with(&a, &other, &options, |_| ()).unwrap().tensors.len(), 1);
    // One that only some models have is an error in any order; a row of positions is not.
    let bare = folder.save("bare", &[("w", Dtype::F32, &[1], &one), ("mask", Dtype::BOOL, &[2, 2], &[1; 4])]);
    let plan = soup.clone().copy("mask");
    let report = folder.merge(&plan, None, &[&bare, &a]).unwrap();
    assert_eq!(report.left_out.iter().filter(|left| left.why == Why::Integer).count(), 2);
    folder.merge(&plan, None, &[&a, &bare]).unwrap();
    let bare = folder.save("bare", &[("w", Dtype::F32, &[1], &one)]);
    for models in [[&a, &bare], [&bare, &a]] {
        let error = folder.merge(&soup, None, &[models[0], models[1]]).unwrap_err().to_string();
        assert!(error.contains("`mask`"), "{error}");
    }
}

#[test]
fn files_without_a_common_name_have_no_distance_and_what_is_left_out_is_counted() {
    let (prefixed, plain) = (real("merge/bert_prefixed"), real("merge/bert_plain"));
    for (from, to) in [(&prefixed, &plain), (&plain, &prefixed)] {
        let error = distances(from, to).unwrap_err();
        assert!(matches!(&error, Error::NothingInCommon { .. }), "{error}");
        let text = error.to_string();
        assert!(text.contains("bert.e") && text.contains("`encoder.w`") && text.contains("rename"), "{text}");
    }
    let options = DistanceOptions { rename: rules(&["bert.*=*"]), ..DistanceOptions::default() };
    for (from, to) in [(&prefixed, &plain), (&plain, &prefixed)] {
        let found = distances_with(from, to, &options, |_| ()).unwrap();
        // Every one of 16 elements is 0.1 away.
        assert_eq!(found.tensors.len(), 1);
        assert!((found.l2() - 0.4).abs() < 1e-6, "{}", found.l2());
        let model = prefixed.display().to_string();
        let name = "embeddings.position_ids".to_owned();
        assert_eq!(found.left_out, [LeftOut { name, model, why: Why::Alone }]);
        let text = found.to_string();
        assert!(text.starts_with("measured: 1 tensor\nnot measured: 1 tensor that only "), "{text}");
        assert!(text.ends_with("bert_prefixed.safetensors has: embeddings.position_ids"), "{text}");
    }
    let empty = tpgm_candle::weight_space::Distances::default();
    assert!(empty.l2().is_sign_positive());
    let (tied, untied) = (real("merge/base_tied"), real("merge/base_untied"));
    for (from, to) in [(&tied, &untied), (&untied, &tied)] {
        let found = distances(from, to).unwrap();
        assert_eq!((found.tensors.len(), found.left_out[0].name.as_str()), (2, "lm_head.weight"));
    }
}

#[test]
fn element_types_may_differ_and_the_result_has_the_anchors_or_the_one_asked_for() {
    let folder = Folder::new();
    let (base, half) = (real("merge/base_tied"), real("merge/tuned_bf16"));
    let expected: Vec<f64> = numbers(&load(&base)["model.q.weight"])
        .into_iter()
        .zip(numbers(&load(&half)["model.q.weight"]))
        .map(|(a, b)| 0.75 * a + 0.25 * b)
        .collect();
    let close = |eps: f64| {
        let got = numbers(&folder.out()["model.q.weight"]);
        assert!(got.iter().zip(&expected).all(|(a, b)| (a - b).abs() < eps), "{got:?} {expected:?}");
    };
    let dtype = || folder.out()["model.q.weight"].dtype();
    folder.merge(&MergePlan::wise(0.25), Some(&base), &[&half]).unwrap();
    close(1e-6);
    assert_eq!(dtype(), DType::F32);
    folder.merge(&MergePlan::wise(0.75), Some(&half), &[&base]).unwrap();
    close(4e-3);
    assert_eq!(dtype(), DType::BF16);
    folder.merge(&MergePlan::wise(0.25).dtype(core::DType::F64), Some(&base), &[&half]).unwrap();
    close(1e-6);
    assert_eq!(dtype(), DType::F64);
    folder.merge(&MergePlan::wise(0.25).dtype(core::DType::F16), Some(&base), &[&half]).unwrap();
    close(1e-3);
    assert_eq!(dtype(), DType::F16);
    // Without an anchor: the first model's.
    for (models, dtype) in [([&half, &base], DType::BF16), ([&base, &half], DType::F32)] {
        folder.merge(&MergePlan::uniform_soup(), None, &[models[0], models[1]]).unwrap();
        assert_eq!(folder.out()["model.q.weight"].dtype(), dtype);
    }
    // Every method, mixed.
    folder.merge(&MergePlan::model_stock(), Some(&base), &[&half, &base]).unwrap();
    assert_eq!(dtype(), DType::F32);
    let project = MergePlan::project(FixedRadius { radius: 0.01, ..FixedRadius::default() });
    folder.merge(&project, Some(&base), &[&half]).unwrap();
    assert_eq!(dtype(), DType::F32);

    // A value beyond the type that was asked for is an error, not an infinity.
    let big = f32s(&[1e5]);
    let big = folder.save("big", &[("w", Dtype::F32, &[1], &big)]);
    let error = folder.merge(&MergePlan::uniform_soup().dtype(core::DType::F16), None, &[&big]).unwrap_err();
    assert!(matches!(&error, Error::Overflow { tensor, count: 1, .. } if tensor == "w"), "{error}");
    // f64 is summed in f64, whichever model is first.
    let (tiny, one) = ((1.0f64 + 1e-12).to_le_bytes(), 1.0f32.to_le_bytes());
    let wide = folder.save("wide", &[("w", Dtype::F64, &[1], &tiny)]);
    let narrow = folder.save("narrow", &[("w", Dtype::F32, &[1], &one)]);
    let plan = MergePlan::uniform_soup().dtype(core::DType::F64);
    folder.merge(&plan, None, &[&narrow, &wide]).unwrap();
    assert!((numbers(&folder.out()["w"])[0] - (1.0 + 5e-13)).abs() < 1e-15);
}

#[test]
fn pytorch_files_are_merged_and_measured() {
    let folder = Folder::new();
    let (base, bin) = (real("merge/base_tied"), real("merge/pytorch_model.bin"));
    let pth = folder.path("renamed.pth");
    fs::copy(&bin, &pth).unwrap();
    for (anchor, model) in [(&base, &bin), (&bin, &base), (&base, &pth)] {
        let report = folder.merge(&MergePlan::wise(0.5), Some(anchor), &[model]).unwrap();
        assert_eq!((report.merged.len(), folder.out().len()), (2, 2));
        let found = distances(anchor, model).unwrap();
        assert_eq!(found.tensors.len(), 2);
    }
    // The file is the anchor plus 0.1.
    let q = |path: &Path| distances(&base, path).unwrap().tensors[1].clone();
    assert!((q(&bin).l2 - 0.4).abs() < 1e-6, "{:?}", q(&bin));
    assert!((q(&folder.path("out")).l2 - 0.2).abs() < 1e-6);
}

#[test]
fn models_under_other_names_are_renamed() {
    let folder = Folder::new();
    let (plain, old) = (real("text/bert"), real("text/bert_gamma"));
    let names = ["bert.*=*", "*.gamma=*.weight", "*.beta=*.bias"];
    let options = DistanceOptions { rename: rules(&names), ..DistanceOptions::default() };
    for (from, to) in [(&plain, &old), (&old, &plain)] {
        assert!(matches!(distances(from, to), Err(Error::NothingInCommon { .. })));
        let found = distances_with(from, to, &options, |_| ()).unwrap();
        assert_eq!((found.tensors.len(), found.l2()), (21, 0.0));
        assert_eq!(found.left_out.len(), 1);
        assert_eq!(found.left_out[0].name, "cls.predictions.bias");
        let error = folder.merge(&MergePlan::wise(0.5), Some(from), &[to]).unwrap_err();
        assert!(matches!(&error, Error::MissingTensor { .. }), "{error}");
        let plan = with_rules(MergePlan::wise(0.5), &names);
        let error = folder.merge(&plan, Some(from), &[to]).unwrap_err();
        assert!(
            matches!(&error, Error::MissingTensor { tensor, .. } if tensor.starts_with("cls.")),
            "{error}"
        );
        folder.merge(&plan.drop("cls.*"), Some(from), &[to]).unwrap();
        let (merged, expected) = (folder.out(), load(&plain.join("model.safetensors")));
        assert_eq!(merged.len(), expected.len());
        for (name, tensor) in expected {
            assert_eq!(numbers(&merged[&name]), numbers(&tensor), "{name}");
        }
    }
    let (prefixed, plain) = (real("merge/bert_prefixed"), real("merge/bert_plain"));
    for (from, to) in [(&prefixed, &plain), (&plain, &prefixed)] {
        folder.merge(&with_rules(MergePlan::wise(0.5), &["bert.*=*"]), Some(from), &[to]).unwrap();
        let w = numbers(&folder.out()["encoder.w"]);
        assert!((w[0] - 0.399_838_34).abs() < 1e-6, "{}", w[0]);
    }
    // A rule that matches nothing, and one that makes two tensors one.
    let error =
        folder.merge(&with_rules(MergePlan::wise(0.5), &["brt.*=*"]), Some(&plain), &[&plain]).unwrap_err();
    assert!(error.to_string().contains("brt.*=*"), "{error}");
    let one = f32s(&[1.0]);
    let two = folder.save("two", &[("a.w", Dtype::F32, &[1], &one), ("w", Dtype::F32, &[1], &one)]);
    let error = folder.merge(&with_rules(MergePlan::uniform_soup(), &["a.*=*"]), None, &[&two]).unwrap_err();
    assert!(error.to_string().contains("it is to be called `w`, and so is"), "{error}");
    let text = serde_json::to_string(&with_rules(MergePlan::wise(0.5), &names)).unwrap();
    assert_eq!(serde_json::from_str::<MergePlan>(&text).unwrap().rename, rules(&names));
}
