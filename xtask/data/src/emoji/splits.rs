//! Which picture is in which set. All is drawn by digests: the same everywhere, and nobody's choice.

use std::collections::{BTreeMap, BTreeSet};

use super::catalog::Emoji;
use super::style::Style;
use crate::digest::draw;

/// A picture of a set.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Picture {
    /// The folder: `identity/train`, `category/test/monotone`, `pretrain`.
    pub(crate) set: String,
    pub(crate) class: String,
    pub(crate) code: String,
    pub(crate) style: Style,
}

impl Picture {
    fn new(set: impl Into<String>, class: &str, emoji: &Emoji, style: Style) -> Self {
        Self { set: set.into(), class: class.to_owned(), code: emoji.code.clone(), style }
    }

    /// The file below the folder of all sets. What stands before the first dot names the emoji: pictures of one emoji are
    /// no independent samples.
    pub(crate) fn path(&self) -> String {
        format!("{}/{}/{}.{}.png", self.set, self.class, self.code, self.style.name())
    }
}

/// Where an emoji is drawn in a style.
pub(crate) type Drawn = BTreeMap<Style, BTreeSet<String>>;

fn has(drawn: &Drawn, emoji: &Emoji, style: Style) -> bool {
    drawn.get(&style).is_some_and(|codes| codes.contains(&emoji.code))
}

/// Which emoji is it? A class is a concept, its pictures are the drawings of several vendors. Of the four colored styles that
/// every concept has, two are for training, one is held out and one is the test in distribution; [`Style::Fxemoji`] is for
/// training where it is. One half of the held-out pictures is for radii, the other for choices.
pub(crate) fn identity(concepts: &[Emoji], drawn: &Drawn) -> Vec<Picture> {
    let mut pictures = Vec::new();
    let halves = draw(concepts.iter().collect(), |emoji| format!("0/radii/{}", emoji.code));
    let radii: BTreeSet<_> = halves[..concepts.len() / 2].iter().map(|emoji| &emoji.code).collect();
    for emoji in concepts {
        let mut add = |set: &str, style| {
            pictures.push(Picture::new(format!("identity/{set}"), &emoji.name, emoji, style))
        };
        let styles = draw(Style::SOURCE.to_vec(), |style| format!("0/{}/{}", emoji.code, style.name()));
        let held_out = if radii.contains(&emoji.code) { "radii" } else { "val" };
        ["train", "train", held_out, "test/id"]
            .into_iter()
            .zip(styles)
            .for_each(|(set, style)| add(set, style));
        if has(drawn, emoji, Style::Fxemoji) {
            add("train", Style::Fxemoji);
        }
        Style::SHIFTED.into_iter().for_each(|style| add(&format!("test/{}", style.name()), style));
    }
    pictures
}

/// What kind of thing is it? A class is a category; concepts of training are not those of the test. Half of a category's concepts
/// are for training, a fifth and at least two for radii and choices, the rest for the test.
pub(crate) fn category(emoji: &[Emoji], drawn: &Drawn) -> Vec<Picture> {
    let mut categories = BTreeMap::<&str, Vec<&Emoji>>::new();
    emoji.iter().for_each(|emoji| categories.entry(&emoji.category).or_default().push(emoji));
    let mut pictures = Vec::new();
    for (category, members) in categories {
        let members = draw(members, |emoji| format!("0/{}", emoji.code));
        let train = members.len() / 2;
        let held_out = (members.len() / 5).max(2);
        for (number, emoji) in members.into_iter().enumerate() {
            let set = match number {
                n if n < train => "train",
                n if n >= train + held_out => "test/id",
                n if (n - train) % 2 == 0 => "radii",
                _ => "val",
            };
            let mut add = |set: &str, style| {
                pictures.push(Picture::new(format!("category/{set}"), category, emoji, style))
            };
            Style::SOURCE.into_iter().for_each(|style| add(set, style));
            if has(drawn, emoji, Style::Fxemoji) && set == "train" {
                add(set, Style::Fxemoji);
            }
            if set == "test/id" {
                Style::SHIFTED.into_iter().for_each(|style| add(&format!("test/{}", style.name()), style));
            }
        }
    }
    pictures
}

/// Which emoji is it, of those that no other set has, in all styles that there are of each.
pub(crate) fn pretrain(other: &[Emoji], drawn: &Drawn) -> Vec<Picture> {
    let styles = |emoji: &Emoji| {
        let there = Style::ALL.into_iter().filter(|style| has(drawn, emoji, *style));
        there.map(|style| Picture::new("pretrain", &emoji.code, emoji, style)).collect::<Vec<_>>()
    };
    other.iter().flat_map(styles).collect()
}

#[cfg(test)]
mod tests {
    use super::super::catalog::tests::emoji;
    use super::*;

    fn drawn(all: &[Emoji], fx: &[&str]) -> Drawn {
        let codes: BTreeSet<_> = all.iter().map(|emoji| emoji.code.clone()).collect();
        let mut drawn: Drawn = Style::EVERYWHERE.iter().map(|style| (*style, codes.clone())).collect();
        drawn.insert(Style::Fxemoji, fx.iter().map(|code| (*code).to_owned()).collect());
        drawn
    }

    fn count(pictures: &[Picture], set: &str) -> usize {
        pictures.iter().filter(|picture| picture.set == set).count()
    }

    #[test]
    fn a_concept_is_in_every_set_of_identity_and_no_drawing_in_two() {
        let all: Vec<_> = (0..10).map(|n| emoji(&format!("a{n}"), "tool")).collect();
        let pictures = identity(&all, &drawn(&all, &["a1", "a2"]));
        let sizes = [
            "identity/train",
            "identity/radii",
            "identity/val",
            "identity/test/id",
            "identity/test/monotone",
        ];
        assert_eq!(sizes.map(|set| count(&pictures, set)), [22, 5, 5, 10, 10]);
        let drawings: BTreeSet<_> = pictures.iter().map(|picture| (&picture.code, picture.style)).collect();
        assert_eq!(drawings.len(), pictures.len());
        // Vendors differ from concept to concept.
        let tests: BTreeSet<_> = pictures
            .iter()
            .filter(|picture| picture.set == "identity/test/id")
            .map(|picture| picture.style)
            .collect();
        assert!(tests.len() > 1, "{tests:?}");
        assert_eq!(identity(&all, &drawn(&all, &["a1", "a2"])), pictures);
    }

    #[test]
    fn a_concept_is_in_one_set_of_category() {
        let mut all: Vec<_> = (0..20).map(|n| emoji(&format!("a{n}"), "tool")).collect();
        all.extend((0..5).map(|n| emoji(&format!("b{n}"), "bird")));
        let pictures = category(&all, &drawn(&all, &[]));
        let concepts = |set: &str, class: &str| {
            let of = |picture: &&Picture| picture.set == format!("category/{set}") && picture.class == class;
            pictures.iter().filter(of).map(|picture| picture.code.clone()).collect::<BTreeSet<_>>()
        };
        let sets = ["train", "radii", "val", "test/id"];
        assert_eq!(sets.map(|set| concepts(set, "tool").len()), [10, 2, 2, 6]);
        assert_eq!(sets.map(|set| concepts(set, "bird").len()), [2, 1, 1, 1]);
        for (one, other) in [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)] {
            assert!(concepts(sets[one], "tool").is_disjoint(&concepts(sets[other], "tool")));
        }
        assert_eq!(concepts("test/high-contrast", "tool"), concepts("test/id", "tool"));
        assert_eq!(count(&pictures, "category/test/id"), 4 * (6 + 1));
    }

    #[test]
    fn pre_training_has_every_style_that_there_is() {
        let all = [emoji("a", "arrow"), emoji("b", "person")];
        let pictures = pretrain(&all, &drawn(&all[..1], &["b"]));
        assert_eq!(pictures.len(), 11);
        assert_eq!(pictures[10].path(), "pretrain/b/b.fxemoji.png");
    }
}
