//! `cargo xtask simd`: looks at the machine code of the hot CPU kernels.
//!
//! The kernels are plain loops that the compiler turns into AVX2 code. Whether it does depends on details (a branch, a
//! conversion, a bounds check), and a loop that fell back to scalar code still passes every test. So the instructions
//! themselves are checked.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::cargo;

/// No options yet.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {}

/// All instantiations of one kernel, and the instructions they must use on 256-bit registers.
struct Kernel {
    /// Path of the function; its instantiations for f32 and f64 have the same demangled symbol.
    symbol: &'static str,
    /// Mnemonics that a function computing in f32 must have.
    f32: &'static [&'static str],
    /// The same in f64.
    f64: &'static [&'static str],
    /// How many instantiations compute in f32 and also add up in f64: these must convert wide registers too.
    widening: usize,
}

const fn kernel(symbol: &'static str, f32: &'static [&'static str], f64: &'static [&'static str]) -> Kernel {
    Kernel { symbol, f32, f64, widening: 0 }
}

/// Conversion of f32 to f64.
const WIDEN: &str = "vcvtps2pd";
/// Sums widen f32 to f64 before they add, so both need the f64 addition.
const SUM: (&[&str], &[&str]) = (&[WIDEN, "vaddpd"], &["vaddpd"]);
/// Interpolation towards the anchor.
const MOVE: (&[&str], &[&str]) = (&["vmulps", "vaddps"], &["vmulpd", "vaddpd"]);

/// The kernels of `tpgm_core::cpu` that touch every parameter.
const KERNELS: &[Kernel] = &[
    // With and without anchor, AMSGrad or momentum, for each of five sinks, three of which add up.
    Kernel {
        widening: 12,
        ..kernel(
            "kernels::adamw::avx2",
            &["vsqrtps", "vdivps", "vmulps", "vaddps", "vsubps"],
            &["vsqrtpd", "vdivpd", "vmulpd", "vaddpd", "vsubpd"],
        )
    },
    Kernel {
        widening: 12,
        ..kernel("kernels::sgd::avx2", &["vmulps", "vaddps", "vsubps"], &["vmulpd", "vaddpd", "vsubpd"])
    },
    kernel("kernels::add_norm::avx2", SUM.0, SUM.1),
    kernel("kernels::add_dot::avx2", SUM.0, SUM.1),
    kernel("kernels::add_dot_displacement::avx2", SUM.0, SUM.1),
    kernel("kernels::add_dot_and_norm::avx2", SUM.0, SUM.1),
    kernel("kernels::add_dot_and_square::avx2", SUM.0, SUM.1),
    kernel("kernels::all_finite::avx2", &["vaddps"], &["vaddpd"]),
    kernel("kernels::pull::avx2", MOVE.0, MOVE.1),
    kernel("kernels::project::avx2", MOVE.0, MOVE.1),
];

/// Kernels that need no vector instructions: per-element branches over the few scales of normalization layers.
const EXEMPT: &[&str] = &["kernels::limit_scale::avx2"];

/// Builds the harness of `benches/`, which has all kernels, and checks its machine code.
///
/// # Errors
///
/// If a kernel is not found, or lacks an instruction it should have.
pub(crate) fn run(_: &Args) -> Result<()> {
    if !cfg!(target_arch = "x86_64") {
        println!("skipped: the kernels' AVX2 code exists on x86_64 only");
        return Ok(());
    }
    if Command::new("objdump").arg("--version").output().is_err() {
        println!("skipped: no `objdump` found (Debian: install binutils)");
        return Ok(());
    }
    let binary = build()?;
    let output = Command::new("objdump")
        .args(["--disassemble", "--no-show-raw-insn", "--demangle"])
        .arg(&binary)
        .output()
        .context("cannot start objdump")?;
    ensure!(output.status.success(), "objdump ended with {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    let mut failed = 0;
    for kernel in KERNELS {
        let functions = functions(&text, kernel.symbol);
        match problem(kernel, &functions) {
            None => println!("ok      {}: {} instantiations", kernel.symbol, functions.len()),
            Some(problem) => {
                println!("FAILED  {}: {problem}", kernel.symbol);
                failed += 1;
            }
        }
    }
    for symbol in unlisted(&text) {
        println!("FAILED  {symbol}: not in the table of xtask/src/simd.rs");
        failed += 1;
    }
    ensure!(failed == 0, "{failed} kernels are not as expected");
    Ok(())
}

fn build() -> Result<PathBuf> {
    let status = cargo(&["build", "--release", "--package", "tpgm-benches"])
        .args(["--bin", "side_by_side"])
        .status()
        .context("cannot start cargo")?;
    ensure!(status.success(), "the build ended with {status}");
    // We run as TARGET/PROFILE/xtask.
    let own = std::env::current_exe()?;
    let target = own.ancestors().nth(2).context("the target folder")?;
    let binary = target.join("release").join("side_by_side");
    ensure!(binary.exists(), "`{}` is not there; is another target set?", binary.display());
    Ok(binary)
}

/// Kernels compiled for AVX2 that are neither checked nor exempt.
fn unlisted(disassembly: &str) -> BTreeSet<&str> {
    let known = |symbol: &&str| {
        let mut listed = KERNELS.iter().map(|kernel| kernel.symbol);
        listed.any(|known| symbol.contains(known)) || EXEMPT.iter().any(|known| symbol.contains(known))
    };
    disassembly
        .lines()
        .filter_map(symbol)
        .filter(|symbol| symbol.contains("::kernels::") && symbol.ends_with("::avx2"))
        .filter(|symbol| !known(symbol))
        .collect()
}

/// The symbol, if a function begins at this line.
fn symbol(line: &str) -> Option<&str> {
    let (_, symbol) = line.strip_suffix(">:")?.split_once(" <")?;
    Some(symbol)
}

/// For each function with this symbol, the mnemonics of its instructions with a ymm operand.
fn functions<'a>(disassembly: &'a str, symbol: &str) -> Vec<BTreeSet<&'a str>> {
    let mut found = Vec::new();
    let mut inside = false;
    for line in disassembly.lines() {
        if let Some(name) = self::symbol(line) {
            inside = name.contains(symbol);
            if inside {
                found.push(BTreeSet::new());
            }
        } else if inside
            && line.contains("%ymm")
            && let Some((_, instruction)) = line.split_once(":\t")
            && let Some(function) = found.last_mut()
        {
            function.extend(instruction.split_whitespace().next());
        }
    }
    found
}

fn problem(kernel: &Kernel, functions: &[BTreeSet<&str>]) -> Option<String> {
    let has = |function: &BTreeSet<&str>, needs: &[&str]| needs.iter().all(|need| function.contains(need));
    let (mut single, mut widening, mut neither) = (0, 0, Vec::new());
    for function in functions {
        single += usize::from(has(function, kernel.f32));
        widening += usize::from(function.contains(WIDEN));
        if !has(function, kernel.f32) && !has(function, kernel.f64) {
            neither.push(function);
        }
    }
    if functions.is_empty() {
        Some("not found; renamed, or inlined into its caller?".to_owned())
    } else if let Some(function) = neither.first() {
        Some(format!(
            "{} of {} instantiations have neither {} nor {} on ymm registers; the first has {function:?}",
            neither.len(),
            functions.len(),
            kernel.f32.join(" "),
            kernel.f64.join(" "),
        ))
    } else if 2 * single < functions.len() {
        // Every kernel exists for f32 and for f64; what a sum needs in f64 is part of what it needs in f32.
        Some(format!("only {single} of {} instantiations have {}", functions.len(), kernel.f32.join(" ")))
    } else if widening < kernel.widening {
        Some(format!("only {widening} instantiations have {WIDEN}, not {}", kernel.widening))
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
000000000001a2b0 <tpgm_core::cpu::kernels::add_dot::avx2>:
   1a2b0:\tvcvtps2pd (%rdi),%ymm0
   1a2b4:\tvaddpd %ymm0,%ymm1,%ymm1
   1a2b8:\tvmulsd %xmm1,%xmm2,%xmm3
   1a2bc:\tret

000000000001a2c0 <tpgm_core::cpu::kernels::add_dot::baseline>:
   1a2c0:\taddpd %xmm1,%xmm2

000000000001a2d0 <tpgm_core::cpu::kernels::add_dot::avx2>:
   1a2d0:\tvaddpd (%rdi),%ymm1,%ymm1
";

    const DOT: Kernel = kernel("kernels::add_dot::avx2", SUM.0, SUM.1);

    #[test]
    fn wide_instructions_are_collected_per_function() {
        let wide = BTreeSet::from(["vcvtps2pd", "vaddpd"]);
        let found = functions(TEXT, DOT.symbol);
        assert_eq!(found, [wide, BTreeSet::from(["vaddpd"])]);
        assert_eq!(problem(&DOT, &found), None);
    }

    #[test]
    fn scalar_and_missing_functions_are_problems() {
        let problem_of = |text: &str| problem(&DOT, &functions(text, DOT.symbol)).unwrap();
        let scalar = problem_of(&TEXT.replace("vaddpd (%rdi),%ymm1,%ymm1", "vaddsd (%rdi),%xmm1,%xmm1"));
        assert!(scalar.starts_with("1 of 2 instantiations have neither"), "{scalar}");
        let narrow = problem_of(&TEXT.replace("vcvtps2pd (%rdi),%ymm0", "vcvtss2sd (%rdi),%xmm0,%xmm0"));
        assert!(narrow.starts_with("only 0 of 2"), "{narrow}");
        let more = Kernel { widening: 2, ..DOT };
        let few = problem(&more, &functions(TEXT, DOT.symbol)).unwrap();
        assert!(few.starts_with("only 1 instantiations have vcvtps2pd"), "{few}");
        assert!(unlisted(TEXT).is_empty());
        let renamed = TEXT.replace("add_dot", "add_product");
        let found = BTreeSet::from(["tpgm_core::cpu::kernels::add_product::avx2"]);
        assert_eq!(unlisted(&renamed), found);
        let gone = problem_of(&TEXT.replace("::avx2", "::avx512"));
        assert!(gone.starts_with("not found"), "{gone}");
    }
}
