//! Layers with a gradient: values against candle's own, gradients against finite differences.

#![allow(clippy::unwrap_used)] // in helpers of tests

mod activation;
mod batch_norm;
mod claims;
mod conv;
mod conv_norm;
mod cross_entropy;
mod dropout;
mod embedding;
mod gated;
mod gradients;
mod linear;
mod losses;
mod norm;
mod pool;
mod product;
mod prompts;
mod rotary;
mod soft_cross_entropy;
mod softmax;
mod squeeze;
mod taps;
mod threads;
