//! Sparse fine-tuning: only a few entries of the weights may differ from the anchor.
//!
//! | method | which entries | source |
//! |---|---|---|
//! | [`Selekt`] | of each tensor those that moved most; the others are reset every so often | arXiv 2503.03656 |
//! | [`Saft`] | of all tensors those with the largest gradient before training; only they are trained | arXiv 2407.03036 |
//!
//! Selections are exact and deterministic: entries of equal score are taken in order of tensors and elements, for any
//! number of threads.

mod mask;
mod optimizer;
mod saft;
mod selekt;
mod topk;

pub use mask::{SaftMask, Trained};
pub use optimizer::SaftOptimizer;
pub use saft::{Saft, SaftScore};
pub use selekt::{Selekt, SelektIo};
