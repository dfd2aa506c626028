//! Where a pre-trained model is.

use std::path::PathBuf;

use anyhow::{Result, bail};

/// The folder of a model: `name` if there is such a folder, else the named model of the Hugging Face hub, which is
/// downloaded unless it is in the cache (`HF_HOME`). `files` are those to fetch; of `optional` ones, those that exist.
///
/// # Errors
///
/// There is no such folder and no such model, a file cannot be fetched, or this program was built without feature
/// `hf-hub`.
pub fn model_folder(name: &str, files: &[&str], optional: &[&str]) -> Result<PathBuf> {
    let folder = PathBuf::from(name);
    if folder.is_dir() {
        return match files.iter().find(|file| !folder.join(file).exists()) {
            Some(file) => bail!("{} has no {file}", folder.display()),
            None => Ok(folder),
        };
    }
    download(name, files, optional)
}

#[cfg(feature = "hf-hub")]
fn download(name: &str, files: &[&str], optional: &[&str]) -> Result<PathBuf> {
    use anyhow::{Context, ensure};
    ensure!(
        name.split('/').count() == 2 && !name.starts_with(['.', '/']),
        "there is no folder {name}, and models of the hub are named `owner/model`; `cargo xtask data` fetches all-MiniLM-L6-v2 and \
         EfficientNet-Lite0 without it"
    );
    let repository =
        hf_hub::api::sync::Api::new().context("cannot reach the Hugging Face hub")?.model(name.to_owned());
    let mut folder = None;
    for file in files {
        let path = repository.get(file).with_context(|| format!("cannot fetch {file} of {name}"))?;
        folder = folder.or(path.parent().map(std::path::Path::to_owned));
    }
    if !optional.is_empty() {
        let listed = repository.info().with_context(|| format!("cannot list the files of {name}"))?.siblings;
        for file in optional.iter().filter(|file| listed.iter().any(|listed| listed.rfilename == ***file)) {
            repository.get(file).with_context(|| format!("cannot fetch {file} of {name}"))?;
        }
    }
    folder.context("no files to fetch")
}

#[cfg(not(feature = "hf-hub"))]
fn download(name: &str, _: &[&str], _: &[&str]) -> Result<PathBuf> {
    bail!(
        "there is no folder {name}. `cargo xtask data minilm` fetches all-MiniLM-L6-v2 to target/data/minilm; to fetch models from \
         the Hugging Face hub, build with `--features hf-hub`"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_taken_as_they_are_if_they_have_the_files() {
        let folder = tempfile::tempdir().unwrap();
        let name = folder.path().to_str().unwrap();
        let error = model_folder(name, &["config.json"], &[]).unwrap_err().to_string();
        assert!(error.contains("has no config.json"), "{error}");
        std::fs::write(folder.path().join("config.json"), "{}").unwrap();
        assert_eq!(model_folder(name, &["config.json"], &["a"]).unwrap(), folder.path());
    }

    #[test]
    fn what_is_neither_a_folder_nor_a_model_is_named() {
        let error = model_folder("./nowhere", &[], &[]).unwrap_err().to_string();
        assert!(error.contains("there is no folder ./nowhere"), "{error}");
    }
}
