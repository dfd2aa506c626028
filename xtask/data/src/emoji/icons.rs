//! Icon sets as Iconify packs them: SVG bodies by name, and which name is which emoji.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::catalog::normal;
use crate::archive;

/// A set of icons.
#[derive(Debug, Deserialize)]
pub(crate) struct Icons {
    icons: BTreeMap<String, Icon>,
    #[serde(default)]
    aliases: BTreeMap<String, Alias>,
    #[serde(default)]
    width: Option<f64>,
    #[serde(default)]
    height: Option<f64>,
    /// Names by code; empty where the package does not say.
    #[serde(skip)]
    chars: BTreeMap<String, String>,
}

#[derive(Debug, Deserialize)]
struct Icon {
    body: String,
    left: Option<f64>,
    top: Option<f64>,
    width: Option<f64>,
    height: Option<f64>,
}

/// Another name of an icon. One that is turned or mirrored is another picture.
#[derive(Debug, Deserialize)]
struct Alias {
    parent: String,
    #[serde(default, rename = "hFlip")]
    h_flip: bool,
    #[serde(default, rename = "vFlip")]
    v_flip: bool,
    #[serde(default)]
    rotate: i64,
}

/// Sides of icons that have none.
const SIDE: f64 = 16.0;

impl Icons {
    /// From a package.
    ///
    /// # Errors
    ///
    /// The package is damaged, or has no icons.
    pub(crate) fn read(package: &[u8]) -> Result<Self> {
        let files = archive::tape(package, |name| matches!(name, "icons.json" | "chars.json"))?;
        let files: BTreeMap<_, _> = files.into_iter().collect();
        let icons = files.get("icons.json").context("the archive has no icons.json")?;
        let mut icons: Icons = serde_json::from_slice(icons).context("icons.json is damaged")?;
        if let Some(chars) = files.get("chars.json") {
            let chars: BTreeMap<String, String> =
                serde_json::from_slice(chars).context("chars.json is damaged")?;
            icons.chars = chars.into_iter().map(|(code, name)| (normal(&code), name)).collect();
        }
        Ok(icons)
    }

    /// Leaves out icons that show something else than other sets do under the same name.
    pub(crate) fn leave_out(&mut self, names: &[&str]) {
        self.icons.retain(|name, _| !names.contains(&name.as_str()));
    }

    /// The icon of a name, through aliases.
    fn icon(&self, name: &str) -> Option<&Icon> {
        let mut name = name;
        // Aliases of aliases end; a ring of them would not.
        for _ in 0..10 {
            if let Some(icon) = self.icons.get(name) {
                return Some(icon);
            }
            let alias = self.aliases.get(name)?;
            if alias.h_flip || alias.v_flip || alias.rotate != 0 {
                return None;
            }
            name = &alias.parent;
        }
        None
    }

    /// Names by code, of a set that says so.
    pub(crate) fn chars(&self) -> &BTreeMap<String, String> {
        &self.chars
    }

    /// An SVG document for each emoji, by code. A set without codes is asked by `names`, which other sets gave: codes by
    /// name.
    pub(crate) fn documents(&self, names: &Names) -> BTreeMap<String, String> {
        let mut documents = BTreeMap::new();
        if self.chars.is_empty() {
            for name in self.icons.keys().chain(self.aliases.keys()) {
                if let (Some(code), Some(icon)) = (names.code(name), self.icon(name)) {
                    documents.entry(code.to_owned()).or_insert_with(|| self.document(icon));
                }
            }
        }
        for (code, name) in &self.chars {
            if let Some(icon) = self.icon(name) {
                documents.insert(code.clone(), self.document(icon));
            }
        }
        documents
    }

    /// The icon as a document of its own; what takes the color of the text around it is black.
    fn document(&self, icon: &Icon) -> String {
        let width = icon.width.or(self.width).unwrap_or(SIDE);
        let height = icon.height.or(self.height).unwrap_or(SIDE);
        let (left, top) = (icon.left.unwrap_or(0.0), icon.top.unwrap_or(0.0));
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" xmlns:xlink=\"http://www.w3.org/1999/xlink\" \
             viewBox=\"{left} {top} {width} {height}\" width=\"{width}\" height=\"{height}\" color=\"#000\">{}</svg>",
            icon.body
        )
    }
}

/// Codes by the names that icon sets use. One that stands for two emoji stands for none.
#[derive(Debug, Default)]
pub(crate) struct Names {
    exact: BTreeMap<String, Option<String>>,
    /// Without dashes.
    joined: BTreeMap<String, Option<String>>,
}

impl Names {
    /// Adds a name of an emoji.
    pub(crate) fn add(&mut self, name: &str, code: &str) {
        for (names, name) in [(&mut self.exact, name.to_owned()), (&mut self.joined, name.replace('-', ""))] {
            let known = names.entry(name).or_insert_with(|| Some(code.to_owned()));
            if known.as_deref() != Some(code) {
                *known = None;
            }
        }
    }

    fn code(&self, name: &str) -> Option<&str> {
        let found = self.exact.get(name).or_else(|| self.joined.get(name))?;
        found.as_deref()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::tests::pack;

    const SET: &[u8] = br#"{"width": 64, "height": 64, "icons": {
        "hammer": {"body": "<path d='M0 0h64v64z'/>"}, "wide": {"body": "<g/>", "width": 72, "left": -4}},
        "aliases": {"mallet": {"parent": "hammer"}, "turned": {"parent": "hammer", "rotate": 1}, "ring": {"parent": "ring"}}}"#;

    #[test]
    fn icons_are_found_by_code_and_through_aliases() {
        let chars = br#"{"1F528-fe0f": "mallet", "1f529": "turned", "1f52a": "ring", "1f52b": "wide"}"#;
        let icons = Icons::read(&pack(&[("icons.json", SET), ("chars.json", chars)])).unwrap();
        let documents = icons.documents(&Names::default());
        assert_eq!(documents.keys().collect::<Vec<_>>(), ["1f528", "1f52b"]);
        assert!(
            documents["1f528"].contains("viewBox=\"0 0 64 64\"")
                && documents["1f528"].ends_with("z'/></svg>")
        );
        assert!(documents["1f52b"].contains("viewBox=\"-4 0 72 64\""));
        let error = Icons::read(&pack(&[("chars.json", chars)])).unwrap_err().to_string();
        assert_eq!(error, "the archive has no icons.json");
    }

    #[test]
    fn a_set_without_codes_is_asked_by_the_names_of_others() {
        let mut icons = Icons::read(&pack(&[("icons.json", SET)])).unwrap();
        let mut names = Names::default();
        names.add("wi-de", "1");
        names.add("mallet", "2");
        assert_eq!(icons.documents(&names).keys().collect::<Vec<_>>(), ["1", "2"]);
        names.add("mallet", "3");
        assert_eq!(icons.documents(&names).keys().collect::<Vec<_>>(), ["1"], "one name of two emoji");
        icons.leave_out(&["wide"]);
        assert!(icons.documents(&names).is_empty());
    }
}
