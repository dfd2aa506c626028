//! Merging checkpoint files, against brute force on the numbers.
#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use safetensors::tensor::{Dtype, TensorView};
use tpgm_candle::core::weight_space::WiseFt;
use tpgm_candle::core::{FixedRadius, Norm};
use tpgm_candle::weight_space::{
    DistanceOptions, FilePass, MergeMethod, MergePlan, distances, distances_with, merge_files,
    merge_files_with,
};
use tpgm_candle::{files, weight_space};

/// Numbers without a pattern, in `[-1, 1)`.
fn noise(seed: u64, len: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / (1u64 << 23) as f32) - 1.0
        })
        .collect()
}

const SHAPE: [usize; 2] = [5, 4000];

/// A folder that is deleted with this.
pub(crate) struct Folder(tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A model: an f32 matrix larger than the blocks that are worked on, a bf16 vector, a counter, a scalar.
    fn model(&self, name: &str, seed: u64) -> PathBuf {
        let matrix: Vec<u8> = noise(seed, 20_000).iter().flat_map(|x| x.to_le_bytes()).collect();
        let half: Vec<u8> = noise(seed + 100, 3).iter().flat_map(|x| half(*x).to_le_bytes()).collect();
        let counter = (seed as i64).to_le_bytes();
        let scalar = noise(seed + 200, 1)[0].to_le_bytes();
        self.save(
            name,
            &[
                ("layer.weight", Dtype::F32, &SHAPE, &matrix),
                ("layer.half", Dtype::BF16, &[3], &half),
                ("count", Dtype::I64, &[], &counter),
                ("scale", Dtype::F32, &[], &scalar),
            ],
        )
    }

    pub(crate) fn save(&self, name: &str, tensors: &[(&str, Dtype, &[usize], &[u8])]) -> PathBuf {
        let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
            (*name, TensorView::new(*dtype, shape.to_vec(), bytes).unwrap())
        });
        let text = HashMap::from([("origin".to_owned(), name.to_owned()), ("a".to_owned(), "b".to_owned())]);
        let path = self.path(name);
        fs::write(&path, safetensors::serialize(views, Some(text)).unwrap()).unwrap();
        path
    }
}

/// bf16 by rounding to nearest, ties to even.
fn half(x: f32) -> u16 {
    let bits = x.to_bits();
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

fn load(path: &Path) -> HashMap<String, Tensor> {
    candle_core::safetensors::load(path, &Device::Cpu).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn close(got: &Tensor, expected: impl IntoIterator<Item = f64>, eps: f64) {
    let got = numbers(got);
    let expected: Vec<f64> = expected.into_iter().collect();
    assert_eq!(got.len(), expected.len());
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!((f64::from(*got) - expected).abs() <= eps, "[{i}]: {got} {expected}");
    }
}

fn pair(a: &Tensor, b: &Tensor) -> Vec<(f64, f64)> {
    numbers(a).into_iter().zip(numbers(b)).map(|(a, b)| (f64::from(a), f64::from(b))).collect()
}

#[test]
fn interpolation_follows_the_formula_and_keeps_the_rest_bit_for_bit() {
    let folder = Folder::new();
    let (anchor, tuned, out) = (folder.model("anchor", 1), folder.model("tuned", 2), folder.path("out"));
    let report = merge_files(&MergePlan::wise(0.25), Some(&anchor), &[&tuned], &out).unwrap();
    assert_eq!(report.copied, ["count"]);
    assert_eq!(report.merged.len(), 3);
    let (a, b, merged) = (load(&anchor), load(&tuned), load(&out));
    for name in ["layer.weight", "layer.half", "scale"] {
        let eps = if name == "layer.half" { 4e-3 } else { 1e-7 };
        close(&merged[name], pair(&a[name], &b[name]).into_iter().map(|(a, b)| 0.75 * a + 0.25 * b), eps);
        assert_eq!((merged[name].dtype(), merged[name].dims()), (b[name].dtype(), b[name].dims()));
    }
    assert_eq!(merged["count"].to_scalar::<i64>().unwrap(), 2, "the fine-tuned model's counter");

    // With the share 1 the file is the fine-tuned model's, but for the order of the metadata.
    merge_files(&MergePlan::wise(1.0), Some(&anchor), &[&tuned], &out).unwrap();
    let (bytes, original) = (fs::read(&out).unwrap(), fs::read(&tuned).unwrap());
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let (_, expected) = safetensors::SafeTensors::read_metadata(&original).unwrap();
    assert_eq!(header.metadata(), expected.metadata());
    assert_eq!(header.offset_keys(), expected.offset_keys());
    assert_eq!(bytes[bytes.len() - header.data_len()..], original[original.len() - expected.data_len()..]);
    // The same input gives the same bytes.
    merge_files(&MergePlan::wise(1.0), Some(&anchor), &[&tuned], folder.path("again")).unwrap();
    assert_eq!(bytes, fs::read(folder.path("again")).unwrap());
}

#[test]
fn fisher_information_weighs_the_models() {
    let folder = Folder::new();
    let f32s = |values: &[f32]| values.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    let save = |name: &str, w: &[f32], v: Option<&[f32]>| {
        let (w, v) = (f32s(w), v.map(f32s));
        let mut tensors: Vec<(&str, Dtype, &[usize], &[u8])> = vec![("w", Dtype::F32, &[2], &w)];
        if let Some(v) = &v {
            tensors.push(("v", Dtype::F32, &[1], v));
        }
        folder.save(name, &tensors)
    };
    let (anchor, tuned) = (save("a", &[1.0, 2.0], Some(&[0.0])), save("b", &[5.0, 2.0], Some(&[4.0])));
    let (f0, f1) = (save("f0", &[1.0, 2.0], None), save("f1", &[3.0, 2.0], None));
    let options = WiseFt { alpha: 0.25, ..WiseFt::default() };
    let plan = |fisher| MergePlan::new(MergeMethod::Wise { options, fisher });
    let out = folder.path("out");
    merge_files(&plan(Some([f0.clone(), f1])), Some(&anchor), &[&tuned], &out).unwrap();
    // (.75 * 1 * 1 + .25 * 3 * 5) / (.75 + .75) = 3; `v` counts as all ones: .25 * 4
    assert_eq!(numbers(&load(&out)["w"]), [3.0, 2.0]);
    assert_eq!(numbers(&load(&out)["v"]), [1.0]);
    let more = save("more", &[1.0, 1.0], Some(&[1.0]));
    let error = merge_files(&plan(Some([f0, more])), Some(&anchor), &[&tuned], &out).unwrap_err();
    assert!(
        matches!(&error, weight_space::MergeError::MissingTensor { tensor, .. } if tensor == "v"),
        "{error}"
    );
}

#[test]
fn soups_and_model_stock_follow_brute_force() {
    let folder = Folder::new();
    let anchor = folder.model("anchor", 1);
    let models = [2, 3, 4].map(|seed| folder.model(&format!("m{seed}"), seed));
    let out = folder.path("out");
    merge_files(&MergePlan::uniform_soup(), None, &models, &out).unwrap();
    let w0 = numbers(&load(&anchor)["layer.weight"]);
    let w = models.each_ref().map(|path| numbers(&load(path)["layer.weight"]));
    let mean: Vec<f64> =
        (0..w0.len()).map(|i| w.iter().map(|w| f64::from(w[i])).sum::<f64>() / 3.0).collect();
    close(&load(&out)["layer.weight"], mean.iter().copied(), 2e-7);

    let report = merge_files(&MergePlan::model_stock(), Some(&anchor), &models, &out).unwrap();
    let u = w.each_ref().map(|w| w.iter().zip(&w0).map(|(w, w0)| f64::from(w - w0)).collect::<Vec<_>>());
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let cos = |i: usize, j: usize| dot(&u[i], &u[j]) / (dot(&u[i], &u[i]) * dot(&u[j], &u[j])).sqrt();
    let c = (cos(0, 1) + cos(0, 2) + cos(1, 2)) / 3.0;
    let t = 3.0 * c / (1.0 + 2.0 * c);
    let weight = report.merged.iter().find(|merged| merged.name == "layer.weight").unwrap();
    assert!((weight.coefficients[0] - t).abs() < 1e-6, "{} {t}", weight.coefficients[0]);
    let expected = mean.iter().zip(&w0).map(|(mean, w0)| t * mean + (1.0 - t) * f64::from(*w0));
    close(&load(&out)["layer.weight"], expected, 1e-6);
}

#[test]
fn projection_keeps_rows_within_the_radius() {
    let folder = Folder::new();
    let (anchor, tuned, out) = (folder.model("anchor", 1), folder.model("tuned", 2), folder.path("out"));
    let (a, b) = (load(&anchor), load(&tuned));
    for norm in [Norm::Mars, Norm::L2] {
        // Between the norms of the rows, and below the norm of the matrix.
        let rows: Vec<f64> = pair(&a["layer.weight"], &b["layer.weight"])
            .chunks(SHAPE[1])
            .map(|row| row.iter().map(|(a, b)| (b - a).abs()).sum())
            .collect();
        let radius = match norm {
            Norm::Mars => (rows[0] + rows[1]) / 2.0,
            Norm::L2 => 30.0,
        };
        let plan = MergePlan::project(FixedRadius { radius, norm });
        let report = merge_files(&plan, Some(&anchor), &[&tuned], &out).unwrap();
        let merged = load(&out);
        for name in ["layer.weight", "scale", "layer.half"] {
            let all = pair(&a[name], &b[name]);
            let row_len = if name == "layer.weight" && norm == Norm::Mars { SHAPE[1] } else { all.len() };
            let mut ratios = Vec::new();
            let mut expected = Vec::new();
            for row in all.chunks(row_len) {
                let measured = match norm {
                    Norm::Mars => row.iter().map(|(a, b)| (b - a).abs()).sum::<f64>(),
                    Norm::L2 => row.iter().map(|(a, b)| (b - a).powi(2)).sum::<f64>().sqrt(),
                };
                let ratio = (radius / measured).min(1.0);
                ratios.push(ratio);
                expected.extend(row.iter().map(|(a, b)| a + ratio * (b - a)));
            }
            close(&merged[name], expected, 2e-7);
            let got = report.merged.iter().find(|merged| merged.name == name).unwrap();
            assert_eq!(got.coefficients.len(), ratios.len());
            for (got, expected) in got.coefficients.iter().zip(&ratios) {
                assert!((got - expected).abs() < 1e-9, "{name}: {got} {expected}");
            }
        }
        assert_eq!(numbers(&merged["scale"]), numbers(&b["scale"]), "within the radius: bit for bit");
    }
}

#[test]
fn distances_follow_brute_force() {
    let folder = Folder::new();
    let (anchor, tuned) = (folder.model("anchor", 1), folder.model("tuned", 2));
    let (a, b) = (load(&anchor), load(&tuned));
    let found = distances(&anchor, &tuned).unwrap();
    let distances = &found.tensors;
    assert_eq!(found.left_out.len(), 1);
    let names: Vec<_> = distances.iter().map(|distance| distance.name.as_str()).collect();
    assert_eq!(names.len(), 3, "no distance of counters: {names:?}");
    for distance in distances {
        let all = pair(&a[&distance.name], &b[&distance.name]);
        let row_len = if distance.shape.len() < 2 { all.len() } else { distance.shape[1] };
        let l2 = all.iter().map(|(a, b)| (b - a).powi(2)).sum::<f64>().sqrt();
        let base = all.iter().map(|(a, _)| a.powi(2)).sum::<f64>().sqrt();
        let rows = all.chunks(row_len).map(|row| row.iter().map(|(a, b)| (b - a).abs()).sum::<f64>());
        let rows: Vec<f64> = rows.collect();
        let mars = rows.iter().copied().fold(0.0, f64::max);
        let mean = rows.iter().sum::<f64>() / rows.len() as f64;
        let expected = [l2, l2 / base, mars, mean];
        let got = [distance.l2, distance.relative, distance.mars, distance.mars_mean];
        for (got, expected) in got.into_iter().zip(expected) {
            assert!((got - expected).abs() <= 1e-12 * expected, "{}: {got} {expected}", distance.name);
        }
    }
}

#[test]
fn a_pass_over_files_tells_how_far_it_is() {
    let folder = Folder::new();
    let (anchor, tuned, out) = (folder.model("anchor", 1), folder.model("tuned", 2), folder.path("out"));
    let mut seen = Vec::new();
    let mut watch = |at: FilePass<'_>| seen.push((at.tensor.to_owned(), at.done, at.of));
    merge_files_with(&MergePlan::wise(0.5), Some(&anchor), &[&tuned], &out, &mut watch).unwrap();
    distances_with(&anchor, &tuned, &DistanceOptions::default(), &mut watch).unwrap();
    let (merge, distance) = seen.split_at(4);
    assert_eq!(merge, distance);
    assert!(merge.iter().enumerate().all(|(i, (_, done, of))| (*done, *of) == (i, 4)), "{merge:?}");
    let mut names: Vec<&str> = merge.iter().map(|(name, ..)| name.as_str()).collect();
    names.sort_unstable();
    assert_eq!(names, ["count", "layer.half", "layer.weight", "scale"]);
}

#[test]
fn shards_are_read_as_one_model() {
    let folder = Folder::new();
    let one = 1f32.to_le_bytes();
    let three = 3f32.to_le_bytes();
    folder.save("s1", &[("a", Dtype::F32, &[1], &one), ("stray", Dtype::F32, &[1], &one)]);
    folder.save("s2", &[("b", Dtype::F32, &[1], &three)]);
    let index = folder.path("model.safetensors.index.json");
    fs::write(&index, r#"{"metadata": {}, "weight_map": {"a": "s1", "b": "s2"}}"#).unwrap();
    let out = folder.path("out");
    for input in [index.clone(), folder.0.path().to_owned()] {
        merge_files(&MergePlan::uniform_soup(), None, &[input], &out).unwrap();
        let merged = load(&out);
        assert_eq!(merged.len(), 2);
        assert_eq!((numbers(&merged["a"]), numbers(&merged["b"])), (vec![1.0], vec![3.0]));
    }
    for (text, problem) in [
        (r#"{"weight_map": {"a": "../s1"}}"#, "not a file of the index's folder"),
        (r#"{"weight_map": {"a": "s1", "c": "s2"}}"#, "tensor `c`: `"),
        ("[]", "it is JSON, not a checkpoint"),
    ] {
        fs::write(&index, text).unwrap();
        let error = merge_files(&MergePlan::uniform_soup(), None, &[&index], &out).unwrap_err();
        assert!(error.to_string().contains(problem), "{error}");
    }
}

#[test]
fn named_tensors_are_copied_and_may_be_missing_elsewhere() {
    let folder = Folder::new();
    let (one, head) = (1f32.to_le_bytes(), [7u8; 8]);
    let anchor = folder.save("anchor", &[("w", Dtype::F32, &[1], &one)]);
    let tuned =
        folder.save("tuned", &[("w", Dtype::F32, &[1], &one), ("head.weight", Dtype::F32, &[2], &head)]);
    let out = folder.path("out");
    let error = merge_files(&MergePlan::wise(0.5), Some(&anchor), &[&tuned], &out).unwrap_err();
    assert!(
        matches!(&error, weight_space::MergeError::MissingTensor { tensor, .. } if tensor == "head.weight"),
        "{error}"
    );
    let report = merge_files(&MergePlan::wise(0.5).copy("head.*"), Some(&anchor), &[&tuned], &out).unwrap();
    assert_eq!(report.copied, ["head.weight"]);
    let bytes = fs::read(&out).unwrap();
    assert_eq!(
        safetensors::SafeTensors::deserialize(&bytes).unwrap().tensor("head.weight").unwrap().data(),
        head
    );
    let error =
        merge_files(&MergePlan::wise(0.5).copy("haed.*"), Some(&anchor), &[&tuned], &out).unwrap_err();
    assert!(error.to_string().contains("`haed.*`"), "{error}");
}

#[test]
fn errors_leave_the_destination_and_no_litter() {
    let folder = Folder::new();
    let (anchor, tuned) = (folder.model("anchor", 1), folder.model("tuned", 2));
    let out = folder.path("out");
    fs::write(&out, "precious").unwrap();
    let fails = |plan: &MergePlan, anchor: Option<&Path>, models: &[&Path]| {
        let error = merge_files(plan, anchor, models, &out).unwrap_err();
        assert_eq!(fs::read(&out).unwrap(), b"precious", "{error}");
        error
    };
    let wise = MergePlan::wise(0.5);
    assert!(matches!(fails(&wise, None, &[&tuned]), weight_space::MergeError::MergeInputs { .. }));
    assert!(matches!(
        fails(&wise, Some(&anchor), &[&tuned, &tuned]),
        weight_space::MergeError::MergeInputs { .. }
    ));
    assert!(matches!(
        fails(&MergePlan::uniform_soup(), Some(&anchor), &[&tuned]),
        weight_space::MergeError::MergeInputs { .. }
    ));
    assert!(matches!(
        fails(&MergePlan::model_stock(), Some(&anchor), &[&tuned]),
        weight_space::MergeError::MergeInputs { .. }
    ));
    assert!(fails(&MergePlan::wise(1.5), Some(&anchor), &[&tuned]).to_string().contains("WiseFt::alpha"));
    let none = MergePlan::project(FixedRadius { radius: -1.0, norm: Norm::L2 });
    assert!(fails(&none, Some(&anchor), &[&tuned]).to_string().contains("radius"));
    assert!(matches!(
        fails(&wise, Some(&folder.path("nowhere")), &[&tuned]),
        weight_space::MergeError::Files(files::Error::Io { .. })
    ));

    let (four, two) = ([0u8; 4], [0u8; 2]);
    let wide = folder.save("wide", &[("w", Dtype::F32, &[1], &four)]);
    let flat = folder.save("flat", &[("w", Dtype::F32, &[1, 1], &four)]);
    let short = folder.save("short", &[("w", Dtype::I16, &[1], &two)]);
    let tiny = folder.save("tiny", &[("w", Dtype::F8_E4M3, &[2], &two)]);
    for other in [&flat, &short] {
        let error = fails(&wise, Some(other), &[&wide]);
        assert!(
            matches!(&error, weight_space::MergeError::TensorMismatch { tensor, .. } if tensor == "w"),
            "{error}"
        );
    }
    assert!(matches!(fails(&wise, Some(&tiny), &[&tiny]), weight_space::MergeError::NotMergeable { .. }));

    // A value that is not finite shows only while the file is being written.
    let infinite = folder.save("infinite", &[("w", Dtype::F32, &[1], &f32::INFINITY.to_le_bytes())]);
    let error = fails(&MergePlan::model_stock(), Some(&wide), &[&wide, &infinite]);
    assert!(error.to_string().contains("`w`"), "{error}");
    let left: Vec<_> =
        fs::read_dir(folder.0.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!left.iter().any(|name| name.to_string_lossy().starts_with('.')), "{left:?}");
}

#[test]
fn damaged_files_are_refused() {
    let folder = Folder::new();
    let good = folder.model("good", 1);
    let bytes = fs::read(&good).unwrap();
    let (bad, out) = (folder.path("bad"), folder.path("out"));
    let refused = |content: &[u8], what: &str| {
        fs::write(&bad, content).unwrap();
        let error = merge_files(&MergePlan::wise(0.5), Some(&good), &[&bad], &out).unwrap_err();
        assert!(
            matches!(
                &error,
                weight_space::MergeError::Files(
                    files::Error::BadFile { path, .. } | files::Error::BadTensor { path, .. }
                ) if *path == bad
            ),
            "{what}: {error}"
        );
        assert!(distances(&bad, &good).is_err(), "{what}");
    };
    for len in [0, 1, 7, 8, 9, 60, bytes.len() - 1] {
        refused(&bytes[..len], &format!("cut to {len} bytes"));
    }
    refused(&[&bytes[..], &[0]].concat(), "one byte more");
    let with_header = |header: &str| [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    let huge = usize::MAX;
    for header in [
        "{",
        "[]",
        r#"{"w": 1}"#,
        r#"{"w": {"dtype": "F99", "shape": [], "data_offsets": [0, 4]}}"#,
        r#"{"w": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}"#,
        r#"{"w": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}"#,
        r#"{"w": {"dtype": "F32", "shape": [1], "data_offsets": [8, 12]}}"#,
        &format!(r#"{{"w": {{"dtype": "F32", "shape": [{huge}, {huge}], "data_offsets": [0, 4]}}}}"#),
        // Eight tensors that end beyond what 64 bits count once the header's length is added.
        &format!(
            "{{{}}}",
            (0..8u64)
                .map(|i| {
                    let size = (1u64 << 61) - 1;
                    let end = size * (i + 1);
                    format!(
                        r#""{i}": {{"dtype": "U8", "shape": [{size}], "data_offsets": [{}, {end}]}}"#,
                        size * i
                    )
                })
                .collect::<Vec<_>>()
                .join(",")
        ),
        &"[".repeat(100_000),
    ] {
        refused(&with_header(header), &header[..header.len().min(60)]);
    }
    refused(&[&u64::MAX.to_le_bytes()[..], b"{}"].concat(), "a header length beyond everything");
}

#[test]
fn an_input_may_be_the_destination() {
    let folder = Folder::new();
    let (anchor, tuned) = (folder.model("anchor", 1), folder.model("tuned", 2));
    let (a, b) = (load(&anchor), load(&tuned));
    merge_files(&MergePlan::wise(0.5), Some(&anchor), &[&tuned], &tuned).unwrap();
    let expected = pair(&a["scale"], &b["scale"]).into_iter().map(|(a, b)| (a + b) / 2.0);
    close(&load(&tuned)["scale"], expected, 1e-7);
}

#[test]
fn plans_can_be_written_down() {
    let plan = MergePlan::wise(0.25).copy("head.*");
    let text = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<MergePlan>(&text).unwrap(), plan);
    let short: MergePlan = serde_json::from_str(r#"{"method": {"wise": {}}}"#).unwrap();
    assert_eq!(short, MergePlan::wise(0.5));
}
