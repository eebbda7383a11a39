//! The findings, for people and for programs.

use farpost::{Entry, Library};
use farpost_kernels::cpu::isa::Isa;
use serde_json::{Value as Json, json};

use super::Findings;
use crate::amount;
use crate::console::Paint;
use crate::plain::one_line;

/// Everything on one screen.
pub fn text(findings: &Findings, paint: Paint) -> String {
    let mut out = Screen { text: String::new(), paint };
    out.text += &format!("{} {}\n", paint.bold("farpost"), env!("CARGO_PKG_VERSION"));
    processor(&mut out, findings);
    memory(&mut out, findings);
    out.heading("Devices");
    for finding in &findings.backends {
        match &finding.state {
            Ok(what) => out.line(finding.backend, &format!("{}: {what}", paint.green("ready"))),
            Err(why) => out.line(finding.backend, &paint.dim(why)),
        }
    }
    out.line("chosen", &one_line(&findings.choice));
    models(&mut out, findings);
    out.text
}

fn processor(out: &mut Screen, findings: &Findings) {
    let machine = &findings.machine;
    out.heading("Processor");
    out.line("name", &one_line(machine.processor.as_deref().unwrap_or("unknown")));
    let of = machine.n_processors.map(|n| format!(" of {n}")).unwrap_or_default();
    out.line("cores", &format!("{}{of} usable by this program", machine.n_cores));
    if !machine.features.is_empty() {
        for (number, some) in machine.features.chunks(8).enumerate() {
            out.line(if number == 0 { "features" } else { "" }, &some.join(" "));
        }
    }
    let chosen = match (&findings.chosen, &findings.forced) {
        (Ok(isa), None) => format!("{isa} (the best of {})", names(&findings.available)),
        (Ok(isa), Some(_)) => format!("{isa} (forced by FARPOST_CPU; there are {})", names(&findings.available)),
        (Err(error), _) => error.to_string(),
    };
    out.line("kernels", &chosen);
    if findings.forced.is_none() {
        let slowest = findings.available.first().copied().unwrap_or(Isa::Scalar);
        out.line("", &out.paint.dim(&format!("FARPOST_CPU={slowest} in the environment forces another set")));
    }
}

fn memory(out: &mut Screen, findings: &Findings) {
    let machine = &findings.machine;
    let show = |bytes: Option<u64>| bytes.map_or("unknown".to_owned(), amount::bytes);
    out.heading("Memory");
    out.line("total", &show(machine.total_bytes));
    out.line("available", &show(machine.available_bytes));
    out.line("limit", &machine.limit_bytes.map_or("none set by a control group".to_owned(), amount::bytes));
    if let Some(read) = findings.bandwidth {
        let rate = read.bytes_per_second / 1e9;
        let size = amount::bytes(read.buffer_bytes);
        let threads = amount::count(read.threads as u64, "thread");
        out.line("reading", &format!("{rate:.1} GB/s with {threads} over {size}, best of {} rounds", read.rounds));
        if let Some(load) = machine.busy() {
            out.line("", &format!("measured while the machine was busy (load {load:.1}); alone it may be faster"));
        }
        out.line("", &out.paint.dim(&format!("so a model of 1 GB writes at most {rate:.0} tokens a second")));
    }
}

fn models(out: &mut Screen, findings: &Findings) {
    out.heading("Models");
    match crate::model::pocket_bytes() {
        Some(bytes) => out.line("built in", &format!("pocket, {}", amount::bytes(bytes))),
        None => out.line("built in", &out.paint.dim("none, not built into this program")),
    }
    let library = &findings.models;
    let folder = library.folder().map_or("unknown".to_owned(), |folder| folder.display().to_string());
    out.line("folder", &one_line(&folder));
    match found(library) {
        Err(why) => out.line("", &out.paint.dim(&one_line(&why))),
        Ok(models) if models.is_empty() => out.line("", &out.paint.dim("no models in it")),
        Ok(models) => {
            for model in models {
                out.line(
                    "",
                    &format!("{}  {}", one_line(&model.name), out.paint.dim(&amount::bytes(model.size_bytes))),
                );
            }
        }
    }
}

/// The models in the folder, or why there are none.
fn found(library: &Library) -> Result<Vec<Entry>, String> {
    match library.folder() {
        None => Err("no home folder is known".to_owned()),
        Some(folder) if !folder.exists() => Err("the folder is not there".to_owned()),
        Some(_) => library.models().map_err(|error| error.to_string()),
    }
}

fn names(sets: &[Isa]) -> String {
    sets.iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", ")
}

/// Headings, and lines of name and value.
struct Screen {
    text: String,
    paint: Paint,
}

impl Screen {
    fn heading(&mut self, text: &str) {
        self.text += &format!("\n{}\n", self.paint.bold(text));
    }

    fn line(&mut self, name: &str, value: &str) {
        let line = format!("  {}{value}", self.paint.cyan(&format!("{name:<11}")));
        self.text += line.trim_end();
        self.text.push('\n');
    }
}

/// The same as one JSON object.
pub fn json(findings: &Findings) -> Json {
    let machine = &findings.machine;
    let backends = findings.backends.iter().map(|finding| {
        json!({
            "name": finding.backend,
            "usable": finding.state.is_ok(),
            "detail": finding.state.as_ref().unwrap_or_else(|why| why),
        })
    });
    let library = &findings.models;
    let models = found(library).map(|models| {
        models.iter().map(|model| json!({ "name": model.name, "size_bytes": model.size_bytes })).collect::<Vec<_>>()
    });
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "processor": {
            "name": machine.processor,
            "features": machine.features,
            "processors": machine.n_processors,
            "cores_usable": machine.n_cores,
            "kernels": findings.chosen.as_ref().ok().map(|isa| isa.name()),
            "kernels_available": findings.available.iter().map(|isa| isa.name()).collect::<Vec<_>>(),
            "kernels_forced": findings.forced,
        },
        "memory": {
            "total_bytes": machine.total_bytes,
            "available_bytes": machine.available_bytes,
            "limit_bytes": machine.limit_bytes,
            "read_bytes_per_second": findings.bandwidth.map(|read| read.bytes_per_second),
            "read_buffer_bytes": findings.bandwidth.map(|read| read.buffer_bytes),
            "load_average": machine.load,
            "read_threads": findings.bandwidth.map(|read| read.threads),
        },
        "threads": findings.threads,
        "backends": backends.collect::<Vec<_>>(),
        "chosen": findings.choice,
        "models": {
            "built_in": crate::model::pocket_bytes().map(|bytes| json!({ "name": "pocket", "size_bytes": bytes })),
            "folder": library.folder(),
            "found": models.as_ref().ok(),
            "problem": models.as_ref().err(),
        },
    })
}
