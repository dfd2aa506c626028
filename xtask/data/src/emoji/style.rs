//! Who has drawn the emoji.

/// A way in which all emoji are drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Style {
    Noto,
    NotoV1,
    Twemoji,
    Emojione,
    Fxemoji,
    Fluent3d,
    FluentFlat,
    OpenmojiColor,
    OpenmojiBlack,
    HighContrast,
    Monotone,
}

impl Style {
    /// All, in the order of columns.
    pub(crate) const ALL: [Style; 11] = [
        Style::Noto,
        Style::NotoV1,
        Style::Twemoji,
        Style::Emojione,
        Style::Fxemoji,
        Style::Fluent3d,
        Style::FluentFlat,
        Style::OpenmojiColor,
        Style::OpenmojiBlack,
        Style::HighContrast,
        Style::Monotone,
    ];

    /// Colored styles to train on, in which every emoji of a task is drawn.
    pub(crate) const SOURCE: [Style; 4] = [Style::Noto, Style::NotoV1, Style::Twemoji, Style::Emojione];

    /// Never trained on: three in color, one of lines, two of silhouettes.
    pub(crate) const SHIFTED: [Style; 6] = [
        Style::Fluent3d,
        Style::FluentFlat,
        Style::OpenmojiColor,
        Style::OpenmojiBlack,
        Style::HighContrast,
        Style::Monotone,
    ];

    /// Styles that are still being drawn.
    pub(crate) const TODAY: [Style; 7] = [
        Style::Noto,
        Style::Twemoji,
        Style::Fluent3d,
        Style::FluentFlat,
        Style::OpenmojiColor,
        Style::OpenmojiBlack,
        Style::HighContrast,
    ];

    /// All but [`Style::Fxemoji`], which is smaller than the others.
    pub(crate) const EVERYWHERE: [Style; 10] = [
        Style::Noto,
        Style::NotoV1,
        Style::Twemoji,
        Style::Emojione,
        Style::Fluent3d,
        Style::FluentFlat,
        Style::OpenmojiColor,
        Style::OpenmojiBlack,
        Style::HighContrast,
        Style::Monotone,
    ];

    /// As folders are called.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Style::Noto => "noto",
            Style::NotoV1 => "noto-v1",
            Style::Twemoji => "twemoji",
            Style::Emojione => "emojione",
            Style::Fxemoji => "fxemoji",
            Style::Fluent3d => "fluent-3d",
            Style::FluentFlat => "fluent-flat",
            Style::OpenmojiColor => "openmoji-color",
            Style::OpenmojiBlack => "openmoji-black",
            Style::HighContrast => "high-contrast",
            Style::Monotone => "monotone",
        }
    }

    /// The package that has it.
    pub(crate) const fn package(self) -> &'static str {
        match self {
            Style::OpenmojiColor | Style::OpenmojiBlack => "openmoji",
            other => other.name(),
        }
    }
}
