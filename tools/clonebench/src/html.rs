//! The report as one page of HTML that needs nothing else: no script, no other file.

use crate::curve::Curve;
use crate::failure::Outcome;
use crate::plot;
use crate::report::{Report, Table, number};
use crate::rounds::{median, quantile};

const STYLE: &str = "body { font-family: sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em }
table { border-collapse: collapse; margin: .5em 0 2em }
th, td { padding: .2em .8em; border-bottom: 1px solid #ccc; text-align: right }
th:first-child, td:first-child { text-align: left }
code { font-size: 90% }
.missed { color: #b00 }
svg { max-width: 100%; height: auto }";

/// The whole page. It is well-formed XML too.
pub fn page(report: &Report) -> Outcome<String> {
    let mut page = String::from("<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"/>");
    page += &format!("<title>clonebench</title>\n<style>{STYLE}</style></head>\n<body>\n<h1>clonebench</h1>\n");
    page += &format!("<p>{}</p>\n", escape(&report.headline()));
    for curve in &report.curves {
        page += &plotted(curve)?;
    }
    for table in &report.tables {
        page += &measured(table);
    }
    if !report.not_run.is_empty() {
        page += "<h2>Not run</h2>\n<ul>\n";
        for row in &report.not_run {
            page += &format!("<li>{}: {}</li>\n", escape(&row.row), escape(&row.why));
        }
        page += "</ul>\n";
    }
    Ok(page + "</body>\n</html>\n")
}

fn plotted(curve: &Curve) -> Outcome<String> {
    let places = curve.places();
    let mut text = format!("<h2>{}</h2>\n<p>{}</p>\n{}", escape(&curve.name), escape(&curve.how), plot::svg(curve)?);
    text += &format!("<table><tr><th>{}; {}</th>", escape(curve.unit), escape(curve.x));
    for x in &places {
        text += &format!("<th>{}</th>", number(*x));
    }
    text += "</tr>\n";
    for line in &curve.lines {
        text += &format!("<tr><td>{}</td>", escape(&line.name));
        for x in &places {
            text += &format!("<td>{}</td>", Curve::at(line, *x).map_or_else(String::new, number));
        }
        text += "</tr>\n";
    }
    Ok(text + "</table>\n")
}

fn measured(table: &Table) -> String {
    let (name, how) = (escape(&table.name), escape(&table.how));
    let mut text = format!("<h2>{name}</h2>\n<p><code>{how}</code></p>\n<table><tr><th></th>");
    text += &format!("<th>{}</th><th>least</th><th>greatest</th></tr>\n", escape(table.unit));
    for series in &table.series {
        let (low, high) = (quantile(&series.figures, 0.0), quantile(&series.figures, 1.0));
        let (middle, low, high) = (number(median(&series.figures)), number(low), number(high));
        let name = escape(&series.name);
        text += &format!("<tr><td>{name}</td><td>{middle}</td><td>{low}</td><td>{high}</td></tr>\n");
    }
    for verdict in &table.verdicts {
        let class = if verdict.met == Some(false) { " class=\"missed\"" } else { "" };
        let (name, value) = (escape(&verdict.name), number(verdict.value));
        let bar = escape(&verdict.bar());
        text += &format!("<tr{class}><td>{name}</td><td>{value}</td><td colspan=\"2\">{bar}</td></tr>\n");
    }
    text + "</table>\n"
}

/// Text as it stands in HTML.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
