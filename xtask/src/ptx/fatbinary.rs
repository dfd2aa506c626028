//! Machine code and PTX to one file per module by `fatbinary`.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::ptxas::Gpu;

/// Packs the `ptx` for a compute capability and the `cubins` into `output` and returns its bytes. The module's name is
/// legible in them.
///
/// Compressed for size, which drivers can read that know CUDA 12.4, as the PTX asks for anyway.
///
/// # Errors
///
/// If `fatbinary` refuses a file: it checks what GPU they are for.
pub(super) fn pack(
    fatbinary: &Path,
    name: &str,
    (capability, ptx): (u32, &Path),
    cubins: &[(Gpu, PathBuf)],
    output: &Path,
) -> Result<Vec<u8>> {
    let image = |kind: &str, capability: u32, file: &Path| {
        let mut argument = OsString::from(format!("--image3=kind={kind},sm={capability},file="));
        argument.push(file);
        argument
    };
    let result = Command::new(fatbinary)
        .args(["--64", "--compress-all", "--compress-mode=size"])
        .arg(format!("--ident={name}"))
        .arg(image("ptx", capability, ptx))
        .args(cubins.iter().map(|(gpu, file)| image("elf", gpu.capability, file)))
        .arg("--create")
        .arg(output)
        .output()
        .with_context(|| format!("cannot start `{}`", fatbinary.display()))?;
    let said = [result.stdout, result.stderr].concat();
    ensure!(result.status.success(), "fatbinary refuses {name}:\n{}", String::from_utf8_lossy(&said));
    let bytes = fs::read(output).with_context(|| format!("cannot read `{}`", output.display()))?;
    fs::remove_file(output).with_context(|| format!("cannot remove `{}`", output.display()))?;
    Ok(bytes)
}
