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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sources {
    /// The kernels of the CUDA backend
    Kernels,
    /// The emulator's own tests
    SelfTest,
    /// The kernels of the CUDA backend, and the stand-in for NVIDIA's driver that runs them
    Driver,
    /// The stand-in with the kernels of the emulator's own tests
    DriverSelfTest,
}

/// A library: what is compiled, and how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Build {
    pub(crate) sources: Sources,
    pub(crate) variant: Variant,
    /// Threads of a block
    pub(crate) threads: u32,
}

/// Threads of a block in the emulator, unless told otherwise: fewer than on a GPU, since each costs a switch of contexts at
/// every barrier.
pub(crate) const FEW_THREADS: u32 = 64;

/// Threads of a block on a GPU: `TPGM_THREADS` of the kernels.
pub(crate) const GPU_THREADS: u32 = 256;

/// What the driver's library is called.
const DRIVER: &str = "libcuda.so.1";

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
];

/// One file and its object.
struct Unit {
    source: PathBuf,
    flags: Vec<String>,
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
        match self {
            Variant::Plain => Vec::new(),
            Variant::Compensated => vec!["-DTPGM_COMPENSATED=1"],
            Variant::Ubsan => self.sanitizer().to_vec(),
            Variant::Asan => {
                [self.sanitizer(), &["-fno-omit-frame-pointer", "-DTPGM_EMULATOR_ASAN"]].concat()
            }
            // The emulator is not watched: to the sanitizer, its threads are those of CUDA.
            Variant::Tsan if kernel => [self.sanitizer(), &["-DTPGM_EMULATOR_TSAN"]].concat(),
            Variant::Tsan => vec!["-DTPGM_EMULATOR_TSAN"],
        }
    }
}

impl Sources {
    /// A word for the folder and the library, and the folder of the kernels below `kernels`.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Sources::Kernels => ("kernels", ""),
            Sources::SelfTest => ("self_test", "emulator/self_test"),
            Sources::Driver => ("driver", ""),
            Sources::DriverSelfTest => ("driver_self_test", "emulator/self_test"),
        }
    }

    /// True if the library stands in for NVIDIA's driver.
    fn is_driver(self) -> bool {
        matches!(self, Sources::Driver | Sources::DriverSelfTest)
    }
}

impl Build {
    /// Options of a file, for a kernel or for what runs it.
    fn flags(self, kernel: bool) -> Vec<String> {
        let mut flags: Vec<String> = FLAGS.iter().map(|flag| (*flag).into()).collect();
        if has_fma() {
            flags.extend(["-mavx2", "-mfma"].map(String::from));
        }
        flags.push(format!("-DTPGM_THREADS={}", self.threads));
        flags.extend(self.variant.flags(kernel).into_iter().map(String::from));
        flags
    }

    /// Where objects and the library go.
    fn folder(self) -> Result<PathBuf> {
        let target = match env::var_os("CARGO_TARGET_DIR") {
            Some(target) => PathBuf::from(target),
            None => crate::root()?.join("target"),
        };
        let threads = if self.threads == FEW_THREADS { String::new() } else { format!("-{}", self.threads) };
        let folder = format!("{}{threads}", self.variant.name());
        Ok(target.join("emulator").join(folder).join(self.sources.names().0))
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
    build_if_possible(Build { sources: Sources::Kernels, variant, threads: FEW_THREADS })
}

/// The folder with `libcuda.so.1`, the stand-in for NVIDIA's driver that runs the kernels of the CUDA backend, built if need be.
/// `None`, with a printed reason, where there is no C++ compiler.
///
/// # Errors
///
/// As [`library`].
pub(crate) fn driver() -> Result<Option<PathBuf>> {
    let build = Build { sources: Sources::Driver, variant: Variant::Plain, threads: GPU_THREADS };
    build_if_possible(build)?.map(|library| folder_of(&library)).transpose()
}

/// As [`build`]; `None`, with a printed reason, where there is no C++ compiler, or no Linux for the stand-in.
///
/// # Errors
///
/// As [`library`].
pub(crate) fn build_if_possible(what: Build) -> Result<Option<PathBuf>> {
    if what.sources.is_driver() && !cfg!(target_os = "linux") {
        println!("skipped: the stand-in for NVIDIA's driver takes Linux");
        return Ok(None);
    }
    match compiler() {
        Some(compiler) => build(&compiler, what).map(Some),
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
pub(crate) fn build(compiler: &Path, what: Build) -> Result<PathBuf> {
    let kernels = crate::root()?.join("kernels");
    let folder = what.folder()?;
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;

    let units = units(compiler, what, &kernels, &folder)?;
    let mut hasher = DefaultHasher::new();
    units.iter().for_each(|unit| unit.object.hash(&mut hasher));
    let name = what.sources.names().0;
    let library = folder.join(format!("{name}.{:016x}.so", hasher.finish()));
    if !library.exists() {
        compile(compiler, &kernels, &units)?;
        let link = |to: &Path| {
            let mut command = Command::new(compiler);
            command.args(["-shared", "-pthread"]).args(what.variant.sanitizer()).arg("-o").arg(to);
            if what.sources.is_driver() {
                command.arg(format!("-Wl,-soname,{DRIVER}"));
            }
            command.args(units.iter().map(|unit| &unit.object)).arg("-ldl");
            command
        };
        make(&library, link)?;
        remove_others(&folder, &units, &library)?;
    }
    if what.sources.is_driver() {
        // Programs look for the driver by its name.
        let copy = |to: &Path| {
            let mut command = Command::new("cp");
            command.arg(&library).arg(to);
            command
        };
        make(&folder.join(DRIVER), copy)?;
    }
    Ok(library)
}

/// The folder that a library is in.
pub(crate) fn folder_of(library: &Path) -> Result<PathBuf> {
    library.parent().map(Path::to_path_buf).context("the library's folder")
}

/// A program of one source that is linked with a library, built if need be.
///
/// # Errors
///
/// As [`library`].
pub(crate) fn program(compiler: &Path, what: Build, source: &Path, library: &Path) -> Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    library.hash(&mut hasher);
    read(source)?.hash(&mut hasher);
    let stem = source.file_stem().unwrap_or_default().to_string_lossy();
    let folder = folder_of(library)?;
    let program = folder.join(format!("{stem}.{:016x}.program", hasher.finish()));
    if !program.exists() {
        let kernels = crate::root()?.join("kernels");
        let command = |to: &Path| {
            let mut command = Command::new(compiler);
            command.args(what.flags(false)).arg("-I").arg(kernels).arg(source).arg("-o").arg(to);
            command.arg("-pthread").arg(library);
            command
        };
        make(&program, command)?;
        for file in files(&folder, "program")?.into_iter().filter(|file| *file != program) {
            fs::remove_file(&file).with_context(|| format!("cannot remove {}", file.display()))?;
        }
    }
    Ok(program)
}

/// What has to be compiled. An object has a hash of all it depends on in its name.
fn units(compiler: &Path, what: Build, kernels: &Path, folder: &Path) -> Result<Vec<Unit>> {
    let of_kernels = kernels.join(what.sources.names().1);
    let emulator = kernels.join("emulator");
    let driver = emulator.join("driver");
    let mut common = DefaultHasher::new();
    for header in [files(kernels, "cuh")?, files(&emulator, "h")?, files(&of_kernels, "cuh")?].concat() {
        read(&header)?.hash(&mut common);
    }
    let version =
        Command::new(compiler).arg("--version").output().context("cannot start the C++ compiler")?;
    version.stdout.hash(&mut common);

    // Headers of layers count for layers alone.
    let layers = kernels.join("layers");
    let mut of_layers = DefaultHasher::new();
    for header in files(&layers, "cuh")? {
        read(&header)?.hash(&mut of_layers);
    }
    let of_layers = of_layers.finish();

    let of_kernels = files(&of_kernels, "cu")?;
    ensure!(!of_kernels.is_empty(), "no kernels: no .cu file");
    let mut sources = [of_kernels, files(&emulator, "cpp")?].concat();
    if matches!(what.sources, Sources::Kernels | Sources::Driver) {
        sources.extend(files(&layers, "cu")?);
    }
    if what.sources.is_driver() {
        for header in [files(&driver, "h")?, files(&driver, "inc")?].concat() {
            read(&header)?.hash(&mut common);
        }
        sources.extend(files(&driver, "cpp")?);
    }
    sources
        .into_iter()
        .map(|source| {
            let flags = what.flags(source.extension().is_some_and(|extension| extension == "cu"));
            let mut hasher = common.clone();
            flags.hash(&mut hasher);
            if source.starts_with(&layers) {
                of_layers.hash(&mut hasher);
            }
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
