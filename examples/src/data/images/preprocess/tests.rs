use std::path::Path;

use super::*;

fn parsed(text: &str) -> Preprocessing {
    Preprocessing::parse(text.as_bytes()).unwrap().unwrap()
}

fn error(text: &str) -> String {
    format!("{:#}", Preprocessing::parse(text.as_bytes()).unwrap_err())
}

fn transform(text: &str, usual: Transform) -> Transform {
    parsed(text).transform(usual, None).unwrap()
}

/// The files of well-known models of the hub, with their numbers.
#[test]
fn files_of_hugging_face_are_understood() {
    let vit = transform(
        r#"{"do_normalize": true, "do_resize": true, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5],
            "size": 224}"#,
        Transform::IMAGENET,
    );
    let expected = Transform { squash: true, ..Transform::VIT };
    assert_eq!(vit, expected);
    let vit = r#"{"image_processor_type": "ViTImageProcessor", "do_rescale": true, "rescale_factor": 0.00392156862745098,
        "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 2, "size": {"height": 224, "width": 224}}"#;
    assert_eq!(
        transform(vit, Transform::CLIP),
        Transform { squash: true, resample: Resample::Bilinear, ..Transform::VIT }
    );
    let clip = r#"{"crop_size": 224, "do_center_crop": true, "do_normalize": true, "do_resize": true, "resample": 3,
        "feature_extractor_type": "CLIPFeatureExtractor", "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711], "size": 224}"#;
    assert_eq!(transform(clip, Transform::VIT), Transform::CLIP);
    let dino = r#"{"crop_size": {"height": 224, "width": 224}, "do_center_crop": true, "do_convert_rgb": true,
        "do_normalize": true, "do_rescale": true, "do_resize": true, "image_mean": [0.485, 0.456, 0.406],
        "image_processor_type": "BitImageProcessor", "image_std": [0.229, 0.224, 0.225], "resample": 3,
        "rescale_factor": 0.00392156862745098, "size": {"shortest_edge": 256}}"#;
    assert_eq!(transform(dino, Transform::VIT), Transform::IMAGENET);
    assert_eq!(parsed(&format!(r#"{{"image_processor": {dino}, "processor_class": "X"}}"#)), parsed(dino));
    // A network of other images: in proportion.
    let large = parsed(dino).transform(Transform::VIT, Some(518)).unwrap();
    assert_eq!((large.side, large.resize), (518, 592));
    let convnext = r#"{"feature_extractor_type": "ConvNextFeatureExtractor", "crop_pct": 0.875, "do_normalize": true,
        "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225], "resample": 3, "size": 224}"#;
    assert_eq!(transform(convnext, Transform::VIT), Transform::IMAGENET);
    let deit = transform(
        r#"{"feature_extractor_type": "DeiTFeatureExtractor", "crop_size": 224, "do_center_crop": true, "size": 256}"#,
        Transform::VIT,
    );
    assert_eq!((deit.side, deit.resize, deit.squash), (224, 256, true));
}

#[test]
fn normalization_is_of_values_from_0_to_1() {
    let close = |a: [f32; 3], b: f32| a.iter().all(|a| (a - b).abs() < 1e-6);
    // p / 127.5 - 1, with a mean and a deviation of its own: (p / 127.5 - 1 - 0.5) / 0.25.
    let offset = r#"{"do_normalize": true, "rescale_factor": 0.00784313725490196, "rescale_offset": true,
        "image_mean": 0.5, "image_std": [0.25]}"#;
    let found = transform(offset, Transform::VIT);
    assert!(close(found.mean, 0.75) && close(found.deviation, 0.125), "{found:?}");
    // Of pixels as they are.
    let raw = r#"{"do_rescale": false, "image_mean": [127.5, 127.5, 127.5], "image_std": [51, 51, 51]}"#;
    let found = transform(raw, Transform::VIT);
    assert!(close(found.mean, 0.5) && close(found.deviation, 0.2), "{found:?}");
    let none = transform(r#"{"do_normalize": false, "image_mean": [0.5, 0.5, 0.5]}"#, Transform::VIT);
    assert!(close(none.mean, 0.0) && close(none.deviation, 1.0), "{none:?}");
}

#[test]
fn files_of_timm_and_openclip_are_understood() {
    let new = r#"{"architecture": "vit_base_patch16_224", "num_classes": 1000, "pretrained_cfg": {
        "tag": "augreg", "input_size": [3, 224, 224], "interpolation": "bicubic", "crop_pct": 0.9, "crop_mode": "center",
        "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}}"#;
    assert_eq!(transform(new, Transform::CLIP), Transform { resize: 248, ..Transform::VIT });
    let old = r#"{"architecture": "resnet50", "input_size": [3, 160, 160], "interpolation": "bilinear", "crop_pct": 0.95,
        "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}"#;
    let expected = Transform { side: 160, resize: 168, resample: Resample::Bilinear, ..Transform::IMAGENET };
    assert_eq!(transform(old, Transform::CLIP), expected);
    let squash =
        r#"{"pretrained_cfg": {"input_size": [3, 384, 384], "crop_pct": 1.0, "crop_mode": "squash"}}"#;
    let found = transform(squash, Transform::CLIP);
    assert_eq!((found.side, found.resize, found.squash, found.mean), (384, 384, true, Transform::CLIP.mean));

    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/real_files/image/open_clip_config.json");
    let found = Preprocessing::of_file(&path).unwrap().unwrap();
    assert_eq!(found.transform(Transform::CLIP, None).unwrap(), Transform::VIT);
    let siglip = r#"{"model_cfg": {}, "preprocess_cfg": {"size": [256, 256], "resize_mode": "squash"}}"#;
    let found = transform(siglip, Transform::CLIP);
    assert_eq!((found.side, found.resize, found.squash), (256, 256, true));
}

#[test]
fn what_is_beside_a_model_is_found() {
    let model = |name: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/real_files/image").join(name);
    // Its `config.json` is that of the network.
    assert_eq!(Preprocessing::beside(&model("vit")).unwrap(), None);
    let (path, found) = Preprocessing::beside(&model("vit_dino_norm")).unwrap().unwrap();
    assert!(path.ends_with("preprocessor_config.json"));
    let found = found.transform(Transform::VIT, Some(8)).unwrap();
    assert_eq!((found.mean, found.deviation), (Transform::IMAGENET.mean, Transform::IMAGENET.deviation));
    assert_eq!((found.side, found.resize), (8, 8));
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("preprocessor_config.json"), "[").unwrap();
    let error = format!("{:#}", Preprocessing::beside(folder.path()).unwrap_err());
    assert!(error.contains("preprocessor_config.json: is no JSON object"), "{error}");
    std::fs::write(folder.path().join("preprocessor_config.json"), r#"{"sampling_rate": 16000}"#).unwrap();
    let error = format!("{:#}", Preprocessing::beside(folder.path()).unwrap_err());
    assert!(error.contains("preprocessor_config.json does not say how images are prepared"), "{error}");
}

#[test]
fn what_is_not_supported_is_named() {
    for (text, part) in [
        (r#"{"do_resize": false}"#, "`do_resize` is false"),
        (r#"{"do_resize": "yes"}"#, "`do_resize` is neither true nor false"),
        (r#"{"image_mean": [0.5, 0.5]}"#, "`image_mean` is [0.5,0.5]"),
        (r#"{"image_std": [0.5, 0, 0.5]}"#, "`image_std`"),
        (r#"{"image_mean": "half"}"#, "`image_mean`"),
        (r#"{"do_normalize": true, "size": {"height": 224, "width": 448}}"#, "only square"),
        (
            r#"{"do_normalize": true, "size": {"shortest_edge": 224}, "do_center_crop": false}"#,
            "not be square",
        ),
        (r#"{"do_normalize": true, "size": {"longest_edge": 224}}"#, "`size`"),
        (r#"{"do_normalize": true, "size": {"shortest_edge": 224, "longest_edge": 300}}"#, "`size`"),
        (r#"{"do_normalize": true, "size": -1}"#, "`size`"),
        (r#"{"do_normalize": true, "size": 100000000}"#, "`size` has 100000000 pixels"),
        (r#"{"do_normalize": true, "size": 0}"#, "`size` has 0 pixels"),
        (r#"{"do_normalize": true, "resample": 5}"#, "`resample` is 5"),
        (r#"{"do_normalize": true, "rescale_factor": 0}"#, "`rescale_factor`"),
        (r#"{"do_normalize": true, "rescale_factor": 1}"#, "`rescale_factor` is unusual"),
        (r#"{"pretrained_cfg": {"input_size": [1, 28, 28]}}"#, "`pretrained_cfg`: `input_size`"),
        (r#"{"pretrained_cfg": {"input_size": [3, 28, 28], "crop_pct": 0}}"#, "`crop_pct`"),
        (r#"{"pretrained_cfg": {"input_size": [3, 28, 28], "crop_mode": "border"}}"#, "`border`"),
        (r#"{"pretrained_cfg": 1}"#, "`pretrained_cfg` is no object"),
        (r#"{"preprocess_cfg": {"resize_mode": "longest"}}"#, "`preprocess_cfg`: `resize_mode`"),
    ] {
        let error = error(text);
        assert!(error.contains(part), "{text}: {error}");
    }
    let padded = parsed(r#"{"do_normalize": true, "size": {"shortest_edge": 200}, "crop_size": 224}"#);
    let error = padded.transform(Transform::VIT, None).unwrap_err().to_string();
    assert!(error.contains("padding is not supported"), "{error}");
    assert_eq!(Preprocessing::parse(br#"{"hidden_size": 8, "image_size": 8}"#).unwrap(), None);
}
