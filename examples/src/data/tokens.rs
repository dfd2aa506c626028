//! The tokenizer of a model.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use tokenizers::Tokenizer;

use super::utf8;

/// A tokenizer, and how many tokens its model knows: a folder may have files of two models.
#[derive(Debug, Clone)]
pub struct ModelTokens {
    tokenizer: Tokenizer,
    file: PathBuf,
    model: PathBuf,
    known: usize,
}

impl ModelTokens {
    /// Reads a `tokenizer.json`. `model` is the file or folder of a model that knows tokens from 0 to `known - 1`.
    ///
    /// # Errors
    ///
    /// The file cannot be read or understood; names it.
    pub fn open(file: &Path, model: &Path, known: usize) -> Result<Self> {
        let bytes = std::fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let tokenizer = parse(&utf8(&bytes).with_context(|| file.display().to_string())?)
            .with_context(|| file.display().to_string())?;
        Ok(Self { tokenizer, file: file.to_owned(), model: model.to_owned(), known })
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The tokenizer, to set how it cuts and pads.
    pub fn tokenizer_mut(&mut self) -> &mut Tokenizer {
        &mut self.tokenizer
    }

    /// Checks that the model knows all tokens of a text.
    ///
    /// # Errors
    ///
    /// Names the first token that it does not know, the tokenizer and the model.
    pub fn check(&self, tokens: &[u32]) -> Result<()> {
        match tokens.iter().find(|token| **token as usize >= self.known) {
            Some(token) => bail!("{}", self.unknown(*token)),
            None => Ok(()),
        }
    }

    /// What to say before any text is read, if the tokenizer has tokens that the model does not know: no text may have
    /// one of them.
    pub fn warning(&self) -> Option<String> {
        let tokens = self.tokenizer.get_vocab(true);
        let first = tokens.values().filter(|token| **token as usize >= self.known).min()?;
        Some(format!("{}; a text that has it cannot be used", self.unknown(*first)))
    }

    fn unknown(&self, token: u32) -> String {
        let name = self.tokenizer.id_to_token(token).unwrap_or_default();
        let (file, model, known) = (self.file.display(), self.model.display(), self.known);
        format!(
            "token {token} (`{name}`) of {file} is none of {model}: the model knows {known} tokens, and the tokenizer has {}. \
             Is it the tokenizer of another model?",
            self.tokenizer.get_vocab_size(true)
        )
    }
}

/// Reads a tokenizer. The library panics at some files that make no sense.
fn parse(bytes: &[u8]) -> Result<Tokenizer> {
    serde_json::from_slice::<serde::de::IgnoredAny>(bytes).context("is no JSON")?;
    // Nothing is shared with it, so nothing is left half done.
    match catch_unwind(AssertUnwindSafe(|| Tokenizer::from_bytes(bytes))) {
        Ok(tokenizer) => tokenizer.map_err(|error| anyhow!("{error}")),
        Err(_) => bail!("is no tokenizer that can be understood"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damaged_tokenizer_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        for text in [
            "",
            "{",
            r#"{"version": "1.0", "decoder": , "model": {}}"#,
            r#"{"decoder": {"type": "?"}}"#,
            "[1]",
        ] {
            std::fs::write(&path, text).unwrap();
            let error = format!("{:#}", ModelTokens::open(&path, Path::new("model"), 7).err().unwrap());
            assert!(error.contains("tokenizer.json: "), "{text}: {error}");
        }
    }
}
