//! How the errors of rooms become others.
//!
//! A room has an error of its own, with what can go wrong in it and the errors of the rooms below it.
//! [`tpgm_candle::Error`](crate::Error) gathers them all. Whichever way a problem came, it is one variant there: that of the
//! room where it arose.

/// What candle's closures and traits return: candle's own error where one is inside, else the room's, wrapped.
macro_rules! into_candle {
    ($($lower:ident),*) => {
        impl From<Error> for candle_core::Error {
            fn from(error: Error) -> Self {
                match error {
                    $(Error::$lower(error) => $crate::room::lower_into_candle!($lower error),)*
                    error => candle_core::Error::wrap(error),
                }
            }
        }
    };
}

/// Errors of `tpgm-files`, which knows no candle, are wrapped; those of rooms know how to become candle's.
macro_rules! lower_into_candle {
    (Files $error:ident) => {
        candle_core::Error::wrap($error)
    };
    (Merge $error:ident) => {
        candle_core::Error::wrap($error)
    };
    ($room:ident $error:ident) => {
        $error.into()
    };
}

pub(crate) use {into_candle, lower_into_candle};
