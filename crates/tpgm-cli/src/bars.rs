//! Horizontal bars with a name each, as SVG.

use crate::table::number;

/// Values of several kinds for each of some names, in their order from top to bottom.
pub(crate) struct Bars<'a> {
    /// Above the bars.
    pub(crate) title: &'a str,
    /// What is left of each group of bars.
    pub(crate) labels: &'a [&'a str],
    /// One bar per label each.
    pub(crate) series: Vec<Series>,
}

/// The bars of one color.
pub(crate) struct Series {
    /// As in the legend.
    pub(crate) name: String,
    /// A value per label, at least 0; `None` or infinite draws nothing.
    pub(crate) values: Vec<Option<f64>>,
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
    /// The SVG. Every series has a value per label.
    pub(crate) fn svg(&self) -> String {
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
            svg += &format!("<rect x=\"{x}\" y=\"34\" width=\"12\" height=\"12\" fill=\"{color}\"/>\n");
            svg += &format!("<text x=\"{}\" y=\"45\">{}</text>\n", x + 18, escaped(&series.name));
            x += 40 + LETTER * series.name.chars().count();
        }
        for (row, label) in self.labels.iter().enumerate() {
            let y = TOP + row * group;
            let middle = y + (group - GAP) / 2 + 4;
            let end = left - 6;
            svg +=
                &format!("<text x=\"{end}\" y=\"{middle}\" text-anchor=\"end\">{}</text>\n", escaped(label));
            for (place, (series, color)) in self.series.iter().zip(COLORS.iter().cycle()).enumerate() {
                let Some(value) = series.values[row].filter(|value| value.is_finite()) else { continue };
                let (y, long) = (y + place * BAR, value * scale);
                svg += &format!(
                    "<rect x=\"{left}\" y=\"{y}\" width=\"{long:.1}\" height=\"{BAR}\" fill=\"{color}\"/>\n"
                );
                let (x, y) = (left as f64 + long + 3.0, y + BAR);
                svg += &format!("<text x=\"{x:.1}\" y=\"{y}\" font-size=\"9\">{}</text>\n", number(value));
            }
        }
        svg + "</svg>\n"
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
            series("small", vec![Some(2.5e-5), None]),
        ];
        let svg = Bars { title: "t", labels: &["one", "two"], series }.svg();
        assert!(svg.contains("width=\"520.0\"") && svg.contains("width=\"130.0\""), "{svg}");
        assert_eq!(svg.matches("height=\"8\"").count(), 3, "no bar without a finite value: {svg}");
        for text in ["before", "a&lt;b", "one", "two", ">4.000<", ">1.000<", ">2.500e-5<"] {
            assert!(svg.contains(text), "{text}: {svg}");
        }
    }
}
