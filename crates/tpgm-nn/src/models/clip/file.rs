//! The `config.json` of CLIP from Hugging Face.

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{ClipConfig, ClipImageConfig, ClipTextConfig, ClipVitConfig};
use crate::error::{Error, Result};
use crate::models::config::{Entries, Kind};

/// What a `config.json` from Hugging Face has.
#[derive(Serialize, Deserialize)]
#[serde(default)]
struct HuggingFace {
    projection_dim: usize,
    text_config: ClipTextConfig,
    vision_config: ClipVitConfig,
}

impl Default for HuggingFace {
    fn default() -> Self {
        Self { projection_dim: 512, text_config: Default::default(), vision_config: Default::default() }
    }
}

const KIND: Kind = Kind {
    what: "the configuration of a CLIP model",
    types: &[("clip", "CLIP")],
    entries: &["projection_dim", "text_config", "vision_config", "text_config_dict", "vision_config_dict"],
};

/// The entries of a tower. Old files have them twice, and those of `..._dict` count.
fn tower(path: &Path, entries: &mut Entries, [name, old]: [&str; 2], kind: &Kind) -> Result<()> {
    let mut tower = match entries.remove(name) {
        Some(Value::Object(tower)) => tower,
        None | Some(Value::Null) => Entries::new(),
        Some(_) => return Err(Error::file(path, KIND.what, format!("`{name}` is no object"))),
    };
    if let Some(Value::Object(old)) = entries.remove(old) {
        tower.extend(old);
    }
    kind.check_type(path, &tower)?;
    entries.insert(name.to_owned(), Value::Object(tower));
    Ok(())
}

const TEXT: Kind = Kind {
    what: "the configuration of CLIP's text tower",
    types: &[("clip_text_model", "CLIPText")],
    entries: &[],
};

const IMAGE: Kind = Kind {
    what: "the configuration of CLIP's image tower",
    types: &[("clip_vision_model", "CLIPVision")],
    entries: &[],
};

/// What a file says, not yet checked.
pub(super) fn read(path: &Path) -> Result<ClipConfig> {
    let mut entries = KIND.read(path)?;
    tower(path, &mut entries, ["text_config", "text_config_dict"], &TEXT)?;
    tower(path, &mut entries, ["vision_config", "vision_config_dict"], &IMAGE)?;
    let HuggingFace { projection_dim, text_config, vision_config } =
        KIND.parse(path, entries, &HuggingFace::default())?;
    Ok(ClipConfig { projection_dim, text: text_config, image: ClipImageConfig::Vit(vision_config) })
}
