//! The methods: each is a few lines over the blocks of the crates.

pub(crate) mod autoft;
mod between;
mod head;
mod levi;
mod lora;
mod pairs;
mod prompts;
pub(crate) mod stream;

use anyhow::Result;

use crate::lab::{Lab, Outcome, Spent, Trained, in_parts};
use crate::method::{Method, Setting};

/// Runs settings that share a base, and returns their outcomes. What is known is not run again.
///
/// # Errors
///
/// A run fails, or was asked to stop.
pub(crate) fn run(lab: &Lab<'_>, settings: &[Setting]) -> Result<Vec<Outcome>> {
    let known = settings.iter().map(|setting| lab.known(setting)).collect::<Result<Vec<_>>>()?;
    if known.iter().all(Option::is_some) {
        return Ok(known.into_iter().flatten().collect());
    }
    let first = &settings[0];
    let base = Setting { method: first.method.base(), ..*first };
    match base.method {
        Method::FineTuning | Method::Bang => {
            let (net, spent) = if base.method == Method::Bang {
                head::bang(lab, &base)?
            } else {
                head::fine_tuned(lab, &base, tpgm_candle::Constraint::None)?
            };
            let one = |(setting, known): (&Setting, Option<Outcome>)| match known {
                Some(outcome) => Ok(outcome),
                None => after(lab, setting, &net, spent),
            };
            settings.iter().zip(known).map(one).collect()
        }
        _ => Ok(vec![alone(lab, first)?]),
    }
}

/// What is made of a fine-tuned model.
fn after(lab: &Lab<'_>, setting: &Setting, net: &crate::lab::Net, spent: Spent) -> Result<Outcome> {
    match setting.method {
        Method::WiseFt | Method::Bang => between::wise(lab, setting, net, spent),
        Method::Dawin => between::dawin(lab, setting, net, spent),
        Method::Tent => stream::tent(lab, setting, net, spent),
        Method::Fstta => stream::fstta(lab, setting, net, spent),
        _ => head::judge(lab, setting, net, spent),
    }
}

/// A run that nothing else is made of.
fn alone(lab: &Lab<'_>, setting: &Setting) -> Result<Outcome> {
    match setting.method {
        Method::ZeroShot => {
            let net = lab.net(Trained::Head, setting.seed)?;
            lab.judge(setting, Spent::default(), Vec::new(), |images| {
                in_parts(images, |images| net.logits(images))
            })
        }
        Method::Flyp => pairs::flyp(lab, setting),
        Method::CaRot => pairs::carot(lab, setting),
        Method::Arf => pairs::arf(lab, setting),
        Method::Drm => pairs::drm(lab, setting),
        Method::Gift | Method::GiftFree => pairs::gift(lab, setting),
        Method::AutoFt => autoft::run(lab, setting),
        Method::PromptsShallow | Method::PromptsDeep | Method::PromptsMoved => prompts::run(lab, setting),
        Method::Levi => levi::run(lab, setting),
        Method::Lora => lora::run(lab, setting),
        _ => head::run(lab, setting),
    }
}
