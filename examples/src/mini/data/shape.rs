//! What makes a class: its outline, its hole and, in real images, its usual look.

use std::f32::consts::{PI, TAU};

use super::dice::Dice;

/// Points of an outline, evenly spread over the full angle.
const POINTS: usize = 96;

/// The hole of a shape.
#[derive(Clone, Copy)]
enum Hole {
    None,
    /// A circle of this radius; the outline's largest radius is 1.
    Round(f32),
    /// The outline, scaled by this factor.
    Similar(f32),
}

/// How a surface is covered with its two colors.
#[derive(Clone, Copy)]
pub(super) enum Texture {
    Plain,
    /// Angle of the stripes and stripes per unit length.
    Stripes(f32, f32),
    /// Fields per unit length.
    Checks(f32),
    /// Dots per unit length.
    Dots(f32),
    /// Rings per unit length.
    Rings(f32),
}

impl Texture {
    pub(super) fn random(dice: &mut Dice) -> Self {
        match dice.below(5) {
            0 => Texture::Plain,
            1 => Texture::Stripes(dice.range(0.0, PI), dice.range(1.5, 3.0)),
            2 => Texture::Checks(dice.range(1.2, 2.2)),
            3 => Texture::Dots(dice.range(1.5, 2.5)),
            _ => Texture::Rings(dice.range(1.5, 3.0)),
        }
    }

    /// Whether the second color shows at this place of the shape.
    pub(super) fn second(self, x: f32, y: f32) -> bool {
        let odd = |value: f32| value.floor().rem_euclid(2.0) == 1.0;
        match self {
            Texture::Plain => false,
            Texture::Stripes(angle, density) => odd((x * angle.cos() + y * angle.sin()) * 2.0 * density),
            Texture::Checks(density) => odd(x * 2.0 * density) != odd(y * 2.0 * density),
            Texture::Dots(density) => {
                let (fx, fy) = ((x * density).rem_euclid(1.0) - 0.5, (y * density).rem_euclid(1.0) - 0.5);
                fx * fx + fy * fy < 0.09
            }
            Texture::Rings(density) => odd(x.hypot(y) * 2.0 * density),
        }
    }
}

/// Colors (red, green, blue in `[0, 1]`) and texture of a surface.
#[derive(Clone, Copy)]
pub(super) struct Look {
    pub(super) colors: [[f32; 3]; 2],
    pub(super) texture: Texture,
}

impl Look {
    pub(super) fn random(dice: &mut Dice) -> Self {
        let hue = dice.unit();
        let colors = [
            from_hsv(hue, dice.range(0.55, 0.95), dice.range(0.55, 0.95)),
            from_hsv(hue + dice.range(0.1, 0.5), dice.range(0.3, 0.9), dice.range(0.3, 0.9)),
        ];
        Self { colors, texture: Texture::random(dice) }
    }
}

/// A class of objects.
pub(super) struct Class {
    /// Distance of the outline from the center at `POINTS` angles; the largest is 1.
    outline: Vec<f32>,
    hole: Hole,
    /// Whether the outline has corners.
    pub(super) pointed: bool,
    /// How it usually looks in real images; the other domains do not know it.
    pub(super) look: Look,
}

impl Class {
    /// The class of this number.
    pub(super) fn new(seed: u64, number: u64) -> Self {
        let mut dice = Dice::new([seed, 1, number, 0]);
        let is_smooth = dice.chance(0.5);
        let outline = if is_smooth { smooth(&mut dice) } else { pointed(&mut dice) };
        let hole = match dice.below(4) {
            0 => Hole::Round(dice.range(0.2, 0.35)),
            1 => Hole::Similar(dice.range(0.35, 0.55)),
            _ => Hole::None,
        };
        Self { outline, hole, pointed: !is_smooth, look: Look::random(&mut dice) }
    }

    /// Distance of the outline from the center at this angle (radians).
    pub(super) fn outline(&self, angle: f32) -> f32 {
        let position = angle.rem_euclid(TAU) / TAU * POINTS as f32;
        let (left, share) = (position as usize % POINTS, position.fract());
        self.outline[left] * (1.0 - share) + self.outline[(left + 1) % POINTS] * share
    }

    /// Which kind of hole it has: none, a circle, the outline again.
    pub(super) fn hole_kind(&self) -> u32 {
        match self.hole {
            Hole::None => 0,
            Hole::Round(_) => 1,
            Hole::Similar(_) => 2,
        }
    }

    /// Distance of the hole's edge from the center where the outline is at `outline`; zero without a hole.
    pub(super) fn hole(&self, outline: f32) -> f32 {
        match self.hole {
            Hole::None => 0.0,
            Hole::Round(radius) => radius.min(outline * 0.8),
            Hole::Similar(factor) => outline * factor,
        }
    }
}

/// A few waves around a circle.
fn smooth(dice: &mut Dice) -> Vec<f32> {
    let waves: Vec<_> = (1..6)
        .map(|wave| (wave as f32, dice.range(0.0, 0.45) / (wave as f32).sqrt(), dice.range(0.0, TAU)))
        .collect();
    scaled((0..POINTS).map(|point| {
        let angle = point as f32 / POINTS as f32 * TAU;
        let sum: f32 = waves.iter().map(|(wave, height, phase)| height * (wave * angle + phase).cos()).sum();
        (1.0 + sum).max(0.25)
    }))
}

/// A star: corners at uneven angles, straight lines in polar coordinates between them.
fn pointed(dice: &mut Dice) -> Vec<f32> {
    let corners = 2 * (3 + dice.below(4));
    let heights: Vec<_> = (0..corners)
        .map(|corner| if corner % 2 == 0 { dice.range(0.65, 1.0) } else { dice.range(0.3, 0.7) })
        .collect();
    let turn = dice.range(0.0, 1.0);
    let skew = dice.range(-0.5, 0.5) / corners as f32;
    scaled((0..POINTS).map(|point| {
        let circle = point as f32 / POINTS as f32;
        // The skew packs corners closer on one side.
        let position = (circle + skew * (circle * TAU).sin() + turn).rem_euclid(1.0) * corners as f32;
        let (left, share) = (position as usize % corners, position.fract());
        heights[left] * (1.0 - share) + heights[(left + 1) % corners] * share
    }))
}

/// Scales a list so that its largest value is 1.
fn scaled(values: impl Iterator<Item = f32>) -> Vec<f32> {
    let mut values: Vec<_> = values.collect();
    let largest = values.iter().copied().fold(f32::MIN_POSITIVE, f32::max);
    values.iter_mut().for_each(|value| *value /= largest);
    values
}

/// Red, green and blue of a hue (in turns), saturation and value.
pub(super) fn from_hsv(hue: f32, saturation: f32, value: f32) -> [f32; 3] {
    [0.0, 2.0 / 3.0, 1.0 / 3.0].map(|shift| {
        let ramp = ((hue + shift).rem_euclid(1.0) * 6.0 - 3.0).abs() - 1.0;
        value * (1.0 - saturation * (1.0 - ramp.clamp(0.0, 1.0)))
    })
}
