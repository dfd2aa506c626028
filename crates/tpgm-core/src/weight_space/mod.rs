//! Merging whole models: interpolation, averages, and coefficients for them.
//!
//! These operations run once, after training, on sets of tensors given as slices. They need no gradients and no
//! optimizer, and work from checkpoints just as well as from models in memory.
//!
//! | operation | inputs | source |
//! |---|---|---|
//! | [`WiseFt`] | two models, optionally their Fisher information | arXiv 2109.01903 |
//! | [`Interpolator`] | live weights and their anchors, on any backend | arXiv 2109.01903 |
//! | [`UniformSoup`] | any number of models, one at a time | arXiv 2203.05482 |
//! | [`greedy_soup`] | models and a held-out score | arXiv 2203.05482 |
//! | [`ModelStock`] | the anchor and at least two models | arXiv 2403.19522 |
//! | [`average_updates`] | weights before and after several short trainings | arXiv 2311.01420 |
//! | [`ensemble`] | probabilities of several predictors | arXiv 2403.17592, 2411.19757 |
//! | [`dawin`] | logits of two models on unlabelled samples | arXiv 2410.03782 |
//!
//! All of them run on the current rayon pool, give the same bits for any number of threads, allocate nothing of
//! parameter size beyond what they return (soups: and their sums), and compute in f32, or in f64 if an operand is f64.

pub mod dawin;

mod average_updates;
mod beta;
mod ensemble;
mod greedy_soup;
mod interpolator;
mod model_stock;
mod special;
mod uniform_soup;
mod wise_ft;

pub use average_updates::{UpdateEntry, average_updates};
pub use beta::{BetaClusters, BetaMixture};
pub use ensemble::ensemble;
pub use greedy_soup::{Candidate, GreedySoup, greedy_soup};
pub use interpolator::Interpolator;
pub use model_stock::{ModelStock, StockEntry, StockRange, StockUnit};
pub use uniform_soup::UniformSoup;
pub use wise_ft::{WiseEntry, WiseFt};
