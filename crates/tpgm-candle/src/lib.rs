//! Robust fine-tuning of candle models. Nothing is here yet: the crate reserves its place in the workspace.
