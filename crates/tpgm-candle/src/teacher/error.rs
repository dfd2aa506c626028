//! What can go wrong with a teacher.

use std::path::PathBuf;

use crate::room::into_candle;
use crate::{files, memory, optim, params, weight_space};

/// What can go wrong with a teacher.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A method refused its options or operands.
    #[error(transparent)]
    Core(#[from] tpgm_core::Error),
    /// candle failed: a shape, a device, a closure.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
    /// A tensor has another type or device than is needed.
    #[error(transparent)]
    Memory(#[from] memory::Error),
    /// A file cannot be read.
    #[error(transparent)]
    Files(#[from] files::Error),
    /// The parameters are not what is needed.
    #[error(transparent)]
    Params(#[from] params::Error),
    /// The moving average failed.
    #[error(transparent)]
    Optim(#[from] optim::Error),
    /// The anchors could not be put into the model.
    #[error(transparent)]
    WeightSpace(#[from] weight_space::Error),
    /// No parameter has an anchor, so a frozen teacher would be its student.
    #[error(
        "none of the {params} parameters has an anchor, so a frozen teacher would be its student; load the model from a \
         checkpoint, or give the teacher's with `Teacher::open`"
    )]
    NoAnchors {
        /// How many parameters there are.
        params: usize,
    },
    /// The files of a teacher lack a tensor of the student.
    #[error(
        "tensor `{tensor}`: the teacher's weights in {files:?} do not have it; is this the teacher of another model?"
    )]
    NotInTeacher {
        /// The tensor.
        tensor: String,
        /// The files.
        files: Vec<PathBuf>,
    },
    /// A tensor has one shape in the student and another in the teacher's file.
    #[error(
        "{}: tensor `{tensor}` has shape {teacher:?}, but the student's is {student:?}; is this the teacher of another model?",
        .path.display()
    )]
    TeacherShape {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Its shape in the student.
        student: Vec<usize>,
        /// Its shape in the teacher.
        teacher: Vec<usize>,
    },
}

/// A result with this room's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

into_candle!(Candle, Memory, Files, Params, Optim, WeightSpace);
