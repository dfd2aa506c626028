//! The two kinds of archives that registries have: compressed tapes and wheels, which are zip files.

use std::io::Read;

use anyhow::{Context, Result, bail, ensure};
use flate2::read::{DeflateDecoder, GzDecoder};

/// A file within an archive may take this much.
const MOST: u64 = 256 << 20;

/// Files of a `.tar.gz` whose names `wanted` takes, with their names below the first folder, in the archive's order.
///
/// # Errors
///
/// The archive is damaged.
pub(crate) fn tape(bytes: &[u8], wanted: impl Fn(&str) -> bool) -> Result<Vec<(String, Vec<u8>)>> {
    let mut files = Vec::new();
    for entry in tar::Archive::new(GzDecoder::new(bytes)).entries()? {
        let entry = entry.context("a damaged archive")?;
        let path = entry.path().context("a damaged archive")?.to_string_lossy().replace('\\', "/");
        let Some((_, name)) = path.split_once('/') else { continue };
        if entry.header().entry_type().is_file() && wanted(name) {
            let (name, mut content) = (name.to_owned(), Vec::new());
            entry
                .take(MOST)
                .read_to_end(&mut content)
                .with_context(|| format!("{name} in a damaged archive"))?;
            files.push((name, content));
        }
    }
    Ok(files)
}

/// The file of a `.tar.gz` with this name below the first folder.
///
/// # Errors
///
/// It is not there, or the archive is damaged.
pub(crate) fn file_of_tape(bytes: &[u8], name: &str) -> Result<Vec<u8>> {
    let found = tape(bytes, |other| other == name)?.pop();
    Ok(found.with_context(|| format!("the archive has no {name}"))?.1)
}

/// Files of a zip file whose names `wanted` takes.
///
/// # Errors
///
/// It is damaged, or has what wheels do not have: encryption, parts, sizes of 4 GiB.
pub(crate) fn wheel(bytes: &[u8], wanted: impl Fn(&str) -> bool) -> Result<Vec<(String, Vec<u8>)>> {
    let number = |at: usize, length: usize| -> Result<usize> {
        let field = bytes.get(at..at + length).context("a zip file that is cut off")?;
        Ok(field.iter().rev().fold(0, |number, byte| number << 8 | usize::from(*byte)))
    };
    // The directory's end is a record of 22 bytes and a comment; the directory says what is where.
    let end = (0..=bytes.len().saturating_sub(22)).rev().find(|at| bytes[*at..].starts_with(b"PK\x05\x06"));
    let end = end.context("no zip file: it has no directory")?;
    let (entries, mut at) = (number(end + 10, 2)?, number(end + 16, 4)?);
    let mut files = Vec::new();
    for _ in 0..entries {
        ensure!(number(at, 4)? == 0x0201_4b50, "a zip file with a damaged directory");
        let [method, packed, size] = [number(at + 10, 2)?, number(at + 20, 4)?, number(at + 24, 4)?];
        let [name_length, extra, comment] = [number(at + 28, 2)?, number(at + 30, 2)?, number(at + 32, 2)?];
        let local = number(at + 42, 4)?;
        let name = bytes.get(at + 46..at + 46 + name_length).context("a zip file that is cut off")?;
        let name = String::from_utf8_lossy(name).into_owned();
        at += 46 + name_length + extra + comment;
        if !wanted(&name) {
            continue;
        }
        let begin = local + 30 + number(local + 26, 2)? + number(local + 28, 2)?;
        let content = bytes.get(begin..begin + packed).with_context(|| format!("{name} is cut off"))?;
        let content = match method {
            0 => content.to_vec(),
            8 => {
                let mut plain = Vec::new();
                let read = DeflateDecoder::new(content).take(MOST).read_to_end(&mut plain);
                read.with_context(|| format!("{name} is damaged"))?;
                plain
            }
            other => bail!("{name} is packed by method {other}"),
        };
        ensure!(content.len() == size, "{name} has {} bytes, the directory says {size}", content.len());
        files.push((name, content));
    }
    Ok(files)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;

    use flate2::Compression;
    use flate2::write::{DeflateEncoder, GzEncoder};

    use super::*;

    /// A `.tar.gz` of some files in a folder.
    pub(crate) fn pack(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::fast()));
        for (name, content) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, format!("package/{name}"), *content).unwrap();
        }
        builder.into_inner().unwrap().finish().unwrap()
    }

    #[test]
    fn files_of_a_tape_are_found_by_name() {
        let long = "x".repeat(150);
        let bytes = pack(&[("a/1.svg", b"one"), (&long, b"long"), ("b", b"two")]);
        assert_eq!(file_of_tape(&bytes, "a/1.svg").unwrap(), b"one");
        assert_eq!(file_of_tape(&bytes, &long).unwrap(), b"long");
        assert_eq!(tape(&bytes, |name| name.len() < 9).unwrap().len(), 2);
        assert_eq!(file_of_tape(&bytes, "c").unwrap_err().to_string(), "the archive has no c");
        assert!(tape(&bytes[..bytes.len() / 2], |_| true).is_err());
        assert!(tape(b"nothing of the kind", |_| true).is_err());
    }

    /// A zip file by hand: one file stored, one deflated.
    fn zip() -> Vec<u8> {
        let mut deflate = DeflateEncoder::new(Vec::new(), Compression::default());
        deflate.write_all(&[7; 1000]).unwrap();
        let deflated = deflate.finish().unwrap();
        let (mut bytes, mut directory) = (Vec::new(), Vec::new());
        for (name, method, content, size) in
            [("a.txt", 0u16, &b"plain"[..], 5u32), ("w/b.pth", 8, &deflated, 1000)]
        {
            let local = bytes.len() as u32;
            let mut common = vec![20, 0, 0, 0];
            common.extend(method.to_le_bytes());
            common.extend([0; 8]);
            common.extend((content.len() as u32).to_le_bytes());
            common.extend(size.to_le_bytes());
            common.extend((name.len() as u16).to_le_bytes());
            common.extend([0; 2]);
            bytes.extend(b"PK\x03\x04");
            bytes.extend(&common);
            bytes.extend(name.as_bytes());
            bytes.extend(content);
            directory.extend(b"PK\x01\x02\x14\x00");
            directory.extend(&common);
            directory.extend([0; 10]);
            directory.extend(local.to_le_bytes());
            directory.extend(name.as_bytes());
        }
        let begin = bytes.len() as u32;
        bytes.extend(&directory);
        bytes.extend(b"PK\x05\x06\0\0\0\0\x02\0\x02\0");
        bytes.extend((directory.len() as u32).to_le_bytes());
        bytes.extend(begin.to_le_bytes());
        bytes.extend([0; 2]);
        bytes
    }

    #[test]
    fn files_of_a_wheel_are_stored_or_deflated() {
        let bytes = zip();
        let files = wheel(&bytes, |_| true).unwrap();
        assert_eq!(files, [("a.txt".to_owned(), b"plain".to_vec()), ("w/b.pth".to_owned(), vec![7; 1000])]);
        assert_eq!(wheel(&bytes, |name| name.ends_with(".pth")).unwrap().len(), 1);
        assert!(wheel(&bytes[..bytes.len() - 1], |_| true).is_err());
        assert_eq!(wheel(b"PK", |_| true).unwrap_err().to_string(), "no zip file: it has no directory");
        let mut damaged = bytes.clone();
        damaged[35] ^= 1; // within the directory's counterpart, not read: the content of a.txt
        assert_ne!(wheel(&damaged, |_| true).unwrap()[0].1, b"plain");
    }
}
