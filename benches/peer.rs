//! Others' code in child processes that answer one line per command, so that their rounds can be interleaved with ours.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use tpgm_core::{DType, TensorSpec};

use crate::Timing;

// Parts of the program, so that a copy of the binary needs no copy of the repository.
/// Rounds of optimizers and projections.
const ROUNDS: &str =
    concat!(include_str!("peers/torch_common.py"), "\n\n", include_str!("peers/torch_peer.py"));
/// Training steps.
const TRAINING: &str = concat!(
    include_str!("peers/torch_common.py"),
    "\n\n",
    include_str!("peers/torch_networks.py"),
    "\n\n",
    include_str!("peers/torch_training.py")
);

/// How to start PyTorch.
#[derive(Debug, Clone)]
pub struct TorchOptions {
    /// A Python interpreter with PyTorch.
    pub python: PathBuf,
    /// Checkout of the published FTP code (`GT-RIPL/FTP`).
    pub ftp: Option<PathBuf>,
    /// Checkout of the published TPGM code (`PotatoTian/TPGM`).
    pub tpgm: Option<PathBuf>,
    /// Threads for PyTorch on the host.
    pub threads: usize,
    /// Where it works, as PyTorch names it: `cpu`, `cuda:0`.
    pub device: String,
    /// Element type of weights, gradients and anchors. PyTorch keeps the state of an optimizer in the same type: see
    /// [`Peers::label`].
    pub dtype: DType,
}

impl TorchOptions {
    /// An interpreter that runs `program`.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(&self.python);
        command
            .args(["-u", "-c", program, "--threads", &self.threads.to_string()])
            .env("OMP_NUM_THREADS", self.threads.to_string());
        for (name, path) in [("--ftp", &self.ftp), ("--tpgm", &self.tpgm)] {
            if let Some(path) = path {
                command.arg(name).arg(path);
            }
        }
        command
    }
}

/// What a child's allocator does with freed memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// As it is: the C library of Linux hands large blocks back to the system.
    AsIs,
    /// It is kept for the next tensor.
    Kept,
}

impl Memory {
    /// Sets the environment of a child.
    fn set(self, command: &mut Command) {
        match self {
            Memory::AsIs => KEEP_MEMORY.iter().for_each(|(name, _)| {
                command.env_remove(name);
            }),
            Memory::Kept => drop(command.envs(KEEP_MEMORY)),
        }
    }
}

/// The names of peers whose allocator keeps memory end in this.
pub const KEPT: &str = "_kept";
/// The names of copies of this program whose allocator is as it is end in this.
pub const AS_IS: &str = "_as_is";

/// For the C library of Linux.
const KEEP_MEMORY: [(&str, &str); 3] = [
    ("MALLOC_MMAP_THRESHOLD_", "1073741824"),
    ("MALLOC_TRIM_THRESHOLD_", "17179869184"),
    ("MALLOC_TOP_PAD_", "67108864"),
];

/// What the child says about itself.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Hello {
    /// `torch` or `candle`.
    pub program: String,
    /// Its version.
    pub version: String,
    /// Threads it uses.
    pub threads: usize,
    /// Name of the device it works on.
    pub device: String,
    /// Names of the peers it can run.
    pub peers: Vec<String>,
}

/// The running child. It ends when this is dropped.
#[derive(Debug)]
pub struct Peers {
    child: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    hello: Hello,
}

impl Peers {
    /// Starts candle's own optimizers, the program `benches/peers/candle`, with so many threads, and gives it the shapes of
    /// `tensors`.
    ///
    /// # Errors
    ///
    /// If the program does not start.
    pub fn candle(program: &Path, memory: Memory, threads: usize, tensors: &[TensorSpec]) -> Result<Self> {
        let mut command = Command::new(program);
        for variable in ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"] {
            command.env(variable, threads.to_string());
        }
        memory.set(&mut command);
        if memory == Memory::Kept {
            command.args(["--suffix", KEPT]);
        }
        Self::from_command(command, program)?.with_tensors(tensors)
    }

    /// Starts PyTorch and gives it the shapes of `tensors`.
    ///
    /// # Errors
    ///
    /// If the interpreter does not start, has no PyTorch, or a checkout lacks the expected file.
    pub fn torch(options: &TorchOptions, tensors: &[TensorSpec]) -> Result<Self> {
        let mut command = options.command(ROUNDS);
        command.args(["--device", &options.device, "--dtype", options.dtype.name()]);
        Self::from_command(command, &options.python)?.with_tensors(tensors)
    }

    /// Starts PyTorch for training steps of one of the networks that `torch_networks.py` knows, in f32, from the weights of a
    /// safetensors file, whose path has no spaces.
    ///
    /// # Errors
    ///
    /// As [`Peers::torch`], or it does not know the network.
    pub fn training(options: &TorchOptions, network: &str, weights: &Path) -> Result<Self> {
        let mut command = options.command(TRAINING);
        command.args(["--device", &options.device]);
        let mut peers = Self::from_command(command, &options.python)?;
        peers.ask(&format!("network {network} {}", weights.display()))?;
        Ok(peers)
    }

    /// Starts a copy of this program for training steps of a network on a device, with an allocator of its own.
    ///
    /// # Errors
    ///
    /// If it does not start, or does not know the network.
    pub fn copy(memory: Memory, threads: usize, device: &str, network: &str) -> Result<Self> {
        let program = std::env::current_exe()?;
        let (mut command, threads) = (Command::new(&program), threads.to_string());
        let suffix = match memory {
            Memory::AsIs => AS_IS,
            Memory::Kept => KEPT,
        };
        // With this variable it does not start itself anew.
        command
            .args(["--serve", suffix, "--threads", &threads, "--device", device])
            .env("CANDLE_NUM_THREADS", &threads);
        memory.set(&mut command);
        let mut peers = Self::from_command(command, &program)?;
        peers.ask(&format!("network {network}"))?;
        Ok(peers)
    }

    fn with_tensors(mut self, tensors: &[TensorSpec]) -> Result<Self> {
        let shapes: Vec<_> = tensors.iter().map(shape_word).collect();
        self.ask(&format!("shapes {}", shapes.join(" ")))?;
        Ok(self)
    }

    fn from_command(mut command: Command, program: &Path) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start `{}`", program.display()))?;
        let commands = child.stdin.take();
        let Some(answers) = child.stdout.take() else {
            bail!("the peer process has no standard output");
        };
        let mut peers = Self {
            child,
            commands,
            answers: BufReader::new(answers),
            hello: Hello {
                program: String::new(),
                version: String::new(),
                threads: 0,
                device: String::new(),
                peers: Vec::new(),
            },
        };
        peers.hello = serde_json::from_str(&peers.ask("hello")?).context("the peer's answer to `hello`")?;
        Ok(peers)
    }

    /// What the child said about itself.
    pub fn hello(&self) -> &Hello {
        &self.hello
    }

    /// Its process number.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// What rows call a peer. With weights in half precision PyTorch and the published code keep moments in half precision, too,
    /// and no masters: they do less than we do, and their names say so. Peers with `masters` in their name do the same as we do.
    pub fn label(peer: &str, dtype: DType) -> String {
        let has_state = peer.starts_with("torch_") || peer.starts_with("ftp_");
        if dtype.is_half() && has_state && !peer.contains("masters") {
            return format!("{peer} ({dtype} moments, no masters)");
        }
        peer.to_owned()
    }

    /// Makes the state of one peer.
    ///
    /// # Errors
    ///
    /// What the child reports, for example an unknown name.
    pub fn prepare(&mut self, peer: &str) -> Result<()> {
        self.ask(&format!("prepare {peer}")).map(drop)
    }

    /// Runs one round of a prepared peer and returns its seconds and, on a device, those of the host.
    ///
    /// # Errors
    ///
    /// What the child reports, or that it ended.
    pub fn run(&mut self, peer: &str) -> Result<Timing> {
        match self.numbers("run", peer)?[..] {
            [seconds] => Ok(Timing { seconds, host: None }),
            [seconds, host] => Ok(Timing { seconds, host: Some(host) }),
            ref others => bail!("peer `{peer}` answered {} numbers, not its seconds", others.len()),
        }
    }

    /// The losses of a prepared peer's batch without dropout: at first, and after the one step that preparing it has taken.
    ///
    /// # Errors
    ///
    /// What the child reports, or another number of losses.
    pub fn losses(&mut self, peer: &str) -> Result<[f64; 2]> {
        let losses = self.numbers("losses", peer)?;
        let found = losses.len();
        losses.try_into().ok().with_context(|| format!("peer `{peer}` answered {found} losses, not 2"))
    }

    /// Runs one round of a prepared peer and returns the seconds of its parts.
    ///
    /// # Errors
    ///
    /// What the child reports, another number of parts, or that it ended.
    pub fn run_parts<const N: usize>(&mut self, peer: &str) -> Result<[f64; N]> {
        let parts = self.numbers("run", peer)?;
        let found = parts.len();
        parts.try_into().ok().with_context(|| format!("peer `{peer}` answered {found} numbers, not {N}"))
    }

    /// Runs one round of a prepared peer that waits for its device at the end only, and returns its seconds.
    ///
    /// # Errors
    ///
    /// What the child reports, or that it ended.
    pub fn run_whole(&mut self, peer: &str) -> Result<f64> {
        match self.numbers("whole", peer)?[..] {
            [seconds] => Ok(seconds),
            ref others => bail!("peer `{peer}` answered {} numbers, not its seconds", others.len()),
        }
    }

    fn numbers(&mut self, command: &str, peer: &str) -> Result<Vec<f64>> {
        let answer = self.ask(&format!("{command} {peer}"))?;
        let numbers: Option<_> = answer.split_whitespace().map(|word| word.parse().ok()).collect();
        numbers.with_context(|| format!("peer `{peer}` answered `{answer}`"))
    }

    /// Frees the state of one peer.
    ///
    /// # Errors
    ///
    /// What the child reports.
    pub fn drop_peer(&mut self, peer: &str) -> Result<()> {
        self.ask(&format!("drop {peer}")).map(drop)
    }

    fn ask(&mut self, command: &str) -> Result<String> {
        let word = command.split_whitespace().next().unwrap_or_default();
        if let Some(commands) = &mut self.commands {
            // A child that has ended is noticed by its missing answer, which comes with a better message.
            let _ = writeln!(commands, "{command}").and_then(|()| commands.flush());
        }
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        if line.is_empty() {
            let status = self.child.wait()?;
            bail!("the peer process ended ({status}) at `{word}`; its messages are above");
        }
        let line = line.trim_end();
        match line.split_once(' ').unwrap_or((line, "")) {
            ("ok", answer) => Ok(answer.to_owned()),
            ("error", message) => bail!("peer, at `{}`: {message}", command_head(command)),
            _ => bail!("the peer process answered `{line}` to `{word}`"),
        }
    }
}

impl Drop for Peers {
    fn drop(&mut self) {
        // End of input makes it leave its loop.
        self.commands = None;
        let _ = self.child.wait();
    }
}

/// The first two words: enough to say what went wrong, without 150 shapes.
fn command_head(command: &str) -> String {
    command.split_whitespace().take(2).collect::<Vec<_>>().join(" ")
}

fn shape_word(spec: &TensorSpec) -> String {
    if spec.shape.is_empty() {
        return "scalar".to_owned();
    }
    let dims: Vec<_> = spec.shape.iter().map(usize::to_string).collect();
    dims.join("x")
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use crate::Model;

    fn shell(script: &str) -> Result<Peers> {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Peers::from_command(command, Path::new("sh"))?.with_tensors(&Model::ResNet50.tensors(DType::F32))
    }

    const HELLO: &str = r#"read l; echo 'ok {"program": "torch", "version": "9.9", "threads": 2, "device": "d", "peers": ["p"]}'; "#;

    #[test]
    fn shapes_and_rounds_go_over_the_pipe() {
        let script = format!(
            "{HELLO} read word first rest; case $word-$first in shapes-64x3x7x7) echo ok;; *) echo error $first;; esac
             read l; echo ok
             read word name; [ \"$word $name\" = 'run p' ] && echo ok 0.25
             read l; echo ok 0.5 1.5
             read l; echo ok 0.5 1.5
             read word name; [ \"$word $name\" = 'whole p' ] && echo ok 4
             read l; echo ok 1 2 3
             read l; echo ok 0.5 x
             read l; echo error 'KeyError: q'
             cat > /dev/null"
        );
        let mut peers = shell(&script).unwrap();
        assert_eq!(peers.hello().peers, ["p"]);
        peers.prepare("p").unwrap();
        assert_eq!(peers.run("p").unwrap(), Timing { seconds: 0.25, host: None });
        assert_eq!(peers.run("p").unwrap(), Timing { seconds: 0.5, host: Some(1.5) });
        assert_eq!(peers.run_parts("p").unwrap(), [0.5, 1.5]);
        assert_eq!(peers.run_whole("p").unwrap(), 4.0);
        let error = peers.run("p").unwrap_err().to_string();
        assert_eq!(error, "peer `p` answered 3 numbers, not its seconds");
        let error = peers.run_parts::<3>("p").unwrap_err().to_string();
        assert_eq!(error, "peer `p` answered `0.5 x`");
        let error = peers.prepare("q").unwrap_err().to_string();
        assert_eq!(error, "peer, at `prepare q`: KeyError: q");
    }

    #[test]
    fn a_child_that_ends_or_babbles_is_an_error() {
        let error = shell("exit 3").unwrap_err().to_string();
        assert!(error.contains("ended") && error.contains("`hello`"), "{error}");
        let error = shell(&format!("{HELLO} read l; echo Traceback")).unwrap_err().to_string();
        assert!(error.contains("Traceback") && error.contains("`shapes`"), "{error}");
        let missing = TorchOptions {
            python: "no-such-interpreter".into(),
            ftp: None,
            tpgm: None,
            threads: 1,
            device: "cpu".into(),
            dtype: DType::F32,
        };
        let error = Peers::torch(&missing, &[]).unwrap_err().to_string();
        assert!(error.contains("no-such-interpreter"), "{error}");
        let error =
            Peers::candle(Path::new("no-such-program"), Memory::AsIs, 1, &[]).unwrap_err().to_string();
        assert!(error.contains("no-such-program"), "{error}");
    }

    #[test]
    fn names_say_what_half_precision_leaves_out() {
        let label = |peer| Peers::label(peer, DType::BF16);
        assert_eq!(label("torch_adamw_fused_graph"), "torch_adamw_fused_graph (bf16 moments, no masters)");
        assert_eq!(label("ftp_adamp"), "ftp_adamp (bf16 moments, no masters)");
        for peer in ["torch_adamw_fused_masters_graph", "tpgm_project_l2"] {
            assert_eq!(label(peer), peer);
        }
        assert_eq!(Peers::label("torch_adamw_fused", DType::F32), "torch_adamw_fused");
    }

    #[test]
    fn shapes_are_written_as_words() {
        let spec =
            |shape: &[usize]| TensorSpec { name: "t".into(), shape: shape.to_vec(), dtype: DType::F32 };
        assert_eq!(shape_word(&spec(&[1, 197, 768])), "1x197x768");
        assert_eq!(shape_word(&spec(&[])), "scalar");
    }
}
