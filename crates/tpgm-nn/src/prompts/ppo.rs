//! A small policy that learns where prompts help.

use candle_core::{D, DType, Device, Module, Tensor, Var};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::layers::{Linear, log_softmax_last_dim};
use crate::random::SplitMix64;

/// Options of [`Ppo`]. The defaults are PRO-VPT's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PpoOptions {
    /// Learning rate of the actor.
    pub actor_lr: f64,
    /// Learning rate of the critic.
    pub critic_lr: f64,
    /// How far the ratio of new and old probability may be from 1.
    pub clip: f64,
    /// Passes over the rewards of an update.
    pub epochs: usize,
    /// Rewards per update, at least 2: they are standardized. Two become plus and minus 0.707, whatever they are.
    pub every: usize,
    /// What a later reward counts for an earlier choice.
    pub discount: f64,
    /// Share of the critic's squared error in the loss.
    pub value_weight: f64,
    /// Share of the policy's entropy, which is taken off the loss.
    pub entropy_weight: f64,
    /// Width of both hidden layers of both networks.
    pub hidden: usize,
}

impl Default for PpoOptions {
    fn default() -> Self {
        Self {
            actor_lr: 3e-4,
            critic_lr: 1e-3,
            clip: 0.2,
            epochs: 60,
            every: 2,
            discount: 1.0,
            value_weight: 0.5,
            entropy_weight: 0.01,
            hidden: 64,
        }
    }
}

/// A choice, and what the policy said of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Memory {
    /// What it saw: three numbers per block.
    pub state: Vec<f64>,
    /// The block it chose.
    pub action: usize,
    /// The logarithm of the choice's probability.
    pub log_probability: f64,
    /// The critic's value of the state.
    pub value: f64,
}

/// Proximal policy optimization (Schulman et al., 2017, arXiv 1707.06347) over the blocks of a model, as in PRO-VPT's published
/// code: actor and critic of two hidden layers with tanh, and per update, for each epoch,
///
/// `loss = mean(-min(r A, clip(r, 1 - c, 1 + c) A) + v (value - R)^2 - e entropy)`,
///
/// with `R` the discounted rewards, standardized with the deviation of a sample (plus 1e-8), `A = R - old value`, and `r` the
/// ratio of the new probability and the old one. Adam, a rate each for actor and critic.
#[derive(Debug)]
pub struct Ppo {
    options: PpoOptions,
    layers: usize,
    actor: Mlp,
    critic: Mlp,
    optimizers: [AdamW; 2],
    waiting: Vec<(Memory, f64)>,
}

/// Three layers; named as in the published code: 0, 2 and 4.
#[derive(Debug, Clone)]
struct Mlp([(Var, Var); 3]);

impl Mlp {
    fn new(
        sizes: [usize; 4],
        get: &mut dyn FnMut(&str, &[usize]) -> candle_core::Result<Var>,
    ) -> Result<Self> {
        let mut layer = |i: usize| -> candle_core::Result<(Var, Var)> {
            let name = 2 * i;
            let weight = get(&format!("{name}.weight"), &[sizes[i + 1], sizes[i]])?;
            Ok((weight, get(&format!("{name}.bias"), &[sizes[i + 1]])?))
        };
        Ok(Self([layer(0)?, layer(1)?, layer(2)?]))
    }

    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let layer = |i: usize, x: &Tensor| {
            let (weight, bias) = &self.0[i];
            Linear::new(weight.as_tensor().clone(), Some(bias.as_tensor().clone())).forward(x)
        };
        let x = layer(0, x)?.tanh()?;
        layer(2, &layer(1, &x)?.tanh()?)
    }

    fn vars(&self) -> Vec<Var> {
        self.0.iter().flat_map(|(weight, bias)| [weight.clone(), bias.clone()]).collect()
    }
}

impl Ppo {
    /// A policy over `layers` blocks. Its first weights depend on `seed` alone: uniform within one over the root of a layer's
    /// inputs, as PyTorch's.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOption`] for an option outside its range.
    pub fn new(layers: usize, options: PpoOptions, seed: u64) -> Result<Self> {
        let mut inputs = 1;
        Self::with_weights(layers, options, |name, shape| {
            let mut random = SplitMix64::named(seed, name);
            if let [_, columns] = shape {
                inputs = *columns; // the bias comes after its weight
            }
            let bound = (inputs as f64).sqrt().recip();
            let count = shape.iter().product();
            let values: Vec<f64> = (0..count).map(|_| bound * (2.0 * random.uniform() - 1.0)).collect();
            Var::from_vec(values, shape, &Device::Cpu)
        })
    }

    /// A policy with given weights, f64 or f32, by name and shape: `actor.0.weight` of shape (hidden, 3 layers) to
    /// `critic.4.bias`.
    ///
    /// # Errors
    ///
    /// [`Error::LayerOption`] for an option outside its range, or `get` fails.
    pub fn with_weights(
        layers: usize,
        options: PpoOptions,
        mut get: impl FnMut(&str, &[usize]) -> candle_core::Result<Var>,
    ) -> Result<Self> {
        check(layers, &options)?;
        let hidden = options.hidden;
        let mut net = |name: &str, outputs: usize| {
            let mut get = |layer: &str, shape: &[usize]| get(&format!("{name}.{layer}"), shape);
            Mlp::new([3 * layers, hidden, hidden, outputs], &mut get)
        };
        let (actor, critic) = (net("actor", layers)?, net("critic", 1)?);
        let adam = |net: &Mlp, lr| {
            AdamW::new(net.vars(), ParamsAdamW { lr, weight_decay: 0.0, ..Default::default() })
        };
        let optimizers = [adam(&actor, options.actor_lr)?, adam(&critic, options.critic_lr)?];
        Ok(Self { options, layers, actor, critic, optimizers, waiting: Vec::new() })
    }

    /// Blocks to choose from.
    pub fn layers(&self) -> usize {
        self.layers
    }

    /// All weights by name.
    pub fn weights(&self) -> Vec<(String, Tensor)> {
        let of = |name: &'static str, net: &Mlp| {
            let names =
                (0..3).flat_map(move |i| ["weight", "bias"].map(|part| format!("{name}.{}.{part}", 2 * i)));
            names.zip(net.vars().into_iter().map(Var::into_inner)).collect::<Vec<_>>()
        };
        [of("actor", &self.actor), of("critic", &self.critic)].concat()
    }

    /// Draws a block for a state of three numbers per block.
    ///
    /// # Errors
    ///
    /// A state of another length.
    pub fn choose(&self, state: &[f64], random: &mut SplitMix64) -> Result<Memory> {
        let states = self.states(&[state])?;
        let log_probabilities = log_softmax_last_dim(&self.actor.forward(&states)?)?.squeeze(0)?;
        let log_probabilities = log_probabilities.to_dtype(DType::F64)?.to_vec1::<f64>()?;
        let mut rest = random.uniform();
        let mut action = self.layers - 1;
        for (layer, log_probability) in log_probabilities.iter().enumerate() {
            rest -= log_probability.exp();
            if rest < 0.0 {
                action = layer;
                break;
            }
        }
        let value = self.critic.forward(&states)?.flatten_all()?.to_dtype(DType::F64)?.to_vec1::<f64>()?[0];
        Ok(Memory { state: state.to_vec(), action, log_probability: log_probabilities[action], value })
    }

    /// Takes in the reward of a choice, and updates after every [`PpoOptions::every`].
    ///
    /// # Errors
    ///
    /// A reward that is not finite, or as [`Ppo::update`].
    pub fn reward(&mut self, memory: Memory, reward: f64) -> Result<()> {
        if !reward.is_finite() {
            return Err(Error::Prompts { problem: format!("the reward of a move is {reward}") });
        }
        self.waiting.push((memory, reward));
        if self.waiting.len() >= self.options.every {
            let (memories, rewards): (Vec<_>, Vec<_>) = std::mem::take(&mut self.waiting).into_iter().unzip();
            self.update(&memories, &rewards)?;
        }
        Ok(())
    }

    /// Learns from choices and their rewards, in the order in which they were made. Returns the mean of the loss over the epochs.
    ///
    /// # Errors
    ///
    /// Fewer than two rewards, another number of choices, a choice of no block, or a state of another length.
    pub fn update(&mut self, memories: &[Memory], rewards: &[f64]) -> Result<f64> {
        let problem = |problem: String| Err(Error::Prompts { problem });
        if rewards.len() < 2 || memories.len() != rewards.len() {
            let (choices, rewards) = (memories.len(), rewards.len());
            return problem(format!(
                "{choices} choices and {rewards} rewards: there must be two or more, one each"
            ));
        }
        if let Some(memory) = memories.iter().find(|memory| memory.action >= self.layers) {
            return problem(format!(
                "there is no block {}; the policy chooses among {}",
                memory.action, self.layers
            ));
        }
        let states: Vec<&[f64]> = memories.iter().map(|memory| memory.state.as_slice()).collect();
        let states = self.states(&states)?;
        let (dtype, n) = (states.dtype(), memories.len());
        let column = |values: Vec<f64>| Tensor::from_vec(values, n, &Device::Cpu)?.to_dtype(dtype);
        let actions: Vec<u32> = memories.iter().map(|memory| memory.action as u32).collect();
        let actions = Tensor::from_vec(actions, (n, 1), &Device::Cpu)?;
        let returns = standardized(&discounted(rewards, self.options.discount));
        let advantages = returns.iter().zip(memories).map(|(reward, memory)| reward - memory.value).collect();
        let old = column(memories.iter().map(|memory| memory.log_probability).collect())?;
        let (returns, advantages) = (column(returns)?, column(advantages)?);
        let PpoOptions { clip, value_weight, entropy_weight, epochs, .. } = self.options;
        let mut total = 0.0;
        for _ in 0..epochs {
            let all = log_softmax_last_dim(&self.actor.forward(&states)?)?;
            let chosen = all.gather(&actions, 1)?.squeeze(1)?;
            let entropy = (all.exp()? * &all)?.sum(D::Minus1)?.neg()?;
            let values = self.critic.forward(&states)?.squeeze(1)?;
            let ratio = (chosen - &old)?.exp()?;
            let clipped = ratio.clamp(1.0 - clip, 1.0 + clip)?;
            let gain = (&ratio * &advantages)?.minimum(&(clipped * &advantages)?)?;
            let errors = (values - &returns)?.sqr()?.mean_all()?;
            let loss = ((errors * value_weight)? - (gain + (entropy * entropy_weight)?)?.mean_all()?)?;
            total += loss.to_dtype(DType::F64)?.to_scalar::<f64>()?;
            let grads = loss.backward()?;
            self.optimizers.iter_mut().try_for_each(|optimizer| optimizer.step(&grads))?;
        }
        Ok(total / epochs as f64)
    }

    fn states(&self, states: &[&[f64]]) -> Result<Tensor> {
        let width = 3 * self.layers;
        if let Some(state) = states.iter().find(|state| state.len() != width) {
            let problem =
                format!("a state has {} numbers, but {} blocks need {width}", state.len(), self.layers);
            return Err(Error::Prompts { problem });
        }
        let states = Tensor::from_vec(states.concat(), (states.len(), width), &Device::Cpu)?;
        Ok(states.to_dtype(self.actor.0[0].0.dtype())?)
    }
}

/// Of each reward and those after it: `R_i = r_i + discount R_(i+1)`.
fn discounted(rewards: &[f64], discount: f64) -> Vec<f64> {
    let mut returns = rewards.to_vec();
    for i in (0..returns.len().saturating_sub(1)).rev() {
        returns[i] += discount * returns[i + 1];
    }
    returns
}

fn standardized(values: &[f64]) -> Vec<f64> {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    let deviation = (values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt();
    values.iter().map(|x| (x - mean) / (deviation + 1e-8)).collect()
}

fn check(layers: usize, options: &PpoOptions) -> Result<()> {
    let counts = [
        ("layers", layers, 1),
        ("epochs", options.epochs, 1),
        ("every", options.every, 2),
        ("hidden", options.hidden, 1),
    ];
    for (option, value, least) in counts {
        if value < least {
            let range = if least == 1 { "at least 1" } else { "at least 2" };
            return Err(Error::LayerOption { op: "PPO", option, value: value as f64, range });
        }
    }
    for (option, value) in [
        ("actor_lr", options.actor_lr),
        ("critic_lr", options.critic_lr),
        ("clip", options.clip),
        ("discount", options.discount),
        ("value_weight", options.value_weight),
        ("entropy_weight", options.entropy_weight),
    ] {
        if !(value >= 0.0 && value.is_finite()) {
            return Err(Error::LayerOption { op: "PPO", option, value, range: "finite and at least 0" });
        }
    }
    Ok(())
}
