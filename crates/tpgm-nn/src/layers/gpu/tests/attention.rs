//! What a transformer has around its products: masked softmax, rotary embedding, dropout, embedding.

use candle_core::{DType, Device, Module, ModuleT, Result, Tensor};

use super::{Host, Layer, MARGINS, TYPES, WIDTHS, check, outcome, values};
use crate::layers::{Dropout, DropoutRng, Embedding, masked_softmax, rope, rope_i};

#[test]
fn masked_softmax_is_that_of_the_cpu() {
    let Some(host) = Host::new() else { return };
    /// A number for each key of each batch, or of each query.
    fn mask(scores: &Tensor, of_query: bool) -> Result<Tensor> {
        let (batch, _, queries, keys) = scores.dims4()?;
        let shape = if of_query { [1, 1, queries, keys] } else { [batch, 1, 1, keys] };
        values(&shape, 7, DType::BF16).to_dtype(scores.dtype())
    }
    for keys in WIDTHS {
        let shapes = [vec![2, 2, 3, keys]];
        check(&host, "masked softmax", 2, [1.0, 4.0], &shapes, |t| {
            masked_softmax(&t[0], 0.5, Some(&mask(&t[0], false)?), false)
        });
        let shapes = [vec![2, 2, keys.min(3), keys]];
        check(&host, "causal softmax", 2, [1.0, 4.0], &shapes, |t| {
            masked_softmax(&t[0], 0.5, Some(&mask(&t[0], true)?), true)
        });
    }
}

#[test]
fn rotary_embedding_is_that_of_the_cpu() {
    let Some(host) = Host::new() else { return };
    /// Angles for more steps than there are, the same for all batches or not.
    fn angles(x: &Tensor, steps: usize, of_batch: bool) -> Result<[Tensor; 2]> {
        let (batch, _, _, width) = x.dims4()?;
        let shape = if of_batch { vec![batch, steps + 1, width / 2] } else { vec![steps + 1, width / 2] };
        let angles = values(&shape, 7, DType::BF16);
        let of = |x: Tensor| x.to_dtype(DType::BF16)?.to_dtype(DType::F64);
        let [cos, sin] = [of(angles.cos()?)?, of(angles.sin()?)?];
        Ok([cos.to_dtype(x.dtype())?, sin.to_dtype(x.dtype())?])
    }
    for width in [2, 6, 16, 66] {
        let shapes = [vec![2, 3, 4, width]];
        check(&host, "rope", 2, [1.0, 1.0], &shapes, |t| {
            let [cos, sin] = angles(&t[0], 4, false)?;
            rope(&t[0], &cos, &sin)
        });
        check(&host, "rope_i", 2, [1.0, 1.0], &shapes, |t| {
            let [cos, sin] = angles(&t[0], 4, true)?;
            rope_i(&t[0], &cos, &sin)
        });
        // As attention makes its inputs: (batch, steps, heads, width), transposed and not copied.
        check(&host, "rope of heads beside each other", 2, [1.0, 1.0], &shapes, |t| {
            let [cos, sin] = angles(&t[0], 3, false)?;
            rope(&t[0].transpose(1, 2)?, &cos, &sin)
        });
    }
}

/// Not near: the same elements, and the same bits.
#[test]
fn masks_of_dropout_are_those_of_the_cpu() {
    let Some(host) = Host::new() else { return };
    let layer: Layer = |t| Dropout::new(0.3, &DropoutRng::new(u64::MAX - 5)).unwrap().forward_t(&t[0], true);
    for (shape, dtype) in [vec![1], vec![5, 3], vec![2, 3, 260]].iter().flat_map(|s| TYPES.map(|d| (s, d))) {
        for margins in MARGINS {
            let run = || outcome(layer, std::slice::from_ref(shape), margins, dtype, dtype);
            let ((got, calls), expected) = (host.run(run), run());
            assert_eq!(calls, 2);
            assert_eq!((got.y, got.grads), (expected.y, expected.grads), "{shape:?}, {dtype:?}, {margins:?}");
        }
    }
}

#[test]
fn gradients_of_embeddings_are_those_of_the_cpu() {
    let Some(host) = Host::new() else { return };
    for (rows, width) in [(1, 3), (9, 37), (70, 8)] {
        check(&host, "embedding", 1, [1.0, 1.0], &[vec![rows, width]], |t| {
            let rows = t[0].dim(0)?;
            let ids: Vec<u32> =
                (0..90u32).map(|i| if i.is_multiple_of(2) { 0 } else { i * 7919 % rows as u32 }).collect();
            Embedding::new(t[0].clone()).forward(&Tensor::from_vec(ids, (3, 30), &Device::Cpu)?)
        });
    }
}
