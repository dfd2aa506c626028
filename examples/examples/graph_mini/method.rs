//! The methods of the table, and the settings that each is tried with.

use serde::{Deserialize, Serialize};
use tpgm_candle::core::{Constraint, Ftp, Norm, RadiusAdam, Tpgm};
use tpgm_examples::search::{Axes, Between};

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Method {
    /// Only the head is trained.
    LinearProbe,
    /// Everything is.
    FineTuning,
    /// Everything, with radii learned on held-out graphs.
    Tpgm,
    /// Everything, with radii learned from the training gradient.
    Ftp,
    /// One prompt for all nodes, and the head.
    Gpf,
    /// The same under TPGM, around zero.
    GpfTpgm,
    /// The same under FTP.
    GpfFtp,
    /// A prompt for each node, mixed from some, and the head.
    GpfPlus,
    /// The same under TPGM.
    GpfPlusTpgm,
    /// The same under FTP.
    GpfPlusFtp,
}

/// What is added to embedded nodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Prompt {
    /// Nothing.
    None,
    /// One vector.
    Single,
    /// A mixture of so many.
    Basis(usize),
}

/// Vectors of a basis whose strength is another number; the authors take 5 to 20.
const VECTORS: usize = 5;

impl Method {
    /// All, in the order of the table.
    pub(super) const ALL: [Method; 10] = [
        Method::LinearProbe,
        Method::FineTuning,
        Method::Tpgm,
        Method::Ftp,
        Method::Gpf,
        Method::GpfTpgm,
        Method::GpfFtp,
        Method::GpfPlus,
        Method::GpfPlusTpgm,
        Method::GpfPlusFtp,
    ];

    /// Name as in tables.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Method::LinearProbe => "linear probe",
            Method::FineTuning => "fine-tuning",
            Method::Tpgm => "TPGM",
            Method::Ftp => "FTP",
            Method::Gpf => "GPF",
            Method::GpfTpgm => "GPF under TPGM",
            Method::GpfFtp => "GPF under FTP",
            Method::GpfPlus => "GPF-plus",
            Method::GpfPlusTpgm => "GPF-plus under TPGM",
            Method::GpfPlusFtp => "GPF-plus under FTP",
        }
    }

    /// What its strength is called, and those that are tried; none where four learning rates are.
    pub(super) const fn strengths(self) -> Option<(&'static str, [f64; 2])> {
        match self {
            Method::LinearProbe | Method::FineTuning | Method::Gpf => None,
            Method::Tpgm | Method::GpfTpgm | Method::GpfPlusTpgm => Some(("radius lr", [1e-2, 1e-1])),
            Method::Ftp | Method::GpfFtp | Method::GpfPlusFtp => Some(("k", [1.0, 0.0])),
            Method::GpfPlus => Some(("vectors", [5.0, 20.0])),
        }
    }

    /// The learning rates that are tried with each strength, or alone.
    const fn rates(self) -> &'static [f64] {
        match self {
            Method::LinearProbe | Method::Gpf => &[3e-3, 1e-2, 3e-2, 1e-1],
            Method::FineTuning => &[3e-4, 1e-3, 3e-3, 1e-2],
            Method::Tpgm | Method::Ftp => &[1e-3, 3e-3],
            _ => &[1e-2, 3e-2],
        }
    }

    /// What a sweep tries: four settings.
    pub(super) fn axes(self) -> Axes {
        let strengths = self.strengths().map_or(Vec::new(), |(_, strengths)| strengths.to_vec());
        let between = if self == Method::GpfPlus { Between::Counts } else { Between::Factors };
        Axes { rates: self.rates().to_vec(), strengths, between, given: false }
    }

    /// The setting without a sweep.
    pub(super) fn setting(self, seed: u64) -> Setting {
        let Axes { rates, strengths, .. } = self.axes();
        Setting { method: self, lr: rates[rates.len() / 2], strength: strengths.first().copied(), seed }
    }

    /// What it adds to embedded nodes.
    pub(super) fn prompt(self, strength: f64) -> Prompt {
        match self {
            Method::LinearProbe | Method::FineTuning | Method::Tpgm | Method::Ftp => Prompt::None,
            Method::Gpf | Method::GpfTpgm | Method::GpfFtp => Prompt::Single,
            Method::GpfPlus => Prompt::Basis(strength as usize),
            Method::GpfPlusTpgm | Method::GpfPlusFtp => Prompt::Basis(VECTORS),
        }
    }

    /// Whether the network is trained.
    pub(super) const fn trains_network(self) -> bool {
        matches!(self, Method::FineTuning | Method::Tpgm | Method::Ftp)
    }

    /// Of the network, or of prompts; the head is free.
    pub(super) fn constraint(self, strength: f64) -> Constraint {
        let adam = RadiusAdam { lr: strength, ..RadiusAdam::default() };
        match self {
            Method::LinearProbe | Method::FineTuning | Method::Gpf | Method::GpfPlus => Constraint::None,
            Method::Tpgm | Method::GpfTpgm | Method::GpfPlusTpgm => Tpgm { norm: Norm::Mars, adam }.into(),
            Method::Ftp | Method::GpfFtp | Method::GpfPlusFtp => Ftp { k: strength, ..Ftp::default() }.into(),
        }
    }
}

/// One setting of a method.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Setting {
    pub(super) method: Method,
    pub(super) lr: f64,
    /// See [`Method::strengths`].
    pub(super) strength: Option<f64>,
    /// Of new parameters and of the order of graphs.
    pub(super) seed: u64,
}

impl Setting {
    /// In words.
    pub(super) fn words(&self) -> String {
        let strength = self.method.strengths().zip(self.strength);
        let strength = strength.map_or(String::new(), |((name, _), value)| format!("; {name} {value}"));
        format!("lr {}{strength}", self.lr)
    }

    /// Name of its file.
    pub(super) fn file(&self) -> String {
        let name = self.method.name().replace(' ', "-");
        let strength = self.strength.map(|strength| format!("_{strength}")).unwrap_or_default();
        format!("{name}_lr{}{strength}_seed{}.json", self.lr, self.seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_has_four_settings() {
        for method in Method::ALL {
            let Axes { rates, strengths, .. } = method.axes();
            assert_eq!(rates.len() * strengths.len().max(1), 4, "{method:?}");
            let setting = method.setting(0);
            assert!(rates.contains(&setting.lr));
            assert!(setting.strength.map_or(strengths.is_empty(), |one| strengths.contains(&one)));
        }
    }
}
