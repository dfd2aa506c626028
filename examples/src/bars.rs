//! Horizontal bars with a name each, as SVG.

use std::fmt::Write as _;

use anyhow::{Result, ensure};

/// Values of several kinds for each of some names, in their order from top to bottom.
pub struct Bars<'a> {
    /// Above the bars.
    pub title: &'a str,
    /// What is left of each group of bars.
    pub labels: &'a [&'a str],
    /// One bar per label each.
    pub series: Vec<Series>,
}

/// The bars of one color.
pub struct Series {
    /// As in the legend.
    pub name: String,
    /// A value per label, at least 0; `None` or infinite draws nothing.
    pub values: Vec<Option<f64>>,
}

/// Colors of the series, in their order; the first ones again if there are more.
const COLORS: [&str; 5] = ["#9db4cc", "#d1495b", "#2e7d6b", "#edae49", "#66457e"];
/// Pixels of one bar's height.
const BAR: usize = 8;
/// Pixels between two groups.
const GAP: usize = 5;
/// Pixels of a bar of the largest value.
const WIDTH: f64 = 520.0;
/// Pixels of a letter, about.
const LETTER: usize = 7;
/// Pixels above the bars.
const TOP: usize = 64;

impl Bars<'_> {
    /// The SVG.
    ///
    /// # Errors
    ///
    /// No series, or one with another number of values than there are labels.
    pub fn svg(&self) -> Result<String> {
        ensure!(!self.series.is_empty(), "a plot needs bars");
        for series in &self.series {
            let fits = series.values.len() == self.labels.len();
            ensure!(
                fits,
                "`{}` has {} bars for {} labels",
                series.name,
                series.values.len(),
                self.labels.len()
            );
        }
        let values =
            || self.series.iter().flat_map(|series| &series.values).flatten().filter(|x| x.is_finite());
        let largest = values().fold(0.0f64, |most, x| most.max(*x));
        let scale = if largest > 0.0 { WIDTH / largest } else { 0.0 };
        let left = 16 + LETTER * self.labels.iter().map(|label| label.chars().count()).max().unwrap_or(0);
        let group = BAR * self.series.len() + GAP;
        let (width, height) = (left + WIDTH as usize + 90, TOP + group * self.labels.len() + 10);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" font-family=\"sans-serif\" \
             font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
             <text x=\"16\" y=\"22\" font-size=\"16\">{}</text>\n",
            escaped(self.title),
        );
        let mut x = 16;
        for (series, color) in self.series.iter().zip(COLORS.iter().cycle()) {
            writeln!(svg, "<rect x=\"{x}\" y=\"34\" width=\"12\" height=\"12\" fill=\"{color}\"/>")?;
            writeln!(svg, "<text x=\"{}\" y=\"45\">{}</text>", x + 18, escaped(&series.name))?;
            x += 40 + LETTER * series.name.chars().count();
        }
        for (row, label) in self.labels.iter().enumerate() {
            let y = TOP + row * group;
            let middle = y + (group - GAP) / 2 + 4;
            writeln!(
                svg,
                "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\">{}</text>",
                left - 6,
                escaped(label)
            )?;
            for (place, (series, color)) in self.series.iter().zip(COLORS.iter().cycle()).enumerate() {
                let Some(value) = series.values[row].filter(|value| value.is_finite()) else { continue };
                let (y, long) = (y + place * BAR, value * scale);
                writeln!(
                    svg,
                    "<rect x=\"{left}\" y=\"{y}\" width=\"{long:.1}\" height=\"{BAR}\" fill=\"{color}\"/>"
                )?;
                let end = left as f64 + long + 3.0;
                writeln!(svg, "<text x=\"{end:.1}\" y=\"{}\" font-size=\"9\">{value:.3}</text>", y + BAR)?;
            }
        }
        svg.push_str("</svg>\n");
        Ok(svg)
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_bar_is_the_largest_value_and_others_are_in_proportion() {
        let series = |name: &str, values| Series { name: name.to_owned(), values };
        let series = vec![
            series("before", vec![Some(4.0), None]),
            series("a<b", vec![Some(1.0), Some(f64::INFINITY)]),
        ];
        let svg = Bars { title: "t", labels: &["one", "two"], series }.svg().unwrap();
        assert!(svg.contains("width=\"520.0\"") && svg.contains("width=\"130.0\""), "{svg}");
        assert_eq!(svg.matches("height=\"8\"").count(), 2, "no bar without a finite value: {svg}");
        for text in ["before", "a&lt;b", "one", "two", ">4.000<", ">1.000<"] {
            assert!(svg.contains(text), "{text}: {svg}");
        }
    }

    #[test]
    fn bars_that_do_not_fit_their_labels_are_refused() {
        let series = vec![Series { name: "s".to_owned(), values: vec![None] }];
        let error = Bars { title: "t", labels: &["one", "two"], series }.svg().unwrap_err();
        assert_eq!(error.to_string(), "`s` has 1 bars for 2 labels");
        assert!(Bars { title: "t", labels: &[], series: vec![] }.svg().is_err());
    }
}
