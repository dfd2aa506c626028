//! Tensors of a checkpoint that a model leaves alone.

#![allow(clippy::unwrap_used)] // helpers of tests

use candle_core::{DType, Device, Tensor};
use candle_nn::layer_norm;
use tempfile::TempDir;
use tpgm_candle::{AdamW, Ftp, Params, RobustOptimizer, Tpgm, TpgmConfig};

use crate::files::{ramp, save};

const CPU: Device = Device::Cpu;

/// A transformer's block with LayerScale and a normalization of queries, as DINOv2 and timm have them, and much that a model
/// may leave alone.
#[test]
fn a_block_is_taken_whole_or_not_at_all() {
    let folder = TempDir::new().unwrap();
    let vector = || ramp(&[2], DType::F32);
    let open = |more: &[&str]| {
        let mut tensors = vec![("blocks.3.norm1.weight", vector()), ("blocks.3.norm1.bias", vector())];
        tensors.extend(more.iter().map(|name| (*name, vector())));
        let ids = Tensor::new(&[[0i64, 1]], &CPU).unwrap();
        tensors.push(("blocks.3.position_bins", ids));
        let params = Params::open(save(&folder.path().join("w.safetensors"), &tensors), &CPU).unwrap();
        layer_norm(2, 1e-5, params.var_builder().pp("blocks.3.norm1")).unwrap();
        params
    };
    let harmless = ["head.weight", "cls.predictions.bias", "pooler.dense.weight", "blocks.4.ls1.gamma"];
    let params = open(&harmless);
    assert_eq!(params.report().unwrap().unused.len(), 5);
    params.set().unwrap();
    RobustOptimizer::new(&params, AdamW::default(), Ftp::default()).unwrap();

    let params = open(&["blocks.3.ls1.gamma", "blocks.3.attn.q_norm.weight", "head.weight"]);
    let ways = [
        params.report().map(drop).unwrap_err().to_string(),
        params.set().map(drop).unwrap_err().to_string(),
        RobustOptimizer::new(&params, AdamW::default(), Ftp::default()).err().unwrap().to_string(),
        Tpgm::new(&params, TpgmConfig::default()).err().unwrap().to_string(),
    ];
    for text in ways {
        assert!(text.contains("w.safetensors") && text.contains("Params::unused"), "{text}");
        assert!(text.contains("with `blocks.3.attn.q_norm.weight`, `blocks.3.ls1.gamma`, but"), "{text}");
    }
    let params = params.unused("*.ls1.gamma");
    let error = params.report().unwrap_err();
    assert!(
        matches!(&error, tpgm_candle::params::Error::LeftOut { tensors, .. } if tensors == &["blocks.3.attn.q_norm.weight"]),
        "{error}"
    );
    let params = params.unused("*.q_norm.*");
    params.set().unwrap();
    assert_eq!(params.report().unwrap().unused.len(), 4);
    // A head that starts anew waives what the file has in its place.
    open(&["blocks.3.norm1.extra"]).head("blocks.3.norm1.extra").report().unwrap_err();
    let params = open(&["blocks.3.fc.weight", "blocks.3.fc.bias"]).head("blocks.3.fc.*");
    params.var_builder().get(7, "blocks.3.fc.weight").unwrap();
    params.report().unwrap();
}
