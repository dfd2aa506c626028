//! Data of users' own: what can be read is used, what cannot is counted and named.

pub mod images;
mod named;
mod problems;
mod split;
pub mod text;

pub use self::named::named;
pub use self::problems::{Problems, Strictness};
pub use self::split::hold_out;
