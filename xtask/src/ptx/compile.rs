//! Kernels to PTX: which there are, and what the compiler is told.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::nvrtc::Nvrtc;
use super::{in_parallel, write};

/// The kernels of `kernels/kernels.cuh`, without the suffix for their storage.
const KERNELS: [&str; 9] =
    ["measure", "adamw", "sgd", "project", "remember", "write", "radii", "blend", "weigh"];

/// The element types that the kernels of `kernels/layers` are compiled for, one file a kernel: `TPGM_LAYER` of `layer.cuh`.
const ELEMENTS: [&str; 3] = ["f32", "bf16", "f16"];

/// Compute capability, times ten, that PTX is made for: the lowest, since no kernel has code for a higher one.
pub(super) const TARGET: u32 = 75;

/// NVRTC options besides the target, the include path and the kernel. Products and sums are never contracted, so that a
/// kernel gives the same bits on every GPU and under the emulator.
const OPTIONS: [&str; 2] = ["--std=c++17", "--fmad=false"];

/// The release of the pinned NVRTC, which it writes at the top of its output.
const RELEASE: &str = "release 12.4, V12.4.127";

/// One output of the compiler.
pub(super) struct Ptx {
    /// The kernel's name, which is that of its module.
    pub(super) name: String,
    /// For GPUs with few units for f64.
    pub(super) slow_f64: bool,
    /// Of a layer: without sums in f64, the same for all GPUs.
    pub(super) layer: bool,
    pub(super) text: String,
}

impl Ptx {
    /// The text as a file in `folder`, written if need be.
    pub(super) fn file(&self, folder: &Path) -> Result<PathBuf> {
        let sums = if self.slow_f64 { "f32" } else { "f64" };
        let path = folder.join(format!("{}.sums_in_{sums}.ptx", self.name));
        write(&path, self.text.as_bytes())?;
        Ok(path)
    }
}

/// Compiles every kernel with `only` in its name for both kinds of GPUs, on all processors.
pub(super) fn compile_all(nvrtc: &Nvrtc, kernels: &Path, only: &str, any_version: bool) -> Result<Vec<Ptx>> {
    let mut jobs = Vec::new();
    for (source, name, define) in parts_of(kernels)?.into_iter().filter(|(_, name, _)| name.contains(only)) {
        jobs.extend([false, true].map(|slow_f64| (source.clone(), define.clone(), name.clone(), slow_f64)));
    }
    ensure!(!jobs.is_empty(), "no kernel has `{only}` in its name");
    let results: Vec<Result<_>> = in_parallel(&jobs, |(source, define, name, slow_f64)| {
        let (text, log) = compile(nvrtc, kernels, source, define, *slow_f64)?;
        let layer = source.parent().is_some_and(|folder| folder.ends_with("layers"));
        Ok((text.map(|text| Ptx { name: name.clone(), slow_f64: *slow_f64, layer, text }), log))
    });
    // A set, because the same source mostly has the same warnings and errors for every kernel.
    let mut logs = BTreeSet::new();
    let mut compiled = Vec::new();
    for result in results {
        let (ptx, log) = result?;
        compiled.extend(ptx);
        logs.insert(log);
    }
    for log in logs.iter().filter(|log| !log.is_empty()) {
        println!("{log}");
    }
    let failed = jobs.len() - compiled.len();
    ensure!(failed == 0, "{failed} of {} compilations failed", jobs.len());
    if let Some(ptx) = compiled.iter().find(|ptx| !any_version && !ptx.text.contains(RELEASE)) {
        let line = ptx.text.lines().find(|line| line.contains("compilation tools")).unwrap_or("no version");
        bail!(
            "NVRTC is not the pinned one, {RELEASE}, but says `{line}`; `--any-version` takes it all the same"
        );
    }
    Ok(compiled)
}

/// What modules are compiled from: a file, the module's name, and the macro that leaves its one kernel of the file.
fn parts_of(kernels: &Path) -> Result<Vec<(PathBuf, String, String)>> {
    let mut parts = Vec::new();
    for source in sources(kernels)? {
        let stem = source.file_stem().context("the kernel file's name")?.to_string_lossy().into_owned();
        parts.extend(KERNELS.map(|kernel| {
            (source.clone(), format!("{kernel}_{stem}"), format!("--define-macro=TPGM_ONLY={kernel}"))
        }));
    }
    for source in sources(&kernels.join("layers"))? {
        let stem = source.file_stem().context("the kernel file's name")?.to_string_lossy().into_owned();
        // A kernel that touches no elements is there once.
        let text =
            fs::read_to_string(&source).with_context(|| format!("cannot read `{}`", source.display()))?;
        let elements = if text.contains("TPGM_LAYER_f32(") { &ELEMENTS[..1] } else { &ELEMENTS[..] };
        parts.extend(elements.iter().map(|element| {
            (source.clone(), format!("{stem}_{element}"), format!("--define-macro=TPGM_ELEMENT={element}"))
        }));
    }
    Ok(parts)
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
    ensure!(!sources.is_empty(), "`{}` has no .cu file", kernels.display());
    sources.sort();
    Ok(sources)
}

/// Compiles one kernel of one file: nothing if it has errors, and the messages.
fn compile(
    nvrtc: &Nvrtc,
    kernels: &Path,
    source: &Path,
    define: &str,
    slow_f64: bool,
) -> Result<(Option<String>, String)> {
    let text = fs::read_to_string(source).with_context(|| format!("cannot read `{}`", source.display()))?;
    let name = source.file_name().context("the kernel file's name")?.to_string_lossy().into_owned();
    let mut options: Vec<_> = OPTIONS.map(str::to_owned).into();
    options.push(format!("--gpu-architecture=compute_{TARGET}"));
    options.push(format!("--include-path={}", kernels.display()));
    options.push(define.to_owned());
    if slow_f64 {
        options.push("--define-macro=TPGM_COMPENSATED=1".to_owned());
    }
    let compiled = nvrtc.compile(&name, &text, &options).context(name)?;
    Ok((compiled.ptx, compiled.log))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A kernel that is in the sources but not in the list would be in no module.
    #[test]
    fn the_list_of_kernels_is_that_of_the_sources() {
        let header = fs::read_to_string(crate::root().unwrap().join("kernels/kernels.cuh")).unwrap();
        let defined: Vec<_> = header
            .lines()
            .filter_map(|line| line.strip_prefix("#define TPGM_KERNEL_")?.split('(').next())
            .collect();
        assert_eq!(defined, KERNELS);
    }
}
