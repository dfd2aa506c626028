//! The experiments of the TPGM paper, as its published code runs them, and one of our own.

use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use tpgm_candle::{AdamW, Rule, Sgd};
use tpgm_examples::data::images::{Affine, Augmentation, Crop};
use tpgm_examples::study::Method;

use crate::network::Arch;
use crate::published::{DOMAINNET_CLIP, DOMAINNET_MOCO, IMAGENET, Published};

/// An experiment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Preset {
    /// ResNet-50 on DomainNet-Real: MARS, an update of radii with each step
    Domainnet,
    /// CLIP ViT-B/16 on ImageNet: L2, 200 updates of radii after fine-tuning; takes --zero-shot
    Imagenet,
    /// Emoji of many design teams: trained on four colored styles, tested on others, on lines and on silhouettes; takes --set
    Emoji,
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
    /// Share of the steps in which the learning rate rises.
    pub(crate) warmup: f64,
    /// Learning rates of the linear probe; none: that of the head.
    pub(crate) probe_rates: Vec<f64>,
    pub(crate) max_grad_norm: Option<f64>,
    /// Whether a run that derails counts as one, instead of ending the study.
    pub(crate) count_derailed: bool,
    /// Side of the images, for networks that take any.
    pub(crate) side: Option<usize>,
    pub(crate) augmentation: Augmentation,
    /// Test sets that are also reported apart, by their names.
    pub(crate) groups: &'static [(&'static str, &'static [&'static str])],
    pub(crate) strengths: fn(Method) -> &'static [f64],
}

/// When the learning rate changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Schedule {
    /// With every step, after a warm-up.
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

fn without_decay(lr: f64) -> Rule {
    AdamW::default().lr(lr).weight_decay(0.0).into()
}

/// One strength each: what the papers or their code use. With four learning rates, every method has four settings.
fn emoji_strengths(method: Method) -> &'static [f64] {
    match method {
        Method::L2Sp => &[0.1],
        Method::FixedRadius => &[2.0],
        Method::WiseFt => &[0.5],
        Method::Tpgm | Method::Digrap => &[1e-2],
        Method::TpgmPostHoc => &[200.0],
        Method::Ftp | Method::Spd => &[1.0],
        _ => &[],
    }
}

/// Styles of emoji that are never trained on.
const EMOJI_GROUPS: &[(&str, &[&str])] = &[
    ("color", &["fluent-3d", "fluent-flat", "openmoji-color"]),
    ("silhouettes", &["openmoji-black", "high-contrast", "monotone"]),
];

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
            warmup: 0.05,
            probe_rates: vec![],
            max_grad_norm: None,
            count_derailed: false,
            side: None,
            augmentation: Augmentation::Window(Crop { smallest_area: 0.08, mirror: true }),
            groups: &[],
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
            Some(Preset::Emoji) => Self {
                methods: [&Method::ALL[..], &[Method::FineTuningMore]].concat(),
                epochs: 12,
                batch: 32,
                rule: without_decay,
                // The first one counts without a sweep.
                rates: vec![3e-4, 3e-5, 1e-4, 1e-3],
                head_lr: Some(3e-3),
                warmup: 0.1,
                probe_rates: vec![1e-3, 3e-3, 1e-2, 3e-2],
                max_grad_norm: Some(1.0),
                count_derailed: true,
                side: Some(64),
                augmentation: Augmentation::Affine(Affine::EMOJI),
                groups: EMOJI_GROUPS,
                strengths: emoji_strengths,
                ..plain
            },
        }
    }
}

impl Preset {
    /// What the authors measured with a network of this kind, if there are authors.
    pub(crate) fn published(self, arch: Arch) -> Option<&'static Published> {
        Some(match self {
            Preset::Domainnet if arch.is_clip() => &DOMAINNET_CLIP,
            Preset::Domainnet => &DOMAINNET_MOCO,
            Preset::Imagenet => &IMAGENET,
            Preset::Emoji => return None,
        })
    }
}
