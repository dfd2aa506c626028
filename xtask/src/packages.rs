//! `cargo xtask packages`: what the registry would get builds by itself.

use std::path::PathBuf;
use std::{env, fs};

use anyhow::{Context, Result, ensure};

use crate::{cargo, root};

/// No options yet.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// The library crates, from the bottom up.
const PACKAGES: [&str; 4] = ["tpgm-core", "tpgm-cuda", "tpgm-nn", "tpgm-candle"];

/// Bytes of a package that the registry takes at most.
const LARGEST: u64 = 10 << 20;

/// Packs the library crates and builds each from its package.
///
/// # Errors
///
/// A crate does not build from what is in its package.
pub(crate) fn run(_: &Args) -> Result<()> {
    forget_unpacked()?;
    // Built without optimization, which the other stages have, so in a folder of its own; nobody debugs it.
    let mut command = cargo(&["package", "--allow-dirty"]);
    command
        .args(PACKAGES.iter().flat_map(|package| ["--package", package]))
        .current_dir(root()?)
        .env("CARGO_TARGET_DIR", "target/packages")
        .env("CARGO_PROFILE_DEV_DEBUG", "0")
        .env("CARGO_INCREMENTAL", "0");
    ensure!(command.status().context("cannot start cargo")?.success(), "a package does not build");
    let folder = root()?.join("target/packages/package");
    for package in PACKAGES {
        let file = folder.join(format!("{package}-{}.crate", env!("CARGO_PKG_VERSION")));
        let bytes = fs::metadata(&file).with_context(|| format!("no `{}`", file.display()))?.len();
        println!("{package}: {bytes} bytes");
        ensure!(
            bytes <= LARGEST,
            "`{package}` has {bytes} bytes, and the registry takes no more than {LARGEST}"
        );
    }
    Ok(())
}

/// A crate is verified against the packages of those below it, which cargo unpacks into its home, by name and version: it would
/// take those of the last time. They are deleted first.
fn forget_unpacked() -> Result<()> {
    let home = env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home.or_else(|| Some(env::home_dir()?.join(".cargo"))).context("there is no home folder")?;
    // A registry that is a folder of this machine has no host in front of the dash.
    let registries = fs::read_dir(home.join("registry/src")).into_iter().flatten().flatten();
    for registry in registries.filter(|entry| entry.file_name().to_string_lossy().starts_with('-')) {
        for entry in fs::read_dir(registry.path()).into_iter().flatten().flatten() {
            let (name, path) = (entry.file_name(), entry.path());
            if PACKAGES.iter().any(|package| name.to_string_lossy().starts_with(&format!("{package}-"))) {
                fs::remove_dir_all(&path).with_context(|| format!("cannot delete `{}`", path.display()))?;
            }
        }
    }
    Ok(())
}
