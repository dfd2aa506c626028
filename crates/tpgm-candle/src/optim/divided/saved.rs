//! Saved state of rows, put together or taken apart for whoever loads it.

use std::collections::BTreeMap;
use std::ops::Range;

use tpgm_core::{Buffer, ParamSet, StateDict};

use super::blocks::saved_rows;

/// The slot that every block of a tensor has whole.
const SCALARS: &str = "scalars";

/// One slot of some rows.
type Rows<'a> = (Range<usize>, &'a Buffer);

/// Gives every tensor or block in `wanted` (name, tensor, rows) its slots, out of a saved state of all or of other rows of `set`'s
/// tensors. What a state lacks stays away, and what belongs to no tensor stays: whoever loads it says so.
pub(in crate::optim) fn fit<'a>(
    set: &ParamSet,
    state: StateDict,
    wanted: impl IntoIterator<Item = (&'a str, usize, Range<usize>)>,
) -> StateDict {
    let wanted: Vec<_> = wanted.into_iter().collect();
    let names: std::collections::HashSet<&str> = wanted.iter().map(|(name, ..)| *name).collect();
    let known = |key: &str| {
        key.rsplit_once('/').is_none_or(|(name, _)| names.contains(name) || saved_rows(set, name).is_none())
    };
    if state.keys().all(|key| known(key)) {
        return state;
    }
    let mut fitted = StateDict::new();
    let mut saved: BTreeMap<(usize, &str), Vec<Rows<'_>>> = BTreeMap::new();
    for (key, buffer) in &state {
        let found = key.rsplit_once('/').and_then(|(name, slot)| Some((saved_rows(set, name)?, slot)));
        match found {
            Some(((tensor, rows), slot)) => saved.entry((tensor, slot)).or_default().push((rows, buffer)),
            None => drop(fitted.insert(key.clone(), buffer.clone())),
        }
    }
    saved.values_mut().for_each(|rows| rows.sort_by_key(|(rows, _)| (rows.start, rows.end)));
    for (name, tensor, rows) in wanted {
        for ((_, slot), saved) in saved.range((tensor, "")..(tensor + 1, "")) {
            if let Some(buffer) = of_rows(slot, saved, &rows) {
                fitted.insert(format!("{name}/{slot}"), buffer);
            }
        }
    }
    fitted
}

/// What is saved of some rows, if it is of all of them. Of equal slots the first.
fn of_rows(slot: &str, saved: &[Rows<'_>], wanted: &Range<usize>) -> Option<Buffer> {
    if let Some((_, buffer)) = saved.iter().find(|(rows, _)| rows == wanted) {
        return Some((*buffer).clone());
    }
    let (mut at, mut parts) = (wanted.start, Vec::new());
    for (rows, buffer) in saved {
        if !rows.contains(&at) || at >= wanted.end {
            continue;
        }
        // One of another length is no slot of these rows.
        let per_row = match slot {
            SCALARS => 0,
            _ if buffer.len() % rows.len() == 0 => buffer.len() / rows.len(),
            _ => return None,
        };
        let end = rows.end.min(wanted.end);
        parts.push(buffer.as_slice().sub((at - rows.start) * per_row..(end - rows.start) * per_row));
        at = end;
    }
    if at < wanted.end {
        return None;
    }
    match slot {
        SCALARS => saved.first().map(|(_, buffer)| (*buffer).clone()),
        _ => Buffer::concat(&parts),
    }
}

#[cfg(test)]
mod tests {
    use tpgm_core::DType;

    use super::*;

    const ALL: Range<usize> = 0..6;

    fn set() -> ParamSet {
        ParamSet::builder().tensor("b", [3], DType::F32).tensor("w", [6, 2], DType::F32).build().unwrap()
    }

    fn moments(rows: Range<usize>) -> Buffer {
        Buffer::F32((2 * rows.start..2 * rows.end).map(|x| x as f32).collect())
    }

    /// What an optimizer with these rows of `w` saves.
    fn saved(cut: &[Range<usize>]) -> StateDict {
        let mut state = StateDict::from([
            ("b/exp_avg".to_owned(), Buffer::F32(vec![7.0; 3])),
            ("optimizer/lr".to_owned(), Buffer::F64(vec![0.5])),
        ]);
        for rows in cut {
            let name =
                if rows.len() == 6 { "w".to_owned() } else { format!("w[{}..{}]", rows.start, rows.end) };
            let scale = rows.clone().map(|row| row as f64).collect();
            state.insert(format!("{name}/exp_avg"), moments(rows.clone()));
            state.insert(format!("{name}/row_scale"), Buffer::F64(scale));
            state.insert(format!("{name}/scalars"), Buffer::F64(vec![3.0, 4.0, 5.0]));
        }
        state
    }

    fn fitted(state: StateDict, cut: &[Range<usize>]) -> StateDict {
        let names: Vec<String> = saved(cut)
            .into_keys()
            .filter_map(|key| key.strip_suffix("/exp_avg").map(str::to_owned))
            .collect();
        let set = set();
        let wanted = names.iter().map(|name| {
            let (tensor, rows) = saved_rows(&set, name).unwrap();
            (name.as_str(), tensor, rows)
        });
        fit(&set, state, wanted)
    }

    #[test]
    fn rows_go_from_any_cut_to_any_other() {
        let cuts = [vec![ALL], vec![0..4, 4..6], vec![0..2, 2..3, 3..6]];
        for (from, to) in cuts.iter().flat_map(|from| cuts.iter().map(move |to| (from, to))) {
            assert_eq!(fitted(saved(from), to), saved(to), "{from:?} {to:?}");
        }
        // Some rows alone, of all.
        let some = 1..5;
        let own = fitted(saved(&cuts[2]), &[some]);
        assert_eq!(own["w[1..5]/exp_avg"], moments(1..5));
        assert!(!own.contains_key("w/exp_avg") && own.contains_key("b/exp_avg"));
    }

    #[test]
    fn what_is_missing_or_unknown_is_for_others_to_tell() {
        let mut state = saved(&[0..2, 2..3, 3..6]);
        state.remove("w[2..3]/exp_avg");
        state.insert("v[0..2]/exp_avg".to_owned(), moments(0..2));
        state.insert("w[0..2]/row_scale".to_owned(), Buffer::F64(vec![0.0; 3]));
        let all = fitted(state, &[ALL]);
        assert!(!all.contains_key("w/exp_avg") && !all.contains_key("w/row_scale"));
        assert!(all.contains_key("v[0..2]/exp_avg") && all.contains_key("w/scalars"));
    }
}
