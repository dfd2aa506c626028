//! The sets as they were written down before anything was trained on them.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use image::RgbImage;
use serde::{Deserialize, Serialize};

use super::splits::Picture;
use super::style::Style;
use crate::digest::hex;

/// What a set is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Frozen {
    pictures: usize,
    /// SHA-256 of the pictures' paths, one on a line, sorted.
    paths: String,
    /// SHA-256 of a line `path SHA-256 of its pixels` of each.
    pixels: String,
}

/// Sets by their folder, of one size of pictures.
pub(crate) type Sets = BTreeMap<String, Frozen>;

/// Digests of all sets.
///
/// # Errors
///
/// A picture is not there.
pub(crate) fn of(pictures: &[Picture], pixels: &BTreeMap<(Style, String), RgbImage>) -> Result<Sets> {
    let digests: BTreeMap<_, _> = pixels.iter().map(|(key, image)| (key, hex(image.as_raw()))).collect();
    let mut lines = BTreeMap::<&str, Vec<(String, &String)>>::new();
    for picture in pictures {
        let digest = digests.get(&(picture.style, picture.code.clone()));
        let digest = digest.with_context(|| format!("{} has not been drawn", picture.path()))?;
        lines.entry(&picture.set).or_default().push((picture.path(), digest));
    }
    let frozen = |(set, mut lines): (&str, Vec<(String, &String)>)| {
        lines.sort();
        let paths: String = lines.iter().map(|(path, _)| format!("{path}\n")).collect();
        let both: String = lines.iter().map(|(path, digest)| format!("{path} {digest}\n")).collect();
        (set.to_owned(), Frozen { pictures: lines.len(), paths: hex(paths), pixels: hex(both) })
    };
    Ok(lines.into_iter().map(frozen).collect())
}

/// The committed ones, by size.
///
/// # Errors
///
/// `frozen.json` is damaged.
pub(crate) fn committed() -> Result<BTreeMap<u32, Sets>> {
    serde_json::from_str(include_str!("../../frozen.json")).context("frozen.json is damaged")
}

/// Checks sets against the committed ones.
///
/// # Errors
///
/// A set has other pictures, or their pixels are others.
pub(crate) fn check(sets: &Sets, committed: &Sets) -> Result<()> {
    let names: Vec<_> = sets.keys().collect();
    ensure!(
        names == committed.keys().collect::<Vec<_>>(),
        "the sets are {names:?}, but frozen.json has {:?}",
        committed.keys().collect::<Vec<_>>()
    );
    for (name, set) in sets {
        let frozen = &committed[name];
        ensure!(
            set.paths == frozen.paths,
            "{name} is not the set that frozen.json has: {} pictures, expected {} or others of the same number",
            set.pictures,
            frozen.pictures
        );
        ensure!(
            set.pixels == frozen.pixels,
            "{name} has the pictures of frozen.json, but not their pixels: another version of resvg, or another kind of \
             processor, draws them differently; --other-pixels takes them, for results that are not to be compared"
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture(set: &str, code: &str) -> Picture {
        Picture { set: set.to_owned(), class: "c".to_owned(), code: code.to_owned(), style: Style::Noto }
    }

    #[test]
    fn a_changed_picture_and_a_changed_pixel_are_found() {
        let pictures = [picture("a", "1"), picture("a", "2"), picture("b", "1")];
        let pixels: BTreeMap<_, _> =
            ["1", "2"].map(|code| ((Style::Noto, code.to_owned()), RgbImage::new(2, 2))).into();
        let sets = of(&pictures, &pixels).unwrap();
        assert_eq!(sets["a"].paths, hex("a/c/1.noto.png\na/c/2.noto.png\n"));
        check(&sets, &sets).unwrap();
        let mut reordered = pictures.clone();
        reordered.reverse();
        assert_eq!(of(&reordered, &pixels).unwrap(), sets);
        let error = |pictures: &[Picture], pixels: &BTreeMap<_, _>| {
            check(&of(pictures, pixels).unwrap(), &sets).unwrap_err().to_string()
        };
        assert!(
            error(&pictures[1..], &pixels)
                .starts_with("a is not the set that frozen.json has: 1 pictures, expected 2")
        );
        assert!(error(&pictures[..2], &pixels).starts_with("the sets are [\"a\"]"));
        let mut others = pixels.clone();
        others.get_mut(&(Style::Noto, "2".to_owned())).unwrap().put_pixel(0, 1, image::Rgb([1, 0, 0]));
        assert!(
            error(&pictures, &others).starts_with("a has the pictures of frozen.json, but not their pixels")
        );
        let missing = of(&[picture("a", "3")], &pixels).unwrap_err().to_string();
        assert_eq!(missing, "a/c/3.noto.png has not been drawn");
    }

    #[test]
    fn the_committed_sets_are_those_of_two_sizes() {
        let committed = committed().unwrap();
        assert_eq!(committed.keys().collect::<Vec<_>>(), [&64, &96]);
        let paths =
            |side: u32| committed[&side].iter().map(|(set, frozen)| (set, &frozen.paths)).collect::<Vec<_>>();
        let size = |side: u32, set: &str| committed[&side].get(set).map(|frozen| frozen.pictures);
        // Sizes differ in pixels alone.
        assert_eq!(paths(64), paths(96));
        assert_eq!(size(64, "identity/test/id"), Some(501));
        assert_eq!(size(64, "identity/radii").unwrap() + size(64, "identity/val").unwrap(), 501);
    }
}
