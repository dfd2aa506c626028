//! The bits of threads.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};
use tpgm_candle::distributed::{Communicator, Mpi, Named};
use tpgm_candle::{Ema, OptimizerBuilder, Tpgm, TpgmConfig};

use super::methods::{constraints, rules, train};
use super::net::cut;
use super::{Net, Ranks, numbers, part, tensor, with_threads};

/// Every rule under every constraint with divided state; the first rule also undivided and in f32.
pub(crate) fn all_methods(world: &Arc<Mpi>) {
    let rules = rules().into_iter().enumerate();
    let mut count = 0;
    for (number, method) in rules.flat_map(|(i, rule)| constraints().into_iter().map(move |c| (i, (rule, c))))
    {
        let kinds = [(DType::F16, true), (DType::F32, true), (DType::F32, false)];
        for (dtype, divided) in kinds.into_iter().take(if number == 0 { 3 } else { 1 }) {
            // Every second rule with tensors that are cut by rows.
            let wide = number % 2 == 1;
            let work = |ranks: Ranks| {
                let rows = part(&*ranks);
                let group = |builder: OptimizerBuilder| {
                    let builder = if wide { cut(builder) } else { builder };
                    let builder = builder.communicator(ranks.clone());
                    if divided { builder.divide_state() } else { builder }
                };
                let net = if wide { Net::wide(dtype) } else { Net::new(dtype) };
                train(&net, method, &group, rows)
            };
            let (got, expected) = (work(world.clone()), with_threads(&**world, work));
            assert!(got == expected, "{method:?}, divided {divided}, {dtype:?}: {got:?}\n{expected:?}");
            count += 1;
        }
    }
    assert_eq!(count, 15 * (3 + 3));
    averages_and_radii(world);
}

fn averages_and_radii(world: &Arc<Mpi>) {
    let work = |ranks: Ranks| {
        let net = Net::new(DType::F16);
        let mut ema = Ema::divided(&net.params, 0.75, ranks.clone()).unwrap();
        net.vars.iter().for_each(|var| var.set(&var.affine(1.25, 0.125).unwrap()).unwrap());
        ema.update().unwrap();
        let averaged = ema.apply().unwrap();
        let bits = net.bits();
        averaged.restore().unwrap();
        let mut tpgm = Tpgm::divided(&net.params, TpgmConfig::default(), ranks.clone()).unwrap();
        tpgm.update_n(3, |i| net.loss(21 + i as u64, part(&*ranks))).unwrap();
        (bits, net.bits(), ema.state().unwrap(), tpgm.state().unwrap())
    };
    assert!(work(world.clone()) == with_threads(&**world, work));
}

/// Tensors of all types and of awkward sizes, longer than a piece and a window, with and without elements.
pub(crate) fn calls(world: &Arc<Mpi>) {
    let shapes: [&[usize]; 6] = [&[3], &[0, 4], &[], &[65_536], &[7, 65_537], &[3_000_001]];
    for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
        let work = |ranks: Ranks| {
            let (rank, size) = (ranks.rank(), ranks.size());
            let make = || -> Vec<Tensor> {
                let of = |(i, shape): (usize, &&[usize])| {
                    // Negative zeros and subnormal numbers are elements, too.
                    if i == 0 {
                        return Tensor::full(-0.0f32, *shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap();
                    }
                    let tensor = tensor((1 + i + 10 * rank) as u64, shape).to_dtype(dtype).unwrap();
                    (tensor * 1e-6).unwrap().copy().unwrap()
                };
                shapes.iter().enumerate().map(of).collect()
            };
            let owners: Vec<usize> = (0..shapes.len()).map(|i| (i + 1) % size).collect();
            let names: Vec<String> = (0..shapes.len()).map(|i| format!("t{i}")).collect();
            let named = |tensors: &[Tensor]| -> Vec<(String, Tensor)> {
                names.iter().cloned().zip(tensors.iter().cloned()).collect()
            };
            let call = |tensors: &[Tensor], call: &dyn Fn(&[Named<'_>])| -> Vec<Vec<u64>> {
                let named = named(tensors);
                call(&named.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect::<Vec<_>>());
                let bits = |t: &Tensor| numbers(t).into_iter().map(f64::to_bits).collect();
                tensors.iter().map(bits).collect()
            };
            let mean = call(&make(), &|tensors| ranks.all_reduce_mean(tensors).unwrap());
            let mut own = call(&make(), &|tensors| ranks.reduce_mean(tensors, &owners).unwrap());
            let shared = call(&make(), &|tensors| ranks.share(tensors, &owners).unwrap());
            assert!(shared[0] == [(-0.0f64).to_bits(); 3]);
            for (i, owner) in owners.iter().enumerate() {
                if *owner == rank {
                    assert!(own[i] == mean[i]);
                } else {
                    own[i].clear();
                }
            }
            (mean, own, shared)
        };
        assert!(work(world.clone()) == with_threads(&**world, work), "{dtype:?}");
    }
    sent_bytes(world);
}

/// A mean sends `2 (n - 1) / n` times the size, and divided state the same in two halves.
fn sent_bytes(world: &Arc<Mpi>) {
    let (size, numel) = (world.size(), 1 << 20);
    let tensor = Tensor::zeros(numel, DType::F32, &Device::Cpu).unwrap();
    let sent = |call: &dyn Fn()| {
        let before = world.bytes_sent();
        call();
        world.bytes_sent() - before
    };
    let (bytes, others) = (4 * numel as u64, size as u64 - 1);
    let words = 17 * others;
    let mean = sent(&|| world.all_reduce_mean(&[("t", &tensor)]).unwrap());
    // Within a piece to each of the others, in both directions.
    let expected = 2 * bytes * others / size as u64;
    assert!(mean.abs_diff(expected + words) <= 2 * others * 4 * 65_536, "{mean} {expected}");
    assert!(mean <= 2 * bytes);
    let reduced = sent(&|| world.reduce_mean(&[("t", &tensor)], &[0]).unwrap());
    assert_eq!(reduced, words + if world.rank() == 0 { 0 } else { bytes });
    let shared = sent(&|| world.share(&[("t", &tensor)], &[0]).unwrap());
    assert_eq!(shared, words + if world.rank() == 0 { bytes * others } else { 0 });
    assert_eq!(sent(&|| world.barrier().unwrap()), 16 * others);
}
