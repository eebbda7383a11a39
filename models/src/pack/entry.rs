//! What a packed file holds: every weight of a graph that lies in the model's file, in the order of first use.

use std::collections::HashMap;

use farpost_kernels::cpu::isa::Isa;
use farpost_kernels::cpu::linear::order_for;
use farpost_kernels::graph::Graph;
use farpost_kernels::order::Order;
use farpost_kernels::tensor::Weight;

use crate::gguf::File;

/// A weight of the model and its place in a packed file.
pub(super) struct Entry {
    /// Name of the tensor; with the first row behind a colon where the weight is some rows of it.
    pub(super) name: String,
    pub(super) weight: Weight,
    /// How it shall lie.
    pub(super) order: Order,
}

/// Where a weight's bytes are: what tells weights apart, as several may have the name of one tensor.
pub(super) type Address = (usize, usize);

pub(super) fn address(weight: &Weight) -> Address {
    let bytes = weight.bytes().as_slice();
    (bytes.as_ptr() as usize, bytes.len())
}

/// All entries; weights that were made when the graph was built have no place in a file and are left out.
pub(super) fn entries(file: &File, graph: &Graph, isa: Isa) -> Vec<Entry> {
    // Whether the parts that products read of a weight can be cut out.
    let mut is_divisible: HashMap<Address, bool> = HashMap::new();
    for (weight, part_rows) in graph.products() {
        let is_cut = Order::Sixteens.is_cut_at(0, part_rows, weight.rows());
        *is_divisible.entry(address(weight)).or_insert(true) &= is_cut;
    }
    let mut seen: HashMap<Address, ()> = HashMap::new();
    let mut entries = Vec::new();
    for weight in graph.weights() {
        let at = address(weight);
        let Some(first_row) = first_row(file, weight).filter(|_| at.1 > 0 && seen.insert(at, ()).is_none()) else {
            continue;
        };
        let is_whole = file.tensor(weight.name()).is_some_and(|tensor| tensor.rows() == weight.rows());
        let name = if is_whole { weight.name().to_owned() } else { format!("{}:{first_row}", weight.name()) };
        let is_product = is_divisible.get(&at).copied().unwrap_or(false);
        let order = if is_product { order_for(isa, weight.dtype()) } else { Order::Rows };
        entries.push(Entry { name, weight: weight.clone(), order });
    }
    entries
}

/// The row of the tensor with which a weight begins, if it lies in it.
fn first_row(file: &File, weight: &Weight) -> Option<usize> {
    let tensor = file.tensor(weight.name())?;
    let ((start, len), (inner_start, inner_len)) = (address(tensor), address(weight));
    let offset = inner_start.checked_sub(start).filter(|offset| offset + inner_len <= len)?;
    offset.checked_div(weight.row_bytes())
}
