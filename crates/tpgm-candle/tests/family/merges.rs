//! Merges, projections and predictions.

use candle_core::{DType, Device, Result, Tensor};
use tpgm_candle::core::sparse::{Selekt, SelektIo};
use tpgm_candle::core::weight_space::dawin::{Offset, coefficients, entropies};
use tpgm_candle::core::weight_space::{
    BetaClusters, BetaMixture, ModelStock, StockEntry, StockRange, StockUnit,
};
use tpgm_candle::core::{Buffer, Error, ParamSet};
use tpgm_candle::nn::losses::{mixed_probabilities, zero_shot_head};

use crate::case::{Case, Outputs};
use crate::gradients::buffer;
use crate::losses::unit;

fn wrap(error: Error) -> candle_core::Error {
    candle_core::Error::wrap(error)
}

pub(crate) fn selekt(case: &Case) -> Result<Outputs> {
    let names = case.names("weight");
    let mut set = ParamSet::builder();
    let (mut weights, mut anchors) = (Vec::new(), Vec::new());
    for name in &names {
        let weight = case.input(&format!("weight/{name}"))?;
        weights.push(buffer(&weight)?);
        anchors.push(buffer(&case.input(&format!("base/{name}"))?)?);
        set = set.tensor(name.as_str(), weight.dims().to_vec(), weights[weights.len() - 1].dtype());
    }
    let set = set.build().map_err(wrap)?;
    let options = Selekt { alpha: case.number("/share")?, ..Selekt::default() };
    let operands = weights.iter_mut().zip(&anchors);
    let mut io: Vec<_> =
        operands.map(|(weight, anchor)| SelektIo::new(weight.as_mut()).anchor(anchor.as_slice())).collect();
    options.project(&set, &mut io).map_err(wrap)?;
    names
        .iter()
        .zip(&weights)
        .map(|(name, weight)| {
            let like = case.input(&format!("weight/{name}"))?;
            Ok((format!("weight/{name}"), case.tensor(&weight.to_f64(), &like)?))
        })
        .collect()
}

/// Along the last dimension of kernels the unit is mergekit's, which our rows are of `[numel / last, last]`.
pub(crate) fn model_stock(case: &Case) -> Result<Outputs> {
    let per_row = case.flag("per_row");
    let unit = if per_row { StockUnit::Row } else { StockUnit::Tensor };
    let stock = ModelStock { unit, range: StockRange::Raw };
    let models = case.number("/models")? as usize;
    case.names("anchor")
        .into_iter()
        .map(|name| {
            let anchor = case.input(&format!("anchor/{name}"))?;
            let models = (0..models)
                .map(|i| buffer(&case.input(&format!("model{i}/{name}"))?))
                .collect::<Result<Vec<_>>>()?;
            let shape = match anchor.dims() {
                dims if dims.len() > 2 => {
                    vec![anchor.elem_count() / dims[dims.len() - 1], dims[dims.len() - 1]]
                }
                dims => dims.to_vec(),
            };
            let (start, mut out) = (buffer(&anchor)?, Buffer::zeros(models[0].dtype(), anchor.elem_count()));
            let slices = models.iter().map(Buffer::as_slice);
            let entry = StockEntry::new(&name, &shape, start.as_slice(), slices, out.as_mut());
            stock.merge(&mut [entry]).map_err(wrap)?;
            Ok((format!("weight/{name}"), case.tensor(&out.to_f64(), &anchor)?))
        })
        .collect()
}

pub(crate) fn dawin_coefficients(case: &Case) -> Result<Outputs> {
    let entropy = |which: &str, i: usize| {
        let logits = case.input(which)?;
        let temperature = case.number(&format!("/temperatures/{i}"))?;
        entropies(buffer(&logits)?.as_slice(), logits.dim(1)?, temperature).map_err(wrap)
    };
    let (first, second) = (entropy("zero_shot_logits", 0)?, entropy("fine_tuned_logits", 1)?);
    let offset = if case.flag("offset_adjustment") { Offset::Adjusted } else { Offset::Plain };
    let shares = coefficients(&first, &second, offset).map_err(wrap)?;
    let vector = |x: &[f64]| Tensor::new(x, &Device::Cpu)?.to_dtype(case.dtype());
    Ok(vec![
        ("coefficient".into(), vector(&shares)?),
        ("zero_shot_entropy".into(), vector(&first)?),
        ("fine_tuned_entropy".into(), vector(&second)?),
    ])
}

/// Each round starts where the case says. Our components are sorted by mean, those of the case as its start numbers them.
pub(crate) fn dawin_mixture(case: &Case) -> Result<Outputs> {
    let samples = case.numbers("coefficients")?;
    let starts = case.input("start")?.to_dtype(DType::I64)?.to_vec2::<i64>()?;
    let components = case.number("/components")? as usize;
    let mixture = BetaMixture {
        components,
        max_iterations: case.number("/max_iterations")? as usize,
        tolerance: case.number("/tolerance")?,
        ..BetaMixture::default()
    };
    let vector = |x: Vec<f64>| Tensor::new(x.as_slice(), &Device::Cpu);
    let mut outputs = Outputs::new();
    let mut best: Option<BetaClusters> = None;
    for (i, start) in starts.iter().enumerate() {
        let start: Vec<usize> = start.iter().map(|&k| k as usize).collect();
        let fit = mixture.fit_from(&samples, &start).map_err(wrap)?;
        let order = order_of_case(case, &format!("round{i}/"), &fit)?;
        parameters(&mut outputs, &format!("round{i}/"), &fit, &order)?;
        if best.as_ref().is_none_or(|best| fit.log_likelihood > best.log_likelihood) {
            best = Some(fit);
        }
    }
    let Some(fit) = best else { candle_core::bail!("the case has no start") };
    let order = order_of_case(case, "", &fit)?;
    parameters(&mut outputs, "", &fit, &order)?;
    outputs.push(("mean".into(), vector(order.iter().map(|&k| fit.means[k]).collect())?));
    let probabilities = fit.probabilities(&samples).map_err(wrap)?;
    let rows = probabilities.chunks_exact(components);
    let turned: Vec<f64> = rows.flat_map(|row| order.iter().map(|&k| row[k])).collect();
    outputs
        .push(("probability".into(), Tensor::from_vec(turned, (samples.len(), components), &Device::Cpu)?));
    let number = |k: &usize| order.iter().position(|at| at == k).unwrap_or_default() as i64;
    let numbers: Vec<i64> = fit.assignment.iter().map(number).collect();
    outputs.push(("component".into(), Tensor::new(numbers.as_slice(), &Device::Cpu)?));
    Ok(outputs)
}

/// Where each component of the case is among ours: both have distinct means.
fn order_of_case(case: &Case, prefix: &str, fit: &BetaClusters) -> Result<Vec<usize>> {
    let of = |name: &str| match case.tensors.get(&format!("output/{prefix}{name}")) {
        Some(tensor) => crate::case::numbers(tensor),
        None => candle_core::bail!("the case has no output `{prefix}{name}`"),
    };
    let means: Vec<f64> = of("alpha")?.iter().zip(of("beta")?).map(|(a, b)| a / (a + b)).collect();
    let rank = |mean: &f64| means.iter().filter(|other| *other < mean).count().min(fit.means.len() - 1);
    Ok(means.iter().map(rank).collect())
}

fn parameters(outputs: &mut Outputs, prefix: &str, fit: &BetaClusters, order: &[usize]) -> Result<()> {
    let vector = |of: &dyn Fn(usize) -> f64| {
        Tensor::new(order.iter().map(|&k| of(k)).collect::<Vec<_>>().as_slice(), &Device::Cpu)
    };
    outputs.push((format!("{prefix}weight"), vector(&|k| fit.weights[k])?));
    outputs.push((format!("{prefix}alpha"), vector(&|k| fit.parameters[k].0)?));
    outputs.push((format!("{prefix}beta"), vector(&|k| fit.parameters[k].1)?));
    outputs.push((format!("{prefix}log_likelihood"), Tensor::new(fit.log_likelihood, &Device::Cpu)?));
    Ok(())
}

/// The file has heads as columns or as rows.
pub(crate) fn drm_inference(case: &Case) -> Result<Outputs> {
    let scale = case.input("logit_scale")?.exp()?;
    let concept = zero_shot_head(&case.input("concept_text")?, &scale)?;
    let class = zero_shot_head(&case.input("class_text")?, &scale)?;
    let image = unit(&case.input("image")?)?;
    let mixed = mixed_probabilities(&image, &class, &concept, case.number("/beta")?)?;
    let shaped = |name: &str, head: Tensor| -> Result<(String, Tensor)> {
        let transposed = case.tensors.get(&format!("output/{name}")).is_some_and(|x| x.dims() != head.dims());
        Ok((name.to_owned(), if transposed { head.t()?.contiguous()? } else { head }))
    };
    Ok(vec![shaped("concept_head", concept)?, shaped("class_head", class)?, ("probability".into(), mixed)])
}
