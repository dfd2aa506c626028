//! `cargo xtask packages`: what the registry would get compiles by itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::{cargo, root};

/// No options yet.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// The library crates, from the bottom up.
const PACKAGES: [&str; 5] = ["tpgm-core", "tpgm-cuda", "tpgm-files", "tpgm-nn", "tpgm-candle"];

/// Bytes of a package that the registry takes at most.
const LARGEST: u64 = 10 << 20;

/// Packs the library crates and checks each as it is in its package, beside the packages of those below it.
///
/// `cargo package` would build each again, with all of candle: three times as long, and no more is found than by the tests'.
///
/// # Errors
///
/// A crate cannot be packed, is too large, or does not compile from what is in its package.
pub(crate) fn run(_: &Args) -> Result<()> {
    let target = root()?.join("target/packages");
    let succeeds = |args: &[&str], folder: &Path| -> Result<bool> {
        // In a folder of its own: each has the features it asks for, where all else has those of the workspace.
        let mut command = cargo(args);
        command.current_dir(folder).env("CARGO_TARGET_DIR", &target).env("CARGO_INCREMENTAL", "0");
        Ok(command.status().context("cannot start cargo")?.success())
    };
    let chosen = PACKAGES.iter().flat_map(|package| ["--package", package]);
    let args: Vec<_> = ["package", "--allow-dirty", "--no-verify"].into_iter().chain(chosen).collect();
    ensure!(succeeds(&args, root()?)?, "a crate cannot be packed");
    for package in PACKAGES {
        let file = target.join("package").join(archive(package));
        let bytes = fs::metadata(&file).with_context(|| format!("no `{}`", file.display()))?.len();
        println!("{package}: {bytes} bytes");
        ensure!(
            bytes <= LARGEST,
            "`{package}` has {bytes} bytes, and the registry takes no more than {LARGEST}"
        );
    }
    let unpacked = unpack(&target)?;
    for package in PACKAGES {
        ensure!(
            succeeds(&["check", "--package", package], &unpacked)?,
            "`{package}` does not compile from what is in its package"
        );
    }
    Ok(())
}

/// The name of a crate's package.
fn archive(package: &str) -> String {
    format!("{package}-{}.crate", env!("CARGO_PKG_VERSION"))
}

/// Unpacks all into a workspace in which they are found instead of the registry's, with the versions of our own, and returns
/// its folder.
fn unpack(target: &Path) -> Result<PathBuf> {
    let folder = target.join("unpacked");
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot delete `{}`", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot create `{}`", folder.display()))?;
    let mut manifest =
        "[workspace]\nresolver = \"3\"\nmembers = [\"tpgm-*\"]\n\n[patch.crates-io]\n".to_owned();
    for package in PACKAGES {
        let file = target.join("package").join(archive(package));
        let mut command = Command::new("tar");
        command.arg("-xzf").arg(&file).arg("-C").arg(&folder);
        ensure!(
            command.status().context("cannot start tar")?.success(),
            "cannot unpack `{}`",
            file.display()
        );
        let version = env!("CARGO_PKG_VERSION");
        manifest += &format!("{package} = {{ path = \"{package}-{version}\" }}\n");
    }
    let file = folder.join("Cargo.toml");
    fs::write(&file, manifest).with_context(|| format!("cannot write `{}`", file.display()))?;
    let lock = root()?.join("Cargo.lock");
    fs::copy(&lock, folder.join("Cargo.lock"))
        .with_context(|| format!("cannot copy `{}`", lock.display()))?;
    Ok(folder)
}
