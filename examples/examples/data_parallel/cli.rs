//! The command line, and what each rank does.

use std::collections::BTreeMap;
use std::f64::consts::TAU;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::thread;

use anyhow::{Context, Result, anyhow, ensure};
use candle_core::{DType, Device, DeviceLocation, Module, Tensor, Var};
use clap::Parser;
use tpgm_candle::core::{AdamW, Ftp};
use tpgm_candle::{Param, Params, RobustOptimizer, nn};
use tpgm_examples::device::Place;
use tpgm_examples::progress::Progress;
use tpgm_examples::table::Table;

use crate::group::{self, Group, Worker};

/// Fine-tunes a small network on several ranks and shows that all end with the same weights.
#[derive(Debug, Parser)]
#[command(name = "data_parallel", version)]
pub(crate) struct Args {
    /// Ranks, one thread each, where no processes were started as ranks [default: 2]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=64))]
    ranks: Option<u32>,
    /// Samples per step on all ranks together, a multiple of their number
    #[arg(long, default_value_t = 192)]
    batch: usize,
    /// Where ranks train: cpu; cuda for a GPU each, of which cuda:1 leaves out the first [default: GPUs if there are enough; cpu under MPI]
    #[arg(long, value_name = "DEVICE")]
    device: Option<Place>,
    /// Divide the optimizer's state between the ranks
    #[arg(long)]
    divide_state: bool,
    /// Steps of fine-tuning, and of pre-training [default: 200, with --quick 20]
    #[arg(long)]
    steps: Option<usize>,
    /// Few steps, to see that it works (a second)
    #[arg(long)]
    quick: bool,
}

impl Args {
    fn steps(&self) -> usize {
        self.steps.unwrap_or(if self.quick { 20 } else { 200 })
    }
}

/// Arms of the spiral, which are the classes.
const ARMS: usize = 3;
/// Widths of the layers.
const SIZES: [usize; 4] = [2, 64, 64, ARMS];
/// How far the arms of the new task are turned from those of pre-training.
const TURN: f64 = 0.4;

/// Fine-tunes and shows what came of it.
///
/// # Errors
///
/// Options that do not fit, or what a rank could not do.
pub(crate) fn run(args: &Args, progress: &Progress) -> Result<()> {
    let group = group::start(args.ranks.map(|ranks| ranks as usize), args.device)?;
    let (ranks, first) = match &group {
        Group::Threads(members, _) => (members.len(), true),
        Group::Process(worker) => (worker.communicator.size(), worker.communicator.rank() == 0),
    };
    ensure!(
        args.batch > 0 && args.batch.is_multiple_of(ranks),
        "--batch {} is not a multiple of {ranks} ranks: the mean of their means would not be that of the batch",
        args.batch
    );
    ensure!(args.steps() > 0, "--steps is 0: there is nothing to show");
    let line = |text: String| {
        if first {
            progress.line(text);
        }
    };
    let start = pretrain(args)?;
    line(format!("pre-trained; fine-tuning on {ranks} ranks"));
    let done: Vec<Result<Rank>> = match group {
        Group::Process(worker) => worker.train_as_one(args, &start)?.into_iter().map(Ok).collect(),
        Group::Threads(members, why) => {
            why.into_iter().for_each(line);
            let start = &start;
            thread::scope(|scope| {
                let member = |member: group::Member| scope.spawn(move || member()?.train(args, start));
                let threads: Vec<_> = members.into_iter().map(member).collect();
                let join = |thread: thread::ScopedJoinHandle<'_, _>| {
                    thread.join().map_err(|_| anyhow!("a rank panicked"))?
                };
                threads.into_iter().map(join).collect()
            })
        }
    };

    let mut table = Table::new(["rank", "device", "samples", "state", "its loss", "mean loss", "weights"]);
    let mut hashes = Vec::new();
    for (number, rank) in done.into_iter().enumerate() {
        let rank = rank.with_context(|| format!("rank {number}"))?;
        let loss = |x: f64| format!("{x:.6}");
        let samples = (args.batch / ranks * args.steps()).to_string();
        let state = format!("{:.1} kB", rank.state as f64 / 1e3);
        let device = format!("{:?}", rank.device);
        let cells = [number.to_string(), device, samples, state, loss(rank.own), loss(rank.mean)];
        table.rows.push(cells.into_iter().chain([format!("{:016x}", rank.hash)]).collect());
        hashes.push(rank.hash);
    }
    line(table.text());
    ensure!(hashes.iter().all(|hash| *hash == hashes[0]), "the ranks have different weights");
    line("all ranks have the same weights".to_owned());
    Ok(())
}

/// What a rank has done.
struct Rank {
    device: DeviceLocation,
    /// Bytes of the optimizer's state.
    state: usize,
    own: f64,
    mean: f64,
    hash: u64,
}

impl Worker {
    /// Fine-tunes on this rank's part of every batch.
    fn train(&self, args: &Args, start: &BTreeMap<String, Tensor>) -> Result<Rank> {
        let Self { device, communicator } = self;
        let param = |(name, value): (&String, &Tensor)| -> Result<Param> {
            Ok(Param::anchored_here(name, Var::from_tensor(&value.to_device(device)?.copy()?)?)?)
        };
        let params = Params::from_params(start.iter().map(param).collect::<Result<Vec<_>>>()?)?;
        let builder = RobustOptimizer::builder(&params)
            .rule(AdamW::default().lr(3e-3))
            .constraint(Ftp::default())
            .communicator(communicator.clone());
        let mut optimizer = if args.divide_state { builder.divide_state() } else { builder }.build()?;
        let mut last = None;
        for step in 0..args.steps() {
            let part = (0..args.batch).skip(communicator.rank()).step_by(communicator.size());
            let samples = part.map(|i| step * args.batch + i).collect::<Vec<_>>();
            let loss = loss(&params, &samples, TURN, device)?;
            optimizer.backward_step(&loss)?;
            last = Some(loss.detach());
        }
        let loss = last.context("no step")?;
        let mean = loss.copy()?;
        communicator.all_reduce_mean(&[("loss", &mean)])?;
        let number = |loss: Tensor| -> Result<f64> { Ok(loss.to_dtype(DType::F64)?.to_scalar()?) };
        let place = device.location();
        let state = optimizer.state()?.values().map(|slot| slot.len() * slot.dtype().size()).sum();
        Ok(Rank { device: place, state, own: number(loss)?, mean: number(mean)?, hash: hash(&params)? })
    }
}

impl Worker {
    /// As [`train`](Worker::train), and tells all ranks what came of it.
    fn train_as_one(&self, args: &Args, start: &BTreeMap<String, Tensor>) -> Result<Vec<Rank>> {
        let rank = self.train(args, start)?;
        // Numbers that f64 has room for.
        let halves = [rank.hash >> 32, rank.hash & 0xffff_ffff].map(|half| half as f64);
        let device = numbers_of_device(rank.device);
        let numbers = [rank.own, rank.mean, rank.state as f64, halves[0], halves[1], device[0], device[1]];
        let all = self.numbers_of_all(&numbers)?;
        let other = |numbers: Vec<f64>| Rank {
            device: device_of_numbers([numbers[5], numbers[6]]),
            own: numbers[0],
            mean: numbers[1],
            state: numbers[2] as usize,
            hash: (numbers[3] as u64) << 32 | numbers[4] as u64,
        };
        Ok(all.into_iter().map(other).collect())
    }
}

/// Which kind of device, and its number.
fn numbers_of_device(device: DeviceLocation) -> [f64; 2] {
    match device {
        DeviceLocation::Cpu => [0.0, 0.0],
        DeviceLocation::Cuda { gpu_id } => [1.0, gpu_id as f64],
        DeviceLocation::Metal { gpu_id } => [2.0, gpu_id as f64],
    }
}

fn device_of_numbers([kind, number]: [f64; 2]) -> DeviceLocation {
    let gpu_id = number as usize;
    match kind {
        1.0 => DeviceLocation::Cuda { gpu_id },
        2.0 => DeviceLocation::Metal { gpu_id },
        _ => DeviceLocation::Cpu,
    }
}

/// Trains on arms that are not turned, on one rank.
fn pretrain(args: &Args) -> Result<BTreeMap<String, Tensor>> {
    let params = Params::new(&Device::Cpu).head("*");
    for (i, size) in SIZES.windows(2).enumerate() {
        candle_nn::linear(size[0], size[1], params.var_builder().pp(i))?;
    }
    let mut optimizer = RobustOptimizer::builder(&params).rule(AdamW::default().lr(1e-2)).build()?;
    for step in 0..args.steps() {
        let samples = (0..args.batch).map(|i| step * args.batch + i).collect::<Vec<_>>();
        optimizer.backward_step(&loss(&params, &samples, 0.0, &Device::Cpu)?)?;
    }
    Ok(params.tensors())
}

/// Mean cross-entropy of points on the arms of a spiral.
fn loss(params: &Params, samples: &[usize], turn: f64, device: &Device) -> Result<Tensor> {
    let arm = |i: usize| i % ARMS;
    let point = |i: usize| {
        let along = (i as f64 * 0.618_033_988_749_895).fract();
        let angle = TAU * arm(i) as f64 / ARMS as f64 + 4.0 * along + turn;
        [angle.cos(), angle.sin()].map(|x| ((0.1 + along) * x) as f32)
    };
    let points: Vec<_> = samples.iter().flat_map(|i| point(*i)).collect();
    let labels: Vec<_> = samples.iter().map(|i| arm(*i) as u32).collect();
    let mut x = Tensor::from_vec(points, (samples.len(), 2), device)?;
    for i in 0..SIZES.len() - 1 {
        let get = |what| params.get(&format!("{i}.{what}")).map(|param| param.var().as_tensor().clone());
        x = if i == 0 { x } else { nn::gelu(&x)? };
        x = nn::Linear::new(get("weight")?, Some(get("bias")?)).forward(&x)?;
    }
    Ok(nn::cross_entropy(&x, &Tensor::new(labels, device)?)?)
}

/// Equal for equal weights.
fn hash(params: &Params) -> Result<u64> {
    let mut hasher = DefaultHasher::new();
    for (name, tensor) in params.tensors() {
        name.hash(&mut hasher);
        let values = tensor.flatten_all()?.to_vec1::<f32>()?;
        values.iter().for_each(|value| value.to_bits().hash(&mut hasher));
    }
    Ok(hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_survive_being_sent_as_numbers() {
        let all = [
            DeviceLocation::Cpu,
            DeviceLocation::Cuda { gpu_id: 0 },
            DeviceLocation::Cuda { gpu_id: 7 },
            DeviceLocation::Metal { gpu_id: 1 },
        ];
        for device in all {
            assert_eq!(device_of_numbers(numbers_of_device(device)), device);
        }
    }
}
