//! A curve as SVG.

use std::error::Error;

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::curve::{Curve, Line};
use crate::failure::{Failure, Outcome};
use crate::report::number;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = Result<(), Box<dyn Error>>;

const SIZE: (u32, u32) = (900, 420);
/// Width of the part with the plot; the names of the lines are beside it.
const PLOT: u32 = 680;
const FONT: (&str, u32) = ("sans-serif", 14);

/// Both axes are logarithmic: a cost that does not change is a level line, one that grows with size a rising one.
pub fn svg(curve: &Curve) -> Outcome<String> {
    let mut text = String::new();
    let area = SVGBackend::with_string(&mut text, SIZE).into_drawing_area();
    draw(curve, &area).map_err(|error| Failure::line(format!("plot of {}: {error}", curve.name)))?;
    drop(area);
    Ok(text)
}

fn draw(curve: &Curve, area: &Area) -> Drawn {
    area.fill(&WHITE)?;
    let (plot, names) = area.split_horizontally(PLOT);
    let xs = range(curve.places().into_iter())?;
    let spans = curve.lines.iter().flat_map(|line| &line.points).map(|point| point.span());
    let ys = range(spans.flat_map(|(_, low, high)| [low, high]))?;
    let mut builder = ChartBuilder::on(&plot);
    builder.margin(12).x_label_area_size(44).y_label_area_size(76);
    let mut chart = builder.build_cartesian_2d(xs.log_scale(), ys.log_scale())?;
    let mut mesh = chart.configure_mesh();
    mesh.x_desc(curve.x).y_desc(curve.unit).label_style(FONT).axis_desc_style(FONT);
    mesh.x_label_formatter(&|x| number(*x)).y_label_formatter(&|y| number(*y));
    mesh.light_line_style(WHITE).draw()?;
    for (at, line) in curve.lines.iter().enumerate() {
        let color = Palette99::pick(at).to_rgba();
        let points: Vec<_> = line.points.iter().map(|point| (point.x, point.span())).collect();
        let middles: Vec<(f64, f64)> = points.iter().map(|(x, (middle, ..))| (*x, *middle)).collect();
        // From the least figure to the greatest.
        let spans = points.iter().map(|(x, (_, low, high))| PathElement::new(vec![(*x, *low), (*x, *high)], color));
        chart.draw_series(spans)?;
        chart.draw_series(middles.iter().map(|point| Circle::new(*point, 3, color.filled())))?;
        chart.draw_series([PathElement::new(middles, color.stroke_width(2))])?;
    }
    legend(&names, &curve.lines)?;
    area.present()?;
    Ok(())
}

fn legend(area: &Area, lines: &[Line]) -> Drawn {
    for (at, line) in lines.iter().enumerate() {
        let y = 24 + 22 * i32::try_from(at)?;
        let color = Palette99::pick(at).to_rgba();
        area.draw(&PathElement::new(vec![(4, y), (28, y)], color.stroke_width(2)))?;
        area.draw(&Circle::new((16, y), 3, color.filled()))?;
        area.draw(&Text::new(line.name.as_str(), (36, y - 7), FONT))?;
    }
    Ok(())
}

/// The part of an axis that these figures need.
fn range(figures: impl Iterator<Item = f64>) -> Result<std::ops::Range<f64>, Box<dyn Error>> {
    let figures: Vec<f64> = figures.filter(|figure| figure.is_finite() && *figure > 0.0).collect();
    let least = figures.iter().copied().min_by(f64::total_cmp).ok_or("there are no figures")?;
    let most = figures.iter().copied().max_by(f64::total_cmp).unwrap_or(least);
    Ok(least / 1.5..most * 1.5)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rounds::Series;

    #[test]
    fn a_plot_has_a_line_and_a_name_for_each_contender_and_a_dot_for_each_point() {
        let mut curve = Curve::new("clones", "by hand", "MiB", "ms");
        for (x, figures) in [(1.0, [1.0, 10.0]), (100.0, [1.0, 1000.0]), (10_000.0, [1.0, 100_000.0])] {
            let series = |(name, figure): (&str, f64)| Series { name: name.to_owned(), figures: vec![figure] };
            curve.add(x, [("flat", figures[0]), ("a<b", figures[1])].map(series).to_vec());
        }
        let svg = svg(&curve).unwrap();
        assert_eq!(svg.matches("<circle").count(), 2 * 3 + 2);
        assert!(svg.contains("flat") && svg.contains("a&lt;b") && !svg.contains("a<b"), "{svg}");
        let level = |line: &str| -> Vec<f64> {
            let from = line.find("points=\"").unwrap() + 8;
            let points = line[from..].split('"').next().unwrap().split_whitespace();
            points.map(|point| point.split(',').nth(1).unwrap().parse().unwrap()).collect()
        };
        // Three points each: the two lines. The first is level, the second rises.
        let lines = svg.lines().filter(|line| line.contains("<polyline")).map(level).filter(|line| line.len() == 3);
        let lines: Vec<Vec<f64>> = lines.collect();
        assert_eq!(lines.len(), 2, "{svg}");
        assert!(lines[0][0] == lines[0][2] && lines[1][0] > lines[1][1] && lines[1][1] > lines[1][2], "{lines:?}");
    }

    #[test]
    fn one_figure_can_be_plotted_and_none_is_an_error() {
        let mut curve = Curve::new("clones", "by hand", "MiB", "ms");
        assert!(svg(&curve).is_err());
        curve.add(1.0, vec![Series { name: "a".to_owned(), figures: vec![2.0] }]);
        assert!(svg(&curve).unwrap().contains("<circle"));
    }
}
