//! Their configurations, sizes and mistakes.

use tpgm_candle::models::efficientnet::{
    EfficientNetClassifier, EfficientNetConfig, EfficientNetGate, EfficientNetLayout,
};
use tpgm_candle::nn::{self, DropoutRng};

use super::{FILE, classifier, tiny, uniform};
use crate::models::{Reference, parameters, written};

use EfficientNetLayout::{EfficientNetPytorch, Timm, TorchvisionV2, TorchvisionV3};

#[test]
fn sizes_are_the_published_ones() {
    for (config, layout, count) in [
        (EfficientNetConfig::lite0(), EfficientNetPytorch, 4_652_008),
        (EfficientNetConfig::b0(), EfficientNetPytorch, 5_288_548),
        (EfficientNetConfig::mobilenet_v2(), TorchvisionV2, 3_504_872),
        (EfficientNetConfig::mobilenet_v3_small(), TorchvisionV3, 2_542_856),
        (EfficientNetConfig::mobilenet_v3_large(), Timm, 5_483_032),
    ] {
        let rng = DropoutRng::new(0);
        let found = parameters(|vb| EfficientNetClassifier::with_layout(&config, 1000, layout, &rng, vb));
        assert_eq!(found, count, "{layout:?}");
    }
}

#[test]
fn configurations_are_read_and_mistakes_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let read = |text: &str| EfficientNetConfig::from_file(written(folder.path(), text));
    for (name, expected) in [
        ("tf_efficientnet_lite0", EfficientNetConfig::lite0()),
        ("efficientnet_lite4", EfficientNetConfig::lite4().pytorch()),
        ("tf_efficientnet_b0", EfficientNetConfig::b0()),
        ("efficientnet_b0", EfficientNetConfig::b0().pytorch()),
        ("mobilenetv2_100", EfficientNetConfig::mobilenet_v2()),
        ("mobilenetv3_small_100", EfficientNetConfig::mobilenet_v3_small().pytorch()),
        ("tf_mobilenetv3_large_100", EfficientNetConfig::mobilenet_v3_large().tensorflow()),
    ] {
        let config = read(&format!(
            r#"{{"architecture": "{name}", "num_classes": 1000, "global_pool": "avg", "pretrained_cfg": {{}}}}"#
        ));
        assert_eq!(config.unwrap(), expected, "{name}");
    }
    let own = EfficientNetConfig { drop_connect: 0.2, ..EfficientNetConfig::mobilenet_v3_small() };
    assert_eq!(read(&serde_json::to_string(&own).unwrap()).unwrap(), own);
    assert_eq!((own.gate, own.features()), (EfficientNetGate::HardSigmoid, 1024));

    let error = |text: &str| read(text).unwrap_err().to_string();
    for (text, parts) in [
        (r#"{"architecture": "efficientnet_b7"}"#, ["efficientnet_b7", "[tf_]efficientnet_b0"]),
        (r#"{"architecture": "tf_mobilenetv2_100"}"#, ["tf_mobilenetv2_100", "mobilenetv2_100"]),
        (r#"{"model_type": "efficientnet"}"#, ["`model_type`", "efficientnet"]),
        (r#"{"architecture": "efficientnet_b0", "global_pool": "max"}"#, ["`global_pool`", "max"]),
        (
            r#"{"architecture": "efficientnet_b0", "model_args": {"pad_type": "same"}}"#,
            ["`model_args`", "pad_type"],
        ),
        (r#"{"stem": 32}"#, ["config.json", "channels"]),
        ("{}", ["neither", "`stages`"]),
    ] {
        let error = error(text);
        assert!(parts.iter().all(|part| error.contains(part)), "{text}: {error}");
    }
    type Change = fn(&mut EfficientNetConfig);
    let changes: [(Change, &str); 12] = [
        (|c| c.channels = 0, "`channels`"),
        (|c| c.stem = 0, "`stem`"),
        (|c| c.last = 1 << 30, "`last`"),
        (|c| c.hidden = Some(0), "`hidden`"),
        (|c| c.stages.clear(), "`stages`"),
        (|c| c.stages[1].clear(), "`stages`"),
        (|c| c.stages[2][1].kernel = 4, "`stages`: stage 2, block 1: `kernel` is 4"),
        (|c| c.stages[2][1].squeezed = Some(0), "stage 2, block 1: `squeezed`"),
        (|c| c.norm_eps = 0.0, "`norm_eps`"),
        (|c| c.norm_momentum = 1.5, "`norm_momentum`"),
        (|c| c.dropout = 1.0, "`dropout`"),
        (|c| c.drop_connect = -0.1, "`drop_connect`"),
    ];
    for (change, part) in changes {
        let mut config = EfficientNetConfig::lite0();
        change(&mut config);
        let error = config.validate().unwrap_err().to_string();
        assert!(error.contains(part), "{part}: {error}");
    }
}

#[test]
fn what_does_not_fit_the_names_is_said() {
    let refused = |name: &'static str, config: EfficientNetConfig, part: &str| {
        let params = Reference::of(FILE, name).params();
        let error = EfficientNetClassifier::new(&config, 5, &DropoutRng::new(0), params.var_builder());
        let error = error.unwrap_err();
        assert!(matches!(error, nn::Error::ModelConfig { .. }), "{name}: {error}");
        assert!(error.to_string().contains(part), "{name}: {error}");
    };
    refused("package_lite", tiny("package_lite").0.pytorch(), "`padding`");
    refused("torchvision_b", tiny("torchvision_b").0.tensorflow(), "`padding`");
    refused("torchvision_b", EfficientNetConfig { hidden: Some(8), ..tiny("torchvision_b").0 }, "`hidden`");
    refused("torchvision_v3", EfficientNetConfig { hidden: None, ..tiny("torchvision_v3").0 }, "`hidden`");
    refused("torchvision_v2", EfficientNetConfig::b0().pytorch(), "`squeezed`");

    let params = Reference::of(FILE, "timm_lite").params();
    let (config, _) = tiny("timm_lite");
    let within = params.var_builder().pp("model");
    let error = EfficientNetClassifier::new(&config, 5, &DropoutRng::new(0), within).unwrap_err().to_string();
    for part in ["`model`", "_conv_stem.weight", "conv_stem.weight", "features.1.block.0.0.weight"] {
        assert!(error.contains(part), "{error}");
    }
    // A network of another shape: the tensor is named.
    let other = EfficientNetClassifier::new(
        &EfficientNetConfig::lite0().pytorch(),
        5,
        &DropoutRng::new(0),
        params.var_builder(),
    );
    let error = other.unwrap_err().to_string();
    assert!(error.contains("`blocks.0.0.conv_dw.weight`") && error.contains("[32, 1, 3, 3]"), "{error}");
    let model = classifier(&config, &params);
    let error = model.forward(&uniform("images", &[1, 4, 8, 8]), false).unwrap_err().to_string();
    assert!(error.contains("[1, 4, 8, 8]") && error.contains("(batch, 3, height, width)"), "{error}");
}
