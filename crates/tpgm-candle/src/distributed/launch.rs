//! Where a process stands in its group, as those who start processes say it in environment variables.

use std::str::FromStr;

use super::error::Result;
use super::start::StartProblem;

/// Where a process stands in a group of processes, and where rank 0 awaits the others.
///
/// [`from_env`](Launch::from_env) reads it from what `torchrun`, Slurm's `srun` or a script set. [`exchange`](Launch::exchange)
/// is all that a group does over TCP: rank 0 hands a few bytes to the others, for example the
/// `GroupId` of NCCL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    /// Which rank this is, from 0.
    pub rank: usize,
    /// How many ranks there are.
    pub size: usize,
    /// Which of the ranks on its machine this is, from 0: for the choice of a GPU.
    pub local_rank: usize,
    /// Name or address of the machine of rank 0.
    pub address: String,
    /// The port on which rank 0 listens.
    pub port: u16,
}

/// Sets the port, whatever others say.
const PORT: &str = "TPGM_PORT";

impl Launch {
    /// Reads the variables of this process. `None` if it was started alone.
    ///
    /// | | first | else, under Slurm |
    /// |---|---|---|
    /// | rank | `RANK` | `SLURM_PROCID` |
    /// | ranks | `WORLD_SIZE` | `SLURM_STEP_NUM_TASKS` |
    /// | rank on its machine | `LOCAL_RANK`, `RANK` | `SLURM_LOCALID` |
    /// | machine of rank 0 | `MASTER_ADDR` | the first of `SLURM_STEP_NODELIST` or `SLURM_JOB_NODELIST`, else `SLURM_LAUNCH_NODE_IPADDR` |
    /// | port of rank 0 | `TPGM_PORT`, `MASTER_PORT` | 15000 and the last four digits of `SLURM_JOB_ID` |
    ///
    /// Set `LOCAL_RANK` wherever there is more than one machine: without it, rank 8 of two machines with 8 GPUs each would look for a
    /// ninth. Only what `srun` starts is a rank of Slurm, which sets `SLURM_STEP_NUM_TASKS` there; a batch script itself has
    /// `SLURM_PROCID` and `SLURM_NTASKS`, too, and is alone.
    ///
    /// `torchrun` keeps `MASTER_PORT` for a server of its own, and says so with `TORCHELASTIC_USE_AGENT_STORE=True`: then the
    /// port is the next one. `SLURM_LAUNCH_NODE_IPADDR` is where `srun` was called, which is the machine of rank 0 in a batch
    /// script, and not where `srun` was called on a login node: so it comes last.
    ///
    /// # Errors
    ///
    /// [`Error::Start`](super::Error::Start) that names a variable which is no number, does not fit, or is missing.
    pub fn from_env() -> Result<Option<Self>> {
        Ok(Self::read(&|name| std::env::var(name).ok().filter(|value| !value.is_empty()))?)
    }

    fn read(get: &dyn Fn(&'static str) -> Option<String>) -> Result<Option<Self>, StartProblem> {
        let torch = [get("RANK"), get("WORLD_SIZE")];
        let [rank, size, local] = match &torch {
            [Some(_), Some(_)] => ["RANK", "WORLD_SIZE", "LOCAL_RANK"],
            [Some(_), None] => return Err(unset("RANK", "WORLD_SIZE")),
            [None, Some(_)] => return Err(unset("WORLD_SIZE", "RANK")),
            [None, None] => ["SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID"],
        };
        let Some((given, rank)) = number::<usize>(get, &[rank])? else { return Ok(None) };
        let Some((name, size)) = number::<usize>(get, &[size])? else { return Ok(None) };
        if rank >= size {
            let expected = format!("ranks go from 0, and `{name}` is {size}");
            return Err(StartProblem::Variable { name: given, value: rank.to_string(), expected });
        }
        let local_rank = number(get, &[local])?.map_or(rank, |(_, rank)| rank);
        let hosts = ["SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_LAUNCH_NODE_IPADDR"];
        let host = hosts.iter().find_map(|name| get(name)).and_then(|list| first_host(&list));
        let address = get("MASTER_ADDR").or(host);
        let port = port(get)?;
        let (Some(address), Some(port)) = (&address, port) else {
            let wanted = [("MASTER_ADDR", address.is_none()), ("MASTER_PORT", port.is_none())];
            let missing = wanted.into_iter().filter_map(|(name, missing)| missing.then_some(name)).collect();
            return Err(StartProblem::Unset { given, missing });
        };
        Ok(Some(Self { rank, size, local_rank, address: address.clone(), port }))
    }

    /// The variable that sets the port, for errors.
    pub(super) const PORT: &'static str = PORT;
}

fn unset(given: &'static str, missing: &'static str) -> StartProblem {
    StartProblem::Unset { given, missing: vec![missing] }
}

/// The first of some variables that is set, and its name.
fn number<T: FromStr>(
    get: &dyn Fn(&'static str) -> Option<String>,
    names: &[&'static str],
) -> Result<Option<(&'static str, T)>, StartProblem> {
    let Some((name, value)) = names.iter().find_map(|name| Some((*name, get(name)?))) else {
        return Ok(None);
    };
    match value.trim().parse() {
        Ok(number) => Ok(Some((name, number))),
        Err(_) => {
            let expected = match name {
                PORT | "MASTER_PORT" => "it should be a port, from 1 to 65535",
                _ => "it should be a number, from 0",
            };
            Err(StartProblem::Variable { name, value, expected: expected.to_owned() })
        }
    }
}

fn port(get: &dyn Fn(&'static str) -> Option<String>) -> Result<Option<u16>, StartProblem> {
    if let Some((name, port)) = number::<u16>(get, &[PORT, "MASTER_PORT"])? {
        let taken = name != PORT && get("TORCHELASTIC_USE_AGENT_STORE").as_deref() == Some("True");
        let next = if taken { port.checked_add(1) } else { Some(port) };
        return match next.filter(|_| port > 0) {
            Some(port) => Ok(Some(port)),
            None => {
                let expected = format!("there is no port that ranks could meet at; set `{PORT}`");
                Err(StartProblem::Variable { name, value: port.to_string(), expected })
            }
        };
    }
    Ok(number::<u64>(get, &["SLURM_JOB_ID"])?.map(|(_, job)| 15_000 + (job % 10_000) as u16))
}

/// The first machine of a list as Slurm writes it: `gpu[01-04,07],cpu1` begins with `gpu01`.
fn first_host(list: &str) -> Option<String> {
    let (mut host, mut rest) = (String::new(), list.trim().chars());
    while let Some(c) = rest.next() {
        match c {
            ',' => break,
            '[' => {
                let numbers: Vec<char> = rest.by_ref().take_while(|c| *c != ']').collect();
                host.extend(numbers.iter().take_while(|c| !['-', ','].contains(c)));
            }
            c => host.push(c),
        }
    }
    (!host.is_empty()).then_some(host)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Option<Launch>, StartProblem> {
        Launch::read(&|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn launch(rank: usize, size: usize, local_rank: usize, address: &str, port: u16) -> Option<Launch> {
        Some(Launch { rank, size, local_rank, address: address.to_owned(), port })
    }

    /// What `torchrun` 2.15 sets, without what nobody reads.
    const TORCH: [(&str, &str); 6] = [
        ("RANK", "3"),
        ("WORLD_SIZE", "4"),
        ("LOCAL_RANK", "1"),
        ("MASTER_ADDR", "node7"),
        ("MASTER_PORT", "29511"),
        ("TORCHELASTIC_USE_AGENT_STORE", "True"),
    ];

    #[test]
    fn a_process_that_was_started_alone_is_no_rank() {
        assert_eq!(read(&[]).unwrap(), None);
        assert_eq!(read(&[("MASTER_ADDR", "a"), ("SLURM_JOB_ID", "1")]).unwrap(), None);
        // In a batch script, without `srun`.
        let script =
            [("SLURM_PROCID", "0"), ("SLURM_NTASKS", "8"), ("SLURM_LOCALID", "0"), ("SLURM_JOB_ID", "1")];
        assert_eq!(read(&[&script[..], &[("SLURM_JOB_NODELIST", "gpu[03-04]")]].concat()).unwrap(), None);
    }

    #[test]
    fn variables_of_torchrun() {
        // Its own server has the port itself.
        assert_eq!(read(&TORCH).unwrap(), launch(3, 4, 1, "node7", 29512));
        assert_eq!(read(&TORCH[..5]).unwrap(), launch(3, 4, 1, "node7", 29511));
        let ours = [&TORCH[..], &[("TPGM_PORT", "4000")]].concat();
        assert_eq!(read(&ours).unwrap(), launch(3, 4, 1, "node7", 4000));
        // Under Slurm they come first.
        let both =
            [&TORCH[..], &[("SLURM_PROCID", "0"), ("SLURM_STEP_NUM_TASKS", "1"), ("SLURM_LOCALID", "0")]];
        assert_eq!(read(&both.concat()).unwrap(), launch(3, 4, 1, "node7", 29512));
    }

    #[test]
    fn variables_of_slurm() {
        let slurm = [
            ("SLURM_PROCID", "5"),
            ("SLURM_NTASKS", "16"),
            ("SLURM_STEP_NUM_TASKS", "8"),
            ("SLURM_LOCALID", "1"),
            ("SLURM_JOB_ID", "1234567"),
            ("SLURM_LAUNCH_NODE_IPADDR", "10.0.0.9"),
            ("SLURM_JOB_NODELIST", "login,gpu[03-04]"),
            ("SLURM_STEP_NODELIST", "gpu[03-04,07],cpu1"),
        ];
        assert_eq!(read(&slurm).unwrap(), launch(5, 8, 1, "gpu03", 19567));
        assert_eq!(read(&slurm[..6]).unwrap(), launch(5, 8, 1, "10.0.0.9", 19567));
        let script = [&slurm[..], &[("MASTER_ADDR", "head"), ("MASTER_PORT", "29500")]].concat();
        assert_eq!(read(&script).unwrap(), launch(5, 8, 1, "head", 29500));
    }

    #[test]
    fn lists_of_machines() {
        let cases = [
            ("a", Some("a")),
            ("a1,b2", Some("a1")),
            ("node[07-12]", Some("node07")),
            ("node[3,5-6].x,y", Some("node3.x")),
            ("rack[1-2]n[4-5]", Some("rack1n4")),
            ("", None),
        ];
        for (list, expected) in cases {
            assert_eq!(first_host(list).as_deref(), expected, "{list}");
        }
    }

    #[test]
    fn what_does_not_make_sense_is_named() {
        let fails = |change: &[(&str, &str)], expected: &str| {
            let kept = TORCH.iter().filter(|(name, _)| change.iter().all(|(changed, _)| changed != name));
            let variables: Vec<_> =
                kept.chain(change.iter().filter(|(_, value)| !value.is_empty())).copied().collect();
            let error = read(&variables).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        fails(
            &[("WORLD_SIZE", "")],
            "`RANK` is set, but `WORLD_SIZE` is not; set `WORLD_SIZE` on every rank",
        );
        fails(&[("RANK", "")], "`WORLD_SIZE` is set, but `RANK` is not");
        fails(
            &[("MASTER_ADDR", ""), ("MASTER_PORT", "")],
            "set `MASTER_ADDR` and `MASTER_PORT` on every rank",
        );
        fails(&[("RANK", "one")], "`RANK` is `one`: it should be a number, from 0");
        fails(&[("RANK", "4")], "`RANK` is `4`: ranks go from 0, and `WORLD_SIZE` is 4");
        fails(&[("WORLD_SIZE", "-2")], "`WORLD_SIZE` is `-2`");
        fails(&[("MASTER_PORT", "70000")], "`MASTER_PORT` is `70000`: it should be a port");
        fails(&[("MASTER_PORT", "65535")], "set `TPGM_PORT`");
        fails(&[("TPGM_PORT", "0")], "`TPGM_PORT` is `0`");
    }
}
