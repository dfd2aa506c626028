//! The host's memory as a device: the emulated kernels on candle's tensors on the CPU.

use std::cell::{Cell, RefCell};

use candle_core::{CpuStorage, Result, Storage};
use tpgm_cuda::Emulator;
use tpgm_cuda::layers::Layers;

use super::Home;

#[derive(Debug, Clone)]
pub(in crate::layers) struct Host {
    layers: Layers<Emulator>,
}

thread_local! {
    static RUNNING: RefCell<Option<Host>> = const { RefCell::new(None) };
    static CALLS: Cell<usize> = const { Cell::new(0) };
}

impl Host {
    /// The library that `cargo xtask emulate` builds; without it the tests say that they do nothing.
    #[allow(clippy::print_stderr, clippy::unwrap_used)]
    pub(super) fn new() -> Option<Self> {
        if std::env::var_os("TPGM_EMULATOR").is_none() {
            eprintln!("skipped: TPGM_EMULATOR is not set; `cargo xtask emulate --layers` runs this");
            return None;
        }
        Some(Self { layers: Layers::on(Emulator::from_env().unwrap()) })
    }

    /// Has the kernels compute what this thread asks of layers while `f` runs; also, how often they were called.
    pub(super) fn run<R>(&self, f: impl FnOnce() -> R) -> (R, usize) {
        RUNNING.set(Some(self.clone()));
        CALLS.set(0);
        let result = f();
        RUNNING.set(None);
        (result, CALLS.get())
    }
}

/// The home that stands in for a GPU on this thread, if one does.
pub(in crate::layers) fn running() -> Option<Host> {
    RUNNING.with_borrow(Clone::clone)
}

impl Home for Host {
    type Device = Emulator;
    type Storage = CpuStorage;
    type Pending<'a> = ();

    fn layers(&self) -> &Layers<Emulator> {
        CALLS.set(CALLS.get() + 1);
        &self.layers
    }

    fn open(storage: &Storage) -> Option<&CpuStorage> {
        match storage {
            Storage::Cpu(storage) => Some(storage),
            _ => None,
        }
    }

    fn close(storage: CpuStorage) -> Storage {
        Storage::Cpu(storage)
    }

    fn address<'a>(&'a self, storage: &'a CpuStorage) -> Result<(u64, ())> {
        let address = match storage {
            CpuStorage::U8(data) => data.as_ptr().expose_provenance(),
            CpuStorage::U32(data) => data.as_ptr().expose_provenance(),
            CpuStorage::I64(data) => data.as_ptr().expose_provenance(),
            CpuStorage::F32(data) => data.as_ptr().expose_provenance(),
            CpuStorage::BF16(data) => data.as_ptr().expose_provenance(),
            CpuStorage::F16(data) => data.as_ptr().expose_provenance(),
            _ => candle_core::bail!("an element type that no kernel takes"),
        };
        Ok((address as u64, ()))
    }

    fn address_mut<'a>(&'a self, storage: &'a mut CpuStorage) -> Result<(u64, ())> {
        let address = match storage {
            CpuStorage::F32(data) => data.as_mut_ptr().expose_provenance(),
            CpuStorage::BF16(data) => data.as_mut_ptr().expose_provenance(),
            CpuStorage::F16(data) => data.as_mut_ptr().expose_provenance(),
            _ => candle_core::bail!("an element type that no kernel writes"),
        };
        Ok((address as u64, ()))
    }
}
