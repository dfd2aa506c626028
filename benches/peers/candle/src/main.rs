//! candle-nn's and candle-optimisers' AdamW as peers of the side-by-side harness.
//!
//! Answers the commands that `torch_peer.py` describes. With `--suffix S` the names of the peers end in it: the harness starts
//! this program twice, once with an allocator that keeps freed memory.

mod optimizers;

use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::time::Instant;

use crate::optimizers::Step;

type Error = Box<dyn std::error::Error>;

/// The same number as in `ours.rs`.
const FLIP_EVERY: usize = 4;

/// More than any cache holds. Not zeros: Linux would show the same page of zeros everywhere.
const SCRUB_BYTES: usize = 512 << 20;

struct Peer {
    optimizer: Box<dyn Step>,
    rounds: usize,
}

struct Server {
    suffix: String,
    shapes: Vec<Vec<usize>>,
    live: HashMap<String, Peer>,
    scrub: Vec<u8>,
}

impl Server {
    fn answer(&mut self, line: &str) -> Result<String, Error> {
        let mut words = line.split_whitespace();
        let command = words.next().unwrap_or_default();
        match (command, words.clone().next()) {
            ("hello", _) => Ok(self.hello()),
            ("shapes", _) => {
                self.shapes = words.map(shape).collect::<Result<_, _>>()?;
                Ok(String::new())
            }
            ("prepare", Some(name)) => {
                let plain = name.strip_suffix(self.suffix.as_str()).unwrap_or(name);
                let optimizer = optimizers::by_name(plain, &self.shapes)?;
                self.live.insert(name.to_owned(), Peer { optimizer, rounds: 0 });
                Ok(String::new())
            }
            ("run", Some(name)) => {
                self.round(name).map(|seconds| format!("{seconds:.9}"))
            }
            ("drop", Some(name)) => {
                self.live.remove(name).ok_or("no such peer")?;
                Ok(String::new())
            }
            _ => Err(format!("unknown command `{line}`").into()),
        }
    }

    fn hello(&self) -> String {
        let names = optimizers::NAMES.map(|name| format!("\"{name}{}\"", self.suffix));
        let threads = std::env::var("RAYON_NUM_THREADS").unwrap_or_else(|_| "0".to_owned());
        format!(
            "{{\"program\": \"candle\", \"version\": \"candle-nn 0.11.1, candle-optimisers 0.10.2\", \"threads\": {threads}, \
             \"device\": \"cpu\", \"peers\": [{}]}}",
            names.join(", ")
        )
    }

    fn round(&mut self, name: &str) -> Result<f64, Error> {
        let peer = self.live.get_mut(name).ok_or("no such peer")?;
        if peer.rounds > 0 && peer.rounds.is_multiple_of(FLIP_EVERY) {
            peer.optimizer.flip_gradients();
        }
        peer.rounds += 1;
        // A byte of every cache line. What is read needs no writing back while the step runs.
        std::hint::black_box(self.scrub.iter().step_by(64).map(|byte| u64::from(*byte)).sum::<u64>());
        let begun = Instant::now();
        peer.optimizer.step()?;
        Ok(begun.elapsed().as_secs_f64())
    }
}

fn shape(word: &str) -> Result<Vec<usize>, Error> {
    if word == "scalar" {
        return Ok(Vec::new());
    }
    Ok(word.split('x').map(str::parse).collect::<Result<_, _>>()?)
}

fn main() -> Result<(), Error> {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    let suffix = match arguments.as_slice() {
        [] => String::new(),
        [option, suffix] if option == "--suffix" => suffix.clone(),
        _ => return Err("usage: candle-peer [--suffix TEXT]".into()),
    };
    let mut server = Server { suffix, shapes: Vec::new(), live: HashMap::new(), scrub: vec![1; SCRUB_BYTES] };
    let mut answers = std::io::stdout().lock();
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        if line == "quit" {
            break;
        }
        match server.answer(&line) {
            Ok(answer) => writeln!(answers, "{}", format!("ok {answer}").trim_end())?,
            Err(error) => writeln!(answers, "error {}", error.to_string().replace('\n', " "))?,
        }
        answers.flush()?;
    }
    Ok(())
}
