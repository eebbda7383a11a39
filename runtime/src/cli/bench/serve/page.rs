//! A run as one page that needs nothing else: figures, and plots of when and how fast.

use super::chart::{Chart, Kind, escaped};
use super::exchange::Record;
use super::report::{COLUMNS, Report};
use super::summary::Figures;
use crate::amount;

const STYLE: &str = include_str!("page.css");
/// Parts of the time that a timeline has.
const BUCKETS: usize = 120;

/// The whole page.
pub fn page(report: &Report<'_>) -> String {
    let heading = escaped(&report.heading());
    let cell = |text: &str| format!("<td>{}</td>", escaped(text));
    let facts: String = report
        .facts()
        .iter()
        .map(|(name, text)| format!("<tr><th scope=\"row\">{}</th>{}</tr>", escaped(name), cell(text)))
        .collect();
    let header: String = COLUMNS.iter().map(|name| format!("<th scope=\"col\">{name}</th>")).collect();
    let rows: String = report
        .times()
        .iter()
        .map(|(name, figures)| {
            let cells: String = figures.columns().iter().map(|value| cell(&amount::decimal(value * 1e3))).collect();
            format!("<tr><th scope=\"row\">{name}</th>{cells}</tr>")
        })
        .collect();
    let plots: String = plots(report)
        .iter()
        .map(|(title, svg)| format!("<figure><figcaption>{title}</figcaption>{svg}</figure>"))
        .collect();
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <title>farpost bench serve</title><style>{STYLE}</style></head><body>\
         <h1>farpost bench serve</h1><p class=\"about\">{heading}</p>\
         <table class=\"facts\">{facts}</table>\
         <div class=\"wide\"><table class=\"times\"><thead><tr><th scope=\"col\">ms</th>{header}</tr></thead><tbody>{rows}</tbody></table></div>\
         <div class=\"plots\">{plots}</div>\
         <p class=\"foot\">farpost {}, seed {}</p></body></html>\n",
        env!("CARGO_PKG_VERSION"),
        report.about.seed,
    )
}

fn plots(report: &Report<'_>) -> Vec<(&'static str, String)> {
    let summary = report.summary;
    let records = &report.ran.records;
    let shares = |title: &'static str, figures: &Option<Figures>| {
        let points = figures.as_ref().map(cumulative).unwrap_or_default();
        (title, Chart { title, x: "ms", y: "% within", has_log_x: true, kind: Kind::Steps, points }.svg())
    };
    let over_time = |title: &'static str, y: &'static str, points: Vec<(f64, f64)>| {
        (title, Chart { title, x: "seconds", y, has_log_x: false, kind: Kind::Steps, points }.svg())
    };
    let dots = |record: &Record| {
        let tokens = record.prompt_tokens.map(|n| n as f64).or(record.wanted_tokens.map(f64::from))?;
        Some((tokens, record.ttft()? * 1e3))
    };
    let lengths = Chart {
        title: "First content by length of prompt",
        x: "prompt tokens",
        y: "ms",
        has_log_x: false,
        kind: Kind::Dots,
        points: records.iter().filter_map(dots).collect(),
    };
    vec![
        shares("Time to first content", &summary.ttft),
        shares("Time between pieces of content", &summary.itl),
        shares("Time of whole requests", &summary.e2e),
        (lengths.title, lengths.svg()),
        over_time("Open requests", "requests", open(records)),
        over_time("Answer tokens per second", "tokens/s", tokens(records)),
    ]
}

/// The share of values up to each, in percent; times in milliseconds.
fn cumulative(figures: &Figures) -> Vec<(f64, f64)> {
    let n = figures.sorted.len() as f64;
    let mut points: Vec<_> =
        (1..).zip(&figures.sorted).map(|(place, value)| (value * 1e3, 100.0 * f64::from(place) / n)).collect();
    if let Some(&(first, _)) = points.first() {
        points.insert(0, (first, 0.0));
    }
    points
}

/// How many requests are open from when on.
fn open(records: &[Record]) -> Vec<(f64, f64)> {
    let mut changes: Vec<(f64, f64)> =
        records.iter().flat_map(|record| [(record.sent, 1.0), (record.ended(), -1.0)]).collect();
    changes.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut n = 0.0;
    changes
        .iter()
        .map(|(at, change)| {
            n += change;
            (*at, n)
        })
        .collect()
}

/// Tokens a second in each part of the time. A piece of content counts as its share of the tokens of its answer.
fn tokens(records: &[Record]) -> Vec<(f64, f64)> {
    let end = records.iter().map(Record::ended).fold(0.0, f64::max);
    if end <= 0.0 {
        return Vec::new();
    }
    let width = end / BUCKETS as f64;
    let mut counts = vec![0.0; BUCKETS];
    for record in records {
        let each = record.answer_tokens() as f64 / record.pieces.len().max(1) as f64;
        for piece in &record.pieces {
            let place = ((record.sent + piece) / width) as usize;
            if let Some(count) = counts.get_mut(place.min(BUCKETS - 1)) {
                *count += each;
            }
        }
    }
    let mut points: Vec<_> = counts.iter().enumerate().map(|(place, n)| (place as f64 * width, n / width)).collect();
    points.push((end, 0.0));
    points
}
