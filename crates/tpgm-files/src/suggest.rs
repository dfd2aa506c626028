//! Names that somebody may have meant.

/// How many names a message shows.
const SHOWN: usize = 3;

/// Up to three of `names` that are close to `wanted`: first those that end in it or that it ends in (a prefix more or
/// less), then by edit distance up to a third of its length.
pub fn close_names<'a>(wanted: &str, names: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let limit = wanted.chars().count() / 3 + 1;
    let mut scored: Vec<(usize, &str)> = names
        .into_iter()
        .filter_map(|name| {
            let prefixed =
                |long: &str, short: &str| long.strip_suffix(short).is_some_and(|p| p.ends_with('.'));
            if prefixed(name, wanted) || prefixed(wanted, name) {
                return Some((0, name));
            }
            let distance = edit_distance(wanted, name, limit)?;
            Some((distance, name))
        })
        .collect();
    scored.sort_unstable();
    scored.into_iter().take(SHOWN).map(|(_, name)| name.to_owned()).collect()
}

/// Levenshtein distance, or `None` above `limit`.
fn edit_distance(a: &str, b: &str, limit: usize) -> Option<usize> {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    if a.len().abs_diff(b.len()) > limit {
        return None;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let substituted = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = substituted.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row.last().copied().filter(|&distance| distance <= limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        assert_eq!(edit_distance("kitten", "sitting", 9), Some(3));
        assert_eq!(edit_distance("", "abc", 3), Some(3));
        assert_eq!(edit_distance("abc", "abc", 0), Some(0));
        assert_eq!(edit_distance("kitten", "sitting", 2), None);
    }

    #[test]
    fn a_missing_prefix_comes_first() {
        let names = ["bert.pooler.weight", "pooler.weights", "decoder.bias", "poolerweight"];
        assert_eq!(
            close_names("pooler.weight", names),
            ["bert.pooler.weight", "pooler.weights", "poolerweight"]
        );
        assert_eq!(close_names("bert.decoder.bias", names), ["decoder.bias"]);
        assert!(close_names("x", names).is_empty());
    }
}
