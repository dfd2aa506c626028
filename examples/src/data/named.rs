//! Options that name a file.

use std::path::PathBuf;

use anyhow::{Result, ensure};

/// A data set of an option: `NAME=PATH`, or `PATH`, whose name is that of the file or folder.
///
/// # Errors
///
/// No path.
pub fn named(option: &str) -> Result<(String, PathBuf)> {
    let (name, path) = match option.split_once('=') {
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
    }
}
