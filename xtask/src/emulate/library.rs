//! Builds the kernels and the emulator into a shared library, when something has changed.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::{env, fs, thread};

use anyhow::{Context, Result, bail, ensure};

/// How the library is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Variant {
    /// Nothing but the emulator's own checks
    Plain,
    /// The same, with the sums that the kernels take on GPUs with few units for f64
    Compensated,
    /// Undefined behavior: bounds of arrays, alignment, overflow
    Ubsan,
    /// Memory outside allocations, and undefined behavior
    Asan,
    /// Data races
    Tsan,
}

/// What is compiled.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Sources {
    /// The kernels of the CUDA backend
    Kernels,
    /// The emulator's own tests
    SelfTest,
}

/// Options of every file. Contraction is off here as it is on the GPU, so that both round alike.
const FLAGS: &[&str] = &[
    "-std=c++17",
    "-O2",
    "-g1",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-strict-aliasing",
    "-ffp-contract=off",
    "-Wall",
    "-Wextra",
    "-Wno-unknown-pragmas",
    "-DTPGM_THREADS=64",
];

/// One file and its object.
struct Unit {
    source: PathBuf,
    flags: Vec<&'static str>,
    object: PathBuf,
}

impl Variant {
    /// All that check something of their own, the quickest first.
    pub(crate) const ALL: [Variant; 4] = [Variant::Plain, Variant::Ubsan, Variant::Asan, Variant::Tsan];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Variant::Plain => "plain",
            Variant::Compensated => "compensated",
            Variant::Ubsan => "ubsan",
            Variant::Asan => "asan",
            Variant::Tsan => "tsan",
        }
    }

    /// What the linker is told too.
    fn sanitizer(self) -> &'static [&'static str] {
        match self {
            Variant::Plain | Variant::Compensated => &[],
            Variant::Ubsan => &["-fsanitize=undefined", "-fno-sanitize-recover=all"],
            Variant::Asan => &["-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
            Variant::Tsan => &["-fsanitize=thread"],
        }
    }

    fn flags(self, kernel: bool) -> Vec<&'static str> {
        let mut flags = FLAGS.to_vec();
        if has_fma() {
            flags.extend(["-mavx2", "-mfma"]);
        }
        match self {
            Variant::Plain => {}
            Variant::Compensated => flags.push("-DTPGM_COMPENSATED=1"),
            Variant::Ubsan => flags.extend(self.sanitizer()),
            Variant::Asan => {
                flags.extend(self.sanitizer());
                flags.extend(["-fno-omit-frame-pointer", "-DTPGM_EMULATOR_ASAN"]);
            }
            Variant::Tsan => {
                flags.push("-DTPGM_EMULATOR_TSAN");
                // The emulator is not watched: to the sanitizer, its threads are those of CUDA.
                if kernel {
                    flags.extend(self.sanitizer());
                }
            }
        }
        flags
    }
}

/// With it, `fma` is an instruction rather than a slow function.
fn has_fma() -> bool {
    #[cfg(target_arch = "x86_64")]
    return is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    false
}

/// The C++ compiler: `$CXX`, or `g++`. `None` if there is none.
pub(crate) fn compiler() -> Option<PathBuf> {
    let compiler = PathBuf::from(env::var_os("CXX").unwrap_or_else(|| "g++".into()));
    let found = Command::new(&compiler).arg("--version").output().is_ok_and(|output| output.status.success());
    found.then_some(compiler)
}

/// The library with the kernels of the CUDA backend, built if need be. `None`, with a printed reason, where there is no C++
/// compiler.
///
/// # Errors
///
/// If it does not compile, or a file cannot be read or written.
pub(crate) fn library(variant: Variant) -> Result<Option<PathBuf>> {
    match compiler() {
        Some(compiler) => build(&compiler, variant, Sources::Kernels).map(Some),
        None => {
            println!("skipped: no C++ compiler ($CXX or g++), which compiles the kernels for the CPU");
            Ok(None)
        }
    }
}

/// The path of the library, built if need be.
///
/// # Errors
///
/// As [`library`].
pub(crate) fn build(compiler: &Path, variant: Variant, sources: Sources) -> Result<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the folder above xtask")?;
    let kernels = root.join("kernels");
    let (name, of_kernels) = match sources {
        Sources::Kernels => ("kernels", kernels.clone()),
        Sources::SelfTest => ("self_test", kernels.join("emulator/self_test")),
    };
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let folder = target.join("emulator").join(variant.name()).join(name);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;

    let units = units(compiler, variant, &kernels, &of_kernels, &folder)?;
    let mut hasher = DefaultHasher::new();
    units.iter().for_each(|unit| unit.object.hash(&mut hasher));
    let library = folder.join(format!("{name}.{:016x}.so", hasher.finish()));
    if !library.exists() {
        compile(compiler, &kernels, &units)?;
        let link = |to: &Path| {
            let mut command = Command::new(compiler);
            command.args(["-shared", "-pthread"]).args(variant.sanitizer()).arg("-o").arg(to);
            command.args(units.iter().map(|unit| &unit.object));
            command
        };
        make(&library, link)?;
        remove_others(&folder, &units, &library)?;
    }
    Ok(library)
}

/// What has to be compiled. An object has a hash of all it depends on in its name.
fn units(
    compiler: &Path,
    variant: Variant,
    kernels: &Path,
    of_kernels: &Path,
    folder: &Path,
) -> Result<Vec<Unit>> {
    let emulator = kernels.join("emulator");
    let mut common = DefaultHasher::new();
    for header in [files(kernels, "cuh")?, files(&emulator, "h")?, files(of_kernels, "cuh")?].concat() {
        read(&header)?.hash(&mut common);
    }
    let version =
        Command::new(compiler).arg("--version").output().context("cannot start the C++ compiler")?;
    version.stdout.hash(&mut common);

    let of_kernels = files(of_kernels, "cu")?;
    ensure!(!of_kernels.is_empty(), "no kernels: no .cu file");
    let sources = [of_kernels, files(&emulator, "cpp")?].concat();
    sources
        .into_iter()
        .map(|source| {
            let flags = variant.flags(source.extension().is_some_and(|extension| extension == "cu"));
            let mut hasher = common.clone();
            flags.hash(&mut hasher);
            read(&source)?.hash(&mut hasher);
            let stem = source.file_stem().unwrap_or_default().to_string_lossy();
            let object = folder.join(format!("{stem}.{:016x}.o", hasher.finish()));
            Ok(Unit { source, flags, object })
        })
        .collect()
}

/// Compiles what is missing, on all cores.
fn compile(compiler: &Path, kernels: &Path, units: &[Unit]) -> Result<()> {
    let next = AtomicUsize::new(0);
    let failure = Mutex::new(Ok(()));
    let work = || {
        while let Some(unit) = units.get(next.fetch_add(1, Ordering::Relaxed)) {
            if unit.object.exists() {
                continue;
            }
            let command = |to: &Path| {
                let mut command = Command::new(compiler);
                command.args(&unit.flags).arg("-I").arg(kernels).args(["-x", "c++", "-c"]);
                command.arg(&unit.source).arg("-o").arg(to);
                command
            };
            if let (Err(error), Ok(mut failure)) = (make(&unit.object, command), failure.lock()) {
                *failure = Err(error);
            }
        }
    };
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, usize::from).min(units.len()) {
            scope.spawn(work);
        }
    });
    failure.into_inner().unwrap_or_else(|error| error.into_inner())
}

/// Runs a command that writes a file; the file has its name only when it is complete.
fn make(file: &Path, command: impl FnOnce(&Path) -> Command) -> Result<()> {
    let unfinished = file.with_extension(format!("{}.unfinished", std::process::id()));
    let mut command = command(&unfinished);
    let output = command.output().with_context(|| format!("cannot start {:?}", command.get_program()))?;
    // Warnings too.
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    if !output.status.success() {
        bail!("{command:?} failed: {}", output.status);
    }
    fs::rename(&unfinished, file).with_context(|| format!("cannot write {}", file.display()))
}

/// Removes what former versions of the sources have left.
fn remove_others(folder: &Path, units: &[Unit], library: &Path) -> Result<()> {
    for file in [files(folder, "o")?, files(folder, "so")?].concat() {
        if file != library && units.iter().all(|unit| unit.object != file) {
            fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
        }
    }
    Ok(())
}

/// The files of a folder with an extension, sorted.
fn files(folder: &Path, extension: &str) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.with_context(|| format!("cannot read {}", folder.display()))?.path();
        if path.extension().is_some_and(|found| found == extension) {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read(file: &Path) -> Result<Vec<u8>> {
    fs::read(file).with_context(|| format!("cannot read {}", file.display()))
}
