//! Adaptation to a stream: the test images of one domain after the other, each domain from the fine-tuned weights on. A few images
//! come at a time; they are predicted before the step that they cause.

use anyhow::Result;
use candle_core::Tensor;
use tpgm_candle::adapt::{FastOptions, FastWeights, SlowOptions, SlowWeights, Tent, norms};
use tpgm_candle::{AdamW, Constraint, Params};

use crate::lab::{Lab, Net, Outcome, Spent, bytes_of_all};
use crate::method::Setting;

/// Images that come at a time.
const AT_ONCE: usize = 8;

pub(crate) fn tent(lab: &Lab<'_>, setting: &Setting, net: &Net, spent: Spent) -> Result<Outcome> {
    // Moments.
    over_streams(lab, setting, net, spent, 2, |norms| {
        let mut tent = Tent::over(norms, AdamW::default().lr(setting.amount()), Constraint::None)?;
        Ok(move |logits: &Tensor| {
            tent.step(logits)?;
            Ok(())
        })
    })
}

pub(crate) fn fstta(lab: &Lab<'_>, setting: &Setting, net: &Net, spent: Spent) -> Result<Outcome> {
    // Moments of both, the slow weights, and in twice the size three gradients and four states.
    over_streams(lab, setting, net, spent, 2 + 2 + 1 + 6 + 8, |norms| {
        let options = FastOptions { lr: setting.amount(), ..FastOptions::default() };
        let mut fast = FastWeights::new(norms, options, Constraint::None)?;
        let mut slow = SlowWeights::new(norms, SlowOptions::default(), Constraint::None)?;
        Ok(move |logits: &Tensor| {
            // A step follows on every third call, so that many calls are a sample.
            if fast.step(logits)?.lr.is_some() {
                slow.end_sample()?;
            }
            Ok(())
        })
    })
}

/// Predicts streams; `begin` makes what adapts the norms to one of them, and keeps so many copies of them. The weights are the fine-tuned ones again afterwards.
fn over_streams<A: FnMut(&Tensor) -> Result<()>>(
    lab: &Lab<'_>,
    setting: &Setting,
    net: &Net,
    mut spent: Spent,
    copies: usize,
    begin: impl Fn(&Params) -> Result<A>,
) -> Result<Outcome> {
    let norms = norms(&net.params)?;
    let fine_tuned: std::collections::BTreeMap<_, _> = norms
        .values()
        .into_iter()
        .map(|(name, tensor)| Ok((name, tensor.copy()?)))
        .collect::<candle_core::Result<_>>()?;
    spent.kept += (1 + copies) * bytes_of_all(&norms);
    lab.judge(setting, spent, Vec::new(), |images| {
        let mut adapt = begin(&norms)?;
        let (count, mut predicted) = (images.dim(0)?, Vec::new());
        for from in (0..count).step_by(AT_ONCE) {
            let logits = net.logits(&images.narrow(0, from, AT_ONCE.min(count - from))?)?;
            adapt(&logits)?;
            predicted.push(logits.detach());
        }
        norms.load_values(&fine_tuned)?;
        Ok(Tensor::cat(&predicted, 0)?)
    })
}
