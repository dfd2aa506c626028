//! Every method on the CPU over the tensors of ViT-B/16 and ResNet-50: groups `optimizer_step` and `projection`.
//!
//! `cargo bench -p tpgm-benches --bench methods -- 'optimizer_step/resnet-50'` runs a part.
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use tpgm_benches::data::Data;
use tpgm_benches::{Method, Model, Operation, Ours, Phase};
use tpgm_core::ParamSet;

const MODELS: [Model; 2] = [Model::VitB16, Model::ResNet50];

fn groups(c: &mut Criterion) {
    let threads = rayon::current_num_threads();
    for model in MODELS {
        let set = model.param_set().expect("the names of a list are unique");
        let mut data = None;
        for method in Method::all() {
            let group = match method.operation {
                Operation::Step(..) => "optimizer_step",
                Operation::Project(_) | Operation::Update(_) => "projection",
            };
            let mut group = c.benchmark_group(format!("{group}/{model}"));
            group
                .sample_size(10)
                .warm_up_time(Duration::from_secs(1))
                .measurement_time(Duration::from_secs(4));
            let mut bench = Bench { set: &set, method: &method, threads, data: &mut data };
            bench.run(&mut group, method.name, method.traffic.memory(), None);
            if matches!(method.operation, Operation::Update(_)) {
                for phase in Phase::ALL {
                    // Each phase moves a quarter: 12 bytes.
                    let name = format!("{} {}", method.name, phase.name());
                    bench.run(&mut group, &name, method.traffic.memory() / 4, Some(phase));
                }
            }
            group.finish();
        }
    }
}

struct Bench<'a> {
    set: &'a ParamSet,
    method: &'a Method,
    threads: usize,
    /// Made when the first benchmark that the filter selects starts.
    data: &'a mut Option<Data>,
}

impl Bench<'_> {
    /// Measures a whole round, or one phase of it.
    fn run(
        &mut self,
        group: &mut BenchmarkGroup<'_, WallTime>,
        name: &str,
        bytes: usize,
        phase: Option<Phase>,
    ) {
        let Self { set, method, threads, data } = self;
        let mut ours = None;
        group.throughput(Throughput::Bytes((bytes * set.numel()) as u64));
        group.bench_function(format!("{name}/{threads} threads"), |b| {
            let data = data.get_or_insert_with(|| Data::new(set.tensors()));
            let ours = ours.get_or_insert_with(|| {
                data.restore_weights();
                Ours::new(method, set, *threads).expect("valid options")
            });
            b.iter_custom(|rounds| {
                let mut seconds = 0.0;
                for _ in 0..rounds {
                    let round = ours.round(data).expect("valid operands");
                    seconds += phase.map_or(round, |phase| ours.phase_seconds(phase));
                }
                Duration::from_secs_f64(seconds)
            });
        });
    }
}

criterion_group!(benches, groups);
criterion_main!(benches);
