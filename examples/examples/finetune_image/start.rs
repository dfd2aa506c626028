//! The checkpoint that a study starts from: any file that can be read, as safetensors with the names of the network.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use candle_core::{Device, Tensor};
use serde::Serialize;
use tpgm_candle::files::OpenOptions;
use tpgm_candle::models::clip::Clip;
use tpgm_candle::nn::DropoutRng;
use tpgm_candle::{Params, Report};
use tpgm_examples::data::ModelTokens;

use crate::network::Shape;
use crate::zero_shot::{names, prompts};

/// A checkpoint as it was found.
pub(crate) struct Found<'a> {
    pub(crate) path: &'a Path,
    pub(crate) prefix: &'a str,
    /// Where a PyTorch file has its weights.
    pub(crate) key: Option<&'a str>,
    /// Patterns of tensors that the network need not use.
    pub(crate) unused: &'a [String],
    pub(crate) shape: &'a Shape,
    pub(crate) classes: &'a [String],
}

/// Prompts of a zero-shot head.
pub(crate) struct Prompts<'a> {
    pub(crate) names: Option<&'a Path>,
    pub(crate) templates: &'a [String],
    pub(crate) tokenizer: PathBuf,
}

/// What an outcome depends on, with the place of the weights in the checkpoint where one was named: two keys of a file are two
/// models. Without one it is what it was before places were in it, so that outcomes of then are still known.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum DependsOn<P> {
    Usual(P),
    Placed(P, Option<String>, String),
}

impl<P> DependsOn<P> {
    pub(crate) fn new(print: P, key: Option<String>, prefix: &str) -> Self {
        match (key, prefix) {
            (None, "") => Self::Usual(print),
            (key, prefix) => Self::Placed(print, key, prefix.to_owned()),
        }
    }
}

impl Found<'_> {
    /// The checkpoint, read where the network looks for its tensors.
    fn params(&self) -> Result<Params> {
        let options = self.key.map_or_else(OpenOptions::new, |key| OpenOptions::new().key(key));
        let params = Params::open_with(self.path, &options, &Device::Cpu)?;
        let params = self.unused.iter().fold(params, |params, pattern| params.unused(pattern));
        Ok(if self.prefix.is_empty() { params } else { params.rename("", self.prefix) })
    }

    /// What the names of the head's tensors begin with.
    ///
    /// # Errors
    ///
    /// The checkpoint cannot be read.
    pub(crate) fn head(&self) -> Result<&'static str> {
        Ok(self.shape.head(&self.params()?.var_builder()))
    }

    /// Writes the network's tensors without its head; with `prompts`, with the zero-shot head. Returns what became of the
    /// checkpoint.
    ///
    /// # Errors
    ///
    /// The checkpoint does not fit the network, the prompts cannot be made, or the file cannot be written.
    pub(crate) fn write(&self, out: &Path, prompts: Option<&Prompts<'_>>) -> Result<Report> {
        let head = self.head()?;
        let params = self.params()?.head(format!("{head}.*"));
        let fits = || format!("{} does not fit the network", self.path.display());
        self.shape
            .network(self.classes.len(), &DropoutRng::new(0), params.var_builder())
            .with_context(fits)?;
        let report = params.report()?;
        let mut tensors: HashMap<String, Tensor> = params.values().into_iter().collect();
        tensors.retain(|name, _| !name.starts_with(&format!("{head}.")));
        if let Some(prompts) = prompts {
            tensors.insert(format!("{head}.weight"), self.zero_shot(prompts).with_context(fits)?);
        }
        save(&tensors, out)?;
        Ok(report)
    }

    fn zero_shot(&self, options: &Prompts<'_>) -> Result<Tensor> {
        let Shape::Clip(config) = self.shape else { bail!("zero-shot needs a text tower: CLIP") };
        let names = names(options.names, self.classes)?;
        let longest = config.text.max_position_embeddings;
        let tokens = ModelTokens::open(&options.tokenizer, self.path, config.text.vocab_size)?;
        let prompts = prompts(tokens, &names, options.templates, longest)?;
        let frozen = self.params()?.freeze("*");
        let clip = Clip::new(config, frozen.var_builder())?;
        Ok(clip.zero_shot(&prompts)?)
    }

    /// Writes the network's tensors with its head: a model that was fine-tuned elsewhere. Returns what became of it.
    ///
    /// # Errors
    ///
    /// The checkpoint does not fit the network, or has no head for these classes; the file cannot be written.
    pub(crate) fn write_whole(&self, out: &Path) -> Result<Report> {
        let params = self.params()?;
        self.shape
            .network(self.classes.len(), &DropoutRng::new(0), params.var_builder())
            .with_context(|| format!("{} does not fit the network with its head", self.path.display()))?;
        let tensors: HashMap<String, Tensor> = params.values().into_iter().collect();
        ensure!(!tensors.is_empty(), "{} has no tensors of the network", self.path.display());
        save(&tensors, out)?;
        Ok(params.report()?)
    }
}

fn save(tensors: &HashMap<String, Tensor>, out: &Path) -> Result<()> {
    if let Some(folder) = out.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    }
    candle_core::safetensors::save(tensors, out).with_context(|| format!("cannot write {}", out.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_of_two_places_in_a_file_are_told_apart_and_old_ones_are_known() {
        let print = |key: Option<&str>, prefix: &str| {
            serde_json::to_string(&DependsOn::new((1, "a"), key.map(str::to_owned), prefix)).unwrap()
        };
        assert_eq!(print(None, ""), r#"[1,"a"]"#);
        assert_eq!(print(Some("model_ema"), ""), r#"[[1,"a"],"model_ema",""]"#);
        assert_eq!(print(None, "visual."), r#"[[1,"a"],null,"visual."]"#);
    }
}
