//! How figures change with something: size, fragmentation, depth, number of clones.

use serde::Serialize;

use crate::report::number;
use crate::rounds::{Series, median, quantile};

/// Figures of one contender at one place.
#[derive(Clone, Debug, Serialize)]
pub struct Point {
    /// The place.
    pub x: f64,
    /// The figures.
    pub figures: Vec<f64>,
}

/// One contender.
#[derive(Clone, Debug, Serialize)]
pub struct Line {
    /// Its name.
    pub name: String,
    /// Its points, from left to right.
    pub points: Vec<Point>,
}

/// Figures against something.
#[derive(Clone, Debug, Serialize)]
pub struct Curve {
    /// What was measured.
    pub name: String,
    /// How it was done.
    pub how: String,
    /// What changes, with its unit.
    pub x: &'static str,
    /// Unit of the figures.
    pub unit: &'static str,
    /// The contenders.
    pub lines: Vec<Line>,
}

impl Point {
    /// The median of its figures, the least and the greatest of them.
    pub fn span(&self) -> (f64, f64, f64) {
        (median(&self.figures), quantile(&self.figures, 0.0), quantile(&self.figures, 1.0))
    }
}

impl Curve {
    /// Without any points yet.
    pub fn new(name: impl Into<String>, how: impl Into<String>, x: &'static str, unit: &'static str) -> Curve {
        Curve { name: name.into(), how: how.into(), x, unit, lines: Vec::new() }
    }

    /// Adds what was measured at one place.
    pub fn add(&mut self, x: f64, series: Vec<Series>) {
        for Series { name, figures } in series {
            let point = Point { x, figures };
            match self.lines.iter_mut().find(|line| line.name == name) {
                Some(line) => line.points.push(point),
                None => self.lines.push(Line { name, points: vec![point] }),
            }
        }
    }

    /// All places, from left to right.
    pub fn places(&self) -> Vec<f64> {
        let mut places: Vec<f64> = self.lines.iter().flat_map(|line| &line.points).map(|point| point.x).collect();
        places.sort_by(f64::total_cmp);
        places.dedup();
        places
    }

    /// The median of a line at a place, if it was measured there.
    pub fn at(line: &Line, x: f64) -> Option<f64> {
        line.points.iter().find(|point| point.x == x).map(|point| point.span().0)
    }

    /// As a table of medians.
    pub fn text(&self) -> String {
        let mut text = format!("\n{} ({})\n    {}\n    {:<24}", self.name, self.unit, self.how, self.x);
        let places = self.places();
        for x in &places {
            text += &format!(" {:>9}", number(*x));
        }
        for line in &self.lines {
            text += &format!("\n    {:<24}", line.name);
            for x in &places {
                text += &format!(" {:>9}", Curve::at(line, *x).map_or_else(|| "-".to_owned(), number));
            }
        }
        text + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_contender_that_was_not_measured_somewhere_has_no_figure_there() {
        let mut curve = Curve::new("clones", "by hand", "MiB", "ms");
        let series = |name: &str, figures: &[f64]| Series { name: name.to_owned(), figures: figures.to_vec() };
        curve.add(2.0, vec![series("a", &[3.0, 1.0, 2.0])]);
        curve.add(1.0, vec![series("a", &[5.0]), series("b", &[7.0])]);
        assert_eq!(curve.places(), [1.0, 2.0]);
        assert_eq!(curve.lines[0].points[0].span(), (2.0, 1.0, 3.0));
        assert_eq!(Curve::at(&curve.lines[1], 2.0), None);
        let text = curve.text();
        let row = text.lines().find(|line| line.trim_start().starts_with("b ")).unwrap();
        assert_eq!(row.split_whitespace().collect::<Vec<_>>(), ["b", "7.00", "-"]);
    }
}
