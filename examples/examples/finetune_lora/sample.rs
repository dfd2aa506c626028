//! What a model says, and how well it predicts.

use anyhow::{Context, Result};
use candle_core::{DType, Device, Tensor};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use tpgm_candle::models::llama::Llama;

use crate::text::Windows;

/// The perplexity of a text: the exponential of the mean loss over its tokens.
pub(crate) fn perplexity(model: &Llama, windows: &Windows, batch: usize) -> Result<f64> {
    let (mut sum, mut count) = (0.0, 0);
    let numbers: Vec<usize> = (0..windows.len()).collect();
    for numbers in numbers.chunks(batch.max(1)) {
        let batch = windows.batch(numbers)?;
        let loss = model.loss(&batch.ids, &batch.counted, false)?.to_dtype(DType::F64)?.to_scalar::<f64>()?;
        sum += loss * batch.predicted as f64;
        count += batch.predicted;
    }
    Ok((sum / count as f64).exp())
}

/// How a text is continued.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sampling {
    /// Tokens to add.
    pub(crate) tokens: usize,
    /// 0 takes the likeliest token, 1 draws from the model's distribution.
    pub(crate) temperature: f64,
    pub(crate) seed: u64,
    /// Tokens that the model sees.
    pub(crate) length: usize,
}

/// Continues a prompt by a model on `device`, token by token, computing everything anew each time: simple, and slow for long texts.
pub(crate) fn continued(
    model: &Llama,
    device: &Device,
    prompt: &[u32],
    sampling: Sampling,
) -> Result<Vec<u32>> {
    let mut random = ChaCha8Rng::seed_from_u64(sampling.seed);
    let mut tokens = prompt.to_vec();
    for _ in 0..sampling.tokens {
        let seen = &tokens[tokens.len().saturating_sub(sampling.length)..];
        let logits = model.forward(&Tensor::new(seen, device)?.unsqueeze(0)?, false)?;
        let last = logits.get(0)?.get(seen.len() - 1)?.to_dtype(DType::F64)?.to_vec1::<f64>()?;
        tokens.push(choose(&last, sampling.temperature, &mut random)?);
    }
    Ok(tokens)
}

fn choose(logits: &[f64], temperature: f64, random: &mut ChaCha8Rng) -> Result<u32> {
    let likeliest = logits.iter().copied().enumerate().max_by(|a, b| a.1.total_cmp(&b.1));
    let (best, most) = likeliest.context("a model without a vocabulary")?;
    if temperature <= 0.0 {
        return Ok(best as u32);
    }
    let weights: Vec<f64> = logits.iter().map(|logit| ((logit - most) / temperature).exp()).collect();
    let mut left = weights.iter().sum::<f64>() * (random.next_u64() >> 11) as f64 / (1u64 << 53) as f64;
    for (token, weight) in weights.iter().enumerate() {
        left -= weight;
        if left < 0.0 {
            return Ok(token as u32);
        }
    }
    Ok(best as u32)
}
