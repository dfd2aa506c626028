//! How much of a GPU's blocks the rows of real models fill.

use tpgm_core::plan::Plan;
use tpgm_core::{AdamW, DType, Ftp};
use tpgm_cuda::rows_at_a_time;

use crate::Model;

/// Threads of a block on a GPU, and the elements that they hold.
const THREADS: usize = 256;
const CHUNK: usize = 16 * THREADS;

/// Rounds that blocks take for a step under FTP, and the share of what they could hold in them that they do hold.
fn rounds(model: Model, rows_of_a_round: impl Fn(usize) -> usize) -> (usize, f64) {
    let set = model.param_set(DType::F32).expect("the model's set");
    let settings = set.settings(&AdamW::default().into(), &Ftp::default().into()).expect("FTP's settings");
    let plan = Plan::in_rounds(set.tensors(), &settings, CHUNK, rows_of_a_round);
    let (mut rounds, mut elements) = (0, 0);
    for piece in &plan.pieces {
        let tensor = &plan.tensors[piece.tensor];
        let row = if tensor.parts > 1 { piece.end - piece.start } else { tensor.unit_len };
        rounds += piece.units.div_ceil(rows_at_a_time(THREADS, row));
        elements += piece.end - piece.start;
    }
    (rounds, elements as f64 / (rounds * CHUNK) as f64)
}

/// Expected: counted by a Python script of its own, from shapes written down there. Rows of 768 fill three quarters of the
/// threads that hold them, so that no plan does better.
#[test]
fn blocks_are_filled_as_far_as_the_rows_of_real_models_let_them() {
    for (model, before, after) in [
        (Model::VitB16, (39_545, 0.5344), (28_228, 0.7487)),
        (Model::MiniLm, (11_113, 0.4957), (7_399, 0.7446)),
        (Model::ResNet50, (8_578, 0.7274), (8_484, 0.7354)),
        (Model::ClipVitL14, (74_740, 0.9929), (74_502, 0.9961)),
    ] {
        for (in_rounds, (expected_rounds, expected_share)) in [(false, before), (true, after)] {
            let rows = |len| if in_rounds { rows_at_a_time(THREADS, len) } else { 1 };
            let (rounds, share) = rounds(model, rows);
            assert_eq!(rounds, expected_rounds, "{model}, cut in rounds: {in_rounds}");
            assert!((share - expected_share).abs() < 1e-4, "{model}: {share}");
        }
    }
}
