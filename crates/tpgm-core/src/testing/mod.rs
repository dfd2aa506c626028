//! What implementations are tested with (feature `testing`).

pub mod golden;
