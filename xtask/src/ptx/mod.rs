//! `cargo xtask ptx`: `kernels/*.cu` to PTX, which is committed so that building needs no compiler of CUDA.

mod nvrtc;
mod ptxas;
mod table;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail, ensure};

use crate::cuda_tools;
use nvrtc::Nvrtc;
use ptxas::{GPUS, Usage};

/// Options of `ptx`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Compare with the committed files instead of writing them
    #[arg(long)]
    check: bool,
    /// Compile with this NVRTC library instead of the pinned wheel
    #[arg(long, value_name = "PATH")]
    nvrtc: Option<PathBuf>,
    /// Take an NVRTC of another version than the pinned one; its output differs
    #[arg(long, requires = "nvrtc")]
    any_version: bool,
}

/// Compute capabilities, times ten, that PTX is made for. A GPU takes the newest that it can use. `tpgm-cuda` embeds these.
const TARGETS: [u32; 2] = [75, 90];

/// NVRTC options besides the target and the include path. Products and sums are never contracted, so that a kernel gives
/// the same bits on every GPU and under the emulator.
const OPTIONS: [&str; 2] = ["--std=c++17", "--fmad=false"];

/// The release of the pinned NVRTC, which it writes at the top of its output.
const RELEASE: &str = "release 12.4, V12.4.127";

/// Compiles all kernels, writes or compares the PTX, assembles it, and prints a line per kernel.
///
/// # Errors
///
/// If a tool is missing, a kernel does not compile or spills registers, or with `--check` if a committed file differs.
pub(crate) fn run(args: &Args) -> Result<()> {
    let root = crate::root()?;
    let target = root.join("target");
    let library = match &args.nvrtc {
        Some(path) => path.clone(),
        None => cuda_tools::NVRTC.fetch(&target)?,
    };
    let ptxas = cuda_tools::PTXAS.fetch(&target)?;
    let files = compile_all(&Nvrtc::open(&library)?, &root.join("kernels"), args.any_version)?;

    let committed = root.join("crates/tpgm-cuda/ptx");
    // What was compiled is kept aside: ptxas reads it there, and what `--check` complains about can be looked at.
    let fresh = target.join("ptx");
    write_all(&fresh, &files)?;
    let problems = if args.check { compare(&committed, &files)? } else { Vec::new() };
    for problem in &problems {
        println!("FAILED  {problem}");
    }
    let usages = assemble_all(&ptxas, &fresh, &files)?;
    println!("{}", table::of(&usages));
    let spills = table::spills(&usages);
    ensure!(spills.is_empty(), "registers are spilled to local memory:\n{}", spills.join("\n"));
    ensure!(problems.is_empty(), "`{}` is not up to date: run `cargo xtask ptx`", committed.display());
    if args.check {
        println!("{} files are what the kernels compile to", files.len());
    } else {
        write_all(&committed, &files)?;
        println!("wrote {} files to {}", files.len(), committed.display());
    }
    Ok(())
}

/// Why the tools are not there and cannot or must not be fetched, if so.
pub(crate) fn missing() -> Result<Option<&'static str>> {
    let target = crate::root()?.join("target");
    let fetched = [cuda_tools::NVRTC, cuda_tools::PTXAS].iter().all(|tool| tool.fetched(&target).is_some());
    Ok(match (fetched, cuda_tools::offline()) {
        (true, _) => None,
        (false, true) => Some("TPGM_OFFLINE=1, and NVIDIA's compilers were not fetched before"),
        (false, false) if !cuda_tools::python_is_there() => {
            Some("there is no Python 3, which fetches NVIDIA's compilers")
        }
        (false, false) => None,
    })
}

/// One output of the compiler.
struct File {
    /// Name of the kernel file, without extension.
    stem: String,
    target: u32,
    ptx: String,
}

impl File {
    fn name(&self) -> String {
        format!("{}.compute_{}.ptx", self.stem, self.target)
    }
}

/// Compiles every kernel file for every target, on all processors.
fn compile_all(nvrtc: &Nvrtc, kernels: &Path, any_version: bool) -> Result<Vec<File>> {
    let sources = sources(kernels)?;
    ensure!(!sources.is_empty(), "`{}` has no .cu file", kernels.display());
    let jobs: Vec<_> = sources.iter().flat_map(|source| TARGETS.map(|target| (source, target))).collect();
    let results = in_parallel(&jobs, |&(source, target)| compile(nvrtc, kernels, source, target));
    // A set, because the same source mostly has the same warnings and errors for every target.
    let mut logs = BTreeSet::new();
    let mut files = Vec::new();
    for result in results {
        let (file, log) = result?;
        files.extend(file);
        logs.insert(log);
    }
    for log in logs.iter().filter(|log| !log.is_empty()) {
        println!("{log}");
    }
    let failed = jobs.len() - files.len();
    ensure!(failed == 0, "{failed} of {} compilations failed", jobs.len());
    files.sort_by_key(File::name);
    if let Some(file) = files.iter().find(|file| !any_version && !file.ptx.contains(RELEASE)) {
        let line = file.ptx.lines().find(|line| line.contains("compilation tools")).unwrap_or("no version");
        bail!(
            "NVRTC is not the pinned one, {RELEASE}, but says `{line}`; `--any-version` takes it all the same"
        );
    }
    Ok(files)
}

/// Does all jobs on all processors and returns the results in the order of the jobs.
fn in_parallel<J: Sync, R: Send>(jobs: &[J], work: impl Fn(&J) -> R + Sync) -> Vec<R> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let next = AtomicUsize::new(0);
    let worker = || {
        let mut done = Vec::new();
        loop {
            let index = next.fetch_add(1, Ordering::Relaxed);
            match jobs.get(index) {
                Some(job) => done.push((index, work(job))),
                None => return done,
            }
        }
    };
    let mut results: Vec<_> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..processors).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().expect("jobs return errors")).collect()
    });
    results.sort_by_key(|&(index, _)| index);
    results.into_iter().map(|(_, result)| result).collect()
}

/// The kernel files in the folder, sorted.
fn sources(kernels: &Path) -> Result<Vec<PathBuf>> {
    let mut sources = Vec::new();
    for entry in fs::read_dir(kernels).with_context(|| format!("cannot read `{}`", kernels.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "cu") {
            sources.push(path);
        }
    }
    sources.sort();
    Ok(sources)
}

/// Compiles one kernel file for one target: nothing if it has errors, and the messages.
fn compile(nvrtc: &Nvrtc, kernels: &Path, source: &Path, target: u32) -> Result<(Option<File>, String)> {
    let text = fs::read_to_string(source).with_context(|| format!("cannot read `{}`", source.display()))?;
    let stem = source.file_stem().context("the kernel file's name")?.to_string_lossy().into_owned();
    let name = format!("{stem}.cu");
    let mut options: Vec<_> = OPTIONS.map(str::to_owned).into();
    options.push(format!("--gpu-architecture=compute_{target}"));
    options.push(format!("--include-path={}", kernels.display()));
    let compiled = nvrtc.compile(&name, &text, &options).context(name)?;
    Ok((compiled.ptx.map(|ptx| File { stem, target, ptx }), compiled.log))
}

/// Makes the folder hold these files and no other PTX.
fn write_all(folder: &Path, files: &[File]) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create `{}`", folder.display()))?;
    for file in files {
        let path = folder.join(file.name());
        // Left alone when it is right already, or all that embeds it would be compiled again.
        if !fs::read(&path).is_ok_and(|bytes| bytes == file.ptx.as_bytes()) {
            fs::write(&path, &file.ptx).with_context(|| format!("cannot write `{}`", path.display()))?;
        }
    }
    for path in strays(folder, files)? {
        fs::remove_file(&path).with_context(|| format!("cannot remove `{}`", path.display()))?;
    }
    Ok(())
}

/// PTX in the folder that no kernel file compiles to.
fn strays(folder: &Path, files: &[File]) -> Result<Vec<PathBuf>> {
    let mut strays = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read `{}`", folder.display()))? {
        let path = entry?.path();
        let expected = files.iter().any(|file| path.ends_with(file.name()));
        if !expected && path.extension().is_some_and(|extension| extension == "ptx") {
            strays.push(path);
        }
    }
    strays.sort();
    Ok(strays)
}

/// What is wrong with the committed files.
fn compare(folder: &Path, files: &[File]) -> Result<Vec<String>> {
    if !folder.exists() {
        return Ok(vec![format!("`{}` is missing", folder.display())]);
    }
    let mut problems = Vec::new();
    for file in files {
        let name = file.name();
        match fs::read_to_string(folder.join(&name)) {
            Err(error) => problems.push(format!("{name}: {error}")),
            Ok(text) if text != file.ptx => {
                let same = text.lines().zip(file.ptx.lines()).take_while(|(old, new)| old == new).count();
                problems.push(format!("{name} differs from line {} on", same + 1));
            }
            Ok(_) => {}
        }
    }
    for path in strays(folder, files)? {
        problems.push(format!("{}: no kernel file compiles to it", path.display()));
    }
    Ok(problems)
}

/// Assembles for every GPU and returns what the kernels take, per compute capability (times ten).
fn assemble_all(ptxas: &Path, folder: &Path, files: &[File]) -> Result<BTreeMap<u32, Vec<Usage>>> {
    let mut jobs = Vec::new();
    for gpu in GPUS {
        let target = TARGETS.into_iter().filter(|&target| target <= gpu.capability).max();
        jobs.extend(files.iter().filter(|file| Some(file.target) == target).map(|file| (gpu, file)));
    }
    // The biggest first, so that no processor is left alone with one at the end.
    jobs.sort_by_key(|(_, file)| Reverse(file.ptx.len()));
    let results = in_parallel(&jobs, |(gpu, file)| {
        let output = folder.join(format!("{}.sm_{}.cubin", file.stem, gpu.capability));
        ptxas::assemble(ptxas, *gpu, &folder.join(file.name()), &output)
    });
    let mut usages: BTreeMap<u32, Vec<Usage>> = BTreeMap::new();
    for ((gpu, _), usage) in jobs.iter().zip(results) {
        usages.entry(gpu.capability).or_default().append(&mut usage?);
    }
    Ok(usages)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(target: u32, ptx: &str) -> File {
        File { stem: "step".to_owned(), target, ptx: ptx.to_owned() }
    }

    #[test]
    fn differing_missing_and_stray_files_are_found() {
        let folder = std::env::temp_dir().join(format!("xtask-ptx-{}", std::process::id()));
        let files = [file(75, "a\nb\n"), file(80, "c\n")];
        write_all(&folder, &files).unwrap();
        assert_eq!(compare(&folder, &files).unwrap(), Vec::<String>::new());

        fs::write(folder.join("step.compute_75.ptx"), "a\nB\n").unwrap();
        fs::remove_file(folder.join("step.compute_80.ptx")).unwrap();
        fs::write(folder.join("gone.compute_80.ptx"), "").unwrap();
        fs::write(folder.join("README.md"), "").unwrap();
        let problems = compare(&folder, &files).unwrap();
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert_eq!(problems[0], "step.compute_75.ptx differs from line 2 on");
        assert!(problems[1].starts_with("step.compute_80.ptx: "), "{problems:?}");
        assert!(problems[2].ends_with("gone.compute_80.ptx: no kernel file compiles to it"), "{problems:?}");

        write_all(&folder, &files).unwrap();
        assert_eq!(compare(&folder, &files).unwrap(), Vec::<String>::new());
        assert!(folder.join("README.md").exists() && !folder.join("gone.compute_80.ptx").exists());
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(compare(&folder, &files).unwrap().len(), 1);
    }
}
