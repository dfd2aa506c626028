//! Anchors in a file are in memory once, however many ranks of a machine map it.

use std::collections::HashMap;
use std::path::Path;

use candle_core::{Device, Tensor};
use tpgm_candle::{Ftp, Params, RobustOptimizer};

use super::{Ranks, tensor};

const SHAPE: [usize; 2] = [2048, 1024];

/// Bytes of a file in this process's memory, from `/proc/self/smaps`: all, its share of them, and those that it alone has.
fn mapped(file: &Path) -> Option<[f64; 3]> {
    let smaps = std::fs::read_to_string("/proc/self/smaps").ok()?;
    let (mut inside, mut bytes) = (false, [0.0; 3]);
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let (key, value) = (words.next()?, words.next());
        if !key.ends_with(':') {
            inside = line.ends_with(file.to_str()?);
            continue;
        }
        let kinds = [&["Rss:"][..], &["Pss:"], &["Private_Clean:", "Private_Dirty:"]];
        for (bytes, kinds) in bytes.iter_mut().zip(kinds) {
            if inside && kinds.contains(&key) {
                *bytes += 1024.0 * value?.parse::<f64>().ok()?;
            }
        }
    }
    Some(bytes)
}

/// An optimizer on every rank over one file, undivided, so that each reads all of it.
pub(crate) fn are_there_once(folder: &Path, ranks: Ranks) {
    let path = folder.canonicalize().unwrap().join("anchors.safetensors");
    if ranks.rank() == 0 {
        let tensors = HashMap::from([("w", tensor(1, &SHAPE))]);
        candle_core::safetensors::save(&tensors, &path).unwrap();
    }
    ranks.barrier().unwrap();
    let params = Params::open(&path, &Device::Cpu).unwrap();
    let weight = params.var_builder().get(SHAPE.as_slice(), "w").unwrap();
    let builder = RobustOptimizer::builder(&params).constraint(Ftp::default());
    let mut optimizer = builder.communicator(ranks.clone()).build().unwrap();
    optimizer.backward_step(&weight.sqr().unwrap().sum_all().unwrap()).unwrap();
    // All have read it, and have it still.
    ranks.barrier().unwrap();
    let Some([all, share, alone]) = mapped(&path) else {
        return println!("no /proc/self/smaps: nothing measured");
    };
    let sum = Tensor::new(&[share], &Device::Cpu).unwrap();
    ranks.all_reduce_mean(&[("bytes", &sum)]).unwrap();
    let sum = sum.to_vec1::<f64>().unwrap()[0] * ranks.size() as f64;
    let (size, page) = (4.0 * SHAPE.iter().product::<usize>() as f64, 4096.0);
    println!(
        "anchors of {:.2} MB on rank {} of {}: {:.2} MB mapped, {:.2} MB of them its share, {:.2} MB its own; shares of all {:.2} MB",
        size / 1e6,
        ranks.rank(),
        ranks.size(),
        all / 1e6,
        share / 1e6,
        alone / 1e6,
        sum / 1e6
    );
    assert!(all >= size, "not all of it was read: {all}");
    assert!(
        alone <= 16.0 * page && sum <= size + 16.0 * page,
        "{alone} bytes are this rank's own, {sum} all ranks'"
    );
    // Nobody ends before all have measured.
    ranks.barrier().unwrap();
    drop((optimizer, params));
}
