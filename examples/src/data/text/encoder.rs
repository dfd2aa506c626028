//! Texts as tokens.

use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use candle_core::{Device, Tensor};
use tokenizers::TruncationParams;

use super::Row;
use crate::data::{ModelTokens, Problems};
use crate::study::Batch;

/// Texts as token ids. The tokenizer is that of a `tokenizer.json`.
pub struct TextEncoder {
    tokens: ModelTokens,
    padding: u32,
}

impl TextEncoder {
    /// Reads `tokenizer.json` in the folder of a model that knows `known` tokens. Texts are cut at `max_length` tokens, those
    /// that the tokenizer adds included.
    ///
    /// # Errors
    ///
    /// The file cannot be read or understood, or the model does not know the token that it pads with.
    pub fn open(model: &Path, max_length: usize, known: usize) -> Result<Self> {
        let path = model.join("tokenizer.json");
        let mut tokens = ModelTokens::open(&path, &model.join("model.safetensors"), known)?;
        let tokenizer = tokens.tokenizer_mut();
        let padding = tokenizer.get_padding().map_or_else(
            || ["[PAD]", "<pad>"].iter().find_map(|token| tokenizer.token_to_id(token)).unwrap_or(0),
            |padding| padding.pad_id,
        );
        // Batches are padded to their longest text; what the file says of padding is for other uses.
        tokenizer.with_padding(None);
        let cut = TruncationParams { max_length, ..TruncationParams::default() };
        tokenizer.with_truncation(Some(cut)).map_err(|error| anyhow!("{}: {error}", path.display()))?;
        tokens.check(&[padding]).context("the token that texts are padded with")?;
        Ok(Self { tokens, padding })
    }

    /// Pads with a token of the model's own choice, not of the tokenizer's.
    ///
    /// # Errors
    ///
    /// The model does not know it.
    pub fn padded_with(self, padding: u32) -> Result<Self> {
        self.tokens.check(&[padding]).context("the token that texts are padded with")?;
        Ok(Self { padding, ..self })
    }

    /// See [`ModelTokens::warning`].
    pub fn warning(&self) -> Option<String> {
        self.tokens.warning()
    }

    /// Encodes texts on several threads. `name` is for messages. A class that is not in `classes` is noted in `problems`.
    ///
    /// # Errors
    ///
    /// The tokenizer fails, a token that the model does not know, or no text is left.
    pub fn encode(
        &self,
        name: &Path,
        rows: &[Row],
        classes: &[String],
        problems: &Problems,
    ) -> Result<TextSet> {
        let mut known = Vec::new();
        for row in rows {
            match classes.binary_search(&row.label) {
                Ok(class) => known.push((row, class as u32)),
                Err(_) => problems.note(
                    format!("{}:{}", name.display(), row.line),
                    format!("`{}` is not a class of the training texts", row.label),
                )?,
            }
        }
        ensure!(!known.is_empty(), "{} has no texts that can be used", name.display());
        let texts: Vec<&str> = known.iter().map(|(row, _)| row.text.as_str()).collect();
        let encoded = self
            .tokens
            .tokenizer()
            .encode_batch_fast(texts, true)
            .map_err(|error| anyhow!("{}: {error}", name.display()))?;
        for (text, (row, _)) in encoded.iter().zip(&known) {
            self.tokens.check(text.get_ids()).with_context(|| format!("{}:{}", name.display(), row.line))?;
        }
        Ok(TextSet {
            tokens: encoded.iter().map(|text| text.get_ids().to_vec()).collect(),
            labels: known.iter().map(|(_, class)| *class).collect(),
            padding: self.padding,
        })
    }
}

/// Encoded texts with their classes.
#[derive(Debug, Clone)]
pub struct TextSet {
    tokens: Vec<Vec<u32>>,
    labels: Vec<u32>,
    padding: u32,
}

/// Some texts, as long as the longest of them.
#[derive(Debug, Clone)]
pub struct TextBatch {
    /// Token ids, `[texts, length]`.
    pub ids: Tensor,
    /// 1 for tokens, 0 for padding; of the same shape.
    pub mask: Tensor,
    /// Classes, `[texts]`.
    pub labels: Tensor,
}

impl Batch for TextBatch {
    fn to_device(self, device: &Device) -> candle_core::Result<Self> {
        let Self { ids, mask, labels } = self;
        let on = |tensor: Tensor| tensor.to_device(device);
        Ok(Self { ids: on(ids)?, mask: on(mask)?, labels: on(labels)? })
    }
}

impl TextSet {
    /// The class of each text.
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// Number of texts.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Tokens of all texts.
    pub fn tokens(&self) -> usize {
        self.tokens.iter().map(Vec::len).sum()
    }

    /// These texts, and after them those of another set of the same encoder.
    #[must_use]
    pub fn with(&self, more: &Self) -> Self {
        Self {
            tokens: [&self.tokens[..], &more.tokens].concat(),
            labels: [&self.labels[..], &more.labels].concat(),
            padding: self.padding,
        }
    }

    /// The texts at some positions.
    #[must_use]
    pub fn select(&self, positions: &[usize]) -> Self {
        Self {
            tokens: positions.iter().map(|position| self.tokens[*position].clone()).collect(),
            labels: positions.iter().map(|position| self.labels[*position]).collect(),
            padding: self.padding,
        }
    }

    /// Positions of all texts, longest first: batches of neighbors have little padding.
    pub fn by_length(&self) -> Vec<usize> {
        let mut positions: Vec<_> = (0..self.len()).collect();
        positions.sort_by_key(|position| std::cmp::Reverse(self.tokens[*position].len()));
        positions
    }

    /// A batch.
    ///
    /// # Errors
    ///
    /// The device fails.
    pub fn batch(&self, positions: &[usize], device: &Device) -> Result<TextBatch> {
        let texts = || positions.iter().map(|position| &self.tokens[*position]);
        let length = texts().map(Vec::len).max().unwrap_or(0);
        let shape = (positions.len(), length);
        let (mut ids, mut mask) =
            (Vec::with_capacity(shape.0 * length), Vec::with_capacity(shape.0 * length));
        for text in texts() {
            ids.extend_from_slice(text);
            mask.extend(std::iter::repeat_n(1u32, text.len()));
            ids.resize(ids.len() + length - text.len(), self.padding);
            mask.resize(ids.len(), 0);
        }
        let labels: Vec<_> = positions.iter().map(|position| self.labels[*position]).collect();
        Ok(TextBatch {
            ids: Tensor::from_vec(ids, shape, device)?,
            mask: Tensor::from_vec(mask, shape, device)?,
            labels: Tensor::from_vec(labels, positions.len(), device)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_padded_to_their_longest_text() {
        let set =
            TextSet { tokens: vec![vec![5, 6, 7], vec![8], vec![9, 10]], labels: vec![1, 0, 2], padding: 4 };
        assert_eq!(set.by_length(), [0, 2, 1]);
        let batch = set.select(&[2, 1]).batch(&[1, 0], &Device::Cpu).unwrap();
        assert_eq!(batch.ids.to_vec2::<u32>().unwrap(), [[8, 4], [9, 10]]);
        assert_eq!(batch.mask.to_vec2::<u32>().unwrap(), [[1, 0], [1, 1]]);
        assert_eq!(batch.labels.to_vec1::<u32>().unwrap(), [0, 2]);
    }
}
