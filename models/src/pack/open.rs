//! Putting a packed file's weights in the place of the model's.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

use farpost_kernels::cpu::isa::Isa;
use farpost_kernels::graph::Graph;
use farpost_kernels::order::Order;
use farpost_kernels::tensor::Weight;

use super::entry::{Entry, address, entries};
use super::stamp::Stamp;
use super::{ALIGNMENT, ARCHITECTURE, PackError, VERSION, key};
use crate::gguf::{File, Problem, Value};

/// A packed file in use.
pub struct Packed {
    file: File,
    path: PathBuf,
}

impl Packed {
    /// Its path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file itself.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Content hash of the model it was made of, as it says.
    pub fn model_hash(&self) -> Result<&str, PackError> {
        Ok(self.file.metadata().required_string(key::MODEL_HASH)?)
    }
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Packed({})", self.path.display())
    }
}

/// Opens the packed file at `path` and puts its weights in the place of those of `graph`, which was built of `model`.
///
/// The graph is left as it was unless everything fits. Only the head is read: sizes and times of the model's files and some
/// of its weights are compared, not its hash (see [`super::check`]). The model's pages are given back to the system.
pub fn open(path: &Path, model: &File, graph: &mut Graph, isa: Isa) -> Result<Packed, PackError> {
    let stamp = Stamp::of(model)?;
    let file = File::open(path)?;
    check_header(path, &file, isa)?;
    stamp.require(&Stamp::read(&file)?, path)?;
    check_places(path, &file)?;
    let orders = orders(path, &file)?;
    let entries = entries(model, graph, isa);
    let mut weights = HashMap::with_capacity(entries.len());
    for entry in &entries {
        let weight = find(path, &file, &orders, entry)?;
        weights.insert(address(&entry.weight), weight);
    }
    if let Some(other) = file.tensors().iter().find(|tensor| !entries.iter().any(|entry| entry.name == tensor.name())) {
        return Err(of_tensor(path, other.name(), "is none of the model's"));
    }
    let mut packed = graph.clone();
    let replaced = packed.replace_weights(|weight| weights.get(&address(weight)).cloned());
    replaced.map_err(|source| PackError::Graph { file: path.to_owned(), source })?;
    *graph = packed;
    model.release_pages();
    Ok(Packed { file, path: path.to_owned() })
}

fn of_tensor(path: &Path, tensor: &str, problem: &str) -> PackError {
    PackError::Tensor { file: path.to_owned(), tensor: tensor.to_owned(), problem: problem.to_owned() }
}

/// Refuses what is no packed file of this version and class.
fn check_header(path: &Path, file: &File, isa: Isa) -> Result<(), PackError> {
    let metadata = file.metadata();
    let require = |field, found: String, expected: &str| {
        if found == expected {
            return Ok(());
        }
        let found = format!("{:?}", found.chars().take(80).collect::<String>());
        Err(PackError::Header { file: path.to_owned(), field, found, expected: expected.to_owned() })
    };
    require(key::ARCHITECTURE, metadata.required_string(key::ARCHITECTURE)?.to_owned(), ARCHITECTURE)?;
    require(key::VERSION, metadata.required_u32(key::VERSION)?.to_string(), &VERSION.to_string())?;
    require(key::CLASS, metadata.required_string(key::CLASS)?.to_owned(), isa.name())?;
    require(key::ALIGNMENT, file.alignment().to_string(), &ALIGNMENT.to_string())?;
    metadata.required_string(key::MODEL_HASH)?;
    metadata.required_string(key::CHECKSUM)?;
    Ok(())
}

/// Refuses tensors that do not lie one behind the other up to the end of the file, as they were written: a description
/// that was damaged does not lead to other bytes.
fn check_places(path: &Path, file: &File) -> Result<(), PackError> {
    let size = |bytes: usize| (bytes as u64).next_multiple_of(u64::from(ALIGNMENT));
    let mut end = file.size_bytes();
    for tensor in file.tensors().iter().rev() {
        let expected = end.checked_sub(size(tensor.weight().bytes().len()));
        if expected != Some(tensor.offset()) {
            let expected = expected.map_or_else(|| "more bytes in the file".to_owned(), |at| at.to_string());
            let problem = format!("begins at byte {}, expected {expected}", tensor.offset());
            return Err(of_tensor(path, tensor.name(), &problem));
        }
        end = tensor.offset();
    }
    Ok(())
}

/// The order of each tensor, by its number in the file.
fn orders(path: &Path, file: &File) -> Result<Vec<Order>, PackError> {
    let n_tensors = file.tensors().len();
    let expected = "one number for each tensor: 0 for rows one after the other, 1 for sixteen side by side";
    let value = file.metadata().get(key::ORDERS);
    let orders = match &value {
        Some(Value::Array(array)) if array.len() as u64 == n_tensors as u64 => {
            let order = |value: Value<'_>| match value.as_integer() {
                Some(0) => Some(Order::Rows),
                Some(1) => Some(Order::Sixteens),
                _ => None,
            };
            array.values().map(order).collect()
        }
        _ => None,
    };
    let Some(orders) = orders else {
        let found = value.map_or_else(|| "nothing".to_owned(), |value| value.describe());
        if file.metadata().contains(key::ORDERS) {
            let problem = Problem::OutOfRange { found, expected };
            return Err(file.metadata().defect(key::ORDERS, problem).into());
        }
        let header =
            PackError::Header { file: path.to_owned(), field: key::ORDERS, found, expected: expected.to_owned() };
        return Err(header);
    };
    Ok(orders)
}

/// The weight of an entry in the packed file, which must be as this program would pack it.
fn find(path: &Path, file: &File, orders: &[Order], entry: &Entry) -> Result<Weight, PackError> {
    let Some(number) = file.number_of(&entry.name) else {
        return Err(of_tensor(path, &entry.name, "is missing"));
    };
    let (weight, order) = (file.tensors()[number].weight(), orders[number]);
    let shape = |weight: &Weight| format!("{} x {} of {}", weight.rows(), weight.cols(), weight.dtype());
    let (found, expected) = (shape(weight), shape(&entry.weight));
    if found != expected {
        return Err(of_tensor(path, &entry.name, &format!("is {found}, expected {expected}")));
    }
    if order != entry.order {
        let (found, expected) = (order.name(), entry.order.name());
        return Err(of_tensor(path, &entry.name, &format!("lies in order {found}, expected {expected}")));
    }
    let ordered = weight.clone().in_order(order);
    ordered.ok_or_else(|| of_tensor(path, &entry.name, "can't lie in this order"))
}
