//! The small models of the cases, forward and backward by hand in f64.

use serde::Deserialize;

/// One parameter of a case, in the order in which the method visits them.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Param {
    pub(super) name: String,
    pub(super) shape: Vec<usize>,
    /// The method leaves it to the plain rule.
    #[serde(default)]
    pub(super) excluded: bool,
    /// False: it never has a gradient and never changes.
    #[serde(default = "yes")]
    pub(super) trainable: bool,
}

fn yes() -> bool {
    true
}

impl Param {
    pub(super) fn numel(&self) -> usize {
        self.shape.iter().product()
    }

    /// True if the method's constraint applies.
    pub(super) fn constrained(&self) -> bool {
        self.trainable && !self.excluded
    }
}

/// A model; the loss is the mean cross-entropy of its logits.
#[derive(Debug, Clone, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub(super) enum Model {
    /// `fcK`: `h -> h W^T + b`, with `tanh` between layers.
    Mlp {
        /// Widths, input first.
        dims: Vec<usize>,
        /// Shape of `unused.weight`, which is not in the graph, and of `dead.weight`, whose gradient is 0.
        extra: Option<Vec<usize>>,
        /// The logits are multiplied by the 0-dimensional `scale.weight`.
        #[serde(default)]
        scale: bool,
    },
    /// `conv1` (cross-correlation, stride 1, no padding), `tanh`, flatten, linear `head`.
    Conv {
        /// Channels, height, width.
        input: [usize; 3],
        out_channels: usize,
        /// Height, width.
        kernel: [usize; 2],
        classes: usize,
    },
}

/// Gradients in the order of the parameters; `None`: not in the graph.
pub(super) type Gradients = Vec<Option<Vec<f64>>>;

impl Model {
    /// Names and shapes of the parameters.
    fn parameters(&self) -> Vec<(String, Vec<usize>)> {
        match self {
            Model::Mlp { dims, extra, scale } => {
                let mut all = Vec::new();
                for (i, pair) in dims.windows(2).enumerate() {
                    all.push((format!("fc{}.weight", i + 1), vec![pair[1], pair[0]]));
                    all.push((format!("fc{}.bias", i + 1), vec![pair[1]]));
                }
                if let Some(shape) = extra {
                    all.push(("unused.weight".to_owned(), shape.clone()));
                    all.push(("dead.weight".to_owned(), shape.clone()));
                }
                if *scale {
                    all.push(("scale.weight".to_owned(), vec![]));
                }
                all
            }
            Model::Conv { input: [channels, ..], out_channels, kernel: [kh, kw], classes } => {
                let (oh, ow) = self.conv_output();
                let features = out_channels * oh * ow;
                vec![
                    ("conv1.weight".to_owned(), vec![*out_channels, *channels, *kh, *kw]),
                    ("conv1.bias".to_owned(), vec![*out_channels]),
                    ("head.weight".to_owned(), vec![*classes, features]),
                    ("head.bias".to_owned(), vec![*classes]),
                ]
            }
        }
    }

    fn conv_output(&self) -> (usize, usize) {
        match self {
            Model::Mlp { .. } => (0, 0),
            Model::Conv { input: [_, h, w], kernel: [kh, kw], .. } => {
                ((h + 1).saturating_sub(*kh), (w + 1).saturating_sub(*kw))
            }
        }
    }

    /// Elements of one input.
    pub(super) fn input_len(&self) -> usize {
        match self {
            Model::Mlp { dims, .. } => dims.first().copied().unwrap_or(0),
            Model::Conv { input, .. } => input.iter().product(),
        }
    }

    /// Number of logits.
    pub(super) fn classes(&self) -> usize {
        match self {
            Model::Mlp { dims, .. } => dims.last().copied().unwrap_or(0),
            Model::Conv { classes, .. } => *classes,
        }
    }

    /// Checks that `params` are this model's, in any order; the error says what is wrong.
    pub(super) fn check(&self, params: &[Param]) -> Result<(), String> {
        let empty = match self {
            Model::Mlp { dims, .. } => dims.len() < 2 || dims.contains(&0),
            Model::Conv { classes, .. } => self.conv_output().0 * self.conv_output().1 * classes == 0,
        };
        if empty {
            return Err("has a layer without inputs or outputs".to_owned());
        }
        let expected = self.parameters();
        for (name, shape) in &expected {
            match params.iter().filter(|p| p.name == *name).collect::<Vec<_>>()[..] {
                [param] if param.shape == *shape => {}
                [param] => {
                    return Err(format!(
                        "needs `{name}` of shape {shape:?}, but `params` says {:?}",
                        param.shape
                    ));
                }
                [] => return Err(format!("needs `{name}`, which `params` does not list")),
                _ => return Err(format!("has `{name}` twice in `params`")),
            }
        }
        match params.iter().find(|p| expected.iter().all(|(n, _)| *n != p.name)) {
            None => Ok(()),
            Some(param) => Err(format!("has no parameter `{}`", param.name)),
        }
    }

    /// Loss and gradients on one batch: `x` of `[batch, ...]`, `y` of `[batch]` below [`classes`](Model::classes).
    ///
    /// Expects what [`check`](Model::check) accepts.
    pub(super) fn evaluate(
        &self,
        params: &[Param],
        weights: &[Vec<f64>],
        x: &[f64],
        y: &[usize],
    ) -> (f64, Gradients) {
        let tensors = Tensors { params, weights };
        let mut grads: Gradients = vec![None; params.len()];
        let loss = match self {
            Model::Mlp { dims, extra, scale } => {
                if extra.is_some()
                    && let Some(i) = tensors.position("dead.weight")
                {
                    grads[i] = Some(vec![0.0; params[i].numel()]);
                }
                mlp(dims, *scale, &tensors, x, y, &mut grads)
            }
            Model::Conv { input, kernel, out_channels, classes } => {
                let geometry = Geometry {
                    input: *input,
                    kernel: *kernel,
                    out_channels: *out_channels,
                    output: self.conv_output(),
                };
                conv(&geometry, *classes, &tensors, x, y, &mut grads)
            }
        };
        (loss, grads)
    }
}

struct Tensors<'a> {
    params: &'a [Param],
    weights: &'a [Vec<f64>],
}

impl<'a> Tensors<'a> {
    fn position(&self, name: &str) -> Option<usize> {
        self.params.iter().position(|p| p.name == name)
    }

    fn get(&self, name: &str) -> &'a [f64] {
        self.position(name).map_or(&[], |i| &self.weights[i])
    }

    fn put(&self, grads: &mut Gradients, name: &str, grad: Vec<f64>) {
        if let Some(i) = self.position(name) {
            grads[i] = Some(grad);
        }
    }

    /// `h W^T + b` for `h` of `[batch, inputs]`.
    fn linear(&self, layer: &str, h: &[f64], inputs: usize) -> Vec<f64> {
        let weight = self.get(&format!("{layer}.weight"));
        let bias = self.get(&format!("{layer}.bias"));
        h.chunks(inputs)
            .flat_map(|h| {
                weight
                    .chunks(inputs)
                    .zip(bias)
                    .map(move |(w, b)| w.iter().zip(h).map(|(w, h)| w * h).sum::<f64>() + b)
            })
            .collect()
    }

    /// Stores the gradients of a linear layer and returns that of its input.
    fn linear_backward(
        &self,
        layer: &str,
        h: &[f64],
        d_out: &[f64],
        [inputs, outputs]: [usize; 2],
        grads: &mut Gradients,
    ) -> Vec<f64> {
        let weight = self.get(&format!("{layer}.weight"));
        let mut d_weight = vec![0.0; outputs * inputs];
        let mut d_bias = vec![0.0; outputs];
        let mut d_h = vec![0.0; h.len()];
        for (b, d_out) in d_out.chunks(outputs).enumerate() {
            for (o, d) in d_out.iter().enumerate() {
                d_bias[o] += d;
                for i in 0..inputs {
                    d_weight[o * inputs + i] += d * h[b * inputs + i];
                    d_h[b * inputs + i] += d * weight[o * inputs + i];
                }
            }
        }
        self.put(grads, &format!("{layer}.weight"), d_weight);
        self.put(grads, &format!("{layer}.bias"), d_bias);
        d_h
    }
}

/// Mean cross-entropy, and its gradient by the logits.
fn cross_entropy(logits: &[f64], y: &[usize], classes: usize) -> (f64, Vec<f64>) {
    let batch = y.len() as f64;
    let mut loss = 0.0;
    let mut d_logits = Vec::with_capacity(logits.len());
    for (z, &label) in logits.chunks(classes).zip(y) {
        let max = z.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let log_sum = max + z.iter().map(|z| (z - max).exp()).sum::<f64>().ln();
        loss += (log_sum - z[label]) / batch;
        d_logits.extend(z.iter().enumerate().map(|(k, z)| {
            let one = if k == label { 1.0 } else { 0.0 };
            ((z - log_sum).exp() - one) / batch
        }));
    }
    (loss, d_logits)
}

fn tanh_backward(d_h: &[f64], h: &[f64]) -> Vec<f64> {
    d_h.iter().zip(h).map(|(d, h)| d * (1.0 - h * h)).collect()
}

fn mlp(
    dims: &[usize],
    scale: bool,
    tensors: &Tensors<'_>,
    x: &[f64],
    y: &[usize],
    grads: &mut Gradients,
) -> f64 {
    let layers = dims.len() - 1;
    let name = |k: usize| format!("fc{}", k + 1);
    // inputs[k] is what layer k sees.
    let mut inputs = vec![x.to_vec()];
    for k in 0..layers - 1 {
        let out = tensors.linear(&name(k), &inputs[k], dims[k]);
        inputs.push(out.iter().map(|h| h.tanh()).collect());
    }
    let unscaled = tensors.linear(&name(layers - 1), &inputs[layers - 1], dims[layers - 1]);
    let factor = if scale { tensors.get("scale.weight")[0] } else { 1.0 };
    let logits: Vec<f64> = unscaled.iter().map(|z| factor * z).collect();

    let (loss, d_logits) = cross_entropy(&logits, y, dims[layers]);
    if scale {
        let d_scale = d_logits.iter().zip(&unscaled).map(|(d, z)| d * z).sum();
        tensors.put(grads, "scale.weight", vec![d_scale]);
    }
    let mut d_out: Vec<f64> = d_logits.iter().map(|d| factor * d).collect();
    for k in (0..layers).rev() {
        let d_h = tensors.linear_backward(&name(k), &inputs[k], &d_out, [dims[k], dims[k + 1]], grads);
        d_out = tanh_backward(&d_h, &inputs[k]);
    }
    loss
}

struct Geometry {
    input: [usize; 3],
    kernel: [usize; 2],
    out_channels: usize,
    output: (usize, usize),
}

impl Geometry {
    fn output_len(&self) -> usize {
        self.out_channels * self.output.0 * self.output.1
    }

    /// Calls `f(output, kernel, input)` with the indices of every product of the convolution.
    fn each(&self, mut f: impl FnMut(usize, usize, usize)) {
        let ([channels, height, width], [kh, kw], (oh, ow)) = (self.input, self.kernel, self.output);
        for o in 0..self.out_channels {
            for (row, col) in (0..oh).flat_map(|r| (0..ow).map(move |c| (r, c))) {
                let output = (o * oh + row) * ow + col;
                for c in 0..channels {
                    for (i, j) in (0..kh).flat_map(|i| (0..kw).map(move |j| (i, j))) {
                        let kernel = ((o * channels + c) * kh + i) * kw + j;
                        f(output, kernel, (c * height + row + i) * width + col + j);
                    }
                }
            }
        }
    }
}

fn conv(
    geometry: &Geometry,
    classes: usize,
    tensors: &Tensors<'_>,
    x: &[f64],
    y: &[usize],
    grads: &mut Gradients,
) -> f64 {
    let features = geometry.output_len();
    let pixels = features / geometry.out_channels;
    let inputs: usize = geometry.input.iter().product();
    let (weight, bias) = (tensors.get("conv1.weight"), tensors.get("conv1.bias"));
    let mut h = Vec::with_capacity(y.len() * features);
    for x in x.chunks(inputs) {
        let mut out: Vec<f64> = (0..features).map(|f| bias[f / pixels]).collect();
        geometry.each(|o, k, i| out[o] += weight[k] * x[i]);
        h.extend(out.iter().map(|z| z.tanh()));
    }
    let logits = tensors.linear("head", &h, features);

    let (loss, d_logits) = cross_entropy(&logits, y, classes);
    let d_h = tensors.linear_backward("head", &h, &d_logits, [features, classes], grads);
    let d_out = tanh_backward(&d_h, &h);
    let mut d_weight = vec![0.0; weight.len()];
    let mut d_bias = vec![0.0; bias.len()];
    for (x, d_out) in x.chunks(inputs).zip(d_out.chunks(features)) {
        geometry.each(|o, k, i| d_weight[k] += d_out[o] * x[i]);
        for (f, d) in d_out.iter().enumerate() {
            d_bias[f / pixels] += d;
        }
    }
    tensors.put(grads, "conv1.weight", d_weight);
    tensors.put(grads, "conv1.bias", d_bias);
    loss
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Deterministic values in [-1, 1).
    fn values(len: usize, seed: u64) -> Vec<f64> {
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        (0..len)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 40) as f64 / (1u64 << 23) as f64 - 1.0
            })
            .collect()
    }

    fn check_gradients(json: &str, unused: &[&str]) {
        let model: Model = serde_json::from_str(json).unwrap();
        let params: Vec<Param> = model
            .parameters()
            .into_iter()
            .rev()
            .map(|(name, shape)| Param { name, shape, excluded: false, trainable: true })
            .collect();
        model.check(&params).unwrap();
        let batch = 3;
        let x = values(batch * model.input_len(), 1);
        let y: Vec<usize> = (0..batch).map(|b| b % model.classes()).collect();
        let mut weights: Vec<Vec<f64>> = (2..).zip(&params).map(|(s, p)| values(p.numel(), s)).collect();
        let (loss, grads) = model.evaluate(&params, &weights, &x, &y);
        assert!(loss > 0.0);
        for i in 0..params.len() {
            if unused.contains(&params[i].name.as_str()) {
                assert!(grads[i].is_none());
                continue;
            }
            for j in 0..weights[i].len() {
                let mut at = |delta: f64| {
                    let old = weights[i][j];
                    weights[i][j] = old + delta;
                    let (loss, _) = model.evaluate(&params, &weights, &x, &y);
                    weights[i][j] = old;
                    loss
                };
                let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
                let grad = grads[i].as_ref().unwrap()[j];
                assert!((slope - grad).abs() < 1e-9, "{}[{j}]: {slope} {grad}", params[i].name);
            }
        }
    }

    #[test]
    fn gradients_of_the_mlp_are_its_slopes() {
        check_gradients(r#"{"kind": "mlp", "dims": [4, 3]}"#, &[]);
        check_gradients(
            r#"{"kind": "mlp", "dims": [4, 5, 3, 2], "extra": [2, 2], "scale": true}"#,
            &["unused.weight"],
        );
    }

    #[test]
    fn gradients_of_the_convolution_are_its_slopes() {
        check_gradients(
            r#"{"kind": "conv", "input": [2, 4, 5], "out_channels": 3, "kernel": [2, 3], "classes": 4}"#,
            &[],
        );
    }

    #[test]
    fn the_loss_of_equal_logits_is_the_logarithm_of_their_number() {
        let (loss, grad) = cross_entropy(&[700.0, 700.0, 700.0, 700.0], &[2], 4);
        assert!((loss - 4.0f64.ln()).abs() < 1e-12);
        for (got, expected) in grad.iter().zip([0.25, 0.25, -0.75, 0.25]) {
            assert!((got - expected).abs() < 1e-12, "{grad:?}");
        }
    }

    #[test]
    fn parameters_that_are_not_the_models_are_refused() {
        let model: Model = serde_json::from_str(r#"{"kind": "mlp", "dims": [2, 1]}"#).unwrap();
        let param = |name: &str, shape: &[usize]| Param {
            name: name.to_owned(),
            shape: shape.to_vec(),
            excluded: false,
            trainable: true,
        };
        let (weight, bias) = (param("fc1.weight", &[1, 2]), param("fc1.bias", &[1]));
        let problem = |params: &[Param]| model.check(params).unwrap_err();
        assert!(problem(std::slice::from_ref(&weight)).contains("fc1.bias"));
        assert!(problem(&[weight.clone(), param("fc1.bias", &[2])]).contains("[2]"));
        assert!(problem(&[weight, bias, param("fc2.bias", &[1])]).contains("fc2.bias"));
    }
}
