//! One JSON object per line.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, BufWriter, ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tpgm_core::TensorScalars;

use super::error::{Error, Result};
use super::{Telemetry, fields};
use crate::files::io;

/// Writes telemetry as lines of JSON.
///
/// `{"step":12,"tag":"loss","value":0.25}` for a scalar,
/// `{"step":12,"tensor":"head.weight","norm":1.5,"radius":1.2,"ratio":0.8,"fire_rate":0.5}` for a tensor. JSON has no
/// infinity and no NaN: such a value is `null`.
#[derive(Debug)]
pub struct JsonlWriter {
    path: PathBuf,
    out: BufWriter<File>,
}

/// What [`JsonlWriter::resume`] must know of a line.
#[derive(Deserialize)]
struct Step {
    step: u64,
}

#[derive(Serialize)]
struct Scalar<'a> {
    step: u64,
    tag: &'a str,
    value: f64,
}

impl JsonlWriter {
    /// Begins a file; one that exists is overwritten. Folders are created.
    ///
    /// # Errors
    ///
    /// [`Error::Io`](crate::files::Error::Io) with the file or folder.
    pub fn create(path: impl Into<PathBuf>) -> Result<Self> {
        let path = path.into();
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(io(parent))?;
        }
        let file = File::create(&path).map_err(io(&path))?;
        Ok(Self { path, out: BufWriter::new(file) })
    }

    /// Goes on with a file, or begins it if there is none. `next_step` is the first step that will be logged: lines of
    /// that step and later ones are taken out, and so is an unfinished last line, which a killed process leaves.
    ///
    /// # Errors
    ///
    /// [`Error::Io`](crate::files::Error::Io) with the file, or [`Error::TelemetryLine`] if it holds something else than telemetry; it is
    /// unchanged then.
    pub fn resume(path: impl Into<PathBuf>, next_step: u64) -> Result<Self> {
        let path = path.into();
        let old = match File::open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Self::create(path),
            old => BufReader::new(old.map_err(io(&path))?),
        };
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(".tmp");
        let temporary = path.with_file_name(name);
        let mut out = BufWriter::new(File::create(&temporary).map_err(io(&temporary))?);
        if let Err(error) = copy_before(&path, old, next_step, &temporary, &mut out) {
            // Only tidies up: the next attempt overwrites it.
            fs::remove_file(&temporary).ok();
            return Err(error);
        }
        fs::rename(&temporary, &path).map_err(io(&path))?;
        Ok(Self { path, out })
    }

    fn line(&mut self, line: &impl Serialize) -> Result<()> {
        // Written whole, so that what the buffer hands on is cut between lines where possible.
        let mut json = serde_json::to_vec(line).expect("numbers and strings become JSON");
        json.push(b'\n');
        Ok(self.out.write_all(&json).map_err(io(&self.path))?)
    }
}

/// Copies the lines of steps before `next_step`.
fn copy_before(
    path: &Path,
    mut old: impl BufRead,
    next_step: u64,
    temporary: &Path,
    out: &mut impl Write,
) -> Result<()> {
    let mut line = Vec::new();
    for number in 1.. {
        line.clear();
        old.read_until(b'\n', &mut line).map_err(io(path))?;
        if !line.ends_with(b"\n") {
            break; // the end, or an unfinished line
        }
        let Step { step } = serde_json::from_slice(&line).map_err(|error| Error::TelemetryLine {
            path: path.to_owned(),
            line: number,
            problem: error.to_string(),
        })?;
        if step < next_step {
            out.write_all(&line).map_err(io(temporary))?;
        }
    }
    Ok(out.flush().map_err(io(temporary))?)
}

impl Telemetry for JsonlWriter {
    fn scalar(&mut self, tag: &str, step: u64, value: f64) -> Result<()> {
        self.line(&Scalar { step, tag, value })
    }

    fn tensors(&mut self, step: u64, tensors: &[(String, TensorScalars)]) -> Result<()> {
        for (tensor, scalars) in tensors {
            let [norm, radius, ratio, fire_rate] = fields(scalars).map(|(_, value)| value);
            self.line(&Tensor { step, tensor, norm, radius, ratio, fire_rate })?;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        Ok(self.out.flush().map_err(io(&self.path))?)
    }
}

#[derive(Serialize)]
struct Tensor<'a> {
    step: u64,
    tensor: &'a str,
    norm: f64,
    radius: f64,
    ratio: f64,
    fire_rate: f64,
}
