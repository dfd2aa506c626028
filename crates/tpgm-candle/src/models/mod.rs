//! Trainable models, under the names that the usual checkpoints have.
//!
//! You need these because candle-transformers' models cannot be fine-tuned: their layer norms and softmaxes cut the graph. The
//! ones here are made of [`nn`](crate::nn), compute the same, and every parameter gets a gradient.
//!
//! | model | checkpoints |
//! |---|---|
//! | [`bert`] | BERT, MiniLM and other sentence-transformers of this kind, from Hugging Face |

pub mod bert;
