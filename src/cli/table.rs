//! Tables of text with aligned columns.

use unicode_width::UnicodeWidthStr;

/// Side on which a column's cells stand.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Align {
    Left,
    Right,
}

/// A table that is printed when it is complete.
pub struct Table {
    columns: Vec<Align>,
    rows: Vec<Vec<Vec<u8>>>,
}

impl Table {
    /// A table with these headings.
    pub fn new(columns: &[(&str, Align)]) -> Table {
        let heading = columns.iter().map(|(name, _)| name.as_bytes().to_vec()).collect();
        Table { columns: columns.iter().map(|(_, align)| *align).collect(), rows: vec![heading] }
    }

    /// Adds a row; it has as many cells as there are headings. Cells are bytes because names are.
    pub fn row(&mut self, cells: Vec<Vec<u8>>) {
        self.rows.push(cells);
    }

    /// The table, with two blanks between columns and none at the ends of lines.
    pub fn render(&self) -> Vec<u8> {
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|i| self.rows.iter().filter_map(|row| row.get(i)).map(|cell| width(cell)).max().unwrap_or(0))
            .collect();
        let mut out = Vec::new();
        for row in &self.rows {
            let start = out.len();
            for (i, (cell, align)) in row.iter().zip(&self.columns).enumerate() {
                let blanks = vec![b' '; widths[i] - width(cell)];
                out.extend_from_slice(if i > 0 { b"  " } else { b"" });
                match align {
                    Align::Left => out.extend(cell.iter().chain(&blanks)),
                    Align::Right => out.extend(blanks.iter().chain(cell)),
                }
            }
            let kept = out[start..].iter().rposition(|&b| b != b' ').map_or(start, |last| start + last + 1);
            out.truncate(kept);
            out.push(b'\n');
        }
        out
    }
}

/// Columns that a cell takes on a terminal.
fn width(cell: &[u8]) -> usize {
    String::from_utf8_lossy(cell).width()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_lines_have_no_tails() {
        let mut table = Table::new(&[("NAME", Align::Left), ("SIZE", Align::Right), ("FROM", Align::Left)]);
        table.row(vec![b"a-long-name".to_vec(), b"1G".to_vec(), b"".to_vec()]);
        table.row(vec!["\u{4e2d}.img".into(), b"100G".to_vec(), b"x".to_vec()]);
        let wanted = "NAME         SIZE  FROM\na-long-name    1G\n\u{4e2d}.img       100G  x\n";
        assert_eq!(String::from_utf8(table.render()).unwrap(), wanted);
    }

    #[test]
    fn names_that_are_not_text_go_through_as_they_are() {
        let mut table = Table::new(&[("NAME", Align::Left)]);
        table.row(vec![vec![0xff, b'a']]);
        assert_eq!(table.render(), b"NAME\n\xffa\n");
    }
}
