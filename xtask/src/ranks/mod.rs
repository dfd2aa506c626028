//! `cargo xtask ranks`: ranks as processes, under Open MPI's `mpirun`.
//!
//! One program, `crates/tpgm-candle/tests/mpi`, is built with the feature `mpi` and started many times: the checks that threads
//! pass, a run that goes on with another number of processes, and processes that are killed at random moments.

mod building;
mod running;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use anyhow::{Context, Result, anyhow, bail, ensure};

use self::building::{Programs, build, lint};
use self::running::Running;
use crate::root;

/// Options of `ranks`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Processes to kill while all take steps, and as many while all save
    #[arg(long, default_value_t = MANY)]
    kills: usize,
    /// Measure in place of all checks: memory, bytes and time of a step, of minilm or vit, on 1, 2 and 4 ranks
    #[arg(long, value_name = "MODEL")]
    measure: Option<String>,
}

/// As many kills as must show something.
const MANY: usize = 20;

/// Starts that run at a time: they wait most of the time.
const AT_A_TIME: usize = 4;

/// Why this cannot run here, if so.
pub(crate) fn missing() -> Result<Option<&'static str>> {
    let says = |program: &str| Command::new(program).arg("--version").stderr(Stdio::null()).output().ok();
    let open_mpi =
        says("mpirun").is_some_and(|output| String::from_utf8_lossy(&output.stdout).contains("Open MPI"));
    if !open_mpi || says("mpicc").is_none() {
        return Ok(Some(
            "no Open MPI (`mpirun`, `mpicc`): on Debian, `apt-get install libopenmpi-dev openmpi-bin`",
        ));
    }
    if !clang() {
        return Ok(Some(
            "no libclang, which the crate `mpi` is built with: on Debian, `apt-get install libclang-dev`",
        ));
    }
    Ok(None)
}

/// Whether libclang is where the crate `mpi` looks for it.
fn clang() -> bool {
    let holds = |folder: &Path| {
        let files = fs::read_dir(folder).into_iter().flatten().filter_map(Result::ok);
        files.map(|file| file.file_name()).any(|name| {
            let name = name.to_string_lossy();
            name.starts_with("libclang.") || name.starts_with("libclang-") && name.contains(".so")
        })
    };
    let versions = fs::read_dir("/usr/lib").into_iter().flatten().filter_map(Result::ok);
    let versions = versions.flat_map(|folder| [folder.path().join("lib"), folder.path()]);
    let usual = ["/usr/lib64", "/usr/local/lib"].map(PathBuf::from);
    env::var_os("LIBCLANG_PATH").is_some() || versions.chain(usual).any(|folder| holds(&folder))
}

/// Builds the program and makes all checks.
///
/// # Errors
///
/// It cannot be built, or a check fails.
pub(crate) fn run(args: &Args) -> Result<()> {
    if let Some(reason) = missing()? {
        println!("skipped: {reason}");
        return Ok(());
    }
    let Programs { ranks: program, library } = &build(args.measure.is_some())?;
    if let Some(model) = &args.measure {
        return measure(program, model);
    }
    lint()?;
    // What no other stage compiles.
    let said = alone(library, &["mpi::"])?;
    ensure!(said.iter().any(|line| line.starts_with("test result: ok.")), "{}", said.join("\n"));
    ensure!(!said.iter().any(|line| line == "running 0 tests"), "no tests of the feature `mpi` were found");
    for ranks in [2, 3] {
        passed(program, ranks, false, &["suite"])?;
    }
    passed(program, 3, true, &["late"])?;
    println!("the checks of threads, on 2 and 3 processes: ok");

    let folder = fresh("anchors")?;
    let lines = passed(program, 2, false, &["anchors", text(&folder)?])?;
    lines.iter().filter(|line| line.contains("anchors of ")).for_each(|line| println!("{line}"));

    let folder = fresh("reshard")?;
    let path = text(&folder)?;
    for (ranks, from) in [(1, "0"), (2, "3"), (3, "6"), (1, "9")] {
        passed(program, ranks, false, &["reshard", path, from])?;
    }
    alone(program, &["compare", path])?;
    println!("a run on 1, 2, 3 and 1 processes, from checkpoint to checkpoint: the bits of one process");

    let kills: Vec<(usize, Kill)> = kills(args.kills).into_iter().enumerate().collect();
    for (what, checks) in [("step", false), ("save", true)] {
        let (begun, mut interrupted, mut calls) = (Instant::now(), 0, 0);
        for some in kills.chunks(AT_A_TIME) {
            let outcomes: Vec<Result<Outcome>> = thread::scope(|scope| {
                let one = |(number, kill): &(usize, Kill)| {
                    let (number, kill) = (*number, *kill);
                    scope.spawn(move || kill.happen(program, what, number, checks))
                };
                let threads: Vec<_> = some.iter().map(one).collect();
                threads.into_iter().map(|one| one.join().map_err(|_| anyhow!("a thread panicked"))?).collect()
            });
            for outcome in outcomes {
                let outcome = outcome?;
                interrupted += usize::from(outcome.interrupted);
                calls += outcome.calls;
            }
        }
        let written =
            if checks { format!(", {interrupted} of them with files half written") } else { String::new() };
        println!(
            "{} processes killed after {calls} {what}s{written}: named by all others, which had changed nothing ({:.0} s)",
            kills.len(),
            begun.elapsed().as_secs_f64()
        );
        // Of a few, none may: only rank 0 has files half written, and not at every moment.
        ensure!(!checks || kills.len() < MANY || interrupted > 0, "no kill hit a save: this shows nothing");
    }
    Ok(())
}

/// An empty folder in the target folder.
fn fresh(name: &str) -> Result<PathBuf> {
    let folder = root()?.join("target/ranks").join(name);
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove `{}`", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot create `{}`", folder.display()))?;
    Ok(folder)
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().with_context(|| format!("`{}` is not Unicode", path.display()))
}

/// A start of the program on some ranks; with `survive`, those that are left when one is killed live on.
fn mpirun(program: &Path, ranks: usize, survive: bool, args: &[&str]) -> Command {
    let mut command = Command::new("mpirun");
    command.args(["--oversubscribe", "--allow-run-as-root", "--bind-to", "none"]);
    if survive {
        command.arg("--enable-recovery");
    }
    command.args(["-n", &ranks.to_string()]).arg(program).args(args);
    // Ranks have the processors in common. Reading each other's memory takes a permission that containers seldom have.
    command.env("RAYON_NUM_THREADS", "1").env("OMPI_MCA_btl_vader_single_copy_mechanism", "none");
    command
}

/// Starts the program on some ranks, all of which must say that they got through. Returns what they said.
fn passed(program: &Path, ranks: usize, survive: bool, args: &[&str]) -> Result<Vec<String>> {
    let (lines, success) = Running::start(mpirun(program, ranks, survive, args))?.end()?;
    let all = (0..ranks).all(|rank| lines.contains(&format!("rank {rank} passed")));
    ensure!(success && all, "`{}` on {ranks} ranks failed:\n{}", args.join(" "), lines.join("\n"));
    Ok(lines)
}

/// Starts the program without ranks, and returns what it says.
fn alone(program: &Path, args: &[&str]) -> Result<Vec<String>> {
    let mut command = Command::new(program);
    command.args(args);
    let (lines, success) = Running::start(command)?.end()?;
    ensure!(success, "`{}` failed:\n{}", args.join(" "), lines.join("\n"));
    Ok(lines)
}

/// Which process of how many is killed, and when.
#[derive(Debug, Clone, Copy)]
struct Kill {
    ranks: usize,
    victim: usize,
    delay: Duration,
    /// It is stopped first: it lives and says nothing, as one on a machine that is gone.
    stopped: bool,
}

/// The same in every run, and in no rhythm with steps or saves.
fn kills(count: usize) -> Vec<Kill> {
    let mut random = 12_345u32;
    let mut next = |below: u32| {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // From the high bits: the low ones repeat soon.
        ((u64::from(random) * u64::from(below)) >> 32) as u32
    };
    let kill = |i: usize| {
        let ranks = 2 + i % 2;
        let victim = next(ranks as u32) as usize;
        let delay = Duration::from_micros(u64::from(next(100_000)));
        Kill { ranks, victim, delay, stopped: i % 10 == 9 }
    };
    (0..count).map(kill).collect()
}

/// What became of it.
struct Outcome {
    /// Calls that were over when it happened.
    calls: u64,
    /// Files were half written.
    interrupted: bool,
}

impl Kill {
    fn happen(self, program: &Path, what: &str, number: usize, checks: bool) -> Result<Outcome> {
        let folder = fresh(&format!("{what}-{number}"))?;
        let path = text(&folder)?;
        let mut running = Running::start(mpirun(program, self.ranks, true, &[what, path]))?;
        let mut processes = vec![None; self.ranks];
        while processes.contains(&None) {
            let Some(line) = running.line()? else {
                bail!("{self:?}: it ended by itself:\n{}", running.seen.join("\n"))
            };
            if let Some((rank, process)) = ready(&line) {
                processes[rank] = Some(process);
            }
        }
        thread::sleep(self.delay);
        let process = processes[self.victim].expect("all are known").to_string();
        let signal = |signal: &str| -> Result<()> {
            let sent =
                Command::new("kill").args([signal, &process]).status().context("cannot start `kill`")?;
            ensure!(sent.success(), "{self:?}: process {process} is not there");
            Ok(())
        };
        signal(if self.stopped { "-STOP" } else { "-KILL" })?;
        if self.stopped {
            while survivors(&running.seen, self.ranks, self.victim, self.stopped).is_err()
                && running.line()?.is_some()
            {}
            signal("-KILL")?;
        }
        let (lines, _) = running.end()?;
        let calls = survivors(&lines, self.ranks, self.victim, self.stopped)
            .with_context(|| format!("{what} {number}, {self:?}:\n{}", lines.join("\n")))?;
        let mut interrupted = false;
        if checks {
            let said = alone(program, &["check", path, &self.ranks.to_string()])?;
            interrupted = said.iter().any(|line| line.ends_with("interrupted true"));
        }
        fs::remove_dir_all(&folder).with_context(|| format!("cannot remove `{path}`"))?;
        Ok(Outcome { calls, interrupted })
    }
}

/// A rank that may be killed now, and its process.
fn ready(line: &str) -> Option<(usize, u32)> {
    let (rank, process) = line.strip_prefix("rank ")?.split_once(" pid ")?;
    Some((rank.parse().ok()?, process.parse().ok()?))
}

/// Makes sure that all ranks but one named that one, as gone or silent, after the same number of calls, which it returns.
fn survivors(lines: &[String], ranks: usize, victim: usize, stopped: bool) -> Result<u64> {
    let mut calls = Vec::new();
    for rank in (0..ranks).filter(|rank| *rank != victim) {
        let start = format!("rank {rank} after ");
        let said = lines.iter().find_map(|line| line.strip_prefix(&start));
        let said = said.with_context(|| format!("rank {rank} said nothing"))?;
        let what = if stopped { "did not answer within " } else { "has left the group" };
        ensure!(said.contains(&format!(": rank {victim} {what}")), "rank {rank} named somebody else");
        let count = said.split(' ').next().and_then(|count| count.parse::<u64>().ok());
        calls.push(count.with_context(|| format!("rank {rank} does not say when"))?);
    }
    ensure!(
        calls.iter().all(|count| *count == calls[0]),
        "the ranks did not stop at the same call: {calls:?}"
    );
    Ok(calls[0])
}

/// Prints what ranks need and send for a step.
fn measure(program: &Path, model: &str) -> Result<()> {
    for (ranks, kind) in [1, 2, 4]
        .into_iter()
        .flat_map(|ranks| ["whole/f32", "divided/f32", "divided/bf16"].map(|kind| (ranks, kind)))
    {
        let command = mpirun(program, ranks, false, &["speed", &format!("{model}/{kind}")]);
        let (lines, _) = Running::start(command)?.end()?;
        let said: Vec<&String> = lines.iter().filter(|line| line.contains("s per step")).collect();
        ensure!(said.len() == ranks, "{}", lines.join("\n"));
        said.iter().for_each(|line| println!("{line}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(said: &[&str]) -> Vec<String> {
        said.iter().map(|line| (*line).to_owned()).collect()
    }

    #[test]
    fn survivors_must_name_the_victim_after_the_same_call() {
        let error = "there was an error: rank 1 did not answer within 15s; nothing was changed";
        let said =
            |a: &str, b: &str| lines(&["noise", &format!("rank 0 after {a}"), &format!("rank 2 after {b}")]);
        let both = said(&format!("7 steps: {error}"), &format!("7 steps: {error}"));
        assert_eq!(survivors(&both, 3, 1, true).unwrap(), 7);
        assert!(survivors(&both, 3, 2, true).is_err() && survivors(&both, 3, 1, false).is_err());
        assert!(survivors(&both[..2], 3, 1, true).is_err());
        assert!(
            survivors(&said(&format!("7 steps: {error}"), &format!("8 steps: {error}")), 3, 1, true).is_err()
        );
        assert!(
            survivors(&said(&format!("7 steps: {error}"), "7 steps: out of memory"), 3, 1, true).is_err()
        );
    }

    #[test]
    fn a_rank_is_ready_when_it_tells_its_process() {
        assert_eq!(ready("rank 2 pid 4711"), Some((2, 4711)));
        assert!(ready("rank 2 passed").is_none() && ready("pid 4711").is_none());
    }

    #[test]
    fn every_rank_is_killed_in_some_run() {
        let kills = kills(20);
        for (ranks, victim) in [(2, 0), (2, 1), (3, 0), (3, 1), (3, 2)] {
            assert!(kills.iter().any(|kill| kill.ranks == ranks && kill.victim == victim));
        }
    }
}
