//! SHA-256: of files, and for orders that look drawn by lot but are the same everywhere.

use std::fmt::Write as _;

use sha2::{Digest, Sha256};

/// As 64 hexadecimal digits.
pub(crate) fn hex(bytes: impl AsRef<[u8]>) -> String {
    let mut text = String::new();
    for byte in Sha256::digest(bytes) {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

/// A number in `[0, 1)` that depends on a text: its first four bytes over 2^32.
pub(crate) fn share(text: &str) -> f64 {
    let digest = Sha256::digest(text);
    f64::from(u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]])) / 4_294_967_296.0
}

/// Sorts by the digest of a text that belongs to each.
pub(crate) fn draw<T>(mut items: Vec<T>, text: impl Fn(&T) -> String) -> Vec<T> {
    items.sort_by_cached_key(|item| hex(text(item)));
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_the_standard() {
        assert_eq!(hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(share("abc"), f64::from(0xba78_16bf_u32) / 4_294_967_296.0);
        // e3b0... of nothing, ba78... of `abc`, 2cf2... of `hello`.
        assert_eq!(draw(vec!["", "abc", "hello"], |text| (*text).to_owned()), ["hello", "abc", ""]);
    }
}
