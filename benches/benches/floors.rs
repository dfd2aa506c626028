//! Memory floors on arrays as large as ViT-B/16's parameters.
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tpgm_benches::Model;
use tpgm_benches::floors::{Floor, Floors};

fn floors(c: &mut Criterion) {
    let len = Model::VitB16.tensors().iter().map(|spec| spec.numel()).sum();
    let threads = rayon::current_num_threads();
    let mut floors = Floors::new(len, threads);
    let mut group = c.benchmark_group("floors");
    group.sample_size(10).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3));
    for floor in Floor::ALL {
        group.throughput(Throughput::Bytes(floors.bytes(floor) as u64));
        group.bench_function(BenchmarkId::new(floor.name(), format!("{threads} threads")), |b| {
            b.iter(|| floors.run(floor))
        });
    }
    group.finish();
}

criterion_group!(benches, floors);
criterion_main!(benches);
