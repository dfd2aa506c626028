//! `cargo xtask guide`: do the links of all pages lead somewhere, is every page of `docs` in its table of contents, and is its
//! code compiled by the tests? Then mdBook makes a book of them, where it is installed.

mod book;
mod markdown;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};
use std::{fs, io};

use anyhow::{Context, Result, ensure};

use self::markdown::{anchors, has_rust, links};

/// Options of `guide`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Fail where mdBook is missing, instead of saying so
    #[arg(long)]
    book: bool,
}

/// The table of contents, as mdBook reads it.
const SUMMARY: &str = "docs/SUMMARY.md";
/// Where pages with code are handed to the compiler.
const COMPILED: &str = "examples/src/lib.rs";
/// Folders without pages of ours.
const PASSED_OVER: [&str; 2] = ["target", "runs"];

/// All pages by their path from the root of the repository, with `/` on every system.
type Pages = BTreeMap<String, String>;

/// Checks the pages and builds the book.
///
/// # Errors
///
/// A list of what is wrong with the pages, each with file and line; mdBook fails, or is missing and was asked for.
pub(crate) fn run(args: &Args) -> Result<()> {
    let root = crate::root()?;
    let pages = read_pages(root)?;
    let problems = problems(root, &pages)?;
    problems.iter().for_each(|problem| println!("{problem}"));
    ensure!(problems.is_empty(), "{} problems in {} pages", problems.len(), pages.len());
    println!("{} pages: links, anchors, table of contents and code are in order", pages.len());
    book::build(root, &pages, args.book)
}

fn read_pages(root: &Path) -> Result<Pages> {
    let mut pages = Pages::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
        for path in entries.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()? {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if path.is_dir() {
                if !name.starts_with('.') && !PASSED_OVER.contains(&&*name) {
                    folders.push(path);
                }
            } else if path.extension() == Some(OsStr::new("md")) {
                let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
                pages.insert(slashed(path.strip_prefix(root)?), text);
            }
        }
    }
    Ok(pages)
}

fn slashed(path: &Path) -> String {
    path.components().map(|part| part.as_os_str().to_string_lossy()).collect::<Vec<_>>().join("/")
}

/// Where a link of a page leads: a path from the root and an anchor. `None` for what is not a file of ours, and an error
/// for a path that leaves the repository.
fn target<'a>(page: &str, link: &'a str) -> Option<Result<(String, Option<&'a str>)>> {
    if link.contains("://") || link.starts_with("mailto:") {
        return None;
    }
    let (path, anchor) = link.split_once('#').map_or((link, None), |(path, anchor)| (path, Some(anchor)));
    if path.is_empty() {
        return Some(Ok((page.to_owned(), anchor)));
    }
    let mut whole = PathBuf::new();
    for part in Path::new(page).parent().unwrap_or(Path::new("")).join(path).components() {
        match part {
            Component::Normal(part) => whole.push(part),
            Component::CurDir => {}
            _ if whole.pop() => {}
            _ => return Some(Err(anyhow::anyhow!("leaves the repository"))),
        }
    }
    Some(Ok((slashed(&whole), anchor)))
}

/// What is wrong, a line for each.
fn problems(root: &Path, pages: &Pages) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    for (page, text) in pages {
        for link in links(text) {
            if let Some(problem) = wrong_with(root, pages, page, link.target) {
                problems.push(format!("{page}:{}: `{}` {problem}", link.line, link.target));
            }
        }
    }
    let summary = pages.get(SUMMARY).with_context(|| format!("{SUMMARY} is missing"))?;
    let mut listed = BTreeSet::new();
    for link in links(summary) {
        if let Some(Ok((page, _))) = target(SUMMARY, link.target)
            && !listed.insert(page.clone())
        {
            problems.push(format!("{SUMMARY}:{}: {page} is there twice", link.line));
        }
    }
    let compiled = fs::read_to_string(root.join(COMPILED)).context(COMPILED)?;
    for (page, text) in pages.iter().filter(|(page, _)| page.starts_with("docs/") && *page != SUMMARY) {
        if !listed.contains(page) {
            problems.push(format!("{page}: not in {SUMMARY}"));
        }
        if has_rust(text) && !compiled.contains(&format!("include_str!(\"../../{page}\")")) {
            problems.push(format!("{page}: its code is not compiled: name the page in {COMPILED}"));
        }
    }
    Ok(problems)
}

fn wrong_with(root: &Path, pages: &Pages, page: &str, link: &str) -> Option<String> {
    let (path, anchor) = match target(page, link)? {
        Ok(target) => target,
        Err(error) => return Some(error.to_string()),
    };
    let file = root.join(&path);
    if !file.exists() {
        return Some("is not there".to_owned());
    }
    // GitHub shows the README of a folder; a book has no page for it.
    if file.is_dir() && page.starts_with("docs/") {
        return Some("is a folder: name a file in it".to_owned());
    }
    let anchor = anchor?;
    match pages.get(&path) {
        Some(text) if anchors(text).iter().any(|known| known == anchor) => None,
        Some(_) => Some(format!("has an anchor that {path} lacks")),
        None => Some("has an anchor, and is no page".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pages_of_this_repository_are_in_order() -> Result<()> {
        let root = crate::root()?;
        let problems = problems(root, &read_pages(root)?)?;
        assert!(problems.is_empty(), "{}", problems.join("\n"));
        Ok(())
    }

    #[test]
    fn what_is_wrong_is_named_with_file_and_line() -> Result<()> {
        let root = tempfile::tempdir()?;
        fs::create_dir_all(root.path().join("docs/notes"))?;
        fs::create_dir_all(root.path().join("examples/src"))?;
        fs::write(root.path().join(COMPILED), "#[doc = include_str!(\"../../docs/b.md\")]")?;
        let write = |page: &str, text: &str| fs::write(root.path().join(page), text);
        write(SUMMARY, "# Summary\n\n- [A](a.md)\n- [B](b.md)\n- [Again](a.md)\n")?;
        write("README.md", "[a folder](docs/notes), [out](../x), [there](docs/a.md#what-it-is)\n")?;
        write("docs/a.md", "# A\n\n## What it is\n\n[a](b.md#no) [b](c.md)\n[c](notes)\n\n```rust\n```\n")?;
        write("docs/b.md", "# B\n\n`[no](link)` [web](https://b.c/d.md) [here](#b)\n\n```rust\n```\n")?;
        write("docs/notes/d.md", "# D\n")?;
        assert_eq!(
            problems(root.path(), &read_pages(root.path())?)?,
            [
                "README.md:1: `../x` leaves the repository",
                "docs/a.md:5: `b.md#no` has an anchor that docs/b.md lacks",
                "docs/a.md:5: `c.md` is not there",
                "docs/a.md:6: `notes` is a folder: name a file in it",
                "docs/SUMMARY.md:5: docs/a.md is there twice",
                "docs/a.md: its code is not compiled: name the page in examples/src/lib.rs",
                "docs/notes/d.md: not in docs/SUMMARY.md",
            ]
        );
        Ok(())
    }
}
