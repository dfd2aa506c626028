//! Every method on the CPU over the tensors of ViT-B/16 and ResNet-50: groups `optimizer_step`, `projection` and
//! `average`.
//!
//! `cargo bench -p tpgm-benches --bench methods -- 'optimizer_step/resnet-50'` runs a part.
#![allow(missing_docs, reason = "criterion's macros make undocumented items")]

use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use tpgm_benches::data::Data;
use tpgm_benches::{Call, Method, Model, Operation, Ours};
use tpgm_core::{Cpu, DType, ParamSet};

const MODELS: [Model; 2] = [Model::VitB16, Model::ResNet50];

fn groups(c: &mut Criterion) {
    let threads = rayon::current_num_threads();
    for model in MODELS {
        let set = model.param_set(DType::F32).expect("the names of a list are unique");
        let mut data = None;
        for method in Method::all() {
            let group = match method.operation {
                Operation::Step(..) => "optimizer_step",
                Operation::Project(_) | Operation::Update(_) => "projection",
                Operation::Average => "average",
            };
            let mut group = c.benchmark_group(format!("{group}/{model}"));
            group
                .sample_size(10)
                .warm_up_time(Duration::from_secs(1))
                .measurement_time(Duration::from_secs(4));
            let mut bench = Bench { set: &set, method: &method, threads, data: &mut data };
            let (bytes, calls) = (method.bytes(DType::F32), method.operation.calls());
            bench.run(&mut group, method.name, bytes, calls);
            if calls.len() > 1 {
                for call in calls {
                    // The calls of a projection update move 12 bytes each.
                    let name = format!("{} {}", method.name, call.name());
                    bench.run(&mut group, &name, bytes / calls.len(), &[*call]);
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
    data: &'a mut Option<Data<Cpu>>,
}

impl Bench<'_> {
    /// Measures rounds, of which only the time of `calls` counts.
    fn run(&mut self, group: &mut BenchmarkGroup<'_, WallTime>, name: &str, bytes: usize, calls: &[Call]) {
        let Self { set, method, threads, data } = self;
        let mut ours = None;
        group.throughput(Throughput::Bytes((bytes * set.numel()) as u64));
        group.bench_function(format!("{name}/{threads} threads"), |b| {
            let cpu = Cpu::with_threads(*threads).expect("threads can be started");
            let data = data.get_or_insert_with(|| Data::new(cpu.clone(), set).expect("valid options"));
            let ours = ours.get_or_insert_with(|| {
                data.restore_weights().expect("the CPU does not fail");
                Ours::new(method, cpu, set, data).expect("valid options")
            });
            b.iter_custom(|rounds| {
                let mut time = Duration::ZERO;
                for _ in 0..rounds {
                    ours.prepare(data).expect("valid operands");
                    for call in method.operation.calls() {
                        let start = Instant::now();
                        ours.call(*call, data).expect("valid operands");
                        if calls.contains(call) {
                            time += start.elapsed();
                        }
                    }
                }
                time
            });
        });
    }
}

criterion_group!(benches, groups);
criterion_main!(benches);
