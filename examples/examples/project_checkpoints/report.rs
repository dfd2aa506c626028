//! The table, the summary and the plot.

use std::path::{Path, PathBuf};

use anyhow::Result;
use tpgm_candle::weight_space::{Distances, MergeMethod, MergeReport, TensorDistance};
use tpgm_examples::bars::{Bars, Series};
use tpgm_examples::table::Table;

/// Distances of models from their anchor, and of what was made of them.
pub(crate) struct Report<'a> {
    pub(crate) models: &'a [PathBuf],
    /// Of each model, in the order of the anchor's file.
    pub(crate) before: Vec<Distances>,
    pub(crate) after: Option<After>,
}

/// What a merge did.
pub(crate) struct After {
    pub(crate) distances: Distances,
    pub(crate) merged: MergeReport,
    pub(crate) method: MergeMethod,
}

impl Report<'_> {
    /// A name and the distances of each checkpoint.
    fn columns(&self) -> Vec<(String, &Distances)> {
        let mut columns: Vec<_> = self
            .models
            .iter()
            .zip(&self.before)
            .map(|(path, distances)| {
                let name = if self.models.len() == 1 { "before".to_owned() } else { short_name(path) };
                (name, distances)
            })
            .collect();
        if let Some(after) = &self.after {
            columns.push(("after".to_owned(), &after.distances));
        } else if let [(name, _)] = &mut columns[..] {
            name.clear();
        }
        columns
    }

    /// Tensors of the anchor that a model has too, in the order of the anchor's file.
    fn tensors(&self) -> Vec<&str> {
        // Models may have different tensors: the order of the longest list, and what only others have behind it.
        let mut lists: Vec<&Vec<TensorDistance>> = self.before.iter().map(|found| &found.tensors).collect();
        lists.sort_by_key(|list| std::cmp::Reverse(list.len()));
        let mut names: Vec<&str> = Vec::new();
        let mut known = std::collections::HashSet::new();
        for distance in lists.into_iter().flatten() {
            if known.insert(distance.name.as_str()) {
                names.push(&distance.name);
            }
        }
        names
    }

    /// A row per tensor: its norms, and the ratio of its displacement that was kept.
    pub(crate) fn table(&self) -> Table {
        let columns = self.columns();
        let mut table = Table::new(["tensor", "shape"]);
        for (name, _) in &columns {
            let column =
                |norm: &str| if name.is_empty() { norm.to_owned() } else { format!("{norm} {name}") };
            table.header.extend(["L2", "MARS", "relative"].map(column));
        }
        if self.after.is_some() {
            table.header.push("ratio".to_owned());
        }
        for name in self.tensors() {
            let found: Vec<_> = columns
                .iter()
                .map(|(_, distances)| distances.tensors.iter().find(|distance| distance.name == name))
                .collect();
            let shape = found.iter().flatten().next().map(|distance| shape(&distance.shape));
            let mut row = vec![name.to_owned(), shape.unwrap_or_default()];
            for distance in found {
                row.extend(match distance {
                    Some(it) => [it.l2, it.mars_mean, it.relative].map(number),
                    None => std::array::from_fn(|_| String::new()),
                });
            }
            if let Some(after) = &self.after {
                row.push(after.ratio(name));
            }
            table.rows.push(row);
        }
        table
    }

    /// What was not measured or merged, for every checkpoint.
    pub(crate) fn notes(&self) -> Vec<String> {
        let merged = self.after.iter().map(|after| after.merged.to_string());
        let mut notes: Vec<String> = self
            .models
            .iter()
            .zip(&self.before)
            .map(|(path, distances)| format!("{}: {distances}", path.display()))
            .chain(merged)
            .collect();
        notes.push(String::new());
        notes
    }

    /// The distance of all tensors together.
    pub(crate) fn summary(&self) -> String {
        let parts: Vec<_> = self
            .columns()
            .into_iter()
            .map(|(name, distances)| [name, number(distances.l2())].join(" ").trim().to_owned())
            .collect();
        format!("L2 distance of all tensors together: {}", parts.join(", "))
    }

    /// Relative distances of every tensor, before and after.
    pub(crate) fn plot(&self) -> Result<String> {
        let tensors = self.tensors();
        let series = |(name, distances): (String, &Distances)| Series {
            name: if name.is_empty() { short_name(&self.models[0]) } else { name },
            values: tensors
                .iter()
                .map(|tensor| distances.tensors.iter().find(|distance| distance.name == **tensor))
                .map(|distance| distance.map(|distance| distance.relative))
                .collect(),
        };
        Bars {
            title: "L2 distance from the anchor over the anchor's norm",
            labels: &tensors,
            series: self.columns().into_iter().map(series).collect(),
        }
        .svg()
    }
}

impl After {
    /// The ratio of a tensor's displacement that was kept; its mean where rows have their own.
    fn ratio(&self, name: &str) -> String {
        let coefficients = self.merged.merged.iter().find(|merged| merged.name == name);
        let coefficients = coefficients.map_or(&[][..], |merged| merged.coefficients.as_slice());
        match &self.method {
            MergeMethod::Wise { options, .. } => number(options.alpha),
            MergeMethod::UniformSoup => String::new(),
            _ if coefficients.is_empty() => String::new(),
            _ => number(coefficients.iter().sum::<f64>() / coefficients.len() as f64),
        }
    }
}

/// The name of a file, or of its folder if it is called as every model is.
fn short_name(path: &Path) -> String {
    let name = path.file_stem().map_or(String::new(), |stem| stem.to_string_lossy().into_owned());
    if name.starts_with("model.") || name == "model" {
        // Whole: a folder `lr0.0001_seed0` has no extension.
        return path
            .parent()
            .and_then(Path::file_name)
            .map_or(name, |folder| folder.to_string_lossy().into_owned());
    }
    name
}

fn shape(shape: &[usize]) -> String {
    shape.iter().map(usize::to_string).collect::<Vec<_>>().join(" x ")
}

/// Four digits, as far as they are worth reading.
fn number(x: f64) -> String {
    let size = x.abs();
    if size == 0.0 || !size.is_finite() {
        return x.to_string();
    }
    if !(1e-4..1e6).contains(&size) {
        return format!("{x:.3e}");
    }
    let decimals = (3 - size.log10().floor() as i32).clamp(0, 6) as usize;
    format!("{x:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_are_called_by_their_file_or_their_folder() {
        for (path, name) in [
            ("runs/one.safetensors", "one"),
            ("runs/lr0.0001_seed0/model.safetensors", "lr0.0001_seed0"),
            ("big/model.safetensors.index.json", "big"),
            ("model.safetensors", "model"),
        ] {
            let found = short_name(Path::new(path));
            // A path without a folder has the empty one as its parent.
            assert_eq!(found, name, "{path}");
        }
    }
}
