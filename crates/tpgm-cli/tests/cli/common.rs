//! Runs of the program, and checkpoints for it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use candle_core::{Device, Tensor};
use serde_json::Value;

/// What a run left behind.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// Runs `tpgm`, with frames asked for, as many people have it.
pub(crate) fn tpgm<S: AsRef<std::ffi::OsStr>>(args: impl IntoIterator<Item = S>) -> Run {
    run(Command::new(env!("CARGO_BIN_EXE_tpgm")).args(args))
}

fn run(command: &mut Command) -> Run {
    let output = command.env("RUST_BACKTRACE", "1").env("RUST_LIB_BACKTRACE", "1").output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Run { code: output.status.code().unwrap(), out: text(output.stdout), err: text(output.stderr) }
}

impl Run {
    /// The JSON of a run that did what it was asked for, and said nothing else.
    pub(crate) fn json(&self) -> Value {
        assert_eq!((self.code, self.err.as_str()), (0, ""), "{self:?}");
        serde_json::from_str(&self.out).unwrap()
    }

    /// The text of a run that did what it was asked for.
    pub(crate) fn text(&self) -> &str {
        assert_eq!((self.code, self.err.as_str()), (0, ""), "{self:?}");
        &self.out
    }

    /// What a run said that failed with this code: one message, no frames, nothing on standard output.
    pub(crate) fn fails(&self, code: i32) -> &str {
        assert_eq!(self.code, code, "{self:?}");
        assert!(self.err.starts_with("error: ") && self.out.is_empty(), "{self:?}");
        let frames = ["0: ", "   at ", "backtrace", "panicked", ".rs:"];
        assert!(frames.iter().all(|frame| !self.err.contains(frame)), "{self:?}");
        &self.err
    }
}

/// A file as people have it, of the tests of `tpgm-candle`.
pub(crate) fn real_file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tpgm-candle/tests").join(name);
    assert!(path.exists(), "{}", path.display());
    path.to_str().unwrap().to_owned()
}

/// A folder for checkpoints.
pub(crate) struct Folder(pub(crate) tempfile::TempDir);

impl Folder {
    pub(crate) fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    pub(crate) fn save(&self, name: &str, tensors: &[(&str, Tensor)]) {
        let tensors: HashMap<&str, Tensor> = tensors.iter().cloned().collect();
        candle_core::safetensors::save(&tensors, self.path(name)).unwrap();
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name).with_extension("safetensors")
    }

    pub(crate) fn text(&self, name: &str) -> String {
        self.path(name).to_str().unwrap().to_owned()
    }

    pub(crate) fn load(&self, name: &str) -> HashMap<String, Tensor> {
        candle_core::safetensors::load(self.path(name), &Device::Cpu).unwrap()
    }

    /// The text that a file carries.
    pub(crate) fn metadata(&self, name: &str) -> Value {
        let bytes = std::fs::read(self.path(name)).unwrap();
        let length = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
        let mut header: Value = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        header["__metadata__"].take()
    }
}

pub(crate) fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(candle_core::DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// Runs `tpgm` with at most 64 MiB of memory but for mapped files, which are the system's to drop.
#[cfg(target_os = "linux")]
pub(crate) fn tpgm_in_64_mib(args: &[&str]) -> Run {
    let mut sh = Command::new("sh");
    sh.args(["-c", "ulimit -d 65536 && exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_tpgm")]).args(args);
    run(sh.env("RAYON_NUM_THREADS", "2"))
}

/// Writes tensors of `len` numbers of the same value, one after the other.
#[cfg(target_os = "linux")]
pub(crate) fn write_checkpoint(path: &Path, tensors: usize, len: usize, value: f32) {
    use std::io::Write;

    let bytes = len * 4;
    let entry = |i: usize| {
        let (start, end) = (i * bytes, (i + 1) * bytes);
        format!(r#""t{i:03}":{{"dtype":"F32","shape":[{len}],"data_offsets":[{start},{end}]}}"#)
    };
    let header = format!("{{{}}}", (0..tensors).map(entry).collect::<Vec<_>>().join(","));
    let mut file = std::io::BufWriter::new(std::fs::File::create(path).unwrap());
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    let data = value.to_le_bytes().repeat(len);
    (0..tensors).for_each(|_| file.write_all(&data).unwrap());
}
