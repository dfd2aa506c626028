//! Memory floors, on the arrays of the side-by-side harness.
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tpgm_benches::CpuTarget;
use tpgm_benches::floors::{Floor, Floors};

fn floors(c: &mut Criterion) {
    let threads = rayon::current_num_threads();
    let mut floors = Floors::new(CpuTarget::FLOOR_ELEMENTS, threads);
    let mut group = c.benchmark_group("floors");
    group.sample_size(10).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(3));
    for floor in Floor::ALL {
        group.throughput(Throughput::Bytes((floor.bytes_per_element() * floors.len()) as u64));
        group.bench_function(BenchmarkId::new(floor.name(), format!("{threads} threads")), |b| {
            b.iter(|| floors.run(floor))
        });
    }
    group.finish();
}

criterion_group!(benches, floors);
criterion_main!(benches);
