//! `farpost inspect`: what a model file holds and how much memory it needs, without running it.

mod json;
mod table;
mod values;

use farpost::{Model, ModelOptions};
use farpost_models::gguf::{File, MemoryNeed};

use super::console::Console;
use super::exit::{Exit, Failure};
use super::model;

/// Show what a model file holds: metadata, tensors, types, and the memory each context length needs
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The model, as for --model
    #[arg(value_name = "MODEL", conflicts_with = "model")]
    positional: Option<String>,
    #[command(flatten)]
    model: model::ModelArgs,
    /// Show long texts and arrays whole
    #[arg(long)]
    full: bool,
    /// Print only the value of this metadata key, whole, such as tokenizer.chat_template
    #[arg(long, value_name = "NAME")]
    key: Option<String>,
}

/// Prints the report.
pub fn run(args: &Args, console: &Console) -> Result<(), Failure> {
    let file = match &args.positional {
        Some(name) => model::open(name)?,
        None => args.model.open()?,
    };
    if let Some(key) = &args.key {
        return print_key(&file, key, console);
    }
    let need = MemoryNeed::of(&file).map_err(|error| error.to_string());
    let runs = Model::check(&file, &ModelOptions::default()).map_err(|error| error.to_string());
    if console.is_json() {
        return console.print_json(&json::report(&file, need.as_ref(), &runs, args.full));
    }
    console.print(&table::report(&file, need.as_ref(), &runs, args.full, console.paint()))
}

fn print_key(file: &File, key: &str, console: &Console) -> Result<(), Failure> {
    let Some(value) = file.metadata().get(key) else {
        let message = format!("{}: there is no metadata key '{key}'", file.name());
        return Err(Failure::new(Exit::Failed, message).hint("'farpost inspect' without --key lists all keys"));
    };
    if console.is_json() {
        return console.print_json(&values::json(value, true));
    }
    console.print(&values::whole(value))
}

/// Context lengths worth a line: powers of two up to what the model was made for, and that itself.
fn contexts(trained: Option<usize>) -> Vec<usize> {
    const USUAL: [usize; 6] = [512, 2048, 4096, 8192, 32_768, 131_072];
    let most = trained.unwrap_or(32_768);
    let mut lengths: Vec<usize> = USUAL.into_iter().filter(|&tokens| tokens < most).collect();
    lengths.push(most);
    lengths
}

/// Tensors of one type together.
struct TypeUse {
    dtype: farpost_kernels::tensor::DType,
    n_tensors: usize,
    n_weights: u64,
    n_bytes: u64,
}

/// How often each type occurs, the one with most bytes first.
fn types(file: &File) -> Vec<TypeUse> {
    let mut uses: Vec<TypeUse> = Vec::new();
    for tensor in file.tensors() {
        let weight = tensor.weight();
        let n_weights = (weight.rows() as u64).saturating_mul(weight.cols() as u64);
        let n_bytes = weight.bytes().len() as u64;
        match uses.iter_mut().find(|entry| entry.dtype == tensor.dtype()) {
            Some(entry) => {
                entry.n_tensors += 1;
                entry.n_weights = entry.n_weights.saturating_add(n_weights);
                entry.n_bytes += n_bytes;
            }
            None => uses.push(TypeUse { dtype: tensor.dtype(), n_tensors: 1, n_weights, n_bytes }),
        }
    }
    uses.sort_by_key(|entry| std::cmp::Reverse(entry.n_bytes));
    uses
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn context_lengths_end_at_what_the_model_was_made_for() {
        assert_eq!(contexts(Some(2048)), [512, 2048]);
        assert_eq!(contexts(Some(100)), [100]);
        assert_eq!(contexts(Some(40_960)), [512, 2048, 4096, 8192, 32_768, 40_960]);
        assert_eq!(contexts(None), [512, 2048, 4096, 8192, 32_768]);
    }
}
