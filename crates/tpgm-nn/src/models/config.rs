//! Reading a `config.json`.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use candle_nn::VarBuilder;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// The entries of a `config.json`, by name.
pub(super) type Entries = Map<String, Value>;

/// Bytes of the longest file that can be a configuration.
const LONGEST: usize = 1 << 24;

/// The bytes of a file, one more than the longest can have if it has more.
fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![];
    File::open(path)?.take(LONGEST as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// What a model's configuration must look like to be taken for one.
pub(super) struct Kind {
    /// For messages: "the configuration of a BERT model".
    pub(super) what: &'static str,
    /// Every `model_type` that is supported, with what the names of its classes in transformers begin with.
    pub(super) types: &'static [(&'static str, &'static str)],
    /// Entries of which it must have one, if it names no type.
    pub(super) entries: &'static [&'static str],
}

impl Kind {
    /// Reads a file and finds out its type, from `model_type` or from the class in `architectures`: it is the entry
    /// `model_type` of the result, which has none if the file does not say.
    ///
    /// # Errors
    ///
    /// [`Error::Io`], [`Error::BadFile`] if it is no JSON object or has none of the model's entries, [`Error::ModelType`]
    /// for a type that is not supported, or weights that are quantized.
    pub(super) fn read(&self, path: &Path) -> Result<Entries> {
        let bytes = read(path).map_err(Error::io(path))?;
        if bytes.len() > LONGEST {
            return Err(Error::file(path, self.what, format!("it has more than {LONGEST} bytes")));
        }
        let json: Value =
            serde_json::from_slice(&bytes).map_err(|problem| Error::file(path, self.what, problem))?;
        let Value::Object(mut entries) = json else {
            return Err(Error::file(path, self.what, "it is no JSON object"));
        };
        let named = self.type_of(path, &entries)?;
        if named.is_none() && !self.entries.iter().any(|&entry| entries.contains_key(entry)) {
            return Err(Error::file(path, self.what, self.none_of_its_entries(&entries)));
        }
        if entries.get("quantization_config").is_some_and(|config| !config.is_null()) {
            let problem = "quantized weights are not supported: take the checkpoint they were made from";
            return in_file(
                path,
                Err(Error::ModelConfig { entry: "quantization_config", problem: problem.to_owned() }),
            );
        }
        match named {
            Some(named) => entries.insert("model_type".to_owned(), named.into()),
            None => entries.remove("model_type"),
        };
        Ok(entries)
    }

    /// A part of a file may name its type, and then it must be the right one.
    ///
    /// # Errors
    ///
    /// [`Error::ModelType`].
    pub(super) fn check_type(&self, path: &Path, entries: &Entries) -> Result<()> {
        self.type_of(path, entries).map(drop)
    }

    /// The type that a file names, if it names one.
    fn type_of(&self, path: &Path, entries: &Entries) -> Result<Option<&'static str>> {
        let unsupported = |entry, value: &Value| Error::ModelType {
            path: path.to_owned(),
            entry,
            value: value.as_str().map_or_else(|| value.to_string(), str::to_owned),
            what: self.what,
            supported: self.types.iter().map(|(name, _)| *name).collect(),
        };
        match entries.get("model_type").unwrap_or(&Value::Null) {
            Value::Null => {}
            value => {
                let named = |(name, _): &&(&'static str, _)| value.as_str() == Some(name);
                let found = self.types.iter().find(named).map(|(name, _)| *name);
                return found.map(Some).ok_or_else(|| unsupported("model_type", value));
            }
        }
        let Some(class) = entries.get("architectures").and_then(|classes| classes.get(0)) else {
            return Ok(None);
        };
        // RobertaModel, RobertaForMaskedLM, BertLMHeadModel, but not RobertaPreLayerNormModel.
        let is = |prefix: &str| {
            let rest = class.as_str().and_then(|class| class.strip_prefix(prefix));
            rest.is_some_and(|rest| ["Model", "For", "LMHead"].iter().any(|part| rest.starts_with(part)))
        };
        let found = self.types.iter().find(|(_, prefix)| is(prefix)).map(|(name, _)| *name);
        found.map(Some).ok_or_else(|| unsupported("architectures", class))
    }

    fn none_of_its_entries(&self, entries: &Entries) -> String {
        let wanted = self.entries.iter().map(|entry| format!("`{entry}`")).collect::<Vec<_>>().join(", ");
        let whose = match () {
            () if entries.contains_key("model_cfg") => {
                "; it is OpenCLIP's, whose models need Hugging Face's `config.json`, or a preset"
            }
            () if entries.contains_key("pretrained_cfg") => {
                "; it is timm's, of which only ViTs, EfficientNets and MobileNets are known"
            }
            () => "",
        };
        format!("it has neither `model_type` nor any of {wanted}{whose}")
    }

    /// The configuration: entries of the file, and those of `defaults` where it has none.
    pub(super) fn parse<C>(&self, path: &Path, entries: Entries, defaults: &C) -> Result<C>
    where
        C: Serialize + DeserializeOwned,
    {
        let unusable = |problem| Error::file(path, self.what, problem);
        let mut all = serde_json::to_value(defaults).map_err(unusable)?;
        if let Value::Object(all) = &mut all {
            all.extend(entries);
        }
        serde_json::from_value(all).map_err(unusable)
    }
}

/// Names the file that an error about an entry is about.
pub(super) fn in_file<T>(path: &Path, result: Result<T>) -> Result<T> {
    result.map_err(|error| match error {
        Error::ModelConfig { entry, problem } => {
            Error::ModelConfig { entry, problem: format!("{problem} (in {})", path.display()) }
        }
        other => other,
    })
}

/// Takes entries under other names, `(theirs, ours)`, for what they mean here.
///
/// # Errors
///
/// [`Error::ModelConfig`] if both are there and differ.
pub(super) fn rename(entries: &mut Entries, names: &[(&'static str, &str)]) -> Result<()> {
    for &(theirs, ours) in names {
        let Some(value) = entries.remove(theirs) else { continue };
        if let Some(other) = entries.get(ours).filter(|other| **other != value) {
            let problem = format!("it is {value}, but `{ours}`, which means the same, is {other}");
            return Err(Error::ModelConfig { entry: theirs, problem });
        }
        entries.insert(ours.to_owned(), value);
    }
    Ok(())
}

/// The largest size that an entry may have: products of two of them, and what is a few times as large, are numbers.
const LARGEST: usize = 1 << 24;

/// Sizes must be such that a model could have them.
///
/// # Errors
///
/// [`Error::ModelConfig`].
pub(super) fn check_sizes(sizes: &[(&'static str, usize)]) -> Result<()> {
    match sizes.iter().find(|(_, size)| *size > LARGEST) {
        Some(&(entry, size)) => {
            Err(Error::ModelConfig { entry, problem: format!("{size} is more than any model has") })
        }
        None => Ok(()),
    }
}

/// The name that a tensor of `vb` has in the checkpoint.
pub(super) fn full_name(vb: &VarBuilder, tensor: &str) -> String {
    match vb.prefix() {
        prefix if prefix.is_empty() => tensor.to_owned(),
        prefix => format!("{prefix}.{tensor}"),
    }
}
