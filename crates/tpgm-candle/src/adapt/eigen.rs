//! Eigenvalues of small symmetric matrices.

/// Eigenvalues and eigenvectors of a symmetric matrix by Jacobi's rotations (Golub and Van Loan, Matrix Computations, section
/// 8.5): pairs in no order. For matrices of a few rows.
pub(super) fn symmetric(mut a: Vec<Vec<f64>>) -> Vec<(f64, Vec<f64>)> {
    const SWEEPS: usize = 60;
    let n = a.len();
    let mut vectors: Vec<Vec<f64>> =
        (0..n).map(|i| (0..n).map(|j| f64::from(u8::from(i == j))).collect()).collect();
    for _ in 0..SWEEPS {
        let off: f64 = (0..n).flat_map(|i| (0..i).map(move |j| (i, j))).map(|(i, j)| a[i][j].abs()).sum();
        if off == 0.0 {
            break;
        }
        for p in 0..n {
            for q in p + 1..n {
                if a[p][q] == 0.0 {
                    continue;
                }
                let theta = (a[q][q] - a[p][p]) / (2.0 * a[p][q]);
                let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
                let c = 1.0 / (t * t + 1.0).sqrt();
                let s = t * c;
                for row in &mut a {
                    (row[p], row[q]) = (c * row[p] - s * row[q], s * row[p] + c * row[q]);
                }
                turn(&mut a, p, q, c, s);
                // Rows of `vectors` are eigenvectors.
                turn(&mut vectors, p, q, c, s);
            }
        }
    }
    (0..n).map(|i| a[i][i]).zip(vectors).collect()
}

/// Rotates two rows, the first above the second.
fn turn(rows: &mut [Vec<f64>], p: usize, q: usize, c: f64, s: f64) {
    let (above, below) = rows.split_at_mut(q);
    for (x, y) in above[p].iter_mut().zip(&mut below[0]) {
        (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn vectors_are_scaled_by_their_values() {
        let matrices = [
            vec![vec![2.0, -1.0, 0.5], vec![-1.0, 3.0, 1e-9], vec![0.5, 1e-9, -4.0]],
            vec![vec![1.0, 1.0], vec![1.0, 1.0]],
            vec![vec![0.0; 4]; 4],
            vec![vec![7.0]],
        ];
        for a in matrices {
            let pairs = symmetric(a.clone());
            for (value, vector) in &pairs {
                for (row, x) in a.iter().zip(vector) {
                    let product: f64 = row.iter().zip(vector).map(|(a, v)| a * v).sum();
                    assert!((product - value * x).abs() < 1e-14, "{value} {vector:?}");
                }
                let length: f64 = vector.iter().map(|x| x * x).sum();
                assert!((length - 1.0).abs() < 1e-14);
            }
            let trace: f64 = (0..a.len()).map(|i| a[i][i]).sum();
            assert!((pairs.iter().map(|(value, _)| value).sum::<f64>() - trace).abs() < 1e-14);
        }
    }
}
