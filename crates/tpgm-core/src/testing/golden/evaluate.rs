//! The model of a case on its batches.

use std::path::Path;

use super::case::{Case, field_error};
use super::error::GoldenError;
use super::file::TensorFile;
use super::model::{Gradients, Model, Param};

/// Evaluates the model on batch `i mod n_batches` for the `i`-th call.
pub(super) struct Evaluator<'a> {
    model: &'a Model,
    params: &'a [Param],
    x: &'a [f64],
    y: Vec<usize>,
    batch: usize,
    n_batches: usize,
    calls: usize,
}

impl<'a> Evaluator<'a> {
    pub(super) fn new(
        model: &'a Model,
        case: &'a Case,
        path: &Path,
        file: &'a TensorFile,
    ) -> Result<Self, GoldenError> {
        model.check(&case.params).map_err(|problem| field_error(path, "model", problem))?;
        let y = file.labels()?;
        let &[n_batches, batch] = &y.shape[..] else {
            return Err(file.wrong_shape("y", y, "[n_batches, batch]".to_owned()));
        };
        let agrees = |given: Option<usize>, actual| given.is_none_or(|given| given == actual);
        if n_batches * batch == 0 || !agrees(case.n_batches, n_batches) || !agrees(case.batch, batch) {
            let expected = format!("[{}, {}]", case.n_batches.unwrap_or(1), case.batch.unwrap_or(1));
            return Err(file.wrong_shape("y", y, expected));
        }
        let x = file.get("x")?;
        if !x.shape.starts_with(&[n_batches, batch])
            || x.values.len() != n_batches * batch * model.input_len()
        {
            let expected = format!("[{n_batches}, {batch}, ...] with {} elements each", model.input_len());
            return Err(file.wrong_shape("x", x, expected));
        }
        let label = |&y: &f64| {
            let inside = y >= 0.0 && (y as usize) < model.classes();
            inside.then_some(y as usize).ok_or_else(|| {
                field_error(
                    &file.path,
                    "y",
                    format!("has the label {y}, but the model {} classes", model.classes()),
                )
            })
        };
        Ok(Self {
            model,
            params: &case.params,
            x: &x.values,
            y: y.values.iter().map(label).collect::<Result<_, _>>()?,
            batch,
            n_batches,
            calls: 0,
        })
    }

    /// Loss and gradients at `weights`, on the next batch.
    pub(super) fn next(&mut self, weights: &[Vec<f64>]) -> (f64, Gradients) {
        let b = self.calls % self.n_batches;
        self.calls += 1;
        let len = self.batch * self.model.input_len();
        let x = &self.x[b * len..(b + 1) * len];
        let y = &self.y[b * self.batch..(b + 1) * self.batch];
        self.model.evaluate(self.params, weights, x, y)
    }
}
