//! DaWin: other weights for other samples, at evaluation.

use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use tpgm_core::weight_space::BetaMixture;
use tpgm_core::weight_space::dawin::{Offset, coefficients, entropies};

use super::MergeError;
use super::error::Result;
use super::interpolate::Interpolation;
use crate::memory::Elements;
use crate::params::Params;

/// Evaluates each sample at weights between the zero-shot and the fine-tuned model, nearer to the one that is more
/// certain of it (DaWin, ICLR 2025, arXiv 2410.03782). Needs no labels.
///
/// The two models are the anchors and the current values of a parameter set. First evaluate both of them
/// ([`Interpolation`] at 0 and at 1) on all samples, then give their logits to [`Dawin::evaluate`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dawin {
    /// What the logits of the zero-shot and of the fine-tuned model are divided by before their entropy is taken, above 0.
    /// Default 1. The authors calibrate them: 0.9576 and 0.9733 for CLIP ViT-B/32, 0.96 and 1.0066 for B/16, 1.0767 and
    /// 0.9545 for L/14.
    pub temperatures: [f64; 2],
    /// Correction for a general difference in certainty. Default none.
    pub offset: Offset,
    /// Clusters the samples, so that weights are merged a few times (default 3, the paper); `None` merges for every
    /// sample.
    pub clusters: Option<BetaMixture>,
}

impl Default for Dawin {
    fn default() -> Self {
        Self { temperatures: [1.0; 2], offset: Offset::Plain, clusters: Some(BetaMixture::default()) }
    }
}

/// Samples that are evaluated at the same weights.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DawinCluster {
    /// Share of the fine-tuned model.
    pub coefficient: f64,
    /// Positions of the samples, ascending.
    pub samples: Vec<usize>,
}

/// What [`Dawin::evaluate`] found.
#[derive(Debug, Clone)]
pub struct DawinOutput {
    /// What the closure returned, in the order of the samples: `[samples, ..]`.
    pub outputs: Tensor,
    /// The coefficient of each sample before clustering.
    pub coefficients: Vec<f64>,
    /// The clusters; those without samples are left out.
    pub clusters: Vec<DawinCluster>,
}

impl Dawin {
    /// The share of the fine-tuned model for each sample, from logits `[samples, classes]` of both models.
    ///
    /// # Errors
    ///
    /// [`MergeError::TensorMismatch`] for logits of two shapes, [`Error::Core`](super::Error::Core) for an option or a logit outside its range, or
    /// the device fails.
    pub fn coefficients(&self, zero_shot: &Tensor, fine_tuned: &Tensor) -> Result<Vec<f64>> {
        if zero_shot.dims() != fine_tuned.dims() {
            return Err(MergeError::TensorMismatch {
                tensor: "logits".to_owned(),
                model: "the fine-tuned model".to_owned(),
                got: format!("{:?}", fine_tuned.dims()).into(),
                other: "the zero-shot model".to_owned(),
                expected: format!("{:?}", zero_shot.dims()).into(),
            }
            .into());
        }
        let (_, classes) = zero_shot.dims2()?;
        let entropies = |name, logits, temperature| -> Result<Vec<f64>> {
            Ok(entropies(Elements::new(name, logits)?.slice(), classes, temperature)?)
        };
        let [temperature0, temperature1] = self.temperatures;
        let entropies0 = entropies("zero-shot logits", zero_shot, temperature0)?;
        let entropies1 = entropies("fine-tuned logits", fine_tuned, temperature1)?;
        Ok(coefficients(&entropies0, &entropies1, self.offset)?)
    }

    /// Samples that share their weights.
    ///
    /// # Errors
    ///
    /// [`Error::Core`](super::Error::Core) with fewer samples than clusters or for an option outside its range.
    pub fn cluster(&self, coefficients: &[f64]) -> Result<Vec<DawinCluster>> {
        let Some(mixture) = &self.clusters else {
            let alone = |(sample, coefficient): (usize, &f64)| DawinCluster {
                coefficient: coefficient.clamp(0.0, 1.0),
                samples: vec![sample],
            };
            return Ok(coefficients.iter().enumerate().map(alone).collect());
        };
        // A Beta distribution lives between 0 and 1; a coefficient gets there only by rounding.
        let inside: Vec<f64> =
            coefficients.iter().map(|x| x.clamp(f64::EPSILON, 1.0 - f64::EPSILON)).collect();
        let fit = mixture.fit(&inside)?;
        let mut clusters: Vec<DawinCluster> = fit
            .means
            .iter()
            .map(|mean| DawinCluster { coefficient: mean.clamp(0.0, 1.0), samples: Vec::new() })
            .collect();
        for (sample, cluster) in fit.assignment.iter().enumerate() {
            clusters[*cluster].samples.push(sample);
        }
        clusters.retain(|cluster| !cluster.samples.is_empty());
        Ok(clusters)
    }

    /// Evaluates every sample at the weights of its cluster.
    ///
    /// For each cluster the parameters are set to their interpolation and `forward` is called with the positions of its
    /// samples; it may work in batches and returns one row per sample, in the order given: `[samples of the cluster, ..]`.
    /// It must not change the parameters. They have their fine-tuned values again afterwards, also after an error.
    ///
    /// # Errors
    ///
    /// As [`Dawin::coefficients`] and [`Dawin::cluster`], [`MergeError::TensorMismatch`] for another number of rows, or what
    /// `forward` returns.
    pub fn evaluate(
        &self,
        params: &Params,
        zero_shot: &Tensor,
        fine_tuned: &Tensor,
        mut forward: impl FnMut(&[usize]) -> candle_core::Result<Tensor>,
    ) -> Result<DawinOutput> {
        let coefficients = self.coefficients(zero_shot, fine_tuned)?;
        let clusters = self.cluster(&coefficients)?;
        let mut between = Interpolation::new(params)?;
        let (mut outputs, mut order) = (Vec::new(), Vec::new());
        for cluster in &clusters {
            between.set(cluster.coefficient)?;
            let output = forward(&cluster.samples)?;
            let rows = output.dims().first().copied().unwrap_or(0);
            if rows != cluster.samples.len() {
                return Err(MergeError::TensorMismatch {
                    tensor: "output".to_owned(),
                    model: "what the closure returned".to_owned(),
                    got: format!("{:?}", output.dims()).into(),
                    other: "the samples it was given".to_owned(),
                    expected: format!("[{}, ..]", cluster.samples.len()).into(),
                }
                .into());
            }
            outputs.push(output.detach());
            order.extend_from_slice(&cluster.samples);
        }
        between.restore()?;
        let outputs = Tensor::cat(&outputs, 0)?;
        let outputs = outputs.index_select(&places(&order, outputs.device())?, 0)?;
        Ok(DawinOutput { outputs, coefficients, clusters })
    }
}

/// Where each sample is, given which sample is where.
fn places(order: &[usize], device: &candle_core::Device) -> Result<Tensor> {
    let mut places = vec![0i64; order.len()];
    for (place, sample) in order.iter().enumerate() {
        places[*sample] = place as i64;
    }
    Ok(Tensor::new(places, device)?)
}
