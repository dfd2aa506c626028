//! `report.html`: what a run was and what came out, as one file that needs no network.

use std::path::Path;

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;

use crate::files;
use crate::table::Table;

/// What stands in the file's head: everything that a browser needs.
const STYLE: &str = "\
body{font:16px/1.5 sans-serif;color:#222;max-width:70rem;margin:2rem auto;padding:0 1rem}\
nav a{margin-right:1rem}h2{margin-top:2.5rem;border-bottom:1px solid #ccc}\
.wide{overflow-x:auto}table{border-collapse:collapse;font-size:14px}\
td,th{padding:.25rem .75rem;border-bottom:1px solid #ddd;text-align:right;white-space:nowrap}\
td:first-child,th:first-child{text-align:left}svg{max-width:100%;height:auto}p{max-width:45rem}";

/// A page under construction: sections with a title each, and links to them at the top.
#[derive(Debug, Clone)]
pub struct Page {
    title: String,
    /// Identifier, title and content of each.
    sections: Vec<(String, String, String)>,
}

impl Page {
    /// A page without sections.
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), sections: Vec::new() }
    }

    /// Adds a section with a table.
    pub fn table(&mut self, title: &str, note: &str, table: &Table) {
        let line = |cells: &[String], tag: &str| {
            let cells: String =
                cells.iter().map(|cell| format!("<{tag}>{}</{tag}>", escaped(cell))).collect();
            format!("<tr>{cells}</tr>\n")
        };
        let rows: String = table.rows.iter().map(|row| line(row, "td")).collect();
        let head = line(&table.header, "th");
        let table = format!("<table>\n<thead>\n{head}</thead>\n<tbody>\n{rows}</tbody>\n</table>\n");
        self.add(title, note, &format!("<div class=\"wide\">\n{table}</div>\n"));
    }

    /// Adds a section with a plot.
    pub fn plot(&mut self, title: &str, note: &str, svg: &str) {
        // In a page the name of the format is known.
        let svg = svg.replace(" xmlns=\"http://www.w3.org/2000/svg\"", "");
        self.add(title, note, &svg);
    }

    /// Adds a section with the entries of options, those within others by their path.
    ///
    /// # Errors
    ///
    /// A value that is not JSON.
    pub fn settings(&mut self, title: &str, settings: &impl Serialize) -> Result<()> {
        let mut table = Table::new(["setting", "value"]);
        flatten("", &serde_json::to_value(settings)?, &mut table.rows);
        self.table(title, "", &table);
        Ok(())
    }

    fn add(&mut self, title: &str, note: &str, content: &str) {
        let id = identifier(title);
        // Two sections of the same title are told apart.
        let count = self.sections.iter().filter(|(_, other, _)| identifier(other) == id).count();
        let id = if count == 0 { id } else { format!("{id}-{}", count + 1) };
        let note = if note.is_empty() { String::new() } else { format!("<p>{}</p>\n", escaped(note)) };
        self.sections.push((id, title.to_owned(), note + content));
    }

    /// The file's text.
    pub fn html(&self) -> String {
        let title = escaped(&self.title);
        let link =
            |(id, title, _): &(String, String, String)| format!("<a href=\"#{id}\">{}</a>\n", escaped(title));
        let section = |(id, title, content): &(String, String, String)| {
            format!("<section id=\"{id}\">\n<h2>{}</h2>\n{content}</section>\n", escaped(title))
        };
        let links: String = self.sections.iter().map(link).collect();
        let sections: String = self.sections.iter().map(section).collect();
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\"/>\n\
             <meta name=\"viewport\" content=\"width=device-width\"/>\n<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n\
             <body>\n<h1>{title}</h1>\n<nav>\n{links}</nav>\n{sections}</body>\n</html>\n"
        )
    }

    /// Writes `report.html` into a folder.
    ///
    /// # Errors
    ///
    /// The file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        files::write(&folder.join("report.html"), self.html())
    }
}

/// Adds a row for each value that is not made of others.
fn flatten(name: &str, value: &Value, rows: &mut Vec<Vec<String>>) {
    let path = |key: &str| if name.is_empty() { key.to_owned() } else { format!("{name}.{key}") };
    match value {
        Value::Object(entries) if !entries.is_empty() => {
            entries.iter().for_each(|(key, value)| flatten(&path(key), value, rows));
        }
        Value::Array(items) if items.iter().any(|item| item.is_object() || item.is_array()) => {
            items.iter().enumerate().for_each(|(i, value)| flatten(&path(&i.to_string()), value, rows));
        }
        Value::Array(items) => {
            rows.push(vec![name.to_owned(), items.iter().map(plain).collect::<Vec<_>>().join(", ")])
        }
        value => rows.push(vec![name.to_owned(), plain(value)]),
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "none".to_owned(),
        other => other.to_string(),
    }
}

/// Letters and digits in small, joined by dashes.
fn identifier(title: &str) -> String {
    let words = title.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.map(str::to_ascii_lowercase).collect::<Vec<_>>().join("-")
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// What is wrong with the structure of a page: tags that are not closed in their order, links to sections that are not there, an
/// identifier that is there twice, or anything that a browser would have to fetch. For tests of examples that write pages.
pub fn complaints(html: &str) -> Vec<String> {
    /// Tags that have no end.
    const EMPTY: [&str; 2] = ["meta", "!doctype"];
    let (mut open, mut found) = (Vec::new(), Vec::new());
    let (mut ids, mut links) = (Vec::new(), Vec::new());
    for piece in html.split('<').skip(1) {
        let Some((tag, text)) = piece.split_once('>') else {
            found.push(format!("a tag that does not end: {piece}"));
            continue;
        };
        // What is between tags is text, in which there is no tag.
        if text.contains('>') {
            found.push(format!("a bare `>` in {text}"));
        }
        let name: String = tag.chars().take_while(|c| !c.is_whitespace()).collect::<String>();
        let name = name.trim_end_matches('/').to_ascii_lowercase();
        if let Some(closed) = name.strip_prefix('/') {
            match open.pop() {
                Some(last) if last == closed => {}
                last => found.push(format!("`{closed}` ends where {last:?} is open")),
            }
        } else if !tag.ends_with('/') && !EMPTY.contains(&name.as_str()) {
            open.push(name);
        }
        let attribute = |name: &str| {
            let (_, rest) = tag.split_once(&format!(" {name}=\""))?;
            rest.split_once('"').map(|(value, _)| value.to_owned())
        };
        ids.extend(attribute("id"));
        links.extend(attribute("href"));
        found.extend(attribute("src").map(|source| format!("it fetches {source}")));
    }
    found.extend(open.into_iter().map(|name| format!("`{name}` does not end")));
    for word in ["http:", "https:", "url(", "@import", "<script", "<link"] {
        if html.contains(word) {
            found.push(format!("it has {word}"));
        }
    }
    for link in links {
        if link.strip_prefix('#').is_none_or(|id| !ids.iter().any(|other| other == id)) {
            found.push(format!("a link leads nowhere: {link}"));
        }
    }
    ids.sort();
    found.extend(
        ids.windows(2).filter(|pair| pair[0] == pair[1]).map(|pair| format!("`{}` is there twice", pair[0])),
    );
    found
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::plot::{Curve, Labels, Style, curves};

    fn page() -> Page {
        let mut page = Page::new("a < b");
        let mut table = Table::new(["method", "ID"]);
        table.rows.push(vec!["<FTP> & \"co\"".to_owned(), "1.5".to_owned()]);
        page.table("Accuracy, %", "the first", &table);
        page.table("Accuracy (%)", "", &table);
        let curve =
            Curve { name: "x > y".to_owned(), lines: vec![vec![(0.0, 1.0), (1.0, 2.0)]], chosen: None };
        let labels = Labels { title: "t", x: "step", y: "radius" };
        page.plot("Radii", "", &curves(labels, Style::Lines, &[curve]).unwrap());
        page.settings("Settings", &json!({"a": {"b": [1, 2], "c": null}, "d": [{"e": "x"}]})).unwrap();
        page
    }

    #[test]
    fn a_page_is_one_well_formed_file() {
        let html = page().html();
        assert_eq!(complaints(&html), Vec::<String>::new(), "{html}");
        for part in [
            "<title>a &lt; b</title>",
            "<section id=\"accuracy\">",
            "<section id=\"accuracy-2\">",
            "<a href=\"#radii\">Radii</a>",
            "<td>&lt;FTP&gt; &amp; &quot;co&quot;</td><td>1.5</td>",
            "<td>a.b</td><td>1, 2</td>",
            "<td>a.c</td><td>none</td>",
            "<td>d.0.e</td><td>x</td>",
            "<svg",
        ] {
            assert!(html.contains(part), "{part}: {html}");
        }
    }

    #[test]
    fn what_is_wrong_with_a_page_is_found() {
        let html = page().html();
        for (from, to, part) in [
            ("</table>", "", "ends where"),
            ("</html>", "", "does not end"),
            ("href=\"#radii\"", "href=\"#none\"", "leads nowhere"),
            ("id=\"accuracy-2\"", "id=\"accuracy\"", "twice"),
            ("href=\"#radii\"", "href=\"https://example.org\"", "it has https:"),
            ("<svg", "<img src=\"plot.png\"/><svg", "it fetches plot.png"),
            ("&lt;FTP&gt;", "FTP>", "a bare"),
        ] {
            assert!(html.contains(from), "{from}");
            let found = complaints(&html.replacen(from, to, 1));
            assert!(found.iter().any(|complaint| complaint.contains(part)), "{part}: {found:?}");
        }
    }
}
