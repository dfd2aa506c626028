//! The few bytes that the processes of a group exchange over TCP before they are one.
//!
//! A rank says `tpgm-ranks 1 VERSION RANK SIZE\n`; rank 0 answers `tpgm-ranks ok LENGTH\n` and the bytes, or
//! `tpgm-ranks error LENGTH\n` and why there is no group. Nothing is encrypted: these are ranks of one job in one network.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use super::error::Result;
use super::launch::Launch;
use super::start::StartProblem;

/// How every message begins: the number is that of this protocol.
const HELLO: &str = "tpgm-ranks 1";
const OK: &str = "tpgm-ranks ok";
const ERROR: &str = "tpgm-ranks error";

/// Longest first line.
const LINE: usize = 256;
/// Most bytes that rank 0 hands out: this is for names, not for tensors.
const MOST: usize = 1 << 20;
/// How much longer than rank 0 the others wait: it knows who is missing.
const GRACE: Duration = Duration::from_secs(5);
/// How long one address of a name is tried: there may be others.
const TRY: Duration = Duration::from_secs(5);
/// Between two looks.
const PAUSE: Duration = Duration::from_millis(5);

/// A rank that has come.
struct Guest {
    stream: TcpStream,
    from: String,
    version: String,
    rank: usize,
    size: usize,
}

impl Launch {
    /// Hands the bytes of rank 0 to all ranks, at most 1 MiB; what other ranks give is ignored. Returns when all ranks have come.
    ///
    /// Rank 0 listens on its port, on all addresses of its machine, and the others try to reach it until `timeout` is over, so
    /// ranks may start in any order. Whoever connects and says something else is sent away. A port is used again at once.
    ///
    /// # Errors
    ///
    /// [`Error::Start`](super::Error::Start): the port is taken; some ranks have not come in time, which it names; two processes
    /// have one number; a rank has another version or number of ranks. Rank 0 tells those that have come.
    pub fn exchange(&self, own: &[u8], timeout: Duration) -> Result<Vec<u8>> {
        let done = match self.rank {
            0 => self.hand_out(own, timeout),
            _ => self.ask(timeout),
        };
        Ok(done?)
    }

    /// Where rank 0 is, for errors.
    fn place(&self) -> String {
        format!("{}:{}", self.address, self.port)
    }

    fn hand_out(&self, own: &[u8], timeout: Duration) -> Result<Vec<u8>, StartProblem> {
        let port = |reason: String| StartProblem::Port { port: self.port, reason, variable: Self::PORT };
        if own.len() > MOST {
            return Err(port(format!("{} bytes are more than the {MOST} that are handed out", own.len())));
        }
        if self.size == 1 {
            return Ok(own.to_vec());
        }
        let listener = listen(self.port).map_err(|error| port(error.to_string()))?;
        let mut guests = Vec::new();
        let problem = self.collect(&listener, timeout, &mut guests).err();
        let (head, body) = match &problem {
            None => (OK, own.to_vec()),
            Some(problem) => (ERROR, problem.to_string().into_bytes()),
        };
        for guest in &mut guests {
            // Whoever is gone by now is missed by the first call of the group.
            let _ = guest.stream.write_all(format!("{head} {}\n", body.len()).as_bytes());
            let _ = guest.stream.write_all(&body);
        }
        problem.map_or(Ok(body), Err)
    }

    /// Waits until all ranks have come.
    fn collect(
        &self,
        listener: &TcpListener,
        timeout: Duration,
        guests: &mut Vec<Guest>,
    ) -> Result<(), StartProblem> {
        let begun = Instant::now();
        let (sender, receiver) = mpsc::channel();
        loop {
            while let Ok((stream, from)) = listener.accept() {
                let sender = sender.clone();
                // One that says nothing keeps nobody else waiting.
                thread::spawn(move || {
                    let wait = timeout.saturating_sub(begun.elapsed()).max(PAUSE);
                    if let Ok(guest) = greet(stream, from, wait) {
                        sender.send(guest).ok();
                    }
                });
            }
            while let Ok(guest) = receiver.try_recv() {
                guests.push(guest);
                self.check(guests)?;
            }
            let absent: Vec<usize> =
                (1..self.size).filter(|rank| guests.iter().all(|guest| guest.rank != *rank)).collect();
            if absent.is_empty() {
                return Ok(());
            }
            if begun.elapsed() >= timeout {
                return Err(StartProblem::Absent { ranks: absent, address: self.place(), waited: timeout });
            }
            thread::sleep(PAUSE);
        }
    }

    /// Whether the rank that came last fits.
    fn check(&self, guests: &[Guest]) -> Result<(), StartProblem> {
        let (last, others) = guests.split_last().expect("one has just come");
        let Guest { rank, size, .. } = *last;
        let expected = env!("CARGO_PKG_VERSION");
        if last.version != expected {
            let version = last.version.clone();
            return Err(StartProblem::Version { rank, version, expected: expected.to_owned() });
        }
        if size != self.size || rank >= size {
            return Err(StartProblem::Size { rank, size, expected: self.size });
        }
        let here = || format!("{} (rank 0 itself)", self.place());
        let other = others.iter().find(|other| other.rank == rank).map(|other| other.from.clone());
        match other.or_else(|| (rank == 0).then(here)) {
            Some(first) => Err(StartProblem::Taken { rank, first, second: last.from.clone() }),
            None => Ok(()),
        }
    }

    fn ask(&self, timeout: Duration) -> Result<Vec<u8>, StartProblem> {
        let begun = Instant::now();
        let unreachable = |error: &io::Error| StartProblem::Unreachable {
            address: self.place(),
            waited: timeout,
            reason: error.to_string(),
        };
        let stream = loop {
            match connect(&self.address, self.port, timeout.saturating_sub(begun.elapsed())) {
                Ok(stream) => break stream,
                Err(error) if begun.elapsed() >= timeout => return Err(unreachable(&error)),
                // It may not have begun to listen, or its name may not be known yet.
                Err(_) => thread::sleep(PAUSE * 10),
            }
        };
        let hello = format!("{HELLO} {} {} {}\n", env!("CARGO_PKG_VERSION"), self.rank, self.size);
        // Rank 0 began before this connection, so that it gives up before this rank does.
        let mut stream = Timed::new(stream, timeout.saturating_add(GRACE));
        let answer = stream.inner.write_all(hello.as_bytes()).and_then(|()| line(&mut stream));
        let answer = answer.map_err(|error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => {
                unreachable(&io::Error::new(error.kind(), "it took the connection and said nothing"))
            }
            _ => StartProblem::Stranger {
                address: self.place(),
                got: format!("it ended the connection without an answer ({error})"),
            },
        })?;
        let stranger = || StartProblem::Stranger {
            address: self.place(),
            got: format!("it says `{}`", answer.escape_debug()),
        };
        let mut body = |length: &str| -> Option<Vec<u8>> {
            let length: usize = length.trim().parse().ok().filter(|length| *length <= MOST)?;
            let mut body = vec![0; length];
            stream.read_exact(&mut body).ok().map(|()| body)
        };
        if let Some(length) = answer.strip_prefix(OK) {
            return body(length).ok_or_else(stranger);
        }
        let reason = answer.strip_prefix(ERROR).and_then(body).ok_or_else(stranger)?;
        Err(StartProblem::Told { reason: String::from_utf8_lossy(&reason).into_owned() })
    }
}

/// On all addresses of this machine, of both kinds where there are both.
fn listen(port: u16) -> io::Result<TcpListener> {
    let any = [SocketAddr::from(([0u16; 8], port)), SocketAddr::from(([0u8; 4], port))];
    let listener = TcpListener::bind(any[0]).or_else(|error| match error.kind() {
        ErrorKind::AddrInUse => Err(error),
        _ => TcpListener::bind(any[1]),
    })?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn connect(address: &str, port: u16, left: Duration) -> io::Result<TcpStream> {
    let mut last = io::Error::new(ErrorKind::NotFound, "its name has no address");
    let begun = Instant::now();
    for address in (address, port).to_socket_addrs()? {
        let left = left.saturating_sub(begun.elapsed()).clamp(PAUSE, TRY);
        match TcpStream::connect_timeout(&address, left) {
            // While nobody listens, a connection to a port of this machine can end at itself.
            Ok(stream) if stream.local_addr()? == stream.peer_addr()? => {
                last = ErrorKind::ConnectionRefused.into();
            }
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Hears what somebody who connected has to say.
fn greet(stream: TcpStream, from: SocketAddr, wait: Duration) -> io::Result<Guest> {
    stream.set_nonblocking(false)?;
    stream.set_write_timeout(Some(wait.saturating_add(GRACE)))?;
    let mut stream = Timed::new(stream, wait);
    let hello = line(&mut stream)?;
    let stranger = || io::Error::from(ErrorKind::InvalidData);
    let words: Vec<&str> = hello.strip_prefix(HELLO).ok_or_else(stranger)?.split_whitespace().collect();
    let [version, rank, size] = words[..] else { return Err(stranger()) };
    let number = |word: &str| word.parse().map_err(|_| stranger());
    let (rank, size, version) = (number(rank)?, number(size)?, version.to_owned());
    let from = SocketAddr::new(from.ip().to_canonical(), from.port()).to_string();
    Ok(Guest { stream: stream.inner, from, version, rank, size })
}

/// A connection from which everything must have come within a time, however slowly it comes.
struct Timed {
    inner: TcpStream,
    begun: Instant,
    time: Duration,
}

impl Timed {
    fn new(inner: TcpStream, time: Duration) -> Self {
        Self { inner, begun: Instant::now(), time }
    }
}

impl Read for Timed {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let left = self.time.saturating_sub(self.begun.elapsed());
        if left.is_zero() {
            return Err(ErrorKind::TimedOut.into());
        }
        self.inner.set_read_timeout(Some(left))?;
        self.inner.read(bytes)
    }
}

/// The first line, without its end.
fn line(stream: &mut Timed) -> io::Result<String> {
    let (mut line, mut byte) = (Vec::new(), [0]);
    while line.len() < LINE {
        stream.read_exact(&mut byte)?;
        match byte[0] {
            b'\n' => return String::from_utf8(line).map_err(|_| ErrorKind::InvalidData.into()),
            byte => line.push(byte),
        }
    }
    Err(ErrorKind::InvalidData.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_speaks_slowly_is_not_heard_for_ever() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let mut slow = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, from) = listener.accept().unwrap();
        // A byte in a tenth of the time, and never a whole line: it would take 256 of them.
        let (wait, begun) = (Duration::from_millis(500), Instant::now());
        let writer = thread::spawn(move || {
            while slow.write_all(b"x").is_ok() {
                thread::sleep(wait / 10);
            }
        });
        let error = greet(stream, from, wait).err().unwrap();
        assert!(matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock), "{error}");
        assert!(begun.elapsed() < 20 * wait);
        writer.join().unwrap();
    }
}
