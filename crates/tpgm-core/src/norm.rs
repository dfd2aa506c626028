//! How the displacement of a tensor is measured.

/// The norm of a displacement `D = W - W0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "lowercase"))]
pub enum Norm {
    /// Frobenius norm: one number per tensor.
    L2,
    /// Sum of `|D|` over each row, the maximum absolute row sum (MARS) family: one number per row.
    ///
    /// A row is one index of dimension 0. **0-D and 1-D tensors are one row**: their norm is the L1 norm of the whole
    /// tensor, as in the published TPGM and FTP code.
    #[default]
    Mars,
}

/// How a shape is cut into rows: `(rows, row_len)`. 0-D and 1-D tensors are one row.
///
/// ```
/// # use tpgm_core::rows_of;
/// assert_eq!(rows_of(&[64, 3, 7, 7]), (64, 147)); // convolution kernel
/// assert_eq!(rows_of(&[768]), (1, 768)); // bias: one row
/// assert_eq!(rows_of(&[]), (1, 1)); // scalar
/// ```
pub fn rows_of(shape: &[usize]) -> (usize, usize) {
    match shape {
        [] => (1, 1),
        [n] => (1, *n),
        [rows, rest @ ..] => (*rows, rest.iter().product()),
    }
}
