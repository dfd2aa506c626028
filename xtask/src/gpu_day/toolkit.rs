//! A CUDA toolkit that candle's `cuda` feature builds with, from the wheels that NVIDIA publishes for Python.
//!
//! The wheels unpack into one tree, from which `nvcc` runs as it is. What a toolkit has and wheels lack is added: the folder
//! `lib64`, libraries under names without a version, and a `libcuda` to link with, which otherwise comes with a driver.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::cargo;
use crate::cuda_tools::fetch_wheels;

/// A wheel for Linux on x86-64: package, version, SHA-256.
type Wheel = (&'static str, &'static str, &'static str);

/// The versions of CUDA 13.0, whose drivers begin with R580.
const WHEELS: [Wheel; 8] = [
    ("nvidia-cuda-nvcc", "13.0.88", "56fe502eb77625a12f25172caa3cdddb4e4c8ba2c8c17dba44b164761b380f03"),
    ("nvidia-nvvm", "13.0.88", "c5f41ffeb6466944a026dfa5317d7d85355c119bbec279205d22f1869d1054e0"),
    ("nvidia-cuda-crt", "13.0.88", "2c8043c7c9e02492716426e9919fc78d2c5b3b2a7a768a88e952676b08aa55a4"),
    ("nvidia-cuda-runtime", "13.0.96", "7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548"),
    ("nvidia-cuda-cccl", "13.0.85", "e0da7ad981f3a8aff08241b5bfc1af868742a63e2762f53a5171c492ef242649"),
    ("nvidia-cuda-nvrtc", "13.0.88", "ad9b6d2ead2435f11cbb6868809d2adeeee302e9bb94bcf0539c7a40d80e8575"),
    ("nvidia-cublas", "13.1.0.3", "ee8722c1f0145ab246bccb9e452153b5e0515fd094c3678df50b2a0888b8b171"),
    ("nvidia-curand", "10.4.0.35", "1aee33a5da6e1db083fe2b90082def8915f30f3248d5896bcec36a579d941bfc"),
];
/// The tree, in the folder that the wheels are unpacked to.
const TREE: &str = "nvidia/cu13";
/// `CUDA_ERROR_STUB_LIBRARY`: what every function of the `libcuda` to link with returns.
const STUB_LIBRARY: u32 = 34;

/// A toolkit in a folder.
#[derive(Debug)]
pub(crate) struct Toolkit {
    home: PathBuf,
}

impl Toolkit {
    /// One that is there.
    ///
    /// # Errors
    ///
    /// If the folder has no `bin/nvcc` or nothing to link with.
    pub(crate) fn at(home: &Path) -> Result<Self> {
        for file in ["bin/nvcc", "lib64/libcublas.so", "lib64/stubs/libcuda.so"] {
            ensure!(
                home.join(file).exists(),
                "`{}` is no CUDA toolkit: it has no `{file}`; leave --cuda-home out to fetch one",
                home.display()
            );
        }
        let home = home.canonicalize().with_context(|| format!("cannot read `{}`", home.display()))?;
        Ok(Self { home })
    }

    /// The pinned one, in `target`, the workspace's target folder; fetched and laid out if it is not there.
    ///
    /// # Errors
    ///
    /// If the wheels cannot be fetched (700 MB), or there is no C compiler.
    pub(crate) fn fetch(target: &Path) -> Result<Self> {
        ensure!(
            cfg!(all(target_os = "linux", target_arch = "x86_64")),
            "the toolkit is fetched on Linux on x86-64 only; give one with --cuda-home, or --without-candle"
        );
        let folder = target.join("cuda-tools/toolkit-13.0");
        fetch_wheels("CUDA 13.0 (700 MB)", &requirements(&WHEELS), &folder)?;
        let home = folder.join(TREE);
        lay_out(&home, &driver_functions()?)?;
        Self::at(&home)
    }

    /// Lets a build find this toolkit, and no other, and compiles for devices of compute capability 9.0.
    pub(crate) fn set(&self, command: &mut Command) -> Result<()> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path =
            std::env::join_paths(std::iter::once(self.home.join("bin")).chain(std::env::split_paths(&path)))?;
        command.env("CUDA_HOME", &self.home).env("PATH", path).env("CUDA_COMPUTE_CAP", "90");
        for other in ["CUDA_PATH", "CUDA_ROOT", "CUDA_TOOLKIT_ROOT_DIR", "CUDARC_CUDA_VERSION", "NVCC"] {
            command.env_remove(other);
        }
        Ok(())
    }

    /// The folder of its libraries.
    pub(crate) fn libraries(&self) -> PathBuf {
        self.home.join("lib64")
    }
}

/// What pip reads.
fn requirements(wheels: &[Wheel]) -> String {
    let line = |(package, version, hash): &Wheel| format!("{package}=={version} --hash=sha256:{hash}\n");
    wheels.iter().map(line).collect()
}

/// Adds what a toolkit has and wheels lack. What is there already stays.
fn lay_out(home: &Path, functions: &BTreeSet<String>) -> Result<()> {
    let lib = home.join("lib");
    link("lib", &home.join("lib64"))?;
    let libraries = fs::read_dir(&lib).with_context(|| format!("cannot read `{}`", lib.display()))?;
    for library in libraries {
        let name = library?.file_name().to_string_lossy().into_owned();
        if let Some((stem, _)) = name.split_once(".so.").filter(|(stem, _)| !stem.contains(".alt")) {
            link(&name, &lib.join(format!("{stem}.so")))?;
        }
    }
    let stubs = lib.join("stubs");
    if !stubs.join("libcuda.so").exists() {
        fs::create_dir_all(&stubs).with_context(|| format!("cannot create `{}`", stubs.display()))?;
        compile_stub(&stubs, functions)?;
    }
    Ok(())
}

#[cfg(unix)]
fn link(to: &str, from: &Path) -> Result<()> {
    if from.symlink_metadata().is_ok() {
        return Ok(());
    }
    std::os::unix::fs::symlink(to, from).with_context(|| format!("cannot link `{}`", from.display()))
}

#[cfg(not(unix))]
fn link(_: &str, from: &Path) -> Result<()> {
    anyhow::bail!("`{}` would be a link, which takes a Unix", from.display())
}

fn compile_stub(folder: &Path, functions: &BTreeSet<String>) -> Result<()> {
    let mut source = String::new();
    for function in functions {
        let _ = writeln!(source, "int {function}(void) {{ return {STUB_LIBRARY}; }}");
    }
    let (file, library) = (folder.join("libcuda.c"), folder.join("libcuda.so"));
    fs::write(&file, source).with_context(|| format!("cannot write `{}`", file.display()))?;
    let mut compiler = Command::new("cc");
    compiler.args(["-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o"]).arg(&library).arg(&file);
    super::call(compiler, "gcc")
}

/// Names of the driver's functions, from the bindings that candle calls.
fn driver_functions() -> Result<BTreeSet<String>> {
    let output = cargo(&["metadata", "--format-version", "1"])
        .stderr(std::process::Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    ensure!(output.status.success(), "`cargo metadata` ended with {}", output.status);
    let metadata: Value = serde_json::from_slice(&output.stdout).context("the output of cargo metadata")?;
    let mut packages = metadata["packages"].as_array().into_iter().flatten();
    let manifest =
        packages.find(|package| package["name"] == "cudarc").map(|package| &package["manifest_path"]);
    let manifest = manifest.and_then(Value::as_str).context("cargo metadata names no cudarc")?;
    let bindings = Path::new(manifest).with_file_name("src/driver/sys/mod.rs");
    let text =
        fs::read_to_string(&bindings).with_context(|| format!("cannot read `{}`", bindings.display()))?;
    let functions = functions_in(&text);
    ensure!(functions.len() > 100, "`{}` looks up {} functions only", bindings.display(), functions.len());
    Ok(functions)
}

/// What the bindings look up by name.
fn functions_in(bindings: &str) -> BTreeSet<String> {
    let calls = bindings.split("load::<_F>(\"").skip(1);
    calls.filter_map(|rest| rest.split('"').next()).map(str::to_owned).collect()
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn wheels_are_pinned_by_version_and_content() {
        let text = requirements(&[("compiler", "1.2", "ab"), ("library", "3", "cd")]);
        assert_eq!(text, "compiler==1.2 --hash=sha256:ab\nlibrary==3 --hash=sha256:cd\n");
        for (package, _, hash) in WHEELS {
            assert!(hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()), "{package}");
        }
    }

    #[test]
    fn bindings_tell_their_functions() {
        let text =
            r#"let f = load::<_F>("cuInit"); let g = load::<_F>("cuCtxCreate_v2"); load::<_F>("cuInit")"#;
        assert_eq!(functions_in(text).into_iter().collect::<Vec<_>>(), ["cuCtxCreate_v2", "cuInit"]);
    }

    #[test]
    fn a_tree_of_wheels_becomes_a_toolkit() {
        let folder = std::env::temp_dir().join(format!("xtask-toolkit-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(folder.join("bin")).unwrap();
        fs::create_dir_all(folder.join("lib")).unwrap();
        for file in ["bin/nvcc", "lib/libcublas.so.13", "lib/libnvrtc.alt.so.13"] {
            fs::write(folder.join(file), "").unwrap();
        }
        let error = Toolkit::at(&folder).unwrap_err().to_string();
        assert!(error.contains("no `lib64/libcublas.so`") && error.contains("--cuda-home"), "{error}");

        let functions = BTreeSet::from(["cuInit".to_owned()]);
        // Twice: a tree that is laid out already stays.
        lay_out(&folder, &functions).unwrap();
        lay_out(&folder, &functions).unwrap();
        let toolkit = Toolkit::at(&folder).unwrap();
        assert!(toolkit.libraries().join("libcublas.so").exists());
        assert!(!folder.join("lib/libnvrtc.alt.so").exists() && !folder.join("lib/libnvrtc.so").exists());
        // SAFETY: the library was made above; its one function takes nothing and returns a number.
        let answer = unsafe {
            let library = libloading::Library::new(folder.join("lib/stubs/libcuda.so")).unwrap();
            library.get::<unsafe extern "C" fn() -> u32>("cuInit").unwrap()()
        };
        assert_eq!(answer, STUB_LIBRARY);

        let mut command = Command::new("sh");
        command.args(["-c", "command -v nvcc; echo $CUDA_HOME $CUDA_COMPUTE_CAP"]);
        crate::make_executable(&folder.join("bin/nvcc")).unwrap();
        toolkit.set(&mut command).unwrap();
        let text = String::from_utf8(command.output().unwrap().stdout).unwrap();
        let home = folder.canonicalize().unwrap().display().to_string();
        assert_eq!(text, format!("{home}/bin/nvcc\n{home} 90\n"));
        fs::remove_dir_all(&folder).unwrap();
    }
}
