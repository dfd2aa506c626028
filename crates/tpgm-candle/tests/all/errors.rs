//! A problem is one variant of the crate's error, whichever way it came.

use candle_core::{DType, Device, Tensor, Var};
use tpgm_candle::lora::load_adapter;
use tpgm_candle::weight_space::distances;
use tpgm_candle::{
    AdamW, Anchor, Checkpoint, Error, Ftp, Param, Params, RobustOptimizer, Tpgm, TpgmConfig, audit, files,
    memory,
};

const CPU: Device = Device::Cpu;

#[test]
fn a_file_that_is_not_there_is_a_problem_of_files() {
    let folder = tempfile::tempdir().unwrap();
    let nowhere = folder.path().join("nowhere.safetensors");
    let params = Params::default();
    let ways: [Error; 4] = [
        Params::open(&nowhere, &CPU).unwrap_err().into(),
        load_adapter(&nowhere, &params).unwrap_err().into(),
        distances(&nowhere, &nowhere).unwrap_err().into(),
        Checkpoint::load(&nowhere).unwrap_err().into(),
    ];
    for error in ways {
        let text = error.to_string();
        let Error::Files(files::Error::Io { path, .. }) = error else { panic!("{text}") };
        assert!(path.starts_with(&nowhere) && text.contains("nowhere.safetensors"), "{text}");
    }
}

#[test]
fn an_element_type_is_a_problem_of_memory() {
    let var = Var::from_tensor(&Tensor::zeros(3, DType::U32, &CPU).unwrap()).unwrap();
    let params = Params::from_params([Param::new("ids", var, Anchor::None)]).unwrap();
    let ways: [Error; 3] = [
        params.set().unwrap_err().into(),
        RobustOptimizer::new(&params, AdamW::default(), Ftp::default()).err().unwrap().into(),
        Tpgm::new(&params, TpgmConfig::default()).err().unwrap().into(),
    ];
    for error in ways {
        assert!(
            matches!(&error, Error::Memory(memory::Error::ElementType { tensor, .. }) if tensor == "ids"),
            "{error}"
        );
    }
}

#[test]
fn a_loss_is_a_problem_of_the_audit_and_candles_own_errors_stay_candles() {
    let var = Var::new(&[1f32], &CPU).unwrap();
    let params = Params::from_params([Param::anchored_here("w", var.clone()).unwrap()]).unwrap();
    let mut optimizer = RobustOptimizer::new(&params, AdamW::default(), TpgmConfig::default()).unwrap();
    let nan = || var.affine(f64::NAN, 0.0)?.sum_all();
    let ways: [Error; 3] = [
        params.audit(nan).unwrap_err().into(),
        optimizer.backward_step(&nan().unwrap()).unwrap_err().into(),
        optimizer.tpgm().unwrap().update(nan).unwrap_err().into(),
    ];
    for error in ways {
        assert!(matches!(error, Error::Audit(audit::Error::NonFiniteLoss { .. })), "{error}");
    }
    let closure = || Tensor::zeros(2, DType::F32, &CPU)?.reshape(3);
    let ways: [Error; 2] = [
        params.audit(closure).unwrap_err().into(),
        optimizer.tpgm().unwrap().update(closure).unwrap_err().into(),
    ];
    for error in ways {
        assert!(matches!(error, Error::Candle(_)), "{error}");
        // Back in candle's hands it is what it was, not wrapped.
        let text = error.to_string();
        let back = candle_core::Error::from(error);
        assert!(
            !matches!(back, candle_core::Error::Wrapped(_) | candle_core::Error::WrappedContext { .. }),
            "{back:?}"
        );
        assert_eq!(back.to_string(), text);
    }
}
