//! The plots of the page.

use std::fmt::Write as _;

use tpgm_benches::report::{FLOOR, Line, OURS};

/// Pixels of the plot.
const WIDTH: f64 = 900.0;
const LEFT: f64 = 330.0;
const LINE: f64 = 18.0;
const TOP: f64 = 34.0;

/// Medians as horizontal bars, on a logarithmic scale: they lie far apart. Ours are dark.
pub(super) fn bars(title: &str, lines: &[&Line]) -> String {
    let times: Vec<f64> = lines.iter().map(|line| 1e3 * line.row.median_s).collect();
    let least = times.iter().copied().fold(f64::INFINITY, f64::min).max(1e-6) / 2.0;
    let most = times.iter().copied().fold(0.0, f64::max).max(2.0 * least);
    let length = |time: f64| (time / least).ln() / (most / least).ln() * (WIDTH - LEFT - 80.0);
    let height = TOP + LINE * lines.len() as f64 + 10.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"10\" y=\"20\" \
         font-size=\"15\">{title} (logarithmic)</text>\n"
    );
    for (at, (line, time)) in lines.iter().zip(&times).enumerate() {
        let y = TOP + LINE * at as f64;
        let color = match &line.row {
            row if row.method == FLOOR => "#999999",
            row if row.contestant.starts_with(OURS) => "#1f4e8c",
            _ => "#d98c3a",
        };
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}: {}</text><rect x=\"{LEFT}\" y=\"{y}\" width=\"{:.1}\" \
             height=\"{}\" fill=\"{color}\"/><text x=\"{:.1}\" y=\"{}\">{time:.1}</text>",
            LEFT - 6.0,
            y + 12.0,
            line.row.method,
            line.row.contestant,
            length(*time),
            LINE - 4.0,
            LEFT + length(*time) + 5.0,
            y + 12.0,
        );
    }
    svg + "</svg>\n"
}

/// A bar of several parts.
pub(super) struct Stack {
    pub(super) name: String,
    /// Milliseconds, in the order of the legend.
    pub(super) parts: Vec<f64>,
}

/// Bars of parts, from zero; with a legend.
pub(super) fn stacks(title: &str, legend: &[&str], stacks: &[Stack]) -> String {
    let most = stacks.iter().map(|stack| stack.parts.iter().sum()).fold(f64::MIN_POSITIVE, f64::max);
    let scale = (WIDTH - LEFT - 80.0) / most;
    let top = TOP + LINE;
    let height = top + LINE * stacks.len() as f64 + 10.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"10\" y=\"20\" \
         font-size=\"15\">{title}</text>\n"
    );
    for (at, (name, color)) in legend.iter().zip(COLORS).enumerate() {
        let x = LEFT + 110.0 * at as f64;
        let _ = writeln!(
            svg,
            "<rect x=\"{x}\" y=\"{}\" width=\"12\" height=\"12\" fill=\"{color}\"/><text x=\"{}\" y=\"{}\">{name}</text>",
            TOP - 2.0,
            x + 17.0,
            TOP + 9.0
        );
    }
    for (at, stack) in stacks.iter().enumerate() {
        let y = top + LINE * at as f64;
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{}\" text-anchor=\"end\">{}</text>",
            LEFT - 6.0,
            y + 12.0,
            stack.name
        );
        let mut x = LEFT;
        for (part, color) in stack.parts.iter().zip(COLORS).filter(|(part, _)| **part > 0.0) {
            let width = scale * part;
            let _ = writeln!(
                svg,
                "<rect x=\"{x:.1}\" y=\"{y}\" width=\"{width:.1}\" height=\"{}\" fill=\"{color}\"/>",
                LINE - 4.0
            );
            x += width;
        }
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\">{:.1}</text>",
            x + 5.0,
            y + 12.0,
            stack.parts.iter().sum::<f64>()
        );
    }
    svg + "</svg>\n"
}

/// A curve by name.
pub(super) type Curve = (String, Vec<(f64, f64)>);

const COLORS: [&str; 6] = ["#1f4e8c", "#d98c3a", "#3a8c4e", "#8c3a6e", "#6e6e6e", "#2aa1a1"];

/// Curves over a logarithmic horizontal axis; the vertical one starts at zero, so that flat looks flat.
pub(super) fn curves(title: &str, horizontal: &str, vertical: &str, curves: &[Curve]) -> String {
    let (height, bottom, left, right) = (320.0, 270.0, 60.0, 700.0);
    let points = || curves.iter().flat_map(|(_, points)| points);
    let least = points().map(|point| point.0).fold(f64::INFINITY, f64::min);
    let most = points().map(|point| point.0).fold(0.0, f64::max).max(2.0 * least);
    let top = 1.1 * points().map(|point| point.1).fold(0.0, f64::max);
    let x = |value: f64| left + (value / least).ln() / (most / least).ln() * (right - left);
    let y = |value: f64| bottom - value / top * (bottom - TOP);
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"10\" y=\"20\" \
         font-size=\"15\">{title}</text>\n<path d=\"M{left} {TOP}V{bottom}H{right}\" fill=\"none\" stroke=\"black\"/>\n\
         <text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{horizontal}</text>\n\
         <text transform=\"translate(14 {}) rotate(-90)\" text-anchor=\"middle\">{vertical}</text>\n",
        0.5 * (left + right),
        height - 8.0,
        0.5 * (TOP + bottom),
    );
    let mut ticks: Vec<f64> = points().map(|point| point.0).collect();
    ticks.sort_by(f64::total_cmp);
    ticks.dedup();
    for tick in ticks {
        let _ = writeln!(
            svg,
            "<text x=\"{:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            x(tick),
            bottom + 16.0,
            short(tick)
        );
    }
    for share in [0.0, 0.25, 0.5, 0.75, 1.0] {
        let value = share * top;
        let _ = writeln!(
            svg,
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{value:.1}</text>",
            left - 4.0,
            y(value) + 4.0
        );
    }
    for (at, (name, points)) in curves.iter().enumerate() {
        let color = COLORS[at % COLORS.len()];
        let path: Vec<_> = points.iter().map(|(a, b)| format!("{:.1},{:.1}", x(*a), y(*b))).collect();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\"/><text x=\"{}\" y=\"{}\" \
             fill=\"{color}\">{name}</text>",
            path.join(" "),
            right + 14.0,
            TOP + 18.0 * at as f64 + 12.0,
        );
    }
    svg + "</svg>\n"
}

/// 30000000 as `30M`.
fn short(value: f64) -> String {
    match value {
        v if v >= 1e6 => format!("{}M", v / 1e6),
        v if v >= 1e3 => format!("{}k", v / 1e3),
        v => format!("{v}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn curves_start_left_end_right_and_stand_on_zero() {
        let flat = ("flat".to_owned(), vec![(1e6, 2.0), (1e7, 2.0), (1e8, 2.0)]);
        let svg = curves("t", "parameters", "ns", &[flat, ("one".to_owned(), vec![(1e6, 1.0)])]);
        // 2 of 2.2: ten elevenths of the 236 pixels above 270.
        assert!(svg.contains("points=\"60.0,55.5 380.0,55.5 700.0,55.5\""), "{svg}");
        for part in [">1M<", ">10M<", ">100M<", ">flat</text>", ">0.0</text>", ">2.2</text>"] {
            assert!(svg.contains(part), "{part}: {svg}");
        }
        assert_eq!(["3", "10k", "1000M"], [3.0, 1e4, 1e9].map(short).each_ref().map(String::as_str));
    }
}
