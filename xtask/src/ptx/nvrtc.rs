//! NVRTC, NVIDIA's compiler as a library, opened by its path.
//!
//! By path, because any NVRTC on the library path has the same name, while the version decides the bytes that come out.

use std::ffi::{CStr, CString, c_char, c_int};
use std::path::Path;
use std::ptr;

use anyhow::{Context, Result, ensure};
use libloading::Library;

/// A program that is being compiled; only NVRTC looks inside.
#[repr(C)]
struct Opaque {
    _private: [u8; 0],
}
type Program = *mut Opaque;

/// What a compilation gives.
#[derive(Debug)]
pub(super) struct Compiled {
    /// The PTX, or nothing if there were errors.
    pub(super) ptx: Option<String>,
    /// Warnings and errors; empty if there are none.
    pub(super) log: String,
}

/// The functions of NVRTC that we use.
pub(super) struct Nvrtc {
    create: unsafe extern "C" fn(
        *mut Program,
        *const c_char,
        *const c_char,
        c_int,
        *const *const c_char,
        *const *const c_char,
    ) -> c_int,
    compile: unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int,
    log_size: Size,
    log: Text,
    ptx_size: Size,
    ptx: Text,
    destroy: unsafe extern "C" fn(*mut Program) -> c_int,
    error: unsafe extern "C" fn(c_int) -> *const c_char,
    /// Holds the functions above.
    _library: Library,
}

type Size = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type Text = unsafe extern "C" fn(Program, *mut c_char) -> c_int;

/// `NVRTC_SUCCESS`.
const SUCCESS: c_int = 0;
/// `NVRTC_ERROR_COMPILATION`: the source has errors, which are in the log.
const ERROR_COMPILATION: c_int = 6;

impl Nvrtc {
    /// Opens the library at `path`.
    pub(super) fn open(path: &Path) -> Result<Nvrtc> {
        let open = || -> Result<Nvrtc, libloading::Error> {
            // SAFETY: the caller names an NVRTC, whose initializers do nothing but prepare the library. The function
            // types are those of nvrtc.h, the same in all versions since 8.0.
            unsafe {
                let library = Library::new(path)?;
                Ok(Nvrtc {
                    create: *library.get(b"nvrtcCreateProgram\0")?,
                    compile: *library.get(b"nvrtcCompileProgram\0")?,
                    log_size: *library.get(b"nvrtcGetProgramLogSize\0")?,
                    log: *library.get(b"nvrtcGetProgramLog\0")?,
                    ptx_size: *library.get(b"nvrtcGetPTXSize\0")?,
                    ptx: *library.get(b"nvrtcGetPTX\0")?,
                    destroy: *library.get(b"nvrtcDestroyProgram\0")?,
                    error: *library.get(b"nvrtcGetErrorString\0")?,
                    _library: library,
                })
            }
        };
        open().with_context(|| format!("cannot open `{}` as NVRTC", path.display()))
    }

    /// Compiles `source`, which messages call `name`.
    ///
    /// # Errors
    ///
    /// If NVRTC fails otherwise than over errors in the source, for example over an option it does not know.
    pub(super) fn compile(&self, name: &str, source: &str, options: &[String]) -> Result<Compiled> {
        let name = CString::new(name)?;
        let source = CString::new(source).context("the source")?;
        let options =
            options.iter().map(|option| CString::new(option.as_str())).collect::<Result<Vec<_>, _>>()?;
        let options: Vec<_> = options.iter().map(|option| option.as_ptr()).collect();
        let count = c_int::try_from(options.len())?;

        let mut program = ptr::null_mut();
        // SAFETY: the strings end with a zero and live through the call; without headers, both lists may be null.
        self.check(unsafe {
            (self.create)(&raw mut program, source.as_ptr(), name.as_ptr(), 0, ptr::null(), ptr::null())
        })?;
        // SAFETY: the program was just made; `options` holds `count` strings that live through the call.
        let code = unsafe { (self.compile)(program, count, options.as_ptr()) };
        let compiled = self.collect(program, code);
        // SAFETY: nothing uses the program afterwards.
        self.check(unsafe { (self.destroy)(&raw mut program) })?;
        compiled
    }

    fn collect(&self, program: Program, code: c_int) -> Result<Compiled> {
        let log = self.text(program, self.log_size, self.log)?;
        if code != ERROR_COMPILATION {
            self.check(code).with_context(|| log.clone())?;
        }
        let ptx = match code {
            SUCCESS => Some(self.text(program, self.ptx_size, self.ptx)?),
            _ => None,
        };
        Ok(Compiled { ptx, log })
    }

    fn text(&self, program: Program, size: Size, text: Text) -> Result<String> {
        let mut bytes = 0;
        // SAFETY: the program is alive and has been compiled.
        self.check(unsafe { size(program, &raw mut bytes) })?;
        let mut buffer = vec![0_u8; bytes];
        // SAFETY: NVRTC writes the number of bytes that it just named.
        self.check(unsafe { text(program, buffer.as_mut_ptr().cast()) })?;
        // The size counts a zero at the end.
        while buffer.last() == Some(&0) {
            buffer.pop();
        }
        String::from_utf8(buffer).context("text from NVRTC")
    }

    fn check(&self, code: c_int) -> Result<()> {
        if code != SUCCESS {
            // SAFETY: NVRTC has a static string for every code, known to it or not.
            let message = unsafe { CStr::from_ptr((self.error)(code)) };
            ensure!(code == SUCCESS, "NVRTC: {}", message.to_string_lossy());
        }
        Ok(())
    }
}
