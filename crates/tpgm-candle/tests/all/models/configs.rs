//! What is taken for a model's configuration, and what is not.

use std::path::Path;

use tpgm_candle::models::Activation;
use tpgm_candle::models::bert::BertConfig;
use tpgm_candle::models::clip::{ClipConfig, ClipImageConfig};
use tpgm_candle::models::llama::{Family, LlamaConfig};
use tpgm_candle::models::resnet::ResNetConfig;
use tpgm_candle::models::vit::VitConfig;
use tpgm_candle::nn;

use super::{real_file, written};

/// What each model says of a file.
fn errors(path: &Path) -> [Option<nn::Error>; 5] {
    [
        BertConfig::from_file(path).err(),
        VitConfig::from_file(path).err(),
        ClipConfig::from_file(path).err(),
        LlamaConfig::from_file(path).err(),
        ResNetConfig::from_file(path).err(),
    ]
}

#[test]
fn a_file_with_none_of_the_entries_is_no_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let timm = r#"{"num_classes": 0, "pretrained_cfg": {"input_size": [3, 518, 518]}}"#;
    let tokenizer = r#"{"version": "1.0", "truncation": null, "model": {"vocab": {}}}"#;
    let open_clip = std::fs::read_to_string(real_file("image/open_clip_config.json")).unwrap();
    for text in ["{}", timm, tokenizer, &open_clip, "[]", "null", "3", r#""hidden_size""#] {
        for error in errors(&written(folder.path(), text)) {
            let error = error.unwrap_or_else(|| panic!("{text} is taken for a configuration"));
            assert!(matches!(error, nn::Error::BadFile { .. }), "{text}: {error}");
            assert!(error.to_string().contains("config.json"), "{error}");
        }
    }
    let error = ClipConfig::from_file(real_file("image/open_clip_config.json")).unwrap_err().to_string();
    assert!(error.contains("OpenCLIP") && error.contains("`vision_config`"), "{error}");
    for text in ["", "{", r#"{"hidden_size": }"#, "version https://git-lfs.github.com/spec/v1"] {
        for error in errors(&written(folder.path(), text)) {
            assert!(matches!(error, Some(nn::Error::BadFile { .. })), "{text}");
        }
    }
}

#[test]
fn another_type_is_named_by_every_model() {
    let folder = tempfile::tempdir().unwrap();
    for value in [r#""mpnet""#, r#""siglip""#, r#""mistral""#, r#""deit""#, r#""resnet""#, "7", r#"["bert"]"#]
    {
        let text = format!(
            r#"{{"model_type": {value}, "hidden_size": 8, "text_config": {{}}, "layers": [1, 1, 1, 1]}}"#
        );
        for error in errors(&written(folder.path(), &text)) {
            let Some(nn::Error::ModelType { value: named, .. }) = &error else {
                panic!("{value}: {error:?}")
            };
            assert!(value.contains(named.as_str()), "{error:?}");
        }
    }
    // Those of one model are other models to the others.
    for (text, ours) in [
        (r#"{"model_type": "bert", "hidden_size": 768}"#, 0),
        (r#"{"model_type": "vit", "hidden_size": 768}"#, 1),
        (r#"{"model_type": "clip"}"#, 2),
        (r#"{"model_type": "llama", "hidden_size": 4096}"#, 3),
    ] {
        for (model, error) in errors(&written(folder.path(), text)).into_iter().enumerate() {
            assert_eq!(error.is_none(), model == ours, "{text}: {error:?}");
        }
    }
    // A class is looked at where there is no type, or it is null.
    let text = r#"{"model_type": null, "architectures": ["Qwen2ForCausalLM"]}"#;
    assert_eq!(LlamaConfig::from_file(written(folder.path(), text)).unwrap().model_type, Family::Qwen2);
    let text = r#"{"architectures": ["Qwen2MoeForCausalLM"], "hidden_size": 4096}"#;
    let error = LlamaConfig::from_file(written(folder.path(), text)).unwrap_err().to_string();
    assert!(error.contains("Qwen2MoeForCausalLM"), "{error}");
}

#[test]
fn the_activation_of_clip_is_what_the_file_says() {
    let folder = tempfile::tempdir().unwrap();
    let read = |text: &str| ClipConfig::from_file(written(folder.path(), text));
    let activations = |config: ClipConfig| match config.image {
        ClipImageConfig::Vit(vit) => (config.text.hidden_act, vit.hidden_act),
        ClipImageConfig::ResNet(_) => panic!("a vision transformer is expected"),
    };
    let both = r#"{"text_config": {"hidden_act": "gelu"}, "vision_config": {"hidden_act": "gelu"}}"#;
    assert_eq!(activations(read(both).unwrap()), (Activation::Gelu, Activation::Gelu));
    // Old files of OpenCLIP's models have the entries twice; transformers takes the second.
    let twice = r#"{"model_type": "clip", "text_config": {"hidden_act": "quick_gelu", "model_type": "clip_text_model"},
        "text_config_dict": {"hidden_act": "gelu"}, "vision_config": {"hidden_act": "gelu"}, "vision_config_dict": null}"#;
    assert_eq!(activations(read(twice).unwrap()), (Activation::Gelu, Activation::Gelu));
    assert_eq!(
        activations(ClipConfig::vit_l14(Activation::Gelu)),
        activations(ClipConfig::vit_b16(Activation::Gelu))
    );

    let tower = r#"{"text_config": {"model_type": "siglip_text_model"}, "vision_config": {}}"#;
    let error = read(tower).unwrap_err().to_string();
    assert!(error.contains("siglip_text_model") && error.contains("text tower"), "{error}");
    let number = r#"{"text_config": 3, "vision_config": {}}"#;
    assert!(read(number).unwrap_err().to_string().contains("`text_config`"));
}

#[test]
fn a_resnets_file_has_all_of_its_entries() {
    let folder = tempfile::tempdir().unwrap();
    let config = ResNetConfig::resnet18();
    let text = serde_json::to_string(&config).unwrap();
    assert_eq!(ResNetConfig::from_file(written(folder.path(), &text)).unwrap(), config);
    let error = ResNetConfig::from_file(written(folder.path(), r#"{"width": 64}"#)).unwrap_err().to_string();
    assert!(error.contains("config.json") && error.contains("`block`"), "{error}");
    let text = text.replace("64", "0");
    let error = ResNetConfig::from_file(written(folder.path(), &text)).unwrap_err();
    assert!(matches!(error, nn::Error::ModelConfig { entry: "width", .. }), "{error}");
}

#[test]
fn architectures_of_timm_have_their_sizes() {
    let folder = tempfile::tempdir().unwrap();
    let read = |architecture: &str, more: &str| {
        let text = format!(r#"{{"architecture": "{architecture}", "num_classes": 1000{more}}}"#);
        VitConfig::from_file(written(folder.path(), &text))
    };
    // Sizes are those of timm's `vision_transformer.py` and `deit.py`.
    for (architecture, sizes) in [
        ("vit_base_patch16_224", (768, 12, 12, 16, 224, 0)),
        ("vit_large_patch16_384", (1024, 24, 16, 16, 384, 0)),
        ("vit_small_patch14_dinov2", (384, 12, 6, 14, 518, 0)),
        ("vit_giant_patch14_reg4_dinov2", (1536, 40, 24, 14, 518, 4)),
        ("deit_tiny_patch16_224", (192, 12, 3, 16, 224, 0)),
        ("deit3_base_patch16_384", (768, 12, 12, 16, 384, 0)),
    ] {
        let config = read(architecture, r#", "global_pool": "token""#).unwrap();
        let VitConfig { hidden_size, num_hidden_layers, num_attention_heads, patch_size, image_size, .. } =
            config;
        let registers = config.num_register_tokens;
        let got = (hidden_size, num_hidden_layers, num_attention_heads, patch_size, image_size, registers);
        assert_eq!((got, config.layer_norm_eps), (sizes, 1e-6), "{architecture}");
    }
    let size = r#", "pretrained_cfg": {"input_size": [3, 224, 224]}"#;
    assert_eq!(read("vit_base_patch14_dinov2", size).unwrap().image_size, 224);
    let both = format!(r#"{size}, "model_args": {{"img_size": 448, "init_values": 1e-5}}"#);
    assert_eq!(read("vit_base_patch14_dinov2", &both).unwrap().image_size, 448);

    for architecture in [
        "resnet50",
        "vit_base_patch16_clip_224",
        "vit_giant_patch14_224",
        "vit_small_patch16_18x2_224",
        "deit_base_distilled_patch16_224",
        "vit_base_patchx_224",
        "vit",
        "",
    ] {
        let error = read(architecture, "").unwrap_err();
        assert!(
            matches!(&error, nn::Error::ModelType { entry: "architecture", value, .. } if value == architecture),
            "{architecture}: {error}"
        );
    }
    for (more, named) in [
        (r#", "global_pool": "avg""#, "global_pool"),
        (r#", "model_args": {"qk_norm": true}"#, "model_args"),
        (r#", "model_args": {"img_size": "large"}"#, "input_size"),
        (r#", "model_args": {"img_size": 225}"#, "image_size"),
    ] {
        let error = read("vit_base_patch16_224", more).unwrap_err();
        assert!(matches!(&error, nn::Error::ModelConfig { entry, .. } if *entry == named), "{more}: {error}");
    }
}
