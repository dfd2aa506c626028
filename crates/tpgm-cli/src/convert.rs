//! `tpgm convert`.

use std::borrow::Cow;

use serde::Serialize;
use tpgm_core::{Buffer, DType};
use tpgm_files::weight_space::{FilePass, matching, non_finite};
use tpgm_files::{Chosen, Weights, Writer, file_dtype};

use crate::args;
use crate::failure::Failure;
use crate::inspect::open;
use crate::output::{self, Shown};
use crate::progress::Progress;

/// Numbers that are converted in one go.
const BLOCK: usize = 1 << 20;

/// What was written.
#[derive(Debug, Serialize)]
struct Json<'a> {
    file: Shown<'a>,
    out: Shown<'a>,
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
    output::refuse_input(out, file, "the checkpoint")?;
    let weights = open(file, &args.open)?;
    let dropped = matching(&weights, &args.drop)?;
    let kept: Vec<&str> = weights.names().filter(|name| !dropped.contains(name)).collect();
    match (kept.is_empty(), dropped.is_empty()) {
        (false, _) => {}
        (true, false) => return Err(Failure::usage("--drop leaves no tensor")),
        (true, true) => return Err(Failure::content(format!("{} has no tensor", file.display()))),
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
    let mut writer = Writer::create(out, &weights.metadata_to_write(), &layout)?;
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
    let json = Json {
        file: Shown(file),
        out: Shown(out),
        tensors: written.collect(),
        dropped: dropped.into_iter().collect(),
    };
    if args.json {
        return output::print_json(&json);
    }
    output::print(&summary(&json, weights.source().chosen()))
}

/// Appends a tensor, in another type if it is of floating-point numbers and one is asked for.
fn copy(weights: &Weights, name: &str, dtype: Option<DType>, writer: &mut Writer) -> Result<(), Failure> {
    if let Some(dtype) = dtype
        && let Some(values) = weights.values(name)?
    {
        let before = values.slice();
        if before.dtype() != dtype {
            let mut lost = 0;
            for start in (0..before.len()).step_by(BLOCK) {
                let before = before.sub(start..(start + BLOCK).min(before.len()));
                // Rounded to the nearest number of the type. f64 has all numbers of the others.
                let after = Buffer::from_f64(dtype, &before.to_f64());
                lost += non_finite(after.as_slice()) - non_finite(before);
                writer.values(after.as_slice())?;
            }
            if lost == 0 {
                return Ok(());
            }
            let place = weights.place();
            return Err(Failure::content(format!(
                "{place}: tensor `{name}`: {lost} values do not fit {dtype}; ask for a wider type"
            )));
        }
    }
    let bytes = weights.bytes(name)?.unwrap_or(Cow::Borrowed(&[]));
    Ok(writer.bytes(&bytes)?)
}

fn summary(json: &Json<'_>, chosen: &[Chosen]) -> String {
    let mut lines: Vec<String> =
        chosen.iter().filter(|it| it.says_something()).map(ToString::to_string).collect();
    lines.push(format!("{}: {} tensors", json.out.0.display(), json.tensors.len()));
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
