//! Which emoji there are, and which tasks they are for.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use serde::Deserialize;

use super::style::Style;

/// An emoji.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Emoji {
    /// Its code points, in lower case, between dashes, without the one that asks for color.
    pub(crate) code: String,
    /// `hot-beverage`
    pub(crate) name: String,
    group: String,
    /// Unicode's subgroup; those of hands are one.
    pub(crate) category: String,
}

/// An entry of `openmoji.json`.
#[derive(Debug, Deserialize)]
struct Entry {
    hexcode: String,
    annotation: String,
    group: String,
    subgroups: String,
    /// A text or a number; an empty text where skin has its usual color.
    skintone: serde_json::Value,
}

/// Code points as they are compared.
pub(crate) fn normal(code: &str) -> String {
    let parts = code.split('-').map(str::to_lowercase).filter(|part| part != "fe0f");
    parts.collect::<Vec<_>>().join("-")
}

/// A name with dashes, in letters that every file system has.
pub(crate) fn dashed(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let parts: String = name.chars().filter(|c| *c != '’' && *c != '\'').map(plain).collect();
    parts.split('-').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("-")
}

/// The emoji of Unicode, without flags, parts, families, skin tones and the variants of persons by gender, in Unicode's order.
///
/// # Errors
///
/// The list is damaged.
pub(crate) fn read(json: &[u8]) -> Result<Vec<Emoji>> {
    let entries: Vec<Entry> = serde_json::from_slice(json).context("openmoji.json is damaged")?;
    let wanted = |entry: &Entry| {
        let gender = |part: &str| matches!(part, "2640" | "2642");
        !entry.group.starts_with("extras")
            && !matches!(entry.group.as_str(), "flags" | "component")
            && entry.subgroups != "family"
            && entry.skintone == ""
            && !normal(&entry.hexcode).split('-').any(gender)
    };
    let emoji = |entry: Entry| Emoji {
        code: normal(&entry.hexcode),
        name: dashed(&entry.annotation),
        group: entry.group,
        category: if entry.subgroups.starts_with("hand") { "hand".to_owned() } else { entry.subgroups },
    };
    let mut seen = BTreeSet::new();
    let all = entries.into_iter().filter(wanted).map(emoji);
    Ok(all.filter(|emoji| seen.insert(emoji.code.clone())).collect())
}

/// A category has at least this many emoji that today's vendors draw.
const CATEGORY: usize = 12;

/// Categories whose members differ by little: they are no concepts to tell apart.
const ALIKE: [&str; 5] = ["time", "heart", "hand", "emotion", "mail"];

/// What emoji are for.
#[derive(Debug)]
pub(crate) struct Roles {
    /// Of a category that is large enough, with a picture in every style that all have.
    pub(crate) category: Vec<Emoji>,
    /// Those of them that can be told apart: concepts.
    pub(crate) concepts: Vec<Emoji>,
    /// For pre-training, before what resembles the others is dropped: none of the others.
    pub(crate) other: Vec<Emoji>,
}

/// Divides emoji among the tasks. `drawn` are the codes that each style has a picture of.
pub(crate) fn roles(all: &[Emoji], drawn: &BTreeMap<Style, BTreeSet<String>>) -> Roles {
    let has =
        |emoji: &Emoji, style: &Style| drawn.get(style).is_some_and(|codes| codes.contains(&emoji.code));
    let thing = |emoji: &&Emoji| emoji.group != "symbols" && !emoji.category.starts_with("person");
    let today: Vec<_> =
        all.iter().filter(thing).filter(|emoji| Style::TODAY.iter().all(|style| has(emoji, style))).collect();
    let mut sizes = BTreeMap::<&str, usize>::new();
    today.iter().for_each(|emoji| *sizes.entry(&emoji.category).or_default() += 1);
    let category: Vec<Emoji> = today
        .into_iter()
        .filter(|emoji| sizes[emoji.category.as_str()] >= CATEGORY)
        .filter(|emoji| Style::EVERYWHERE.iter().all(|style| has(emoji, style)))
        .cloned()
        .collect();
    let alike =
        |emoji: &&Emoji| emoji.category.starts_with("face-") || ALIKE.contains(&emoji.category.as_str());
    let concepts = category.iter().filter(|emoji| !alike(emoji)).cloned().collect();
    let other = all.iter().filter(|emoji| !category.contains(emoji)).cloned().collect();
    Roles { category, concepts, other }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn emoji(code: &str, category: &str) -> Emoji {
        Emoji {
            code: code.to_owned(),
            name: format!("name-{code}"),
            group: if category == "arrow" { "symbols" } else { "objects" }.to_owned(),
            category: category.to_owned(),
        }
    }

    #[test]
    fn codes_and_names_are_compared_in_one_form() {
        assert_eq!(normal("2764-FE0F-200D-1F525"), "2764-200d-1f525");
        assert_eq!(dashed("Mrs. Claus’ “new” piñata"), "mrs-claus-new-pi-ata");
    }

    #[test]
    fn what_is_no_emoji_of_its_own_is_left_out() {
        let entry = |code: &str, group: &str, subgroup: &str, tone: &str| {
            format!(
                r#"{{"hexcode": "{code}", "annotation": "a {code}", "group": "{group}", "subgroups": "{subgroup}", "skintone": {tone}}}"#
            )
        };
        let list = [
            entry("1F528", "objects", "tool", "\"\""),
            entry("1F44B", "people-body", "hand-fingers-open", "\"\""),
            entry("1F44B-1F3FB", "people-body", "hand-fingers-open", "1"),
            entry("1F1E9-1F1EA", "flags", "country-flag", "\"\""),
            entry("E000", "extras-openmoji", "brand", "\"\""),
            entry("1F46A", "people-body", "family", "\"\""),
            entry("1F937-200D-2642-FE0F", "people-body", "person-gesture", "\"\""),
        ];
        let all = read(format!("[{}]", list.join(",")).as_bytes()).unwrap();
        let seen: Vec<_> = all.iter().map(|emoji| (emoji.code.as_str(), emoji.category.as_str())).collect();
        assert_eq!(seen, [("1f528", "tool"), ("1f44b", "hand")]);
        assert!(read(b"[{}]").unwrap_err().to_string().contains("openmoji.json is damaged"));
    }

    #[test]
    fn every_emoji_has_one_role() {
        let mut all: Vec<_> = (0..12).map(|n| emoji(&format!("a{n}"), "tool")).collect();
        all.extend((0..12).map(|n| emoji(&format!("b{n}"), "time")));
        all.extend((0..11).map(|n| emoji(&format!("c{n}"), "bird")));
        all.extend((0..12).map(|n| emoji(&format!("d{n}"), "arrow")));
        let codes: BTreeSet<_> = all.iter().map(|emoji| emoji.code.clone()).collect();
        let mut drawn: BTreeMap<_, _> = Style::ALL.iter().map(|style| (*style, codes.clone())).collect();
        drawn.get_mut(&Style::Monotone).unwrap().remove("a3");
        let roles = roles(&all, &drawn);
        // Of the tools one lacks a style; clocks are no concepts; birds are too few; arrows are symbols.
        assert_eq!([roles.category.len(), roles.concepts.len(), roles.other.len()], [23, 11, 24]);
        assert!(roles.other.iter().any(|emoji| emoji.code == "a3"));
    }
}
