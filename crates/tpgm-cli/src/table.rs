//! A table for the terminal, as CSV and as Markdown.

/// Rows under a header.
#[derive(Debug, Clone, Default)]
pub(crate) struct Table {
    /// Names of the columns.
    pub(crate) header: Vec<String>,
    /// Cells, as many per row as the header has.
    pub(crate) rows: Vec<Vec<String>>,
    /// Columns from the left that are text; the others are numbers.
    pub(crate) text_columns: usize,
}

impl Table {
    pub(crate) fn new(text_columns: usize, header: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { header: header.into_iter().map(Into::into).collect(), rows: Vec::new(), text_columns }
    }

    fn lines(&self) -> impl Iterator<Item = &Vec<String>> {
        std::iter::once(&self.header).chain(&self.rows)
    }

    /// With aligned columns.
    pub(crate) fn text(&self) -> String {
        let width = |column: usize| self.lines().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<_> = (0..self.header.len()).map(width).collect();
        let mut text = String::new();
        for row in self.lines() {
            let cells = row.iter().zip(&widths).enumerate().map(|(column, (cell, width))| {
                if column < self.text_columns { format!("{cell:<width$}") } else { format!("{cell:>width$}") }
            });
            text += cells.collect::<Vec<_>>().join("  ").trim_end();
            text.push('\n');
        }
        text
    }

    /// As comma-separated values with a header line (RFC 4180).
    pub(crate) fn csv(&self) -> String {
        let quoted = |cell: &String| match cell.contains([',', '"', '\n']) {
            true => format!("\"{}\"", cell.replace('"', "\"\"")),
            false => cell.clone(),
        };
        self.lines().map(|row| row.iter().map(quoted).collect::<Vec<_>>().join(",") + "\n").collect()
    }

    /// As Markdown.
    pub(crate) fn markdown(&self) -> String {
        let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
        let rule = |column| if column < self.text_columns { "---" } else { "---:" }.to_owned();
        let rule: Vec<_> = (0..self.header.len()).map(rule).collect();
        line(&self.header) + &line(&rule) + &self.rows.iter().map(|row| line(row)).collect::<String>()
    }
}

/// `2 x 3`; `scalar` for no dimensions.
pub(crate) fn shape(shape: &[usize]) -> String {
    match shape {
        [] => "scalar".to_owned(),
        _ => shape.iter().map(usize::to_string).collect::<Vec<_>>().join(" x "),
    }
}

/// Four digits, as far as they are worth reading.
pub(crate) fn number(x: f64) -> String {
    let size = x.abs();
    if size == 0.0 || !size.is_finite() {
        return x.to_string();
    }
    if !(1e-4..1e6).contains(&size) {
        return format!("{x:.3e}");
    }
    let decimals = (3 - size.log10().floor() as i32).clamp(0, 6) as usize;
    format!("{x:.decimals$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_commas_quoted() {
        let mut table = Table::new(1, ["tensor", "L2"]);
        table.rows.push(vec!["a, b".to_owned(), "1.50".to_owned()]);
        assert_eq!(table.text(), "tensor    L2\na, b    1.50\n");
        assert_eq!(table.csv(), "tensor,L2\n\"a, b\",1.50\n");
        assert_eq!(table.markdown(), "| tensor | L2 |\n| --- | ---: |\n| a, b | 1.50 |\n");
        assert_eq!((shape(&[]), shape(&[2, 3])), ("scalar".to_owned(), "2 x 3".to_owned()));
    }
}
