//! As much Markdown as our pages have: links, headings, blocks of code.

/// A link of a page.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Link<'a> {
    /// Counted from 1.
    pub(super) line: usize,
    pub(super) target: &'a str,
}

/// The lines outside blocks of code, with their numbers from 0.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    text.lines().enumerate().filter(move |(_, line)| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    })
}

/// Whether there is a block of Rust that a test can compile.
pub(super) fn has_rust(text: &str) -> bool {
    text.lines().filter_map(|line| line.strip_prefix("```rust")).any(|options| !options.contains("ignore"))
}

/// Links and images in the text, none of those in code.
pub(super) fn links(text: &str) -> Vec<Link<'_>> {
    let mut links = Vec::new();
    for (number, line) in prose(text) {
        let mut code = false;
        let mut opened = 0;
        for (at, c) in line.char_indices() {
            match c {
                '`' => code = !code,
                // The text of a link may be code: what counts is that its target is not.
                '(' if !code && line[..at].ends_with(']') => opened = at + 1,
                ')' if opened > 0 => {
                    links.push(Link { line: number + 1, target: &line[opened..at] });
                    opened = 0;
                }
                _ => {}
            }
        }
    }
    links
}

/// The text of the first heading.
pub(super) fn title(text: &str) -> Option<&str> {
    prose(text).find_map(|(_, line)| line.strip_prefix("# "))
}

/// What a link may name after `#`: the headings, as GitHub and mdBook call them.
pub(super) fn anchors(text: &str) -> Vec<String> {
    let mut anchors: Vec<String> = Vec::new();
    for (_, line) in prose(text) {
        let heading = line.trim_start_matches('#');
        if let (true, Some(heading)) = (line.starts_with('#'), heading.strip_prefix(' ')) {
            let name = slug(heading);
            let same = anchors.iter().filter(|anchor| **anchor == name).count();
            anchors.push(if same == 0 { name } else { format!("{name}-{same}") });
        }
    }
    anchors
}

/// Lowercase; spaces become hyphens, other marks go.
fn slug(heading: &str) -> String {
    let kept = heading.trim().chars().filter_map(|c| match c {
        ' ' => Some('-'),
        c if c.is_alphanumeric() || c == '-' || c == '_' => Some(c),
        _ => None,
    });
    kept.flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_those_of_the_text() {
        let text = "[a](b.md), ![c](d.svg) and `[e](f)`; [`g`](h#i)\n```sh\n[j](k)\n```\nl (m) [n](o)\n";
        let links: Vec<_> = links(text).into_iter().map(|link| (link.line, link.target)).collect();
        assert_eq!(links, [(1, "b.md"), (1, "d.svg"), (1, "h#i"), (5, "o")]);
    }

    #[test]
    fn headings_are_anchors() {
        let text = "# A `b_c`: D, e-f\n## Same\n```\n# no\n```\n### Same\n#hash\n";
        assert_eq!(anchors(text), ["a-b_c-d-e-f", "same", "same-1"]);
        assert_eq!(title(text), Some("A `b_c`: D, e-f"));
    }

    #[test]
    fn code_that_no_test_compiles_is_not_counted() {
        assert!(has_rust("a\n```rust,no_run\nx\n```\n"));
        assert!(!has_rust("```rust,ignore\nx\n```\n```sh\n```\n"));
    }
}
