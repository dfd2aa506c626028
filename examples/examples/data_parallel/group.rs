//! How the ranks of a run come about: as threads of one process, or as processes that somebody started.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use candle_core::{Device, Tensor};
use tpgm_candle::distributed::{Communicator, InProcess, Launch};
use tpgm_examples::device::Place;

/// A rank before it begins: made in its own thread, because the ends of a group of GPUs wait for each other.
pub(crate) type Member = Box<dyn FnOnce() -> Result<Worker> + Send>;

/// A rank at work.
pub(crate) struct Worker {
    pub(crate) device: Device,
    pub(crate) communicator: Arc<dyn Communicator>,
}

/// The ranks of this process.
pub(crate) enum Group {
    /// All of them, as threads, and why they are not on GPUs if nobody asked.
    Threads(Vec<Member>, Option<String>),
    /// One of several processes.
    Process(Worker),
}

/// What MPI's starters set: Open MPI, PMIx, and those of MPICH's family.
const STARTED_BY_MPI: [&str; 3] = ["OMPI_COMM_WORLD_SIZE", "PMIX_RANK", "PMI_RANK"];

/// The ranks that were started, else as many threads as were asked for.
pub(crate) fn start(ranks: Option<usize>, place: Option<Place>) -> Result<Group> {
    let by_mpi = STARTED_BY_MPI.into_iter().find(|name| std::env::var_os(name).is_some());
    let launch = Launch::from_env()?.filter(|launch| launch.size > 1);
    let worker = match (by_mpi, launch) {
        (Some(by), launch) if cfg!(feature = "mpi") => Some(of_mpi(by, launch, place)?),
        (_, Some(launch)) => Some(of_launch(&launch, place)?),
        (Some(by), None) => bail!(
            "`{by}` says that MPI started this, and it was built without the feature `mpi`: every process would train alone; \
             build it with `--features mpi`, which takes an MPI library and libclang"
        ),
        (None, None) => None,
    };
    match worker {
        Some(worker) => {
            let size = worker.communicator.size();
            ensure!(
                ranks.is_none_or(|ranks| ranks == size),
                "--ranks is for threads, and there are {size} processes: leave it out"
            );
            Ok(Group::Process(worker))
        }
        None => threads(ranks.unwrap_or(2), place),
    }
}

/// Members where they were asked for, or on a GPU each if there are enough of them, else on the CPU.
fn threads(ranks: usize, place: Option<Place>) -> Result<Group> {
    let why = match place {
        Some(Place::Cpu) => None,
        Some(Place::Cuda(first)) => {
            let members = gpus(ranks, first).with_context(|| format!("--device cuda:{first}"))?;
            return Ok(Group::Threads(members, None));
        }
        None => match gpus(ranks, 0) {
            Ok(members) => return Ok(Group::Threads(members, None)),
            Err(error) => Some(format!("ranks are threads on the CPU: {error:#}")),
        },
    };
    let member = |end: InProcess| -> Member {
        Box::new(move || Ok(Worker { device: Device::Cpu, communicator: Arc::new(end) }))
    };
    Ok(Group::Threads(InProcess::group(ranks).into_iter().map(member).collect(), why))
}

/// A process that MPI started: on the CPU, or on a GPU if one was asked for, and then through NCCL if this was built with it.
#[cfg(feature = "mpi")]
fn of_mpi(by: &str, launch: Option<Launch>, place: Option<Place>) -> Result<Worker> {
    let communicator = Arc::new(tpgm_candle::distributed::Mpi::world()?);
    // Other numbers than one need not be the same: what starts a group may itself be started by Slurm.
    if let Some(launch) = &launch {
        ensure!(
            communicator.size() > 1,
            "`{by}` is set and there are {} processes, but MPI knows of one: start them with what belongs to this MPI library; \
             with Slurm, `srun --mpi=pmix`",
            launch.size
        );
    }
    match place {
        None | Some(Place::Cpu) => Ok(Worker { device: Device::Cpu, communicator }),
        Some(Place::Cuda(first)) => {
            let variable =
                std::env::var("OMPI_COMM_WORLD_LOCAL_RANK").ok().and_then(|rank| rank.parse().ok());
            let here = variable.or(launch.map(|launch| launch.local_rank)).unwrap_or(communicator.rank());
            let device = Place::Cuda(first + here).open()?;
            #[cfg(feature = "nccl")]
            let communicator = Arc::new(tpgm_candle::distributed::Nccl::among(&device, &*communicator)?);
            Ok(Worker { device, communicator })
        }
    }
}

#[cfg(not(feature = "mpi"))]
fn of_mpi(_: &str, _: Option<Launch>, _: Option<Place>) -> Result<Worker> {
    bail!("built without the feature `mpi`")
}

/// A process that `torchrun`, Slurm or a script started: on a GPU.
#[cfg(feature = "nccl")]
fn of_launch(launch: &Launch, place: Option<Place>) -> Result<Worker> {
    let first = match place {
        Some(Place::Cpu) => bail!(on_the_cpu(launch)),
        Some(Place::Cuda(first)) => first,
        None => 0,
    };
    let device = Place::Cuda(first + launch.local_rank).open()?;
    let timeout = std::time::Duration::from_secs(600);
    let communicator = Arc::new(tpgm_candle::distributed::Nccl::launch(&device, launch, timeout)?);
    Ok(Worker { device, communicator })
}

#[cfg(not(feature = "nccl"))]
fn of_launch(launch: &Launch, _: Option<Place>) -> Result<Worker> {
    bail!(on_the_cpu(launch))
}

fn on_the_cpu(launch: &Launch) -> String {
    format!(
        "this is process {} of {}, as its environment says, and what connects such processes is NCCL, on GPUs: build it with \
         `--features nccl`, and leave out --device cpu. On the CPU that takes MPI: build it with `--features mpi` and start it with \
         `mpirun` or `srun --mpi=pmix`",
        launch.rank, launch.size
    )
}

/// Members on GPUs that follow each other.
#[cfg(feature = "nccl")]
fn gpus(ranks: usize, first: usize) -> Result<Vec<Member>> {
    use tpgm_candle::distributed::{GroupId, Nccl};
    let devices = (first..first + ranks).map(|number| Place::Cuda(number).open());
    let devices = devices.collect::<Result<Vec<_>>>().with_context(|| format!("no {ranks} GPUs"))?;
    let id = GroupId::new()?;
    let member = |(rank, device): (usize, Device)| -> Member {
        Box::new(move || {
            let communicator = Arc::new(Nccl::new(&device, rank, ranks, id)?);
            Ok(Worker { device, communicator })
        })
    };
    Ok(devices.into_iter().enumerate().map(member).collect())
}

/// There are none.
#[cfg(not(feature = "nccl"))]
fn gpus(_: usize, _: usize) -> Result<Vec<Member>> {
    bail!(
        "built without the feature `nccl`; build it with `--features nccl`, which takes the CUDA toolkit and NCCL"
    )
}

impl Worker {
    /// The numbers of all ranks, which each gives as many of.
    pub(crate) fn numbers_of_all(&self, own: &[f64]) -> Result<Vec<Vec<f64>>> {
        let ranks = self.communicator.size();
        let rows = (0..ranks).map(|_| Tensor::new(own, &self.device)).collect::<Result<Vec<_>, _>>()?;
        let named: Vec<(&str, &Tensor)> = rows.iter().map(|row| ("numbers of a rank", row)).collect();
        self.communicator.share(&named, &(0..ranks).collect::<Vec<_>>())?;
        Ok(rows.iter().map(Tensor::to_vec1).collect::<Result<_, _>>()?)
    }
}
