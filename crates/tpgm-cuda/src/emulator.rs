//! The kernels on the host: compiled by a C++ compiler, run by the emulator of `kernels/emulator/`.

use std::alloc::Layout;
use std::ffi::{CStr, CString, c_char, c_int};
use std::path::Path;
use std::ptr::NonNull;

use tpgm_core::{Error, Result};

use crate::device::Device;

/// The environment variable with the path of the library.
const VARIABLE: &str = "TPGM_EMULATOR";

/// What memory of a GPU is aligned to, in bytes.
const ALIGNMENT: usize = 256;

/// Elements between first and second pass: few, so that small tensors of a test take turns too.
const LAG: usize = 1 << 14;

/// The longest message the library writes, in bytes.
const MESSAGE: usize = 2048;

type Launch = unsafe extern "C" fn(*const c_char, u32, u64, *mut c_char, usize) -> c_int;

/// What the library exports: see `kernels/emulator/launch.cpp`.
#[derive(Debug)]
struct Functions {
    launch: Launch,
    threads_per_block: unsafe extern "C" fn() -> u32,
    resident_blocks: unsafe extern "C" fn() -> u32,
    kernels: unsafe extern "C" fn() -> *const c_char,
}

/// Runs the kernels on the cores of the host. Calls are done when they return.
#[derive(Debug, Clone, Copy)]
pub struct Emulator {
    functions: &'static Functions,
}

/// Memory of the emulator, freed when dropped: an allocation of its own, so that the address sanitizer sees kernels that
/// leave it.
#[derive(Debug)]
pub struct Memory {
    start: NonNull<u8>,
    bytes: usize,
    layout: Layout,
}

// SAFETY: it owns its allocation.
unsafe impl Send for Memory {}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: `allocate` took it from the same allocator with this layout.
        unsafe { std::alloc::dealloc(self.start.as_ptr(), self.layout) }
    }
}

impl Memory {
    /// The address `offset` bytes into the memory, which must have `bytes` more.
    fn at(&self, offset: usize, bytes: usize, call: &str) -> Result<*mut u8> {
        if offset.checked_add(bytes).is_none_or(|end| end > self.bytes) {
            let reason = format!("bytes {offset} to {offset} + {bytes} of an allocation of {}", self.bytes);
            return Err(error(call, reason));
        }
        // SAFETY: `offset` is inside the allocation or at its end.
        Ok(unsafe { self.start.as_ptr().add(offset) })
    }
}

impl Emulator {
    /// Loads a library that `cargo xtask emulate` has built. It stays loaded as long as the process lives.
    ///
    /// # Errors
    ///
    /// When the file cannot be loaded, or is no emulator.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let failed = |reason: libloading::Error| error(&format!("loading {}", path.display()), reason);
        // SAFETY: what the library runs when loaded puts its kernels into a table.
        let library = unsafe { libloading::Library::new(path) }.map_err(failed)?;
        // The threads it starts never end.
        let library: &'static libloading::Library = Box::leak(Box::new(library));
        // SAFETY: the types are those of the definitions in `kernels/emulator/launch.cpp`.
        let functions = unsafe {
            Functions {
                launch: *library.get("tpgm_emulator_launch").map_err(failed)?,
                threads_per_block: *library.get("tpgm_emulator_threads_per_block").map_err(failed)?,
                resident_blocks: *library.get("tpgm_emulator_resident_blocks").map_err(failed)?,
                kernels: *library.get("tpgm_emulator_kernels").map_err(failed)?,
            }
        };
        Ok(Emulator { functions: Box::leak(Box::new(functions)) })
    }

    /// Loads the library that the environment variable `TPGM_EMULATOR` names.
    ///
    /// # Errors
    ///
    /// When the variable is not set, and as [`Emulator::load`].
    pub fn from_env() -> Result<Self> {
        match std::env::var_os(VARIABLE) {
            Some(path) => Self::load(Path::new(&path)),
            None => Err(error(
                "finding the library",
                format!("{VARIABLE} is not set; `cargo xtask emulate` builds the library and sets it"),
            )),
        }
    }

    /// Names of the kernels in the library.
    pub fn kernels(&self) -> Vec<&'static str> {
        // SAFETY: the library returns a string that lives as long as it, which is as long as the process.
        let names = unsafe { CStr::from_ptr((self.functions.kernels)()) };
        names.to_str().unwrap_or_default().lines().collect()
    }
}

fn error(call: &str, reason: impl ToString) -> Error {
    Error::Device { device: "emulator".into(), call: call.into(), reason: reason.to_string() }
}

impl Device for Emulator {
    type Memory = Memory;
    type Staging = Vec<u8>;
    type Event = ();

    fn name(&self) -> String {
        "emulator".into()
    }

    fn allocate(&self, bytes: usize) -> Result<Memory> {
        let call = || format!("allocating {bytes} bytes");
        let layout =
            Layout::from_size_align(bytes.max(1), ALIGNMENT).map_err(|reason| error(&call(), reason))?;
        // SAFETY: at least one byte.
        let start = NonNull::new(unsafe { std::alloc::alloc_zeroed(layout) })
            .ok_or_else(|| error(&call(), "out of memory"))?;
        Ok(Memory { start, bytes, layout })
    }

    fn address(&self, memory: &Memory) -> u64 {
        memory.start.as_ptr().expose_provenance() as u64
    }

    fn write(&self, memory: &mut Memory, offset: usize, bytes: &[u8]) -> Result<()> {
        let to = memory.at(offset, bytes.len(), "a copy from the host")?;
        // SAFETY: so many bytes are there, and nobody else uses them: kernels have ended when a launch returns.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) };
        Ok(())
    }

    fn read(&self, memory: &Memory, offset: usize, bytes: &mut [u8]) -> Result<()> {
        let from = memory.at(offset, bytes.len(), "a copy to the host")?;
        // SAFETY: as in `write`.
        unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    fn staging(&self, bytes: usize) -> Result<Vec<u8>> {
        Ok(vec![0; bytes])
    }

    fn contents<'a>(&self, staging: &'a mut Vec<u8>) -> Result<&'a mut [u8]> {
        Ok(staging)
    }

    fn copy_in(&self, from: &Vec<u8>, to: &mut Memory, bytes: usize) -> Result<()> {
        let held = from.len();
        let from = from.get(..bytes).ok_or_else(|| too_long(bytes, held))?;
        self.write(to, 0, from)
    }

    fn copy_out(&self, from: &Memory, to: &mut Vec<u8>, bytes: usize) -> Result<()> {
        let held = to.len();
        let to = to.get_mut(..bytes).ok_or_else(|| too_long(bytes, held))?;
        self.read(from, 0, to)
    }

    fn event(&self) -> Result<()> {
        Ok(())
    }

    fn record(&self, (): &()) -> Result<()> {
        Ok(())
    }

    fn reached(&self, (): &()) -> Result<bool> {
        Ok(true)
    }

    fn wait(&self, (): &()) -> Result<()> {
        Ok(())
    }

    fn capturing(&self) -> Result<bool> {
        Ok(false)
    }

    fn lag(&self) -> usize {
        LAG
    }

    fn threads(&self) -> usize {
        // SAFETY: takes nothing, returns a constant.
        unsafe { (self.functions.threads_per_block)() as usize }
    }

    fn resident_blocks(&self, kernel: &'static str) -> Result<usize> {
        if !self.kernels().contains(&kernel) {
            return Err(error(&format!("kernel `{kernel}`"), "there is no such kernel in the library"));
        }
        // SAFETY: takes nothing, returns a number.
        Ok(unsafe { (self.functions.resident_blocks)() as usize })
    }

    fn launch(&self, kernel: &'static str, blocks: usize, argument: u64) -> Result<()> {
        let call = format!("kernel `{kernel}`");
        let name = CString::new(kernel).map_err(|reason| error(&call, reason))?;
        let blocks = u32::try_from(blocks).map_err(|reason| error(&call, reason))?;
        let mut message = [0_u8; MESSAGE];
        // SAFETY: the name ends with 0, and the message is as long as said. `argument` is the address of the kernel's table,
        // as `Device::launch` asks for; the table and what it points to are not in use elsewhere, since calls happen in order.
        let code = unsafe {
            (self.functions.launch)(name.as_ptr(), blocks, argument, message.as_mut_ptr().cast(), MESSAGE)
        };
        if code == 0 {
            return Ok(());
        }
        let said = CStr::from_bytes_until_nul(&message).unwrap_or_default();
        Err(error(&call, said.to_string_lossy()))
    }

    fn launch_table(&self, kernel: &'static str, blocks: usize, table: &[u64]) -> Result<()> {
        // The emulated kernel takes a reference, and is done with it when the call returns.
        self.launch(kernel, blocks, table.as_ptr().expose_provenance() as u64)
    }
}

fn too_long(bytes: usize, held: usize) -> Error {
    error("a copy of page-locked memory", format!("{bytes} bytes of {held}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adds the number of blocks to the number at `argument`; fails when there is none.
    unsafe extern "C" fn launch(
        kernel: *const c_char,
        blocks: u32,
        argument: u64,
        message: *mut c_char,
        capacity: usize,
    ) -> c_int {
        let number = std::ptr::with_exposed_provenance_mut::<u32>(argument as usize);
        if number.is_null() {
            // SAFETY: the caller's strings.
            let text = unsafe { CStr::from_ptr(kernel) }.to_string_lossy().into_owned() + " got nothing";
            assert!(text.len() < capacity);
            // SAFETY: it fits.
            unsafe { std::ptr::copy_nonoverlapping(text.as_ptr(), message.cast(), text.len()) };
            return 7;
        }
        // SAFETY: the test's number.
        unsafe { *number += blocks };
        0
    }

    unsafe extern "C" fn number() -> u32 {
        64
    }

    unsafe extern "C" fn kernels() -> *const c_char {
        c"add\nmultiply\n".as_ptr()
    }

    const FAKE: Emulator = Emulator {
        functions: &Functions { launch, threads_per_block: number, resident_blocks: number, kernels },
    };

    #[test]
    fn memory_is_zero_and_aligned_and_apart() {
        let (first, second) = (FAKE.allocate(5).unwrap(), FAKE.allocate(0).unwrap());
        let (a, b) = (FAKE.address(&first), FAKE.address(&second));
        assert_eq!((a % 256, b % 256), (0, 0));
        assert!(a.abs_diff(b) >= 5);
        let mut bytes = [1; 5];
        FAKE.read(&first, 0, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 5]);
    }

    #[test]
    fn copies_go_where_they_are_asked_to() {
        let mut memory = FAKE.allocate(6).unwrap();
        FAKE.write(&mut memory, 2, &[1, 2, 3]).unwrap();
        let mut staging = FAKE.staging(8).unwrap();
        FAKE.copy_out(&memory, &mut staging, 6).unwrap();
        assert_eq!(FAKE.contents(&mut staging).unwrap(), [0, 0, 1, 2, 3, 0, 0, 0]);
        FAKE.contents(&mut staging).unwrap()[0] = 9;
        FAKE.copy_in(&staging, &mut memory, 1).unwrap();
        let mut bytes = [0; 4];
        FAKE.read(&memory, 0, &mut bytes).unwrap();
        assert_eq!(bytes, [9, 0, 1, 2]);
    }

    #[test]
    fn copies_past_the_end_are_refused() {
        let mut memory = FAKE.allocate(6).unwrap();
        let mut staging = FAKE.staging(4).unwrap();
        for result in [
            FAKE.write(&mut memory, 4, &[0; 3]),
            FAKE.write(&mut memory, usize::MAX, &[0; 3]),
            FAKE.read(&memory, 7, &mut []),
            FAKE.copy_out(&memory, &mut staging, 5),
            FAKE.copy_in(&staging, &mut memory, 5),
        ] {
            let text = result.unwrap_err().to_string();
            assert!(text.starts_with("emulator: a copy ") && text.contains(" of "), "{text}");
        }
        FAKE.write(&mut memory, 6, &[]).unwrap();
    }

    #[test]
    fn launches_reach_the_library_and_errors_come_back() {
        let mut memory = FAKE.allocate(4).unwrap();
        FAKE.write(&mut memory, 0, &5_u32.to_ne_bytes()).unwrap();
        FAKE.launch("add", 3, FAKE.address(&memory)).unwrap();
        let mut bytes = [0; 4];
        FAKE.read(&memory, 0, &mut bytes).unwrap();
        assert_eq!(u32::from_ne_bytes(bytes), 8);
        assert_eq!(
            FAKE.launch("add", 3, 0).unwrap_err().to_string(),
            "emulator: kernel `add` failed: add got nothing"
        );
        FAKE.launch("add", usize::MAX, FAKE.address(&memory)).unwrap_err();
        assert_eq!((FAKE.threads(), FAKE.resident_blocks("add").unwrap()), (64, 64));
        assert!(FAKE.resident_blocks("divide").unwrap_err().to_string().contains("`divide`"));
    }

    #[test]
    fn a_library_that_is_not_there_is_named() {
        let text = Emulator::load("no/such/emulator.so").unwrap_err().to_string();
        assert!(text.starts_with("emulator: loading no/such/emulator.so failed"), "{text}");
    }
}
