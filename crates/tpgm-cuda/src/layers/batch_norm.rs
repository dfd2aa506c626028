//! Batch normalization.

use super::error::{Error, Result};
use super::rows::Operands;
use super::{Layers, modules};
use crate::device::Device;
use crate::memory::{View, ViewMut};

const NAME: &str = "batch norm";

/// Sums are cut into about so many units: several for each multiprocessor of a large GPU.
const UNITS: usize = 1024;

/// Options of batch normalization.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct BatchNorm {
    /// What is added to the variance, above 0.
    pub eps: f64,
    /// The share of the batch in the running statistics, in 0..=1.
    pub momentum: f64,
    /// The largest number that running statistics can be kept in: that of their type.
    pub largest: f32,
}

/// What is normalized with. Running statistics are two numbers in f32 for each channel: all means, then all variances.
#[derive(Debug)]
pub enum Statistics<'a> {
    /// Those of the batch, which has two elements a channel or more. Running ones move, from the first view to the second:
    /// `(1 - momentum) running + momentum batch`, with a variance divided by the number of elements less one. If one of them would
    /// not be finite, all stay as they are.
    Batch(Option<(View<'a>, ViewMut<'a>)>),
    /// The running ones.
    Running(View<'a>),
}

/// Operands of [`Layers::batch_norm`], of one element type but for the statistics, all without gaps.
#[derive(Debug)]
pub struct BatchNormOperands<'a> {
    /// Images of shape (batch, channels, size).
    pub x: View<'a>,
    /// A factor for each channel.
    pub weight: View<'a>,
    /// What is added to each channel.
    pub bias: View<'a>,
    /// What is normalized with.
    pub statistics: Statistics<'a>,
    /// Gets two numbers in f32 for each channel, which the backward pass needs: all means, then one over each standard deviation.
    pub state: ViewMut<'a>,
    /// The output.
    pub y: ViewMut<'a>,
}

/// Operands of [`Layers::batch_norm_gradient`], of one element type but for the state, all without gaps.
#[derive(Debug)]
pub struct BatchNormGradients<'a> {
    /// As in the forward pass.
    pub x: View<'a>,
    /// As in the forward pass.
    pub weight: View<'a>,
    /// The gradient of the output.
    pub grad: View<'a>,
    /// From the forward pass.
    pub state: View<'a>,
    /// Whether the statistics were those of the batch, and so change with `x`.
    pub of_batch: bool,
    /// Gets the gradient of the images.
    pub dx: Option<ViewMut<'a>>,
    /// Gets the gradient of the weight.
    pub d_weight: Option<ViewMut<'a>>,
    /// Gets the gradient of the bias.
    pub d_bias: Option<ViewMut<'a>>,
}

/// `BatchNormTable` of `kernels/layers/batch_norm.cuh`.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
struct Table {
    x: u64,
    grad: u64,
    out: u64,
    weight: u64,
    bias: u64,
    state: u64,
    partial: u64,
    d_weight: u64,
    d_bias: u64,
    running: u64,
    moved: u64,
    means: u64,
    batch: u32,
    channels: u32,
    size: u32,
    quads: u32,
    groups: u32,
    images: u32,
    vector: u32,
    backward: u32,
    given: u32,
    eps: f32,
    momentum: f32,
    most: f32,
}
const _: () = assert!(size_of::<Table>() == 144);

/// The shape of a call's images.
struct Images {
    all: usize,
    channels: usize,
    table: Table,
}

impl Images {
    /// How the shape is cut: groups of images, so many that there are about [`UNITS`] of them and channels.
    fn new([batch, channels, size]: [usize; 3]) -> Result<Self> {
        let all = batch.checked_mul(channels).and_then(|planes| planes.checked_mul(size));
        let Some(all) = all.filter(|&all| u32::try_from(all).is_ok()) else {
            let got = format!("{batch} images of {channels} channels of {size}");
            let expected = "fewer than 2^32 elements are".into();
            return Err(Error::Shape { layer: NAME, operand: "x", got, expected });
        };
        let images = batch.div_ceil(UNITS.div_ceil(channels.max(1)).max(1)).max(1);
        let table = Table {
            batch: batch as u32,
            channels: channels as u32,
            size: size as u32,
            quads: size.div_ceil(4) as u32,
            groups: batch.div_ceil(images) as u32,
            images: images as u32,
            ..Table::default()
        };
        Ok(Self { all, channels, table })
    }

    fn units(&self) -> usize {
        self.channels * self.table.groups as usize
    }

    /// Bytes of two numbers for each unit.
    fn bytes(&self) -> usize {
        2 * self.units() * size_of::<f32>()
    }

    /// A tensor of images, by the address. Four elements can be read at a time as long as the table says so.
    fn planes(&mut self, seen: &mut Operands, operand: &'static str, view: View<'_>) -> Result<u64> {
        let address = seen.elements(operand, view, self.all)?;
        seen.broadcast(operand, view, &[self.table.size as usize])?;
        self.table.vector = u32::from(seen.vector() == 1 && self.table.size.is_multiple_of(4));
        Ok(address)
    }
}

impl<D: Device> Layers<D> {
    /// `(x - mean) / sqrt(variance + eps) weight + bias`, with mean and variance of each channel, the variance divided by the number
    /// of elements. Three launches, 12 bytes per f32 element; with running statistics two, 8 bytes.
    ///
    /// Source: Ioffe and Szegedy, "Batch Normalization" (2015), algorithms 1 and 2.
    ///
    /// # Errors
    ///
    /// If operands do not fit each other, a channel of a batch has fewer than two elements, there are 2^32 elements or more, an
    /// option is out of range, or the device fails.
    pub fn batch_norm(
        &self,
        norm: BatchNorm,
        shape: [usize; 3],
        operands: BatchNormOperands<'_>,
    ) -> Result<()> {
        let BatchNormOperands { x, weight, bias, statistics, state, y } = operands;
        let option =
            |option, value, requirement| Err(Error::Option { layer: NAME, option, value, requirement });
        let eps = norm.eps as f32;
        if !(eps > 0.0 && eps.is_finite()) {
            return option("eps", norm.eps, "above 0 in f32, and finite");
        }
        if !(0.0..=1.0).contains(&norm.momentum) {
            return option("momentum", norm.momentum, "in 0..=1");
        }
        let mut images = Images::new(shape)?;
        let (channels, numbers) = (images.channels, 2 * images.channels);
        let mut seen = Operands::of_elements(NAME, "x", x)?;
        let (x, out) = (images.planes(&mut seen, "x", x)?, images.planes(&mut seen, "y", y.as_view())?);
        let mut table = Table {
            x,
            out,
            weight: seen.elements("weight", weight, channels)?,
            bias: seen.elements("bias", bias, channels)?,
            state: seen.floats("state", state.as_view(), numbers)?,
            eps,
            momentum: norm.momentum as f32,
            most: norm.largest,
            ..images.table
        };
        let of_batch = match &statistics {
            Statistics::Running(running) => {
                table.running = seen.floats("running", *running, numbers)?;
                table.given = 1;
                false
            }
            Statistics::Batch(moving) => {
                if let Some((running, moved)) = moving {
                    table.running = seen.floats("running", *running, numbers)?;
                    table.moved = seen.floats("moved", moved.as_view(), numbers)?;
                }
                true
            }
        };
        if of_batch && channels > 0 && shape[0] * shape[2] < 2 {
            let got = format!("{} elements a channel", shape[0] * shape[2]);
            return Err(Error::Shape { layer: NAME, operand: "x", got, expected: "two or more are".into() });
        }
        if images.all == 0 {
            return Ok(());
        }
        self.with_scratch(images.bytes(), |partial| {
            table.partial = partial;
            if of_batch {
                self.launch_kernel(&modules::BATCH_NORM_SUMS, seen.dtype, images.units(), &table)?;
            }
            self.launch_kernel(&modules::BATCH_NORM_COMBINE, seen.dtype, 1, &table)?;
            self.apply_batch_norm(&seen, &images, &table)
        })
    }

    /// The gradients of [`Layers::batch_norm`]. Three launches, 20 bytes per f32 element: x and grad twice, dx. Without a gradient of
    /// the images two, 8 bytes.
    ///
    /// # Errors
    ///
    /// If operands do not fit each other, there are 2^32 elements or more, or the device fails.
    pub fn batch_norm_gradient(&self, shape: [usize; 3], operands: BatchNormGradients<'_>) -> Result<()> {
        let BatchNormGradients { x, weight, grad, state, of_batch, dx, d_weight, d_bias } = operands;
        let mut images = Images::new(shape)?;
        let channels = images.channels;
        let mut seen = Operands::of_elements(NAME, "x", x)?;
        let (x, grad) = (images.planes(&mut seen, "x", x)?, images.planes(&mut seen, "grad", grad)?);
        let out = dx.map(|dx| images.planes(&mut seen, "dx", dx.as_view())).transpose()?;
        let of_channel = |operand, view: Option<ViewMut<'_>>| match view {
            Some(view) => seen.elements(operand, view.as_view(), channels),
            None => Ok(0),
        };
        let mut table = Table {
            x,
            grad,
            out: out.unwrap_or(0),
            weight: seen.elements("weight", weight, channels)?,
            state: seen.floats("state", state, 2 * channels)?,
            d_weight: of_channel("d_weight", d_weight)?,
            d_bias: of_channel("d_bias", d_bias)?,
            backward: 1,
            given: u32::from(!of_batch),
            ..images.table
        };
        if channels == 0 {
            return Ok(());
        }
        let bytes = images.bytes();
        self.with_scratch(bytes + 2 * channels * size_of::<f32>(), |partial| {
            (table.partial, table.means) = (partial, partial + bytes as u64);
            if images.units() > 0 {
                self.launch_kernel(&modules::BATCH_NORM_SUMS, seen.dtype, images.units(), &table)?;
            }
            self.launch_kernel(&modules::BATCH_NORM_COMBINE, seen.dtype, 1, &table)?;
            match out {
                Some(_) if images.all > 0 => self.apply_batch_norm(&seen, &images, &table),
                _ => Ok(()),
            }
        })
    }

    fn apply_batch_norm(&self, seen: &Operands, images: &Images, table: &Table) -> Result<()> {
        let quads = table.batch as usize * images.channels * table.quads as usize;
        let units = quads.div_ceil(self.device.threads());
        self.launch_kernel(&modules::BATCH_NORM_APPLY, seen.dtype, units, table)
    }
}
