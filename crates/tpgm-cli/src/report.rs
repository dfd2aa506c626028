//! The distances of models from their anchor, and of what was made of them: table, plot, JSON.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde::Serialize;
use tpgm_files::weight_space::{Distances, MergeMethod, MergeReport, TensorDistance};

use crate::args::Inputs;
use crate::bars::{Bars, Series};
use crate::failure::Failure;
use crate::output::{self, Shown};
use crate::table::{Table, number, shape};

/// Distances of models from their anchor, and of what was made of them.
pub(crate) struct Report<'a> {
    pub(crate) anchor: &'a Path,
    pub(crate) models: &'a [PathBuf],
    /// Of each model, in the order of the anchor's file.
    pub(crate) before: Vec<Distances>,
    pub(crate) after: Option<After<'a>>,
}

/// What a merge did.
pub(crate) struct After<'a> {
    pub(crate) out: &'a Path,
    pub(crate) distances: Distances,
    pub(crate) merged: MergeReport,
    pub(crate) method: MergeMethod,
}

/// The distances of one checkpoint, for JSON.
#[derive(Serialize)]
struct Measured<'a> {
    path: Shown<'a>,
    l2: f64,
    #[serde(flatten)]
    distances: &'a Distances,
}

#[derive(Serialize)]
struct Json<'a> {
    anchor: Shown<'a>,
    models: Vec<Measured<'a>>,
    /// What a merge wrote.
    #[serde(skip_serializing_if = "Option::is_none")]
    out: Option<Measured<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    merge: Option<&'a MergeReport>,
}

/// The distances of a checkpoint by the names of its tensors.
struct Column<'a> {
    name: String,
    distances: &'a Distances,
    by_name: HashMap<&'a str, &'a TensorDistance>,
}

impl<'a> Measured<'a> {
    fn new(path: &'a Path, distances: &'a Distances) -> Self {
        Self { path: Shown(path), l2: distances.l2(), distances }
    }
}

impl<'a> Column<'a> {
    fn new(name: String, distances: &'a Distances) -> Self {
        let by_name = distances.tensors.iter().map(|it| (it.name.as_str(), it)).collect();
        Self { name, distances, by_name }
    }
}

impl Report<'_> {
    /// Prints what is asked for, and writes the files.
    pub(crate) fn show(&self, inputs: &Inputs) -> Result<(), Failure> {
        let table = self.table();
        if let Some(folder) = &inputs.report {
            output::write(&folder.join("distances.csv"), &table.csv())?;
            output::write(&folder.join("distances.md"), &table.markdown())?;
            output::write(&folder.join("distances.svg"), &self.plot())?;
        }
        if inputs.json {
            return output::print_json(&self.json());
        }
        output::print(&format!("{}\n{}\n\n{}\n", table.text(), self.notes().join("\n"), self.summary()))
    }

    fn json(&self) -> Json<'_> {
        Json {
            anchor: Shown(self.anchor),
            models: self.models.iter().zip(&self.before).map(|(path, d)| Measured::new(path, d)).collect(),
            out: self.after.as_ref().map(|after| Measured::new(after.out, &after.distances)),
            merge: self.after.as_ref().map(|after| &after.merged),
        }
    }

    /// A name and the distances of each checkpoint.
    fn columns(&self) -> Vec<Column<'_>> {
        let names = match (self.models, &self.after) {
            ([_], Some(_)) => vec!["before".to_owned()],
            ([_], None) => vec![String::new()],
            (models, _) => short_names(models),
        };
        let before = names.into_iter().zip(&self.before);
        let after = self.after.iter().map(|after| ("after".to_owned(), &after.distances));
        before.chain(after).map(|(name, distances)| Column::new(name, distances)).collect()
    }

    /// Tensors of the anchor that a model has too, in the order of the anchor's file.
    fn tensors(&self) -> Vec<&str> {
        // Models may have different tensors: the order of the longest list, and what only others have behind it.
        let mut lists: Vec<&Vec<TensorDistance>> = self.before.iter().map(|found| &found.tensors).collect();
        lists.sort_by_key(|list| std::cmp::Reverse(list.len()));
        let mut known = HashSet::new();
        let names = lists.into_iter().flatten().map(|distance| distance.name.as_str());
        names.filter(|name| known.insert(*name)).collect()
    }

    /// A row per tensor: its norms, and the ratio of its displacement that was kept.
    fn table(&self) -> Table {
        let columns = self.columns();
        let mut table = Table::new(1, ["tensor", "shape"]);
        for Column { name, .. } in &columns {
            let titles = ["L2", "MARS", "relative"].map(|norm| format!("{norm} {name}").trim().to_owned());
            table.header.extend(titles);
        }
        let ratios = self.after.as_ref().map(After::ratios);
        if ratios.is_some() {
            table.header.push("ratio".to_owned());
        }
        for name in self.tensors() {
            let found: Vec<_> = columns.iter().map(|column| column.by_name.get(name)).collect();
            let dims = found.iter().flatten().next().map(|distance| shape(&distance.shape));
            let mut row = vec![name.to_owned(), dims.unwrap_or_default()];
            for distance in found {
                row.extend(match distance {
                    Some(it) => [it.l2, it.mars_mean, it.relative].map(number),
                    None => std::array::from_fn(|_| String::new()),
                });
            }
            if let Some(ratios) = &ratios {
                row.push(ratios.get(name).copied().map(number).unwrap_or_default());
            }
            table.rows.push(row);
        }
        table
    }

    /// What was not measured or merged, for every checkpoint.
    fn notes(&self) -> Vec<String> {
        let merged = self.after.iter().map(|after| after.merged.to_string());
        let measured = self.models.iter().zip(&self.before);
        measured.map(|(path, distances)| format!("{}: {distances}", path.display())).chain(merged).collect()
    }

    /// The distance of all tensors together.
    fn summary(&self) -> String {
        let part = |Column { name, distances, .. }: Column<'_>| {
            format!("{name} {}", number(distances.l2())).trim().to_owned()
        };
        let parts: Vec<_> = self.columns().into_iter().map(part).collect();
        format!("L2 distance of all tensors together: {}", parts.join(", "))
    }

    /// Relative distances of every tensor, before and after.
    fn plot(&self) -> String {
        let tensors = self.tensors();
        let series = |column: Column<'_>| Series {
            values: tensors.iter().map(|name| column.by_name.get(name).map(|it| it.relative)).collect(),
            name: if column.name.is_empty() { short_name(&self.models[0]) } else { column.name },
        };
        Bars {
            title: "L2 distance from the anchor over the anchor's norm",
            labels: &tensors,
            series: self.columns().into_iter().map(series).collect(),
        }
        .svg()
    }
}

impl After<'_> {
    /// The ratio of each tensor's displacement that was kept; its mean where rows have their own.
    fn ratios(&self) -> HashMap<&str, f64> {
        let ratio = |coefficients: &[f64]| match &self.method {
            MergeMethod::Wise { options, .. } => Some(options.alpha),
            _ if coefficients.is_empty() => None,
            _ => Some(coefficients.iter().sum::<f64>() / coefficients.len() as f64),
        };
        let merged = self.merged.merged.iter();
        merged.filter_map(|it| Some((it.name.as_str(), ratio(&it.coefficients)?))).collect()
    }
}

/// Names that tell models apart: short ones, and whole paths where these are the same.
fn short_names(paths: &[PathBuf]) -> Vec<String> {
    let names: Vec<_> = paths.iter().map(|path| short_name(path)).collect();
    let twice = |name: &String| names.iter().filter(|other| *other == name).count() > 1;
    let told = names.iter().zip(paths);
    told.map(|(name, path)| if twice(name) { path.display().to_string() } else { name.clone() }).collect()
}

/// The name of a file, or of its folder if it is called as every model is.
fn short_name(path: &Path) -> String {
    // Whole: a folder `lr0.0001_seed0` has no extension.
    let whole = |folder: &Path| folder.file_name().map(|name| name.to_string_lossy().into_owned());
    if path.is_dir() {
        return whole(path).unwrap_or_else(|| path.display().to_string());
    }
    let name = path.file_stem().map_or(String::new(), |stem| stem.to_string_lossy().into_owned());
    match name.split('.').next() {
        Some("model" | "pytorch_model") => path.parent().and_then(whole).unwrap_or(name),
        _ => name,
    }
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
            ("big/pytorch_model.bin.index.json", "big"),
            ("old/pytorch_model.bin", "old"),
            ("runs/models.safetensors", "models"),
            ("model.safetensors", "model"),
        ] {
            // A path without a folder has the empty one as its parent.
            assert_eq!(short_name(Path::new(path)), name, "{path}");
        }
        let paths = ["a/last.safetensors", "b/last.safetensors", "a/best.safetensors"].map(PathBuf::from);
        assert_eq!(short_names(&paths), ["a/last.safetensors", "b/last.safetensors", "best"]);
        let runs = tempfile::tempdir().unwrap();
        let folder = runs.path().join("lr0.0001_seed0");
        std::fs::create_dir(&folder).unwrap();
        assert_eq!(short_name(&folder), "lr0.0001_seed0");
    }
}
