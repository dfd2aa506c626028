//! Small experiments that a claim of the documentation rests on.

use candle_core::{D, DType, Device, Module, Result, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW, VarBuilder, VarMap};
use tpgm_nn::prompts::FeaturePromptBasis;
use tpgm_nn::random::SplitMix64;
use tpgm_nn::{Linear, cross_entropy, linear, relu};

fn normal(random: &mut SplitMix64, rows: usize, columns: usize) -> Tensor {
    let values: Vec<f64> = (0..rows * columns).map(|_| random.normal()).collect();
    Tensor::from_vec(values, (rows, columns), &Device::Cpu).unwrap()
}

/// Solves `a x = b` for a symmetric positive definite matrix, by Cholesky.
fn solve(a: &[Vec<f64>], b: &[f64]) -> Vec<f64> {
    let n = a.len();
    let mut l = vec![vec![0.0; n]; n];
    for i in 0..n {
        for j in 0..=i {
            let sum: f64 = (0..j).map(|k| l[i][k] * l[j][k]).sum();
            l[i][j] = if i == j { (a[i][i] - sum).sqrt() } else { (a[i][j] - sum) / l[j][j] };
        }
    }
    let mut y = vec![0.0; n];
    for i in 0..n {
        y[i] = (b[i] - (0..i).map(|k| l[i][k] * y[k]).sum::<f64>()) / l[i][i];
    }
    let mut x = vec![0.0; n];
    for i in (0..n).rev() {
        x[i] = (y[i] - (i + 1..n).map(|k| l[k][i] * x[k]).sum::<f64>()) / l[i][i];
    }
    x
}

/// Of the least-norm fit on random ReLU features to noisy samples of a linear function: predictions for shifted samples.
fn predictions(width: usize, seed: u64, data: &[Tensor; 3]) -> Tensor {
    let [x, y, shifted] = data;
    let weights = normal(&mut SplitMix64::new(seed), width, x.dim(1).unwrap());
    let features = |x: &Tensor| {
        (relu(&x.matmul(&weights.t().unwrap()).unwrap()).unwrap() / (width as f64).sqrt()).unwrap()
    };
    let (f, g) = (features(x), features(shifted));
    let mut gram = f.matmul(&f.t().unwrap()).unwrap().to_vec2::<f64>().unwrap();
    gram.iter_mut().enumerate().for_each(|(i, row)| row[i] += 1e-9);
    let duals = solve(&gram, &y.to_vec1::<f64>().unwrap());
    let count = duals.len();
    let duals = Tensor::from_vec(duals, (count, 1), &Device::Cpu).unwrap();
    g.matmul(&f.t().unwrap().matmul(&duals).unwrap()).unwrap().squeeze(1).unwrap()
}

/// Over-parameterization (arXiv 2403.17592): beyond the number of samples the loss under a shift falls with the width of random
/// ReLU features, and so it does with the number of such models that are averaged.
#[test]
fn width_and_ensembles_lower_the_loss_under_a_shift() {
    const SAMPLES: usize = 40;
    let (mut by_width, mut by_members) = ([0.0; 3], [0.0; 3]);
    for round in 0..12 {
        let mut random = SplitMix64::new(100 + round);
        let truth = normal(&mut random, 6, 1);
        let x = normal(&mut random, SAMPLES, 6);
        let noise = (normal(&mut random, SAMPLES, 1) * 0.3).unwrap();
        let y = (x.matmul(&truth).unwrap() + noise).unwrap().squeeze(1).unwrap();
        // Another mean and another spread than those of the samples.
        let shifted = (normal(&mut random, 200, 6) * 1.5).unwrap().affine(1.0, 0.5).unwrap();
        let wanted = shifted.matmul(&truth).unwrap().squeeze(1).unwrap();
        let loss = |predicted: &Tensor| {
            (predicted - &wanted).unwrap().sqr().unwrap().mean_all().unwrap().to_scalar::<f64>().unwrap()
        };
        let data = [x, y, shifted];
        for (sum, width) in by_width.iter_mut().zip([50, 100, 800]) {
            *sum += loss(&predictions(width, 7 + round, &data));
        }
        for (sum, members) in by_members.iter_mut().zip([1u64, 4, 16]) {
            let all: Vec<Tensor> =
                (0..members).map(|i| predictions(60, 1000 * (round + 1) + i, &data)).collect();
            *sum += loss(&Tensor::stack(&all, 0).unwrap().mean(0).unwrap());
        }
    }
    assert!(by_width[0] > 1.2 * by_width[1] && by_width[1] > 1.2 * by_width[2], "{by_width:?}");
    assert!(by_members[0] > 1.2 * by_members[1] && by_members[1] > by_members[2], "{by_members:?}");
}

/// A graph isomorphism network (Xu et al., arXiv 1810.00826) of two layers: `h <- relu(W (h + sum over neighbors))`, and the mean
/// over the nodes. Random, and frozen.
struct Gin([Linear; 2]);

impl Gin {
    fn forward(&self, features: &Tensor, batch: &Batch) -> Result<Tensor> {
        let mut h = features.clone();
        for layer in &self.0 {
            let sums = h.index_add(&batch.to, &h.index_select(&batch.from, 0)?, 0)?;
            h = relu(&layer.forward(&sums)?)?;
        }
        batch.means.matmul(&h)
    }
}

/// Graphs side by side: all nodes, all edges in both directions, the matrix that takes the mean over each graph, and the classes.
struct Batch {
    features: Tensor,
    from: Tensor,
    to: Tensor,
    means: Tensor,
    labels: Tensor,
}

impl Batch {
    fn new(graphs: &[Graph]) -> Self {
        let nodes: Vec<usize> = graphs.iter().map(|graph| graph.0.dims()[0]).collect();
        let all: usize = nodes.iter().sum();
        let (mut from, mut to, mut means, mut start) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for ((_, edges, _), nodes) in graphs.iter().zip(nodes) {
            for (a, b) in edges.iter().map(|(a, b)| (a + start as u32, b + start as u32)) {
                from.extend([a, b]);
                to.extend([b, a]);
            }
            let share = |i| if (start..start + nodes).contains(&i) { 1.0 / nodes as f64 } else { 0.0 };
            means.extend((0..all).map(share));
            start += nodes;
        }
        let features: Vec<&Tensor> = graphs.iter().map(|graph| &graph.0).collect();
        let labels: Vec<u32> = graphs.iter().map(|graph| graph.2).collect();
        Self {
            features: Tensor::cat(&features, 0).unwrap(),
            from: Tensor::new(from, &Device::Cpu).unwrap(),
            to: Tensor::new(to, &Device::Cpu).unwrap(),
            means: Tensor::from_vec(means, (graphs.len(), all), &Device::Cpu).unwrap(),
            labels: Tensor::new(labels, &Device::Cpu).unwrap(),
        }
    }
}

/// Features of the nodes, edges, and the class.
type Graph = (Tensor, Vec<(u32, u32)>, u32);

/// GPF-plus: prompts and a head learn to tell rings from paths through a frozen graph network; nothing of the network changes.
#[test]
fn prompts_train_a_frozen_graph_network() {
    const WIDTH: usize = 6;
    let mut random = SplitMix64::new(3);
    let backbone: Vec<Var> = (0..2)
        .map(|_| Var::from_tensor(&(normal(&mut random, WIDTH, WIDTH) * 0.5).unwrap()).unwrap())
        .collect();
    let gin = Gin([0, 1].map(|i| Linear::new(backbone[i].as_tensor().detach(), None)));
    let mut graph = |class: u32| -> Graph {
        let nodes = 5 + random.below(4) as u32;
        let mut edges: Vec<_> = (1..nodes).map(|i| (i - 1, i)).collect();
        if class == 1 {
            edges.push((nodes - 1, 0));
        }
        // All nodes look nearly alike: what tells graphs apart are their edges.
        let noise = (normal(&mut random, nodes as usize, WIDTH) * 0.05).unwrap();
        ((noise + 1.0).unwrap(), edges, class)
    };
    let graphs: Vec<_> = (0..240).map(|i| graph(i % 2)).collect();
    let (train, test) = graphs.split_at(40);
    let vars = VarMap::new();
    let vb = VarBuilder::from_varmap(&vars, DType::F64, &Device::Cpu);
    let prompts = FeaturePromptBasis::new(WIDTH, 3, vb.pp("prompts")).unwrap();
    let head = linear(WIDTH, 2, vb.pp("head")).unwrap();
    // candle draws first values of its own; these depend on nothing.
    let mut random = SplitMix64::new(9);
    for name in ["prompts.basis", "prompts.score.weight", "prompts.score.bias", "head.weight", "head.bias"] {
        let var = &vars.data().lock().unwrap()[name];
        let values: Vec<f64> = (0..var.elem_count()).map(|_| 0.3 * random.normal()).collect();
        var.set(&Tensor::from_vec(values, var.shape(), &Device::Cpu).unwrap()).unwrap();
    }
    let logits = |batch: &Batch| head.forward(&gin.forward(&prompts.forward(&batch.features)?, batch)?);
    let options = ParamsAdamW { lr: 0.05, weight_decay: 0.0, ..Default::default() };
    let mut optimizer = AdamW::new(vars.all_vars(), options).unwrap();
    let first = prompts.forward(&graphs[0].0).unwrap();
    let (train, test) = (Batch::new(train), Batch::new(test));
    for _ in 0..300 {
        let loss = cross_entropy(&logits(&train).unwrap(), &train.labels).unwrap();
        optimizer.backward_step(&loss).unwrap();
    }
    let answers = logits(&test).unwrap();
    let right = answers.argmax(D::Minus1).unwrap().eq(&test.labels).unwrap().to_vec1::<u8>().unwrap();
    let right = right.iter().filter(|right| **right == 1).count();
    assert!(right >= 180, "{right} of 200");
    let moved = (prompts.forward(&graphs[0].0).unwrap() - first).unwrap().abs().unwrap().max_all().unwrap();
    assert!(moved.to_scalar::<f64>().unwrap() > 0.05, "prompts have learned");
}
