use tpgm_cuda::layers::{EmbeddingGradients, LabelType};

use super::{DType, Device, Gpu, LAYOUTS, Layers, Matrix, OnDevice, TYPES, assert_near, numbers};
use crate::common::Watched;

/// The gradient of a table of so many rows.
fn gradient(ids: &[i64], grad: &[f64], rows: usize, width: usize) -> Vec<f64> {
    let mut sums = vec![0.0; rows * width];
    for (id, grad) in ids.iter().zip(grad.chunks(width)) {
        let Some(row) = usize::try_from(*id).ok().filter(|&row| row < rows) else { continue };
        let sums = &mut sums[row * width..(row + 1) * width];
        sums.iter_mut().zip(grad).for_each(|(sum, grad)| *sum += grad);
    }
    sums
}

/// Ids of rows with few places and with none, and of one with more than a warp adds up; some that are no row.
fn ids(count: usize, rows: usize, kind: LabelType) -> Vec<i64> {
    let id = |i: usize| match i % 10 {
        0 if kind == LabelType::I64 => [-1, i64::MAX, rows as i64, i64::MIN][i / 10 % 4],
        0 => (rows as i64).min(255),
        1..=4 => (rows / 2) as i64,
        _ => (i * 7919 % rows) as i64,
    };
    (0..count).map(id).collect()
}

fn run<D: Device, E: Device>(
    layers: &Layers<E>,
    gpu: &Gpu<D>,
    ids: &OnDevice<D>,
    grad: &Matrix<D>,
    rows: usize,
    dtype: DType,
) -> Vec<f64> {
    let mut out = Matrix::output(gpu, dtype, rows, grad.width, grad.layout);
    let operands = EmbeddingGradients { ids: ids.labels(), grad: grad.rows(), d_weight: out.rows_mut() };
    layers.embedding_gradient(operands).unwrap();
    out.read(gpu)
}

pub(crate) fn gradients_of_embeddings_are_sums<D: Device>(gpu: &Gpu<D>) {
    let layers = Layers::on(gpu.device().clone());
    // Places, rows of the table and width; more rows than there are blocks that sort.
    let shapes = [(1, 1, 1), (5, 3, 4), (0, 3, 5), (330, 70, 37), (40, 1100, 6), (200, 9, 260)];
    let kinds = [LabelType::U8, LabelType::U32, LabelType::I64];
    for (i, ((places, rows, width), dtype)) in
        shapes.iter().flat_map(|&shape| TYPES.map(|dtype| (shape, dtype))).enumerate()
    {
        let (kind, layout) = (kinds[(i + i / 3) % 3], LAYOUTS[i / 2 % 3]);
        let kind = if rows > 255 && kind == LabelType::U8 { LabelType::U32 } else { kind };
        let (ids, grad) = (ids(places, rows, kind), numbers(1, places * width, 1.0, dtype));
        let on = Matrix::input(gpu, dtype, &grad, width, layout);
        let got = run(&layers, gpu, &OnDevice::new(gpu, &ids, kind), &on, rows, dtype);
        let context = format!("{places} places of {rows} rows of {width}, {kind:?}, {layout:?}");
        assert_near(&got, &gradient(&ids, &grad, rows, width), dtype, 20.0, &context);
    }
}

pub(crate) fn any_number_of_blocks_gives_the_same_embedding<D: Device>(gpu: &Gpu<D>) {
    let (places, rows, width, dtype) = (330, 70, 130, DType::F32);
    let (ids, grad) = (ids(places, rows, LabelType::U32), numbers(1, places * width, 1.0, dtype));
    let (ids, grad) =
        (OnDevice::new(gpu, &ids, LabelType::U32), Matrix::input(gpu, dtype, &grad, width, LAYOUTS[0]));
    let run = |blocks| {
        let layers = Layers::on(Watched::new(gpu.device().clone()).blocks(blocks));
        run(&layers, gpu, &ids, &grad, rows, dtype)
    };
    let one = run(1);
    for blocks in [3, 1000] {
        assert!(run(blocks) == one, "{blocks} blocks differ from one");
    }
}

pub(crate) fn embeddings_refuse_what_does_not_fit<D: Device>(gpu: &Gpu<D>) {
    let layers = Layers::on(gpu.device().clone());
    let grad = Matrix::input(gpu, DType::F32, &[1.0; 12], 4, LAYOUTS[0]);
    let error = |ids: &[i64], width| {
        let mut out = Matrix::output(gpu, DType::F32, 2, width, LAYOUTS[0]);
        let ids = OnDevice::new(gpu, ids, LabelType::U32);
        let operands = EmbeddingGradients { ids: ids.labels(), grad: grad.rows(), d_weight: out.rows_mut() };
        layers.embedding_gradient(operands).map_err(|error| error.to_string())
    };
    assert_eq!(error(&[0, 1, 1], 4), Ok(()));
    assert_eq!(error(&[0, 1], 4).unwrap_err(), "embedding: `ids` has 2 numbers, but 3 are needed");
    assert_eq!(
        error(&[0, 1, 1], 5).unwrap_err(),
        "embedding: `d_weight` has 2 rows of 5, but rows of 4 are needed"
    );
}
