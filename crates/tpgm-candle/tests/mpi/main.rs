//! Ranks as processes: what `cargo xtask ranks` starts under `mpirun`, again and again. A check that fails is a panic, and a rank
//! that got through says so.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // a program of tests

mod anchors;
mod bits;
mod checkpoints;
mod failures;
mod kills;
#[path = "../all/distributed/methods.rs"]
mod methods;
#[path = "../all/distributed/net.rs"]
mod net;
mod speed;

use std::path::Path;
use std::sync::Arc;
use std::thread;

use tpgm_candle::distributed::{Communicator, InProcess, Mpi};

use self::net::{Net, ROWS, numbers, part, tensor};

/// What every function with ranks gets: as an optimizer takes it.
type Ranks = Arc<dyn Communicator>;

/// What this rank would have with threads in place of processes.
fn with_threads<R: Send>(like: &dyn Communicator, work: impl Fn(Ranks) -> R + Sync) -> R {
    thread::scope(|scope| {
        let group = InProcess::group(like.size()).into_iter();
        let threads: Vec<_> = group.map(|end| scope.spawn(|| work(Arc::new(end)))).collect();
        let mut results = threads.into_iter().map(|thread| thread.join().unwrap());
        results.nth(like.rank()).unwrap()
    })
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse::<usize>().unwrap();
    // These need no ranks.
    match args[..] {
        ["check", folder, ranks] => return kills::check(Path::new(folder), number(ranks)),
        ["compare", folder] => return checkpoints::compare(Path::new(folder)),
        _ => {}
    }
    let world = Mpi::world().unwrap();
    let rank = world.rank();
    match args[..] {
        ["suite"] => {
            let world = Arc::new(world);
            bits::all_methods(&world);
            bits::calls(&world);
            failures::all(&world);
        }
        ["late"] => failures::a_late_rank_is_named(world),
        ["reshard", folder, from] => {
            checkpoints::go_on(Path::new(folder), number(from) as u64, Arc::new(world))
        }
        ["anchors", folder] => anchors::are_there_once(Path::new(folder), Arc::new(world)),
        ["step", folder] => kills::step(Path::new(folder), world),
        ["save", folder] => kills::save(Path::new(folder), world),
        ["speed", mode] => speed::measure(mode, world),
        _ => panic!("no such check: {args:?}"),
    }
    println!("rank {rank} passed");
}
