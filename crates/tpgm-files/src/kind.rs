//! What a file is, by its first bytes.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::error::{Result, io};
use super::pytorch::is_legacy;

/// As many bytes of a file as tell what it is. A tar archive says so at byte 257.
const LENGTH: u64 = 512;

/// The first bytes of a file, and how long it is.
pub(super) struct Start {
    bytes: Vec<u8>,
}

/// What to do with a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Its own reader knows what is wrong with it, if anything is.
    Safetensors,
    PyTorch,
    /// What it is, and what to do.
    Foreign(String),
}

impl Start {
    pub(super) fn read(path: &Path, file: &File) -> Result<Self> {
        let mut bytes = vec![];
        file.take(LENGTH).read_to_end(&mut bytes).map_err(io(path))?;
        Ok(Self { bytes })
    }

    pub(super) fn of(file: &[u8]) -> Self {
        Self { bytes: file[..file.len().min(LENGTH as usize)].to_vec() }
    }

    /// An object in JSON: an index of shards, or a message.
    pub(super) fn is_json(&self) -> bool {
        // The length before a safetensors header may be the code of a brace, but zeros follow it.
        matches!(self.text().as_bytes(), [b'{', ..])
    }

    pub(super) fn kind(&self) -> Kind {
        let bytes = self.bytes.as_slice();
        let foreign = |what: &str| Kind::Foreign(what.to_owned());
        if bytes.is_empty() {
            return foreign("it is empty; a download or a copy has failed: get it again");
        }
        // Before a header in JSON stands its length, which has zeros for all but endless headers.
        if bytes.get(8) == Some(&b'{') && bytes[6..8] == [0, 0] {
            return Kind::Safetensors;
        }
        if bytes.starts_with(b"PK\x03\x04") || bytes.starts_with(b"PK\x05\x06") || is_legacy(bytes) {
            return Kind::PyTorch;
        }
        if bytes.starts_with(b"version https://git-lfs") {
            return Kind::Foreign(git_lfs(&self.text()));
        }
        for (magic, what) in MAGIC {
            if bytes.starts_with(magic) {
                return foreign(what);
            }
        }
        if bytes.get(257..262) == Some(b"ustar") {
            return foreign("it is a tar archive; unpack it and name the file inside");
        }
        if matches!(bytes, [0x80, 2..=5, ..]) {
            return foreign(
                "it is a pickle, but not of `torch.save`; load it in Python and save its tensors as safetensors",
            );
        }
        let text = self.text();
        let lower = text.get(..text.len().min(200)).unwrap_or(&text).to_ascii_lowercase();
        if ["<!doctype", "<html", "<head", "<?xml", "<error"].iter().any(|tag| lower.starts_with(tag)) {
            return foreign(
                "it is a web page, not a checkpoint: the address led to a page (a login, a license, an error); \
                 download the file itself",
            );
        }
        if text.starts_with('{') || text.starts_with('[') {
            let shown: String = text.chars().take(60).collect();
            return Kind::Foreign(format!(
                "it is JSON, not a checkpoint (`{}`); if it is a message of a server, download the file again",
                shown.split_whitespace().collect::<Vec<_>>().join(" ")
            ));
        }
        Kind::Safetensors
    }

    /// The text, without what editors put before it; empty if it is none.
    fn text(&self) -> std::borrow::Cow<'_, str> {
        let bytes = without_bom(&self.bytes).trim_ascii_start();
        match bytes.iter().any(|&byte| byte < 9) {
            true => "".into(),
            false => String::from_utf8_lossy(bytes),
        }
    }
}

/// Text without the mark of its encoding.
pub(super) fn without_bom(text: &[u8]) -> &[u8] {
    text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(text)
}

/// What other files begin with.
const MAGIC: [(&[u8], &str); 11] = [
    (b"\x1f\x8b", "it is compressed with gzip; unpack it (`gunzip`, `tar xzf`) and name the file inside"),
    (b"BZh", "it is compressed with bzip2; unpack it (`bunzip2`) and name the file inside"),
    (b"\xfd7zXZ\0", "it is compressed with xz; unpack it (`unxz`) and name the file inside"),
    (b"\x28\xb5\x2f\xfd", "it is compressed with zstd; unpack it (`unzstd`) and name the file inside"),
    (b"7z\xbc\xaf", "it is a 7z archive; unpack it and name the file inside"),
    (b"Rar!", "it is a RAR archive; unpack it and name the file inside"),
    (b"\x89HDF\r\n", "it is an HDF5 file, as Keras and TensorFlow write; save it as safetensors there"),
    (b"GGUF", "it is a GGUF file, most of them quantized; take the model's safetensors files"),
    (b"\x93NUMPY", "it is a NumPy array; save arrays by name as safetensors"),
    (b"\x89PNG", "it is a picture"),
    (b"%PDF", "it is a PDF document"),
];

fn git_lfs(text: &str) -> String {
    let size = text.lines().find_map(|line| line.strip_prefix("size ")?.trim().parse::<u64>().ok());
    let of = size.map_or_else(String::new, |size| format!(" for a file of {size} bytes"));
    format!(
        "it is a Git LFS pointer{of}, not the file itself; run `git lfs install` and `git lfs pull` in its folder, or \
         download the file"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_told_apart_by_their_first_bytes() {
        let mut tar = vec![b'a'; 512];
        tar[257..262].copy_from_slice(b"ustar");
        let mut safetensors = 123u64.to_le_bytes().to_vec();
        safetensors.extend(b"{\"w\":");
        let cases: [(&[u8], &str); 17] = [
            (b"", "empty"),
            (
                b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 438007537\n",
                "file of 438007537 bytes",
            ),
            (b"version https://git-lfs.github.com/spec/v1\r\n", "a Git LFS pointer, not"),
            (b"<!DOCTYPE html><html>", "a web page"),
            (b"\xef\xbb\xbf\n  <HTML lang=\"en\">", "a web page"),
            (b"<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code>", "a web page"),
            (b"{\"error\": \"Access to model x is restricted\"}", "Access to model"),
            (b"[1, 2]", "JSON"),
            (b"\x1f\x8b\x08\0", "gzip"),
            (&tar, "tar archive"),
            (b"\x80\x04\x95\0\0", "not of `torch.save`"),
            (b"GGUF\x03\0\0\0", "GGUF"),
            (b"\x89HDF\r\n\x1a\n", "HDF5"),
            (b"\xfd7zXZ\0\0", "xz"),
            (b"BZh9", "bzip2"),
            (b"\x28\xb5\x2f\xfd\x04", "zstd"),
            (b"\x93NUMPY\x01", "NumPy"),
        ];
        for (bytes, part) in cases {
            let Kind::Foreign(problem) = Start::of(bytes).kind() else { panic!("{part}") };
            assert!(problem.contains(part), "{problem}");
        }
        for bytes in [&safetensors[..], b"\x01\x02\x03", b"just some text"] {
            assert_eq!(Start::of(bytes).kind(), Kind::Safetensors);
            assert!(!Start::of(bytes).is_json());
        }
        assert_eq!(Start::of(b"PK\x03\x04").kind(), Kind::PyTorch);
        assert!(Start::of(b"\xef\xbb\xbf {").is_json() && Start::of(b"{\"weight_map\"").is_json());
    }
}
