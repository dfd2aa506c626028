//! The `VarBuilder` through which a model finds its parameters.

use candle_core::{DType, Device, Shape, Tensor, Var};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};

use super::Params;
use super::anchor::Anchor;
use super::error::{Error, Result};
use super::init::initial;
use super::options::Role;
use super::registry::{Origin, Registry};
use crate::files::Value;
use crate::memory::{self, candle_dtype, cast, to_tensor, to_var};

impl Params {
    /// What candle's models are built from. A tensor that the model asks for becomes
    ///
    /// - a buffer, if it is a running statistic of batch norm or [`Params::buffer`] names it;
    /// - a new variable without an anchor, if [`Params::head`] names it;
    /// - a constant, if [`Params::freeze`] names it;
    /// - else a variable with the checkpoint's value and that value as its anchor.
    ///
    /// A name that is asked for again is the same variable. Models that look for optional tensors find those of the
    /// checkpoint, and heads whose name was given in full, without a wildcard.
    ///
    /// The builder returns candle's error, with this crate's [`Error`] as its text, for a name that is neither in the
    /// checkpoint nor under a head, another shape than the checkpoint's, and what makes files unreadable.
    pub fn var_builder(&self) -> VarBuilder<'static> {
        let dtype = self.registry().options.dtype;
        VarBuilder::from_backend(Box::new(Backend { params: self.clone() }), dtype, self.device.clone())
    }
}

struct Backend {
    params: Params,
}

/// What the model asks for.
struct Request<'a> {
    name: &'a str,
    /// `None`: the checkpoint's.
    shape: Option<Shape>,
    init: Init,
    dtype: DType,
    device: &'a Device,
}

impl SimpleBackend for Backend {
    fn get(
        &self,
        shape: Shape,
        name: &str,
        init: Init,
        dtype: DType,
        device: &Device,
    ) -> candle_core::Result<Tensor> {
        Ok(self.find(Request { name, shape: Some(shape), init, dtype, device })?)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, device: &Device) -> candle_core::Result<Tensor> {
        Ok(self.find(Request { name, shape: None, init: Init::default(), dtype, device })?)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        let registry = self.params.registry();
        registry.origins.contains_key(name)
            || registry.options.head.names(name)
            || self.params.source.shape(&registry.options.checkpoint_name(name)).is_some()
    }
}

impl Backend {
    fn find(&self, request: Request<'_>) -> Result<Tensor> {
        let mut registry = self.params.registry();
        if let Some(tensor) = registry.tensor(request.name) {
            return request.same(tensor);
        }
        let role = registry.options.role(request.name);
        let key = registry.options.checkpoint_name(request.name);
        let storage = self.params.source.storage(&key).map(str::to_owned);
        if registry.options.head.matches(request.name) {
            // A head in the checkpoint, with whatever shape, is set aside.
            return self.fresh(&mut registry, request, role, storage);
        }
        let Some(storage) = storage else { return Err(self.missing(request.name, key)) };
        if let Some((first, tensor)) = registry.holder(&storage, role) {
            let tensor = request.same(tensor)?;
            registry.origins.insert(request.name.to_owned(), Origin::Tied { to: first, key });
            return Ok(tensor);
        }
        let tensor = self.load(&mut registry, &request, role, &key)?;
        registry.holders.insert((storage, role), request.name.to_owned());
        registry.origins.insert(request.name.to_owned(), Origin::Loaded { key });
        Ok(tensor)
    }

    fn fresh(
        &self,
        registry: &mut Registry,
        request: Request<'_>,
        role: Role,
        replaces: Option<String>,
    ) -> Result<Tensor> {
        let Request { name, shape, init, dtype, device } = request;
        let shape = shape.ok_or_else(|| Error::HeadWithoutShape { tensor: name.to_owned() })?;
        let var = Var::from_tensor(&initial(init, name, registry.options.seed, &shape, dtype, device)?)?;
        let anchor = if registry.options.zero_anchor.matches(name) { Anchor::Zero } else { Anchor::None };
        let tensor = registry.enter(name, role, var.into_inner(), anchor)?;
        registry.origins.insert(name.to_owned(), Origin::Fresh { replaces });
        Ok(tensor)
    }

    /// Reads what the checkpoint calls `key`.
    fn load(&self, registry: &mut Registry, request: &Request<'_>, role: Role, key: &str) -> Result<Tensor> {
        let &Request { name, ref shape, dtype, device, .. } = request;
        let source = &self.params.source;
        let (Some(stored), Some(path)) = (source.shape(key), source.path(key)) else {
            return Err(self.missing(name, key.to_owned()));
        };
        let shape = shape.clone().unwrap_or_else(|| stored.into());
        if shape.dims() != stored {
            return Err(Error::ShapeInFile {
                tensor: key.to_owned(),
                path: path.to_owned(),
                model: shape.into_dims(),
                file: stored.to_vec(),
            });
        }
        let Some(value) = source.read(key)? else {
            return Err(self.missing(name, key.to_owned()));
        };
        let (tensor, anchor) = match value {
            Value::Float(data) => {
                let same_type = candle_dtype(data.slice().dtype()) == dtype;
                let tensor = match role {
                    Role::Frozen => cast(&to_tensor(data.slice(), shape, device)?, dtype)?,
                    _ if same_type => to_var(data.slice(), shape, device)?.into_inner(),
                    _ => {
                        let tensor = cast(&to_tensor(data.slice(), shape, device)?, dtype)?;
                        Var::from_tensor(&tensor)?.into_inner()
                    }
                };
                (tensor, Anchor::Pretrained(data))
            }
            Value::Other(tensor) if role == Role::Trainable => {
                return Err(
                    memory::Error::ElementType { tensor: name.to_owned(), dtype: tensor.dtype() }.into()
                );
            }
            Value::Other(tensor) => {
                let tensor = cast(&tensor.to_device(device)?, dtype)?;
                let shared = role == Role::Buffer;
                (if shared { Var::from_tensor(&tensor)?.into_inner() } else { tensor }, Anchor::None)
            }
        };
        let anchor = if registry.options.zero_anchor.matches(name) { Anchor::Zero } else { anchor };
        registry.enter(name, role, tensor, anchor)
    }

    fn missing(&self, name: &str, key: String) -> Error {
        let source = &self.params.source;
        let mut close = source.close(&key);
        if close.is_empty() && key != name {
            close = source.close(name);
        }
        Error::NotInCheckpoint {
            tensor: name.to_owned(),
            key: key.into(),
            files: source.paths().map(Into::into).collect(),
            close,
        }
    }
}

impl Request<'_> {
    /// A tensor that exists, if it is what is asked for.
    fn same(&self, tensor: Tensor) -> Result<Tensor> {
        let asked = self.shape.as_ref().unwrap_or(tensor.shape()).dims();
        let device = tensor.device().same_device(self.device);
        if asked == tensor.dims() && self.dtype == tensor.dtype() && device {
            return Ok(tensor);
        }
        Err(Error::AskedDifferently {
            tensor: self.name.to_owned(),
            first: (tensor.dims().to_vec(), tensor.dtype()),
            now: (asked.to_vec(), self.dtype),
        })
    }
}
