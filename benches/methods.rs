//! What is measured: methods, the bytes they must move, and the peers they are compared with.

use tpgm_core::{AdamW, Constraint, Digrap, FixedRadius, Ftp, Gradients, L2Sp, Norm, Rule, Sgd, Spd, Tpgm};

/// Memory traffic in bytes per f32 parameter, counted from what the operation reads and writes: see the table in
/// [`tpgm_core::cpu`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes read from memory.
    pub read: usize,
    /// Bytes written to memory.
    pub write: usize,
    /// Bytes more that are not counted as memory traffic: read a second time while in the last-level cache, or moved
    /// only in steps in which the constraint acts.
    pub more: usize,
}

impl Traffic {
    /// What memory must move at least: `read + write`.
    pub const fn memory(self) -> usize {
        self.read + self.write
    }

    const fn and(self, other: Traffic) -> Traffic {
        Traffic {
            read: self.read + other.read,
            write: self.write + other.write,
            more: self.more + other.more,
        }
    }
}

const fn traffic(read: usize, write: usize, more: usize) -> Traffic {
    Traffic { read, write, more }
}

/// The gradient, to see that it is finite before anything is changed.
const CHECK: Traffic = traffic(4, 0, 0);
/// Reads weight, gradient and two moments; writes all but the gradient. What PyTorch does, which does not look whether
/// gradients are finite.
const ADAMW_TRUSTED: Traffic = traffic(16, 12, 0);
/// The same, and the check.
const ADAMW: Traffic = ADAMW_TRUSTED.and(CHECK);
/// Reads and writes the running maximum.
const AMSGRAD: Traffic = ADAMW.and(traffic(4, 4, 0));
/// Reads weight, gradient and buffer; writes all but the gradient.
const SGD: Traffic = traffic(12, 8, 0).and(CHECK);
/// Reads the anchor.
const ANCHOR: Traffic = traffic(4, 0, 0);
/// Reads the anchor and the last displacement, writes the new one.
const FTP: Traffic = ANCHOR.and(traffic(4, 4, 0));
/// Reads weight and anchor for the sums. Where the gradient points home: reads the anchor again and, where decay fires,
/// reads and writes in a second pass.
const SPD: Traffic = traffic(8, 0, 16);
/// Reads weight, anchor and last displacement for the sums, the anchor again, and writes the new displacement.
const DIGRAP: Traffic = traffic(12 + 4, 4, 0);

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
    /// Peers that do the same, as `torch_peer.py` names them.
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
        vec![
            step(
                "adamw",
                adamw.into(),
                none,
                ADAMW,
                &["torch_adamw_fused", "torch_adamw_foreach", "torch_adamw_loop"],
            ),
            Method {
                name: "adamw-trusted",
                operation: Operation::Step(adamw.into(), none, Gradients::Trust),
                traffic: ADAMW_TRUSTED,
                peers: &["torch_adamw_fused"],
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
                &["ftp_adamp", "torch_adamw_fused"],
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
            step("sgd", sgd.into(), none, SGD, &["torch_sgd_fused", "torch_sgd_foreach", "torch_sgd_loop"]),
            step("sgd+ftp", sgd.into(), Ftp::default().into(), SGD.and(FTP), &["ftp_sgdp"]),
            Method {
                name: "project-mars",
                operation: Operation::Project(Norm::Mars),
                traffic: traffic(8, 4, 0),
                peers: &["tpgm_project_mars"],
            },
            Method {
                name: "project-l2",
                operation: Operation::Project(Norm::L2),
                traffic: traffic(8, 4, 8),
                peers: &["tpgm_project_l2"],
            },
            // begin: reads 8, writes 4. apply: 8 and 4. update: reads 12. finish: 8 and 4.
            Method {
                name: "update-mars",
                operation: Operation::Update(Norm::Mars),
                traffic: traffic(36, 12, 0),
                peers: &["tpgm_update_mars"],
            },
            Method {
                name: "update-l2",
                operation: Operation::Update(Norm::L2),
                traffic: traffic(36, 12, 0),
                peers: &["tpgm_update_l2"],
            },
        ]
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
    fn traffic_adds_up() {
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
            ("sgd", 24),
            ("sgd+ftp", 36),
            ("project-mars", 12),
            ("project-l2", 12),
            ("update-mars", 48),
            ("update-l2", 48),
        ];
        assert_eq!(expected.len(), Method::all().len());
        for (name, bytes) in expected {
            assert_eq!(Method::by_name(name).unwrap().traffic.memory(), bytes, "{name}");
        }
    }
}
