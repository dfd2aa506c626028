//! Small models and data made on the spot, for `--quick`: to see that an example works, not how well. Nothing is downloaded.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use candle_core::Device;
use image::{Rgb, RgbImage};
use serde_json::{Value, json};
use tpgm_candle::Params;
use tpgm_candle::models::bert::{Bert, BertConfig};
use tpgm_candle::models::vit::{Vit, VitConfig, VitLayout};
use tpgm_candle::nn::DropoutRng;

use crate::files;

/// Seed of the models' values.
const SEED: u64 = 0;

/// Words of each class of the texts; those of the second row are rarer, and make up the shifted texts.
const WORDS: [[[&str; 2]; 2]; 3] = [
    [["draw", "paint"], ["sketch", "pixel"]],
    [["shoot", "jump"], ["level", "score"]],
    [["mail", "chat"], ["packet", "router"]],
];
const TOPICS: [&str; 3] = ["graphics", "games", "networks"];

/// Writes a sentence encoder without training, and texts of three classes. Returns the options of `finetune_text` that name them, and
/// those of a short run.
///
/// # Errors
///
/// Files that cannot be written.
pub fn texts(folder: &Path) -> Result<Vec<String>> {
    let model = folder.join("model");
    let words: Vec<&str> = ["[PAD]", "[UNK]", "[CLS]"]
        .into_iter()
        .chain(WORDS.as_flattened().as_flattened().iter().copied())
        .collect();
    let config = json!({"model_type": "bert", "vocab_size": words.len(), "hidden_size": 32, "num_hidden_layers": 2,
        "num_attention_heads": 4, "intermediate_size": 64, "max_position_embeddings": 32, "type_vocab_size": 2});
    files::write_json(&model.join("config.json"), &config)?;
    files::write(&model.join("tokenizer.json"), tokenizer(&words, [Some("[CLS]"), None]))?;
    let config = BertConfig::from_file(model.join("config.json"))?;
    untrained(&model, |params| {
        Bert::new(&config, &DropoutRng::new(SEED), params.var_builder())?;
        Ok(())
    })?;
    for (name, count, shifted) in
        [("train", 240, false), ("held_out", 96, false), ("id", 90, false), ("rare", 90, true)]
    {
        let mut csv = "label,text\n".to_owned();
        for number in 0..count {
            let (class, rare) = (number % 3, if shifted { number % 4 > 0 } else { number % 4 == 0 });
            let words =
                (0..2 + number % 4).map(|word| WORDS[class][usize::from(rare)][(number / 3 + word) % 2]);
            csv += &format!("{},{}\n", TOPICS[class], words.collect::<Vec<_>>().join(" "));
        }
        files::write(&folder.join(name).with_extension("csv"), csv)?;
    }
    let file = |name: &str| folder.join(name).with_extension("csv");
    let mut options =
        options(&[("--model", &model), ("--train", &file("train")), ("--held-out", &file("held_out"))]);
    options.extend(["--test".to_owned(), format!("id={}", file("id").display())]);
    options.extend(["--test".to_owned(), format!("rare={}", file("rare").display())]);
    options.extend(["--epochs", "2", "--max-length", "16"].map(str::to_owned));
    Ok(options)
}

/// Writes a vision transformer without training, and images of three classes, each with a color of its own. Returns the options of
/// `finetune_image` that name them, and those of a short run.
///
/// # Errors
///
/// Files that cannot be written.
pub fn images(folder: &Path) -> Result<Vec<String>> {
    let model = folder.join("model");
    let config = json!({"model_type": "vit", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64, "image_size": 16, "patch_size": 4});
    files::write_json(&model.join("config.json"), &config)?;
    let config = VitConfig::from_file(model.join("config.json"))?;
    untrained(&model, |params| {
        let (layout, dropout) = (VitLayout::HuggingFace, DropoutRng::new(SEED));
        Vit::with_layout(&config, layout, &dropout, params.var_builder())?;
        Ok(())
    })?;
    for (name, count, shade) in [("train", 40, 30), ("held_out", 16, 30), ("id", 16, 30), ("bright", 16, 120)]
    {
        for (class, color) in ["red", "green", "blue"].into_iter().enumerate() {
            let folder = folder.join(name).join(color);
            fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
            for number in 0..count {
                let image = RgbImage::from_fn(20, 20, |x, y| {
                    let mut pixel = [shade; 3];
                    pixel[class] = 110 + (x * 7 + y * 5 + number * 11) as u8 % 80;
                    Rgb(pixel)
                });
                let path = folder.join(format!("{number}.png"));
                image.save(&path).with_context(|| format!("cannot write {}", path.display()))?;
            }
        }
    }
    let set = |name: &str| folder.join(name);
    let mut options =
        options(&[("--model", &model), ("--train", &set("train")), ("--held-out", &set("held_out"))]);
    options.extend(["--test".to_owned(), format!("id={}", set("id").display())]);
    options.extend(["--test".to_owned(), format!("bright={}", set("bright").display())]);
    options.extend(["--arch", "vit", "--epochs", "2", "--batch", "16"].map(str::to_owned));
    Ok(options)
}

fn options(paths: &[(&str, &Path)]) -> Vec<String> {
    paths.iter().flat_map(|(name, path)| [(*name).to_owned(), path.display().to_string()]).collect()
}

/// Writes the weights that a model begins with.
fn untrained(folder: &Path, build: impl FnOnce(&Params) -> Result<()>) -> Result<()> {
    let params = Params::new(&Device::Cpu).head("*").seed(SEED);
    build(&params)?;
    let weights = params.tensors().into_iter().collect();
    let path = folder.join("model.safetensors");
    candle_core::safetensors::save(&weights, &path)
        .with_context(|| format!("cannot write {}", path.display()))
}

/// A `tokenizer.json` that knows some words; their ids are their positions. A text gets the special tokens around it.
pub fn tokenizer(words: &[&str], [start, end]: [Option<&str>; 2]) -> String {
    let vocabulary: BTreeMap<_, _> = words.iter().enumerate().map(|(id, word)| (*word, id)).collect();
    let piece = |token: &str| json!({"SpecialToken": {"id": token, "type_id": 0}});
    let text = |id: &str| json!({"Sequence": {"id": id, "type_id": 0}});
    let around = |texts: Vec<Value>| {
        let (start, end) = (start.iter().map(|token| piece(token)), end.iter().map(|token| piece(token)));
        start.chain(texts).chain(end).collect::<Vec<_>>()
    };
    let special = |token: &&str| {
        ((*token).to_owned(), json!({"id": token, "ids": [vocabulary[token]], "tokens": [token]}))
    };
    let specials: serde_json::Map<_, _> = [start, end].iter().flatten().map(special).collect();
    let content = json!({
        "version": "1.0", "added_tokens": [], "normalizer": {"type": "Lowercase"}, "decoder": null,
        "truncation": null, "padding": null, "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {"type": "TemplateProcessing", "special_tokens": specials,
            "single": around(vec![text("A")]), "pair": around(vec![text("A"), text("B")])},
        "model": {"type": "WordLevel", "vocab": vocabulary, "unk_token": "[UNK]"},
    });
    content.to_string()
}
