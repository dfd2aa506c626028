//! Samples of a pool that are most like given ones.

use candle_core::{D, DType, Device, Result, Tensor};

use super::distributions::option;
use crate::dtype::cast;
use crate::layers::{matmul_transposed, shape_error};

const OP: &str = "retrieval";

/// Rows of the pool that are compared at once: what is in memory is this times the queries, not the pool times the queries.
const PIECE: usize = 1 << 14;

/// The rows of a pool nearest to each query, the nearest first.
#[derive(Debug, Clone)]
pub struct Retrieved {
    /// Their numbers, u32 of shape (queries, count), on the device of the queries: for `index_select` of whatever belongs to the
    /// pool.
    pub rows: Tensor,
    /// The cosines of their angles, f32 of the same shape.
    pub similarities: Tensor,
}

/// For each query the `count` rows of a pool with the largest cosine similarity: pairs of images and texts that are like the
/// samples at hand, for a contrastive loss on them beside that of the task (ARF, arXiv 2404.06244, which retrieves from a large
/// captioned set by CLIP's features), or the neighbors of a sample.
///
/// `queries` of shape (queries, width) and `pool` of shape (rows, width): features of any floating point type, normalized or
/// not; a row of zeros is like nothing (0). Of equally near rows those with the smaller numbers come first. No gradient reaches
/// them. The pool is taken in pieces; it is never sorted as a whole.
///
/// ```
/// use candle_core::{Device, Tensor};
/// use tpgm_nn::losses::nearest;
///
/// let pool = Tensor::new(&[[1.0f32, 0.0], [0.0, 3.0], [2.0, 2.0]], &Device::Cpu)?;
/// let image = Tensor::new(&[[0.1f32, 0.5]], &Device::Cpu)?;
/// let found = nearest(&image, &pool, 2)?;
/// assert_eq!(found.rows.to_vec2::<u32>()?, [[1, 2]]);
/// let features_of_texts = pool.index_select(&found.rows.flatten_all()?, 0)?; // or texts, or images
/// # Ok::<(), candle_core::Error>(())
/// ```
///
/// # Errors
///
/// If the shapes do not fit, or `count` is not within 1 and the rows of the pool, or a similarity is no number.
pub fn nearest(queries: &Tensor, pool: &Tensor, count: usize) -> Result<Retrieved> {
    let ([_, width], [rows, other]) = (queries.dims(), pool.dims()) else {
        return Err(shape_error(OP, "queries and pool must be matrices of features", &[queries, pool]));
    };
    if width != other || queries.elem_count() == 0 {
        let expected = "queries and pool must have the same width, and there must be a query";
        return Err(shape_error(OP, expected, &[queries, pool]));
    }
    if !(1..=*rows).contains(&count) {
        return Err(option(OP, "the number of rows per query", count as f64, "within 1 and the pool's rows"));
    }
    let device = queries.device();
    let queries = unit(queries)?;
    let mut best: Vec<Vec<(f32, u32)>> = vec![Vec::new(); queries.dim(0)?];
    for start in (0..*rows).step_by(PIECE) {
        let piece = unit(&pool.narrow(0, start, PIECE.min(rows - start))?)?;
        let similar = matmul_transposed(&queries, &piece)?.to_device(&Device::Cpu)?.to_vec2::<f32>()?;
        for (best, similar) in best.iter_mut().zip(similar) {
            best.extend(similar.into_iter().zip(start as u32..));
            if let Some((_, row)) = best.iter().find(|(similarity, _)| similarity.is_nan()) {
                candle_core::bail!(
                    "{OP}: row {row} of the pool, or a query, has features that are no numbers"
                )
            }
            let nearer = |a: &(f32, u32), b: &(f32, u32)| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1));
            if best.len() > count {
                best.select_nth_unstable_by(count - 1, nearer);
                best.truncate(count);
            }
            best.sort_unstable_by(nearer);
        }
    }
    let shape = (best.len(), count);
    let (similarities, rows): (Vec<f32>, Vec<u32>) = best.into_iter().flatten().unzip();
    let similarities = Tensor::from_vec(similarities, shape, device)?;
    Ok(Retrieved { rows: Tensor::from_vec(rows, shape, device)?, similarities })
}

/// Rows divided by their lengths, in f32.
fn unit(x: &Tensor) -> Result<Tensor> {
    let x = cast(&x.detach(), DType::F32)?;
    let length = x.sqr()?.sum_keepdim(D::Minus1)?.sqrt()?;
    x.broadcast_div(&(&length + length.eq(0.0)?.to_dtype(DType::F32)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SplitMix64;

    fn normal(rows: usize, width: usize, seed: u64) -> Tensor {
        let mut random = SplitMix64::new(seed);
        let values: Vec<f32> = (0..rows * width).map(|_| random.normal() as f32).collect();
        Tensor::from_vec(values, (rows, width), &Device::Cpu).unwrap()
    }

    #[test]
    fn all_are_sorted_and_the_first_are_the_nearest() {
        // More than a piece, so that what is best so far meets what comes.
        let (pool, queries) = (normal(PIECE + 300, 3, 1), normal(4, 3, 2));
        let found = nearest(&queries, &pool, 7).unwrap();
        let rows = |x: &Tensor| x.to_vec2::<f32>().unwrap();
        let cosine = |a: &[f32], b: &[f32]| {
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum::<f64>();
            dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
        };
        let numbers = found.rows.to_vec2::<u32>().unwrap();
        for ((query, numbers), similarities) in
            rows(&queries).iter().zip(numbers).zip(rows(&found.similarities))
        {
            let mut all: Vec<f64> = rows(&pool).iter().map(|row| cosine(query, row)).collect();
            for (number, similarity) in numbers.iter().zip(similarities) {
                assert!((all[*number as usize] - f64::from(similarity)).abs() < 1e-5);
            }
            all.sort_by(|a, b| b.total_cmp(a));
            let mut chosen: Vec<f64> =
                numbers.iter().map(|i| cosine(query, &rows(&pool)[*i as usize])).collect();
            assert!(chosen.is_sorted_by(|a, b| *a >= b - 1e-6), "{chosen:?}");
            chosen.sort_by(|a, b| b.total_cmp(a));
            assert!(chosen.iter().zip(&all).all(|(a, b)| (a - b).abs() < 1e-5), "{chosen:?} {:?}", &all[..7]);
        }
    }

    #[test]
    fn lengths_do_not_count_and_ties_go_by_number() {
        let pool = Tensor::new(&[[0.0f64, 0.0], [-1.0, 0.0], [5.0, 0.0], [0.1, 0.0]], &Device::Cpu).unwrap();
        let query = Tensor::new(&[[3.0f32, 0.0]], &Device::Cpu).unwrap();
        let found = nearest(&query, &pool, 4).unwrap();
        assert_eq!(found.rows.to_vec2::<u32>().unwrap(), [[2, 3, 0, 1]]);
        assert_eq!(found.similarities.to_vec2::<f32>().unwrap(), [[1.0, 1.0, 0.0, -1.0]]);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let (pool, queries) = (normal(5, 3, 1), normal(2, 3, 2));
        let nan = (&pool * f64::NAN).unwrap();
        for (result, expected) in [
            (nearest(&queries, &normal(5, 4, 1), 1), "the same width"),
            (nearest(&queries.flatten_all().unwrap(), &pool, 1), "matrices of features"),
            (nearest(&queries, &pool, 0), "the number of rows per query is 0"),
            (nearest(&queries, &pool, 6), "the number of rows per query is 6"),
            (nearest(&queries, &nan, 1), "row 0 of the pool"),
        ] {
            let error = result.err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains(expected), "{error}");
        }
    }
}
