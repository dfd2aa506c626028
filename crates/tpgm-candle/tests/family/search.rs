//! Densities of trials, and the score of given values.

use candle_core::{Device, Result, Tensor};
use tpgm_candle::search::{Component, Range, Ranking};

use crate::case::{Case, Outputs};

pub(crate) fn tpe(case: &Case) -> Result<Outputs> {
    let (low, high) = (case.number("/low")?, case.number("/high")?);
    let range = match (case.flag("log"), case.flag("integer")) {
        (true, _) => Range::Log { low, high },
        (_, true) => Range::Integer { low: low as i64, high: high as i64 },
        _ => Range::Uniform { low, high },
    };
    let trials: Vec<_> = case.numbers("value")?.into_iter().zip(case.numbers("loss")?).collect();
    let ranking = Ranking::new(range, &trials).map_err(candle_core::Error::wrap)?;
    let candidates = case.numbers("candidate")?;
    let vector = |values: Vec<f64>| Tensor::new(values.as_slice(), &Device::Cpu);
    let mut outputs = Outputs::new();
    for (name, density) in [("below", ranking.good()), ("above", ranking.bad())] {
        let of = |part: fn(&Component) -> f64| vector(density.components().iter().map(part).collect());
        outputs.push((format!("{name}/mean"), of(|component| component.mean)?));
        outputs.push((format!("{name}/deviation"), of(|component| component.deviation)?));
        outputs.push((format!("{name}/weight"), of(|component| component.weight)?));
        let log = candidates.iter().map(|value| density.log_density(*value)).collect();
        outputs.push((format!("{name}/log_density"), vector(log)?));
    }
    let scores = candidates.iter().map(|value| ranking.score(*value)).collect();
    outputs.push(("score".to_owned(), vector(scores)?));
    Ok(outputs)
}
