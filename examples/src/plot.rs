//! Plots as SVG. No font of the system is needed: whoever shows the file brings one.

use anyhow::{Result, anyhow};
use plotters::prelude::*;

/// One curve of a plot.
#[derive(Debug, Clone)]
pub struct Curve {
    /// As in the legend.
    pub name: String,
    /// Lines: their points in the order in which they are to be joined.
    pub lines: Vec<Vec<(f64, f64)>>,
    /// The point to stress.
    pub chosen: Option<(f64, f64)>,
}

/// What a plot says around its curves.
#[derive(Debug, Clone, Copy)]
pub struct Labels<'a> {
    /// Above the plot.
    pub title: &'a str,
    /// Below the horizontal axis.
    pub x: &'a str,
    /// Beside the vertical axis.
    pub y: &'a str,
}

/// How the points of a curve are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Joined, without marks.
    Lines,
    /// Marked and joined by a thin line; the chosen point is a large one.
    Marks,
}

/// Pixels of a plot.
const SIZE: (u32, u32) = (860, 520);

/// Draws curves into one plot and returns the SVG.
///
/// # Errors
///
/// plotters fails.
pub fn curves(labels: Labels<'_>, style: Style, curves: &[Curve]) -> Result<String> {
    let mut svg = String::new();
    let points = || curves.iter().flat_map(|curve| curve.lines.iter().flatten().chain(&curve.chosen));
    let x = padded(points().map(|point| point.0));
    let y = padded(points().map(|point| point.1));
    let area = SVGBackend::with_string(&mut svg, SIZE).into_drawing_area();
    draw(&area, labels, style, curves, x, y).map_err(|error| anyhow!("plot `{}`: {error}", labels.title))?;
    drop(area);
    Ok(svg)
}

/// The range of some values with a little room; `0..1` if there are none.
fn padded(values: impl Iterator<Item = f64>) -> std::ops::Range<f64> {
    let (low, high) = values
        .filter(|value| value.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    if low > high {
        return 0.0..1.0;
    }
    let room = ((high - low) * 0.05).max(1e-3);
    low - room..high + room
}

fn draw(
    area: &DrawingArea<SVGBackend<'_>, plotters::coord::Shift>,
    labels: Labels<'_>,
    style: Style,
    curves: &[Curve],
    x: std::ops::Range<f64>,
    y: std::ops::Range<f64>,
) -> Result<(), DrawingAreaErrorKind<std::io::Error>> {
    area.fill(&WHITE)?;
    // The legend has a column of its own: curves fill the plot.
    let (plot, legend) = area.split_horizontally(SIZE.0 - 210);
    let mut chart = ChartBuilder::on(&plot)
        .caption(labels.title, ("sans-serif", 20))
        .margin(8)
        .x_label_area_size(42)
        .y_label_area_size(54)
        .build_cartesian_2d(x, y)?;
    chart
        .configure_mesh()
        .x_desc(labels.x)
        .y_desc(labels.y)
        .label_style(("sans-serif", 15))
        .axis_desc_style(("sans-serif", 17))
        .light_line_style(WHITE)
        .draw()?;
    // All lines of the legend fit.
    let pitch = 20.min((SIZE.1 as i32 - 54) / curves.len().max(1) as i32);
    for (number, curve) in curves.iter().enumerate() {
        let color = Palette99::pick(number).to_rgba();
        let width = if style == Style::Lines { 2 } else { 1 };
        for line in &curve.lines {
            chart.draw_series(LineSeries::new(line.iter().copied(), color.stroke_width(width)))?;
        }
        // A line of one point is a dot.
        let lonely = curve.lines.iter().filter(|line| line.len() == 1).flatten();
        chart.draw_series(lonely.map(|point| Circle::new(*point, 3, color.filled())))?;
        if style == Style::Marks {
            let mark = |point: &(f64, f64)| Circle::new(*point, 3, color.filled());
            chart.draw_series(curve.lines.iter().flatten().map(mark))?;
            chart.draw_series(curve.chosen.iter().map(|point| Circle::new(*point, 7, color.filled())))?;
        }
        let top = 44 + pitch * number as i32;
        legend.draw(&Rectangle::new([(4, top), (18, top + 10)], color.filled()))?;
        legend.draw(&Text::new(curve.name.clone(), (24, top - 2), ("sans-serif", 16)))?;
    }
    area.present()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_names_its_curves_and_axes() {
        let curve = Curve {
            name: "FTP".to_owned(),
            lines: vec![vec![(0.0, 1.0), (1.0, 2.0)]],
            chosen: Some((1.0, 2.0)),
        };
        let labels = Labels { title: "frontier", x: "ID", y: "OOD" };
        let svg = curves(labels, Style::Marks, &[curve]).unwrap();
        for word in ["<svg", "FTP", "frontier", "ID", "OOD", "</svg>"] {
            assert!(svg.contains(word), "{word}");
        }
    }

    #[test]
    fn a_plot_of_nothing_and_of_values_that_are_not_finite_is_drawn() {
        let labels = Labels { title: "t", x: "x", y: "y" };
        curves(labels, Style::Lines, &[]).unwrap();
        let lines = vec![vec![(0.0, f64::NAN), (1.0, 1.0)]];
        curves(labels, Style::Lines, &[Curve { name: "c".to_owned(), lines, chosen: None }]).unwrap();
    }
}
