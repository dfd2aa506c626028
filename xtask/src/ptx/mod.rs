//! `cargo xtask ptx`: `kernels/*.cu` and `kernels/layers/*.cu` to modules of machine code and PTX, which are committed so that
//! building needs no compiler of CUDA.
//!
//! A module is one kernel for one storage of the operands, or one kernel of a layer for one element type, as a fat binary:
//! machine code for the usual GPUs and PTX for all others, from which the driver takes what fits.

mod compile;
mod fatbinary;
mod nvrtc;
mod ptxas;
mod record;
mod table;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};

use crate::cuda_tools;
use compile::{Ptx, TARGET, compile_all};
use nvrtc::Nvrtc;
use ptxas::{GPUS, Gpu, Usage};

/// Options of `ptx`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Compare with the committed files instead of writing them, where sources, compilers or files changed since they were
    /// written
    #[arg(long)]
    check: bool,
    /// Compile and compare in any case
    #[arg(long, requires = "check")]
    anew: bool,
    /// Take only modules with this in their names, print what they take, and write nothing
    #[arg(long, value_name = "TEXT", conflicts_with = "check")]
    only: Option<String>,
    /// Compile with this NVRTC library instead of the pinned wheel
    #[arg(long, value_name = "PATH")]
    nvrtc: Option<PathBuf>,
    /// Take an NVRTC of another version than the pinned one; its output differs
    #[arg(long, requires = "nvrtc")]
    any_version: bool,
}

/// Folder of the committed files.
const MODULES: &str = "crates/tpgm-cuda/modules";

/// Extension of the committed files.
const EXTENSION: &str = "fatbin";

/// Compiles all kernels, writes or compares the modules, and prints a line per kernel.
///
/// # Errors
///
/// If a tool is missing, a kernel does not compile or spills registers, or with `--check` if a committed file differs.
pub(crate) fn run(args: &Args) -> Result<()> {
    let root = crate::root()?;
    let target = root.join("target");
    let kernels = root.join("kernels");
    let committed = root.join(MODULES);
    if args.check && args.nvrtc.is_none() && record::holds(&kernels, &committed)? {
        let record = record::path(&kernels);
        let same = "sources, compilers and modules are those of when `cargo xtask ptx` wrote them";
        let why = match (args.anew, without_compilers()?) {
            (true, None) => None,
            (true, Some(reason)) => Some(format!("not compiled anew: {reason}")),
            (false, _) => Some("--anew compiles and compares".to_owned()),
        };
        if let Some(why) = why {
            println!("{same} (`{}`); {why}", record.display());
            return Ok(());
        }
    }
    let library = match &args.nvrtc {
        Some(path) => path.clone(),
        None => cuda_tools::NVRTC.fetch(&target)?,
    };
    let ptxas = cuda_tools::PTXAS.fetch(&target)?;
    let fatbinary = cuda_tools::FATBINARY.fetch(&target)?;
    let only = args.only.as_deref().unwrap_or("");
    let ptx = compile_all(&Nvrtc::open(&library)?, &kernels, only, args.any_version)?;

    // PTX and machine code are kept: what has not changed is not assembled again, and what `--check` complains about can be
    // looked at.
    let fresh = target.join("ptx");
    fs::create_dir_all(&fresh).with_context(|| format!("cannot create `{}`", fresh.display()))?;
    let parts = assemble_all(&ptxas, &fresh, &ptx)?;
    println!("{}", table::of(&parts.usages));
    let spills = table::spills(&parts.usages);
    ensure!(spills.is_empty(), "registers are spilled to local memory:\n{}", spills.join("\n"));
    if args.only.is_some() {
        return Ok(());
    }
    parts.remove_others(&fresh)?;

    let modules = pack_all(&fatbinary, &fresh, &parts)?;
    let bytes: usize = modules.values().map(Vec::len).sum();
    println!("{} modules, {} KiB packed of {} KiB", modules.len(), bytes >> 10, parts.bytes()? >> 10);
    if args.check {
        let problems = compare(&committed, &modules)?;
        for problem in &problems {
            println!("FAILED  {problem}");
        }
        ensure!(problems.is_empty(), "`{}` is not up to date: run `cargo xtask ptx`", committed.display());
        println!("all modules are what the kernels compile to");
        ensure!(
            record::holds(&kernels, &committed)?,
            "`{}` is not that of these files: run `cargo xtask ptx`",
            record::path(&kernels).display()
        );
    } else {
        write_all(&committed, &modules)?;
        if args.any_version {
            // Of what another compiler made, nothing is promised.
            record::remove(&kernels)?;
        } else {
            record::write(&kernels, &committed)?;
        }
        println!("written to {}", committed.display());
    }
    Ok(())
}

/// Why `--check` cannot be made, if so: something changed, and there are no compilers.
pub(crate) fn missing() -> Result<Option<&'static str>> {
    let root = crate::root()?;
    match record::holds(&root.join("kernels"), &root.join(MODULES))? {
        true => Ok(None),
        false => without_compilers(),
    }
}

/// Why the compilers are not there and cannot or must not be fetched, if so.
fn without_compilers() -> Result<Option<&'static str>> {
    let target = crate::root()?.join("target");
    let tools = [cuda_tools::NVRTC, cuda_tools::PTXAS, cuda_tools::FATBINARY];
    let fetched = tools.iter().all(|tool| tool.fetched(&target).is_some());
    Ok(match (fetched, cuda_tools::offline()) {
        (true, _) => None,
        (false, true) => Some("TPGM_OFFLINE=1, and NVIDIA's compilers were not fetched before"),
        (false, false) if !cuda_tools::python_is_there() => {
            Some("there is no Python 3, which fetches NVIDIA's compilers")
        }
        (false, false) if !cfg!(target_os = "linux") => Some("NVIDIA's compilers are fetched on Linux alone"),
        (false, false) => None,
    })
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

/// What the modules are made of, as files.
#[derive(Default)]
struct Parts {
    /// For each module the PTX for GPUs that there is no machine code for.
    fallback: BTreeMap<String, PathBuf>,
    /// For each module the machine code.
    cubins: BTreeMap<String, Vec<(Gpu, PathBuf)>>,
    /// What the kernels take, per compute capability (times ten).
    usages: BTreeMap<u32, Vec<Usage>>,
    /// What is kept beside that: all PTX, and machine code that is there to be looked at for spills.
    others: BTreeSet<PathBuf>,
}

impl Parts {
    /// Bytes of all that is packed.
    fn bytes(&self) -> Result<u64> {
        let cubins = self.cubins.values().flatten().map(|(_, path)| path);
        let sizes = cubins.chain(self.fallback.values()).map(|path| Ok(fs::metadata(path)?.len()));
        sizes.sum::<Result<u64>>().context("the size of compiled kernels")
    }

    /// Removes what former versions of the kernels have left.
    fn remove_others(&self, folder: &Path) -> Result<()> {
        let packed = self.cubins.values().flatten().map(|(_, cubin)| cubin);
        let mut keep = self.others.clone();
        for file in packed.chain(&self.others) {
            keep.extend([file.clone(), file.with_extension("report")]);
        }
        for entry in fs::read_dir(folder).with_context(|| format!("cannot read `{}`", folder.display()))? {
            let path = entry?.path();
            if path.is_file() && !keep.contains(&path) {
                fs::remove_file(&path).with_context(|| format!("cannot remove `{}`", path.display()))?;
            }
        }
        Ok(())
    }
}

/// Assembles everything for the GPUs that it is for. Machine code has a hash of its PTX in its name.
fn assemble_all(ptxas: &Path, folder: &Path, ptx: &[Ptx]) -> Result<Parts> {
    let mut parts = Parts::default();
    let mut jobs = Vec::new();
    for ptx in ptx {
        let text = ptx.file(folder)?;
        let mut hasher = DefaultHasher::new();
        (&ptx.text, ptxas).hash(&mut hasher);
        // Machine code for 8.0 is code for 8.6, too; it is the f64 that calls for another one.
        let takes = |gpu: &Gpu| gpu.slow_f64 == ptx.slow_f64 && !(ptx.layer && gpu.capability == 86);
        // The registry takes no larger package: for the oldest GPUs the driver compiles layers from the PTX, which is for them.
        let packs = |gpu: &Gpu| !(ptx.layer && gpu.capability == TARGET);
        for gpu in GPUS.into_iter().filter(takes) {
            let name = format!("{}.sm_{}.{:016x}.cubin", ptx.name, gpu.capability, hasher.finish());
            jobs.push((gpu, ptx, text.clone(), folder.join(name), packs(&gpu)));
        }
        if ptx.slow_f64 {
            parts.fallback.insert(ptx.name.clone(), text.clone());
        }
        parts.others.insert(text);
    }
    // The biggest first, so that no processor is left alone with one at the end.
    jobs.sort_by_key(|(_, ptx, ..)| Reverse(ptx.text.len()));
    let results = in_parallel(&jobs, |(gpu, _, text, cubin, _)| ptxas::assemble(ptxas, *gpu, text, cubin));
    for ((gpu, ptx, _, cubin, packed), usage) in jobs.into_iter().zip(results) {
        parts.usages.entry(gpu.capability).or_default().append(&mut usage?);
        match packed {
            true => parts.cubins.entry(ptx.name.clone()).or_default().push((gpu, cubin)),
            false => _ = parts.others.insert(cubin),
        }
    }
    parts.cubins.values_mut().for_each(|cubins| cubins.sort_by_key(|(gpu, _)| gpu.capability));
    Ok(parts)
}

/// Packs all modules; they are the contents of the committed files, by module.
fn pack_all(fatbinary: &Path, folder: &Path, parts: &Parts) -> Result<BTreeMap<String, Vec<u8>>> {
    let names: Vec<_> = parts.fallback.keys().collect();
    let packed = in_parallel(&names, |name| {
        let output = folder.join(format!("{name}.{EXTENSION}"));
        fatbinary::pack(fatbinary, name, (TARGET, &parts.fallback[*name]), &parts.cubins[*name], &output)
    });
    names.into_iter().cloned().zip(packed).map(|(name, bytes)| Ok((name, bytes?))).collect()
}

/// Writes a file, unless it is right already: all that embeds it would be compiled again.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    if !fs::read(path).is_ok_and(|found| found == bytes) {
        fs::write(path, bytes).with_context(|| format!("cannot write `{}`", path.display()))?;
    }
    Ok(())
}

fn file_of(folder: &Path, module: &str) -> PathBuf {
    folder.join(format!("{module}.{EXTENSION}"))
}

/// Makes the folder hold these modules and no others.
fn write_all(folder: &Path, modules: &BTreeMap<String, Vec<u8>>) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot create `{}`", folder.display()))?;
    for (name, bytes) in modules {
        write(&file_of(folder, name), bytes)?;
    }
    for path in strays(folder, modules)? {
        fs::remove_file(&path).with_context(|| format!("cannot remove `{}`", path.display()))?;
    }
    Ok(())
}

/// Modules in the folder that no kernel compiles to.
fn strays(folder: &Path, modules: &BTreeMap<String, Vec<u8>>) -> Result<Vec<PathBuf>> {
    let mut strays = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("cannot read `{}`", folder.display()))? {
        let path = entry?.path();
        let expected = modules.keys().any(|name| path == file_of(folder, name));
        if !expected && path.extension().is_some_and(|extension| extension == EXTENSION) {
            strays.push(path);
        }
    }
    strays.sort();
    Ok(strays)
}

/// What is wrong with the committed files.
fn compare(folder: &Path, modules: &BTreeMap<String, Vec<u8>>) -> Result<Vec<String>> {
    if !folder.exists() {
        return Ok(vec![format!("`{}` is missing", folder.display())]);
    }
    let mut problems = Vec::new();
    for (name, bytes) in modules {
        match fs::read(file_of(folder, name)) {
            Err(error) => problems.push(format!("{name}: {error}")),
            Ok(found) if found != *bytes => {
                let same = found.iter().zip(bytes).take_while(|(old, new)| old == new).count();
                problems.push(format!("{name} differs from byte {same} on"));
            }
            Ok(_) => {}
        }
    }
    for path in strays(folder, modules)? {
        problems.push(format!("{}: no kernel compiles to it", path.display()));
    }
    Ok(problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differing_missing_and_stray_files_are_found() {
        let folder = std::env::temp_dir().join(format!("xtask-ptx-{}", std::process::id()));
        let modules = BTreeMap::from(
            [("step_f32", vec![1, 2, 3]), ("step_any", vec![4])].map(|(n, b)| (n.to_owned(), b)),
        );
        write_all(&folder, &modules).unwrap();
        assert_eq!(compare(&folder, &modules).unwrap(), Vec::<String>::new());

        fs::write(folder.join("step_f32.fatbin"), [1, 2, 4]).unwrap();
        fs::remove_file(folder.join("step_any.fatbin")).unwrap();
        fs::write(folder.join("gone_f32.fatbin"), "").unwrap();
        fs::write(folder.join("README.md"), "").unwrap();
        let problems = compare(&folder, &modules).unwrap();
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert!(problems[0].starts_with("step_any: "), "{problems:?}");
        assert_eq!(problems[1], "step_f32 differs from byte 2 on");
        assert!(problems[2].ends_with("gone_f32.fatbin: no kernel compiles to it"), "{problems:?}");

        write_all(&folder, &modules).unwrap();
        assert_eq!(compare(&folder, &modules).unwrap(), Vec::<String>::new());
        assert!(folder.join("README.md").exists() && !folder.join("gone_f32.fatbin").exists());
        fs::remove_dir_all(&folder).unwrap();
        assert_eq!(compare(&folder, &modules).unwrap().len(), 1);
    }
}
