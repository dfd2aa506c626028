//! Configurations of models.

use tpgm_candle::models::{bert, clip, llama, vit};

use crate::scratch;

/// Every model's own reader sees the bytes.
pub(crate) fn models(bytes: &[u8]) {
    let path = scratch::file("model/config.json", bytes);
    let _ = bert::BertConfig::from_file(&path);
    let _ = vit::VitConfig::from_file(&path);
    let _ = clip::ClipConfig::from_file(&path);
    let _ = llama::LlamaConfig::from_file(&path);
}
