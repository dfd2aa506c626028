//! Looking at token ids before they are looked up.
//!
//! A device does not say which id is outside a table: on a GPU the whole program fails, and the largest number that the type
//! holds is a row of zeros. So ids are looked at on the CPU, which costs a copy of a few kilobytes per batch.

use candle_core::{DType, Result, Tensor};

/// Ids of shape (batch, length), each a row of a table of `rows`. `what` is for messages: "token".
///
/// # Errors
///
/// Ids that are no integers, another shape, or an id that is outside the table.
pub(super) fn checked(what: &str, ids: &Tensor, rows: usize) -> Result<Vec<Vec<i64>>> {
    ids.dims2()?;
    if !matches!(ids.dtype(), DType::U8 | DType::U32 | DType::I64) {
        candle_core::bail!("the ids of {what}s are {:?}, not integers", ids.dtype())
    }
    let values = ids.to_dtype(DType::I64)?.to_vec2::<i64>()?;
    for (row, values) in values.iter().enumerate() {
        let outside = |&&id: &&i64| usize::try_from(id).map_or(true, |id| id >= rows);
        if let Some(id) = values.iter().find(outside) {
            candle_core::bail!(
                "{what} {id} of sequence {row} is none of the {rows} that the model knows: the tokenizer is that of \
                 another model"
            )
        }
    }
    Ok(values)
}
