//! Steps per second, bytes and memory, for the documentation.

use std::sync::Arc;
use std::time::Instant;

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Tensor, Var};
use tpgm_candle::distributed::{Communicator, Mpi};
use tpgm_candle::{AdamW, Ftp, Param, Params, RobustOptimizer};

/// Tensors of a model, by name.
fn shapes(model: &str) -> Vec<(String, Vec<usize>)> {
    let (width, layers, mut shapes) = match model {
        // all-MiniLM-L6-v2 without its pooler: 22.6 million parameters.
        "minilm" => (384, 6, vec![("embeddings.word".to_owned(), vec![30_522, 384])]),
        // ViT-B/16: 86.6 million.
        _ => (
            768,
            12,
            vec![("patch_embed".to_owned(), vec![768, 3, 16, 16]), ("head".to_owned(), vec![1000, 768])],
        ),
    };
    for i in 0..layers {
        let mut affine = |name: &str, out: usize, of: Option<usize>| {
            shapes.push((format!("{i}.{name}.bias"), vec![out]));
            let weight = of.map_or(vec![out], |of| vec![out, of]);
            shapes.push((format!("{i}.{name}.weight"), weight));
        };
        affine("norm1", width, None);
        affine("qkv", 3 * width, Some(width));
        affine("proj", width, Some(width));
        affine("norm2", width, None);
        affine("fc1", 4 * width, Some(width));
        affine("fc2", width, Some(4 * width));
    }
    shapes
}

/// Bytes of this process at most so far.
fn peak() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok())
        .map_or(f64::NAN, |kib| kib * 1024.0)
}

/// `MODEL/STATE/TYPE`, where the state is `divided` or `whole` and the element type `f32` or `bf16`: steps with gradients that are there already, so that what ranks add is all that is timed.
pub(crate) fn measure(mode: &str, world: Mpi) {
    let mut words = mode.split('/');
    let mut word = || words.next().unwrap_or_default();
    let (model, state, dtype) = (word(), word(), word());
    let dtype = if dtype == "bf16" { DType::BF16 } else { DType::F32 };
    let group = Arc::new(world);
    let zeros = |shape: &Vec<usize>| Tensor::zeros(shape.as_slice(), dtype, &Device::Cpu).unwrap();
    let shapes = shapes(model);
    let numel: usize = shapes.iter().map(|(_, shape)| shape.iter().product::<usize>()).sum();
    let vars: Vec<Var> = shapes.iter().map(|(_, shape)| Var::from_tensor(&zeros(shape)).unwrap()).collect();
    let mut grads: GradStore = vars[0].sum_all().unwrap().backward().unwrap();
    vars.iter()
        .zip(&shapes)
        .for_each(|(var, (_, shape))| drop(grads.insert(var, (zeros(shape) + 1e-3).unwrap())));
    let before = peak();
    let params = shapes.iter().zip(&vars);
    let params = params.map(|((name, _), var)| Param::anchored_here(name, var.clone()).unwrap());
    let params = Params::from_params(params).unwrap();
    let builder = RobustOptimizer::builder(&params).rule(AdamW::default()).constraint(Ftp::default());
    let builder = builder.communicator(group.clone());
    let builder = if state == "divided" { builder.divide_state() } else { builder };
    let mut optimizer = builder.build().unwrap();
    let built = peak();
    drop(params);
    // From here on it is what a step needs: that of Linux counts anew.
    std::fs::write("/proc/self/clear_refs", "5").ok();
    assert!(optimizer.step(&grads).unwrap().taken);
    let (begun, sent, mut steps) = (Instant::now(), group.bytes_sent(), 0u32);
    while steps < 5 {
        assert!(optimizer.step(&grads).unwrap().taken);
        steps += 1;
    }
    let seconds = begun.elapsed().as_secs_f64() / f64::from(steps);
    let bytes = (group.bytes_sent() - sent) as f64 / f64::from(steps);
    let most = peak();
    // What is saved of this rank's tensors, and their anchors.
    let slots = optimizer.state().unwrap();
    let held = slots.iter().filter(|(key, _)| key.ends_with("/exp_avg"));
    let held: usize = held.map(|(_, slot)| slot.len()).sum();
    let slots: usize = slots.values().map(|slot| slot.len() * slot.dtype().size()).sum();
    let kept = (slots + held * dtype.size_in_bytes()) as f64;
    println!(
        "{mode} rank {} of {}: {seconds:.3} s per step, {:.1} MB sent, {:.3} bytes a parameter; \
         state {:.1} MB, {:.2} bytes a parameter that is held; process with weights and gradients {:.1} MB, built at most {:.1} MB, \
         stepping at most {:.1} MB",
        group.rank(),
        group.size(),
        bytes / 1e6,
        bytes / numel as f64,
        kept / 1e6,
        kept / held as f64,
        before / 1e6,
        built / 1e6,
        most / 1e6,
    );
}
