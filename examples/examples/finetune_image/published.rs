//! What the authors of TPGM measured: the tables in the READMEs of github.com/PotatoTian/TPGM. Accuracy in percent.

use tpgm_examples::study::{Method, Outcome};
use tpgm_examples::table::Table;

/// A table of the authors.
pub(crate) struct Published {
    /// Names of the test sets, as --test is to call them; the first is in distribution.
    pub(crate) domains: &'static [&'static str],
    /// Method, its strength where several were tried, and accuracies.
    rows: &'static [(Method, Option<f64>, &'static [f64])],
}

const DOMAINNET: &[&str] = &["real", "sketch", "painting", "infograph", "clipart"];

/// CLIP's ResNet-50 on DomainNet-Real.
pub(crate) const DOMAINNET_CLIP: Published = Published {
    domains: DOMAINNET,
    rows: &[
        (Method::FineTuning, None, &[79.43, 30.43, 41.24, 18.66, 42.36]),
        (Method::Tpgm, None, &[82.41, 37.53, 45.71, 26.77, 46.07]),
    ],
};

/// MoCo-v3's ResNet-50 on DomainNet-Real.
pub(crate) const DOMAINNET_MOCO: Published = Published {
    domains: DOMAINNET,
    rows: &[
        (Method::FineTuning, None, &[82.00, 31.92, 43.67, 19.66, 45.78]),
        (Method::Tpgm, None, &[81.30, 35.68, 46.64, 20.03, 45.77]),
    ],
};

/// CLIP's ViT-B/16 on ImageNet; of ImageNet-A and -R only their 200 classes can be predicted. The radii of TPGM were learned on
/// the images that the first column reports.
pub(crate) const IMAGENET: Published = Published {
    domains: &["imagenet", "v2", "a", "r", "sketch"],
    rows: &[
        (Method::ZeroShot, None, &[67.82, 61.19, 50.97, 75.73, 45.57]),
        (Method::FineTuning, None, &[84.27, 74.78, 45.54, 65.05, 48.28]),
        (Method::WiseFt, Some(0.4), &[80.58, 72.24, 56.94, 79.22, 53.78]),
        (Method::WiseFt, Some(0.5), &[82.16, 73.66, 56.63, 78.25, 54.16]),
        (Method::WiseFt, Some(0.6), &[83.24, 74.61, 55.21, 76.62, 53.99]),
        (Method::WiseFt, Some(0.7), &[84.01, 75.39, 53.58, 74.56, 53.24]),
        (Method::TpgmPostHoc, None, &[83.80, 75.27, 55.91, 76.87, 54.50]),
    ],
};

impl Published {
    /// Published beside measured accuracies, for the test sets that both have.
    pub(crate) fn beside(&self, domains: &[String], outcomes: &[Outcome]) -> Table {
        let shared: Vec<_> = self
            .domains
            .iter()
            .enumerate()
            .filter_map(|(theirs, name)| Some((theirs, domains.iter().position(|own| own == name)?)))
            .collect();
        let mut table = Table::new(["method", "numbers"]);
        table.header.extend(shared.iter().map(|(theirs, _)| self.domains[*theirs].to_owned()));
        for (method, strength, theirs) in self.rows {
            let name = match strength {
                Some(strength) => format!("{} {strength}", method.name()),
                None => method.name().to_owned(),
            };
            let row = |source: &str, value: &dyn Fn((usize, usize)) -> f64| {
                let values = shared.iter().map(|pair| format!("{:.2}", value(*pair)));
                [name.clone(), source.to_owned()].into_iter().chain(values).collect::<Vec<_>>()
            };
            table.rows.push(row("published", &|(at, _)| theirs[at]));
            let same = |outcome: &&Outcome| {
                outcome.setting.method == *method
                    && strength.is_none_or(|strength| outcome.setting.strength == Some(strength))
            };
            if let Some(outcome) = outcomes.iter().find(same) {
                table.rows.push(row("measured", &|(_, at)| 100.0 * outcome.scores.accuracy[at]));
            }
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use tpgm_examples::study::{Scores, Setting};
    use tpgm_examples::timing::StepTimes;

    use super::*;

    #[test]
    fn measured_numbers_stand_below_published_ones_of_the_same_set_and_strength() {
        let outcome = |method, strength, accuracy: &[f64]| Outcome {
            setting: Setting { method, lr: 1e-5, strength, seed: 0 },
            scores: Scores { choice: 0.5, accuracy: accuracy.to_vec(), ..Scores::default() },
            seconds: 1.0,
            times: StepTimes::default(),
            derailed: None,
        };
        let outcomes =
            [outcome(Method::WiseFt, Some(0.5), &[0.75, 0.25]), outcome(Method::Ftp, None, &[0.0, 0.0])];
        let text = IMAGENET.beside(&["imagenet".to_owned(), "sketch".to_owned()], &outcomes).csv();
        assert!(text.contains("method,numbers,imagenet,sketch\nzero-shot,published,67.82,45.57\n"), "{text}");
        assert!(
            text.contains(
                "WiSE-FT 0.5,published,82.16,54.16\nWiSE-FT 0.5,measured,75.00,25.00\nWiSE-FT 0.6,"
            ),
            "{text}"
        );
        assert_eq!(text.lines().count(), 1 + 7 + 1);
    }

    #[test]
    fn every_row_has_a_number_for_every_set() {
        for published in [&DOMAINNET_CLIP, &DOMAINNET_MOCO, &IMAGENET] {
            assert!(published.rows.iter().all(|(_, _, values)| values.len() == published.domains.len()));
        }
    }
}
