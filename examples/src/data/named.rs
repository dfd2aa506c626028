//! Options that name a file.

use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

/// A data set of an option: `NAME=PATH`, or `PATH`, whose name is that of the file or folder. A path may have a `=`: what
/// is before the first one is a name if it has no separator of folders and the rest is there, or nothing is there by the
/// whole.
///
/// # Errors
///
/// No path.
pub fn named(option: &str) -> Result<(String, PathBuf)> {
    let name_and_path = option.split_once('=').filter(|(name, path)| {
        !name.contains(['/', std::path::MAIN_SEPARATOR])
            && (Path::new(path).exists() || !Path::new(option).exists())
    });
    let (name, path) = match name_and_path {
        Some((name, path)) => (name.to_owned(), PathBuf::from(path)),
        None => {
            let path = PathBuf::from(option);
            (path.file_stem().unwrap_or_default().to_string_lossy().into_owned(), path)
        }
    };
    ensure!(!name.is_empty() && !path.as_os_str().is_empty(), "`{option}`: expected NAME=FILE or FILE");
    Ok((name, path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_name_files() {
        assert_eq!(named("de=a/b.csv").unwrap(), ("de".to_owned(), PathBuf::from("a/b.csv")));
        assert_eq!(named("a/b.csv").unwrap(), ("b".to_owned(), PathBuf::from("a/b.csv")));
        assert!(named("de=").is_err());
        assert!(named("=a.csv").is_err());
    }

    #[test]
    fn paths_may_have_an_equals_sign() {
        assert_eq!(named("de=lr=1/b.csv").unwrap(), ("de".to_owned(), PathBuf::from("lr=1/b.csv")));
        assert_eq!(named("runs/lr=1/b.csv").unwrap(), ("b".to_owned(), PathBuf::from("runs/lr=1/b.csv")));
        assert_eq!(named("./lr=1.csv").unwrap(), ("lr=1".to_owned(), PathBuf::from("./lr=1.csv")));
        // What is there decides.
        assert_eq!(named("lr=Cargo.toml").unwrap().1, PathBuf::from("Cargo.toml"));
        let folder = tempfile::Builder::new().prefix("lr=").tempdir().unwrap();
        assert_eq!(named(folder.path().to_str().unwrap()).unwrap().1, folder.path());
        let option = format!("x={}", folder.path().display());
        assert_eq!(named(&option).unwrap(), ("x".to_owned(), folder.path().to_owned()));
    }
}
