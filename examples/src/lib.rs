//! What the fine-tuning examples share.
