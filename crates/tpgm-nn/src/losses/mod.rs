//! Losses of robust fine-tuning: contrastive, soft targets, distillation, entropies, margins, and penalties of projections.
//!
//! | loss | used by |
//! |---|---|
//! | [`contrastive`] (symmetric InfoNCE), also of pairs that share a text ([`same_text_targets`]) | FLYP, CaRot, ARF, AutoFT, GIFT |
//! | [`cross_entropy_soft`] | GIFT, [`Mixup`], [`CutMix`], DRM |
//! | [`distillation`] | knowledge distillation, CaRot, GIFT |
//! | [`entropy`], [`entropy_of_mistakes`] | Tent, FSTTA, AutoFT |
//! | [`multi_margin`] | AutoFT |
//! | [`energy_gap`], of [`RandomTexts`] | Lipsum-FT |
//! | [`orthogonality`], [`cross_norm`] | CaRot |
//! | [`periodic_consistency`] of mosaics ([`Bayer`]) | demosaicking networks, on raw images alone |
//!
//! [`nearest`] retrieves pairs for a contrastive loss from a pool (ARF).
//!
//! At inference, [`zero_shot_head`] and [`mixed_probabilities`] are DRM's two heads and their ensemble.
//!
//! Each is a mean over the rows of a batch unless it says otherwise, a scalar, computed in the type of its operands (half
//! precision in f32, and the scalar is then f32). They are made of logarithms of softmax, so gaps between logits that would
//! overflow a probability do not overflow here. Errors name the operation and the shapes.

mod contrastive;
mod distributions;
mod mix;
mod mosaic;
mod penalties;
mod random_texts;
mod retrieval;
mod zero_shot;

pub use self::contrastive::{Contrastive, contrastive, same_text_targets};
pub use self::distributions::{Divergence, distillation, entropy, entropy_of_mistakes, multi_margin};
pub use self::mix::{CutMix, Mixed, Mixup, one_hot};
pub use self::mosaic::{Bayer, PeriodicConsistency, Translation, bilinear, periodic_consistency};
pub use self::penalties::{cross_norm, energy_gap, orthogonality};
pub use self::random_texts::RandomTexts;
pub use self::retrieval::{Retrieved, nearest};
pub use self::zero_shot::{mixed_probabilities, zero_shot_head};
pub use crate::layers::{cross_entropy_soft, cross_entropy_soft_smoothed};
