//! The parameters of a model: variables by name, each with its anchor.
//!
//! [`Params::open`] reads a checkpoint, [`Params::var_builder`] hands its tensors to a candle model, and what the model
//! has asked for can then be trained, saved and reported. Loading is lazy: a tensor is read when it is asked for.

mod anchor;
mod backend;
mod blocks;
mod error;
mod init;
mod options;
mod registry;
mod report;
mod values;
mod var_map;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{Device, Tensor, Var};
use tpgm_core::{Group, ParamSet, TensorSpec};

pub use self::anchor::Anchor;
pub use self::error::{Error, Result};
pub(crate) use self::options::Patterns;
use self::options::Role;
use self::registry::{Origin, Registry};
pub use self::report::Report;
use crate::files::{AnchorData, OpenOptions, Source};
use crate::memory::{core_dtype, to_buffer};

/// One variable of a model with its name and anchor. Cheap to clone: clones share the variable.
#[derive(Debug, Clone)]
pub struct Param {
    name: String,
    var: Var,
    anchor: Anchor,
}

impl Param {
    /// A parameter.
    pub fn new(name: impl Into<String>, var: Var, anchor: Anchor) -> Self {
        Self { name: name.into(), var, anchor }
    }

    /// A parameter whose anchor is a copy of what the variable holds now.
    ///
    /// # Errors
    ///
    /// [`Error::ElementType`](crate::memory::Error::ElementType), or the device fails.
    pub fn anchored_here(name: impl Into<String>, var: Var) -> Result<Self> {
        let name = name.into();
        let anchor = Anchor::Pretrained(AnchorData::new(to_buffer(&name, var.as_tensor())?));
        Ok(Self { name, var, anchor })
    }

    /// Its unique name, as the model has it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The variable.
    pub fn var(&self) -> &Var {
        &self.var
    }

    /// Where its displacement is measured from.
    pub fn anchor(&self) -> &Anchor {
        &self.anchor
    }

    fn spec(&self) -> Result<TensorSpec> {
        let dtype = core_dtype(&self.name, self.var.dtype())?;
        Ok(TensorSpec { name: self.name.clone(), shape: self.var.dims().to_vec(), dtype })
    }
}

/// The parameters of a model and the groups with settings of their own. Clones share both.
///
/// ```no_run
/// use candle_core::{Device, Tensor};
/// use candle_nn::{Module, linear};
/// use tpgm_candle::Params;
///
/// let device = Device::Cpu;
/// let params = Params::open("pretrained.safetensors", &device)?.head("classifier.*").freeze("embeddings.*");
/// let vb = params.var_builder();
/// let layers = (linear(384, 384, vb.pp("pooler.dense"))?, linear(384, 10, vb.pp("classifier"))?);
/// println!("{}", params.report()?);
/// # Ok::<(), tpgm_candle::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Params {
    registry: Arc<Mutex<Registry>>,
    source: Arc<Source>,
    device: Device,
}

impl Default for Params {
    /// No checkpoint, on the CPU.
    fn default() -> Self {
        Self::new(&Device::Cpu)
    }
}

impl Params {
    /// No checkpoint: every tensor that a model asks for must be under a head. For pre-training,
    /// `Params::new(&device).head("*")`.
    pub fn new(device: &Device) -> Self {
        Self { registry: Arc::default(), source: Arc::default(), device: device.clone() }
    }

    /// A checkpoint: a safetensors file, what PyTorch's `torch.save` wrote, the `*.index.json` of a sharded checkpoint, or a
    /// folder with one of these. The content decides what a file is, not its name.
    ///
    /// Of a PyTorch file that holds more than weights (an epoch, an optimizer's state) the weights are taken: those under
    /// `state_dict`, `model`, `model_state_dict`, `module`, `net`, `params` or another usual key, also two or three keys
    /// deep. A moving average (`state_dict_ema`, `model_ema`, `teacher`) is taken only if there is nothing else, or if it is
    /// named with [`Params::open_with`]. The report says which key it was. Where it is not plain which tensors are the
    /// weights, the error lists the keys.
    ///
    /// Files are memory-mapped, and on the CPU anchors are read from the map: they take no memory of their own. So **the file must not be changed in place while the parameters live** (replacing it by renaming is fine).
    /// Otherwise anchors change, or the process is stopped by the system if the file becomes shorter.
    ///
    /// # Errors
    ///
    /// [`Error::Io`](crate::files::Error::Io), [`Error::BadFile`](crate::files::Error::BadFile) or [`Error::BadTensor`](crate::files::Error::BadTensor).
    pub fn open(path: impl AsRef<Path>, device: &Device) -> Result<Self> {
        Self::open_all([path], device)
    }

    /// A checkpoint, opened with options: see [`Params::open`].
    ///
    /// # Errors
    ///
    /// As [`Params::open`], or no file has tensors under the key that the options name.
    pub fn open_with(path: impl AsRef<Path>, options: &OpenOptions, device: &Device) -> Result<Self> {
        Self::open_all_with([path], options, device)
    }

    /// Several checkpoints as one, for example an encoder and a decoder: see [`Params::open`].
    ///
    /// # Errors
    ///
    /// As [`Params::open`], or a name is in two files.
    pub fn open_all<P: AsRef<Path>>(paths: impl IntoIterator<Item = P>, device: &Device) -> Result<Self> {
        Self::open_all_with(paths, &OpenOptions::default(), device)
    }

    /// Several checkpoints as one, opened with options: see [`Params::open_all`].
    ///
    /// # Errors
    ///
    /// As [`Params::open_all`] and [`Params::open_with`].
    pub fn open_all_with<P: AsRef<Path>>(
        paths: impl IntoIterator<Item = P>,
        options: &OpenOptions,
        device: &Device,
    ) -> Result<Self> {
        let source = Arc::new(Source::open(paths, options)?);
        Ok(Self { source, ..Self::new(device) })
    }

    /// Parameters that exist already.
    ///
    /// # Errors
    ///
    /// [`Error::DuplicateParam`].
    pub fn from_params(params: impl IntoIterator<Item = Param>) -> Result<Self> {
        let mut params = params.into_iter().peekable();
        let device = params.peek().map_or(Device::Cpu, |param| param.var.device().clone());
        let this = Self::new(&device);
        params.try_for_each(|param| this.insert(param))?;
        Ok(this)
    }

    /// Adds a parameter.
    ///
    /// # Errors
    ///
    /// [`Error::DuplicateParam`].
    pub fn insert(&self, param: Param) -> Result<()> {
        self.registry().insert(param, Origin::Given)
    }

    /// Gives the parameters that a group's patterns select settings of their own. Later groups win. Patterns are
    /// checked when an optimizer is made: the model's names are not known before.
    #[must_use]
    pub fn group(self, group: Group) -> Self {
        self.registry().groups.push(group);
        self
    }

    /// All trainable parameters, sorted by name.
    pub fn all(&self) -> Vec<Param> {
        self.registry().params.values().cloned().collect()
    }

    /// The trainable parameter of this name.
    ///
    /// # Errors
    ///
    /// [`Error::UnknownParam`].
    pub fn get(&self, name: &str) -> Result<Param> {
        self.registry().params.get(name).cloned().ok_or_else(|| Error::UnknownParam { name: name.to_owned() })
    }

    /// Names, shapes, types and groups, in the order of [`Params::all`].
    ///
    /// # Errors
    ///
    /// A pattern that matches nothing, an element type that cannot be trained, or [`Error::LeftOut`]: a tensor of the
    /// checkpoint inside a block that the model loaded, for which it did not ask.
    pub fn set(&self) -> Result<ParamSet> {
        let registry = self.registry();
        self.check(&registry)?;
        let mut set = ParamSet::builder();
        for param in registry.params.values() {
            set = set.tensors([param.spec()?]);
            if let Some(group) = param.anchor.group(&param.name) {
                set = set.group(group);
            }
        }
        Ok(set.groups(registry.groups.iter().cloned()).build()?)
    }

    /// The values of all trainable parameters by name; they share storage with the variables.
    pub fn tensors(&self) -> BTreeMap<String, Tensor> {
        self.all().into_iter().map(|param| (param.name, param.var.into_inner())).collect()
    }

    /// State of the model that is not trained, such as running statistics of batch norm, by name. The tensors are
    /// variables, which layers update in place.
    pub fn buffers(&self) -> BTreeMap<String, Tensor> {
        self.constants(Role::Buffer)
    }

    /// Tensors that a pattern froze, by name.
    pub fn frozen(&self) -> BTreeMap<String, Tensor> {
        self.constants(Role::Frozen)
    }

    fn constants(&self, wanted: Role) -> BTreeMap<String, Tensor> {
        let registry = self.registry();
        let constants = registry.constants.iter().filter(|(_, (role, _))| *role == wanted);
        constants.map(|(name, (_, tensor))| (name.clone(), tensor.clone())).collect()
    }

    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
