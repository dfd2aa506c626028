//! A teacher: the same model with other weights, asked about what the student sees.
//!
//! You need one for distillation: of the pre-trained model (Feature Protection, GIFT, Lipsum-FT), or of a moving average of the
//! student (CaRot). There is one model; its weights are exchanged while a closure runs.
//!
//! ```
//! use candle_core::{Device, Tensor, Var};
//! use tpgm_candle::nn::losses::{Divergence, distillation};
//! use tpgm_candle::teacher::Teacher;
//! use tpgm_candle::{Param, Params};
//!
//! let weight = Var::new(&[[1.0f32, 0.0], [0.0, 1.0]], &Device::Cpu)?;
//! let params = Params::from_params([Param::anchored_here("weight", weight.clone())?])?;
//! weight.set(&(weight.as_tensor() * 2.0)?)?; // training
//! let images = Tensor::new(&[[1.0f32, 3.0]], &Device::Cpu)?;
//! let logits = || images.matmul(&weight);
//!
//! let mut teacher = Teacher::frozen(&params)?;
//! let wanted = teacher.with(logits)?;
//! assert_eq!(wanted.to_vec2::<f32>()?, [[1.0, 3.0]]); // of the anchors
//! let loss = distillation(&logits()?, &wanted, 2.0, Divergence::CrossEntropy)?;
//! assert!(loss.backward()?.get(&weight).is_some());
//! # Ok::<(), tpgm_candle::Error>(())
//! ```

mod answer;
mod error;
mod momentum;

use std::collections::HashSet;
use std::path::Path;

use tpgm_core::{Buffer, StateDict};

pub use self::answer::Answer;
pub use self::error::{Error, Result};
pub use self::momentum::Momentum;
use crate::files::{OpenOptions, Source, Value};
use crate::memory::storage_key;
use crate::optim::Ema;
use crate::params::{Anchor, Param, Params};
use crate::weight_space::Interpolation;

/// Where the steps of an average are in its saved state. Averages have a `/` in their key.
const STEPS: &str = "steps";

/// A teacher of a model. See [the module](self).
///
/// | | memory per f32 parameter | while a closure runs |
/// |---|---|---|
/// | [`Teacher::frozen`], [`Teacher::open`] | 0: read from the mapped file | 4 for the student |
/// | [`Teacher::average`] | 4 | 4 for the student |
///
/// Buffers, such as running statistics of batch norm, are the student's: ask a teacher without `train`.
pub struct Teacher {
    params: Params,
    kind: Kind,
}

enum Kind {
    /// The weights are the anchors of these parameters, which share the student's variables.
    Frozen(Params),
    Average {
        ema: Box<Ema>,
        momentum: Momentum,
        every: u64,
        /// Steps of the student that it was told of.
        steps: u64,
    },
}

impl Teacher {
    /// The pre-trained model: every parameter at its anchor, which is read where it is. Factors of LoRA are 0, so an adapted
    /// model is the one without them. A parameter without an anchor, a new head, is the student's: compare features, or logits
    /// of a zero-shot head.
    ///
    /// # Errors
    ///
    /// [`Error::NoAnchors`].
    pub fn frozen(params: &Params) -> Result<Self> {
        let all = params.all();
        if all.iter().all(|param| matches!(param.anchor(), Anchor::None)) {
            return Err(Error::NoAnchors { params: all.len() });
        }
        Ok(Self { params: params.clone(), kind: Kind::Frozen(params.clone()) })
    }

    /// The weights of a checkpoint under the names of the model, for example those before the task at hand. The file is
    /// memory-mapped, as by [`Params::open`]: on the CPU it takes no memory of its own, and must not be changed in place.
    ///
    /// It must have every trainable parameter but factors of LoRA, which are 0 where it lacks them. What else it has is ignored.
    ///
    /// # Errors
    ///
    /// [`Error::Files`], or [`Error::NotInTeacher`] and [`Error::TeacherShape`] for the weights of another model.
    pub fn open(params: &Params, path: impl AsRef<Path>) -> Result<Self> {
        let source = Source::open([path], &OpenOptions::default())?;
        let mut teachers = Vec::new();
        for param in params.all() {
            let (name, var) = (param.name().to_owned(), param.var().clone());
            let Some(value) = source.read(&name)? else {
                if matches!(param.anchor(), Anchor::Zero) {
                    teachers.push(Param::new(name, var, Anchor::Zero));
                    continue;
                }
                let files = source.paths().map(Path::to_owned).collect();
                return Err(Error::NotInTeacher { tensor: name, files });
            };
            let shape = source.shape(&name).unwrap_or_default();
            if shape != var.dims() {
                let path = source.path(&name).map(Path::to_owned).unwrap_or_default();
                let (student, teacher) = (var.dims().to_vec(), shape.to_vec());
                return Err(Error::TeacherShape { path, tensor: name, student, teacher });
            }
            let anchor = match value {
                Value::Float(data) => Anchor::Pretrained(data),
                Value::Other(tensor) => {
                    let dtype = tensor.dtype();
                    return Err(crate::memory::Error::ElementType { tensor: name, dtype }.into());
                }
            };
            teachers.push(Param::new(name, var, anchor));
        }
        Ok(Self { params: params.clone(), kind: Kind::Frozen(Params::from_params(teachers)?) })
    }

    /// A moving average of the student, which starts as its copy: `teacher = m * teacher + (1 - m) * student` at the steps 0,
    /// `every`, twice `every`, and so on, with the [`Momentum`] of that step. CaRot (arXiv 2311.01723) takes
    /// [`Momentum::carot`] and 500.
    ///
    /// # Errors
    ///
    /// `every` is 0, a momentum outside `[0, 1]`, or as [`Ema::new`].
    pub fn average(params: &Params, momentum: Momentum, every: u64) -> Result<Self> {
        momentum.validate()?;
        if every == 0 {
            let (option, requirement) = ("teacher every", "at least 1");
            return Err(tpgm_core::Error::InvalidOption { option, value: 0.0, requirement }.into());
        }
        let ema = Box::new(Ema::new(params, momentum.at(0))?);
        Ok(Self { params: params.clone(), kind: Kind::Average { ema, momentum, every, steps: 0 } })
    }

    /// Tells it that the student has taken a step: call it after each. Returns the momentum if the average has moved. The first
    /// call is step 0, and moves it, as published. A frozen teacher does nothing.
    ///
    /// # Errors
    ///
    /// The device fails.
    pub fn update(&mut self) -> Result<Option<f64>> {
        match self.kind {
            Kind::Average { every, steps, .. } if steps.is_multiple_of(every) => self.update_now(),
            Kind::Average { ref mut steps, .. } => {
                *steps += 1;
                Ok(None)
            }
            Kind::Frozen(_) => Ok(None),
        }
    }

    /// [`Teacher::update`] that moves the average whatever step it is, for example at the end of training.
    ///
    /// # Errors
    ///
    /// The device fails.
    pub fn update_now(&mut self) -> Result<Option<f64>> {
        let Kind::Average { ema, momentum, steps, .. } = &mut self.kind else { return Ok(None) };
        let momentum = momentum.at(*steps);
        ema.set_decay(momentum)?;
        ema.update()?;
        *steps += 1;
        Ok(Some(momentum))
    }

    /// Runs a closure with the teacher's weights in the model, and returns what it returns, without a graph: nothing is trained
    /// through it. Afterwards the student's weights are there again, to the bit, also after an error or a panic.
    ///
    /// The closure takes no optimizer step and no other teacher. A weight that it returns is copied.
    ///
    /// # Errors
    ///
    /// What the closure returns, or the device fails.
    pub fn with<R: Answer>(&mut self, forward: impl FnOnce() -> candle_core::Result<R>) -> Result<R> {
        let variables: HashSet<usize> =
            self.params.all().iter().map(|param| storage_key(param.var())).collect();
        // The guards put the student back when they are dropped, whichever way this is left.
        match &mut self.kind {
            Kind::Frozen(params) => {
                let mut student = Interpolation::new(params)?;
                student.set(0.0)?;
                let answer = forward()?.without_graph(&variables)?;
                student.restore()?;
                Ok(answer)
            }
            Kind::Average { ema, .. } => {
                let student = ema.apply()?;
                let answer = forward()?.without_graph(&variables)?;
                student.restore()?;
                Ok(answer)
            }
        }
    }

    /// What has to be saved, for [`TrainState::state`](crate::TrainState::state): averages under `tensor/ema`, and the steps.
    /// Empty for a frozen teacher, which is in its file.
    ///
    /// # Errors
    ///
    /// The device fails.
    pub fn state(&self) -> Result<StateDict> {
        let Kind::Average { ema, steps, .. } = &self.kind else { return Ok(StateDict::new()) };
        let mut state = ema.state()?;
        state.insert(STEPS.to_owned(), Buffer::F64(vec![*steps as f64]));
        Ok(state)
    }

    /// Goes on from what [`Teacher::state`] gave, to the bit.
    ///
    /// # Errors
    ///
    /// An average that is missing, misshapen or of no tensor of this model, named; nothing was changed then.
    pub fn load_state(&mut self, state: &StateDict) -> Result<()> {
        let Kind::Average { ema, steps, .. } = &mut self.kind else {
            return match state.keys().next() {
                Some(key) => Err(tpgm_core::Error::UnexpectedSlot { key: key.clone() }.into()),
                None => Ok(()),
            };
        };
        let missing = || tpgm_core::Error::MissingSlot { key: STEPS.to_owned() };
        let mut averages = state.clone();
        let saved = averages.remove(STEPS).ok_or_else(missing)?.to_f64();
        let &[saved] = saved.as_slice() else { return Err(missing().into()) };
        ema.load_state(&averages)?;
        *steps = saved as u64;
        Ok(())
    }
}
