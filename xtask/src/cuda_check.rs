//! `cargo xtask cuda-check`: lints the code behind the CUDA features on machines without CUDA.
//!
//! candle's kernels are compiled by its build script, which calls `nvcc`. Lints need their names only, so a stand-in for
//! `nvcc` makes empty files. Nothing built this way can be linked or run, and nobody else must find it: see [`APART`].

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::cargo;

/// No options yet.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// The stand-in. cudarc reads the release from the fourth line of `--version`; candle's build script compiles with
/// `--ptx --output-directory FOLDER SOURCE` or with `-o FILE`.
const NVCC: &str = r#"#!/bin/sh
# Stands in for nvcc where code is linted and not run: makes the output files, empty.
set -eu
folder= output= source=
while [ $# -gt 0 ]; do
    case "$1" in
    --version)
        echo "nvcc: a stand-in that compiles nothing"
        echo "Copyright: none"
        echo "Built: never"
        echo "Cuda compilation tools, release 13.0, V13.0.88"
        exit
        ;;
    --output-directory) folder=$2; shift ;;
    -o) output=$2; shift ;;
    *.cu) source=$1 ;;
    esac
    shift
done
if [ -z "$output" ]; then
    output=$folder/$(basename "${source:?the stand-in for nvcc: no source}" .cu).ptx
fi
: >"$output"
"#;

/// The CUDA features of the libraries by themselves, then all: code that leans on the other ones' imports fails in the first.
/// Over the whole workspace, with the features of the other lints: so dependencies are what they are there, and shared. Those of
/// CUDA have the features of both, and are checked once.
const FEATURES: [&str; 2] = [
    "tpgm-candle/cuda,cudarc/nccl,candle-core/nccl",
    "tpgm-candle/nccl,tpgm-examples/nccl,tpgm-benches/cuda",
];

/// The packages that ask for the toolkit get other options than in any other build: so they, and what depends on them, lie apart
/// in the target folder, and all else is shared with the other lints.
const APART: [&str; 2] = ["cudarc", "candle-kernels"];

/// Runs clippy with the stand-in; warnings are errors.
///
/// # Errors
///
/// If the lints fail or the stand-in cannot be written.
pub(crate) fn run(_: &Args) -> Result<()> {
    let stub = crate::root()?.join("target/cuda-stub");
    let bin = write_nvcc(&stub)?;
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(std::iter::once(bin.clone()).chain(std::env::split_paths(&path)))?;
    for features in FEATURES {
        println!("{features}");
        let status =
            cargo(&["clippy", "--workspace", "--all-targets"])
                .args(APART.iter().flat_map(|name| {
                    ["--config".to_owned(), format!("profile.dev.package.{name}.opt-level=1")]
                }))
                .args(["--features", &format!("{},{features}", crate::test::FEATURES)])
                .args(["--", "-D", "warnings"])
                .env("PATH", &path)
                .env("NVCC", bin.join("nvcc"))
                .env("CUDA_HOME", &stub)
                // Asked of `nvidia-smi` otherwise.
                .env("CUDA_COMPUTE_CAP", "80")
                .env_remove("CUDARC_CUDA_VERSION")
                .status()
                .context("cannot start cargo")?;
        ensure!(status.success(), "the lints with {features} ended with {status}");
    }
    Ok(())
}

/// Writes the stand-in and returns its folder.
fn write_nvcc(stub: &Path) -> Result<PathBuf> {
    let bin = stub.join("bin");
    let nvcc = bin.join("nvcc");
    fs::create_dir_all(&bin).with_context(|| format!("cannot create `{}`", bin.display()))?;
    fs::write(&nvcc, NVCC).with_context(|| format!("cannot write `{}`", nvcc.display()))?;
    crate::make_executable(&nvcc)?;
    Ok(bin)
}

#[cfg(all(test, unix))]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn the_stand_in_answers_as_nvcc_does() {
        let folder = std::env::temp_dir().join(format!("xtask-nvcc-{}", std::process::id()));
        let nvcc = write_nvcc(&folder).unwrap().join("nvcc");
        let run = |args: &[&str]| Command::new(&nvcc).args(args).current_dir(&folder).output().unwrap();

        let version = String::from_utf8(run(&["--version"]).stdout).unwrap();
        assert!(version.lines().nth(3).unwrap().contains("release 13.0,"), "{version}");
        assert!(
            run(&["--gencode=x", "--ptx", "--output-directory", "bin", "-O3", "src/a.cu"]).status.success()
        );
        assert!(run(&["-c", "-o", "b-1.o", "-Xcompiler", "-fPIC", "src/b.cu"]).status.success());
        assert!(run(&["--lib", "-o", "libmoe.a", "b-1.o"]).status.success());
        assert!(["bin/a.ptx", "b-1.o", "libmoe.a"].iter().all(|file| folder.join(file).exists()));
        assert!(!run(&["--list-gpu-code"]).status.success());
        fs::remove_dir_all(&folder).unwrap();
    }
}
