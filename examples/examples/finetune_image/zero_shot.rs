//! CLIP's zero-shot classifier.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};
use candle_core::{Device, Tensor};
use tpgm_examples::data::{ModelTokens, unicode_text};

/// The names that prompts call the classes.
///
/// # Errors
///
/// The file cannot be read, or has another number of names.
pub(crate) fn names(file: Option<&Path>, classes: &[String]) -> Result<Vec<String>> {
    let Some(file) = file else {
        return Ok(classes.iter().map(|class| class.replace('_', " ")).collect());
    };
    let bytes = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
    let text = unicode_text(&bytes).with_context(|| file.display().to_string())?;
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
/// A template without `{}`, a prompt longer than `longest` tokens, or with a token that the model does not know.
pub(crate) fn prompts(
    mut tokens: ModelTokens,
    names: &[String],
    templates: &[String],
    longest: usize,
) -> Result<Vec<Tensor>> {
    for template in templates {
        ensure!(template.contains("{}"), "--template `{template}` has no `{{}}` for the class");
    }
    tokens.tokenizer_mut().with_padding(None);
    let class = |name: &String| {
        let texts: Vec<_> = templates.iter().map(|template| template.replace("{}", name)).collect();
        let encoded = tokens.tokenizer().encode_batch(texts, true);
        let encoded = encoded.map_err(|error| anyhow!("prompts of {name}: {error}"))?;
        let length = encoded.iter().map(tokenizers::Encoding::len).max().unwrap_or(0);
        ensure!(
            length <= longest,
            "a prompt of `{name}` has {length} tokens, the model takes up to {longest}"
        );
        let mut ids = Vec::with_capacity(encoded.len() * length);
        for text in &encoded {
            tokens.check(text.get_ids()).with_context(|| format!("a prompt of `{name}`"))?;
            ids.extend_from_slice(text.get_ids());
            ids.resize(ids.len() + length - text.len(), 0);
        }
        Ok(Tensor::from_vec(ids, (encoded.len(), length), &Device::Cpu)?)
    };
    names.iter().map(class).collect()
}
