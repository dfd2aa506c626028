//! The methods that are compared, and the settings they are tried with.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tpgm_candle::core::{Constraint, Digrap, FixedRadius, Ftp, L2Sp, Norm, RadiusAdam, Spd, Tpgm};

/// A way to fine-tune.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Method {
    /// The checkpoint as it is.
    ZeroShot,
    /// From the pre-trained weights, without a constraint.
    FineTuning,
    /// Fine-tuning that has the samples for learning radii to train on, too: what these are worth without radii.
    FineTuningMore,
    /// Only the head is trained.
    LinearProbe,
    /// Fine-tuning from the linear probe (arXiv 2202.10054).
    LpFt,
    /// Fine-tuning with a pull towards the anchor.
    L2Sp,
    /// Projection on a ball of given radius after every step.
    FixedRadius,
    /// Between the weights before and after fine-tuning; the strength is the share of the latter.
    WiseFt,
    /// Radii learned on held-out data during training.
    Tpgm,
    /// Radii learned on held-out data after fine-tuning; the strength is the number of updates.
    TpgmPostHoc,
    /// Radii learned from the training gradient.
    Ftp,
    /// Selective decay.
    Spd,
    /// Directional projection of the gradient.
    Digrap,
}

impl Method {
    /// All that begin with a new head, in the order of the table.
    pub const ALL: [Method; 11] = [
        Method::LinearProbe,
        Method::FineTuning,
        Method::LpFt,
        Method::L2Sp,
        Method::FixedRadius,
        Method::WiseFt,
        Method::TpgmPostHoc,
        Method::Tpgm,
        Method::Ftp,
        Method::Spd,
        Method::Digrap,
    ];

    /// Name as in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Method::ZeroShot => "zero-shot",
            Method::FineTuning => "fine-tuning",
            Method::FineTuningMore => "fine-tuning, radii's samples too",
            Method::LinearProbe => "linear probe",
            Method::LpFt => "LP-FT",
            Method::L2Sp => "L2-SP",
            Method::FixedRadius => "fixed radius",
            Method::WiseFt => "WiSE-FT",
            Method::Tpgm => "TPGM",
            Method::TpgmPostHoc => "TPGM post hoc",
            Method::Ftp => "FTP",
            Method::Spd => "SPD",
            Method::Digrap => "DiGraP",
        }
    }

    /// What its one strength is called; `None` if it has none.
    pub const fn strength_name(self) -> Option<&'static str> {
        match self {
            Method::ZeroShot
            | Method::FineTuning
            | Method::FineTuningMore
            | Method::LinearProbe
            | Method::LpFt => None,
            Method::L2Sp => Some("alpha"),
            Method::FixedRadius => Some("radius"),
            Method::WiseFt => Some("share"),
            Method::Tpgm => Some("radius lr"),
            Method::TpgmPostHoc => Some("updates"),
            Method::Ftp => Some("k"),
            Method::Spd => Some("strength"),
            Method::Digrap => Some("omega lr"),
        }
    }

    /// The strengths of the sweep; none if it has none.
    pub const fn strengths(self) -> &'static [f64] {
        match self {
            Method::ZeroShot
            | Method::FineTuning
            | Method::FineTuningMore
            | Method::LinearProbe
            | Method::LpFt => &[],
            Method::L2Sp => &[0.03, 0.3],
            Method::FixedRadius => &[1.0, 4.0],
            Method::WiseFt => &[0.3, 0.5, 0.7],
            Method::Tpgm | Method::Digrap => &[1e-2, 1e-1],
            Method::TpgmPostHoc => &[200.0],
            Method::Ftp => &[1.0, 0.0],
            Method::Spd => &[0.5, 2.0],
        }
    }

    /// The strength without a sweep: what the papers or their code use where they say so.
    pub const fn strength(self) -> Option<f64> {
        match self {
            Method::ZeroShot
            | Method::FineTuning
            | Method::FineTuningMore
            | Method::LinearProbe
            | Method::LpFt => None,
            Method::L2Sp => Some(0.1),
            Method::FixedRadius => Some(2.0),
            Method::WiseFt => Some(0.5),
            Method::Tpgm | Method::Digrap => Some(1e-2),
            Method::TpgmPostHoc => Some(200.0),
            Method::Ftp | Method::Spd => Some(1.0),
        }
    }

    /// The constraint of a training run; none for methods that act before or after training.
    pub fn constraint(self, strength: f64) -> Constraint {
        let adam = RadiusAdam { lr: strength, ..RadiusAdam::default() };
        match self {
            Method::ZeroShot
            | Method::FineTuning
            | Method::FineTuningMore
            | Method::LinearProbe
            | Method::LpFt
            | Method::WiseFt
            | Method::TpgmPostHoc => Constraint::None,
            Method::L2Sp => L2Sp { alpha: strength, ..L2Sp::default() }.into(),
            Method::FixedRadius => FixedRadius { radius: strength, norm: Norm::Mars }.into(),
            Method::Tpgm => Tpgm { norm: Norm::Mars, adam }.into(),
            Method::Ftp => Ftp { k: strength, ..Ftp::default() }.into(),
            Method::Spd => Spd { strength }.into(),
            Method::Digrap => Digrap { adam, ..Digrap::default() }.into(),
        }
    }
}
