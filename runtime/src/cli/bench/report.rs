//! Outcomes as a table, Markdown, JSON lines or CSV.

use farpost::Model;
use serde_json::{Map, Value as Json, json};

use super::compare::{Comparison, Measured};
use super::measure::Outcome;
use super::statistics::{median, spread};
use super::work::Rates;
use crate::amount;
use crate::columns::{Side, aligned};
use crate::console::Paint;
use crate::machine::Machine;
use crate::plain::one_line;

/// How results are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Columns, for people
    Table,
    /// A table in Markdown
    Markdown,
    /// One JSON object a line, as --json does
    Jsonl,
    /// Comma-separated values with a header
    Csv,
}

/// What is the same for all tests of a run.
#[derive(Debug)]
pub struct About<'a> {
    pub model: &'a Model,
    pub isa: &'a str,
    /// As it was before anything was measured.
    pub machine: &'a Machine,
    pub repetitions: usize,
    /// There are energy counters.
    pub has_energy: bool,
    /// There is an earlier run to compare with.
    pub compares: bool,
}

/// A test with what became of it since an earlier run.
#[derive(Debug)]
pub struct Line {
    pub outcome: Outcome,
    pub comparison: Option<Comparison>,
    /// Threads of other programs that wanted to run, on average over a minute.
    pub load: Option<f64>,
}

impl Outcome {
    /// The figures that comparing needs.
    pub fn measured(&self, about: &About<'_>) -> Measured {
        let packed = crate::pack::path_in_use(about.model.packed());
        Measured {
            test: self.workload.to_string(),
            model: about.model.name().to_owned(),
            threads: self.threads as u64,
            kv_type: self.kv_type.name().to_owned(),
            isa: Some(about.isa.to_owned()),
            activations: Some(self.activations.name().to_owned()),
            packed: packed.map(|path| path.display().to_string()),
            tokens_per_second: median(&self.rates),
            spread: spread(&self.rates),
            roof_share: self.shares.as_deref().map(median),
        }
    }

    fn roof(&self, of: impl Fn(&Rates) -> f64) -> f64 {
        median(&self.roofs.iter().map(of).collect::<Vec<_>>())
    }
}

/// One test in a few words.
pub fn in_short(outcome: &Outcome) -> String {
    let threads = amount::count(outcome.threads as u64, "thread");
    let (test, kv_type) = (outcome.workload, outcome.kv_type.name());
    format!("{test} ({threads}, {kv_type}): {} tokens/s", amount::decimal(median(&outcome.rates)))
}

/// One test as a JSON object without nesting.
pub fn json(line: &Line, about: &About<'_>) -> Map<String, Json> {
    let Line { outcome, comparison, load } = line;
    let comparison = comparison.as_ref();
    let measured = outcome.measured(about);
    let read = outcome.roofs.iter().map(|roof| roof.read_bytes_per_second).collect::<Option<Vec<f64>>>();
    let mut object = Map::new();
    let mut set = |name: &str, value: Json| object.insert(name.to_owned(), value);
    set("test", json!(measured.test));
    set("tokens_per_second", json!(measured.tokens_per_second));
    set("spread", json!(measured.spread));
    set("roof_share", json!(measured.roof_share));
    set("bound", json!(outcome.bound.name()));
    if about.has_energy {
        set("tokens_per_joule", json!(outcome.tokens_per_joule));
    }
    if about.compares {
        let before = comparison.map(|comparison| &comparison.before);
        set("before_tokens_per_second", json!(before.map(|before| before.tokens_per_second)));
        set("ratio", json!(comparison.map(|comparison| comparison.ratio)));
        set("noise", json!(comparison.and_then(|comparison| comparison.noise)));
        set("verdict", json!(comparison.map(|comparison| comparison.verdict.name())));
        set("before_model", json!(before.map(|before| &before.model)));
        set("before_isa", json!(before.map(|before| &before.isa)));
        set("before_packed", json!(before.map(|before| &before.packed)));
        set("before_activations", json!(before.map(|before| &before.activations)));
    }
    set("prompt_tokens", json!(outcome.workload.prompt));
    set("generated_tokens", json!(outcome.workload.generated));
    set("depth", json!(outcome.workload.depth));
    set("batch", json!(outcome.workload.batch));
    set("model", json!(measured.model));
    set("model_bytes", json!(about.model.file().size_bytes()));
    set("threads", json!(measured.threads));
    set("kv_type", json!(measured.kv_type));
    set("activations", json!(measured.activations));
    set("repetitions", json!(about.repetitions));
    set("samples", json!(outcome.rates));
    set("read_bytes_per_second", json!(read.as_deref().map(median)));
    set("int8_macs_per_second", json!(outcome.roof(|roof| roof.int8_macs_per_second)));
    let bf16: Option<Vec<f64>> = outcome.roofs.iter().map(|roof| roof.bf16_macs_per_second).collect();
    set("bf16_macs_per_second", json!(bf16.as_deref().map(median)));
    set("f32_macs_per_second", json!(outcome.roof(|roof| roof.f32_macs_per_second)));
    set("isa", json!(measured.isa));
    set("packed", json!(measured.packed));
    set("processor", json!(about.machine.processor));
    set("load", json!(load));
    set("version", json!(env!("CARGO_PKG_VERSION")));
    object
}

/// Names of the fields, or the values of a test: what [`json`] has, lists apart, on one line.
pub fn csv<'j>(values: impl Iterator<Item = (&'j String, &'j Json)>, is_header: bool) -> String {
    let cells = values.filter(|(_, value)| !value.is_array()).map(|(name, value)| match value {
        _ if is_header => name.clone(),
        Json::Null => String::new(),
        Json::String(text) => quoted(text),
        other => other.to_string(),
    });
    cells.collect::<Vec<_>>().join(",") + "\n"
}

/// A text as one cell.
fn quoted(text: &str) -> String {
    if text.contains(['"', ',', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

/// What was measured on what: the lines above a table.
pub fn heading(about: &About<'_>, roofs: &[(usize, Rates)], lines_below: &[Line]) -> Vec<String> {
    let processor = about.machine.processor.as_deref().unwrap_or("unknown processor");
    let size = amount::bytes(about.model.file().size_bytes());
    let mut lines = vec![format!(
        "{}, {size}; farpost {} ({}) on {}; {}",
        one_line(about.model.name()),
        env!("CARGO_PKG_VERSION"),
        about.isa,
        one_line(processor),
        amount::count(about.repetitions as u64, "repetition"),
    )];
    if let Some(path) = crate::pack::path_in_use(about.model.packed()) {
        lines.push(format!("weights read from the packed file {}", one_line(&path.display().to_string())));
    }
    for (threads, roof) in roofs {
        let read = match roof.read_bytes_per_second {
            Some(rate) => format!("reads {:.1} GB/s", rate / 1e9),
            None => "too little memory free to measure reads".to_owned(),
        };
        let bf16 = roof.bf16_macs_per_second.map(|rate| format!("bf16 {:.0} GMAC/s, ", rate / 1e9)).unwrap_or_default();
        lines.push(format!(
            "roof with {}: {read}, int8 {:.0} GMAC/s, {bf16}f32 {:.0} GMAC/s",
            amount::count(*threads as u64, "thread"),
            roof.int8_macs_per_second / 1e9,
            roof.f32_macs_per_second / 1e9,
        ));
    }
    let most = lines_below.iter().filter_map(|line| line.load).reduce(f64::max);
    if let Some(load) = about.machine.busy_at(most) {
        lines.push(format!("measured while the machine was busy (load {load:.1}); alone it may be faster"));
    }
    lines
}

/// Titles of the columns with their sides.
fn titles(about: &About<'_>) -> Vec<(&'static str, Side)> {
    let mut titles = vec![
        ("test", Side::Left),
        ("threads", Side::Right),
        ("kv", Side::Left),
        ("tokens/s", Side::Right),
        ("spread", Side::Right),
        ("of roof", Side::Right),
        ("bound", Side::Left),
    ];
    if about.has_energy {
        titles.push(("tokens/J", Side::Right));
    }
    if about.compares {
        titles.extend([("before", Side::Right), ("ratio", Side::Right), ("verdict", Side::Left)]);
    }
    titles
}

fn cells(line: &Line, about: &About<'_>) -> Vec<String> {
    let measured = line.outcome.measured(about);
    let comparison = line.comparison.as_ref();
    let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let mut cells = vec![
        measured.test,
        measured.threads.to_string(),
        measured.kv_type,
        amount::decimal(measured.tokens_per_second),
        or_dash(measured.spread.map(|spread| format!("{:.1} %", spread * 100.0))),
        or_dash(measured.roof_share.map(|share| format!("{:.0} %", share * 100.0))),
        line.outcome.bound.name().to_owned(),
    ];
    if about.has_energy {
        cells.push(or_dash(line.outcome.tokens_per_joule.map(amount::decimal)));
    }
    if about.compares {
        cells.push(or_dash(comparison.map(|comparison| amount::decimal(comparison.before.tokens_per_second))));
        cells.push(or_dash(comparison.map(|comparison| format!("{:.3}", comparison.ratio))));
        cells.push(or_dash(comparison.map(verdict)));
    }
    cells
}

/// A verdict with the noise it allows for.
fn verdict(comparison: &Comparison) -> String {
    let name = comparison.verdict.name();
    match comparison.noise {
        Some(noise) => format!("{name} (noise {:.1} %)", noise * 100.0),
        None => format!("{name} (measured once)"),
    }
}

/// Columns.
pub fn table(lines: &[Line], about: &About<'_>, paint: Paint) -> String {
    let (names, sides): (Vec<_>, Vec<_>) = titles(about).into_iter().unzip();
    let header: Vec<String> = names.into_iter().map(|name| paint.bold(name)).collect();
    aligned(std::iter::once(header).chain(lines.iter().map(|line| cells(line, about))), &sides)
}

/// The same as a Markdown table.
pub fn markdown(lines: &[Line], about: &About<'_>) -> String {
    let row = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let (names, sides): (Vec<_>, Vec<_>) = titles(about).into_iter().unzip();
    let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
    let rules: Vec<String> =
        sides.iter().map(|side| if *side == Side::Right { "---:" } else { "---" }.to_owned()).collect();
    let rows = lines.iter().map(|line| row(&cells(line, about)));
    [row(&names), row(&rules)].into_iter().chain(rows).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_of_csv_are_quoted_where_they_must_be_and_lists_left_out() {
        let Json::Object(object) = json!({ "a": "x, \"y\"", "b": null, "c": [1], "d": 1.5 }) else { unreachable!() };
        assert_eq!(csv(object.iter(), true), "a,b,d\n");
        assert_eq!(csv(object.iter(), false), "\"x, \"\"y\"\"\",,1.5\n");
    }
}
