//! Classified texts from CSV and JSONL files.

mod csv;
mod encoder;
mod json;
mod quotes;

pub use self::encoder::{TextBatch, TextEncoder, TextSet};

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};

use self::csv::{Record, Scanner};
use self::quotes::{Pattern, Verdict};
use super::{Problems, utf8};

/// A text with its class, by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The class.
    pub label: String,
    /// The text.
    pub text: String,
    /// Where it was: for messages.
    pub line: u64,
}

/// Names of the fields that are read.
#[derive(Debug, Clone)]
pub struct Fields {
    /// Holds the class.
    pub label: String,
    /// Holds the text.
    pub text: String,
}

/// Reads a file of texts; see [`parse`].
///
/// # Errors
///
/// The file cannot be read, or as [`parse`]; names the file.
pub fn read(path: &Path, fields: &Fields, problems: &Problems) -> Result<Vec<Row>> {
    let bytes = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(path, &bytes, fields, problems)
}

/// Reads the content of a file of texts: JSON, an object per line, if its name ends in `.jsonl`, `.ndjson` or `.json`, else
/// CSV (RFC 4180) with a header line; in UTF-8, or in UTF-16 with a byte order mark. Other fields than the two are ignored.
/// Rows without one of them, with an empty class or text, or that cannot be read are noted in `problems`.
///
/// So is a row of a CSV file with a stray quote, which makes the rows after it part of a field; those are then read.
///
/// # Errors
///
/// A JSON array, a header that lacks a field, or a row that is not to be passed over; names the file.
pub fn parse(path: &Path, bytes: &[u8], fields: &Fields, problems: &Problems) -> Result<Vec<Row>> {
    let bytes = utf8(bytes).with_context(|| path.display().to_string())?;
    let end = path.extension().unwrap_or_default().to_ascii_lowercase();
    let mut rows = Rows { path, fields, problems, rows: Vec::new() };
    if ["jsonl", "ndjson", "json"].iter().any(|json| end == *json) {
        json::check(&bytes).with_context(|| path.display().to_string())?;
        for (number, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            if !line.trim_ascii().is_empty() {
                rows.add(number as u64 + 1, json::row(line, fields))?;
            }
        }
    } else {
        rows.add_csv(&bytes)?;
    }
    Ok(rows.rows)
}

/// Rows of a file.
struct Rows<'a> {
    path: &'a Path,
    fields: &'a Fields,
    problems: &'a Problems,
    rows: Vec<Row>,
}

/// How often the bytes of a file may be read anew because of stray quotes, before they are taken for something else than
/// CSV. One reading after each stray quote is usual; this is far from it.
const ANEW: usize = 16;

impl Rows<'_> {
    /// Adds a class and a text, or notes why they are none.
    fn add(&mut self, line: u64, row: Result<(String, String)>) -> Result<()> {
        let row = row.and_then(|(label, text)| {
            ensure!(!label.trim().is_empty(), "no `{}`", self.fields.label);
            ensure!(!text.trim().is_empty(), "no `{}`", self.fields.text);
            Ok(Row { label: label.trim().to_owned(), text, line })
        });
        match row {
            Ok(row) => self.rows.push(row),
            Err(error) => self.note(line, format!("{error:#}"))?,
        }
        Ok(())
    }

    fn note(&self, line: u64, why: String) -> Result<()> {
        self.problems.note(format!("{}:{line}", self.path.display()), why)
    }

    /// The number of a column.
    fn column(&self, header: &Record, name: &str) -> Result<usize> {
        let path = self.path.display();
        let mut found = (0..header.fields.len()).filter(|column| header.fields[*column] == name.as_bytes());
        let Some(column) = found.next() else {
            let names: Vec<_> = header.fields.iter().map(|field| String::from_utf8_lossy(field)).collect();
            let hint = match names[..] {
                [ref one] if one.contains([';', '\t']) => ": columns are separated by commas",
                _ => "",
            };
            bail!("{path} has no column `{name}`, only {}{hint}", names.join(", "))
        };
        ensure!(found.next().is_none(), "{path} has two columns `{name}`: one of them needs another name");
        Ok(column)
    }

    /// Adds all rows of a CSV file.
    fn add_csv(&mut self, bytes: &[u8]) -> Result<()> {
        let path = self.path.display();
        let mut records = Scanner::new(bytes);
        let header = records.record().with_context(|| format!("{path} is empty: a header line is needed"))?;
        if let Some(long) = header.long.first() {
            bail!("{path}:{}: a quote of the header does not close on its line", long.line);
        }
        let (label, text) =
            (self.column(&header, &self.fields.label)?, self.column(&header, &self.fields.text)?);
        let columns = header.fields.len();
        let pattern = Pattern::new(records.clone(), columns, label);
        let mut anew = 0;
        while let Some(record) = records.record() {
            match pattern.judge(bytes, &record) {
                Verdict::Row => self.add(record.line, csv_row(record, columns, [label, text]))?,
                Verdict::Lost { why } => self.note(record.line, why)?,
                Verdict::Rows { line, why, from } => {
                    self.note(line, why)?;
                    anew += records.go_back(from);
                    ensure!(
                        anew / ANEW <= bytes.len(),
                        "{path}: its quotes make no sense, up to line {line}"
                    );
                }
            }
        }
        Ok(())
    }
}

fn csv_row(record: Record, columns: usize, [label, text]: [usize; 2]) -> Result<(String, String)> {
    ensure!(record.fields.len() == columns, "{} fields, the header has {columns}", record.fields.len());
    let field = |number: usize| {
        String::from_utf8(record.fields[number].clone())
            .map_err(|_| anyhow!("field {} is not UTF-8", number + 1))
    };
    Ok((field(label)?, field(text)?))
}

/// The classes of a training set, sorted by name.
///
/// # Errors
///
/// Fewer than two.
pub fn classes(rows: &[Row]) -> Result<Vec<String>> {
    let mut classes: Vec<_> = rows.iter().map(|row| row.label.clone()).collect();
    classes.sort();
    classes.dedup();
    ensure!(classes.len() > 1, "the training texts have {} classes, at least 2 are needed", classes.len());
    Ok(classes)
}

#[cfg(test)]
mod tests;
