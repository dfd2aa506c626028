//! NVIDIA GPUs, by events on the backend's stream.

use std::ffi::c_int;
use std::fs::read_to_string;
use std::process::Command;

use cudarc::driver::sys::{CUevent, CUevent_flags};
use cudarc::driver::{CudaEvent, result};
use tpgm_core::{Error, Result};
use tpgm_cuda::{CudaDevice, Device};

use super::Timed;

/// What `CudaEvent::elapsed_ms` calls in bindings of CUDA 13 and later is a newer function of the same meaning, which drivers
/// before CUDA 12.8 lack. This one is in all of them.
type Elapsed = unsafe extern "C" fn(*mut f32, CUevent, CUevent) -> c_int;

const DRIVER: &str = if cfg!(windows) { "nvcuda.dll" } else { "libcuda.so.1" };

fn error<E: std::fmt::Display>(device: &CudaDevice, call: &str) -> impl FnOnce(E) -> Error {
    let (device, call) = (device.name(), call.to_owned());
    move |reason| Error::Device { device, call, reason: reason.to_string() }
}

impl Timed for CudaDevice {
    type Moment = CudaEvent;

    fn moment(&self) -> Result<CudaEvent> {
        // Without flags, cudarc makes events that keep no time.
        let event = self.stream().record_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
        event.map_err(error(self, "recording an event"))
    }

    fn seconds(&self, from: &CudaEvent, to: &CudaEvent) -> Result<f64> {
        from.synchronize().and_then(|()| to.synchronize()).map_err(error(self, "waiting for an event"))?;
        let failed = "reading the time between events";
        let mut milliseconds = 0.0f32;
        // SAFETY: the driver is loaded already. Its function has this type; both events exist, keep time, and were recorded
        // on this device's stream, whose context waiting for them made current.
        let code = unsafe {
            let driver = libloading::Library::new(DRIVER).map_err(error(self, failed))?;
            let elapsed = driver.get::<Elapsed>("cuEventElapsedTime").map_err(error(self, failed))?;
            elapsed(&mut milliseconds, from.cu_event(), to.cu_event())
        };
        if code != 0 {
            return Err(error(self, failed)(format!("the driver's error {code}")));
        }
        Ok(f64::from(milliseconds) / 1e3)
    }

    fn copy(&self, from: &Self::Memory, to: &mut Self::Memory, bytes: usize) -> Result<()> {
        assert!(bytes <= from.bytes() && bytes <= to.bytes(), "a copy within both memories");
        let (from, to, stream) = (self.address(from), self.address(to), self.stream());
        // SAFETY: both memories have these bytes, and this is the stream that they are used and freed on.
        let copy = || unsafe { result::memcpy_dtod_async(to, from, bytes, stream.cu_stream()) };
        stream
            .context()
            .bind_to_thread()
            .and_then(|()| copy())
            .map_err(error(self, "copying within the device"))
    }

    fn model(&self) -> String {
        self.stream().context().name().unwrap_or_else(|_| self.name())
    }

    fn driver(&self) -> Option<String> {
        let kernel_module = read_to_string("/proc/driver/nvidia/version").ok();
        kernel_module.and_then(|text| version(&text)).or_else(|| {
            let query = ["--query-gpu=driver_version", "--format=csv,noheader"];
            let output = Command::new("nvidia-smi").args(query).output().ok()?;
            version(&String::from_utf8(output.stdout).ok()?)
        })
    }
}

/// The first word that is numbers with points between them.
fn version(text: &str) -> Option<String> {
    let number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let mut words = text.split_whitespace();
    words.find(|word| word.contains('.') && word.split('.').all(number)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{GpuTarget, Target};

    #[test]
    fn drivers_say_their_version() {
        let module = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release Build\n\
                      GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n";
        assert_eq!(version(module).as_deref(), Some("570.86.15"));
        assert_eq!(version("535.104.05\n535.104.05\n").as_deref(), Some("535.104.05"));
        assert_eq!(version("NVIDIA-SMI has failed."), None);
    }

    // A copy of 256 MiB takes between 10 microseconds (50 TB/s) and a second on anything that runs CUDA.
    #[test]
    #[allow(clippy::print_stderr, reason = "a skipped test says why")]
    fn events_time_copies() {
        let device = match CudaDevice::new(0) {
            Ok(device) => device,
            Err(error) => return eprintln!("skipped: {error}"),
        };
        let mut target = GpuTarget::new(device, 1 << 26).unwrap();
        let seconds = target.floor(crate::floors::Floor::Copy).unwrap();
        assert!((1e-5..1.0).contains(&seconds), "{seconds}");
        let nothing = target.time(&mut || Ok(())).unwrap();
        assert!(nothing < seconds, "{nothing}");
    }
}
