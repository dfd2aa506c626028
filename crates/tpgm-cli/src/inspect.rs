//! `tpgm inspect`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde::Serialize;
use tpgm_files::weight_space::{self, Renames, refuse_quantized};
use tpgm_files::{OpenOptions, Weights};

use crate::args;
use crate::failure::Failure;
use crate::kind::{Found, Role};
use crate::output::{self, Shown};
use crate::table::{Table, shape};

/// What is told of a checkpoint.
#[derive(Debug, Serialize)]
struct Json<'a> {
    files: Vec<Shown<'a>>,
    /// Of PyTorch files that hold more than weights: where the weights were found, and other keys with tensors.
    keys: Vec<Key<'a>>,
    model: Option<&'static str>,
    /// What the names of the model begin with.
    prefix: Option<&'a str>,
    /// What `config.json` beside it says that it is.
    #[serde(skip_serializing_if = "Option::is_none")]
    model_type: Option<String>,
    tensors: Vec<Tensor<'a>>,
    numbers: usize,
    bytes: usize,
    unused: Vec<&'a str>,
    refused: Vec<String>,
    metadata: BTreeMap<String, String>,
}

#[derive(Debug, Serialize)]
struct Key<'a> {
    file: Shown<'a>,
    key: Option<&'a str>,
    others: &'a [String],
}

#[derive(Debug, Serialize)]
struct Tensor<'a> {
    name: &'a str,
    #[serde(rename = "type")]
    dtype: String,
    shape: &'a [usize],
    /// `None` if the model is not known.
    role: Option<Role>,
    /// Other names of the same values in a PyTorch file.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tied_to: Vec<&'a str>,
}

/// Opens a checkpoint; a rule that renames nothing is a mistake.
pub(crate) fn open(file: &Path, args: &args::Open) -> Result<Weights, Failure> {
    let options = args.key.as_ref().map_or_else(OpenOptions::new, |key| OpenOptions::new().key(key));
    let mut renames = Renames::new(&args.rename);
    let weights = renames.open(file, &options)?;
    renames.check_used(&weights)?;
    Ok(weights)
}

/// Prints what a checkpoint holds.
pub(crate) fn run(args: &args::Inspect) -> Result<(), Failure> {
    let weights = open(&args.file, &args.open)?;
    let names: BTreeSet<&str> = weights.names().collect();
    let found = Found::new(&names);
    let tensors = weights.names().map(|name| {
        let entry = weights.get(name).expect("a listed tensor");
        Tensor {
            name,
            dtype: entry.dtype.to_string(),
            shape: entry.shape,
            role: found.as_ref().map(|found| found.role(name)),
            tied_to: weights.twins(name).collect(),
        }
    });
    let tensors: Vec<Tensor<'_>> = tensors.collect();
    let sizes = weights.names().filter_map(|name| {
        let entry = weights.get(name)?;
        let numbers: usize = entry.shape.iter().product();
        // A second name of the same values takes no room.
        let again = weights.twins(name).any(|twin| twin < name);
        (!again).then_some((numbers, (numbers * entry.dtype.bitsize()).div_ceil(8)))
    });
    let (numbers, bytes) = sizes.fold((0, 0), |(n, b), (numbers, bytes)| (n + numbers, b + bytes));
    let source = weights.source();
    let model_type = source.paths().next().and_then(model_type_beside);
    let refused = refused(&weights, &names, found.as_ref(), model_type.as_deref());
    let keys = source.chosen().iter().filter(|chosen| chosen.says_something());
    let json = Json {
        files: source.paths().map(Shown).collect(),
        keys: keys
            .map(|it| Key { file: Shown(&it.file), key: it.key.as_deref(), others: &it.others })
            .collect(),
        model: found.as_ref().map(Found::name).or_else(|| {
            let factor = |name: &&str| name.ends_with(".lora_A.weight");
            names.iter().any(factor).then_some("LoRA adapter (PEFT)")
        }),
        prefix: found.as_ref().map(|found| found.prefix),
        model_type,
        numbers,
        bytes,
        unused: tensors.iter().filter(|it| it.role == Some(Role::Unused)).map(|it| it.name).collect(),
        refused,
        metadata: weights.metadata(),
        tensors,
    };
    if args.json {
        return output::print_json(&json);
    }
    let known = found.as_ref().is_some_and(Found::knows_prefix);
    output::print(&format!("{}\n{}\n", json.table().text(), json.summary(known).join("\n")))
}

/// What the `config.json` in the folder of a file says.
fn model_type_beside(file: &Path) -> Option<String> {
    let text = std::fs::read(file.parent()?.join("config.json")).ok()?;
    let config: serde_json::Value = serde_json::from_slice(&text).ok()?;
    config.get("model_type")?.as_str().map(str::to_owned)
}

/// Why the library's model, and what merges and measures, would not take the checkpoint.
fn refused(
    weights: &Weights,
    names: &BTreeSet<&str>,
    found: Option<&Found<'_>>,
    model_type: Option<&str>,
) -> Vec<String> {
    let quantized = refuse_quantized(weights, |_| false).err().and_then(|error| match error {
        weight_space::Error::Quantized { tensor, sign, .. } => {
            Some(format!("it is quantized: `{tensor}` {sign}"))
        }
        _ => None,
    });
    let mut reasons: Vec<String> = quantized.into_iter().collect();
    reasons.extend(found.map(|found| found.refused(names, model_type)).unwrap_or_default());
    reasons
}

impl Json<'_> {
    fn table(&self) -> Table {
        // What is used of a model that is not known nobody knows.
        let titles = ["tensor", "type", "shape", "use"];
        let mut table = Table::new(4, titles.into_iter().take(if self.prefix.is_some() { 4 } else { 3 }));
        for Tensor { name, dtype, shape: dims, role, tied_to } in &self.tensors {
            let mut role = match role {
                Some(Role::Weight) => "weight",
                Some(Role::Head) => "head",
                Some(Role::Buffer) => "buffer",
                Some(Role::Unused) => "unused",
                None => "",
            }
            .to_owned();
            if let Some(first) = tied_to.first().filter(|first| *first < name) {
                role = format!("{role}, as {first}");
            }
            let mut row = vec![(*name).to_owned(), dtype.clone(), shape(dims)];
            row.extend(self.prefix.map(|_| role));
            table.rows.push(row);
        }
        table
    }

    fn summary(&self, known_prefix: bool) -> Vec<String> {
        let mut lines = vec![];
        for file in &self.files {
            lines.push(format!("file: {}", file.0.display()));
        }
        for Key { key, others, .. } in &self.keys {
            let place = key.map_or("at the top".to_owned(), |key| format!("under `{key}`"));
            let others = match others {
                [] => String::new(),
                others => format!("; --key takes those under `{}`", others.join("` or `")),
            };
            lines.push(format!("weights: {place}{others}"));
        }
        lines.push(format!(
            "tensors: {}, numbers: {}, bytes: {}",
            self.tensors.len(),
            self.numbers,
            self.bytes
        ));
        for (key, text) in &self.metadata {
            lines.push(format!("metadata: {key} = {text}"));
        }
        if let Some(model_type) = &self.model_type {
            lines.push(format!("config.json: model_type `{model_type}`"));
        }
        for reason in &self.refused {
            lines.push(format!("refused: {reason}"));
        }
        let Some(model) = self.model else {
            lines.push(
                "model: by its names none that tpgm knows; what would be unused is not known".to_owned(),
            );
            return lines;
        };
        let Some(prefix) = self.prefix else {
            lines.push(format!("model: {model}"));
            return lines;
        };
        lines.push(match prefix {
            "" => format!("model: {model}"),
            prefix => format!("model: {model}, under `{prefix}`"),
        });
        if !known_prefix {
            lines.push(format!(
                "the model does not look under `{prefix}`: `tpgm convert --rename '{prefix}*=*'` takes it off"
            ));
        }
        lines.push(match &self.unused[..] {
            [] => "unused: none".to_owned(),
            unused => format!("unused: {}: {}", unused.len(), unused.join(", ")),
        });
        if self.unused.iter().any(|name| name.ends_with("LayerNorm.gamma")) {
            lines.push(
                "old names: `--rename '*.gamma=*.weight' --rename '*.beta=*.bias'` makes them those that are read".to_owned(),
            );
        }
        lines
    }
}
