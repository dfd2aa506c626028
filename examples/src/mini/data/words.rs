//! Classes in words: the texts of pairs of images and texts.
//!
//! A text is a list of token ids between [`START`] and [`END`]: how it is drawn (a [`Domain`]), whether the outline is smooth or
//! pointed, its hole, and how far it reaches in some directions. So a text tower can know a class that it has never read about.

use std::f32::consts::TAU;

use super::domain::Domain;
use super::shape::Class;

/// Directions of a whole description, evenly spread; a name has every second one.
const DIRECTIONS: usize = 12;
/// Words for how far an outline reaches.
const LEVELS: u32 = 8;
/// The first word of each kind. Domains come first.
const OUTLINE: u32 = Domain::ALL.len() as u32;
const HOLE: u32 = OUTLINE + 2;
const REACH: u32 = HOLE + 3;

/// Number of words: their ids are below.
pub const WORDS: u32 = REACH + LEVELS;
/// The token that begins a text.
pub const START: u32 = WORDS;
/// The token that ends a text.
pub const END: u32 = WORDS + 1;
/// Number of tokens.
pub const VOCABULARY: usize = WORDS as usize + 2;
/// Tokens of the longest text.
pub const LONGEST: usize = 5 + DIRECTIONS;

/// How much a text says of a class.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// Half of the directions: what a class is called.
    Name,
    /// All of them.
    Description,
}

/// What can be said of a class. It is true in every domain: colors and textures are not in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Words(Vec<u32>);

impl Words {
    pub(super) fn new(class: &Class) -> Self {
        let mut words = vec![OUTLINE + u32::from(class.pointed), HOLE + class.hole_kind()];
        // Those of the name come first.
        for direction in (0..DIRECTIONS).step_by(2).chain((1..DIRECTIONS).step_by(2)) {
            let reach = class.outline(direction as f32 / DIRECTIONS as f32 * TAU);
            words.push(REACH + ((reach * LEVELS as f32) as u32).min(LEVELS - 1));
        }
        Self(words)
    }

    /// The token ids of a text about an image of this class in a domain. Texts of the same detail have the same length.
    pub fn text(&self, domain: Domain, detail: Detail) -> Vec<u32> {
        let words = match detail {
            Detail::Name => &self.0[..2 + DIRECTIONS / 2],
            Detail::Description => &self.0[..],
        };
        [&[START, domain as u32], words, &[END]].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mini::data::Request;

    #[test]
    fn texts_tell_classes_apart_and_a_name_begins_its_description() {
        let classes = Request::fine_tuning(0, 40).words();
        for (number, class) in classes.iter().enumerate() {
            let name = class.text(Domain::Sketch, Detail::Name);
            let description = class.text(Domain::Sketch, Detail::Description);
            assert_eq!((name[0], name[1], *name.last().unwrap()), (START, Domain::Sketch as u32, END));
            assert_eq!(name[..name.len() - 1], description[..name.len() - 1]);
            assert_eq!((name.len(), description.len()), (11, LONGEST));
            assert!(description[1..LONGEST - 1].iter().all(|id| *id < WORDS));
            let same = |other: &Words| other.text(Domain::Sketch, Detail::Name) == name;
            assert!(!classes[..number].iter().any(same), "class {number}");
        }
    }

    #[test]
    fn the_words_are_those_of_the_outline() {
        let class = Class::new(0, 3);
        let text = Words::new(&class).text(Domain::Real, Detail::Description);
        // The fourth direction of a name is the opposite of its first.
        let opposite = class.outline(std::f32::consts::PI);
        assert_eq!(text[4 + 3] - REACH, ((opposite * 8.0) as u32).min(7));
        // Some direction reaches farthest.
        assert!(text[4..LONGEST - 1].iter().max().unwrap() - REACH >= 6, "{text:?}");
    }
}
