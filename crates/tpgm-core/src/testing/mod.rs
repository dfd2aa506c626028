//! What implementations are tested with (feature `testing`).

pub mod conformance;
pub mod golden;
