//! State of a tensor in memory of a backend.

use super::Backend;
use crate::element::DType;
use crate::error::Result;

/// State of parameter or row size that a tensor may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Slot {
    /// f32 copy of half-precision weights.
    Master,
    /// First Adam moment.
    ExpAvg,
    /// Second Adam moment.
    ExpAvgSq,
    /// Running maximum of the second moment (AMSGrad).
    MaxExpAvgSq,
    /// Momentum of SGD.
    MomentumBuffer,
    /// FTP: displacement before projection of the previous step. DiGraP: displacement before the previous step.
    Displacement,
    /// FTP: one over the row norms of the previous step (of the smaller of norm and radius with low memory).
    RowScale,
    /// TPGM: weights before projection, while a projection update runs. Not part of saved state.
    Remembered,
    /// [`Pull`](crate::Pull): importance of each element.
    Importance,
}

impl Slot {
    /// All slots.
    pub const ALL: [Slot; 9] = [
        Slot::Master,
        Slot::ExpAvg,
        Slot::ExpAvgSq,
        Slot::MaxExpAvgSq,
        Slot::MomentumBuffer,
        Slot::Displacement,
        Slot::RowScale,
        Slot::Remembered,
        Slot::Importance,
    ];

    /// Name in saved state; PyTorch's where PyTorch has one.
    pub const fn name(self) -> &'static str {
        match self {
            Slot::Master => "master",
            Slot::ExpAvg => "exp_avg",
            Slot::ExpAvgSq => "exp_avg_sq",
            Slot::MaxExpAvgSq => "max_exp_avg_sq",
            Slot::MomentumBuffer => "momentum_buffer",
            Slot::Displacement => "displacement",
            Slot::RowScale => "row_scale",
            Slot::Remembered => "remembered",
            Slot::Importance => "importance",
        }
    }
}

/// The slots of one tensor, in memory of backend `B`.
#[derive(Debug)]
pub struct Slots<B: Backend> {
    buffers: [Option<B::Buffer>; Slot::ALL.len()],
}

impl<B: Backend> Slots<B> {
    /// The memory of a slot, if the tensor has it.
    pub fn get(&self, slot: Slot) -> Option<&B::Buffer> {
        self.buffers[slot as usize].as_ref()
    }

    /// The memory of a slot to write to, if the tensor has it.
    pub fn get_mut(&mut self, slot: Slot) -> Option<&mut B::Buffer> {
        self.buffers[slot as usize].as_mut()
    }

    /// Zeros in every slot of `layout`: slot, element type, length.
    pub(crate) fn new(backend: &B, layout: impl IntoIterator<Item = (Slot, DType, usize)>) -> Result<Self> {
        let mut slots = Self { buffers: [const { None }; Slot::ALL.len()] };
        for (slot, dtype, len) in layout {
            slots.put(slot, backend.zeros(dtype, len)?);
        }
        Ok(slots)
    }

    /// Gives a slot other memory.
    pub(crate) fn put(&mut self, slot: Slot, buffer: B::Buffer) {
        self.buffers[slot as usize] = Some(buffer);
    }
}
