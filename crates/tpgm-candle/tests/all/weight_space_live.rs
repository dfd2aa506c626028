//! Merging models in memory, against brute force on the numbers.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use candle_core::{DType, Device, Tensor, Var};
use tpgm_candle::core::weight_space::{BetaMixture, ModelStock, WiseFt};
use tpgm_candle::weight_space::{
    Dawin, Error, Interpolation, MergeError, Tensors, average_updates, ensemble, greedy_soup, model_stock,
    uniform_soup, wise, wise_tensors,
};
use tpgm_candle::{Anchor, Param, Params};

fn tensor(values: &[f32]) -> Tensor {
    Tensor::new(values, &Device::Cpu).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

/// A fine-tuned model: `w` from [0, 2] to [4, -2], a factor with the zero anchor at [8], a head at [5].
fn tuned() -> Params {
    let var = Var::from_tensor(&tensor(&[0.0, 2.0])).unwrap();
    let w = Param::anchored_here("w", var.clone()).unwrap();
    var.set(&tensor(&[4.0, -2.0])).unwrap();
    let of = |values: &[f32]| Var::from_tensor(&tensor(values)).unwrap();
    Params::from_params([
        w,
        Param::new("lora", of(&[8.0]), Anchor::Zero),
        Param::new("head", of(&[5.0]), Anchor::None),
    ])
    .unwrap()
}

fn values(params: &Params) -> [Vec<f32>; 3] {
    ["w", "lora", "head"].map(|name| numbers(params.get(name).unwrap().var()))
}

#[test]
fn live_interpolation_follows_the_anchors() {
    let params = tuned();
    let merged = wise(&params, 0.25).unwrap();
    let got = ["w", "lora", "head"].map(|name| numbers(&merged[name]));
    assert_eq!(got, [vec![1.0, 1.0], vec![2.0], vec![5.0]]);
    assert_eq!(values(&params), [vec![4.0, -2.0], vec![8.0], vec![5.0]], "the model is as it was");
    assert!(wise(&params, 1.5).is_err());
}

#[test]
fn interpolation_in_place_restores() {
    let params = tuned();
    let fine_tuned = values(&params);
    {
        let mut between = Interpolation::new(&params).unwrap();
        between.set(0.0).unwrap();
        assert_eq!(values(&params), [vec![0.0, 2.0], vec![0.0], vec![5.0]]);
        between.set(0.5).unwrap();
        assert_eq!(
            values(&params),
            [vec![2.0, 0.0], vec![4.0], vec![5.0]],
            "from the fine-tuned values again"
        );
        assert!(between.set(-1.0).is_err());
        assert_eq!(values(&params)[0], [2.0, 0.0], "an error changes nothing");
    }
    assert_eq!(values(&params), fine_tuned, "dropping restores");
    let mut between = Interpolation::new(&params).unwrap();
    between.set(0.5).unwrap();
    between.restore().unwrap();
    assert_eq!(values(&params), fine_tuned);
    let mut between = Interpolation::new(&params).unwrap();
    between.set(0.5).unwrap();
    between.keep();
    assert_eq!(values(&params)[0], [2.0, 0.0]);
}

fn model(w: &[f32], count: i64) -> Tensors {
    let count = Tensor::new(count, &Device::Cpu).unwrap();
    BTreeMap::from([("w".to_owned(), tensor(w)), ("count".to_owned(), count)])
}

#[test]
fn merges_of_tensors_follow_the_formulas() {
    let (a, b, c) = (model(&[0.0, 0.0], 1), model(&[3.0, 4.0], 2), model(&[4.0, 3.0], 3));
    let half = wise_tensors(&WiseFt::default(), &a, &b, None).unwrap();
    assert_eq!(numbers(&half["w"]), [1.5, 2.0]);
    assert_eq!(half["count"].to_scalar::<i64>().unwrap(), 2);
    let fisher = |x: f32| BTreeMap::from([("w".to_owned(), tensor(&[x, x]))]);
    let weighed = wise_tensors(&WiseFt::default(), &a, &b, Some((&fisher(3.0), &fisher(1.0)))).unwrap();
    assert_eq!(numbers(&weighed["w"]), [0.75, 1.0]);

    let mean = uniform_soup(&[&a, &b, &c]).unwrap();
    assert_eq!(numbers(&mean["w"]), [7.0 / 3.0, 7.0 / 3.0]);
    assert_eq!(mean["count"].to_scalar::<i64>().unwrap(), 1);

    let (stock, coefficients) = model_stock(&ModelStock::default(), &a, &[&b, &c]).unwrap();
    let t = 2.0 * 0.96 / 1.96; // cos = 24 / 25
    assert!((coefficients["w"][0] - t).abs() < 1e-15);
    assert!((f64::from(numbers(&stock["w"])[0]) - 3.5 * t).abs() < 1e-6);
    assert_eq!(stock["count"].to_scalar::<i64>().unwrap(), 2);

    // A strided view counts as the numbers it shows.
    let strided = Tensor::new(&[[3f32, 9.], [4., 9.]], &Device::Cpu).unwrap().narrow(1, 0, 1).unwrap();
    let strided = BTreeMap::from([
        ("w".to_owned(), strided.squeeze(1).unwrap()),
        ("count".to_owned(), b["count"].clone()),
    ]);
    assert_eq!(numbers(&uniform_soup(&[&strided]).unwrap()["w"]), [3.0, 4.0]);
}

#[test]
fn models_that_differ_are_named() {
    let a = model(&[0.0, 0.0], 1);
    let long = model(&[0.0, 0.0, 0.0], 1);
    let error = uniform_soup(&[&a, &a, &long]).unwrap_err();
    assert!(
        matches!(&error, Error::Merge(MergeError::TensorMismatch { model, .. }) if model == "model 2"),
        "{error}"
    );
    let mut less = a.clone();
    less.remove("count");
    for pair in [[&a, &less], [&less, &a]] {
        let error = uniform_soup(&pair).unwrap_err();
        assert!(
            matches!(&error, Error::Merge(MergeError::MissingTensor { tensor, .. }) if tensor == "count"),
            "{error}"
        );
    }
    assert!(matches!(uniform_soup(&[]), Err(Error::Merge(MergeError::MergeInputs { .. }))));
    assert!(matches!(
        model_stock(&ModelStock::default(), &a, &[&a]),
        Err(Error::Merge(MergeError::MergeInputs { .. }))
    ));
}

#[test]
fn a_greedy_soup_keeps_what_helps() {
    // The best weight is 1. One candidate shares storage with the variable that the closure sets.
    let var = Var::from_tensor(&tensor(&[0.0])).unwrap();
    let one = |w: Tensor| BTreeMap::from([("w".to_owned(), w)]);
    let candidates = [one(var.as_tensor().clone()), one(tensor(&[4.0])), one(tensor(&[1.5]))];
    let mut calls = 0;
    let soup = greedy_soup(&candidates.each_ref(), |trial| {
        calls += 1;
        var.set(&trial["w"])?;
        Ok(-f64::from((var.to_vec1::<f32>()?[0] - 1.0).abs()))
    })
    .unwrap();
    assert_eq!((soup.members, soup.score, calls), (vec![2, 0], -0.25, 5));
    assert_eq!(numbers(&soup.tensors["w"]), [0.75]);
    assert_eq!(soup.candidate_scores, [-1.0, -3.0, -0.5]);
    let error = greedy_soup(&candidates.each_ref(), |_| candle_core::bail!("no data")).unwrap_err();
    assert!(error.to_string().contains("no data"), "{error}");
}

/// Logits of two classes, the first ahead by `lead`.
fn logits(lead: &[f32]) -> Tensor {
    let rows: Vec<Vec<f32>> = lead.iter().map(|lead| vec![*lead, 0.0]).collect();
    Tensor::new(rows, &Device::Cpu).unwrap()
}

#[test]
fn dawin_evaluates_each_sample_at_its_weights() {
    let params = tuned();
    let fine_tuned = values(&params);
    let leads: ([f32; 4], [f32; 4]) = ([0.0, 1.0, 3.0, 0.5], [2.0, 1.0, 0.0, 4.0]);
    let (zero_shot, tuned_logits) = (logits(&leads.0), logits(&leads.1));
    let dawin = Dawin { clusters: None, ..Dawin::default() };
    // Each sample's output is its position and the weight it saw.
    let forward = |samples: &[usize]| {
        let w = numbers(params.get("w").unwrap().var())[0];
        let rows: Vec<Vec<f32>> = samples.iter().map(|sample| vec![*sample as f32, w]).collect();
        Tensor::new(rows, &Device::Cpu)
    };
    let output = dawin.evaluate(&params, &zero_shot, &tuned_logits, forward).unwrap();
    let entropy = |lead: f32| {
        let p = 1.0 / (1.0 + f64::from(-lead).exp());
        let h = |p: f64| if p > 0.0 { -p * p.ln() } else { 0.0 };
        h(p) + h(1.0 - p)
    };
    let rows = output.outputs.to_vec2::<f32>().unwrap();
    for (sample, row) in rows.iter().enumerate() {
        let (e0, e1) = ((-entropy(leads.0[sample])).exp(), (-entropy(leads.1[sample])).exp());
        let lambda = e1 / (e0 + e1);
        assert!((output.coefficients[sample] - lambda).abs() < 1e-6);
        assert_eq!(row[0], sample as f32);
        assert!((f64::from(row[1]) - 4.0 * lambda).abs() < 1e-5, "w goes from 0 to 4: {row:?} {lambda}");
    }
    assert_eq!(values(&params), fine_tuned);
}

#[test]
fn dawin_merges_once_per_cluster() {
    let params = tuned();
    let fine_tuned = values(&params);
    // Two kinds of samples, mixed: the zero-shot model is certain of the even ones.
    let lead0: Vec<f32> =
        (0..40).map(|i| if i % 2 == 0 { 6.0 + 0.01 * i as f32 } else { 0.01 * i as f32 }).collect();
    let lead1: Vec<f32> =
        (0..40).map(|i| if i % 2 == 0 { 0.01 * i as f32 } else { 6.0 + 0.01 * i as f32 }).collect();
    let dawin =
        Dawin { clusters: Some(BetaMixture { components: 2, ..BetaMixture::default() }), ..Dawin::default() };
    let mut calls = 0;
    let output = dawin
        .evaluate(&params, &logits(&lead0), &logits(&lead1), |samples| {
            calls += 1;
            Tensor::new(samples.iter().map(|sample| *sample as f32).collect::<Vec<_>>(), &Device::Cpu)
        })
        .unwrap();
    assert_eq!(calls, 2);
    assert_eq!(numbers(&output.outputs), (0..40).map(|i| i as f32).collect::<Vec<_>>());
    for (cluster, parity) in output.clusters.iter().zip([0, 1]) {
        assert!(cluster.samples.iter().all(|sample| sample % 2 == parity), "{cluster:?}");
        let mean = cluster.samples.iter().map(|sample| output.coefficients[*sample]).sum::<f64>()
            / cluster.samples.len() as f64;
        assert!((cluster.coefficient - mean).abs() < 1e-3, "{} {mean}", cluster.coefficient);
    }
    assert_eq!(values(&params), fine_tuned);

    let fails = |forward: fn(&[usize]) -> candle_core::Result<Tensor>| {
        let error = dawin.evaluate(&params, &logits(&lead0), &logits(&lead1), forward).unwrap_err();
        assert_eq!(values(&params), fine_tuned, "restored after {error}");
        error
    };
    assert!(fails(|_| candle_core::bail!("no data")).to_string().contains("no data"));
    let short = fails(|_| Tensor::zeros(1, DType::F32, &Device::Cpu));
    assert!(matches!(short, Error::Merge(MergeError::TensorMismatch { .. })), "{short}");
    let other = dawin.coefficients(&logits(&lead0), &logits(&lead1[1..])).unwrap_err();
    assert!(matches!(other, Error::Merge(MergeError::TensorMismatch { .. })), "{other}");
}

#[test]
fn averaged_updates_and_ensembles_follow_their_formulas() {
    let cpu = &Device::Cpu;
    let model = |x: [f32; 2], n: i64| -> Tensors {
        let tensors = [("w", Tensor::new(&x, cpu)), ("n", Tensor::new(&[n], cpu))];
        tensors.into_iter().map(|(name, tensor)| (name.to_owned(), tensor.unwrap())).collect()
    };
    let (start, ends) = (model([1.0, 2.0], 1), [model([2.0, 2.0], 5), model([4.0, -2.0], 6)]);
    let merged = average_updates(&start, &[&ends[0], &ends[1]], 0.5).unwrap();
    assert_eq!(merged["w"].to_vec1::<f32>().unwrap(), [2.0, 1.0]);
    assert_eq!(merged["n"].to_vec1::<i64>().unwrap(), [5]);
    let alone = average_updates(&start, &[&ends[0]], 1.0).unwrap();
    assert_eq!(alone["w"].to_vec1::<f32>().unwrap(), [2.0, 2.0]);
    assert!(average_updates(&start, &[], 1.0).is_err());
    assert!(average_updates(&start, &[&ends[0]], -1.0).unwrap_err().to_string().contains("rate"));
    let error = average_updates(&model([f32::NAN, 0.0], 1), &[&ends[0]], 1.0).unwrap_err().to_string();
    assert!(error.contains("`w`") && error.contains("the start"), "{error}");

    let [a, b] =
        [[[0.5f32, 0.5], [1.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]].map(|p| Tensor::new(&p, cpu).unwrap());
    let mixed = ensemble(&[&a, &b], &[0.75, 0.25]).unwrap();
    assert_eq!(mixed.to_vec2::<f32>().unwrap(), [[0.375, 0.625], [0.75, 0.25]]);
    assert!(ensemble(&[], &[]).is_err());
    let error = ensemble(&[&a, &b.narrow(0, 0, 1).unwrap()], &[0.5, 0.5]).unwrap_err().to_string();
    assert!(error.contains("[1, 2]") && error.contains("[2, 2]"), "{error}");
    let error = ensemble(&[&(a * 3.0).unwrap()], &[1.0]).unwrap_err().to_string();
    assert!(error.contains("logits"), "{error}");
}
