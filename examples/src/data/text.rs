//! Classified texts from CSV and JSONL files.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail, ensure};
use candle_core::{Device, Tensor};
use tokenizers::{Tokenizer, TruncationParams};

use super::Problems;
use crate::study::Batch;

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

/// Reads a file of texts: JSON, an object per line, if its name ends in `.jsonl` or `.json`, else CSV (RFC 4180) with a
/// header line. Other fields than the two are ignored. Rows without one of them, with an empty class or text, or that
/// cannot be read are noted in `problems`.
///
/// # Errors
///
/// The file cannot be read, or its header lacks a field; names the file.
pub fn read(path: &Path, fields: &Fields, problems: &Problems) -> Result<Vec<Row>> {
    let json = path.extension().is_some_and(|end| end == "jsonl" || end == "json");
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut rows = Vec::new();
    let mut add = |line: u64, row: Result<(String, String)>| {
        let row = row.and_then(|(label, text)| {
            ensure!(!label.trim().is_empty(), "no `{}`", fields.label);
            ensure!(!text.trim().is_empty(), "no `{}`", fields.text);
            Ok(Row { label: label.trim().to_owned(), text, line })
        });
        match row {
            Ok(row) => rows.push(row),
            Err(error) => problems.note(format!("{}:{line}", path.display()), format!("{error:#}"))?,
        }
        Ok::<_, anyhow::Error>(())
    };
    if json {
        for (number, line) in BufReader::new(file).split(b'\n').enumerate() {
            let line = line.with_context(|| format!("cannot read {}", path.display()))?;
            if !line.trim_ascii().is_empty() {
                add(number as u64 + 1, json_row(&line, fields))?;
            }
        }
    } else {
        let mut reader = csv::ReaderBuilder::new().flexible(true).from_reader(file);
        let header =
            reader.byte_headers().with_context(|| format!("cannot read {}", path.display()))?.clone();
        let find = |name: &str| {
            header.iter().position(|field| field == name.as_bytes()).ok_or_else(|| {
                let names: Vec<_> = header.iter().map(String::from_utf8_lossy).collect();
                anyhow!("{} has no column `{name}`, only {}", path.display(), names.join(", "))
            })
        };
        let (label, text) = (find(&fields.label)?, find(&fields.text)?);
        for record in reader.byte_records() {
            let record = record.with_context(|| format!("cannot read {}", path.display()))?;
            let line = record.position().map_or(0, csv::Position::line);
            add(line, csv_row(&record, header.len(), [label, text]))?;
        }
    }
    Ok(rows)
}

fn csv_row(record: &csv::ByteRecord, columns: usize, [label, text]: [usize; 2]) -> Result<(String, String)> {
    ensure!(record.len() == columns, "{} fields, the header has {columns}", record.len());
    let field = |number: usize| {
        String::from_utf8(record[number].to_vec()).map_err(|_| anyhow!("field {} is not UTF-8", number + 1))
    };
    Ok((field(label)?, field(text)?))
}

fn json_row(line: &[u8], fields: &Fields) -> Result<(String, String)> {
    let row: BTreeMap<String, serde_json::Value> =
        serde_json::from_slice(line).context("not a JSON object")?;
    let field = |name: &str| match row.get(name) {
        Some(serde_json::Value::String(text)) => Ok(text.clone()),
        Some(serde_json::Value::Number(number)) => Ok(number.to_string()),
        Some(_) => bail!("`{name}` is neither a text nor a number"),
        None => bail!("no `{name}`"),
    };
    Ok((field(&fields.label)?, field(&fields.text)?))
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

/// Texts as token ids. The tokenizer is that of a `tokenizer.json`.
pub struct TextEncoder {
    tokenizer: Tokenizer,
    padding: u32,
}

impl TextEncoder {
    /// Reads `tokenizer.json` in the folder of a model. Texts are cut at `max_length` tokens, those that the tokenizer adds
    /// included.
    ///
    /// # Errors
    ///
    /// The file cannot be read or understood.
    pub fn open(model: &Path, max_length: usize) -> Result<Self> {
        let path = model.join("tokenizer.json");
        let unusable = |error| anyhow!("{}: {error}", path.display());
        let mut tokenizer = Tokenizer::from_file(&path).map_err(unusable)?;
        let padding = tokenizer.get_padding().map_or_else(
            || ["[PAD]", "<pad>"].iter().find_map(|token| tokenizer.token_to_id(token)).unwrap_or(0),
            |padding| padding.pad_id,
        );
        // Batches are padded to their longest text; what the file says of padding is for other uses.
        tokenizer.with_padding(None);
        let cut = TruncationParams { max_length, ..TruncationParams::default() };
        tokenizer.with_truncation(Some(cut)).map_err(unusable)?;
        Ok(Self { tokenizer, padding })
    }

    /// Encodes texts on several threads. `name` is for messages. A class that is not in `classes` is noted in `problems`.
    ///
    /// # Errors
    ///
    /// The tokenizer fails, or no text is left.
    pub fn encode(
        &self,
        name: &Path,
        rows: &[Row],
        classes: &[String],
        problems: &Problems,
    ) -> Result<TextSet> {
        let mut known = Vec::new();
        for row in rows {
            match classes.binary_search(&row.label) {
                Ok(class) => known.push((row, class as u32)),
                Err(_) => problems.note(
                    format!("{}:{}", name.display(), row.line),
                    format!("`{}` is not a class of the training texts", row.label),
                )?,
            }
        }
        ensure!(!known.is_empty(), "{} has no texts that can be used", name.display());
        let texts: Vec<&str> = known.iter().map(|(row, _)| row.text.as_str()).collect();
        let encoded = self.tokenizer.encode_batch_fast(texts, true).map_err(|error| anyhow!("{error}"))?;
        Ok(TextSet {
            tokens: encoded.iter().map(|text| text.get_ids().to_vec()).collect(),
            labels: known.iter().map(|(_, class)| *class).collect(),
            padding: self.padding,
        })
    }
}

/// Encoded texts with their classes.
#[derive(Debug, Clone)]
pub struct TextSet {
    tokens: Vec<Vec<u32>>,
    labels: Vec<u32>,
    padding: u32,
}

/// Some texts, as long as the longest of them.
#[derive(Debug, Clone)]
pub struct TextBatch {
    /// Token ids, `[texts, length]`.
    pub ids: Tensor,
    /// 1 for tokens, 0 for padding; of the same shape.
    pub mask: Tensor,
    /// Classes, `[texts]`.
    pub labels: Tensor,
}

impl Batch for TextBatch {
    fn to_device(self, device: &Device) -> candle_core::Result<Self> {
        let Self { ids, mask, labels } = self;
        let on = |tensor: Tensor| tensor.to_device(device);
        Ok(Self { ids: on(ids)?, mask: on(mask)?, labels: on(labels)? })
    }
}

impl TextSet {
    /// The class of each text.
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// Number of texts.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Tokens of all texts.
    pub fn tokens(&self) -> usize {
        self.tokens.iter().map(Vec::len).sum()
    }

    /// The texts at some positions.
    #[must_use]
    pub fn select(&self, positions: &[usize]) -> Self {
        Self {
            tokens: positions.iter().map(|position| self.tokens[*position].clone()).collect(),
            labels: positions.iter().map(|position| self.labels[*position]).collect(),
            padding: self.padding,
        }
    }

    /// Positions of all texts, longest first: batches of neighbors have little padding.
    pub fn by_length(&self) -> Vec<usize> {
        let mut positions: Vec<_> = (0..self.len()).collect();
        positions.sort_by_key(|position| std::cmp::Reverse(self.tokens[*position].len()));
        positions
    }

    /// A batch.
    ///
    /// # Errors
    ///
    /// The device fails.
    pub fn batch(&self, positions: &[usize], device: &Device) -> Result<TextBatch> {
        let texts = || positions.iter().map(|position| &self.tokens[*position]);
        let length = texts().map(Vec::len).max().unwrap_or(0);
        let shape = (positions.len(), length);
        let (mut ids, mut mask) =
            (Vec::with_capacity(shape.0 * length), Vec::with_capacity(shape.0 * length));
        for text in texts() {
            ids.extend_from_slice(text);
            mask.extend(std::iter::repeat_n(1u32, text.len()));
            ids.resize(ids.len() + length - text.len(), self.padding);
            mask.resize(ids.len(), 0);
        }
        let labels: Vec<_> = positions.iter().map(|position| self.labels[*position]).collect();
        Ok(TextBatch {
            ids: Tensor::from_vec(ids, shape, device)?,
            mask: Tensor::from_vec(mask, shape, device)?,
            labels: Tensor::from_vec(labels, positions.len(), device)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Strictness;

    fn fields() -> Fields {
        Fields { label: "label".to_owned(), text: "text".to_owned() }
    }

    fn rows(name: &str, content: &[u8], problems: &Problems) -> Result<Vec<Row>> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        read(&path, &fields(), problems)
    }

    #[test]
    fn csv_is_read_with_quotes_and_line_breaks_and_bad_rows_are_named() {
        let content = b"id,text,label\n1,\"a, \"\"b\"\"\nc\",x\n2,,x\n3,d\n4,\xff,y\n5,e, y \n6,f,\n";
        let problems = Problems::default();
        let rows = rows("t.csv", content, &problems).unwrap();
        let read: Vec<_> = rows.iter().map(|row| (row.label.as_str(), row.text.as_str())).collect();
        assert_eq!(read, [("x", "a, \"b\"\nc"), ("y", "e")]);
        assert_eq!(problems.count(), 4);
        let text = problems.to_string();
        for part in [
            "t.csv:4: no `text`",
            "t.csv:5: 2 fields, the header has 3",
            "field 2 is not UTF-8",
            "no `label`",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn jsonl_is_read_and_bad_lines_are_named() {
        let content = b"{\"text\": \"a\", \"label\": 3}\n\n[1]\n{\"text\": \"b\"}\n{\"text\": null, \"label\": \"x\"}\n";
        let problems = Problems::default();
        let rows = rows("t.jsonl", content, &problems).unwrap();
        assert_eq!(rows, [Row { label: "3".to_owned(), text: "a".to_owned(), line: 1 }]);
        let text = problems.to_string();
        for part in ["t.jsonl:3: not a JSON object", "t.jsonl:4: no `label`", "t.jsonl:5: `text` is neither"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
    }

    #[test]
    fn a_missing_file_or_column_and_strict_rows_are_errors() {
        let problems = Problems::default();
        let error = rows("t.csv", b"text,class\na,b\n", &problems).unwrap_err().to_string();
        assert!(error.contains("t.csv has no column `label`, only text, class"), "{error}");
        let error = read(Path::new("/nowhere/t.csv"), &fields(), &problems).unwrap_err().to_string();
        assert!(error.contains("/nowhere/t.csv"), "{error}");
        let strict = Problems::new(Strictness::Fail);
        let error = rows("t.csv", b"text,label\na,\n", &strict).unwrap_err().to_string();
        assert!(error.contains("t.csv:2: no `label`"), "{error}");
    }

    #[test]
    fn one_class_is_refused() {
        let row = Row { label: "x".to_owned(), text: "a".to_owned(), line: 1 };
        assert!(classes(&[row.clone(), row]).unwrap_err().to_string().contains("1 classes"));
    }

    #[test]
    fn batches_are_padded_to_their_longest_text() {
        let set =
            TextSet { tokens: vec![vec![5, 6, 7], vec![8], vec![9, 10]], labels: vec![1, 0, 2], padding: 4 };
        assert_eq!(set.by_length(), [0, 2, 1]);
        let batch = set.select(&[2, 1]).batch(&[1, 0], &Device::Cpu).unwrap();
        assert_eq!(batch.ids.to_vec2::<u32>().unwrap(), [[8, 4], [9, 10]]);
        assert_eq!(batch.mask.to_vec2::<u32>().unwrap(), [[1, 0], [1, 1]]);
        assert_eq!(batch.labels.to_vec1::<u32>().unwrap(), [0, 2]);
    }
}
