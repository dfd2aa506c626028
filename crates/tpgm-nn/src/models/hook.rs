//! Hidden states on their way through a model.

use candle_core::{Result, Tensor};

/// What is called with the hidden state in front of every block, and behind the last; the model goes on with what it returns.
pub(super) type Hook<'a> = dyn FnMut(usize, Tensor) -> Result<Tensor> + 'a;

/// For a forward pass that nobody looks at.
pub(super) fn untouched(_layer: usize, hidden: Tensor) -> Result<Tensor> {
    Ok(hidden)
}

/// The hidden state that goes on, which may have other tokens (the second of three dimensions) and nothing else new.
pub(super) fn tapped(hook: &mut Hook<'_>, layer: usize, hidden: Tensor) -> Result<Tensor> {
    let before = hidden.shape().clone();
    let after = hook(layer, hidden)?;
    let same = |dims: &[usize]| dims.len() == 3 && (dims[0], dims[2]) == (before.dims()[0], before.dims()[2]);
    if !same(after.dims()) || after.dims()[1] == 0 {
        candle_core::bail!(
            "the hook of layer {layer} made {:?} of a hidden state of shape {before:?}; batch and width must stay",
            after.dims()
        )
    }
    Ok(after)
}

/// [`tapped`] where shapes must stay as they are: `why` says why there is no room for more.
pub(super) fn tapped_in_place(
    hook: &mut Hook<'_>,
    layer: usize,
    hidden: Tensor,
    why: &str,
) -> Result<Tensor> {
    let before = hidden.shape().clone();
    let after = hook(layer, hidden)?;
    if after.shape() != &before {
        candle_core::bail!(
            "the hook of layer {layer} made {:?} of a hidden state of shape {before:?}; the shape must stay: {why}",
            after.dims()
        )
    }
    Ok(after)
}
