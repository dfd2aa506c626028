//! An optimizer's options.

use std::sync::Arc;

use candle_core::Tensor;
use tpgm_core::{Constraint, EngineOptions, Gradients, Group, Masters, ParamSet, Projection, Rule};

use super::RobustOptimizer;
use super::accumulate::Accumulator;
use super::audit::{AuditPolicy, GradientAudit};
use super::config::OptimizerConfig;
use super::divided::{Engine, Parts};
use super::error::{Error, Result};
use crate::distributed::{Communicator, equalize, or_refuse};
use crate::engine::{Operands, Place};
use crate::params::Params;

/// Collects options for a [`RobustOptimizer`].
///
/// ```
/// # use candle_core::{Device, Var};
/// # use tpgm_candle::{AdamW, Ftp, Param, Params, RobustOptimizer};
/// # let weight = Var::new(&[[1.0f32, -2.0], [0.5, 0.25]], &Device::Cpu)?;
/// # let params = Params::from_params([Param::anchored_here("weight", weight.clone())?])?;
/// let mut opt = RobustOptimizer::builder(&params)
///     .rule(AdamW::default().lr(1e-4))
///     .constraint(Ftp::default())
///     .max_grad_norm(1.0)
///     .accumulate(2)
///     .build()?;
/// let loss = weight.sqr()?.mean_all()?;
/// assert!(!opt.backward_step(&loss)?.taken);
/// assert!(opt.backward_step(&loss)?.taken);
/// # Ok::<(), tpgm_candle::Error>(())
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct OptimizerBuilder {
    params: Params,
    config: OptimizerConfig,
    threads: Option<usize>,
    audit: AuditPolicy,
    variances: Vec<(String, Tensor, Tensor)>,
    communicator: Option<Arc<dyn Communicator>>,
    divided: bool,
    #[cfg(feature = "cuda")]
    reports: tpgm_cuda::Reports,
}

impl OptimizerBuilder {
    pub(super) fn new(params: &Params) -> Self {
        Self {
            params: params.clone(),
            config: OptimizerConfig::default(),
            threads: None,
            audit: AuditPolicy::default(),
            variances: Vec::new(),
            communicator: None,
            divided: false,
            #[cfg(feature = "cuda")]
            reports: tpgm_cuda::Reports::default(),
        }
    }

    /// Takes all options of a saved configuration. Its groups replace those of the parameters if it has any.
    pub fn config(mut self, config: OptimizerConfig) -> Self {
        self.config = config;
        self
    }

    /// Sets the rule. Default AdamW with its defaults.
    pub fn rule(mut self, rule: impl Into<Rule>) -> Self {
        self.config.rule = rule.into();
        self
    }

    /// Sets the constraint. Default none.
    pub fn constraint(mut self, constraint: impl Into<Constraint>) -> Self {
        self.config.constraint = constraint.into();
        self
    }

    /// Sets whether half-precision weights get f32 masters. Default: they do.
    pub fn masters(mut self, masters: Masters) -> Self {
        self.config.engine = self.config.engine.masters(masters);
        self
    }

    /// Sets all choices about memory.
    pub fn engine(mut self, options: EngineOptions) -> Self {
        self.config.engine = options;
        self
    }

    /// Clips the global L2 norm of all gradients, as `torch.nn.utils.clip_grad_norm_`: `g * min(1, max / (norm + 1e-6))`.
    /// With accumulation the norm is that of the mean gradient.
    pub fn max_grad_norm(mut self, max: f64) -> Self {
        self.config.max_grad_norm = Some(max);
        self
    }

    /// Makes one step of the mean gradient of `batches` calls, at least 1.
    pub fn accumulate(mut self, batches: usize) -> Self {
        self.config.accumulate = batches;
        self
    }

    /// Multiplies losses before the backward pass and divides gradients after it, so that small gradients survive half
    /// precision. Above 0; default 1.
    pub fn loss_scale(mut self, scale: f64) -> Self {
        self.config.loss_scale = scale;
        self
    }

    /// Sets whether gradients are checked. Default: they are.
    pub fn gradients(mut self, gradients: Gradients) -> Self {
        self.config.gradients = gradients;
        self
    }

    /// Sets what the first step expects of gradients. Default: every tensor has one.
    pub fn audit(mut self, policy: AuditPolicy) -> Self {
        self.audit = policy;
        self
    }

    /// Runs steps on threads of their own. Default: rayon's current pool. Changes no bit of the results, and nothing on a
    /// GPU.
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = Some(threads);
        self
    }

    /// Gives a normalization scale its running variances, for [`FixedScale`](crate::FixedScale): `current` is read at
    /// every step, so it must share memory with the layer's (a clone of it does); `anchor` is the pre-trained one. Both
    /// have the shape of the parameter.
    pub fn variance(mut self, name: impl Into<String>, current: &Tensor, anchor: &Tensor) -> Self {
        self.variances.push((name.into(), current.clone(), anchor.clone()));
        self
    }

    /// Makes this optimizer one of several that train the same model: see [`distributed`](crate::distributed). Gradients
    /// become their means over all ranks before anything looks at them. [`build`](Self::build) makes the variables those
    /// of rank 0, and makes sure that anchors are the same, as they are if all ranks load one checkpoint, and the configuration.
    pub fn communicator(mut self, communicator: Arc<dyn Communicator>) -> Self {
        self.communicator = Some(communicator);
        self
    }

    /// Divides state between the ranks of the [`communicator`](Self::communicator), as ZeRO stage 1 does: a rank keeps
    /// masters, moments, displacements, importance, scalars and (on a GPU) anchors of its own tensors alone, `1 / ranks` of all;
    /// weights and gradients are whole on every rank. Tensors are given to ranks by size, so that no two ranks differ by
    /// more than one tensor, or one block of rows. Every rule and constraint gives the same bits as without, if the communicator's
    /// [`reduce_mean`](Communicator::reduce_mean) does.
    ///
    /// A tensor of more than 64 pieces of work (with [`CHUNK`](crate::core::plan::CHUNK), 4 MiB of f32) is cut by rows into blocks, which
    /// ranks keep like tensors, where that changes no bit: on the CPU; without a constraint, under L2-SP or DiGraP, and with MARS
    /// norms under a fixed radius or FTP. Ranks then send each other the few sums that such a tensor's step takes. It stays whole under L2
    /// norms, SPD, a pull, a fixed scale and TPGM, if a row is longer than a piece of work (16384 elements), or, where there are no norms of
    /// rows, if no block of rows ends with a piece.
    ///
    /// A step sends every gradient of another rank's tensor and every weight of an own one to each other rank once, in buckets
    /// with 4 MiB of each rank: with [`InProcess`](crate::distributed::InProcess) over `n` ranks `2 (n - 1) / n` times the size of the
    /// weights, as an all-reduce does. They do not overlap the backward pass: candle has all gradients only when it ends.
    ///
    /// A step happens on all ranks or on none: it is tried, sent, and taken back, before it is taken. What only the owner of a
    /// tensor can see, such as a gradient that is not finite, is its own error, and
    /// [`Error::Ranks`](crate::distributed::Error::Ranks) on the others.
    ///
    /// Anchors in a mapped file ([`Params::open`] on the CPU) take no memory on any rank. Those in memory stay there as long as
    /// `params`, or a clone of it, does; the optimizer itself keeps those of its own tensors.
    ///
    /// Scalars, norms, importance and state are then those of this rank's tensors: see [`RobustOptimizer::holds`].
    ///
    /// ```
    /// use std::sync::Arc;
    /// use std::thread;
    ///
    /// use candle_core::{Device, Var};
    /// use tpgm_candle::distributed::InProcess;
    /// use tpgm_candle::{AdamW, Ftp, Param, Params, RobustOptimizer};
    ///
    /// let rank = |communicator: InProcess| -> tpgm_candle::Result<(usize, Vec<f32>)> {
    ///     let (a, b) = (Var::new(&[0.5f32, 0.25], &Device::Cpu)?, Var::new(&[1.0f32, -1.0], &Device::Cpu)?);
    ///     let params = [Param::anchored_here("a", a.clone())?, Param::anchored_here("b", b.clone())?];
    ///     let mut optimizer = RobustOptimizer::builder(&Params::from_params(params)?)
    ///         .rule(AdamW::default().lr(0.1))
    ///         .constraint(Ftp::default())
    ///         .communicator(Arc::new(communicator))
    ///         .divide_state()
    ///         .build()?;
    ///     optimizer.backward_step(&(a.as_tensor() * b.as_tensor())?.sum_all()?)?;
    ///     Ok((optimizer.scalars()?.len(), a.to_vec1()?))
    /// };
    /// let ranks: Vec<_> = InProcess::group(2).into_iter().map(|c| thread::spawn(move || rank(c))).collect();
    /// let done = ranks.into_iter().map(|rank| rank.join().unwrap()).collect::<Result<Vec<_>, _>>()?;
    /// assert_eq!(done[0], done[1]); // one tensor each, and the same weights
    /// assert_eq!(done[0].0, 1);
    /// # Ok::<(), tpgm_candle::Error>(())
    /// ```
    pub fn divide_state(mut self) -> Self {
        self.divided = true;
        self
    }

    /// Sets when a GPU says that it refused a step, for example for a gradient that is not finite. It changes nothing then,
    /// whatever is chosen. By default ([`Reports::Late`](crate::Reports::Late)) the host does not wait for a step:
    /// the error is returned by a later call, which does nothing else, and [`StepInfo::grad_norm`](crate::StepInfo) is
    /// `None`. Changes nothing on the CPU and under [`TpgmConfig`](crate::TpgmConfig), where every call returns its own
    /// error.
    #[cfg(feature = "cuda")]
    pub fn reports(mut self, reports: tpgm_cuda::Reports) -> Self {
        self.reports = reports;
        self
    }

    /// Makes the optimizer.
    ///
    /// # Errors
    ///
    /// An option outside its range; a pattern that matches nothing; two parameters that share memory
    /// ([`Error::SharedStorage`](crate::engine::Error::SharedStorage)); parameters on a device that steps cannot run on
    /// ([`Error::Device`](crate::engine::Error::Device)) or on several ([`Error::Devices`](crate::engine::Error::Devices)); a variance for an unknown name or of another shape;
    /// [`Error::Ranks`](crate::distributed::Error::Ranks); [`Error::NoRanks`] for divided state without a communicator.
    pub fn build(self) -> Result<RobustOptimizer> {
        let (communicator, params) = (self.communicator.clone(), self.params.clone());
        let optimizer = or_refuse(communicator.as_deref(), self.prepare())?;
        if let Some(communicator) = communicator {
            let config = ("configuration of the optimizer", optimizer.config());
            equalize(&*communicator, &params.all(), config)?;
        }
        Ok(optimizer)
    }

    fn prepare(self) -> Result<RobustOptimizer> {
        #[cfg(feature = "cuda")]
        let reports = self.reports;
        let Self { params, mut config, threads, audit, variances, communicator, divided, .. } = self;
        let mut set = params.set()?;
        if !config.groups.is_empty() {
            let groups: Vec<Group> = config.groups.drain(..).collect();
            let tensors = set.tensors().iter().cloned();
            set = ParamSet::builder().tensors(tensors).groups(groups).build()?;
        }
        config.groups = set.groups().cloned().collect();
        check_options(&config)?;
        let params = params.all();
        let settings = set.settings(&config.rule, &config.constraint)?;
        let mut operands = Operands::new(&params)?;
        let audit = GradientAudit::new(&audit, &set)?;
        let place = Place::of(&params, threads)?;
        #[cfg(feature = "cuda")]
        let place = match divided
            || settings.iter().any(|settings| matches!(settings.constraint, Constraint::Tpgm(_)))
        {
            // A projection update, and the other ranks, must know what was refused before they go on.
            true => place.reports(tpgm_cuda::Reports::AtOnce),
            false => place.reports(reports),
        };
        let (rule, constraint, options) = (config.rule, config.constraint, config.engine);
        let engine = match (divided, &communicator) {
            (true, None) => return Err(Error::NoRanks),
            (true, Some(communicator)) => {
                let engine = |part: &ParamSet, _: &Operands| {
                    Ok(place.clone().optimizer(part, rule, constraint, options)?)
                };
                let chunk = place.cuts(options);
                let mut parts = Parts::new(communicator.clone(), &params, &set, &settings, chunk, engine)?;
                for (name, current, anchor) in variances {
                    parts.set_variance(&name, current, anchor)?;
                }
                Engine::Divided(Box::new(parts))
            }
            (false, _) => {
                operands = operands.with_anchors(&params, &settings)?;
                for (name, current, anchor) in variances {
                    operands.set_variance(&name, current, anchor)?;
                }
                Engine::Whole(place.optimizer(&set, rule, constraint, options)?)
            }
        };
        Ok(RobustOptimizer {
            accumulator: Accumulator::new(engine.units(&operands).len()),
            lr: config.rule.lr(),
            projection: Projection::Apply,
            positions: None,
            steps: 0,
            set,
            operands,
            engine,
            config,
            audit,
            communicator,
        })
    }
}

fn check_options(config: &OptimizerConfig) -> Result<()> {
    let above_zero = |option, value: f64| check(option, value, "a finite number above 0", |x| x > 0.0);
    above_zero("loss_scale", config.loss_scale)?;
    config.max_grad_norm.map_or(Ok(()), |max| above_zero("max_grad_norm", max))?;
    check("accumulate", config.accumulate as f64, "at least 1", |x| x >= 1.0)
}

/// Checks an option.
pub(crate) fn check(
    option: &'static str,
    value: f64,
    requirement: &'static str,
    holds: impl Fn(f64) -> bool,
) -> Result<()> {
    match value.is_finite() && holds(value) {
        true => Ok(()),
        false => Err(tpgm_core::Error::InvalidOption { option, value, requirement }.into()),
    }
}
