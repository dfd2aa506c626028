//! What a closure may return from under a teacher's weights.

use std::collections::HashSet;

use candle_core::{Result, Tensor};

use crate::memory::storage_key;

/// Tensors that leave a teacher: one, several, or none.
pub trait Answer: Sized {
    /// The same values without a graph. `variables` are the storages that hold other values afterwards; tensors inside these are
    /// copied.
    #[doc(hidden)]
    fn without_graph(self, variables: &HashSet<usize>) -> Result<Self>;
}

impl Answer for Tensor {
    fn without_graph(self, variables: &HashSet<usize>) -> Result<Self> {
        let detached = self.detach();
        if variables.contains(&storage_key(&detached)) { detached.copy() } else { Ok(detached) }
    }
}

impl Answer for () {
    fn without_graph(self, _: &HashSet<usize>) -> Result<Self> {
        Ok(())
    }
}

impl<A: Answer> Answer for Vec<A> {
    fn without_graph(self, variables: &HashSet<usize>) -> Result<Self> {
        self.into_iter().map(|answer| answer.without_graph(variables)).collect()
    }
}

impl<A: Answer> Answer for Option<A> {
    fn without_graph(self, variables: &HashSet<usize>) -> Result<Self> {
        self.map(|answer| answer.without_graph(variables)).transpose()
    }
}

impl<A: Answer, B: Answer> Answer for (A, B) {
    fn without_graph(self, variables: &HashSet<usize>) -> Result<Self> {
        Ok((self.0.without_graph(variables)?, self.1.without_graph(variables)?))
    }
}

impl<A: Answer, B: Answer, C: Answer> Answer for (A, B, C) {
    fn without_graph(self, variables: &HashSet<usize>) -> Result<Self> {
        let (first, second) = (self.0, self.1).without_graph(variables)?;
        Ok((first, second, self.2.without_graph(variables)?))
    }
}
