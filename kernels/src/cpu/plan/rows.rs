//! Stages of work that needs nothing but its own row.

use super::stage::{RowOp, Source};
use super::{Core, Local};
use crate::backend::Row;
use crate::cpu::attention;
use crate::cpu::linear::Input;
use crate::cpu::pointwise;
use crate::graph::Value;
use crate::order;

impl Core {
    /// Runs all ops of a stage on one row.
    ///
    /// # Safety
    /// Nobody else works on this row, and what earlier stages made of it is visible.
    pub(super) unsafe fn row_ops(&self, ops: &[RowOp], index: usize, row: &Row) {
        for op in ops {
            // SAFETY: the row is ours; values of one stage have places of their own (see `arena`), but for those that
            // take a place over, which are worked on in place.
            unsafe {
                match op {
                    RowOp::Embed { table, scale, out } => {
                        let out = self.arena.row_mut(*out, index);
                        order::decode_row(&table.view(), row.token as usize, out).expect("the step checked the token");
                        if *scale != 1.0 {
                            pointwise::scale_in_place(self.isa, out, *scale);
                        }
                        self.angles(index, row.position);
                    }
                    RowOp::Norm { x, norm, out } => {
                        if self.is_in_place(*x, *out) {
                            let out = self.arena.row_mut(*out, index);
                            pointwise::rms_norm_in_place(self.isa, out, &norm.weight, norm.eps);
                        } else {
                            let (x, out) = (self.arena.row(*x, index), self.arena.row_mut(*out, index));
                            pointwise::rms_norm(self.isa, x, &norm.weight, norm.eps, out);
                        }
                    }
                    RowOp::Rope { x, head_dim, rope, out } => {
                        if !self.is_in_place(*x, *out) {
                            self.arena.row_mut(*out, index).copy_from_slice(self.arena.row(*x, index));
                        }
                        let (cos, sin) = self.cos_sin(*rope, index);
                        let out = self.arena.row_mut(*out, index);
                        pointwise::rope_in_place(self.isa, out, *head_dim, cos, sin, self.ropes[*rope].style);
                    }
                    RowOp::Add { a, b, out } => {
                        let (a, b) = (self.arena.row(*a, index), self.arena.row(*b, index));
                        pointwise::add(self.isa, a, b, self.arena.row_mut(*out, index));
                    }
                    RowOp::Scale { x, factor, out } => {
                        if !self.is_in_place(*x, *out) {
                            self.arena.row_mut(*out, index).copy_from_slice(self.arena.row(*x, index));
                        }
                        pointwise::scale_in_place(self.isa, self.arena.row_mut(*out, index), *factor);
                    }
                    RowOp::Glu { gate, up, activation, out } => {
                        let (gate, up) = (self.arena.row(*gate, index), self.arena.row(*up, index));
                        pointwise::glu(self.isa, *activation, gate, up, self.arena.row_mut(*out, index));
                    }
                    RowOp::Store { k, v, layer } => {
                        self.store(*layer, row, self.arena.row(*k, index), self.arena.row(*v, index));
                    }
                }
            }
        }
    }

    fn is_in_place(&self, x: Value, out: Value) -> bool {
        self.arena.at(x, 0) == self.arena.at(out, 0)
    }

    /// Writes the keys and values of a row into the cache.
    ///
    /// # Safety
    /// The step made the row's position writable, and nobody else writes it.
    unsafe fn store(&self, layer: usize, row: &Row, keys: &[f32], values: &[f32]) {
        let shape = &self.kv_layers[layer];
        let page_tokens = self.kv.page_tokens();
        let page = self.kv.pages(row.sequence, layer)[row.position / page_tokens] as usize;
        let token = row.position % page_tokens;
        let heads = keys.chunks_exact(shape.key_dim).zip(values.chunks_exact(shape.value_dim)).enumerate();
        for (head, (key, value)) in heads {
            for (vector, place) in [(key, self.kv.keys(layer, head)), (value, self.kv.values(layer, head))] {
                let block = place.start.wrapping_add(page * place.page_stride);
                // SAFETY: the block has room for `page_tokens` vectors; this token's is ours.
                unsafe { attention::store(self.isa, self.kv.kv_type(), vector, block, page_tokens, token) };
            }
        }
    }

    /// Computes cos and sin of a row's position for every rotation of the model.
    ///
    /// # Safety
    /// The row is ours.
    unsafe fn angles(&self, index: usize, position: usize) {
        for (number, rope) in self.ropes.iter().enumerate() {
            let n_pairs = rope.frequencies.len();
            // SAFETY: the block has two times `n_pairs` per row and rotation, see `cos_sin`.
            let table =
                unsafe { std::slice::from_raw_parts_mut(self.angles.at(self.angle_at(number, index)), 2 * n_pairs) };
            let (cos_out, sin_out) = table.split_at_mut(n_pairs);
            for ((frequency, cos_out), sin_out) in rope.frequencies.iter().zip(cos_out).zip(sin_out) {
                let (sin, cos) = (position as f64 * frequency).sin_cos();
                *cos_out = cos as f32 * rope.magnitude;
                *sin_out = sin as f32 * rope.magnitude;
            }
        }
    }

    /// What [`Core::angles`] computed.
    ///
    /// # Safety
    /// Nobody writes this row's angles meanwhile.
    unsafe fn cos_sin(&self, rope: usize, index: usize) -> (&[f32], &[f32]) {
        let n_pairs = self.ropes[rope].frequencies.len();
        // SAFETY: as in `angles`.
        unsafe { std::slice::from_raw_parts(self.angles.at(self.angle_at(rope, index)), 2 * n_pairs) }.split_at(n_pairs)
    }

    fn angle_at(&self, rope: usize, index: usize) -> usize {
        self.angle_offsets[rope] + index * 2 * self.ropes[rope].frequencies.len()
    }

    /// Brings one row of a product's input into the form kernels read, row `target` of each of `inputs`.
    ///
    /// # Safety
    /// Nobody writes the row, nobody else fills the target row.
    pub(super) unsafe fn fill<'i>(
        &self,
        source: &Source,
        index: usize,
        target: usize,
        inputs: impl Iterator<Item = &'i Input>,
        local: &mut Local,
    ) {
        // SAFETY: the caller's promise.
        let x = unsafe { self.arena.row(source.x, index) };
        let x = match &source.norm {
            Some(norm) => {
                let normed = &mut local.row[..x.len()];
                // SAFETY: the instruction set is available.
                unsafe { pointwise::rms_norm(self.isa, x, &norm.weight, norm.eps, normed) };
                &*normed
            }
            None => x,
        };
        for input in inputs {
            // SAFETY: the caller's promise.
            unsafe { input.fill_row(target, x) };
        }
    }
}
