//! Text as tokens, and tokens as batches.

use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use candle_core::{Device, Tensor};
use tpgm_examples::data::{ModelTokens, unicode_text};

/// How text becomes tokens and back.
pub(crate) enum Encoder {
    /// Each byte is a token.
    Bytes,
    /// As a `tokenizer.json` says.
    Tokenizer(Box<ModelTokens>),
}

impl Encoder {
    /// The `tokenizer.json` in the folder of a model that knows `known` tokens.
    ///
    /// # Errors
    ///
    /// The file is not there, or is not one; names it.
    pub(crate) fn open(folder: &Path, known: usize) -> Result<Self> {
        let tokens = ModelTokens::open(&folder.join("tokenizer.json"), folder, known)?;
        Ok(Self::Tokenizer(Box::new(tokens)))
    }

    /// See [`ModelTokens::warning`].
    pub(crate) fn warning(&self) -> Option<String> {
        match self {
            Encoder::Bytes => None,
            Encoder::Tokenizer(tokens) => tokens.warning(),
        }
    }

    /// The tokens of a text, without any that mark its begin or end. `name` tells of the text in messages.
    ///
    /// # Errors
    ///
    /// The tokenizer fails, or gives a token that the model does not know.
    pub(crate) fn encode(&self, name: &str, text: &str) -> Result<Vec<u32>> {
        match self {
            Encoder::Bytes => Ok(text.bytes().map(u32::from).collect()),
            Encoder::Tokenizer(tokens) => {
                let encoded = tokens.tokenizer().encode_fast(text, false);
                let encoded = encoded.map_err(|error| anyhow!("{name}: tokenizer: {error}"))?;
                tokens.check(encoded.get_ids()).with_context(|| name.to_owned())?;
                Ok(encoded.get_ids().to_vec())
            }
        }
    }

    /// The text of tokens; what is no Unicode becomes a replacement character.
    pub(crate) fn decode(&self, tokens: &[u32]) -> Result<String> {
        match self {
            Encoder::Bytes => {
                let bytes: Vec<u8> =
                    tokens.iter().map(|token| u8::try_from(*token).unwrap_or(b'?')).collect();
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
            Encoder::Tokenizer(model) => {
                model.tokenizer().decode(tokens, false).map_err(|error| anyhow!("tokenizer: {error}"))
            }
        }
    }
}

/// Reads a text file.
///
/// # Errors
///
/// It cannot be read, or is in another encoding; names it.
pub(crate) fn read(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    unicode_text(&bytes).with_context(|| path.display().to_string())
}

/// Cuts off the last `share` of a text, and the word before it that this would divide.
pub(crate) fn split(text: &str, share: f64) -> (&str, &str) {
    let mut cut = (text.len() as f64 * (1.0 - share)) as usize;
    while !text.is_char_boundary(cut) {
        cut -= 1;
    }
    let end_of_word = text[..cut].char_indices().rfind(|(_, letter)| letter.is_whitespace());
    text.split_at(end_of_word.map_or(cut, |(end, space)| end + space.len_utf8()))
}

/// A text in windows of the same length. Each begins with the last token of the one before, so that over all of them each
/// token but the first is predicted once.
pub(crate) struct Windows {
    tokens: Vec<u32>,
    length: usize,
    device: Device,
}

/// Token ids and which of them count, both of shape (windows, length).
pub(crate) struct Batch {
    pub(crate) ids: Tensor,
    pub(crate) counted: Tensor,
    /// How many tokens are predicted.
    pub(crate) predicted: usize,
}

impl Windows {
    /// Windows of `length` tokens over the tokens of a text that `name` tells of in messages.
    ///
    /// # Errors
    ///
    /// There are fewer than two tokens.
    pub(crate) fn new(name: &str, tokens: Vec<u32>, length: usize) -> Result<Self> {
        ensure!(length >= 2, "--max-length is {length}: a window needs a token to read and one to predict");
        ensure!(tokens.len() >= 2, "{name}: {} tokens are too few to predict one", tokens.len());
        Ok(Self { tokens, length, device: Device::Cpu })
    }

    /// How many windows there are.
    pub(crate) fn len(&self) -> usize {
        (self.tokens.len() - 1).div_ceil(self.length - 1)
    }

    /// Batches come to a device, instead of the processor.
    pub(crate) fn on(self, device: &Device) -> Self {
        Self { device: device.clone(), ..self }
    }

    /// Where batches come to.
    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    /// The windows of these numbers. The last window of a text is padded.
    pub(crate) fn batch(&self, numbers: &[usize]) -> Result<Batch> {
        let (mut ids, mut counted, mut predicted) = (Vec::new(), Vec::new(), 0);
        for number in numbers {
            let start = number * (self.length - 1);
            let window = &self.tokens[start..self.tokens.len().min(start + self.length)];
            let padding = self.length - window.len();
            ids.extend(window.iter().copied().chain(std::iter::repeat_n(0, padding)));
            counted.extend(std::iter::repeat_n(1u8, window.len()).chain(std::iter::repeat_n(0, padding)));
            predicted += window.len() - 1;
        }
        let shape = (numbers.len(), self.length);
        let ids = Tensor::from_vec(ids, shape, &self.device)?;
        Ok(Batch { ids, counted: Tensor::from_vec(counted, shape, &self.device)?, predicted })
    }
}
