//! Cross-entropy of labels or soft targets.

use super::error::{Error, Result};
use super::labels::Labels;
use super::rows::{Operands, Rows, RowsMut, Table as RowsTable};
use super::{Layers, modules};
use crate::device::Device;
use crate::memory::{View, ViewMut};

const NAME: &str = "cross-entropy";

/// Numbers of the state in front of those of rows.
const SUMMARY: usize = 3;

/// Options of cross-entropy, averaged over the rows that count.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct CrossEntropy {
    /// Which part of the target is spread over all classes, in 0..=1 (Szegedy et al., 2016, section 7).
    pub smoothing: f64,
    /// Rows with this label have no loss and no gradient, and do not count.
    pub ignored: Option<i64>,
}

/// What a row should be.
#[derive(Debug, Clone, Copy)]
pub enum Target<'a> {
    /// A class for each row.
    Labels(Labels<'a>),
    /// A number for each class, most often a distribution: rows as those of the logits.
    Soft(Rows<'a>),
}

/// Operands of [`Layers::cross_entropy`].
#[derive(Debug)]
pub struct CrossEntropyOperands<'a> {
    /// A row for each example.
    pub logits: Rows<'a>,
    /// What they should be.
    pub target: Target<'a>,
    /// Gets [`CrossEntropy::state_len`] numbers in f32: the sum of the losses, the rows that count, the mean; a loss for each row;
    /// and two numbers for each row that the backward pass needs.
    pub state: ViewMut<'a>,
}

/// Operands of [`Layers::cross_entropy_gradient`].
#[derive(Debug)]
pub struct CrossEntropyGradients<'a> {
    /// As in the forward pass.
    pub logits: Rows<'a>,
    /// As in the forward pass.
    pub target: Target<'a>,
    /// From the forward pass.
    pub state: View<'a>,
    /// The gradient of the mean: one number in f32.
    pub grad: View<'a>,
    /// Gets the gradient of the logits.
    pub d_logits: RowsMut<'a>,
}

/// `CrossEntropyTable` of `kernels/layers/cross_entropy.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Table {
    logits: RowsTable,
    targets: RowsTable,
    labels: u64,
    losses: u64,
    rows_losses: u64,
    summary: u64,
    grad: u64,
    d_logits: RowsTable,
    ignored: i64,
    rows: u64,
    width: u32,
    vector: u32,
    label_type: u32,
    has_ignored: u32,
    smoothing: f32,
    pad: u32,
}
const _: () = assert!(size_of::<Table>() == 128);

impl CrossEntropy {
    /// How many numbers the state of so many rows has.
    pub fn state_len(rows: usize) -> usize {
        SUMMARY + 3 * rows
    }

    /// The table of a call, but for what it writes.
    fn table(
        self,
        seen: &mut Operands,
        logits: &Rows<'_>,
        target: &Target<'_>,
        state: View<'_>,
    ) -> Result<Table> {
        if !(0.0..=1.0).contains(&self.smoothing) {
            let (option, value) = ("smoothing", self.smoothing);
            return Err(Error::Option { layer: NAME, option, value, requirement: "in 0..=1" });
        }
        let (targets, labels, label_type) = match target {
            Target::Soft(targets) => (seen.rows("target", targets)?, 0, 0),
            Target::Labels(labels) if labels.len() == seen.rows => {
                (RowsTable::default(), labels.address(), labels.kind())
            }
            Target::Labels(labels) => {
                let expected = format!("{} are", seen.rows);
                return Err(Error::Shape {
                    layer: NAME,
                    operand: "target",
                    got: format!("{} labels", labels.len()),
                    expected,
                });
            }
        };
        if seen.is_empty() {
            let expected = "at least one row of one class is".into();
            let got = format!("{} rows of {}", seen.rows, seen.width);
            return Err(Error::Shape { layer: NAME, operand: "logits", got, expected });
        }
        let summary = seen.floats("state", state, Self::state_len(seen.rows))?;
        let losses = summary + (SUMMARY * size_of::<f32>()) as u64;
        Ok(Table {
            logits: seen.rows("logits", logits)?,
            targets,
            labels,
            losses,
            rows_losses: losses + (seen.rows * size_of::<f32>()) as u64,
            summary,
            grad: 0,
            d_logits: RowsTable::default(),
            ignored: self.ignored.unwrap_or(0),
            rows: seen.rows as u64,
            width: seen.width as u32,
            vector: seen.vector(),
            label_type,
            has_ignored: u32::from(self.ignored.is_some()),
            smoothing: self.smoothing as f32,
            pad: 0,
        })
    }
}

impl<D: Device> Layers<D> {
    /// Losses of rows and their mean: of each row `-sum(target ln(softmax(logits)))` with a target of
    /// `(1 - smoothing) t + smoothing / classes`, where `t` is 1 at the label or the soft target.
    ///
    /// Two launches; the logits are read once, 4 bytes per f32 element, as are soft targets. A label that is neither a class nor ignored
    /// makes its row, and so the mean, NaN: the host does not see labels. Without a row that counts the mean is NaN.
    ///
    /// # Errors
    ///
    /// If operands do not fit each other, there is no row, the smoothing is out of range, or the device fails.
    pub fn cross_entropy(&self, options: CrossEntropy, operands: CrossEntropyOperands<'_>) -> Result<()> {
        let CrossEntropyOperands { logits, target, state } = operands;
        let mut seen = Operands::new(NAME, "logits", &logits)?;
        let table = options.table(&mut seen, &logits, &target, state.as_view())?;
        self.launch_kernel(&modules::CROSS_ENTROPY_FORWARD, seen.dtype, seen.rows, &table)?;
        self.launch_kernel(&modules::CROSS_ENTROPY_MEAN, seen.dtype, 1, &table)
    }

    /// The gradient of the logits: `grad / count (sum(target) softmax(logits) - target)`. One launch; 8 bytes per f32 element, with
    /// soft targets 12. Probabilities are computed anew from the logits and a number a row.
    ///
    /// # Errors
    ///
    /// As [`Layers::cross_entropy`].
    pub fn cross_entropy_gradient(
        &self,
        options: CrossEntropy,
        operands: CrossEntropyGradients<'_>,
    ) -> Result<()> {
        let CrossEntropyGradients { logits, target, state, grad, d_logits } = operands;
        let mut seen = Operands::new(NAME, "logits", &logits)?;
        let d_logits = seen.rows_mut("d_logits", &d_logits)?;
        let grad = seen.floats("grad", grad, 1)?;
        let table = Table { grad, d_logits, ..options.table(&mut seen, &logits, &target, state)? };
        self.launch_kernel(&modules::CROSS_ENTROPY_BACKWARD, seen.dtype, seen.rows, &table)
    }
}
