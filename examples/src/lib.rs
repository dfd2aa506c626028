//! What the fine-tuning examples share.

pub mod data;
pub mod device;
pub mod environment;
pub mod failure;
pub mod files;
pub mod fingerprint;
pub mod folder;
pub mod help;
pub mod hub;
pub mod loader;
pub mod metrics;
pub mod mini;
pub mod mosaic;
pub mod page;
pub mod plot;
pub mod precision;
pub mod progress;
pub mod quick;
pub mod search;
pub mod stop;
pub mod study;
pub mod table;
pub mod timing;
pub mod workers;

/// Runs the examples of the workspace's pages as documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
#[doc = include_str!("../../docs/candle.md")]
#[doc = include_str!("../../docs/gpus.md")]
#[doc = include_str!("../../docs/lora.md")]
#[doc = include_str!("../../docs/losses.md")]
#[doc = include_str!("../../docs/merging.md")]
#[doc = include_str!("../../docs/radii.md")]
#[doc = include_str!("../../docs/resuming.md")]
#[doc = include_str!("../../docs/slices.md")]
#[doc = include_str!("../../docs/start.md")]
struct PagesDoctests;
