//! Held-out samples.

use anyhow::{Result, ensure};
use tpgm_candle::DataOrder;

/// Divides samples into the rest and a held-out share, class by class, so that both have the classes in the same
/// proportion. `labels` are the classes; the result has positions in `labels`, ascending. A class of one sample is in the
/// rest. The same arguments give the same split.
///
/// # Errors
///
/// A share outside `(0, 1)`, or nothing is left on one side.
pub fn hold_out(labels: &[u32], share: f64, seed: u64) -> Result<(Vec<usize>, Vec<usize>)> {
    ensure!(share > 0.0 && share < 1.0, "a held-out share of {share}: it must be between 0 and 1");
    let classes = labels.iter().max().map_or(0, |class| class + 1);
    let (mut rest, mut held_out) = (Vec::new(), Vec::new());
    for class in 0..classes {
        let members: Vec<_> = (0..labels.len()).filter(|position| labels[*position] == class).collect();
        if members.is_empty() {
            continue;
        }
        let mut order = DataOrder::new(members.len(), members.len(), seed ^ u64::from(class))?;
        let shuffled = order.next_batch().unwrap_or_default();
        let out = (members.len() as f64 * share).round() as usize;
        let (first, others) = shuffled.split_at(out.min(members.len() - 1));
        held_out.extend(first.iter().map(|member| members[*member]));
        rest.extend(others.iter().map(|member| members[*member]));
    }
    ensure!(
        !rest.is_empty() && !held_out.is_empty(),
        "{} samples are too few to hold out a share of {share}",
        labels.len()
    );
    rest.sort_unstable();
    held_out.sort_unstable();
    Ok((rest, held_out))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sample_is_on_one_side_and_classes_keep_their_proportion() {
        let labels: Vec<u32> = (0..100).map(|n| if n % 10 == 0 { 7 } else { n % 2 }).chain([9]).collect();
        let (rest, held_out) = hold_out(&labels, 0.2, 3).unwrap();
        let mut all = [rest.clone(), held_out.clone()].concat();
        all.sort_unstable();
        assert_eq!(all, (0..101).collect::<Vec<_>>());
        let count = |class| held_out.iter().filter(|position| labels[**position] == class).count();
        // 40 of class 0, 50 of 1, 10 of 7, a single one of 9.
        assert_eq!([count(0), count(1), count(7), count(9)], [8, 10, 2, 0]);
        assert_eq!(hold_out(&labels, 0.2, 3).unwrap().1, held_out);
        assert_ne!(hold_out(&labels, 0.2, 4).unwrap().1, held_out);
    }

    #[test]
    fn a_side_without_samples_is_an_error() {
        assert!(hold_out(&[0, 1], 0.2, 0).unwrap_err().to_string().contains("2 samples are too few"));
        assert!(hold_out(&[0; 9], 1.5, 0).unwrap_err().to_string().contains("1.5"));
        assert!(hold_out(&[], 0.5, 0).is_err());
    }
}
