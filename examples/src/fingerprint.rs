//! What a run was begun with: data and models by their content, so that it is not continued with others.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{BufReader, Read};
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

/// A checksum over a row of things. It finds changes, not forgeries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digest {
    of: &'static str,
    count: u64,
    checksum: u32,
}

impl Digest {
    /// Of nothing yet. `of` is what is counted, for people.
    pub fn new(of: &'static str) -> Self {
        Self { of, count: 0, checksum: 0 }
    }

    /// Adds bytes. Where one addition ends and the next begins matters.
    pub fn add(&mut self, bytes: &[u8]) {
        self.checksum = crc32c::crc32c_append(self.checksum, &(bytes.len() as u64).to_le_bytes());
        self.checksum = crc32c::crc32c_append(self.checksum, bytes);
    }

    /// Counts one.
    pub fn count(&mut self) {
        self.count += 1;
    }

    /// The checksum alone, as a number.
    pub fn number(&self) -> u64 {
        u64::from(self.checksum)
    }

    /// The checksum alone, as eight hexadecimal digits.
    pub fn checksum(&self) -> String {
        format!("{:08x}", self.checksum)
    }

    /// Of a file.
    ///
    /// # Errors
    ///
    /// It cannot be read; names it.
    pub fn of_file(path: &Path) -> Result<Self> {
        let mut digest = Self::new("bytes");
        let mut read = || {
            let mut file = BufReader::new(File::open(path)?);
            let mut part = vec![0; 1 << 20];
            loop {
                match file.read(&mut part)? {
                    0 => return Ok::<_, std::io::Error>(()),
                    length => {
                        digest.checksum = crc32c::crc32c_append(digest.checksum, &part[..length]);
                        digest.count += length as u64;
                    }
                }
            }
        };
        read().with_context(|| format!("cannot read {}", path.display()))?;
        Ok(digest)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}, checksum {:08x}", self.count, self.of, self.checksum)
    }
}

/// Digests of what a run reads, by what it is called in messages.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Fingerprint(BTreeMap<String, String>);

impl Fingerprint {
    /// With one thing more.
    #[must_use]
    pub fn with(mut self, what: impl Into<String>, digest: &Digest) -> Self {
        self.0.insert(what.into(), digest.to_string());
        self
    }

    /// With a file more.
    ///
    /// # Errors
    ///
    /// It cannot be read; names it.
    pub fn file(self, what: impl Into<String>, path: &Path) -> Result<Self> {
        Ok(self.with(what, &Digest::of_file(path)?))
    }

    /// With those of some files in a folder that are there.
    ///
    /// # Errors
    ///
    /// One is there but cannot be read; names it.
    pub fn files(self, folder: &Path, names: &[&str]) -> Result<Self> {
        let there = names.iter().filter(|name| folder.join(name).is_file());
        there.copied().try_fold(self, |all, name| all.file(name, &folder.join(name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_tell_contents_apart_and_count() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, "123456789").unwrap();
        // The check value of CRC-32C.
        assert_eq!(Digest::of_file(&path).unwrap().to_string(), "9 bytes, checksum e3069283");
        let of = |parts: &[&str]| {
            let mut digest = Digest::new("rows");
            parts.iter().for_each(|part| digest.add(part.as_bytes()));
            digest.count();
            digest
        };
        assert_eq!(of(&["ab", "c"]), of(&["ab", "c"]));
        assert_ne!(of(&["ab", "c"]), of(&["a", "bc"]));
        assert!(of(&["a"]).to_string().starts_with("1 rows, checksum "));
        assert!(Digest::of_file(&path.join("b")).unwrap_err().to_string().contains("cannot read"));
    }

    #[test]
    fn files_that_are_not_there_do_not_count() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.json"), "{}").unwrap();
        let prints = Fingerprint::default().files(folder.path(), &["a.json", "b.json"]).unwrap();
        assert_eq!(
            serde_json::to_value(&prints).unwrap().as_object().unwrap().keys().collect::<Vec<_>>(),
            ["a.json"]
        );
    }
}
