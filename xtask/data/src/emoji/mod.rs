//! Emoji as many design teams have drawn them: ordinary folders of images, for two tasks and for pre-training.

mod catalog;
mod frozen;
mod icons;
mod near;
mod render;
mod sheet;
mod splits;
mod style;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use image::RgbImage;
use indicatif::{ProgressBar, ProgressStyle};
use rayon::prelude::*;

use self::catalog::Roles;
use self::icons::{Icons, Names};
use self::render::Drawing;
use self::splits::Picture;
use self::style::Style;
use crate::packages::{Package, Store};
use crate::{archive, finish, write};

/// Options of `emoji`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where to write; folders of sets in it are replaced
    #[arg(long, default_value = "target/data/emoji", value_name = "FOLDER")]
    out: PathBuf,
    /// Width and height of the pictures in pixels: 64 or 96, for which the sets are frozen
    #[arg(long, default_value_t = 64, value_parser = side)]
    size: u32,
    /// Take pixels that are not the frozen ones
    #[arg(long)]
    other_pixels: bool,
    /// Write the digests of the sets into this file instead of comparing them with those that are frozen
    #[arg(long, value_name = "FILE", hide = true)]
    freeze: Option<PathBuf>,
    #[command(flatten)]
    store: Store,
}

/// A size for which the sets are frozen.
fn side(text: &str) -> Result<u32> {
    match text {
        "64" => Ok(64),
        "96" => Ok(96),
        other => bail!("pictures of {other} pixels: there are sets of 64 and 96"),
    }
}

/// What the folders of sets begin with.
const FOLDERS: [&str; 3] = ["identity", "category", "pretrain"];

/// Icons of [`Style::Fxemoji`] that show other things than their names say elsewhere, found by looking at all of them: a face
/// with sunglasses, a window of a computer, the keys of a piano.
const OTHER_THINGS: [&str; 3] = ["sunglasses", "window", "keyboard"];

/// Drawings by style and code.
type Drawings = BTreeMap<(Style, String), Drawing>;

/// Pixels by style and code.
type Pixels = BTreeMap<(Style, String), RgbImage>;

/// Fetches, draws, divides, checks, writes.
///
/// # Errors
///
/// A package cannot be had, a drawing is damaged, the sets are not the frozen ones, or a file cannot be written.
pub(crate) fn run(args: &Args) -> Result<()> {
    let begun = Instant::now();
    let (packages, files) = fetch(&args.store)?;
    let (emoji, drawings) = read(&files)?;
    let drawn = drawn(&drawings);
    let roles = catalog::roles(&emoji, &drawn);
    let pixels = draw(&roles, &drawings, args.size)?;
    // What is alike does not depend on the size of the pictures.
    let small = if args.size == near::SIDE { None } else { Some(draw(&roles, &drawings, near::SIDE)?) };
    let (other, near) = near::without_near(&roles.other, &roles.category, small.as_ref().unwrap_or(&pixels));
    println!(
        "{} emoji for categories, {} of them concepts, {} others for pre-training ({} left out: they look like one of the former)",
        roles.category.len(),
        roles.concepts.len(),
        other.len(),
        near.len()
    );
    let mut pictures = splits::identity(&roles.concepts, &drawn);
    pictures.extend(splits::category(&roles.category, &drawn));
    pictures.extend(splits::pretrain(&other, &drawn));
    let sets = frozen::of(&pictures, &pixels)?;
    if let Some(file) = &args.freeze {
        let mut all = frozen::committed()?;
        all.insert(args.size, sets);
        write::file(file, serde_json::to_string_pretty(&all)? + "\n")?;
    } else {
        let committed = frozen::committed()?.remove(&args.size).context("frozen.json lacks this size")?;
        match frozen::check(&sets, &committed) {
            Err(error) if !(args.other_pixels && error.to_string().contains("not their pixels")) => {
                bail!(error)
            }
            Err(error) => println!("{error}"),
            Ok(()) => println!("all {} sets are the frozen ones", sets.len()),
        }
    }
    save(args, &pictures, &pixels)?;
    let sheet = sheet::sheet(&roles.concepts, &pixels, args.size);
    write::file(&args.out.join("sheet.png"), render::png(&sheet)?)?;
    finish(&args.out, &packages)?;
    println!(
        "{} pictures of {} pixels in {} ({:.0} s)",
        pictures.len(),
        args.size,
        args.out.display(),
        begun.elapsed().as_secs_f64()
    );
    Ok(())
}

/// Bytes of packages by their ids.
type Files = BTreeMap<String, Vec<u8>>;

/// The packages of all styles, and the bytes of each.
fn fetch(store: &Store) -> Result<(Vec<Package>, Files)> {
    let ids: BTreeSet<_> = Style::ALL.iter().map(|style| style.package()).collect();
    let packages = ids.into_iter().map(Package::of).collect::<Result<Vec<_>>>()?;
    let bar = bar("packages", packages.len());
    let mut files = Files::new();
    for package in &packages {
        bar.set_message(package.id.clone());
        files.insert(package.id.clone(), store.get(package)?);
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok((packages, files))
}

/// All emoji, and all drawings of them.
fn read(files: &Files) -> Result<(Vec<catalog::Emoji>, Drawings)> {
    let file = |id: &str| files.get(id).with_context(|| format!("package `{id}` was not fetched"));
    let in_package = |id: &str| format!("package `{id}`");
    let emoji = catalog::read(&archive::file_of_tape(file("openmoji")?, "data/openmoji.json")?)?;
    let mut drawings = Drawings::new();
    let mut sets = Vec::new();
    for style in Style::ALL {
        let id = style.package();
        let code = |name: &str, ending: &str| {
            let stem = name.rsplit('/').next()?.strip_suffix(ending)?;
            Some(catalog::normal(stem))
        };
        match style {
            Style::OpenmojiColor | Style::OpenmojiBlack => {
                let folder = if style == Style::OpenmojiColor { "color/svg/" } else { "black/svg/" };
                let found =
                    archive::tape(file(id)?, |name| name.starts_with(folder) && name.ends_with(".svg"));
                for (name, content) in found.with_context(|| in_package(id))? {
                    let text = String::from_utf8(content).with_context(|| name.clone())?;
                    drawings.extend(code(&name, ".svg").map(|code| ((style, code), Drawing::Svg(text))));
                }
            }
            Style::Fluent3d => {
                let found =
                    archive::tape(file(id)?, |name| name.starts_with("assets/") && name.ends_with(".webp"));
                for (name, content) in found.with_context(|| in_package(id))? {
                    drawings.extend(code(&name, ".webp").map(|code| ((style, code), Drawing::Webp(content))));
                }
            }
            _ => {
                let mut icons = Icons::read(file(id)?).with_context(|| in_package(id))?;
                if style == Style::Fxemoji {
                    icons.leave_out(&OTHER_THINGS);
                }
                sets.push((style, icons));
            }
        }
    }
    // What some sets call an emoji, others are asked by; and Unicode's own names.
    let mut names = Names::default();
    for (_, icons) in &sets {
        icons.chars().iter().for_each(|(code, name)| names.add(name, code));
    }
    emoji.iter().for_each(|emoji| names.add(&emoji.name, &emoji.code));
    for (style, icons) in sets {
        let documents = icons.documents(&names).into_iter();
        drawings.extend(documents.map(|(code, text)| ((style, code), Drawing::Svg(text))));
    }
    Ok((emoji, drawings))
}

/// The codes of each style.
fn drawn(drawings: &Drawings) -> splits::Drawn {
    let mut drawn = splits::Drawn::new();
    for (style, code) in drawings.keys() {
        drawn.entry(*style).or_default().insert(code.clone());
    }
    drawn
}

/// Pixels of what the roles need.
fn draw(roles: &Roles, drawings: &Drawings, side: u32) -> Result<Pixels> {
    let codes: BTreeSet<_> =
        roles.category.iter().chain(&roles.other).map(|emoji| emoji.code.as_str()).collect();
    let needed: Vec<_> = drawings.iter().filter(|((_, code), _)| codes.contains(code.as_str())).collect();
    ensure!(!needed.is_empty(), "the packages have no drawing of an emoji");
    let bar = bar("drawings", needed.len());
    let pixels = needed
        .into_par_iter()
        .map(|((style, code), drawing)| {
            let pixels = drawing.render(side).with_context(|| format!("{} of {}", code, style.name()))?;
            bar.inc(1);
            Ok(((*style, code.clone()), pixels))
        })
        .collect::<Result<Pixels>>()?;
    bar.finish_and_clear();
    Ok(pixels)
}

/// Writes all sets in place of those that are there.
fn save(args: &Args, pictures: &[Picture], pixels: &Pixels) -> Result<()> {
    for folder in FOLDERS.map(|name| args.out.join(name)) {
        if folder.exists() {
            fs::remove_dir_all(&folder).with_context(|| format!("cannot delete {}", folder.display()))?;
        }
    }
    let bar = bar("pictures", pictures.len());
    pictures.par_iter().try_for_each(|picture| {
        let image = pixels.get(&(picture.style, picture.code.clone()));
        let image = image.with_context(|| format!("{} has not been drawn", picture.path()))?;
        bar.inc(1);
        write::file(&args.out.join(picture.path()), render::png(image)?)
    })?;
    bar.finish_and_clear();
    Ok(())
}

fn bar(title: &'static str, steps: usize) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix:>10} {wide_bar} {pos}/{len} {msg:<20} {eta:>4}");
    let bar = ProgressBar::new(steps as u64).with_prefix(title);
    // A template of ours; without it the bar is merely plainer.
    style.map_or(bar.clone(), |style| bar.with_style(style))
}

#[cfg(test)]
mod tests;
