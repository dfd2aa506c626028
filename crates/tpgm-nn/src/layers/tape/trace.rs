//! What blocks did, for those who count it.

use std::cell::{Cell, RefCell};

use candle_core::Tensor;

/// An operation inside a block: its name, and the shapes of what it read and made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// Its name.
    pub name: &'static str,
    /// Shapes of its arguments.
    pub args: Vec<Vec<usize>>,
    /// Shapes of its results, and whether gradients flow through them.
    pub results: Vec<(Vec<usize>, bool)>,
}

thread_local! {
    static SEEN: RefCell<Option<Vec<Recorded>>> = const { RefCell::new(None) };
    static APART: Cell<bool> = const { Cell::new(false) };
}

/// The operations inside the blocks that this thread runs forward while `f` does. candle's graph has a block as one operation.
pub fn recorded<R>(f: impl FnOnce() -> R) -> (R, Vec<Recorded>) {
    let before = SEEN.replace(Some(vec![]));
    let result = f();
    let seen = SEEN.replace(before).unwrap_or_default();
    // Who counts around this one counts these too.
    SEEN.with_borrow_mut(|outer| outer.iter_mut().for_each(|outer| outer.extend_from_slice(&seen)));
    (result, seen)
}

pub(super) fn note(name: &'static str, args: &[Tensor], results: &[&Tensor]) {
    SEEN.with_borrow_mut(|seen| {
        if let Some(seen) = seen {
            let shape = |tensor: &Tensor| tensor.dims().to_vec();
            let results = results.iter().map(|result| (shape(result), result.track_op())).collect();
            seen.push(Recorded { name, args: args.iter().map(shape).collect(), results });
        }
    });
}

/// True while blocks of this thread are to be computed layer by layer.
pub(super) fn layer_by_layer() -> bool {
    APART.get()
}

/// Has this thread compute blocks layer by layer while `f` runs, as where they cannot be recorded: to compare the two.
#[cfg(test)]
pub(crate) fn apart<R>(f: impl FnOnce() -> R) -> R {
    APART.set(true);
    let result = f();
    APART.set(false);
    result
}
