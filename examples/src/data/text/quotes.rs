//! Quotes that are one too many, or one too few.
//!
//! A quote at the begin of a field makes all that follows part of the field, up to the next quote: rows, thousands of
//! them if no other field is quoted. RFC 4180 allows fields of several lines, so what such a field holds decides. If its
//! lines are rows, of as many fields as the header and of known classes, the quote is a stray one.

use std::collections::{HashMap, HashSet};

use super::csv::{Closed, Long, Record, Scanner};

/// Lines in a quoted field that ends as it should, from which on they are rows that it has swallowed. People do quote a
/// row or two in a text.
const ROWS: usize = 3;

/// What is in the file besides long fields.
pub(super) struct Pattern {
    /// Fields of a row.
    columns: usize,
    /// The number of the field with the class.
    label: usize,
    /// Classes of the rows without a field of several lines.
    classes: HashSet<Vec<u8>>,
    /// How many such rows there are.
    rows: usize,
}

/// What to make of a record.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is a row.
    Row,
    /// A quote has swallowed the lines after it: they are read anew from a place and line.
    Rows { why: String, at: usize, line: u64 },
    /// A quote never closes, and what follows are no rows.
    Lost { why: String },
}

impl Pattern {
    /// Looks through all records after the header.
    pub(super) fn new(mut records: Scanner<'_>, columns: usize, label: usize) -> Self {
        let mut pattern = Self { columns, label, classes: HashSet::new(), rows: 0 };
        while let Some(record) = records.record() {
            if let Some(class) = pattern.class(&record).filter(|_| record.long.is_empty()) {
                pattern.rows += 1;
                if !pattern.classes.contains(class) {
                    pattern.classes.insert(class.to_vec());
                }
            }
        }
        pattern
    }

    /// The class of a record that may be a row.
    fn class<'r>(&self, record: &'r Record) -> Option<&'r [u8]> {
        let class = record.fields.get(self.label).filter(|_| record.fields.len() == self.columns)?;
        Some(class.trim_ascii()).filter(|class| !class.is_empty())
    }

    /// Looks at the quoted fields of several lines.
    pub(super) fn judge(&self, bytes: &[u8], record: &Record) -> Verdict {
        for long in &record.long {
            let (lines, rows) = self.lines(&bytes[long.rest..long.end], long.closed);
            let mostly = rows > 0 && 2 * rows >= lines;
            let stray = match long.closed {
                Closed::Well => mostly && rows >= ROWS,
                Closed::Field | Closed::Amid | Closed::Never => mostly,
            };
            if stray {
                return Verdict::Rows { why: swallowed(long, rows), at: long.rest, line: long.line + 1 };
            }
            if long.closed == Closed::Never {
                return Verdict::Lost { why: never(long, lines) };
            }
        }
        Verdict::Row
    }

    /// How many lines there are in a field, and how many of them are rows.
    fn lines(&self, bytes: &[u8], closed: Closed) -> (usize, usize) {
        let (mut lines, mut classes) = (0, HashMap::<Vec<u8>, usize>::new());
        for line in
            bytes.split(|byte| matches!(byte, b'\r' | b'\n')).filter(|line| !line.trim_ascii().is_empty())
        {
            lines += 1;
            let row = Scanner::new(line).record().unwrap_or_default();
            if let Some(class) = self.class(&row) {
                *classes.entry(class.to_vec()).or_default() += 1;
            }
        }
        let count = |is: &dyn Fn(&[u8], usize) -> bool| -> usize {
            classes.iter().filter(|(class, count)| is(class, **count)).map(|(_, count)| count).sum()
        };
        let known = count(&|class, _| self.classes.contains(class));
        // Where most of the file is in the field, its classes are those that come again. So do the lines of a poem, but
        // a poem has none that begins with a class.
        let most = lines > self.rows && (closed != Closed::Well || known > 0);
        let rows = match most {
            _ if closed == Closed::Field => classes.values().sum(),
            true => count(&|class, count| count > 1 || self.rows == 0 || self.classes.contains(class)),
            false => known,
        };
        (lines, rows)
    }
}

fn swallowed(long: &Long, rows: usize) -> String {
    let until = match long.closed {
        Closed::Well | Closed::Field | Closed::Amid => "does not close where it should",
        Closed::Never => "never closes",
    };
    format!("the quote that opens field {} {until}: {rows} rows after it are in the field", long.field + 1)
}

fn never(long: &Long, lines: usize) -> String {
    format!(
        "the quote that opens field {} never closes; {lines} lines after it are lost with it",
        long.field + 1
    )
}
