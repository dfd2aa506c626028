//! The experiments of the TPGM paper, as its published code runs them.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tpgm_candle::{AdamW, Rule, Sgd};
use tpgm_examples::study::Method;

use crate::network::Arch;
use crate::published::{DOMAINNET_CLIP, DOMAINNET_MOCO, IMAGENET, Published};

/// An experiment of the paper.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Preset {
    /// ResNet-50 on DomainNet-Real: MARS, an update of radii with each step
    Domainnet,
    /// CLIP ViT-B/16 on ImageNet: L2, 200 updates of radii after fine-tuning; takes --zero-shot
    Imagenet,
}

/// What options are where they are not given.
pub(crate) struct Defaults {
    pub(crate) methods: Vec<Method>,
    pub(crate) epochs: u64,
    pub(crate) batch: usize,
    /// Images per update of radii; `None`: as many as in a step.
    pub(crate) radii_batch: Option<usize>,
    pub(crate) rule: fn(f64) -> Rule,
    pub(crate) rates: Vec<f64>,
    pub(crate) own_rates: Vec<(Method, f64)>,
    /// `None`: as the rest.
    pub(crate) head_lr: Option<f64>,
    /// Whether the learning rate changes with every step or only with an epoch.
    pub(crate) schedule: Schedule,
    pub(crate) strengths: fn(Method) -> &'static [f64],
}

/// When the learning rate changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Schedule {
    /// With every step, after a warm-up of a twentieth of the steps.
    EachStep,
    /// With every epoch, without a warm-up.
    EachEpoch,
}

fn adamw(lr: f64) -> Rule {
    AdamW::default().lr(lr).weight_decay(1e-2).into()
}

/// Of the DomainNet experiment: Nesterov momentum 0.9, weight decay 5e-4 towards zero.
fn sgd(lr: f64) -> Rule {
    Sgd::default().lr(lr).momentum(0.9).nesterov().weight_decay(5e-4).into()
}

fn imagenet_strengths(method: Method) -> &'static [f64] {
    match method {
        Method::WiseFt => &[0.4, 0.5, 0.6, 0.7],
        _ => method.strengths(),
    }
}

impl Defaults {
    /// Those of a preset, or of none.
    pub(crate) fn of(preset: Option<Preset>, arch: Arch) -> Self {
        let plain = Self {
            methods: vec![Method::FineTuning, Method::Tpgm, Method::Ftp],
            epochs: 10,
            batch: 64,
            radii_batch: None,
            rule: adamw,
            rates: vec![1e-5, 1e-4],
            own_rates: vec![],
            head_lr: Some(1e-3),
            schedule: Schedule::EachStep,
            strengths: Method::strengths,
        };
        match preset {
            None => plain,
            Some(Preset::Domainnet) => Self {
                methods: vec![Method::FineTuning, Method::Tpgm],
                epochs: 50,
                batch: 256,
                radii_batch: Some(64),
                rule: sgd,
                rates: vec![1e-2],
                own_rates: vec![(Method::FineTuning, if arch.is_clip() { 1e-3 } else { 5e-2 })],
                head_lr: None,
                schedule: Schedule::EachEpoch,
                ..plain
            },
            Some(Preset::Imagenet) => Self {
                methods: vec![Method::ZeroShot, Method::FineTuning, Method::WiseFt, Method::TpgmPostHoc],
                radii_batch: Some(64),
                head_lr: None,
                strengths: imagenet_strengths,
                ..plain
            },
        }
    }
}

impl Preset {
    /// What the authors measured with a network of this kind.
    pub(crate) fn published(self, arch: Arch) -> &'static Published {
        match self {
            Preset::Domainnet if arch.is_clip() => &DOMAINNET_CLIP,
            Preset::Domainnet => &DOMAINNET_MOCO,
            Preset::Imagenet => &IMAGENET,
        }
    }
}
