//! Maximum over windows of images.

use super::error::{Error, Result};
use super::rows::Operands;
use super::{Layers, modules};
use crate::device::Device;
use crate::memory::{View, ViewMut};

const NAME: &str = "max-pool";

/// Windows over image planes. Numbers are (height, width).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MaxPool {
    /// Elements of a window.
    pub kernel: [usize; 2],
    /// Elements from one window to the next.
    pub stride: [usize; 2],
    /// Elements that windows reach beyond each edge, at most half a window; there lies minus infinity.
    pub padding: [usize; 2],
}

/// Operands of [`Layers::max_pool_gradient`], all of one element type and without gaps.
#[derive(Debug)]
pub struct MaxPoolGradients<'a> {
    /// As in the forward pass.
    pub x: View<'a>,
    /// The gradient of the output.
    pub grad: View<'a>,
    /// Gets the gradient of the input.
    pub dx: ViewMut<'a>,
}

/// `PoolTable` of `kernels/layers/pool.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Table {
    x: u64,
    grad: u64,
    out: u64,
    units: u64,
    size: [u32; 2],
    out_size: [u32; 2],
    kernel: [u32; 2],
    stride: [u32; 2],
    padding: [u32; 2],
}
const _: () = assert!(size_of::<Table>() == 72);

impl MaxPool {
    /// Windows that fit into a plane of `size`, in both directions; nothing if none does, or the options make no sense.
    pub fn windows(self, size: [usize; 2]) -> Option<[usize; 2]> {
        let mut counts = [0; 2];
        for (i, count) in counts.iter_mut().enumerate() {
            let (kernel, stride, padding) = (self.kernel[i], self.stride[i], self.padding[i]);
            if kernel == 0 || stride == 0 || padding > kernel / 2 {
                return None;
            }
            let padded = size[i].checked_add(padding.checked_mul(2)?)?;
            *count = padded.checked_sub(kernel)? / stride + 1;
        }
        Some(counts)
    }

    /// The table of a call on `planes` planes of `size`, but for addresses, and how many elements inputs and outputs have.
    fn table(self, planes: usize, size: [usize; 2]) -> Result<(Table, [usize; 2])> {
        let refuse = |got, expected: &str| {
            Err(Error::Shape { layer: NAME, operand: "x", got, expected: expected.into() })
        };
        let got = format!("{planes} planes of {size:?} under {self:?}");
        let Some(out_size) = self.windows(size) else {
            return refuse(
                got,
                "a window and a stride of at least one element, padding of at most half a window, and an \
                                image as large as a window are",
            );
        };
        let elements = |[height, width]: [usize; 2]| {
            let all = planes.checked_mul(height).and_then(|lines| lines.checked_mul(width));
            all.filter(|&all| u32::try_from(all).is_ok())
        };
        let small = [self.kernel, self.stride, self.padding].concat().iter().all(|&number| number < 1 << 30);
        let (Some(inputs), Some(outputs), true) = (elements(size), elements(out_size), small) else {
            return refuse(got, "fewer than 2^32 elements are");
        };
        let words = |pair: [usize; 2]| pair.map(|number| number as u32);
        let table = Table {
            x: 0,
            grad: 0,
            out: 0,
            units: 0,
            size: words(size),
            out_size: words(out_size),
            kernel: words(self.kernel),
            stride: words(self.stride),
            padding: words(self.padding),
        };
        Ok((table, [inputs, outputs]))
    }
}

impl<D: Device> Layers<D> {
    /// The largest element of each window of `planes` planes of `size` = (height, width), all without gaps. A NaN wins. One launch; 4
    /// bytes per f32 element of input and output.
    ///
    /// # Errors
    ///
    /// If operands do not fit each other, no window fits, there are 2^32 elements or more, or the device fails.
    pub fn max_pool(
        &self,
        pool: MaxPool,
        planes: usize,
        size: [usize; 2],
        x: View<'_>,
        y: ViewMut<'_>,
    ) -> Result<()> {
        let (table, [inputs, outputs]) = pool.table(planes, size)?;
        let seen = Operands::of_elements(NAME, "x", x)?;
        let (x, out) = (seen.elements("x", x, inputs)?, seen.elements("y", y.as_view(), outputs)?);
        if outputs == 0 {
            return Ok(());
        }
        let table = Table { x, out, units: outputs as u64, ..table };
        self.launch_kernel(
            &modules::POOL_FORWARD,
            seen.dtype,
            outputs.div_ceil(self.device.threads()),
            &table,
        )
    }

    /// The gradient of the input: of each window's gradient to the first of its largest elements. One launch; 4 bytes per f32
    /// element of the input, its gradient, and the output's gradient. Maxima are looked for anew, so forward keeps nothing.
    ///
    /// # Errors
    ///
    /// As [`Layers::max_pool`].
    pub fn max_pool_gradient(
        &self,
        pool: MaxPool,
        planes: usize,
        size: [usize; 2],
        operands: MaxPoolGradients<'_>,
    ) -> Result<()> {
        let MaxPoolGradients { x, grad, dx } = operands;
        let (table, [inputs, outputs]) = pool.table(planes, size)?;
        let seen = Operands::of_elements(NAME, "x", x)?;
        let (x, grad) = (seen.elements("x", x, inputs)?, seen.elements("grad", grad, outputs)?);
        let out = seen.elements("dx", dx.as_view(), inputs)?;
        if inputs == 0 {
            return Ok(());
        }
        let table = Table { x, grad, out, units: inputs as u64, ..table };
        self.launch_kernel(
            &modules::POOL_BACKWARD,
            seen.dtype,
            inputs.div_ceil(self.device.threads()),
            &table,
        )
    }
}
