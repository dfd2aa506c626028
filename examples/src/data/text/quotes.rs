//! Quotes that are one too many, or one too few.
//!
//! A quote at the begin of a field makes all that follows part of the field, up to the next quote: rows, thousands of
//! them if no other field is quoted. RFC 4180 allows fields of several lines, so what such a field holds decides. If its
//! lines are rows, of as many fields as the header and of known classes, the quote is a stray one. So it is if the quote
//! that ends the field stands where a field of the next row begins.

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
    Rows { line: u64, why: String, from: (usize, u64) },
    /// A quote never closes, and what follows are no rows.
    Lost { why: String },
}

impl Pattern {
    /// Looks through all records after the header.
    pub(super) fn new(mut records: Scanner<'_>, columns: usize, label: usize) -> Self {
        let mut pattern = Self { columns, label, classes: HashSet::new(), rows: 0 };
        // After a field that ended amid text, what comes may be the rest of that text, up to a quote that closes it.
        let mut doubtful: Option<Vec<Record>> = None;
        while let Some(record) = records.record() {
            let amid = record.long.iter().any(|long| long.closed != Closed::Well);
            match &mut doubtful {
                Some(rows) if !amid && record.bare => rows.clear(),
                Some(rows) if !amid && !record.quoted => {
                    rows.push(record);
                    continue;
                }
                _ => pattern.learn(&record),
            }
            doubtful.take().into_iter().flatten().for_each(|row| pattern.learn(&row));
            doubtful = amid.then(Vec::new);
        }
        doubtful.into_iter().flatten().for_each(|row| pattern.learn(&row));
        pattern
    }

    /// Takes the class of a row without a field of several lines.
    fn learn(&mut self, record: &Record) {
        if let Some(class) = self.class(record).filter(|_| record.long.is_empty()).map(<[u8]>::to_vec) {
            self.rows += 1;
            self.classes.insert(class);
        }
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
                let from = (long.rest, long.line + 1);
                return Verdict::Rows { line: long.line, why: swallowed(long, rows), from };
            }
            if long.closed == Closed::Field && self.begins_row(&bytes[long.last.0..long.end]) {
                return Verdict::Rows { line: long.line, why: open(long), from: long.last };
            }
            if long.closed == Closed::Never {
                return Verdict::Lost { why: never(long, lines) };
            }
        }
        Verdict::Row
    }

    /// Whether the line that a field ends on is the first one of a row: its first field is quoted, or it has a known class.
    fn begins_row(&self, line: &[u8]) -> bool {
        let row = Scanner::new(line).record().unwrap_or_default();
        let class = row.fields.get(self.label).filter(|_| row.fields.len() <= self.columns);
        line.starts_with(b"\"") || class.is_some_and(|class| self.classes.contains(class.trim_ascii()))
    }

    /// How many lines there are in a field, and how many of them are rows.
    fn lines(&self, bytes: &[u8], closed: Closed) -> (usize, usize) {
        let (mut lines, mut new, mut classes) = (0, 0, HashMap::<Vec<u8>, usize>::new());
        for line in
            bytes.split(|byte| matches!(byte, b'\r' | b'\n')).filter(|line| !line.trim_ascii().is_empty())
        {
            lines += 1;
            let row = Scanner::new(line).record().unwrap_or_default();
            let class = self.class(&row);
            // Of the last line, which begins as a row.
            new = usize::from(class.is_some_and(|class| !row.odd && !self.classes.contains(class)));
            if let Some(class) = class {
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
            // The class of that line may be one that does not occur elsewhere.
            _ if closed == Closed::Field => known + new,
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

fn open(long: &Long) -> String {
    let lines = long.last.1 - long.line - 1;
    format!(
        "the quote that opens field {} does not close before the next row; {lines} lines after it are lost with it",
        long.field + 1
    )
}

fn never(long: &Long, lines: usize) -> String {
    format!(
        "the quote that opens field {} never closes; {lines} lines after it are lost with it",
        long.field + 1
    )
}
