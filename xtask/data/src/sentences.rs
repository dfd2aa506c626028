//! Sentences of four domains, each rated by twenty people, from the source archive of the package vaderSentiment.

use anyhow::{Context, Result, ensure};

use crate::archive;
use crate::digest::{draw, share};

/// Names of the domains, and of their files without the ending.
const DOMAINS: [(&str, &str); 4] = [
    ("movies", "movieReviewSnippets"),
    ("products", "amazonReviewSnippets"),
    ("editorials", "nytEditorialSnippets"),
    ("tweets", "tweets"),
];

/// Ratings run from -4 to 4. Nearer to zero people disagree about the sign.
const CLEAR: f64 = 0.5;

/// Rows of a domain's sets at most: all domains count alike.
const MOST: [(&str, usize); 3] = [("train", 800), ("val", 400), ("test", 400)];

/// A sentence and the sign of its mean rating.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub(crate) text: String,
    pub(crate) label: &'static str,
}

/// Names of files (`movies.train.csv`) and their rows.
///
/// # Errors
///
/// The archive is damaged, or a line of it is not `id, rating, text`.
pub(crate) fn sets(package: &[u8]) -> Result<Vec<(String, Vec<Row>)>> {
    let inner = archive::file_of_tape(package, "additional_resources/hutto_ICWSM_2014.tar.gz")?;
    let mut sets = Vec::new();
    for (domain, file) in DOMAINS {
        let name = format!("{file}_GroundTruth.txt");
        let text = archive::file_of_tape(&inner, &name)?;
        let rows = parse(&String::from_utf8_lossy(&text)).context(name)?;
        sets.extend(split(domain, rows).into_iter().map(|(set, rows)| (format!("{domain}.{set}.csv"), rows)));
    }
    Ok(sets)
}

/// Lines `id, rating, text` between tabs: those with a clear rating, with their ids.
fn parse(text: &str) -> Result<Vec<(String, Row)>> {
    let mut rows = Vec::new();
    for (number, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let mut parts = line.splitn(3, '\t').map(str::trim);
        let read = || Some((parts.next()?, parts.next()?.parse::<f64>().ok()?, parts.next()?));
        let (id, rating, text) = { read }().with_context(|| format!("line {}: `{line}`", number + 1))?;
        ensure!(rating.abs() <= 4.0, "line {}: a rating of {rating}", number + 1);
        if rating.abs() >= CLEAR && !text.is_empty() {
            let label = if rating > 0.0 { "positive" } else { "negative" };
            rows.push((id.to_owned(), Row { text: text.to_owned(), label }));
        }
    }
    Ok(rows)
}

/// Divides a domain by review, so that no review is on two sides: what stands before `_` in an id is its review.
fn split(domain: &str, rows: Vec<(String, Row)>) -> Vec<(&'static str, Vec<Row>)> {
    let mut sets = MOST.map(|(set, most)| (set, most, Vec::new()));
    for (id, row) in rows {
        let review = id.split('_').next().unwrap_or_default();
        let number = match share(&format!("0/{domain}/{review}")) {
            drawn if drawn < 0.6 => 0,
            drawn if drawn < 0.72 => 1,
            _ => 2,
        };
        sets[number].2.push((id, row));
    }
    let take = |(set, most, rows): (&'static str, usize, Vec<_>)| {
        let drawn = draw(rows, |(id, _): &(String, Row)| format!("0/{domain}/{id}"));
        (set, drawn.into_iter().take(most).map(|(_, row)| row).collect())
    };
    sets.map(take).into()
}

/// A CSV file with the columns `label` and `text`.
pub(crate) fn csv(rows: &[Row]) -> String {
    let line = |row: &Row| format!("{},\"{}\"\n", row.label, row.text.replace('"', "\"\""));
    std::iter::once("label,text\n".to_owned()).chain(rows.iter().map(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::tests::pack;

    #[test]
    fn clear_ratings_become_classes() {
        let rows =
            parse("1_1\t-0.9\tno picture.\r\n1_2\t-0.15\tunclear\n2\t 2.5\tfine,\tsaid \"he\"\n\n").unwrap();
        let seen: Vec<_> = rows.iter().map(|(id, row)| (id.as_str(), row.label, row.text.as_str())).collect();
        assert_eq!(seen, [("1_1", "negative", "no picture."), ("2", "positive", "fine,\tsaid \"he\"")]);
        let rows: Vec<_> = rows.into_iter().map(|(_, row)| row).collect();
        assert_eq!(csv(&rows), "label,text\nnegative,\"no picture.\"\npositive,\"fine,\tsaid \"\"he\"\"\"\n");
        assert_eq!(parse("1\t0.7\tok\n1\tx\ty").unwrap_err().to_string(), "line 2: `1\tx\ty`");
        assert!(parse("1\t40\ty").unwrap_err().to_string().contains("a rating of 40"));
    }

    #[test]
    fn a_review_is_on_one_side_and_sets_have_a_most() {
        let row = |text: String| Row { text, label: "positive" };
        let rows: Vec<_> = (0..6000).map(|n| (format!("{}_{n}", n / 3), row(format!("{}", n / 3)))).collect();
        let sets = split("tweets", rows);
        assert_eq!(sets.iter().map(|(set, rows)| (*set, rows.len())).collect::<Vec<_>>(), MOST);
        for (one, other) in [(0, 1), (0, 2), (1, 2)] {
            assert!(sets[one].1.iter().all(|row| !sets[other].1.contains(row)));
        }
    }

    #[test]
    fn four_domains_come_from_the_archive_within_the_archive() {
        let files = DOMAINS.map(|(_, file)| format!("{file}_GroundTruth.txt"));
        let text = (0..100).map(|n| format!("{n}\t1.5\tsentence {n}\n")).collect::<String>();
        let inner = pack(&files.each_ref().map(|file| (file.as_str(), text.as_bytes())));
        let sets = sets(&pack(&[("additional_resources/hutto_ICWSM_2014.tar.gz", &inner)])).unwrap();
        assert_eq!(sets.len(), 12);
        assert_eq!(sets[0].0, "movies.train.csv");
        assert_eq!(sets.iter().map(|(_, rows)| rows.len()).sum::<usize>(), 400);
        let error = super::sets(&pack(&[("a", b"")])).unwrap_err().to_string();
        assert!(error.contains("has no additional_resources/hutto"), "{error}");
    }
}
