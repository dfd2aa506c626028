//! Methods of robust fine-tuning side by side: the same data, the same sweep, one table.
//!
//! An example says what is fine-tuned, as a [`Task`], and how long, as a [`Recipe`]. Every result is a file, so that an
//! interrupted study goes on where it was.

mod bootstrap;
mod experiment;
mod lab;
mod log;
mod marks;
mod method;
mod overview;
mod paired;
mod rates;
mod records;
mod report;
mod run;

use anyhow::{Result, ensure};
use candle_core::{Device, Tensor};
use candle_nn::VarBuilder;
use serde::{Deserialize, Serialize};
use tpgm_candle::Rule;
use tpgm_candle::nn::DropoutRng;

use crate::precision::Precision;
use crate::search::{Axes, Between};

pub use self::experiment::{Outcomes, Search, once, sweep};
pub use self::lab::{Lab, Outcome, Row, Setting, Wanted};
pub use self::log::{Log, Quantity, RADII};
pub use self::marks::Marks;
pub use self::method::Method;
pub use self::overview::{Ran, write_overview};
pub use self::records::{RecordArgs, Recorded, Records};
pub use self::report::{Described, write};
pub use self::run::{Net, Start};

/// Which samples.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pool {
    /// For training.
    Train,
    /// Held out, for learning radii.
    Radii,
    /// Both, for training: what a method would get if nothing were held out for radii.
    Both,
}

/// Which of a model's two behaviors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// With dropout, statistics of the batch, and other things that training does.
    Train,
    /// As it is used.
    Evaluate,
}

impl Mode {
    /// The flag of candle's `forward_t`.
    pub fn is_train(self) -> bool {
        self == Mode::Train
    }
}

/// What is fine-tuned, on what, and how it is judged.
pub trait Task: Sync {
    /// The network.
    type Model;
    /// Some samples.
    type Batch: Batch;

    /// What the names of the head's tensors begin with, before a dot.
    fn head(&self) -> &str;

    /// Patterns of tensors that are never trained.
    fn frozen(&self) -> &[&str] {
        &[]
    }

    /// Asks `vb` for every tensor.
    ///
    /// # Errors
    ///
    /// `vb` has no tensor of a name, or of another shape.
    fn model(&self, vb: VarBuilder, dropout: &DropoutRng) -> Result<Self::Model>;

    /// Number of samples.
    fn samples(&self, pool: Pool) -> usize;

    /// Reads samples, into the host's memory; `None` if none of them can be read. The same arguments give the same batch.
    ///
    /// # Errors
    ///
    /// What the task does not pass over.
    fn batch(&self, pool: Pool, samples: &[usize], epoch: u64) -> Result<Option<Self::Batch>>;

    /// Batches to make ahead on another thread.
    fn ahead(&self) -> usize {
        0
    }

    /// Mean loss of a batch that is where the model is.
    ///
    /// # Errors
    ///
    /// The model fails.
    fn loss(&self, model: &Self::Model, batch: &Self::Batch, mode: Mode) -> candle_core::Result<Tensor>;

    /// Names of the test sets. The first has the distribution of the training data.
    fn domains(&self) -> Vec<String>;

    /// Test sets that are also reported apart: a name, and positions in [`Task::domains`].
    fn groups(&self) -> Vec<(String, Vec<usize>)> {
        Vec::new()
    }

    /// For each of [`Task::domains`], what each sample is a sample of, such as the thing that several pictures show: samples
    /// of one thing are not independent. Empty where each stands for itself.
    fn units(&self) -> Vec<Vec<u64>> {
        Vec::new()
    }

    /// Judges a model that is on `device`.
    ///
    /// # Errors
    ///
    /// The model fails, or a set has no samples.
    fn scores(&self, model: &Self::Model, device: &Device) -> Result<Scores>;
}

/// Some samples. They are read on any thread, and brought to the model by the thread that trains it: on a GPU, what other
/// threads do has no order.
pub trait Batch: Send + Sized + 'static {
    /// The same samples on a device.
    ///
    /// # Errors
    ///
    /// The device has no memory for them.
    fn to_device(self, device: &Device) -> candle_core::Result<Self>;
}

/// Inputs and labels.
impl Batch for (Tensor, Tensor) {
    fn to_device(self, device: &Device) -> candle_core::Result<Self> {
        Ok((self.0.to_device(device)?, self.1.to_device(device)?))
    }
}

/// Shares in `[0, 1]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Scores {
    /// Accuracy on held-out samples of the training distribution: what settings are chosen by.
    pub choice: f64,
    /// Accuracy on each of [`Task::domains`].
    #[serde(rename = "domains")]
    pub accuracy: Vec<f64>,
    /// Macro-F1 on each of them; empty where it is not reported.
    #[serde(default)]
    pub macro_f1: Vec<f64>,
    /// Which samples of each of them were classified rightly; empty where it is not kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub right: Vec<Marks>,
}

impl Scores {
    /// Accuracy in the domain of fine-tuning.
    pub fn id(&self) -> f64 {
        self.accuracy[0]
    }

    /// Mean accuracy in the other domains; NaN if there are none.
    pub fn ood(&self) -> f64 {
        mean(&self.accuracy[1..])
    }
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// What a study starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// The checkpoint has no head for these classes: it is made anew, and WiSE-FT and TPGM post hoc go from a linear probe to
    /// LP-FT.
    New,
    /// As [`Head::New`], but every other method starts from the linear probe too, whose head it leaves unconstrained.
    Probed,
    /// The checkpoint classifies already, as a zero-shot model does: WiSE-FT and TPGM post hoc go from it to fine-tuning.
    InCheckpoint,
}

/// How every model of a study is trained.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// Where the head comes from.
    pub head: Head,
    /// Optimizer steps of a training run.
    pub steps: u64,
    /// Samples per step.
    pub batch: usize,
    /// Samples per update of radii.
    pub radii_batch: usize,
    /// The rule at a learning rate.
    pub rule: fn(f64) -> Rule,
    /// Steps in which the learning rate rises; along half a cosine wave it falls to zero afterwards.
    pub warmup: u64,
    /// Steps between two changes of the learning rate.
    pub lr_every: u64,
    /// Learning rate of the head, and of everything that is trained of a linear probe; `None`: as the rest.
    pub head_lr: Option<f64>,
    /// Learning rates of the linear probe, of which held-out samples choose one; empty: only `head_lr`.
    pub probe_rates: Vec<f64>,
    /// The global norm that gradients are clipped to.
    pub max_grad_norm: Option<f64>,
    /// The element type of weights and activations.
    pub precision: Precision,
    /// A run whose loss or gradient stops being finite counts as a failure with no sample right, instead of ending the study.
    pub count_derailed: bool,
    /// Learning rates of the rest that a sweep tries.
    pub rates: Vec<f64>,
    /// The learning rate without a sweep.
    pub rate: f64,
    /// Methods with another learning rate without a sweep.
    pub own_rates: Vec<(Method, f64)>,
    /// The strengths that a sweep tries.
    pub strengths: fn(Method) -> &'static [f64],
    /// The methods to compare, in the order of the table.
    pub methods: Vec<Method>,
    /// Steps between two checkpoints; 0 saves only when stopped.
    pub save_every: u64,
    /// Threads of a training run.
    pub threads: usize,
}

impl Recipe {
    /// The learning rate of a method without a sweep.
    fn rate(&self, method: Method) -> f64 {
        self.own_rates.iter().find(|(of, _)| *of == method).map_or(self.rate, |(_, rate)| *rate)
    }

    /// What a sweep tries of a method.
    fn axes(&self, method: Method) -> Axes {
        let rates = match method {
            Method::LinearProbe => self.probe_rates.clone(),
            Method::ZeroShot => Vec::new(),
            _ => self.rates.clone(),
        };
        let between = if method == Method::WiseFt { Between::Shares } else { Between::Factors };
        // A row begins with the best of its linear probes.
        Axes {
            rates,
            strengths: (self.strengths)(method).to_vec(),
            between,
            given: method == Method::LinearProbe,
        }
    }

    /// The method that goes from the linear probe, or from a head that is there, to where others are made of it.
    fn tuned(&self) -> Method {
        if self.head == Head::InCheckpoint { Method::FineTuning } else { Method::LpFt }
    }

    /// Whether a method is part of the row of runs that begins with the linear probe or the zero-shot model.
    fn in_row(&self, method: Method) -> bool {
        match method {
            Method::LinearProbe | Method::LpFt => self.head != Head::InCheckpoint,
            Method::ZeroShot | Method::FineTuning => self.head == Head::InCheckpoint,
            Method::WiseFt | Method::TpgmPostHoc => true,
            _ => false,
        }
    }

    /// Checks that the methods fit what the study starts from.
    ///
    /// # Errors
    ///
    /// Names the method that does not.
    pub fn validate(&self) -> Result<()> {
        ensure!(!self.methods.is_empty(), "no methods to compare");
        for method in &self.methods {
            let fits = match self.head {
                Head::New => *method != Method::ZeroShot,
                Head::Probed => !matches!(method, Method::ZeroShot | Method::FineTuning),
                Head::InCheckpoint => !matches!(method, Method::LinearProbe | Method::LpFt),
            };
            let why = match self.head {
                Head::New => "needs a checkpoint that classifies already",
                Head::Probed => "does not start from a linear probe, or is LP-FT if it does",
                Head::InCheckpoint => "makes a new head, but the checkpoint has one",
            };
            ensure!(fits, "{} {why}", method.name());
            let learns_radii = matches!(method, Method::Tpgm | Method::TpgmPostHoc);
            ensure!(
                !(learns_radii && self.precision == Precision::F16),
                "{} does not train in f16: its held-out loss is not scaled, so that small gradients vanish. Take --dtype bf16 or \
                 f32, or --methods without it",
                method.name()
            );
        }
        Ok(())
    }
}
