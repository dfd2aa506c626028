//! The encoding of text files.

use std::borrow::Cow;

use anyhow::{Context, Result, ensure};

const UTF8: &[u8] = b"\xEF\xBB\xBF";
const UTF16_LITTLE: &[u8] = b"\xFF\xFE";
const UTF16_BIG: &[u8] = b"\xFE\xFF";
const UTF32_LITTLE: &[u8] = b"\xFF\xFE\0\0";

/// The content of a text file without its byte order mark, in UTF-8 if the mark says that it was in UTF-16: spreadsheets
/// and editors of Windows write both. What has no mark is returned as it is, whether it is UTF-8 or not.
///
/// # Errors
///
/// The mark says UTF-16, but the rest is not; or it says UTF-32.
pub fn utf8(bytes: &[u8]) -> Result<Cow<'_, [u8]>> {
    if let Some(rest) = bytes.strip_prefix(UTF8) {
        return Ok(Cow::Borrowed(rest));
    }
    ensure!(!bytes.starts_with(UTF32_LITTLE), "is a text in UTF-32: save it as UTF-8");
    let (rest, unit): (_, fn([u8; 2]) -> u16) =
        match (bytes.strip_prefix(UTF16_LITTLE), bytes.strip_prefix(UTF16_BIG)) {
            (Some(rest), _) => (rest, u16::from_le_bytes),
            (_, Some(rest)) => (rest, u16::from_be_bytes),
            _ => return Ok(Cow::Borrowed(bytes)),
        };
    ensure!(rest.len().is_multiple_of(2), "begins as a text in UTF-16, but has half a character at its end");
    let units = rest.chunks_exact(2).map(|pair| unit([pair[0], pair[1]]));
    let text: String = char::decode_utf16(units)
        .collect::<Result<_, _>>()
        .context("begins as a text in UTF-16, but is none: save it as UTF-8")?;
    Ok(Cow::Owned(text.into_bytes()))
}

/// The text of a file in UTF-8, or of one in UTF-16 with a byte order mark.
///
/// # Errors
///
/// It is neither.
pub fn text(bytes: &[u8]) -> Result<String> {
    String::from_utf8(utf8(bytes)?.into_owned()).context("is not a text in UTF-8: save it as UTF-8")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_dropped_and_utf16_is_understood() {
        assert_eq!(text(b"\xEF\xBB\xBFa,\xC3\xA9").unwrap(), "a,é");
        assert_eq!(text(b"a,\xC3\xA9").unwrap(), "a,é");
        assert_eq!(text(b"\xFF\xFEa\0,\0\xE9\0=\xD8\x00\xDE").unwrap(), "a,é😀");
        assert_eq!(text(b"\xFE\xFF\0a\0,\0\xE9").unwrap(), "a,é");
        // Without a mark nothing is guessed.
        assert_eq!(utf8(b"\xE9").unwrap().as_ref(), b"\xE9");
    }

    #[test]
    fn what_is_no_text_says_so() {
        for (bytes, part) in [
            (&b"\xFF\xFEa"[..], "half a character"),
            (b"\xFF\xFE\x00\xDE", "is none"),
            (b"\xFF\xFE\0\0a\0\0\0", "UTF-32"),
            (b"\xE9", "is not a text in UTF-8"),
        ] {
            let error = text(bytes).unwrap_err().to_string();
            assert!(error.contains(part), "{part}: {error}");
        }
    }
}
