//! SeleKT and SAFT on candle's variables.

use candle_core::Tensor;
use candle_core::backprop::GradStore;
use tpgm_core::sparse::{self, SaftMask, SaftScore, Selekt, SelektIo};
use tpgm_core::{Buffer, Constraint, Cpu, ParamSet, Rule, Slice, StateDict, StepOptions, StepReport};

use super::divided::Engine;
use super::{Error, Result, RobustOptimizer};
use crate::audit::loss_value;
use crate::engine::Operands;
use crate::memory::{Elements, copy_elements, overwrite, to_buffer};
use crate::params::{Anchor, Param, Params};

/// Keeps of every parameter the entries that moved most and resets all others to the anchor (SeleKT, arXiv 2503.03656; see
/// [`Selekt`]), in place. Returns names and how many entries were kept, `None` for parameters that are excluded or have no anchor.
///
/// Half-precision weights that an optimizer trains are roundings of its masters: then give that optimizer, or its next step brings
/// back what was reset. Needs copies of the weights, and with an optimizer of its state, while it runs.
///
/// ```
/// use candle_core::{Device, Tensor, Var};
/// use tpgm_candle::core::sparse::Selekt;
/// use tpgm_candle::{Param, Params, optim::selekt};
/// let var = Var::new(&[1.0f32; 5], &Device::Cpu)?;
/// let params = Params::from_params([Param::anchored_here("w", var.clone())?])?;
/// var.set(&Tensor::new(&[1.1f32, 0.5, 1.0, 1.2, 0.9], &Device::Cpu)?)?; // training
/// let kept = selekt(&params, &Selekt { alpha: 0.4, ..Selekt::default() }, None)?;
/// assert_eq!(var.to_vec1::<f32>()?, [1.0, 0.5, 1.0, 1.2, 1.0]);
/// assert_eq!(kept, [("w".to_owned(), Some(2))]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
///
/// An option outside its range, a displacement that is NaN, an optimizer of other parameters or with state that is divided between
/// ranks, or the device fails. Nothing was changed then, unless a device fails half way.
pub fn selekt(
    params: &Params,
    options: &Selekt,
    optimizer: Option<&mut RobustOptimizer>,
) -> Result<Vec<(String, Option<usize>)>> {
    if optimizer.as_ref().is_some_and(|optimizer| matches!(optimizer.engine, Engine::Divided(_))) {
        return Err(Error::Divided { call: "selekt" });
    }
    let (all, set) = (params.all(), params.set()?);
    let mut state = optimizer.as_ref().map(|optimizer| optimizer.state()).transpose()?;
    let copy = |param: &Param| Ok(to_buffer(param.name(), param.var())?);
    let mut weights = all.iter().map(copy).collect::<Result<Vec<Buffer>>>()?;
    let mut masters: Vec<Option<Buffer>> = all
        .iter()
        .map(|param| state.as_mut().and_then(|state| state.remove(&format!("{}/master", param.name()))))
        .collect();
    let filled: std::collections::BTreeSet<String> = match &optimizer {
        Some(optimizer) => {
            let scalars = optimizer.scalars()?.into_iter();
            scalars.filter(|(_, scalars)| scalars.master_filled != 0.0).map(|(name, _)| name).collect()
        }
        None => Default::default(),
    };
    // A master that no step has filled yet holds nothing: the weights are what counts.
    for ((master, weight), param) in masters.iter_mut().zip(&weights).zip(&all) {
        if let Some(master) = master
            && !filled.contains(param.name())
        {
            copy_elements(weight.as_slice(), master.as_mut());
        }
    }
    let mut io: Vec<SelektIo<'_>> = Vec::with_capacity(all.len());
    for ((param, weight), master) in all.iter().zip(&mut weights).zip(&mut masters) {
        let mut operands = SelektIo::new(weight.as_mut());
        if let Anchor::Pretrained(anchor) = param.anchor() {
            operands = operands.anchor(anchor.slice());
        }
        if let Some(master) = master {
            operands = operands.master(master.as_mut());
        }
        io.push(operands);
    }
    let kept = options.project(&set, &mut io)?;
    drop(io);
    if let (Some(optimizer), Some(mut state)) = (optimizer, state) {
        let keys = all.iter().map(|param| format!("{}/master", param.name()));
        state.extend(keys.zip(masters).filter_map(|(key, master)| Some((key, master?))));
        optimizer.load_state(&state)?;
    }
    for (param, weight) in all.iter().zip(&weights) {
        overwrite(param.name(), param.var(), |to| {
            copy_elements(weight.as_slice(), to);
            Ok(())
        })?;
    }
    Ok(all.iter().map(|param| param.name().to_owned()).zip(kept).collect())
}

/// Collects gradients at the pre-trained weights, to select the entries that SAFT trains ([`sparse::Saft`], arXiv 2407.03036).
pub struct SaftSelection {
    set: ParamSet,
    operands: Operands,
    score: SaftScore,
}

impl SaftSelection {
    /// Of all parameters; no gradients yet.
    ///
    /// # Errors
    ///
    /// As for [`RobustOptimizer`]: patterns that match nothing, parameters that share memory.
    pub fn new(params: &Params) -> Result<Self> {
        let set = params.set()?;
        let score = SaftScore::new(&set);
        Ok(Self { operands: Operands::new(&params.all())?, score, set })
    }

    /// Adds the gradients of one batch. A parameter without one counts as zeros. Batches should be of one size.
    ///
    /// # Errors
    ///
    /// A gradient of another shape, type or device, or one that is not finite; the sums are then as before.
    pub fn add(&mut self, grads: &GradStore) -> Result<()> {
        let grads: Vec<_> = self.operands.vars().map(|(_, var)| grads.get(var).cloned()).collect();
        let grads = self.operands.gradients(&grads)?;
        let elements = self.operands.vars().zip(&grads).map(|((name, _), grad)| match grad {
            Some(grad) => Ok(Some(Elements::new(name, grad)?)),
            None => Ok(None),
        });
        let elements = elements.collect::<Result<Vec<_>>>()?;
        let slices: Vec<Option<Slice<'_>>> =
            elements.iter().map(|grad| grad.as_ref().map(Elements::slice)).collect();
        Ok(self.score.add(&slices)?)
    }

    /// Selects the entries with the largest sums.
    ///
    /// # Errors
    ///
    /// An option outside its range, or no batch was added.
    pub fn select(&self, options: &sparse::Saft) -> Result<SaftMask> {
        Ok(options.select(&self.score)?)
    }

    /// Names, shapes and groups of the parameters.
    pub fn set(&self) -> &ParamSet {
        &self.set
    }
}

/// Trains the entries that a [`SaftMask`] selects, and nothing else ([`sparse::SaftOptimizer`]): all state is of the size of the
/// selection. On the CPU.
///
/// ```
/// use candle_core::{Device, Var};
/// use tpgm_candle::core::sparse::Saft;
/// use tpgm_candle::optim::{SaftOptimizer, SaftSelection};
/// use tpgm_candle::{Constraint, Param, Params, Sgd};
/// let weight = Var::new(&[1.0f32, -4.0, 2.0], &Device::Cpu)?;
/// let params = Params::from_params([Param::anchored_here("weight", weight.clone())?])?;
/// let mut selection = SaftSelection::new(&params)?;
/// selection.add(&weight.sqr()?.sum_all()?.backward()?)?;
/// let mask = selection.select(&Saft { fraction: 0.4 })?;
/// let mut saft = SaftOptimizer::new(&params, mask, Sgd::default().lr(0.25), Constraint::None)?;
/// saft.backward_step(&weight.sqr()?.sum_all()?)?;
/// assert_eq!(weight.to_vec1::<f32>()?, [1.0, -2.0, 2.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct SaftOptimizer {
    operands: Operands,
    inner: sparse::SaftOptimizer,
    lr: f64,
}

impl SaftOptimizer {
    /// A rule, and a constraint if wanted, over the selected entries of `params`.
    ///
    /// # Errors
    ///
    /// An option outside its range, a mask that does not fit, parameters that share memory or are not on the CPU.
    pub fn new(
        params: &Params,
        mask: SaftMask,
        rule: impl Into<Rule>,
        constraint: impl Into<Constraint>,
    ) -> Result<Self> {
        let (set, all, rule, constraint) = (params.set()?, params.all(), rule.into(), constraint.into());
        if let Some(param) = all.iter().find(|param| !param.var().device().is_cpu()) {
            let device = param.var().device().location();
            return Err(crate::engine::Error::Device { tensor: param.name().to_owned(), device }.into());
        }
        let settings = set.settings(&rule, &constraint)?;
        let operands = Operands::new(&all)?.with_anchors(&all, &settings)?;
        let inner = sparse::SaftOptimizer::new(Cpu::new(), &set, mask, rule, constraint)?;
        Ok(Self { operands, inner, lr: rule.lr() })
    }

    /// Runs the backward pass of `loss` and takes a step. Returns the loss.
    ///
    /// # Errors
    ///
    /// A loss that is no finite scalar, the backward pass fails, or as [`SaftOptimizer::step`].
    pub fn backward_step(&mut self, loss: &Tensor) -> Result<f64> {
        let value = loss_value(loss)?;
        self.step(&loss.backward()?)?;
        Ok(value)
    }

    /// Takes a step.
    ///
    /// # Errors
    ///
    /// A gradient of another shape, type or device, or one that is not finite among the selected entries; nothing was changed then.
    pub fn step(&mut self, grads: &GradStore) -> Result<StepReport> {
        let grads: Vec<_> = self.operands.vars().map(|(_, var)| grads.get(var).cloned()).collect();
        let (inner, options) = (&mut self.inner, StepOptions::lr(self.lr));
        Ok(self.operands.with_cpu(&grads, |io| inner.step(io, &options))?)
    }

    /// Learning rate of the next step.
    pub fn learning_rate(&self) -> f64 {
        self.lr
    }

    /// Sets the learning rate of the steps that follow.
    pub fn set_learning_rate(&mut self, lr: f64) {
        self.lr = lr;
    }

    /// Which entries are trained.
    pub fn mask(&self) -> &SaftMask {
        self.inner.mask()
    }

    /// Copies all state out, the mask included.
    ///
    /// # Errors
    ///
    /// As [`sparse::SaftOptimizer::state`].
    pub fn state(&self) -> Result<StateDict> {
        Ok(self.inner.state()?)
    }

    /// Puts state back that [`SaftOptimizer::state`] copied out, the mask included.
    ///
    /// # Errors
    ///
    /// A missing, unexpected or misshapen slot; the optimizer is then unchanged.
    pub fn load_state(&mut self, state: &StateDict) -> Result<()> {
        self.inner.load_state(state).map_err(Error::from)
    }
}
