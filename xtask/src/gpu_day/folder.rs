//! The folder for the GPU machine: a script, and archives of what it runs.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Map, Value, json};
use tpgm_benches::Model;
use tpgm_benches::machine::Machine;
use tpgm_core::DType;

use super::call;
use super::programs::{Program, Programs};

const NAME: &str = "tpgm-gpu-day";
pub(crate) const SCRIPT: &str = include_str!("run.sh");
const ANCHORS: &str = include_str!("../../../benches/peers/torch_anchors.py");
/// Numbers computed by the authors' published code.
const GOLDEN: &str = "crates/tpgm-core/tests/golden";
/// More may not be brought to a machine on loan.
const LIMIT: u64 = 40 << 20;
/// The models whose tensors PyTorch's optimizers move by themselves.
const ANCHORED: [Model; 2] = [Model::VitB16, Model::ResNet50];

/// Variables of the script that name tests of `test-tpgm-cuda`.
const TESTS: [&str; 3] = ["warm_up", "golden", "sanitized"];

/// The files of the published code that the peers load, as they lie in the checkouts.
#[derive(Debug, Default)]
pub(crate) struct Published {
    /// Each with its path from the folder `published`.
    files: Vec<(PathBuf, PathBuf)>,
}

impl Published {
    /// Those of the checkouts that are given.
    ///
    /// # Errors
    ///
    /// If a checkout lacks its file.
    pub(crate) fn new(ftp: Option<&Path>, tpgm: Option<&Path>) -> Result<Self> {
        let mut files = Vec::new();
        // As in torch_common.py.
        for (checkout, name, file) in
            [(ftp, "FTP", "util/FTP.py"), (tpgm, "TPGM", "ImageNet_ViT_Exp/utils/tpgm.py")]
        {
            let Some(checkout) = checkout else { continue };
            let from = checkout.join(file);
            ensure!(from.is_file(), "`{}` is no checkout of {name}: it has no `{file}`", checkout.display());
            files.push((from, Path::new(name).join(file)));
            for license in ["LICENSE", "LICENSE.md", "LICENSE.txt"] {
                let from = checkout.join(license);
                if from.is_file() {
                    files.push((from, Path::new(name).join(license)));
                }
            }
        }
        Ok(Self { files })
    }
}

/// Packs all into a folder of `base`, replaces what was there, and returns it.
///
/// # Errors
///
/// If a file cannot be written, a test that the script names does not exist, or the folder becomes too large.
pub(crate) fn pack(base: &Path, programs: &Programs, published: &Published) -> Result<PathBuf> {
    let (staging, folder) = (base.join("staging"), base.join(NAME));
    for old in [&staging, &folder] {
        if old.exists() {
            fs::remove_dir_all(old).with_context(|| format!("cannot empty `{}`", old.display()))?;
        }
    }
    create(&folder)?;
    let core = staging.join("core");
    stage(&core, &programs.core)?;
    check_tests(&core.join("bin/test-tpgm-cuda"))?;
    copy_folder(&crate::root()?.join(GOLDEN), &core.join("golden"))?;
    write(&core.join("COMMIT"), &Machine::here().commit)?;
    write(&core.join("peers/torch_anchors.py"), ANCHORS)?;
    write(&core.join("peers/shapes.json"), &shapes().to_string())?;
    for (from, to) in &published.files {
        copy(from, &core.join("published").join(to))?;
    }
    // gzip is everywhere. What only xz makes small enough to carry has an archive of its own: where neither xz nor Python can
    // unpack it, nothing else is lost.
    archive(&core, &folder.join("core.tar.gz"), "gzip -9")?;
    if !programs.candle.is_empty() {
        let candle = staging.join("candle");
        stage(&candle, &programs.candle)?;
        // Both programs have candle's kernels: the window reaches from one to the other.
        archive(&candle, &folder.join("candle.tar.xz"), "xz --lzma2=preset=6,dict=192MiB")?;
    }
    let script = folder.join("run.sh");
    write(&script, SCRIPT)?;
    crate::make_executable(&script)?;
    fs::remove_dir_all(&staging).with_context(|| format!("cannot empty `{}`", staging.display()))?;
    check_size(&folder)?;
    Ok(folder)
}

/// Copies programs without what only a debugger reads.
fn stage(folder: &Path, programs: &[Program]) -> Result<()> {
    let bin = folder.join("bin");
    create(&bin)?;
    for program in programs {
        let mut strip = Command::new("strip");
        strip.arg("-o").arg(bin.join(program.name)).arg(&program.path);
        call(strip, "binutils")?;
    }
    Ok(())
}

/// A name that no test has would run nothing, and pass.
fn check_tests(program: &Path) -> Result<()> {
    let output = Command::new(program)
        .args(["--list", "--format", "terse"])
        .output()
        .with_context(|| format!("cannot start `{}`", program.display()))?;
    let list = String::from_utf8_lossy(&output.stdout);
    for variable in TESTS {
        for name in words(variable)? {
            ensure!(
                list.lines().any(|line| line.strip_suffix(": test") == Some(name)),
                "the script's ${variable} names the test `{name}`, which tpgm-cuda's tests/gpu.rs does not have"
            );
        }
    }
    Ok(())
}

/// The words of a variable of the script.
fn words(variable: &str) -> Result<impl Iterator<Item = &'static str>> {
    let start = format!("{variable}=\"");
    let line = SCRIPT.lines().find_map(|line| line.strip_prefix(&start)?.strip_suffix('"'));
    Ok(line.with_context(|| format!("the script sets no ${variable}"))?.split(' '))
}

/// For torch_anchors.py.
fn shapes() -> Value {
    let shapes = |model: Model| -> Vec<_> {
        model.tensors(DType::F32).into_iter().map(|tensor| json!(tensor.shape)).collect()
    };
    ANCHORED
        .into_iter()
        .map(|model| (model.name().to_owned(), shapes(model).into()))
        .collect::<Map<_, _>>()
        .into()
}

fn archive(folder: &Path, to: &Path, compressor: &str) -> Result<()> {
    let mut tar = Command::new("tar");
    tar.args(["--create", "--sort=name", "--owner=0", "--group=0", "--numeric-owner"]);
    tar.arg(format!("--use-compress-program={compressor}")).arg("--file").arg(to);
    tar.arg("--directory").arg(folder).arg(".");
    call(tar, "tar, gzip and xz-utils")
}

/// Prints the sizes and refuses what is too large.
fn check_size(folder: &Path) -> Result<()> {
    let mut total = 0;
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read `{}`", folder.display()))? {
        let entry = entry?;
        let size = entry.metadata()?.len();
        println!("{}: {}", entry.file_name().to_string_lossy(), mebibytes(size));
        total += size;
    }
    println!("{}: {}", folder.display(), mebibytes(total));
    if total > LIMIT {
        bail!(
            "`{}` takes {}, more than the {} that may be brought along",
            folder.display(),
            mebibytes(total),
            mebibytes(LIMIT)
        );
    }
    Ok(())
}

fn mebibytes(bytes: u64) -> String {
    #[allow(clippy::cast_precision_loss, reason = "a size for the eye")]
    let mebibytes = bytes as f64 / f64::from(1 << 20);
    format!("{mebibytes:.1} MiB")
}

pub(crate) fn create(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create `{}`", folder.display()))
}

pub(crate) fn write(file: &Path, text: &str) -> Result<()> {
    create(file.parent().context("a file without a folder")?)?;
    fs::write(file, text).with_context(|| format!("cannot write `{}`", file.display()))
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    create(to.parent().context("a file without a folder")?)?;
    fs::copy(from, to).with_context(|| format!("cannot copy `{}`", from.display()))?;
    Ok(())
}

fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("cannot read `{}`", from.display()))? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            copy_folder(&from, &to)?;
        } else {
            copy(&from, &to)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tpgm_benches::Method;

    use super::*;

    fn scratch(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("xtask-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn the_script_names_what_exists() {
        for benchmark in words("benchmarks").unwrap() {
            let (model, dtype) = benchmark.split_once(':').unwrap();
            assert!(model.parse::<Model>().is_ok(), "{benchmark}");
            assert!(["f32", "bf16"].contains(&dtype), "{benchmark}");
        }
        for kernel in words("kernels").unwrap() {
            let (kernel, method) = kernel.split_once(':').unwrap();
            assert!(Method::by_name(method).is_ok(), "{kernel}:{method}");
            assert!(kernel.ends_with("_f32") || kernel.ends_with("_bf16"), "{kernel}");
        }
        for part in SCRIPT.split("--method ").skip(1) {
            let method = part.split([' ', '\n']).next().unwrap();
            assert!(method.starts_with('"') || Method::by_name(method).is_ok(), "{method}");
        }
        assert!(TESTS.into_iter().all(|variable| words(variable).unwrap().count() > 0));
        assert!(words("nothing").is_err());
    }

    #[test]
    fn shapes_of_models_are_lists() {
        let shapes = shapes();
        assert_eq!(shapes["vit-b-16"].as_array().unwrap().len(), 152);
        assert!(shapes["resnet-50"].as_array().unwrap().contains(&json!([64, 3, 7, 7])));
    }

    #[test]
    fn published_code_is_taken_along_or_named() {
        let folder = scratch("published");
        let error = Published::new(Some(&folder), None).unwrap_err().to_string();
        assert!(error.ends_with("is no checkout of FTP: it has no `util/FTP.py`"), "{error}");
        write(&folder.join("util/FTP.py"), "code").unwrap();
        write(&folder.join("LICENSE"), "terms").unwrap();
        let files = Published::new(Some(&folder), None).unwrap().files;
        let to: Vec<_> = files.iter().map(|(_, to)| to.display().to_string()).collect();
        assert_eq!(to, ["FTP/util/FTP.py", "FTP/LICENSE"]);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_folder_that_is_too_large_is_refused() {
        let folder = scratch("large");
        let file = fs::File::create(folder.join("core.tar.gz")).unwrap();
        file.set_len(LIMIT).unwrap();
        check_size(&folder).unwrap();
        file.set_len(LIMIT + (1 << 20)).unwrap();
        let error = check_size(&folder).unwrap_err().to_string();
        assert!(error.contains("takes 41.0 MiB, more than the 40.0 MiB"), "{error}");
        fs::remove_dir_all(&folder).unwrap();
    }
}
