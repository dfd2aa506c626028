//! A small decoder over bytes, pre-trained on the spot: the example without a download.

use std::path::Path;

use anyhow::Result;
use tpgm_candle::models::llama::{Llama, LlamaConfig};
use tpgm_candle::{AdamW, DataOrder, Params, RobustOptimizer, Schedule};
use tpgm_examples::files;
use tpgm_examples::loader::next_positions;
use tpgm_examples::progress::Progress;

use crate::text::Windows;

/// How the model is pre-trained.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pretraining {
    pub(crate) steps: u64,
    pub(crate) batch: usize,
    pub(crate) seed: u64,
}

const LR: f64 = 3e-3;

/// Two blocks of two query heads to a key: 0.13 M parameters.
pub(crate) fn config() -> LlamaConfig {
    LlamaConfig {
        vocab_size: 256,
        hidden_size: 64,
        intermediate_size: 192,
        num_hidden_layers: 2,
        num_attention_heads: 4,
        num_key_value_heads: Some(2),
        max_position_embeddings: 256,
        ..LlamaConfig::default()
    }
}

/// Trains a new model and writes it to a folder as Hugging Face does.
pub(crate) fn pretrain(
    folder: &Path,
    windows: &Windows,
    how: Pretraining,
    progress: &Progress,
) -> Result<()> {
    let params = Params::new(windows.device()).head("*").seed(how.seed);
    let model = Llama::new(&config(), params.var_builder())?;
    let mut optimizer = RobustOptimizer::builder(&params).rule(AdamW::default()).build()?;
    let schedule = Schedule::cosine(LR, how.steps).warmup(how.steps / 20);
    let mut order = DataOrder::new(windows.len(), how.batch, how.seed)?;
    let bar = progress.bar("pre-training", how.steps);
    for step in 0..how.steps {
        let batch = windows.batch(&next_positions(&mut order))?;
        optimizer.set_learning_rate(schedule.lr(step));
        let info = optimizer.backward_step(&model.loss(&batch.ids, &batch.counted, true)?)?;
        bar.set_message(info.loss.map(|loss| format!("loss {loss:.3}")).unwrap_or_default());
        bar.inc(1);
    }
    bar.finish_and_clear();
    files::write_json(&folder.join("config.json"), &config())?;
    let weights = params.tensors().into_iter().collect();
    candle_core::safetensors::save(&weights, folder.join("model.safetensors"))?;
    Ok(())
}
