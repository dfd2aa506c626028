//! `tpgm convert`.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use tpgm_core::{Buffer, DType, Slice};
use tpgm_files::weight_space::{FilePass, matching, non_finite};
use tpgm_files::{Chosen, Weights, Writer, file_dtype};

use crate::args;
use crate::failure::Failure;
use crate::inspect::open;
use crate::output;
use crate::progress::Progress;

/// What was written.
#[derive(Debug, Serialize)]
struct Json<'a> {
    file: &'a Path,
    out: &'a Path,
    tensors: Vec<Written<'a>>,
    dropped: Vec<&'a str>,
}

#[derive(Debug, Serialize)]
struct Written<'a> {
    name: &'a str,
    #[serde(rename = "type")]
    dtype: String,
    shape: &'a [usize],
    /// Other names of the same tensor in a PyTorch file: it is written once for each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tied_to: Vec<&'a str>,
}

/// Writes a checkpoint as one safetensors file.
pub(crate) fn run(args: &args::Convert) -> Result<(), Failure> {
    let args::Convert { file, out, .. } = args;
    if output::same_file(file, out) {
        return Err(Failure::usage(format!(
            "--out {} is the checkpoint itself: it would be lost",
            out.display()
        )));
    }
    let weights = open(file, &args.open)?;
    let dropped = matching(&weights, &args.drop)?;
    let kept: Vec<&str> = weights.names().filter(|name| !dropped.contains(name)).collect();
    if kept.is_empty() {
        return Err(Failure::usage("--drop leaves no tensor"));
    }
    let dtype = args.dtype.map(DType::from);
    let layout: Vec<_> = kept
        .iter()
        .map(|&name| {
            let entry = weights.get(name).expect("a listed tensor");
            let dtype = entry.float().and(dtype).map_or(entry.dtype, file_dtype);
            (name, dtype, entry.shape)
        })
        .collect();
    let mut writer = Writer::create(out, &metadata(&weights), &layout)?;
    let mut progress = Progress::new("converting");
    for (done, (name, ..)) in layout.iter().enumerate() {
        progress.at(FilePass { tensor: name, done, of: layout.len() });
        copy(&weights, name, dtype, &mut writer)?;
    }
    drop(progress);
    writer.finish()?;
    let written = layout.iter().map(|&(name, dtype, shape)| Written {
        name,
        dtype: dtype.to_string(),
        shape,
        tied_to: weights.twins(name).filter(|twin| kept.contains(twin)).collect(),
    });
    let json = Json { file, out, tensors: written.collect(), dropped: dropped.into_iter().collect() };
    if args.json {
        return output::print_json(&json);
    }
    output::print(&summary(&json, weights.source().chosen()))
}

/// What is told of the file; PyTorch files have nothing to tell, and transformers asks who wrote the tensors.
fn metadata(weights: &Weights) -> BTreeMap<String, String> {
    let mut metadata = weights.metadata();
    if metadata.is_empty() {
        metadata.insert("format".to_owned(), "pt".to_owned());
    }
    metadata
}

/// Appends a tensor, in another type if it is of floating-point numbers and one is asked for.
fn copy(weights: &Weights, name: &str, dtype: Option<DType>, writer: &mut Writer) -> Result<(), Failure> {
    if let Some(dtype) = dtype
        && let Some(values) = weights.values(name)?
    {
        let before = values.slice();
        if before.dtype() != dtype {
            let after = converted(before, dtype);
            let lost = non_finite(after.as_slice()) - non_finite(before);
            if lost > 0 {
                let problem =
                    format!("tensor `{name}`: {lost} values do not fit {dtype}; ask for a wider type");
                return Err(Failure::content(problem));
            }
            return Ok(writer.values(after.as_slice())?);
        }
    }
    let bytes = weights.bytes(name)?.unwrap_or(Cow::Borrowed(&[]));
    Ok(writer.bytes(&bytes)?)
}

/// Rounded to the nearest number of the type. f64 has all numbers of the others.
fn converted(values: Slice<'_>, dtype: DType) -> Buffer {
    Buffer::from_f64(dtype, &values.to_f64())
}

fn summary(json: &Json<'_>, chosen: &[Chosen]) -> String {
    let mut lines: Vec<String> =
        chosen.iter().filter(|it| it.says_something()).map(ToString::to_string).collect();
    lines.push(format!("{}: {} tensors", json.out.display(), json.tensors.len()));
    for Written { name, tied_to, .. } in &json.tensors {
        // Once for each group.
        if tied_to.first().is_some_and(|first| name < first) {
            let others = tied_to.join("`, `");
            lines.push(format!(
                "`{name}` is written again as `{others}`, with which it shares its values; --drop leaves out what is too much"
            ));
        }
    }
    if !json.dropped.is_empty() {
        lines.push(format!("left out: {}", json.dropped.join(", ")));
    }
    lines.join("\n") + "\n"
}
