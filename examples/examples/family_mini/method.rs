//! The methods of the table, and the settings that each is tried with.

use serde::{Deserialize, Serialize};
use tpgm_examples::search::{Axes, Between};

/// A row of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Method {
    /// The pair as it is.
    ZeroShot,
    /// Only the head is trained, from the zero-shot head.
    LinearProbe,
    /// Image tower and head.
    FineTuning,
    /// Between before and after.
    WiseFt,
    /// Radii learned on held-out images.
    Tpgm,
    /// A pull along the sign of the displacement.
    L1Sp,
    /// A pull along the displacement.
    L2Sp,
    /// Predictions of the pre-trained model as soft targets.
    Distillation,
    /// Low-rank updates of queries and values.
    Lora,
    /// Mixup and label smoothing, then WiSE-FT.
    Bang,
    /// Energies of random texts stay.
    Lipsum,
    /// Weights of a loss of nine terms, searched.
    AutoFt,
    /// Both towers, contrastive loss.
    Flyp,
    /// The same with penalties of the projections and an averaged teacher.
    CaRot,
    /// The same on captions and retrieved pairs, too.
    Arf,
    /// The same with soft targets of descriptions, and two heads.
    Drm,
    /// Both towers, distillation and matching on other pairs, pulled by importance.
    Gift,
    /// The same without the pull.
    GiftFree,
    /// Prompts in front of the first block.
    PromptsShallow,
    /// Prompts in front of every block.
    PromptsDeep,
    /// Prompts that move.
    PromptsMoved,
    /// Adapting layers over the frozen tower and a small one.
    Levi,
    /// A share of the fine-tuned model for every image, or cluster of images.
    Dawin,
    /// Entropy on the norms of the fine-tuned model, over the stream of test images.
    Tent,
    /// Fast and slow weights over the same stream.
    Fstta,
}

impl Method {
    /// All, in the order of the table.
    pub(crate) const ALL: [Method; 25] = [
        Method::ZeroShot,
        Method::LinearProbe,
        Method::FineTuning,
        Method::WiseFt,
        Method::Tpgm,
        Method::L1Sp,
        Method::L2Sp,
        Method::Distillation,
        Method::Lora,
        Method::Bang,
        Method::Lipsum,
        Method::AutoFt,
        Method::Flyp,
        Method::CaRot,
        Method::Arf,
        Method::Drm,
        Method::Gift,
        Method::GiftFree,
        Method::PromptsShallow,
        Method::PromptsDeep,
        Method::PromptsMoved,
        Method::Levi,
        Method::Dawin,
        Method::Tent,
        Method::Fstta,
    ];

    /// Name as in tables.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Method::ZeroShot => "zero-shot",
            Method::LinearProbe => "linear probe",
            Method::FineTuning => "fine-tuning",
            Method::WiseFt => "WiSE-FT",
            Method::Tpgm => "TPGM",
            Method::L1Sp => "L1-SP",
            Method::L2Sp => "L2-SP",
            Method::Distillation => "distillation",
            Method::Lora => "LoRA",
            Method::Bang => "BANG",
            Method::Lipsum => "Lipsum-FT",
            Method::AutoFt => "AutoFT",
            Method::Flyp => "FLYP",
            Method::CaRot => "CaRot",
            Method::Arf => "ARF",
            Method::Drm => "DRM",
            Method::Gift => "GIFT",
            Method::GiftFree => "GIFT, no pull",
            Method::PromptsShallow => "prompts, shallow",
            Method::PromptsDeep => "prompts, deep",
            Method::PromptsMoved => "prompts, PRO-VPT",
            Method::Levi => "LEVI",
            Method::Dawin => "DaWin",
            Method::Tent => "Tent",
            Method::Fstta => "FSTTA",
        }
    }

    /// What its strength is called, and the two that are tried; none where four learning rates are.
    pub(crate) const fn strengths(self) -> Option<(&'static str, [f64; 2])> {
        match self {
            Method::ZeroShot
            | Method::LinearProbe
            | Method::FineTuning
            | Method::AutoFt
            | Method::Flyp
            | Method::GiftFree => None,
            Method::WiseFt | Method::Bang => Some(("share", [0.5, 0.7])),
            Method::Tpgm => Some(("radius lr", [1e-2, 1e-1])),
            Method::L1Sp => Some(("alpha", [1e-4, 1e-3])),
            Method::L2Sp => Some(("alpha", [0.03, 0.3])),
            Method::Distillation => Some(("weight", [0.3, 1.0])),
            Method::Lora => Some(("rank", [2.0, 8.0])),
            Method::Lipsum => Some(("weight", [0.1, 1.0])),
            Method::CaRot => Some(("distillation", [0.5, 1.5])),
            Method::Arf => Some(("retrieved", [0.5, 1.0])),
            Method::Drm => Some(("concepts", [0.3, 1.0])),
            Method::Gift => Some(("pull", [0.1, 1.0])),
            Method::PromptsShallow | Method::PromptsDeep => Some(("prompts", [2.0, 8.0])),
            Method::PromptsMoved => Some(("allocation (0 Thompson, 1 PPO)", [0.0, 1.0])),
            Method::Levi => Some(("shares (0 uniform, 1 learned)", [0.0, 1.0])),
            Method::Dawin => Some(("clusters (0 none)", [0.0, 3.0])),
            Method::Tent => Some(("adaptation lr", [1e-4, 1e-3])),
            Method::Fstta => Some(("adaptation lr", [6e-5, 6e-4])),
        }
    }

    /// The learning rates that are tried with each strength, or alone.
    const fn rates(self) -> &'static [f64] {
        match self {
            Method::ZeroShot | Method::AutoFt => &[],
            Method::LinearProbe => &[1e-3, 3e-3, 1e-2, 3e-2],
            Method::FineTuning | Method::Flyp | Method::GiftFree => &[1e-4, 3e-4, 1e-3, 3e-3],
            Method::Lora => &[1e-3, 3e-3],
            Method::PromptsShallow | Method::PromptsDeep | Method::PromptsMoved => &[3e-3, 1e-2],
            _ => &[3e-4, 1e-3],
        }
    }

    /// What a sweep tries: four settings of every method that is trained, each a learning rate and a strength. The zero-shot
    /// pair has none, and AutoFT's are searched: one that stands for them.
    pub(crate) fn axes(self) -> Axes {
        let strengths = self.strengths().map_or(Vec::new(), |(_, strengths)| strengths.to_vec());
        let between = match self {
            Method::WiseFt | Method::Bang => Between::Shares,
            Method::Lora
            | Method::PromptsShallow
            | Method::PromptsDeep
            | Method::PromptsMoved
            | Method::Levi
            | Method::Dawin => Between::Counts,
            _ => Between::Factors,
        };
        Axes { rates: self.rates().to_vec(), strengths, between, given: false }
    }

    /// The setting without a sweep: the third of four, so the larger learning rate of two.
    pub(crate) fn setting(self) -> (f64, Option<f64>) {
        let Axes { rates, strengths, .. } = self.axes();
        (rates.get(rates.len() / 2).copied().unwrap_or_default(), strengths.first().copied())
    }

    /// What it is made from after training: a run of this method with the same learning rate and seed.
    pub(crate) const fn base(self) -> Method {
        match self {
            Method::WiseFt | Method::Dawin | Method::Tent | Method::Fstta => Method::FineTuning,
            other => other,
        }
    }
}

/// One setting of a method.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Setting {
    pub(crate) method: Method,
    /// Of the run that it is or is made from; 0 where there is none, or where it is searched.
    pub(crate) lr: f64,
    /// See [`Method::strengths`].
    pub(crate) strength: Option<f64>,
    /// Of new parameters and of the order of images.
    pub(crate) seed: u64,
}

impl Setting {
    /// Its strength; 0 where it has none.
    pub(crate) fn amount(&self) -> f64 {
        self.strength.unwrap_or_default()
    }

    /// In words.
    pub(crate) fn words(&self) -> String {
        let lr = (self.lr > 0.0).then(|| format!("lr {}", self.lr));
        let strength = self.method.strengths().zip(self.strength);
        let strength = strength.map(|((name, _), value)| {
            let name = name.split(" (").next().unwrap_or(name);
            format!("{name} {value}")
        });
        lr.into_iter().chain(strength).collect::<Vec<_>>().join("; ")
    }

    /// Name of its file.
    pub(crate) fn file(&self) -> String {
        let name = self.method.name().replace([' ', ','], "-");
        let strength = self.strength.map(|strength| format!("_{strength}")).unwrap_or_default();
        format!("{name}_lr{}{strength}_seed{}.json", self.lr, self.seed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_that_is_trained_has_four_settings() {
        for method in Method::ALL {
            let expected = if matches!(method, Method::ZeroShot | Method::AutoFt) { 0 } else { 4 };
            let Axes { rates, strengths, .. } = method.axes();
            assert_eq!(rates.len() * strengths.len().max(1), expected, "{method:?}");
            let (lr, strength) = method.setting();
            assert!(rates.is_empty() || rates.contains(&lr), "{method:?}");
            assert!(strength.map_or(strengths.is_empty(), |strength| strengths.contains(&strength)));
            // What is made from another run needs a run with its learning rate.
            assert!(rates.iter().all(|lr| method.base().rates().contains(lr)), "{method:?}");
        }
    }
}
