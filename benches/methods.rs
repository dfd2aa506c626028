//! What is measured: methods, the bytes they must move, and the peers they are compared with.

use tpgm_core::{
    AdamW, Constraint, DType, Digrap, FixedRadius, Ftp, Gradients, L2Sp, Norm, Pull, PullWeights, Rule, Sgd,
    Spd, Tpgm,
};

use crate::data::Parts;

/// How often an operation goes over each kind of memory; what it finds in a cache is not counted. The same on every
/// backend: see the table in [`tpgm_core::cpu`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    /// Reads of the weights, or of what stands for them: masters, remembered weights.
    pub weights_read: usize,
    /// Writes of the same.
    pub weights_written: usize,
    /// Reads of what has the element type of the weights and is never written: gradients, anchors.
    pub inputs_read: usize,
    /// Reads of state kept in the compute type: moments, momentum, displacements.
    pub state_read: usize,
    /// Writes of the same.
    pub state_written: usize,
}

impl Traffic {
    const fn and(self, other: Traffic) -> Traffic {
        Traffic {
            weights_read: self.weights_read + other.weights_read,
            weights_written: self.weights_written + other.weights_written,
            inputs_read: self.inputs_read + other.inputs_read,
            state_read: self.state_read + other.state_read,
            state_written: self.state_written + other.state_written,
        }
    }
}

const NOTHING: Traffic =
    Traffic { weights_read: 0, weights_written: 0, inputs_read: 0, state_read: 0, state_written: 0 };
/// The gradient, to see that it is finite before anything is changed.
const CHECK: Traffic = Traffic { inputs_read: 1, ..NOTHING };
/// Weight, gradient and two moments. What PyTorch does, which does not look whether gradients are finite.
const ADAMW_TRUSTED: Traffic =
    Traffic { weights_read: 1, weights_written: 1, inputs_read: 1, state_read: 2, state_written: 2 };
/// The same, and the check.
const ADAMW: Traffic = ADAMW_TRUSTED.and(CHECK);
/// Reads and writes the running maximum.
const AMSGRAD: Traffic = ADAMW.and(STATE);
/// Weight, gradient and buffer, and the check.
const SGD: Traffic =
    Traffic { weights_read: 1, weights_written: 1, inputs_read: 1, ..NOTHING }.and(STATE).and(CHECK);
/// Reads and writes one state.
const STATE: Traffic = Traffic { state_read: 1, state_written: 1, ..NOTHING };
/// Reads the anchor.
const ANCHOR: Traffic = Traffic { inputs_read: 1, ..NOTHING };
/// Reads the anchor and the importance of every element.
const IMPORTANCE: Traffic = Traffic { state_read: 1, ..ANCHOR };
/// Reads the anchor and the last displacement, writes the new one.
const FTP: Traffic = ANCHOR.and(STATE);
/// Reads weight and anchor for the sums. Not counted: where the gradient points home, it reads the anchor again and, where
/// decay fires, reads and writes in a second pass.
const SPD: Traffic = Traffic { weights_read: 1, ..ANCHOR };
/// Reads weight, anchor and last displacement for the sums, the anchor again, and writes the new displacement.
const DIGRAP: Traffic = SPD.and(ANCHOR).and(STATE);
/// Reads weight and anchor, writes the weight. L2 reads both a second time, from the last-level cache.
const PROJECT: Traffic = Traffic { weights_read: 1, weights_written: 1, inputs_read: 1, ..NOTHING };
/// Begin reads weight and anchor and writes the remembered weight; apply and finish read these and write the weight; update
/// reads gradient, remembered weight and anchor.
const UPDATE: Traffic = Traffic { weights_read: 4, weights_written: 3, inputs_read: 5, ..NOTHING };
/// Reads the weight and the average, writes the average.
const AVERAGE: Traffic = STATE.and(Traffic { weights_read: 1, ..NOTHING });

/// What one round of a method does.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Operation {
    /// One optimizer step.
    Step(Rule, Constraint, Gradients),
    /// One TPGM projection with given radii.
    Project(Norm),
    /// One TPGM projection update, without the held-out forward and backward, then the projection: begin, apply, update,
    /// finish.
    Update(Norm),
    /// One update of an exponential moving average of the weights.
    Average,
}

impl Operation {
    /// The data that it works on.
    pub fn parts(&self) -> Parts {
        let constrained = |constraint: &Constraint| *constraint != Constraint::None;
        match self {
            Operation::Step(_, constraint, _) => {
                Parts { grads: true, anchors: constrained(constraint), start: false }
            }
            Operation::Project(_) => Parts { grads: false, anchors: true, start: true },
            Operation::Update(_) => Parts::ALL,
            Operation::Average => Parts { grads: false, anchors: false, start: false },
        }
    }

    /// The calls that one round makes, in order.
    pub const fn calls(&self) -> &'static [Call] {
        match self {
            Operation::Step(..) => &[Call::Step],
            Operation::Project(_) => &[Call::Project],
            Operation::Update(_) => &[Call::Begin, Call::Apply, Call::Update, Call::Finish],
            Operation::Average => &[Call::Average],
        }
    }
}

/// One call into the library.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// An optimizer step.
    Step,
    /// A projection.
    Project,
    /// Projection update: remember the weights, measure their displacement.
    Begin,
    /// Projection update: write the projected weights.
    Apply,
    /// Projection update: learn the radii.
    Update,
    /// Projection update: write the projection for good.
    Finish,
    /// An update of a moving average.
    Average,
}

impl Call {
    /// Name in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Call::Step => "step",
            Call::Project => "project",
            Call::Begin => "begin",
            Call::Apply => "apply",
            Call::Update => "update",
            Call::Finish => "finish",
            Call::Average => "average",
        }
    }
}

/// One measured method.
#[derive(Debug, Clone, PartialEq)]
pub struct Method {
    /// Name on command lines, in tables and in result files.
    pub name: &'static str,
    /// What one round does.
    pub operation: Operation,
    /// What it moves.
    pub traffic: Traffic,
    /// Peers that do the same, as `torch_peer.py` and `peers/candle` name them.
    pub peers: &'static [&'static str],
}

impl Method {
    /// All methods.
    pub fn all() -> Vec<Method> {
        let adamw = AdamW::default();
        let amsgrad = AdamW { amsgrad: true, ..adamw };
        let sgd = Sgd::default();
        // Small enough to act on weights that start at data::DISPLACEMENT_SCALE: the rows of these models are longer
        // than 60 elements.
        let fixed = FixedRadius { radius: 0.02, norm: Norm::Mars };
        let step = |name, rule: Rule, constraint: Constraint, traffic, peers| Method {
            name,
            operation: Operation::Step(rule, constraint, Gradients::Check),
            traffic,
            peers,
        };
        let none = Constraint::None;
        let pull = Pull { anchor_l1: 1e-3, anchor_l2: 1e-2, ..Pull::default() };
        let weighted = Pull { weights: PullWeights::Fisher, ..pull };
        vec![
            step(
                "adamw",
                adamw.into(),
                none,
                ADAMW,
                &[
                    "torch_adamw_fused",
                    "torch_adamw_fused_graph",
                    "torch_adamw_fused_masters",
                    "torch_adamw_fused_masters_graph",
                    "torch_adamw_foreach",
                    "torch_adamw_loop",
                    "candle_adamw",
                    "candle_adamw_kept",
                    "candle_optimisers_adamw",
                    "candle_optimisers_adamw_kept",
                ],
            ),
            Method {
                name: "adamw-trusted",
                operation: Operation::Step(adamw.into(), none, Gradients::Trust),
                traffic: ADAMW_TRUSTED,
                peers: &[
                    "torch_adamw_fused",
                    "torch_adamw_fused_graph",
                    "torch_adamw_fused_masters",
                    "torch_adamw_fused_masters_graph",
                ],
            },
            step(
                "adamw-amsgrad",
                amsgrad.into(),
                none,
                AMSGRAD,
                &["torch_adamw_amsgrad_fused", "torch_adamw_amsgrad_foreach"],
            ),
            step(
                "adamw+ftp",
                adamw.into(),
                Ftp::default().into(),
                ADAMW.and(FTP),
                &["ftp_adamp", "torch_adamw_fused", "torch_adamw_fused_graph"],
            ),
            step("adamw+spd", adamw.into(), Spd::default().into(), ADAMW.and(SPD), &[]),
            step(
                "adamw+tpgm",
                adamw.into(),
                Tpgm::default().into(),
                ADAMW.and(ANCHOR),
                &["torch_adamw_fused_tpgm_mars"],
            ),
            step("adamw+fixed-radius", adamw.into(), fixed.into(), ADAMW.and(ANCHOR), &[]),
            step("adamw+digrap", adamw.into(), Digrap::default().into(), ADAMW.and(DIGRAP), &[]),
            step("adamw+l2sp", adamw.into(), L2Sp::default().into(), ADAMW.and(ANCHOR), &[]),
            step("adamw+pull", adamw.into(), pull.into(), ADAMW.and(ANCHOR), &[]),
            step("adamw+pull-fisher", adamw.into(), weighted.into(), ADAMW.and(IMPORTANCE), &[]),
            step("sgd", sgd.into(), none, SGD, &["torch_sgd_fused", "torch_sgd_foreach", "torch_sgd_loop"]),
            step("sgd+ftp", sgd.into(), Ftp::default().into(), SGD.and(FTP), &["ftp_sgdp"]),
            Method {
                name: "project-mars",
                operation: Operation::Project(Norm::Mars),
                traffic: PROJECT,
                peers: &["tpgm_project_mars"],
            },
            Method {
                name: "project-l2",
                operation: Operation::Project(Norm::L2),
                traffic: PROJECT,
                peers: &["tpgm_project_l2"],
            },
            Method {
                name: "update-mars",
                operation: Operation::Update(Norm::Mars),
                traffic: UPDATE,
                peers: &["tpgm_update_mars"],
            },
            Method {
                name: "update-l2",
                operation: Operation::Update(Norm::L2),
                traffic: UPDATE,
                peers: &["tpgm_update_l2"],
            },
            Method { name: "ema", operation: Operation::Average, traffic: AVERAGE, peers: &[] },
        ]
    }

    /// Bytes read and written per parameter of weights, gradients and anchors of type `dtype`. In a step, half-precision
    /// weights have masters: the step reads those and writes both.
    pub const fn bytes(&self, dtype: DType) -> usize {
        let Traffic { weights_read, weights_written, inputs_read, state_read, state_written } = self.traffic;
        let (size, compute) = (dtype.size(), dtype.compute().size());
        let masters = matches!(self.operation, Operation::Step(..)) && dtype.is_half();
        let (read, written) = if masters { (compute, compute + size) } else { (size, size) };
        weights_read * read
            + weights_written * written
            + inputs_read * size
            + (state_read + state_written) * compute
    }

    /// Bytes of state per parameter of type `dtype`: moments, displacements, masters, remembered weights.
    pub fn state(&self, dtype: DType) -> usize {
        let compute = dtype.compute().size();
        let masters = matches!(self.operation, Operation::Step(..)) && dtype.is_half();
        let remembered = matches!(self.operation, Operation::Update(_));
        self.traffic.state_read * compute
            + usize::from(masters) * compute
            + usize::from(remembered) * dtype.size()
    }

    /// Bytes held per parameter of type `dtype` while the method runs: weights, the parts that it needs, and its state.
    pub fn held(&self, dtype: DType) -> usize {
        self.operation.parts().buffers() * dtype.size() + self.state(dtype)
    }

    /// The method of this name.
    ///
    /// # Errors
    ///
    /// A message that lists the names.
    pub fn by_name(name: &str) -> Result<Method, String> {
        let mut all = Self::all();
        match all.iter().position(|method| method.name == name) {
            Some(i) => Ok(all.swap_remove(i)),
            None => {
                let known: Vec<_> = all.iter().map(|method| method.name).collect();
                Err(format!("no method `{name}`; known are {}", known.join(", ")))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_can_be_found_and_is_valid() {
        for method in Method::all() {
            assert_eq!(Method::by_name(method.name), Ok(method.clone()));
            if let Operation::Step(rule, constraint, _) = method.operation {
                rule.validate().unwrap();
                constraint.validate().unwrap();
            }
        }
        let error = Method::by_name("adam").unwrap_err();
        assert!(error.contains("`adam`") && error.contains("adamw+ftp"), "{error}");
    }

    // The totals of the table in `tpgm_core::cpu`, and of the comments in its projection.
    #[test]
    fn f32_traffic_is_that_of_the_table() {
        let expected = [
            ("adamw", 32),
            ("adamw-trusted", 28),
            ("adamw-amsgrad", 40),
            ("adamw+ftp", 44),
            ("adamw+spd", 40),
            ("adamw+tpgm", 36),
            ("adamw+fixed-radius", 36),
            ("adamw+digrap", 52),
            ("adamw+l2sp", 36),
            ("adamw+pull", 36),
            ("adamw+pull-fisher", 40),
            ("sgd", 24),
            ("sgd+ftp", 36),
            ("project-mars", 12),
            ("project-l2", 12),
            ("update-mars", 48),
            ("update-l2", 48),
            ("ema", 12),
        ];
        assert_eq!(expected.len(), Method::all().len());
        for (name, bytes) in expected {
            let method = Method::by_name(name).unwrap();
            assert_eq!(method.bytes(DType::F32), bytes, "{name}");
            assert_eq!(method.bytes(DType::F64), 2 * bytes, "{name}");
        }
    }

    // Moments of f32; with FTP a displacement, with a weighted pull the importance; masters of half-precision weights; an update remembers its weights.
    #[test]
    fn state_is_what_is_kept_besides_the_data() {
        for (name, full, half) in [
            ("adamw", 8, 12),
            ("adamw+ftp", 12, 16),
            ("adamw+pull", 8, 12),
            ("adamw+pull-fisher", 12, 16),
            ("project-mars", 0, 0),
            ("update-l2", 4, 2),
        ] {
            let method = Method::by_name(name).unwrap();
            assert_eq!((method.state(DType::F32), method.state(DType::BF16)), (full, half), "{name}");
        }
    }

    // Counted by hand: w g m v; with FTP also the anchor and c; w, anchor and first weights.
    #[test]
    fn memory_is_that_of_every_buffer() {
        for (name, full, half) in
            [("adamw", 16, 4 + 12), ("adamw+ftp", 24, 6 + 16), ("project-mars", 12, 6), ("update-l2", 20, 10)]
        {
            let method = Method::by_name(name).unwrap();
            assert_eq!((method.held(DType::F32), method.held(DType::BF16)), (full, half), "{name}");
        }
    }

    // Added up by hand, in bytes: a master 4 read and 4 written, a weight 2 written, a gradient or anchor 2 a read, state
    // 8 where it is read and written.
    #[test]
    fn half_precision_steps_move_masters_and_projections_do_not() {
        let expected = [
            ("adamw-trusted", 4 + (4 + 2) + 2 + 2 * 8),
            ("adamw", 4 + (4 + 2) + 2 + 2 * 8 + 2),
            ("adamw+ftp", 4 + (4 + 2) + 2 + 2 * 8 + 2 + (2 + 8)),
            ("adamw+digrap", 4 + (4 + 2) + 2 + 2 * 8 + 2 + (4 + 2 + 2 + 8)),
            ("project-mars", 6),
            ("update-l2", 24),
            ("ema", 2 + 8),
        ];
        for (name, bytes) in expected {
            for dtype in [DType::F16, DType::BF16] {
                assert_eq!(Method::by_name(name).unwrap().bytes(dtype), bytes, "{name}");
            }
        }
    }
}
