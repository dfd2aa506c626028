//! Data of users' own: what can be read is used, what cannot is counted and named.

pub mod images;
mod named;
mod problems;
mod split;
pub mod text;
mod tokens;
mod unicode;

pub use self::named::named;
pub use self::problems::{Problems, Strictness};
pub use self::split::hold_out;
pub use self::tokens::ModelTokens;
pub use self::unicode::{text as unicode_text, utf8};
