//! CLIP's zero-shot classifier.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use candle_core::{Device, Tensor};
use tokenizers::Tokenizer;

/// The names that prompts call the classes.
///
/// # Errors
///
/// The file cannot be read, or has another number of names.
pub(crate) fn names(file: Option<&Path>, classes: &[String]) -> Result<Vec<String>> {
    let Some(file) = file else {
        return Ok(classes.iter().map(|class| class.replace('_', " ")).collect());
    };
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    let names: Vec<_> =
        text.lines().map(|line| line.trim().to_owned()).filter(|line| !line.is_empty()).collect();
    ensure!(
        names.len() == classes.len(),
        "{} has {} names, there are {} classes",
        file.display(),
        names.len(),
        classes.len()
    );
    Ok(names)
}

/// Token ids of each class: `[templates, length]`, padded at the end.
///
/// # Errors
///
/// A template without `{}`, a tokenizer that cannot be read, or a prompt longer than `longest` tokens.
pub(crate) fn prompts(
    tokenizer: &Path,
    names: &[String],
    templates: &[String],
    longest: usize,
) -> Result<Vec<Tensor>> {
    for template in templates {
        ensure!(template.contains("{}"), "--template `{template}` has no `{{}}` for the class");
    }
    let mut encoder =
        Tokenizer::from_file(tokenizer).map_err(|error| anyhow!("{}: {error}", tokenizer.display()))?;
    encoder.with_padding(None);
    let class = |name: &String| {
        let texts: Vec<_> = templates.iter().map(|template| template.replace("{}", name)).collect();
        let encoded =
            encoder.encode_batch(texts, true).map_err(|error| anyhow!("prompts of {name}: {error}"))?;
        let length = encoded.iter().map(tokenizers::Encoding::len).max().unwrap_or(0);
        ensure!(
            length <= longest,
            "a prompt of `{name}` has {length} tokens, the model takes up to {longest}"
        );
        let mut ids = Vec::with_capacity(encoded.len() * length);
        for text in &encoded {
            ids.extend_from_slice(text.get_ids());
            ids.resize(ids.len() + length - text.len(), 0);
        }
        Ok(Tensor::from_vec(ids, (encoded.len(), length), &Device::Cpu)?)
    };
    names.iter().map(class).collect()
}
