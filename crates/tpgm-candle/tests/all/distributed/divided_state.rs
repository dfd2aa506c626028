//! What divided state sends, saves and refuses.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use candle_core::{DType, Device, Tensor, Var};
use tpgm_candle::distributed::{Communicator, InProcess, Named, Result};
use tpgm_candle::{Ftp, Param, Params, RobustOptimizer, StateDict};

use super::net::cut;
use super::{Net, ROWS, numbers, ranks, tensor};

/// Counts the bytes that this rank sends, as many as a call cannot do without: a reduced tensor goes to its owner, a shared
/// one from there to every other rank.
#[derive(Debug)]
struct Counting {
    inner: InProcess,
    sent: Arc<AtomicUsize>,
}

impl Counting {
    fn count(&self, tensors: &[Named<'_>], copies: impl Fn(usize) -> usize) {
        let bytes = |tensor: &Tensor| tensor.elem_count() * tensor.dtype().size_in_bytes();
        let sent: usize = tensors.iter().enumerate().map(|(i, (_, tensor))| copies(i) * bytes(tensor)).sum();
        self.sent.fetch_add(sent, Ordering::Relaxed);
    }
}

impl Communicator for Counting {
    fn rank(&self) -> usize {
        self.inner.rank()
    }

    fn size(&self) -> usize {
        self.inner.size()
    }

    fn all_reduce_mean(&self, _: &[Named<'_>]) -> Result<()> {
        panic!("a step of divided state needs no mean on all ranks")
    }

    fn reduce_mean(&self, tensors: &[Named<'_>], owners: &[usize]) -> Result<()> {
        self.count(tensors, |i| usize::from(owners[i] != self.rank()));
        self.inner.reduce_mean(tensors, owners)
    }

    fn share(&self, tensors: &[Named<'_>], owners: &[usize]) -> Result<()> {
        self.count(tensors, |i| if owners[i] == self.rank() { self.size() - 1 } else { 0 });
        self.inner.share(tensors, owners)
    }

    fn barrier(&self) -> Result<()> {
        self.inner.barrier()
    }

    fn refuse(&self, reason: &str) -> Result<()> {
        self.inner.refuse(reason)
    }
}

/// Tensors of several buckets, and losses with a gradient of their own for each.
fn wide() -> (Params, Vec<Var>) {
    // The third and the last are larger than a bucket, and cut by rows.
    let shapes: [&[usize]; 6] =
        [&[600, 1000], &[700, 1000], &[1100, 1000], &[9], &[300, 1000], &[1200, 1000]];
    let vars: Vec<Var> =
        shapes.iter().zip(1..).map(|(shape, seed)| Var::from_tensor(&tensor(seed, shape)).unwrap()).collect();
    let params = vars.iter().enumerate();
    let params = params.map(|(i, var)| Param::anchored_here(format!("{i}"), var.clone()).unwrap());
    (Params::from_params(params).unwrap(), vars)
}

#[test]
fn several_buckets_give_the_same_bits_and_send_no_more_than_an_all_reduce() {
    for size in [2, 3] {
        let run = |divided| {
            ranks(size, |inner| {
                let sent = Arc::new(AtomicUsize::new(0));
                let (params, vars) = wide();
                let builder = RobustOptimizer::builder(&params).constraint(Ftp::default()).max_grad_norm(1.0);
                let rank = inner.rank() as u64;
                let builder = match divided {
                    true => {
                        let counting = Counting { inner, sent: sent.clone() };
                        builder.communicator(Arc::new(counting)).divide_state()
                    }
                    false => builder.communicator(Arc::new(inner)),
                };
                let mut optimizer = builder.build().unwrap();
                sent.store(0, Ordering::Relaxed);
                for step in 0..2 {
                    let mut grads = vars[0].sum_all().unwrap().backward().unwrap();
                    for (i, var) in vars.iter().enumerate() {
                        grads.insert(var, tensor(100 * step + 10 * rank + i as u64, var.dims()));
                    }
                    optimizer.step(&grads).unwrap();
                }
                let bits: Vec<u64> = vars.iter().flat_map(numbers_of).collect();
                let numel: usize = vars.iter().map(|var| var.elem_count()).sum();
                (bits, optimizer.state().unwrap(), sent.load(Ordering::Relaxed) / 2, numel)
            })
        };
        let (undivided, divided) = (run(false), run(true));
        let mut state = StateDict::new();
        let mut total = 0;
        for (bits, own, sent, numel) in divided {
            assert!(bits == undivided[0].0);
            state.extend(own);
            assert!(sent <= 2 * 4 * numel, "{size} ranks: {sent} bytes in a step of {numel} parameters");
            total += sent;
        }
        let (params, _) = wide();
        let mut whole = RobustOptimizer::builder(&params).constraint(Ftp::default()).build().unwrap();
        whole.load_state(&state).unwrap();
        assert!(whole.state().unwrap() == undivided[0].1);
        // All ranks together: every gradient and every weight once to each other rank, and 8 bytes per tensor. Of the two that are
        // cut into two blocks each, 32 bytes per piece of 16 rows and 128 of scalars per block in place of that.
        let (numel, pieces) = (undivided[0].3, 1100usize.div_ceil(16) + 1200 / 16);
        let told = 8 * 4 + 32 * pieces + 4 * 128;
        assert_eq!(total, (size - 1) * (2 * 4 * numel + told), "{size} ranks");
    }
}

fn numbers_of(var: &Var) -> Vec<u64> {
    numbers(var).into_iter().map(f64::to_bits).collect()
}

#[test]
fn state_goes_from_any_number_of_ranks_to_any_other() {
    // 1 -> 2 -> 3 -> undivided, with a step and a pending batch each.
    for net in [Net::new, Net::wide] {
        state_goes_on(&net);
    }
}

/// With tensors that are whole, or cut by rows.
fn state_goes_on(net: &(dyn Fn(DType) -> Net + Sync)) {
    let builder = |net: &Net| {
        let builder = cut(RobustOptimizer::builder(&net.params).constraint(Ftp::default()));
        builder.accumulate(2).max_grad_norm(0.3)
    };
    // All ranks work on the same rows here: the mean of equal f16 numbers, taken in f32, is that number.
    let calls = |optimizer: &mut RobustOptimizer, net: &Net, from: u64| {
        (from..from + 3).for_each(|call| {
            optimizer.backward_step(&net.loss(11 + call, 0..ROWS).unwrap()).unwrap();
        });
    };
    let (mut state, mut values) = (None::<StateDict>, None);
    for (size, from) in [(1, 0), (2, 3), (3, 6)] {
        let ends = ranks(size, |communicator| {
            let net = net(DType::F16);
            let mut optimizer =
                builder(&net).communicator(Arc::new(communicator)).divide_state().build().unwrap();
            if let (Some(state), Some(values)) = (&state, &values) {
                net.params.load_values(values).unwrap();
                optimizer.load_state(state).unwrap();
            }
            calls(&mut optimizer, &net, from);
            let copies = net.params.values().into_iter().map(|(name, value)| (name, value.copy().unwrap()));
            (optimizer.state().unwrap(), copies.collect::<BTreeMap<_, _>>())
        });
        let mut all = StateDict::new();
        ends.iter().for_each(|(state, _)| all.extend(state.clone()));
        (state, values) = (Some(all), Some(ends[0].1.clone()));
    }
    let (resumed, whole) = (net(DType::F16), net(DType::F16));
    let mut last = builder(&resumed).build().unwrap();
    resumed.params.load_values(&values.unwrap()).unwrap();
    last.load_state(&state.unwrap()).unwrap();
    calls(&mut last, &resumed, 9);
    let mut expected = builder(&whole).build().unwrap();
    calls(&mut expected, &whole, 0);
    for from in [3, 6, 9] {
        calls(&mut expected, &whole, from);
    }
    assert_eq!(resumed.bits(), whole.bits());
    assert_eq!(last.state().unwrap(), expected.state().unwrap());
}

#[test]
fn bad_state_changes_nothing() {
    ranks(2, |communicator| {
        let net = Net::new(DType::F32);
        let builder = RobustOptimizer::builder(&net.params).constraint(Ftp::default());
        let mut optimizer = builder.communicator(Arc::new(communicator)).divide_state().build().unwrap();
        optimizer.backward_step(&net.loss(11, 0..ROWS).unwrap()).unwrap();
        let saved = optimizer.state().unwrap();
        let own = saved.keys().filter(|key| key.ends_with("/exp_avg")).cloned().collect::<Vec<_>>();
        let mut missing = saved.clone();
        missing.remove(&own[0]);
        let error = optimizer.load_state(&missing).unwrap_err().to_string();
        assert!(error.contains(&format!("lacks `{}`", own[0])), "{error}");
        let mut more = saved.clone();
        more.insert("c.weight/exp_avg".to_owned(), saved[&own[0]].clone());
        let error = optimizer.load_state(&more).unwrap_err().to_string();
        assert!(error.contains("has `c.weight/exp_avg`"), "{error}");
        assert_eq!(optimizer.state().unwrap(), saved);
    });
}

#[test]
fn what_cannot_be_divided_says_so() {
    let net = Net::new(DType::F32);
    let error = RobustOptimizer::builder(&net.params).divide_state().build().err().unwrap().to_string();
    assert!(error.contains("give the builder a `communicator`"), "{error}");
    let error = ranks(1, |communicator| {
        let builder = RobustOptimizer::builder(&net.params).communicator(Arc::new(communicator));
        let mut optimizer = builder.divide_state().build().unwrap();
        tpgm_candle::optim::selekt(&net.params, &Default::default(), Some(&mut optimizer))
            .unwrap_err()
            .to_string()
    });
    assert!(error[0].contains("selekt needs the state of all tensors"), "{error:?}");

    let errors = ranks(2, |communicator| {
        let tensor = Tensor::zeros(2, DType::F32, &Device::Cpu).unwrap();
        let few = communicator.share(&[("t", &tensor)], &[]).unwrap_err().to_string();
        let far = communicator.reduce_mean(&[("t", &tensor)], &[2]).unwrap_err().to_string();
        let differ = communicator.share(&[("t", &tensor)], &[communicator.rank()]).unwrap_err().to_string();
        (few, far, differ)
    });
    for (few, far, differ) in errors {
        assert!(few.contains("0 owners for 1 tensors"), "{few}");
        assert!(far.contains("there is no rank 2 among 2"), "{far}");
        assert!(
            differ.contains("tensor `t` is owned by rank 1 on rank 1, but by rank 0 on rank 0"),
            "{differ}"
        );
    }
}
