//! Draws one image: a class, seen in a domain.

use std::f32::consts::{PI, TAU};

use super::dice::Dice;
use super::domain::{Canvas, Domain, Place};
use super::shape::Class;

/// Width and height of an image in pixels.
pub const SIDE: usize = super::super::SIDE;

/// Bytes of an image: rows of pixels of red, green, blue.
pub const BYTES: usize = SIDE * SIDE * 3;

/// Samples per pixel and direction, against jagged edges.
const FINE: usize = 2;

/// Where and how an object stands in the image.
struct Pose {
    center: [f32; 2],
    radius: f32,
    turn: f32,
    /// Width over height.
    stretch: f32,
    /// Waves on the outline: how the hand trembles, or how the individual differs from its class.
    waves: [(f32, f32, f32); 3],
}

impl Pose {
    fn new(dice: &mut Dice, domain: Domain) -> Self {
        let radius = if domain == Domain::Infograph { dice.range(8.5, 11.0) } else { dice.range(10.5, 13.5) };
        let tremble = if domain == Domain::Quickdraw { 0.07 } else { 0.035 };
        Self {
            center: [(); 2].map(|()| SIDE as f32 / 2.0 + dice.range(-2.0, 2.0)),
            radius,
            turn: dice.range(-0.3, 0.3),
            stretch: dice.range(0.85, 1.18),
            waves: [2.0, 3.0, 5.0].map(|wave| (wave, tremble * dice.bell(), dice.range(0.0, TAU))),
        }
    }

    /// The place of the shape that is seen at a point of the image.
    fn look(&self, class: &Class, x: f32, y: f32) -> Place {
        let (right, down) = ((x - self.center[0]) / self.stretch, (y - self.center[1]) * self.stretch);
        let (sin, cos) = self.turn.sin_cos();
        let (u, v) = ((right * cos + down * sin) / self.radius, (down * cos - right * sin) / self.radius);
        let (angle, away) = (v.atan2(u), u.hypot(v));
        let tremble: f32 =
            self.waves.iter().map(|(wave, height, phase)| height * (wave * angle + phase).cos()).sum();
        let outline = class.outline(angle) * (1.0 + tremble);
        let hole = class.hole(outline);
        let outside = away - outline;
        let distance = if hole > 0.0 { outside.max(hole - away) } else { outside };
        Place { x, y, u, v, angle: angle / PI, distance: distance * self.radius }
    }
}

/// Draws an image. `dice` is the image's own.
pub(super) fn draw(class: &Class, domain: Domain, dice: &mut Dice) -> [u8; BYTES] {
    let pose = Pose::new(dice, domain);
    let canvas = Canvas::new(domain, &class.look, dice);
    let grain = canvas.grain();
    let mut image = [0; BYTES];
    for (pixel, bytes) in image.chunks_exact_mut(3).enumerate() {
        let (row, column) = (pixel / SIDE, pixel % SIDE);
        let mut sum = [0.0; 3];
        for fine in 0..FINE * FINE {
            let x = column as f32 + ((fine % FINE) as f32 + 0.5) / FINE as f32;
            let y = row as f32 + ((fine / FINE) as f32 + 0.5) / FINE as f32;
            let color = canvas.color(&pose.look(class, x, y));
            sum.iter_mut().zip(color).for_each(|(sum, channel)| *sum += channel);
        }
        for (byte, sum) in bytes.iter_mut().zip(sum) {
            let value = sum / (FINE * FINE) as f32 + grain * dice.bell();
            *byte = (value.clamp(0.0, 1.0) * 255.0).round() as u8;
        }
    }
    image
}
