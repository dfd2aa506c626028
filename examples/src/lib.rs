//! What the fine-tuning examples share.

pub mod environment;
pub mod files;
pub mod mosaic;
pub mod plot;
pub mod progress;
pub mod stop;
pub mod table;
pub mod timing;
pub mod workers;
