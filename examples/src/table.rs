//! A table of text, as Markdown, CSV or for the terminal.

/// Rows under a header. The first column is text, the others are numbers.
#[derive(Debug, Clone, Default)]
pub struct Table {
    /// Names of the columns.
    pub header: Vec<String>,
    /// Cells, as many per row as the header has.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    /// A table without rows.
    pub fn new(header: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { header: header.into_iter().map(Into::into).collect(), rows: Vec::new() }
    }

    /// As Markdown.
    pub fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let rule: Vec<_> = (0..self.header.len())
            .map(|column| if column == 0 { "---".to_owned() } else { "---:".to_owned() })
            .collect();
        let rows: String = self.rows.iter().map(|row| line(row)).collect();
        line(&self.header) + &line(&rule) + &rows
    }

    /// As comma-separated values with a header line (RFC 4180).
    pub fn csv(&self) -> String {
        let quoted = |cell: &String| match cell.contains([',', '"', '\n']) {
            true => format!("\"{}\"", cell.replace('"', "\"\"")),
            false => cell.clone(),
        };
        let line = |cells: &Vec<String>| cells.iter().map(quoted).collect::<Vec<_>>().join(",") + "\n";
        std::iter::once(&self.header).chain(&self.rows).map(line).collect()
    }

    /// With aligned columns.
    pub fn text(&self) -> String {
        let lines = || std::iter::once(&self.header).chain(&self.rows);
        let width = |column: usize| {
            lines().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<_> = (0..self.header.len()).map(width).collect();
        let mut text = String::new();
        for row in lines() {
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                let cell = if column == 0 { format!("{cell:<width$}") } else { format!("  {cell:>width$}") };
                text.push_str(&cell);
            }
            text.push('\n');
        }
        text
    }
}

/// Mean and sample standard deviation; the latter is `None` for fewer than two values.
pub fn mean_and_deviation(values: &[f64]) -> (f64, Option<f64>) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
    (mean, (values.len() > 1).then(|| (squares / (count - 1.0)).sqrt()))
}

/// `12.3` for one value, `12.3 ± 0.4` for several.
pub fn with_deviation(values: &[f64], decimals: usize) -> String {
    match mean_and_deviation(values) {
        (mean, None) => format!("{mean:.decimals$}"),
        (mean, Some(deviation)) => format!("{mean:.decimals$} ± {deviation:.decimals$}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        let mut table = Table::new(["method", "ID"]);
        table.rows.push(vec!["a, b".to_owned(), "1.5".to_owned()]);
        table
    }

    #[test]
    fn markdown_aligns_numbers_right() {
        assert_eq!(table().markdown(), "| method | ID |\n| --- | ---: |\n| a, b | 1.5 |\n");
    }

    #[test]
    fn csv_quotes_commas() {
        assert_eq!(table().csv(), "method,ID\n\"a, b\",1.5\n");
        let quote = Table::new(["the \"best\""]);
        assert_eq!(quote.csv(), "\"the \"\"best\"\"\"\n");
    }

    #[test]
    fn text_has_aligned_columns() {
        assert_eq!(table().text(), "method   ID\na, b    1.5\n");
    }

    #[test]
    fn the_deviation_is_that_of_a_sample() {
        // (1, 2, 4): mean 7/3, squares 16/9 + 1/9 + 25/9 = 42/9, over two.
        let (mean, deviation) = mean_and_deviation(&[1.0, 2.0, 4.0]);
        assert!((mean - 7.0 / 3.0).abs() < 1e-12);
        assert!((deviation.unwrap() - (42.0f64 / 18.0).sqrt()).abs() < 1e-12);
        assert_eq!(with_deviation(&[3.0], 1), "3.0");
    }
}
