//! Interpolation cases.

use super::case::required;
use super::compare::{Comparer, Presence};
use super::error::GoldenError;
use super::run::Context;
use super::subject::Fisher;

pub(super) fn run<'a>(context: &Context<'a>) -> Result<Comparer<'a>, GoldenError> {
    let (case, file) = (context.case, context.file);
    let alphas = required(case.alphas.as_ref(), context.json, "alphas")?;
    let floor = match case.fisher.unwrap_or(false) {
        false => None,
        true => Some(required(case.fisher_floor, context.json, "fisher_floor")?),
    };
    let mut comparer = Comparer::new(file);
    let theta0 = file.get_params("theta0", context.params())?;
    let theta1 = file.get_params("theta1", context.params())?;
    for (i, param) in context.params().iter().enumerate() {
        let fisher = match floor {
            None => None,
            Some(floor) => Some(Fisher {
                fisher0: file.find_param("fisher0", param)?,
                fisher1: file.find_param("fisher1", param)?,
                floor,
            }),
        };
        for (a, &alpha) in alphas.iter().enumerate() {
            let merged =
                context.subject.interpolate(file.dtype, &theta0[i], &theta1[i], alpha, fisher.as_ref());
            let merged = context.subject("interpolate", merged)?;
            let name = format!("alpha{a}/weight/{}", param.name);
            comparer.check("weight", &name, merged, Presence::Required)?;
        }
    }
    Ok(comparer)
}
