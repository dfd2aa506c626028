//! Layers with a gradient: values against candle's own, gradients against finite differences.

mod activation;
mod cross_entropy;
mod dropout;
mod gradients;
mod linear;
mod norm;
mod pool;
mod rotary;
mod softmax;
mod threads;
