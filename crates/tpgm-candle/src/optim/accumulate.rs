//! Gradients summed over several batches.

use std::collections::HashSet;

use candle_core::Tensor;
use rayon::prelude::*;
use tpgm_core::{Buffer, Slice, StateDict};

use super::error::{Error, Result};
use crate::engine::Operands;
use crate::memory::{Add, BLOCK, candle_dtype, cast, core_dtype, cpu_elements, to_buffer, to_tensor};

/// Name of a pending sum in saved state, after the tensor's name and a slash.
const SLOT: &str = "accumulated";

/// Sums in f32 (f64 for f64 variables). On the host they have memory of their own that is reused, on a GPU they are made by
/// candle's operations. A batch reads 8 and writes 4 bytes per f32 parameter.
#[derive(Default)]
pub(super) struct Accumulator {
    sums: Vec<Sum>,
    batches: usize,
}

#[derive(Default, Clone)]
struct Sum {
    memory: Option<Tensor>,
    /// Some batch since the last step had a gradient for the variable.
    filled: bool,
}

impl Accumulator {
    pub(super) fn new(tensors: usize) -> Self {
        Self { sums: vec![Sum::default(); tensors], batches: 0 }
    }

    /// Batches added since the last step.
    pub(super) fn batches(&self) -> usize {
        self.batches
    }

    /// Which variables got a gradient since the last step.
    pub(super) fn filled(&self) -> impl Iterator<Item = bool> {
        self.sums.iter().map(|sum| sum.filled)
    }

    /// Adds a batch of gradients from [`Operands::gradients`]. Of those that are `present`, but not here, it takes note.
    pub(super) fn add(
        &mut self,
        operands: &Operands,
        grads: &[Option<Tensor>],
        present: &[bool],
    ) -> Result<()> {
        let sums = self.sums.iter_mut().zip(operands.views()).zip(grads).zip(present);
        for (((sum, (name, weight)), grad), present) in sums {
            match grad {
                Some(grad) => sum.add(name, weight, grad)?,
                None => sum.filled |= *present,
            }
        }
        self.batches += 1;
        Ok(())
    }

    /// The sums, as gradients of a step.
    pub(super) fn sums(&self) -> Vec<Option<Tensor>> {
        self.sums.iter().map(|sum| sum.memory.clone().filter(|_| sum.filled)).collect()
    }

    /// Forgets all batches and keeps the memory.
    pub(super) fn clear(&mut self) {
        self.batches = 0;
        self.sums.iter_mut().for_each(|sum| sum.filled = false);
    }

    pub(super) fn state(&self, operands: &Operands) -> Result<StateDict> {
        let mut state = StateDict::new();
        for (sum, (name, _)) in self.sums.iter().zip(operands.vars()) {
            if let (Some(memory), true) = (&sum.memory, sum.filled) {
                state.insert(format!("{name}/{SLOT}"), to_buffer(name, memory)?);
            }
        }
        Ok(state)
    }

    /// Takes its slots out of a saved state: of the tensors that are held here.
    pub(super) fn load(
        operands: &Operands,
        state: &mut StateDict,
        batches: usize,
        holds: impl Fn(usize) -> bool,
    ) -> Result<Self> {
        let mut this = Self::new(operands.len());
        if batches == 0 {
            return Ok(this); // Sums without batches stay in `state`, where they are reported as unexpected.
        }
        for (i, (sum, (name, weight))) in this.sums.iter_mut().zip(operands.views()).enumerate() {
            if !holds(i) {
                // Whether another rank has a sum is not known here, and the audit has no reason to doubt it.
                sum.filled = true;
                continue;
            }
            let Some(saved) = state.remove(&format!("{name}/{SLOT}")) else { continue };
            check(name, weight, &saved)?;
            sum.memory = Some(to_tensor(saved.as_slice(), weight.shape(), weight.device())?);
            sum.filled = true;
        }
        this.batches = batches;
        Ok(this)
    }
}

impl Sum {
    fn add(&mut self, name: &str, weight: &Tensor, grad: &Tensor) -> Result<()> {
        if weight.device().is_cpu() {
            let add = if self.filled { Add::More } else { Add::First };
            self.memory(name, weight)?.inplace_op2(grad, &add)?;
        } else {
            let grad = cast(grad, candle_dtype(core_dtype(name, weight.dtype())?.compute()))?;
            let earlier = self.memory.take().filter(|_| self.filled);
            self.memory = Some(earlier.map_or_else(|| Ok(grad.clone()), |sum| sum.add(&grad))?);
        }
        self.filled = true;
        Ok(())
    }

    /// Memory for the sum, on the host.
    fn memory(&mut self, name: &str, weight: &Tensor) -> Result<Tensor> {
        if let Some(memory) = &self.memory {
            return Ok(memory.clone());
        }
        let dtype = candle_dtype(core_dtype(name, weight.dtype())?.compute());
        Ok(self.memory.insert(Tensor::zeros(weight.shape(), dtype, weight.device())?).clone())
    }
}

fn check(name: &str, weight: &Tensor, saved: &Buffer) -> Result<()> {
    let (expected, got) = (core_dtype(name, weight.dtype())?.compute(), saved.dtype());
    if expected != got {
        let (tensor, what) = (name.to_owned(), SLOT);
        return Err(Error::Core(tpgm_core::Error::DTypeMismatch { tensor, what, expected, got }));
    }
    let (expected, got) = (weight.elem_count(), saved.len());
    if expected != got {
        let (tensor, what) = (name.to_owned(), SLOT);
        return Err(Error::Core(tpgm_core::Error::LengthMismatch { tensor, what, expected, got }));
    }
    Ok(())
}

/// Names the first tensor with an infinite or NaN gradient, and counts them, as a step does: blocks of one as one. For gradients
/// from [`Operands::gradients`].
pub(super) fn check_finite(operands: &Operands, grads: &[Option<Tensor>]) -> Result<()> {
    let present = operands.vars().zip(grads).filter_map(|(of, grad)| Some((of, grad.as_ref()?)));
    let (of, present): (Vec<_>, Vec<_>) = present.unzip();
    let finite = match present.first().is_none_or(|grad| grad.device().is_cpu()) {
        true => present.iter().map(|grad| finite(grad)).collect(),
        false => finite_elsewhere(&present)?,
    };
    let bad: Vec<_> = of.into_iter().zip(finite).filter(|(_, finite)| !finite).map(|(of, _)| of).collect();
    match bad.first() {
        None => Ok(()),
        Some((first, _)) => {
            let tensors: HashSet<_> = bad.iter().map(|(_, var)| var.id()).collect();
            let (tensor, count) = ((*first).to_owned(), tensors.len());
            Err(Error::Core(tpgm_core::Error::NonFiniteGradient { tensor, count }))
        }
    }
}

/// Whether each of some tensors that are not on the host is finite, with one wait for the device: `0 x` is 0 or NaN.
fn finite_elsewhere(grads: &[&Tensor]) -> Result<Vec<bool>> {
    let sum = |grad: &&Tensor| match grad.elem_count() {
        0 => Tensor::zeros((), candle_core::DType::F32, grad.device()),
        _ => grad.affine(0.0, 0.0)?.sum_all()?.to_dtype(candle_core::DType::F32),
    };
    let sums = grads.iter().map(sum).collect::<candle_core::Result<Vec<_>>>()?;
    Ok(Tensor::stack(&sums, 0)?.to_vec1::<f32>()?.into_iter().map(f32::is_finite).collect())
}

fn finite(grad: &Tensor) -> bool {
    let (storage, layout) = grad.storage_and_layout();
    match cpu_elements(&storage, layout) {
        Some(Slice::F64(x)) => all(x, |x| x.is_finite()),
        Some(Slice::F32(x)) => all(x, |x| x.is_finite()),
        Some(Slice::F16(x)) => all(x, |x| x.is_finite()),
        Some(Slice::BF16(x)) => all(x, |x| x.is_finite()),
        None => true,
    }
}

/// Whole blocks, without a branch per element, so that the compiler uses vector instructions.
fn all<T: Copy + Sync>(data: &[T], holds: impl Fn(T) -> bool + Sync) -> bool {
    data.par_chunks(BLOCK).all(|block| block.iter().fold(true, |ok, &x| ok & holds(x)))
}
