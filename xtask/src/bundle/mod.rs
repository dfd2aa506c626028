//! `cargo xtask bundle`: tests and benchmarks in one archive, for a GPU machine without Rust.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cargo;

/// Options of `bundle`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The archive, ending in .tar.xz or .tar.zst; `target/tpgm-bundle.tar.xz` if not given
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Also the tests of tpgm-candle with its feature `cuda`; building them takes the CUDA toolkit
    #[arg(long)]
    candle: bool,
}

/// What the archive's one folder is called.
const NAME: &str = "tpgm-bundle";
const RUN: &str = include_str!("run.sh");
/// Numbers computed by the authors' published code.
const GOLDEN: &str = "crates/tpgm-core/tests/golden";

/// An executable that cargo built.
#[derive(Debug, PartialEq, Eq)]
struct Binary {
    path: PathBuf,
    /// What it is called in the archive.
    name: String,
}

/// Builds, collects and packs, and prints the size of the archive.
///
/// # Errors
///
/// If something does not build, or `strip`, `tar` or the compressor is missing.
pub(crate) fn run(args: &Args) -> Result<()> {
    let root = crate::root()?;
    let out = args.out.clone().unwrap_or_else(|| root.join("target/tpgm-bundle.tar.xz"));
    compressor(&out)?;
    let mut binaries = build(&["test", "--no-run", "--package", "tpgm-cuda"])?;
    if args.candle {
        ensure!(
            Command::new("nvcc").arg("--version").stdout(Stdio::null()).status().is_ok(),
            "`--candle` takes the CUDA toolkit, and `nvcc` is not on the path"
        );
        binaries.append(&mut build(&["test", "--no-run", "--package", "tpgm-candle", "--features", "cuda"])?);
    }
    ensure!(!binaries.is_empty(), "cargo built no tests");
    binaries.append(&mut build(&["build", "--package", "tpgm-benches", "--bin", "side_by_side"])?);

    let folder = root.join("target/bundle").join(NAME);
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot empty `{}`", folder.display()))?;
    }
    fs::create_dir_all(folder.join("bin"))
        .with_context(|| format!("cannot create `{}`", folder.display()))?;
    for binary in &binaries {
        let mut strip = Command::new("strip");
        strip.arg("-o").arg(folder.join("bin").join(&binary.name)).arg(&binary.path);
        call(strip, "binutils")?;
    }
    copy_folder(&root.join(GOLDEN), &folder.join("golden"))?;
    let script = folder.join("run.sh");
    fs::write(&script, RUN).with_context(|| format!("cannot write `{}`", script.display()))?;
    crate::make_executable(&script)?;
    fs::write(folder.join("COMMIT"), commit(root))?;
    pack(&folder, &out)?;

    for binary in &binaries {
        println!("bin/{}", binary.name);
    }
    let size = fs::metadata(&out).with_context(|| format!("cannot read `{}`", out.display()))?.len();
    #[allow(clippy::cast_precision_loss, reason = "a size for the eye")]
    let megabytes = size as f64 / 1e6;
    println!("{}: {megabytes:.1} MB", out.display());
    println!("on the GPU machine: tar -xf {} && {NAME}/run.sh", file_name(&out));
    Ok(())
}

/// Runs a command of cargo in release and returns the executables it built.
fn build(args: &[&str]) -> Result<Vec<Binary>> {
    let output = cargo(args)
        .args(["--release", "--message-format=json-render-diagnostics"])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    ensure!(output.status.success(), "`cargo {}` ended with {}", args.join(" "), output.status);
    binaries(&String::from_utf8(output.stdout).context("the messages of cargo")?)
}

/// The executables that cargo's messages, one JSON object per line, tell of.
fn binaries(messages: &str) -> Result<Vec<Binary>> {
    let mut binaries = Vec::new();
    for line in messages.lines() {
        let message: Value =
            serde_json::from_str(line).with_context(|| format!("a message of cargo: {line}"))?;
        let Some(path) = message["executable"].as_str() else { continue };
        let target = message["target"]["name"].as_str().context("a message of cargo has no target")?;
        let name = match message["profile"]["test"].as_bool() {
            Some(true) => {
                let manifest = message["manifest_path"].as_str().map(Path::new);
                let package = manifest.and_then(Path::parent).and_then(Path::file_name);
                let package = package.context("a message of cargo has no package")?.to_string_lossy();
                let kind = message["target"]["kind"][0].as_str().unwrap_or_default();
                match kind {
                    "test" => format!("test-{package}-{target}"),
                    _ => format!("test-{package}-unit"),
                }
            }
            _ => target.to_owned(),
        };
        binaries.push(Binary { path: path.into(), name });
    }
    Ok(binaries)
}

/// The option of `tar` for the compression that the archive's name asks for.
fn compressor(out: &Path) -> Result<&'static str> {
    let name = file_name(out);
    let known = [(".tar.xz", "--xz"), (".tar.zst", "--zstd")];
    let found = known.into_iter().find(|(suffix, _)| name.ends_with(suffix));
    let (_, option) = found.with_context(|| format!("`{name}` ends neither in .tar.xz nor in .tar.zst"))?;
    Ok(option)
}

fn pack(folder: &Path, out: &Path) -> Result<()> {
    let option = compressor(out)?;
    let parent = folder.parent().context("the folder above the bundle")?;
    let mut tar = Command::new("tar");
    // Best compression: the archive is made once and copied often.
    tar.args(["--create", option, "--file"]).arg(out).arg("--directory").arg(parent).arg(NAME);
    tar.env("XZ_OPT", "-9").env("ZSTD_CLEVEL", "19");
    call(tar, "tar, and xz-utils or zstd")
}

/// Runs a tool of the system; `install` is what has it.
fn call(mut command: Command, install: &str) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    let status =
        command.status().with_context(|| format!("cannot start `{program}` (Debian: install {install})"))?;
    ensure!(status.success(), "`{program}` ended with {status} (it takes, in Debian's names, {install})");
    Ok(())
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("cannot create `{}`", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("cannot read `{}`", from.display()))? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            copy_folder(&from, &to)?;
        } else {
            fs::copy(&from, &to).with_context(|| format!("cannot copy `{}`", from.display()))?;
        }
    }
    Ok(())
}

/// The commit that the bundle is built from, which the benchmarks write into their rows.
fn commit(root: &Path) -> String {
    let git = |args: &[&str]| {
        let output = Command::new("git").args(args).current_dir(root).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let Some(hash) = git(&["rev-parse", "--short=12", "HEAD"]) else {
        return "unknown".to_owned();
    };
    match git(&["status", "--porcelain", "--untracked-files=no"]) {
        Some(changes) if changes.is_empty() => hash,
        _ => format!("{hash}-dirty"),
    }
}

fn file_name(path: &Path) -> std::borrow::Cow<'_, str> {
    path.file_name().unwrap_or(OsStr::new("")).to_string_lossy()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn executables_are_found_and_named() {
        let messages = r#"{"reason":"compiler-artifact","manifest_path":"/w/crates/a/Cargo.toml","target":{"kind":["lib"],"name":"a"},"profile":{"test":false},"executable":null}
{"reason":"compiler-artifact","manifest_path":"/w/crates/a/Cargo.toml","target":{"kind":["lib"],"name":"a"},"profile":{"test":true},"executable":"/w/target/a-1"}
{"reason":"compiler-artifact","manifest_path":"/w/crates/a/Cargo.toml","target":{"kind":["test"],"name":"gpu"},"profile":{"test":true},"executable":"/w/target/gpu-1"}
{"reason":"compiler-artifact","manifest_path":"/w/b/Cargo.toml","target":{"kind":["bin"],"name":"timer"},"profile":{"test":false},"executable":"/w/target/timer"}
{"reason":"build-finished","success":true}"#;
        let found = binaries(messages).unwrap();
        let names: Vec<_> = found.iter().map(|binary| binary.name.as_str()).collect();
        assert_eq!(names, ["test-a-unit", "test-a-gpu", "timer"]);
        assert_eq!(found[1].path, Path::new("/w/target/gpu-1"));
        assert!(binaries("no JSON").is_err());
    }

    #[test]
    fn the_name_decides_the_compression() {
        assert_eq!(compressor(Path::new("x/a.tar.xz")).unwrap(), "--xz");
        assert_eq!(compressor(Path::new("a.tar.zst")).unwrap(), "--zstd");
        assert!(compressor(Path::new("a.zip")).unwrap_err().to_string().contains("`a.zip` ends neither"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_script_says_that_there_is_no_gpu() {
        let folder = std::env::temp_dir().join(format!("xtask-bundle-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let script = folder.join("run.sh");
        fs::write(&script, RUN).unwrap();
        let run = |args: &[&str]| {
            let mut command = Command::new("sh");
            command.arg(&script).args(args).current_dir(&folder).output().unwrap()
        };
        let wrong = run(&["everything"]);
        assert_eq!(wrong.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&wrong.stderr).contains("unknown part `everything`"));
        if !Path::new("/dev/nvidia0").exists() {
            let none = run(&[]);
            assert_eq!(none.status.code(), Some(77));
            assert!(String::from_utf8_lossy(&none.stderr).contains("no NVIDIA GPU here"));
            assert!(!folder.join("out").exists());
        }
        fs::remove_dir_all(&folder).unwrap();
    }
}
