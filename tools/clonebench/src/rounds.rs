//! Rounds in which what is compared takes turns, and what comes out of them.

use serde::Serialize;

use crate::bench::Bench;
use crate::failure::Outcome;

/// One thing that is measured: its name, and how to measure it once.
pub type Contender<'a> = (&'a str, Box<dyn FnMut() -> Outcome<f64> + 'a>);

/// All figures of one contender, one for each round.
#[derive(Clone, Debug, Serialize)]
pub struct Series {
    /// What was measured.
    pub name: String,
    /// The figures in the order of the rounds.
    pub figures: Vec<f64>,
}

/// Measures all contenders once in each round. Each round begins with another one, so that no one always comes first.
pub fn rounds(bench: &Bench, what: &str, mut contenders: Vec<Contender>) -> Outcome<Vec<Series>> {
    let count = bench.settings.rounds as usize;
    let new = |(name, _): &Contender| Series { name: (*name).to_owned(), figures: vec![f64::NAN; count] };
    let mut series: Vec<Series> = contenders.iter().map(new).collect();
    for round in 0..count {
        for turn in 0..contenders.len() {
            let at = (round + turn) % contenders.len();
            bench.step(&format!("{what}, round {} of {count}: {}", round + 1, contenders[at].0))?;
            series[at].figures[round] = (contenders[at].1)()?;
        }
    }
    Ok(series)
}

/// A quantile; 0.5 is the median.
pub fn quantile(figures: &[f64], q: f64) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        len if len.is_multiple_of(2) && (q - 0.5).abs() < f64::EPSILON => (sorted[len / 2 - 1] + sorted[len / 2]) / 2.0,
        len => sorted[((len - 1) as f64 * q).round() as usize],
    }
}

/// The median.
pub fn median(figures: &[f64]) -> f64 {
    quantile(figures, 0.5)
}

/// The median of the ratios of two series, round by round.
pub fn ratio(of: &Series, to: &Series) -> f64 {
    let ratios: Vec<f64> = of.figures.iter().zip(&to.figures).map(|(a, b)| a / b).collect();
    median(&ratios)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle_one_or_between_the_two() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(quantile(&[1.0, 2.0, 3.0, 4.0, 5.0], 1.0), 5.0);
    }

    #[test]
    fn a_ratio_is_of_rounds_and_not_of_medians() {
        let series = |figures: &[f64]| Series { name: String::new(), figures: figures.to_vec() };
        // The machine was ten times slower in the last round: both were.
        assert_eq!(ratio(&series(&[80.0, 82.0, 7.0]), &series(&[100.0, 100.0, 10.0])), 0.8);
    }
}
