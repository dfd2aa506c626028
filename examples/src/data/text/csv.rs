//! Records of a CSV file.

/// A record: the fields of one row, and where they were.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) fields: Vec<Vec<u8>>,
    /// The line that it begins on, from 1.
    pub(super) line: u64,
    /// Its quoted fields that do not end on the line where they begin.
    pub(super) long: Vec<Long>,
    /// Whether it has a quoted field.
    pub(super) quoted: bool,
    /// Whether text follows the end of a quoted field.
    pub(super) odd: bool,
    /// Whether there is a quote in a field that is not quoted.
    pub(super) bare: bool,
}

/// A quoted field of several lines.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Long {
    /// Its number, from 0.
    pub(super) field: usize,
    /// The line that its quote opens on.
    pub(super) line: u64,
    /// Where the line after that begins.
    pub(super) rest: usize,
    /// Where the line begins that the field ends on, and its number.
    pub(super) last: (usize, u64),
    /// Where that line ends.
    pub(super) end: usize,
    /// What comes after it.
    pub(super) closed: Closed,
}

/// What comes after a quoted field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Closed {
    /// A comma or the end of the record, as RFC 4180 has it.
    Well,
    /// Other text, and the quote that ended it stands where a field begins: it opens another one.
    Field,
    /// Other text: the quote that ended it opens another field, or belongs into the text.
    Amid,
    /// The end of the file: no quote has ended it.
    Never,
}

/// Reads a file record by record (RFC 4180). Blank lines are no records. What RFC 4180 does not allow is read as other
/// programs do: a quote inside a field without quotes is text, and so is what follows the end of a quoted field.
#[derive(Debug, Clone)]
pub(super) struct Scanner<'a> {
    bytes: &'a [u8],
    at: usize,
    line: u64,
    /// Where the line begins.
    begin: usize,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0, line: 1, begin: 0 }
    }

    /// Goes on at the begin of a line; returns how many bytes that is back.
    pub(super) fn go_back(&mut self, (at, line): (usize, u64)) -> usize {
        let back = self.at - at;
        (self.at, self.line, self.begin) = (at, line, at);
        back
    }

    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    /// Takes a byte. A line ends with a line feed, a carriage return, or both.
    fn take(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        if byte == b'\n' || (byte == b'\r' && self.peek() != Some(b'\n')) {
            self.line += 1;
            self.begin = self.at;
        }
        Some(byte)
    }

    /// The next record; `None` at the end of the file.
    pub(super) fn record(&mut self) -> Option<Record> {
        while matches!(self.peek(), Some(b'\r' | b'\n')) {
            self.take();
        }
        self.peek()?;
        let mut record = Record { line: self.line, ..Record::default() };
        loop {
            let field = self.field(&mut record);
            record.fields.push(field);
            match self.take() {
                Some(b',') => {}
                Some(b'\r') if self.peek() == Some(b'\n') => {
                    self.take();
                    return Some(record);
                }
                _ => return Some(record),
            }
        }
    }

    /// A field; what ends it is left.
    fn field(&mut self, record: &mut Record) -> Vec<u8> {
        let mut field = Vec::new();
        let quoted = self.peek() == Some(b'"');
        record.quoted |= quoted;
        if quoted {
            let line = self.line;
            self.take();
            let (mut rest, mut closed) = (None, Closed::Never);
            while let Some(byte) = self.take() {
                if byte == b'"' {
                    if self.peek() != Some(b'"') {
                        closed = match self.peek() {
                            None | Some(b',' | b'\r' | b'\n') => Closed::Well,
                            Some(_) if matches!(self.bytes[self.at - 2], b',' | b'\r' | b'\n') => {
                                Closed::Field
                            }
                            Some(_) => Closed::Amid,
                        };
                        break;
                    }
                    self.take();
                }
                field.push(byte);
                if rest.is_none() && self.line > line {
                    rest = Some(self.at);
                }
            }
            record.odd |= matches!(closed, Closed::Field | Closed::Amid);
            if closed == Closed::Never && rest.is_none() {
                rest = Some(self.at);
            }
            if let Some(rest) = rest {
                let here = self.at;
                let end = self.bytes[here..].iter().position(|byte| matches!(byte, b'\r' | b'\n'));
                let end = end.map_or(self.bytes.len(), |length| here + length);
                let last = (self.begin, self.line);
                record.long.push(Long { field: record.fields.len(), line, rest, last, end, closed });
            }
        }
        while let Some(byte) = self.peek().filter(|byte| !matches!(byte, b',' | b'\r' | b'\n')) {
            record.bare |= byte == b'"' && !quoted;
            field.push(byte);
            self.take();
        }
        field
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{RngCore, SeedableRng};

    use super::*;

    /// The crate `csv` reads the same records on the same lines, whatever the bytes.
    #[test]
    fn records_are_those_of_another_reader() {
        let mut random = ChaCha8Rng::seed_from_u64(3);
        let mut quoted = 0;
        for _ in 0..20_000 {
            let length = random.next_u32() % 24;
            let bytes: Vec<u8> =
                (0..length).map(|_| b"\"\"\n\n,,\r ab"[(random.next_u32() % 10) as usize]).collect();
            let mut reader =
                csv::ReaderBuilder::new().flexible(true).has_headers(false).from_reader(bytes.as_slice());
            let expected: Vec<Vec<Vec<u8>>> = reader
                .byte_records()
                .map(|record| record.unwrap().iter().map(<[u8]>::to_vec).collect())
                .collect();
            let mut scanner = Scanner::new(&bytes);
            let records: Vec<_> = std::iter::from_fn(|| scanner.record()).collect();
            quoted += records.iter().filter(|record| !record.long.is_empty()).count();
            let got: Vec<_> = records.into_iter().map(|record| record.fields).collect();
            assert_eq!(got, expected, "{:?}", String::from_utf8_lossy(&bytes));
        }
        assert!(quoted > 1000, "{quoted}");
    }

    #[test]
    fn long_fields_are_where_they_open() {
        let bytes = b"a,b\r\n1,\"x\r\ny\",\"z\n\"\"\"\n\n2,\"u\n\"v,w\n3,\"";
        let mut scanner = Scanner::new(bytes);
        let mut next = || scanner.record().unwrap();
        assert!(next().long.is_empty());
        let record = next();
        assert_eq!((record.line, &record.fields[2][..]), (2, &b"z\n\""[..]));
        let places: Vec<_> = record.long.iter().map(|long| (long.field, long.line, long.closed)).collect();
        assert_eq!(places, [(1, 2, Closed::Well), (2, 3, Closed::Well)]);
        assert_eq!(&bytes[record.long[0].rest..record.long[0].end], b"y\",\"z");
        let record = next();
        assert_eq!((record.line, record.fields.len(), record.long[0].closed), (6, 3, Closed::Field));
        assert_eq!(&bytes[record.long[0].rest..record.long[0].end], b"\"v,w");
        let record = next();
        assert_eq!((record.line, record.long[0].line, record.long[0].closed), (8, 8, Closed::Never));
        assert_eq!(scanner.record(), None);
        let record = Scanner::new(b"1,\"u\n\"\"v \"w\" x\"\n").record().unwrap();
        assert_eq!((&record.fields[1][..], record.long[0].closed), (&b"u\n\"v w\" x\""[..], Closed::Amid));
    }
}
