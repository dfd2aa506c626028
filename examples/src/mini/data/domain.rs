//! The six domains: six ways to put the same shape on paper.

use std::f32::consts::PI;

use clap::ValueEnum;

use super::dice::Dice;
use super::draw::SIDE;
use super::shape::{Look, Texture, from_hsv};

/// A kind of image, as in DomainNet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, ValueEnum)]
pub enum Domain {
    /// A lit object in front of something; nine in ten show their class's usual colors and texture.
    Real,
    /// Pencil on paper.
    Sketch,
    /// Strokes of a brush.
    Painting,
    /// A flat symbol among bars and lines.
    Infograph,
    /// Flat color with a black outline.
    Clipart,
    /// A quick line.
    Quickdraw,
}

impl Domain {
    /// All, the domain of fine-tuning first.
    pub const ALL: [Domain; 6] = [
        Domain::Real,
        Domain::Sketch,
        Domain::Painting,
        Domain::Infograph,
        Domain::Clipart,
        Domain::Quickdraw,
    ];

    /// Name as in tables.
    pub const fn name(self) -> &'static str {
        match self {
            Domain::Real => "real",
            Domain::Sketch => "sketch",
            Domain::Painting => "painting",
            Domain::Infograph => "infograph",
            Domain::Clipart => "clipart",
            Domain::Quickdraw => "quickdraw",
        }
    }
}

/// How often a real image shows the usual look of its class: the cue that exists in real images only.
const USUAL: f32 = 0.9;

/// A point of the image as the shape sees it.
pub(super) struct Place {
    /// Pixels from the left.
    pub(super) x: f32,
    /// Pixels from the top.
    pub(super) y: f32,
    /// Coordinates of the shape, about -1 to 1.
    pub(super) u: f32,
    /// As `u`.
    pub(super) v: f32,
    /// Angle around the shape's center, in half turns.
    pub(super) angle: f32,
    /// Pixels to the nearest edge of the shape along the ray from its center; negative within the shape.
    pub(super) distance: f32,
}

/// Random values that change slowly over the image, -1 to 1.
struct Cloud {
    cells: usize,
    values: Vec<f32>,
}

impl Cloud {
    fn new(dice: &mut Dice, cells: usize) -> Self {
        Self { cells, values: (0..(cells + 1) * (cells + 1)).map(|_| dice.range(-1.0, 1.0)).collect() }
    }

    fn at(&self, x: f32, y: f32) -> f32 {
        let cell = |pixel: f32| {
            let position = (pixel / SIDE as f32).clamp(0.0, 0.999) * self.cells as f32;
            (position as usize, position.fract())
        };
        let ((column, right), (row, down)) = (cell(x), cell(y));
        let value = |row: usize, column: usize| self.values[row * (self.cells + 1) + column];
        let line = |row| value(row, column) * (1.0 - right) + value(row, column + 1) * right;
        line(row) * (1.0 - down) + line(row + 1) * down
    }
}

/// A filled rectangle: left, top, right, bottom in pixels, and its color.
struct Bar {
    edges: [f32; 4],
    color: [f32; 3],
}

/// What surrounds and fills the shape in one image.
pub(super) struct Canvas {
    domain: Domain,
    look: Look,
    paper: [[f32; 3]; 2],
    clouds: [Cloud; 3],
    bars: Vec<Bar>,
    /// Width of a line in pixels.
    pen: f32,
    /// An angle in half turns: of the light, of hatching, of the gap in a line.
    angle: f32,
}

impl Canvas {
    pub(super) fn new(domain: Domain, usual: &Look, dice: &mut Dice) -> Self {
        let mut look = Look::random(dice);
        if domain == Domain::Real && dice.chance(USUAL) {
            look = *usual;
            // The same look in another light.
            let light = dice.range(0.85, 1.15);
            look.colors = look
                .colors
                .map(|color| color.map(|channel| (channel * light + 0.05 * dice.bell()).clamp(0.0, 1.0)));
        }
        let pale = |dice: &mut Dice| from_hsv(dice.unit(), dice.range(0.0, 0.25), dice.range(0.85, 1.0));
        let any = |dice: &mut Dice| from_hsv(dice.unit(), dice.range(0.1, 0.6), dice.range(0.3, 0.9));
        let paper = match domain {
            Domain::Real | Domain::Painting => [any(dice), any(dice)],
            Domain::Sketch => [[dice.range(0.86, 0.98); 3]; 2],
            Domain::Infograph => [pale(dice), any(dice)],
            Domain::Clipart if dice.chance(0.5) => [pale(dice); 2],
            Domain::Clipart | Domain::Quickdraw => [[1.0; 3]; 2],
        };
        let cells = if domain == Domain::Painting { 8 } else { 4 };
        let pen = match domain {
            Domain::Sketch => dice.range(1.0, 1.6),
            Domain::Clipart => dice.range(1.2, 2.2),
            _ => dice.range(1.1, 1.7),
        };
        let bars = if domain == Domain::Infograph { bars(dice) } else { Vec::new() };
        let clouds = [cells, cells, 6].map(|cells| Cloud::new(dice, cells));
        Self { domain, look, paper, clouds, bars, pen, angle: dice.range(-1.0, 1.0) }
    }

    /// Standard deviation of the noise of single pixels.
    pub(super) fn grain(&self) -> f32 {
        match self.domain {
            Domain::Real => 0.03,
            Domain::Sketch => 0.02,
            Domain::Painting => 0.015,
            Domain::Infograph | Domain::Clipart | Domain::Quickdraw => 0.0,
        }
    }

    /// The color at a place.
    pub(super) fn color(&self, place: &Place) -> [f32; 3] {
        let inside = place.distance < 0.0;
        let on_line = place.distance.abs() < self.pen / 2.0;
        let [cloud, second, third] = [0, 1, 2].map(|cloud: usize| self.clouds[cloud].at(place.x, place.y));
        match self.domain {
            Domain::Real if inside => {
                let toward = place.u * (self.angle * PI).cos() + place.v * (self.angle * PI).sin();
                surface(&self.look, place).map(|channel| channel * (0.9 + 0.25 * toward + 0.08 * third))
            }
            Domain::Real => {
                mix(self.paper[0], self.paper[1], 0.5 + 0.5 * cloud).map(|channel| channel + 0.15 * second)
            }
            Domain::Sketch => {
                let dark = if on_line {
                    0.65 + 0.15 * cloud
                } else if inside && self.hatched(place) {
                    0.22 + 0.1 * second
                } else {
                    0.0
                };
                self.paper[0].map(|channel| channel - dark)
            }
            Domain::Painting => {
                // The brush smears the edge, and every stroke has a tone of its own.
                let within = place.distance + 1.0 * second < 0.0;
                let [first, other] = if within { self.look.colors } else { self.paper };
                let tone = mix(first, other, if within { 0.2 + 0.2 * cloud } else { 0.5 + 0.5 * cloud });
                tone.map(|channel| channel * (0.9 + 0.2 * third))
            }
            Domain::Infograph => {
                let covers = |bar: &&Bar| {
                    let [left, top, right, bottom] = bar.edges;
                    (left..right).contains(&place.x) && (top..bottom).contains(&place.y)
                };
                let bar = self.bars.iter().find(covers).map(|bar| bar.color);
                if inside { self.look.colors[0] } else { bar.unwrap_or(self.paper[0]) }
            }
            Domain::Clipart if on_line => [0.05; 3],
            Domain::Clipart if inside => self.look.colors[0],
            Domain::Clipart => self.paper[0],
            Domain::Quickdraw => {
                // The pen does not quite meet its start.
                let gap = (place.angle - self.angle).abs() < 0.04;
                if on_line && !gap { [0.0; 3] } else { self.paper[0] }
            }
        }
    }

    fn hatched(&self, place: &Place) -> bool {
        let across = place.x * (self.angle * PI).cos() + place.y * (self.angle * PI).sin();
        across.rem_euclid(3.0) < 1.2
    }
}

/// Bars along one side and a few lines of text.
fn bars(dice: &mut Dice) -> Vec<Bar> {
    let mut bars = Vec::new();
    let side = SIDE as f32;
    let color = from_hsv(dice.unit(), dice.range(0.3, 0.9), dice.range(0.3, 0.8));
    let width = dice.range(2.0, 4.0);
    for bar in 0..3 + dice.below(4) {
        let left = bar as f32 * (width + 1.0) + 1.0;
        bars.push(Bar { edges: [left, side - dice.range(2.0, 12.0), left + width, side], color });
    }
    for _ in 0..2 + dice.below(3) {
        let (left, top) = (dice.range(0.0, side * 0.6), dice.range(0.0, side));
        let edges = [left, top, left + dice.range(6.0, 16.0), top + 1.0];
        bars.push(Bar { edges, color: [dice.range(0.2, 0.6); 3] });
    }
    bars
}

fn surface(look: &Look, place: &Place) -> [f32; 3] {
    let texture: Texture = look.texture;
    look.colors[usize::from(texture.second(place.u, place.v))]
}

fn mix(a: [f32; 3], b: [f32; 3], share: f32) -> [f32; 3] {
    [0, 1, 2].map(|channel: usize| a[channel] * (1.0 - share) + b[channel] * share)
}
