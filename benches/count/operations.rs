//! candle's operations, and its backward pass of each.

use super::tape::{How, T, Tape};

/// Element by element, of two tensors of one shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Two {
    Add,
    Sub,
    Mul,
    Div,
}

/// Element by element, of one tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum One {
    Affine,
    Exp,
    Log,
    Sqr,
    Sqrt,
    GeluErf,
    Silu,
}

impl Tape {
    pub(super) fn two(&mut self, two: Two, a: &T, b: &T) -> T {
        assert_eq!(a.dims, b.dims, "{two:?}");
        let y = self.node(&a.dims, a.element, &[a, b]);
        let bytes = y.bytes();
        match (two, self.how) {
            // A sum of two branches of a network.
            (Two::Add, How::Floor) if a.tracked && b.tracked && a.held == b.held => {
                self.forward(0, 2 * bytes)
            }
            _ => self.spend(1, a.held + b.held + bytes),
        }
        if !y.tracked {
            return y;
        }
        match two {
            Two::Add | Two::Sub => {}
            Two::Mul => {
                self.spend_back(1, bytes + b.held + bytes);
                self.spend_back(1, bytes + a.held + bytes);
            }
            Two::Div => {
                self.spend_back(1, bytes + b.held + bytes);
                // grad * a / b^2
                self.spend_back(1, bytes + a.held + bytes);
                self.spend_back(1, b.held + bytes);
                self.spend_back(1, 3 * bytes);
            }
        }
        self.edge(a);
        self.edge(b);
        y
    }

    /// As candle's operations that broadcast.
    pub(super) fn broadcast_two(&mut self, two: Two, a: &T, b: &T) -> T {
        let rank = a.dims.len().max(b.dims.len());
        let size = |t: &T, i: usize| (i + t.dims.len()).checked_sub(rank).map_or(1, |i| t.dims[i]);
        let dims: Vec<usize> = (0..rank).map(|i| size(a, i).max(size(b, i))).collect();
        let wide = |tape: &mut Self, t: &T| if t.dims == dims { t.clone() } else { tape.broadcast(t, &dims) };
        let (a, b) = (wide(self, a), wide(self, b));
        self.two(two, &a, &b)
    }

    pub(super) fn broadcast(&mut self, x: &T, dims: &[usize]) -> T {
        let y = self.node(dims, x.element, &[x]);
        if y.tracked {
            self.spend_back(1, y.bytes() + x.bytes());
            self.edge(x);
        }
        T { held: x.held, dense: false, ..y }
    }

    pub(super) fn one(&mut self, one: One, x: &T) -> T {
        let y = self.node(&x.dims, x.element, &[x]);
        let bytes = y.bytes();
        self.spend(1, x.held + bytes);
        if !y.tracked {
            return y;
        }
        // Launches, and tensors that they read and write.
        let (launches, tensors) = match one {
            One::Affine => (1, 2),
            One::Exp | One::Log => (1, 3),
            // A product or a quotient, and a factor.
            One::Sqr | One::Sqrt => (2, 3 + 2),
            // x^2, its sign, its half, e of it, a factor, times x; x / sqrt(2), erf, a half of it; a half more, both added; times grad.
            One::GeluErf => (12, 2 + 2 + 2 + 2 + 2 + 3 + 2 + 2 + 2 + 2 + 3 + 3),
            // -x, e of it, one more, one over it; one less y, times it, y more; times grad.
            One::Silu => (8, 2 + 2 + 2 + 2 + 2 + 3 + 3 + 3),
        };
        self.spend_back(launches, tensors * bytes);
        self.edge(x);
        y
    }

    /// Another element type.
    pub(super) fn cast(&mut self, x: &T, element: u64) -> T {
        if x.element == element {
            return x.clone();
        }
        let y = self.node(&x.dims, element, &[x]);
        self.spend(1, x.held + y.bytes());
        if y.tracked {
            self.spend_back(1, y.bytes() + x.bytes());
            self.edge(x);
        }
        y
    }

    /// Sums of the last dimension, which stays with one element.
    pub(super) fn sum_last(&mut self, x: &T) -> T {
        let mut dims = x.dims.clone();
        dims[x.last()] = 1;
        let y = self.node(&dims, x.element, &[x]);
        self.spend(1, x.held + y.bytes());
        if y.tracked {
            self.part(x, y.bytes());
        }
        y
    }

    /// The largest of the last dimension, outside the graph.
    pub(super) fn max_last_detached(&mut self, x: &T) -> T {
        let mut dims = x.dims.clone();
        dims[x.last()] = 1;
        let y = self.constant(&dims, x.element);
        self.spend(1, x.held + y.bytes());
        y
    }

    /// The sum of all elements.
    pub(super) fn sum_all(&mut self, x: &T) -> T {
        let y = self.node(&[], x.element, &[x]);
        self.spend(1, x.held + y.bytes());
        if y.tracked {
            self.part(x, y.bytes());
        }
        y
    }

    /// One element of each row.
    pub(super) fn gather_one(&mut self, x: &T) -> T {
        let mut dims = x.dims.clone();
        dims[x.last()] = 1;
        let y = self.node(&dims, x.element, &[x]);
        self.spend(1, 2 * y.bytes());
        if y.tracked {
            // Cleared, copied, added to.
            self.spend_back(3, 3 * x.bytes() + 3 * y.bytes());
        }
        y
    }

    /// Rows of a table.
    pub(super) fn rows_of(&mut self, table: &T, rows: usize) -> T {
        let y = self.node(&[rows, table.dims[1]], table.element, &[table]);
        self.forward(1, 2 * y.bytes());
        if y.tracked {
            match self.how {
                How::Floor => self.backward(1, table.bytes() + 2 * y.bytes()),
                // Cleared, copied, added to.
                _ => self.backward(3, 3 * table.bytes() + 3 * y.bytes()),
            }
        }
        y
    }

    pub(super) fn reshape(&mut self, x: &T, dims: &[usize]) -> T {
        let y = self.view(dims, x);
        assert_eq!(x.len(), y.len(), "{:?} as {dims:?}", x.dims);
        if !x.dense {
            self.spend(1, x.held + y.bytes());
        }
        if y.tracked {
            self.edge(x);
        }
        y
    }

    pub(super) fn transpose(&mut self, x: &T, one: usize, other: usize) -> T {
        let mut dims = x.dims.clone();
        dims.swap(one, other);
        let y = self.node(&dims, x.element, &[x]);
        if y.tracked {
            self.edge(x);
        }
        T { held: x.held, dense: false, ..y }
    }

    pub(super) fn contiguous(&mut self, x: &T) -> T {
        if x.dense {
            return x.clone();
        }
        let y = self.node(&x.dims, x.element, &[x]);
        self.spend(1, x.held + y.bytes());
        if y.tracked {
            self.edge(x);
        }
        y
    }

    pub(super) fn narrow(&mut self, x: &T, dim: usize, start: usize, len: usize) -> T {
        if len == x.dims[dim] {
            return x.clone();
        }
        let mut dims = x.dims.clone();
        dims[dim] = len;
        let y = self.node(&dims, x.element, &[x]);
        if y.tracked {
            let sides = u64::from(start > 0) + u64::from(start + len < x.dims[dim]);
            // What is beside it is cleared, and all is copied beside each other.
            self.spend_back(sides, x.bytes() - y.bytes());
            self.spend_back(sides + 1, 2 * x.bytes());
            self.edge(x);
        }
        let dense = x.dense && x.dims[..dim].iter().all(|&size| size == 1);
        T { dense, ..y }
    }

    /// Without a dimension of one element: a view, unlike [`Tape::reshape`].
    pub(super) fn squeeze(&mut self, x: &T, dim: usize) -> T {
        let mut dims = x.dims.clone();
        assert_eq!(dims.remove(dim), 1);
        let y = self.node(&dims, x.element, &[x]);
        if y.tracked {
            self.edge(x);
        }
        T { dense: x.dense, ..y }
    }

    pub(super) fn cat(&mut self, parts: &[&T], dim: usize) -> T {
        let mut dims = parts[0].dims.clone();
        dims[dim] = parts.iter().map(|part| part.dims[dim]).sum();
        let y = self.node(&dims, parts[0].element, parts);
        let held: u64 = parts.iter().map(|part| part.held).sum();
        self.spend(parts.len() as u64, held + y.bytes());
        if y.tracked {
            parts.iter().for_each(|part| self.edge(part));
        }
        y
    }

    /// The product of the last two dimensions: candle's, whose backward pass computes both gradients.
    pub(super) fn matmul(&mut self, x: &T, y: &T) -> T {
        let mut dims = x.dims.clone();
        dims[x.last()] = y.dims[y.last()];
        let z = self.node(&dims, x.element, &[x, y]);
        self.forward(1, x.held + y.held + z.bytes());
        if z.tracked {
            for (of, other) in [(x, y), (y, x)] {
                match of.tracked {
                    true => self.backward(1, z.bytes() + other.held + of.bytes()),
                    false => self.spend_back(1, z.bytes() + other.held + of.bytes()),
                }
                self.edge(of);
            }
        }
        z
    }
}
