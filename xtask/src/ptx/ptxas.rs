//! PTX to machine code by `ptxas`, which also tells what each kernel takes: registers, shared memory, spills.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// GPUs that the kernels are assembled for. Machine code also runs on GPUs of a higher minor version: 8.9 takes that of 8.6,
/// 12.1 that of 12.0. For others the driver compiles the PTX.
pub(super) const GPUS: [Gpu; 6] = [
    // From the tables of technical specifications and of arithmetic throughput per compute capability in the CUDA
    // programming guide: f64 additions at half the rate of f32 on 8.0, 9.0 and 10.0, at a 32nd or 64th on the others.
    Gpu { capability: 75, slow_f64: true, threads: 1024, blocks: 16, shared: 64 << 10, reserved: 0 },
    Gpu { capability: 80, slow_f64: false, threads: 2048, blocks: 32, shared: 164 << 10, reserved: 1 << 10 },
    Gpu { capability: 86, slow_f64: true, threads: 1536, blocks: 16, shared: 100 << 10, reserved: 1 << 10 },
    Gpu { capability: 90, slow_f64: false, threads: 2048, blocks: 32, shared: 228 << 10, reserved: 1 << 10 },
    Gpu { capability: 100, slow_f64: false, threads: 2048, blocks: 32, shared: 228 << 10, reserved: 1 << 10 },
    Gpu { capability: 120, slow_f64: true, threads: 1536, blocks: 24, shared: 100 << 10, reserved: 1 << 10 },
];

/// Threads of a block, as `kernels/platform.cuh` has it for GPUs.
const THREADS: u32 = 256;
const WARP: u32 = 32;
/// 32-bit registers of a multiprocessor.
const REGISTERS: u32 = 64 << 10;
/// Registers are handed out to warps in units of this many.
const REGISTER_UNIT: u32 = 256;
/// Shared memory is handed out to blocks in units of this many bytes; half as many from 8.0 on, which makes no difference
/// unless a block takes nearly all.
const SHARED_UNIT: u32 = 256;

/// What a multiprocessor has room for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Gpu {
    /// Ten times the compute capability.
    pub(super) capability: u32,
    /// Sums are compensated f32 rather than f64.
    pub(super) slow_f64: bool,
    threads: u32,
    blocks: u32,
    /// Bytes of shared memory.
    shared: u32,
    /// Bytes of shared memory per block that the driver takes for itself.
    reserved: u32,
}

/// What `ptxas` says of a kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Usage {
    pub(super) kernel: String,
    /// Registers per thread.
    pub(super) registers: u32,
    /// Bytes of static shared memory per block.
    pub(super) shared: u32,
    /// Bytes of local memory per thread.
    pub(super) stack: u32,
    /// Bytes of registers that a thread stores in local memory because it has too few.
    pub(super) spills: u32,
}

impl Gpu {
    /// Blocks that run at a time on a multiprocessor.
    pub(super) fn resident_blocks(&self, usage: &Usage) -> u32 {
        let warp_registers = (usage.registers.max(1) * WARP).next_multiple_of(REGISTER_UNIT);
        let by_registers = REGISTERS / warp_registers / (THREADS / WARP);
        let block_shared = (usage.shared + self.reserved).next_multiple_of(SHARED_UNIT);
        let by_shared = self.shared.checked_div(block_shared).unwrap_or(u32::MAX);
        by_registers.min(by_shared).min(self.threads / THREADS).min(self.blocks)
    }
}

/// Assembles `ptx` into `output`, unless that is there already. What `ptxas` says is kept beside it.
///
/// # Errors
///
/// If `ptxas` refuses the PTX or has a warning.
pub(super) fn assemble(ptxas: &Path, gpu: Gpu, ptx: &Path, output: &Path) -> Result<Vec<Usage>> {
    let report = output.with_extension("report");
    if output.exists()
        && let Ok(text) = fs::read_to_string(&report)
    {
        return parse(&text);
    }
    let unfinished = output.with_extension("unfinished");
    let result = Command::new(ptxas)
        .args(["--verbose", "--warning-as-error"])
        .arg(format!("--gpu-name=sm_{}", gpu.capability))
        .arg(ptx)
        .arg("--output-file")
        .arg(&unfinished)
        .output()
        .with_context(|| format!("cannot start `{}`", ptxas.display()))?;
    let mut text = String::from_utf8_lossy(&result.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&result.stderr));
    if !result.status.success() {
        let messages: Vec<_> = text.lines().filter(|line| !is_report(line)).collect();
        bail!("ptxas refuses `{}` for sm_{}:\n{}", ptx.display(), gpu.capability, messages.join("\n"));
    }
    let usage = parse(&text)?;
    ensure!(!usage.is_empty(), "`{}` has no kernel", ptx.display());
    fs::write(&report, &text).with_context(|| format!("cannot write `{}`", report.display()))?;
    fs::rename(&unfinished, output).with_context(|| format!("cannot write `{}`", output.display()))?;
    Ok(usage)
}

/// True for lines of the report, in contrast to messages.
fn is_report(line: &str) -> bool {
    line.starts_with("ptxas info") || line.starts_with(' ')
}

fn parse(report: &str) -> Result<Vec<Usage>> {
    let mut kernels: Vec<Usage> = Vec::new();
    // Functions that were not inlined have properties of their own; theirs are not those of the kernel before.
    let mut properties_of_kernel = false;
    for line in report.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            let kernel = rest.split('\'').next().unwrap_or_default().to_owned();
            kernels.push(Usage { kernel, registers: 0, shared: 0, stack: 0, spills: 0 });
        } else if let Some((_, name)) = line.split_once("Function properties for ") {
            properties_of_kernel = kernels.last().is_some_and(|last| last.kernel == name.trim());
        } else if let Some(last) = kernels.last_mut() {
            if line.contains("bytes stack frame") && properties_of_kernel {
                last.stack = number_before(line, " bytes stack frame")?;
                last.spills = number_before(line, " bytes spill stores")?;
            } else if line.contains(" registers") {
                last.registers = number_before(line, " registers")?;
                if line.contains(" bytes smem") {
                    last.shared = number_before(line, " bytes smem")?;
                }
            }
        }
    }
    match kernels.iter().find(|usage| usage.registers == 0) {
        Some(usage) => bail!("the report of ptxas has no registers of `{}`", usage.kernel),
        None => Ok(kernels),
    }
}

/// The number that ends where `unit` begins.
fn number_before(line: &str, unit: &str) -> Result<u32> {
    line.split_once(unit)
        .and_then(|(before, _)| before.rsplit([' ', ',']).next())
        .and_then(|number| number.parse().ok())
        .with_context(|| format!("no number before `{unit}` in what ptxas says: {line}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REPORT: &str = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'move_f32' for 'sm_90'
ptxas info    : Function properties for move_f32
    16 bytes stack frame, 12 bytes spill stores, 20 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 16 bytes cumulative stack size, 1064 bytes smem, 536 bytes cmem[0]
ptxas info    : Function properties for pow_of_double
    8 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Compiling entry function 'count' for 'sm_90'
ptxas info    : Function properties for count
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 8 registers, used 0 barriers, 536 bytes cmem[0]
";

    fn usage(registers: u32, shared: u32) -> Usage {
        Usage { kernel: String::new(), registers, shared, stack: 0, spills: 0 }
    }

    #[test]
    fn the_report_is_read_kernel_by_kernel() {
        let found = parse(REPORT).unwrap();
        let expected = [
            Usage { kernel: "move_f32".to_owned(), registers: 40, shared: 1064, stack: 16, spills: 12 },
            Usage { kernel: "count".to_owned(), registers: 8, shared: 0, stack: 0, spills: 0 },
        ];
        assert_eq!(found, expected);
        let cut = REPORT.replace("Used 8 registers", "Used few");
        assert!(parse(&cut).unwrap_err().to_string().contains("no registers of `count`"));
    }

    // Expected values by hand: 64 K registers, 2048, 1536 or 1024 threads, bytes of shared memory of a multiprocessor.
    #[test]
    fn resident_blocks_are_limited_by_each_resource() {
        let gpu = |capability| GPUS.into_iter().find(|gpu| gpu.capability == capability).unwrap();
        assert_eq!(gpu(90).resident_blocks(&usage(32, 1064)), 8); // threads
        assert_eq!(gpu(90).resident_blocks(&usage(33, 1064)), 6); // registers, in units of 8 per thread
        assert_eq!(gpu(90).resident_blocks(&usage(64, 1064)), 4);
        assert_eq!(gpu(90).resident_blocks(&usage(255, 0)), 1);
        assert_eq!(gpu(86).resident_blocks(&usage(32, 0)), 6);
        assert_eq!(gpu(120).resident_blocks(&usage(32, 0)), 6);
        assert_eq!(gpu(75).resident_blocks(&usage(32, 0)), 4);
        assert_eq!(gpu(75).resident_blocks(&usage(32, 48 << 10)), 1); // shared memory
        assert_eq!(gpu(80).resident_blocks(&usage(32, 40 << 10)), 4); // 41 KB each of 164
    }
}
