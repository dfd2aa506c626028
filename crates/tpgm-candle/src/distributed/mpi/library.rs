//! The calls of MPI that ranks need, none of which waits for another rank once the group is there. The only file that hands
//! memory to the library.

use std::ffi::c_int;
use std::mem::{ManuallyDrop, MaybeUninit, forget, take};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use mpi::Threading;
use mpi::environment::threading_support;
use mpi::ffi;

use super::group::pause;

/// What a message is. Messages of one kind between two ranks arrive in the order in which they were sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tag {
    Call = 1,
    Description,
    Gather,
    Share,
    Done,
    End,
}

/// MPI is told that threads do not call it at the same time.
static TURN: Mutex<()> = Mutex::new(());

/// A rank is lost: nobody can wait for it in the end.
static LOST: AtomicBool = AtomicBool::new(false);

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins MPI, once in the life of a process; it ends with the process.
pub(super) fn start() -> Result<(), String> {
    static STARTED: OnceLock<Result<(), String>> = OnceLock::new();
    STARTED.get_or_init(begin).clone()
}

fn begin() -> Result<(), String> {
    if mpi::is_finalized() {
        return Err("the program has ended it (`MPI_Finalize`)".to_owned());
    }
    let threading = match mpi::initialize_with_threading(Threading::Serialized) {
        Some((universe, threading)) => {
            // Dropped, it would wait for ranks that are lost.
            forget(universe);
            // SAFETY: `finish` may be called at any time until the process ends, and no unwinding leaves it.
            unsafe { atexit(finish) };
            threading
        }
        // The program did, and ends it.
        None => threading_support(),
    };
    if threading < Threading::Serialized {
        return Err(format!(
            "it was begun for {threading:?} threads, and optimizers may call it from any thread, one at a time; \
             begin it with `Threading::Serialized`, or let `Mpi::world` begin it"
        ));
    }
    // SAFETY: MPI has begun, and has not ended.
    let code = unsafe { ffi::MPI_Comm_set_errhandler(ffi::RSMPI_COMM_WORLD, ffi::RSMPI_ERRORS_RETURN) };
    check(code, "MPI_Comm_set_errhandler")
}

unsafe extern "C" {
    fn atexit(call: extern "C" fn()) -> c_int;
}

/// Ends MPI, which waits for all ranks: not if one is lost.
extern "C" fn finish() {
    if !LOST.load(Ordering::Relaxed) && !mpi::is_finalized() {
        // It is nobody's turn again: a thread that still waits for messages stays where it is until the process is gone.
        let _turn = ManuallyDrop::new(turn());
        // SAFETY: MPI has begun, or this would not be called, and has not ended. Nobody calls it from now on: every call takes
        // a turn, and this one is never given back.
        unsafe { ffi::MPI_Finalize() };
    }
}

/// Lets the process end without waiting for other ranks.
pub(super) fn lose() {
    LOST.store(true, Ordering::Relaxed);
}

fn check(code: c_int, call: &str) -> Result<(), String> {
    if code == ffi::MPI_SUCCESS as c_int {
        return Ok(());
    }
    let mut text = [0 as std::ffi::c_char; ffi::MPI_MAX_ERROR_STRING as usize];
    let mut len = 0;
    // SAFETY: `text` has the length that MPI asks for.
    unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr(), &mut len) };
    let text: Vec<u8> = text.iter().take(len.max(0) as usize).map(|c| *c as u8).collect();
    Err(format!("{call} says {}", String::from_utf8_lossy(&text)))
}

/// A group's messages, apart from all others of the process.
#[derive(Debug)]
pub(super) struct Channel {
    comm: ffi::MPI_Comm,
    pub(super) rank: usize,
    pub(super) size: usize,
}

// SAFETY: a communicator of MPI may be used by any thread; `TURN` sees to it that threads take turns.
unsafe impl Send for Channel {}

impl Channel {
    /// Over all processes, which call this together within the timeout. It is never freed, for lost ranks could not take part
    /// in that.
    pub(super) fn world(timeout: Duration) -> Result<Self, String> {
        start()?;
        if LOST.load(Ordering::Relaxed) {
            return Err("a rank was lost before, and a new group takes all of them".to_owned());
        }
        let (mut request, mut done, mut rank, mut size) = (request(), 0, 0, 0);
        // SAFETY: a constant of the library.
        let none = unsafe { ffi::RSMPI_COMM_NULL };
        // MPI writes there when all ranks have come, whenever that is: it is given back only then.
        let place = Box::into_raw(Box::new(none));
        {
            let _turn = turn();
            // SAFETY: MPI has begun; `place` stays where it is until the request is done, and nobody looks there before.
            let code = unsafe { ffi::MPI_Comm_idup(ffi::RSMPI_COMM_WORLD, place, &mut request) };
            check(code, "MPI_Comm_idup")?;
        }
        let begun = Instant::now();
        loop {
            let turn = turn();
            // SAFETY: the request is one that MPI gave, and not done yet. No status is asked for.
            let code = unsafe { ffi::MPI_Test(&mut request, &mut done, ffi::RSMPI_STATUS_IGNORE) };
            check(code, "MPI_Test")?;
            drop(turn);
            if done != 0 {
                break;
            }
            if begun.elapsed() >= timeout {
                // It would be waited for in the end, too.
                lose();
                return Err(format!("not all ranks came to make a group within {timeout:?}"));
            }
            pause(begun);
        }
        // SAFETY: it is the box from above, which MPI is done with.
        let comm = unsafe { *Box::from_raw(place) };
        let _turn = turn();
        // SAFETY: MPI has begun; all pointers are to variables of this function.
        unsafe {
            check(ffi::MPI_Comm_set_errhandler(comm, ffi::RSMPI_ERRORS_RETURN), "MPI_Comm_set_errhandler")?;
            check(ffi::MPI_Comm_rank(comm, &mut rank), "MPI_Comm_rank")?;
            check(ffi::MPI_Comm_size(comm, &mut size), "MPI_Comm_size")?;
        }
        Ok(Self { comm, rank: rank as usize, size: size as usize })
    }

    /// Begins to send bytes to a rank.
    pub(super) fn send(&self, to: usize, tag: Tag, bytes: Arc<Vec<u8>>) -> Result<Transfer, String> {
        let (count, mut request) = (length(bytes.len())?, request());
        let _turn = turn();
        // SAFETY: `bytes` stays where it is until the request is done: `Transfer` keeps it, or forgets it. Nobody writes to it.
        let code = unsafe {
            ffi::MPI_Isend(
                bytes.as_ptr().cast(),
                count,
                ffi::RSMPI_UINT8_T,
                to as c_int,
                tag as c_int,
                self.comm,
                &mut request,
            )
        };
        check(code, "MPI_Isend")?;
        Ok(Transfer { request, memory: Memory::Sent(bytes), peer: to, done: false })
    }

    /// Begins to receive as many bytes as a rank sends.
    pub(super) fn receive(&self, from: usize, tag: Tag, len: usize) -> Result<Transfer, String> {
        let (count, mut request, mut bytes) = (length(len)?, request(), vec![0u8; len]);
        let _turn = turn();
        // SAFETY: as for `send`; nobody reads or writes `bytes` before the request is done.
        let code = unsafe {
            ffi::MPI_Irecv(
                bytes.as_mut_ptr().cast(),
                count,
                ffi::RSMPI_UINT8_T,
                from as c_int,
                tag as c_int,
                self.comm,
                &mut request,
            )
        };
        check(code, "MPI_Irecv")?;
        Ok(Transfer { request, memory: Memory::Received(bytes), peer: from, done: false })
    }

    /// Whether a message is there, from a rank or any: of whom, and its length.
    pub(super) fn probe(&self, from: Option<usize>, tag: Tag) -> Result<Option<(usize, usize)>, String> {
        let (mut there, mut count, mut status) = (0, 0, MaybeUninit::<ffi::MPI_Status>::uninit());
        let _turn = turn();
        // SAFETY: all pointers are to variables of this function; the status is read only where MPI wrote it.
        unsafe {
            let from = from.map_or(ffi::RSMPI_ANY_SOURCE, |rank| rank as c_int);
            check(
                ffi::MPI_Iprobe(from, tag as c_int, self.comm, &mut there, status.as_mut_ptr()),
                "MPI_Iprobe",
            )?;
            if there == 0 {
                return Ok(None);
            }
            check(ffi::MPI_Get_count(status.as_ptr(), ffi::RSMPI_UINT8_T, &mut count), "MPI_Get_count")?;
            Ok(Some((status.assume_init().MPI_SOURCE as usize, count as usize)))
        }
    }
}

fn length(len: usize) -> Result<c_int, String> {
    c_int::try_from(len).map_err(|_| format!("a message of {len} bytes is too long for MPI"))
}

fn request() -> ffi::MPI_Request {
    // SAFETY: a constant of the library.
    unsafe { ffi::RSMPI_REQUEST_NULL }
}

/// A message on its way, with its memory.
pub(super) struct Transfer {
    request: ffi::MPI_Request,
    memory: Memory,
    /// Who sends or receives it there.
    pub(super) peer: usize,
    done: bool,
}

enum Memory {
    Sent(Arc<Vec<u8>>),
    Received(Vec<u8>),
}

impl Transfer {
    /// Whether it has arrived, or its memory is free again. Lets all others go on, too.
    pub(super) fn is_done(&mut self) -> Result<bool, String> {
        if !self.done {
            let mut flag = 0;
            let _turn = turn();
            // SAFETY: the request is one that MPI gave, and not done yet. No status is asked for.
            let code = unsafe { ffi::MPI_Test(&mut self.request, &mut flag, ffi::RSMPI_STATUS_IGNORE) };
            check(code, "MPI_Test")?;
            self.done = flag != 0;
        }
        Ok(self.done)
    }

    /// What came. Nothing, if it has not or this was sent.
    pub(super) fn take(&mut self) -> Vec<u8> {
        match &mut self.memory {
            Memory::Received(bytes) if self.done => take(bytes),
            _ => Vec::new(),
        }
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        if !self.done {
            // MPI may still read or write there, whenever a rank that is late comes: it keeps the memory.
            match &mut self.memory {
                Memory::Sent(bytes) => forget(Arc::clone(bytes)),
                Memory::Received(bytes) => forget(take(bytes)),
            }
        }
    }
}
