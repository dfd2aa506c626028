//! The book: what mdBook makes of the pages.
//!
//! Pages of `docs` lead to others of the repository, to pictures and to sources, and mdBook takes what is in one folder. So it
//! gets a copy of all that can be reached from the table of contents, laid out as here, where each link leads to what it names.
//! The README is its first page, which mdBook takes for the one at the top of the book.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::Path;
use std::process::Command;
use std::{fmt::Write as _, fs};

use anyhow::{Context, Result, bail, ensure};

use super::markdown::{links, title};
use super::{Pages, SUMMARY, target};

/// Below the root.
const FOLDER: &str = "target/guide";
/// The front page.
const FRONT: &str = "README.md";

/// Builds the book in `target/guide/book`.
///
/// # Errors
///
/// mdBook fails, or is missing and `required`; files cannot be copied.
pub(super) fn build(root: &Path, pages: &Pages, required: bool) -> Result<()> {
    match Command::new("mdbook").arg("--version").output() {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let install = "`cargo install mdbook --no-default-features` installs it";
            ensure!(!required, "mdbook is not installed: {install}");
            println!("skipped: the book, because mdbook is not installed: {install}");
            return Ok(());
        }
        Err(error) => bail!("cannot start mdbook: {error}"),
    }
    let folder = root.join(FOLDER);
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot empty {}", folder.display()))?;
    }
    let (source, out) = (folder.join("src"), folder.join("book"));
    let reached = reached(root, pages);
    for file in &reached {
        let copy = source.join(file);
        fs::create_dir_all(copy.parent().context("a folder")?)?;
        match pages.get(file) {
            Some(text) => fs::write(&copy, with_readmes(root, file, text)),
            None => fs::copy(root.join(file), &copy).map(drop),
        }
        .with_context(|| format!("cannot copy {file}"))?;
    }
    fs::write(source.join("SUMMARY.md"), summary(pages, &reached)?)?;
    fs::copy(root.join("docs/book.toml"), source.join("book.toml")).context("docs/book.toml")?;
    let mut mdbook = Command::new("mdbook");
    mdbook.arg("build").arg(&source).arg("--dest-dir").arg(&out);
    let status = mdbook.status().context("cannot start mdbook")?;
    ensure!(status.success(), "mdbook build: {status}");
    println!("the book: {}", out.join("index.html").display());
    Ok(())
}

/// All files that the front page and the table of contents lead to.
fn reached(root: &Path, pages: &Pages) -> BTreeSet<String> {
    let mut reached = BTreeSet::from([FRONT.to_owned()]);
    let mut open = vec![SUMMARY.to_owned(), FRONT.to_owned()];
    while let Some(page) = open.pop() {
        for link in pages.get(&page).map(|text| links(text)).unwrap_or_default() {
            if let Some(Ok((file, _))) = target(&page, link.target) {
                let file = if root.join(&file).is_dir() { format!("{file}/README.md") } else { file };
                if root.join(&file).is_file() && reached.insert(file.clone()) {
                    open.push(file);
                }
            }
        }
    }
    reached
}

/// The page with links to a folder's README instead of the folder.
fn with_readmes(root: &Path, page: &str, text: &str) -> String {
    let mut text = text.to_owned();
    for link in links(&text.clone()) {
        if let Some(Ok((folder, None))) = target(page, link.target)
            && root.join(&folder).join("README.md").is_file()
        {
            let readme = format!("]({}/README.md)", link.target.trim_end_matches('/'));
            text = text.replace(&format!("]({})", link.target), &readme);
        }
    }
    text
}

/// The table of contents for the copy: the front page, that of the guide, the other pages.
fn summary(pages: &Pages, reached: &BTreeSet<String>) -> Result<String> {
    let own = pages.get(SUMMARY).context("the table of contents")?;
    let mut summary = own.replace("](", "](docs/");
    let first = summary.find("\n- ").context("a table of contents is a list")?;
    let front = pages.get(FRONT).and_then(|text| title(text)).context("the front page has no title")?;
    summary.insert_str(first, &format!("\n[{front}]({FRONT})\n"));
    summary.push_str("\n# Pages of the repository\n\n");
    for page in reached.iter().filter(|page| !page.starts_with("docs/") && *page != FRONT) {
        if let Some(text) = pages.get(page) {
            writeln!(summary, "- [{}]({page})", title(text).unwrap_or(page))?;
        }
    }
    Ok(summary)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_copy_has_what_links_lead_to_and_no_more() -> Result<()> {
        let root = tempfile::tempdir()?;
        let pages: Pages = [
            (FRONT, "# All\n\n[guide](docs/SUMMARY.md)\n"),
            (SUMMARY, "# Summary\n\n- [A](a.md)\n"),
            ("docs/a.md", "# A\n\n[x](../x) ![p](../p.svg) [web](https://a.b/c)\n"),
            ("x/README.md", "# X\n\n[back](../docs/a.md)\n"),
            ("y/README.md", "# Y\n"),
        ]
        .map(|(page, text)| (page.to_owned(), text.to_owned()))
        .into();
        for (page, text) in &pages {
            fs::create_dir_all(root.path().join(page).parent().context("a folder")?)?;
            fs::write(root.path().join(page), text)?;
        }
        fs::write(root.path().join("p.svg"), "")?;
        let reached = reached(root.path(), &pages);
        assert_eq!(
            reached.iter().collect::<Vec<_>>(),
            ["README.md", "docs/SUMMARY.md", "docs/a.md", "p.svg", "x/README.md"]
        );
        assert_eq!(
            summary(&pages, &reached)?,
            "# Summary\n\n[All](README.md)\n\n- [A](docs/a.md)\n\n# Pages of the repository\n\n- [X](x/README.md)\n"
        );
        let a = with_readmes(root.path(), "docs/a.md", &pages["docs/a.md"]);
        assert_eq!(a, "# A\n\n[x](../x/README.md) ![p](../p.svg) [web](https://a.b/c)\n");
        Ok(())
    }
}
