use candle_core::{DType, Device, Module, Result, Tensor, Var};
use tpgm_nn::Embedding;

use crate::gradients::{
    DTYPES, assert_close, check_gradients, compare_gradients, flat, gradients, message, tolerance, values,
};

/// Ids of rows that are taken often, once and never.
fn ids(shape: &[usize], rows: usize, dtype: DType) -> Tensor {
    let id = |i: usize| if i.is_multiple_of(3) { rows / 2 } else { i * 7919 % rows };
    let ids: Vec<u32> = (0..shape.iter().product()).map(|i| id(i) as u32).collect();
    Tensor::from_vec(ids, shape, &Device::Cpu).unwrap().to_dtype(dtype).unwrap()
}

fn lookup(table: &Tensor, ids: &Tensor) -> Result<Tensor> {
    Embedding::new(table.clone()).forward(ids)
}

/// Shape of the ids, rows and width.
const SHAPES: [(&[usize], usize, usize); 6] =
    [(&[1], 1, 1), (&[2, 3], 5, 4), (&[], 3, 2), (&[130], 7, 3), (&[2, 40, 3], 50, 1), (&[150], 6, 9_000)];

#[test]
fn gradients_are_difference_quotients_and_those_of_candle() {
    for (shape, rows, width) in SHAPES {
        for (i, dtype) in DTYPES.into_iter().enumerate() {
            let ids = ids(shape, rows, [DType::U8, DType::U32, DType::I64, DType::U32][i % 4]);
            let table = values((rows, width), 1).to_dtype(dtype).unwrap();
            let slow = |x: &[Tensor]| {
                let mut shape = ids.dims().to_vec();
                shape.push(width);
                x[0].index_select(&ids.flatten_all()?, 0)?.reshape(shape)
            };
            let (y, expected) = (lookup(&table, &ids).unwrap(), slow(std::slice::from_ref(&table)).unwrap());
            assert_eq!(y.dims(), expected.dims());
            assert_close("embedding", &y, &expected, 0.0);
            // candle rounds after every addition.
            let additions = f64::sqrt(ids.elem_count() as f64);
            compare_gradients(
                "embedding",
                &[table],
                tolerance(dtype) * additions.max(1.0) * if dtype == DType::F64 { 1.0 } else { 4.0 },
                |x| lookup(&x[0], &ids),
                slow,
            );
        }
    }
    let ids = ids(&[2, 5], 4, DType::U32);
    check_gradients("embedding", &[values((4, 3), 1)], |x| lookup(&x[0], &ids));
    check_gradients("a strided table", &[values((3, 4), 1)], |x| lookup(&x[0].t()?, &ids));
}

/// By hand: row 1 is taken twice, row 0 once, row 2 never.
#[test]
fn a_gradient_is_the_sum_over_places() {
    let table = Var::from_tensor(&values((3, 2), 1).to_dtype(DType::F32).unwrap()).unwrap();
    let ids = Tensor::new(&[1i64, 0, 1], &Device::Cpu).unwrap();
    let weights = Tensor::new(&[[1f32, 2.0], [10.0, 20.0], [100.0, 200.0]], &Device::Cpu).unwrap();
    let loss = (lookup(table.as_tensor(), &ids).unwrap() * weights).unwrap().sum_all().unwrap();
    let grads = loss.backward().unwrap();
    assert_eq!(flat(grads.get(&table).unwrap()), [10.0, 20.0, 101.0, 202.0, 0.0, 0.0]);
    // A frozen table has none.
    assert!(
        lookup(&table.as_detached_tensor(), &ids)
            .unwrap()
            .sum_all()
            .unwrap()
            .backward()
            .unwrap()
            .get(&table)
            .is_none()
    );
}

#[test]
fn ids_that_do_not_fit_are_refused() {
    let table = values((3, 2), 1);
    let at = |ids: &[u32]| Tensor::new(ids, &Device::Cpu).unwrap();
    let text = message(lookup(&table, &at(&[0, 3])));
    assert!(text.contains('3'), "{text}");
    let floats = values(2, 1);
    assert!(message(lookup(&table, &floats)).contains("ids must be u8, u32 or i64"));
    assert!(message(lookup(&floats, &at(&[0]))).contains("the table must be (rows, width)"));
    let none = Tensor::zeros((0, 4), DType::U32, &Device::Cpu).unwrap();
    assert_eq!(lookup(&table, &none).unwrap().dims(), [0, 4, 2]);
    assert_eq!(gradients(&[table], |x| lookup(&x[0], &none))[0].dims(), [3, 2]);
}
