//! Commands of the pocket model: `train`, `pack`, `eval`, `ask`, `show`, `examples`.

use farpost_models::gguf::File;
use farpost_pocket::answer::Asker;
use farpost_pocket::corpus::{Corpus, Example};
use farpost_pocket::model::Network;
use farpost_pocket::template::Split;
use farpost_pocket::train::{self, Score};
use farpost_pocket::{export, held_out, rng::Rng};
use std::error::Error;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

const HELP: &str = "\
farpost-pocket train [--out FILE] [--f32 FILE] [--seed N] [--steps N] [--batch N] [--rate X] [--rounded X]
    trains, writes the F32 file and the Q8_0 file of it (default models/pocket/pocket.gguf)
farpost-pocket pack  [--out FILE] [--f32 FILE]
    makes the Q8_0 file anew from the F32 file
farpost-pocket eval  [--f32 FILE] [--types f32,q8_0,q4_k_m,q4_0] [--split test] [--examples N] [--seed N] [--wrong N]
    exact match in each type, by tool, of the model packed from the F32 file; prints up to N wrong answers of each
                     [--set FILE]  on the lines of FILE, as in models/pocket/data/*.jsonl, rather than on a split
farpost-pocket ask [--out FILE] --text TEXT
    the answer of the packed file
farpost-pocket show  [--split train] [--examples N] [--seed N]
    prints examples
farpost-pocket examples [--split test] [--examples 200] [--seed N]
    prints examples as JSON, one object a line; as it stands, what models/pocket/data/held-out.jsonl holds";

/// The command line.
struct Arguments {
    out: PathBuf,
    f32: PathBuf,
    types: String,
    split: Split,
    examples: Option<u64>,
    wrong: usize,
    text: String,
    set: Option<PathBuf>,
    options: train::Options,
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Arguments, Box<dyn Error>> {
    let mut arguments = Arguments {
        out: "models/pocket/pocket.gguf".into(),
        f32: "target/pocket/pocket-f32.gguf".into(),
        types: "f32,q8_0,q4_k_m,q4_0".to_owned(),
        split: Split::Test,
        examples: None,
        wrong: 0,
        text: String::new(),
        set: None,
        options: train::Options::default(),
    };
    while let Some(flag) = words.next() {
        let value = words.next().ok_or_else(|| format!("{flag} needs a value"))?;
        match flag.as_str() {
            "--out" => arguments.out = value.into(),
            "--f32" => arguments.f32 = value.into(),
            "--types" => arguments.types = value,
            "--split" => arguments.split = Split::from_name(&value).ok_or("--split takes train, dev or test")?,
            "--examples" => arguments.examples = Some(value.parse()?),
            "--text" => arguments.text = value,
            "--set" => arguments.set = Some(value.into()),
            "--wrong" => arguments.wrong = value.parse()?,
            "--seed" => arguments.options.seed = value.parse()?,
            "--steps" => arguments.options.steps = value.parse()?,
            "--batch" => arguments.options.batch = value.parse()?,
            "--rate" => arguments.options.rate = value.parse()?,
            "--rounded" => arguments.options.rounded = value.parse()?,
            _ => return Err(format!("unknown option {flag}\n{HELP}").into()),
        }
    }
    Ok(arguments)
}

/// Settings of the libraries below that can only come from the environment: one thread per product (the shards of a
/// batch are the threads), and an allocator that keeps its pages.
const ENVIRONMENT: &[(&str, &str)] = &[
    ("RAYON_NUM_THREADS", "1"),
    ("MALLOC_MMAP_THRESHOLD_", "1000000000"),
    ("MALLOC_TRIM_THRESHOLD_", "4000000000"),
    ("MALLOC_TOP_PAD_", "268435456"),
];

fn main() -> ExitCode {
    let result =
        if std::env::var_os(ENVIRONMENT[0].0).is_none() { restart() } else { run().map(|()| ExitCode::SUCCESS) };
    result.unwrap_or_else(|error| {
        eprintln!("farpost-pocket: {error}");
        ExitCode::FAILURE
    })
}

fn restart() -> Result<ExitCode, Box<dyn Error>> {
    let status = Command::new(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .envs(ENVIRONMENT.iter().copied())
        .status()?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let command = words.next().unwrap_or_default();
    let arguments = parse(words)?;
    match command.as_str() {
        "train" => {
            let vocabulary = train::learn_vocabulary(&arguments.options);
            if let Some(folder) = arguments.f32.parent() {
                std::fs::create_dir_all(folder)?;
            }
            let mut keep =
                |network: &Network| export::write(network, &vocabulary, arguments.options.seed, &arguments.f32);
            train::train(&arguments.options, &vocabulary, &mut keep)?;
            pack(&arguments)
        }
        "pack" => pack(&arguments),
        "ask" => {
            let file = File::open(&arguments.out)?;
            let (network, _) = export::read(&file)?;
            println!("{}", Asker::new(&file)?.answer(&network, &arguments.text)?);
            Ok(())
        }
        "eval" => evaluate(&arguments),
        "show" => {
            let corpus = Corpus::new(arguments.options.seed, arguments.split);
            for index in 0..arguments.examples.unwrap_or(20) {
                let example = corpus.example(index);
                println!("{}\n    {}", example.text, example.answer);
            }
            Ok(())
        }
        "examples" => {
            let corpus = Corpus::new(arguments.options.seed, arguments.split);
            for index in 0..arguments.examples.unwrap_or(held_out::COUNT) {
                println!("{}", held_out::line(&corpus.example(index)));
            }
            Ok(())
        }
        _ => {
            println!("{HELP}");
            Ok(())
        }
    }
}

fn pack(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let bytes = export::pack(&arguments.f32, &arguments.out, "q8_0")?;
    println!("{}: {bytes} bytes", arguments.out.display());
    Ok(())
}

fn evaluate(arguments: &Arguments) -> Result<(), Box<dyn Error>> {
    let examples = match &arguments.set {
        Some(path) => {
            let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
            held_out::read(&text).map_err(|error| format!("{}: {error}", path.display()))?
        }
        None => {
            let corpus = Corpus::new(arguments.options.seed, arguments.split);
            (0..arguments.examples.unwrap_or(TEST_EXAMPLES)).map(|index| corpus.example(index)).collect()
        }
    };
    let folder = export::scratch(&mut Rng::new(arguments.options.seed, 300, 0))?;
    let result = evaluate_in(arguments, &examples, &folder);
    std::fs::remove_dir_all(&folder)?;
    let columns = result?;
    print!("| tool | examples |");
    for (name, bytes, _) in &columns {
        print!(" {name} ({:.2} MB) |", *bytes as f64 / 1e6);
    }
    println!("\n|---|---|{}", "---|".repeat(columns.len()));
    let Some((_, _, first)) = columns.first() else { return Ok(()) };
    for (tool, (_, n)) in first {
        print!("| {tool} | {n} |");
        for (_, _, score) in &columns {
            let (right, all) = score.get(tool).copied().unwrap_or_default();
            print!(" {:.1} |", 100.0 * right as f64 / all.max(1) as f64);
        }
        println!();
    }
    print!("| all | {} |", first.values().map(|(_, n)| n).sum::<usize>());
    for (_, _, score) in &columns {
        print!(" {:.2} |", train::percent(score));
    }
    println!();
    Ok(())
}

/// Examples that figures are measured on when nothing else is said.
const TEST_EXAMPLES: u64 = 5000;

/// A type's name, the bytes of its file and how it did.
type Column = (String, u64, Score);

/// A column for every type asked for.
fn evaluate_in(arguments: &Arguments, examples: &[Example], folder: &Path) -> Result<Vec<Column>, Box<dyn Error>> {
    let mut columns = Vec::new();
    for name in arguments.types.split(',') {
        let path = folder.join(format!("{name}.gguf"));
        let bytes = export::pack(&arguments.f32, &path, name)?;
        let file = File::open(&path)?;
        let (network, vocabulary) = export::read(&file)?;
        let mut left = arguments.wrong;
        let mut tell = |example: &Example, answer: &[u32]| {
            if left > 0 {
                left -= 1;
                let pieces = answer.iter().filter_map(|id| vocabulary.tokens.get(*id as usize));
                let text: String = pieces.map(String::as_str).collect();
                println!("{name}: {}\n    right  {}\n    given  {text}", example.text, example.answer);
            }
        };
        let score = train::exact_match(&network, &vocabulary, examples.iter().cloned(), false, &mut tell)?;
        columns.push((name.to_owned(), bytes, score));
    }
    Ok(columns)
}
