//! Dispatches of products: what differs between a few input rows and many, parts of a matrix, experts.

use super::lower::flag;
use super::pipelines::{Shader, Tile};
use super::stage::{Draft, DraftStage, Groups, Inputs};
use super::upload::{Part, Uploaded};
use crate::device::layout::Layout;
use crate::device::places::stride;
use crate::graph::Activation;

/// Rows of weights that a group of the product with few inputs makes, and inputs it meets them with.
const FEW_ROWS: usize = 4;
const FEW_INPUTS: u32 = 4;

/// Rows stored that a group of the product with many inputs meets.
const MANY_ROWS: usize = 64;

/// What a product is added to.
#[derive(Clone, Copy)]
pub(super) enum Sum<'b> {
    Nothing,
    /// Rows like those of the output.
    Rows(&'b ::wgpu::Buffer),
    /// What is there already.
    Output,
}

/// What is done with the products of a row, before they are written.
#[derive(Clone, Copy)]
pub(super) struct Finish<'b> {
    pub(super) sum: Sum<'b>,
    /// Floats before the bias among the vectors.
    pub(super) bias: Option<u32>,
    pub(super) gated: Option<Activation>,
    pub(super) factor: f32,
    pub(super) cap: Option<f32>,
}

impl Finish<'_> {
    /// Nothing.
    pub(super) fn plain() -> Self {
        Self { sum: Sum::Nothing, bias: None, gated: None, factor: 1.0, cap: None }
    }
}

/// What a product reads and writes.
#[derive(Clone, Copy)]
pub(super) struct Wiring<'b> {
    pub(super) x: &'b ::wgpu::Buffer,
    /// Floats before the weight of a norm among the vectors, and what keeps it from dividing by zero.
    pub(super) norm: Option<(u32, f32)>,
    pub(super) vectors: &'b ::wgpu::Buffer,
    pub(super) out: &'b ::wgpu::Buffer,
    pub(super) out_stride: usize,
    pub(super) inputs: Inputs,
    /// Of experts: who is chosen for each slot, and slots of a row of the input.
    pub(super) experts: Option<(&'b ::wgpu::Buffer, usize)>,
    /// What many inputs are met as, where they may be rounded.
    pub(super) tile: Option<Tile>,
    /// Stands where nothing is bound.
    pub(super) nothing: &'b ::wgpu::Buffer,
}

impl Wiring<'_> {
    /// The product with each part of a matrix.
    pub(super) fn stages(&self, matrix: &Uploaded, finish: Finish<'_>) -> Vec<DraftStage> {
        let each = |part: &Part| {
            let (first, n_out) = match self.experts {
                Some(_) => (0, matrix.n_results),
                None => matrix.results(part),
            };
            let of = |shader, inputs: Option<u32>, groups| {
                let mut draft = self.draft(shader, matrix, part, (first, n_out), finish);
                draft.constants.extend(inputs.map(|inputs| ("INPUTS", f64::from(inputs))));
                draft.groups = groups;
                draft
            };
            let of_group = if finish.gated.is_some() { FEW_ROWS / 2 } else { FEW_ROWS };
            let few = |inputs: u32| {
                let groups = n_out.div_ceil(of_group) as u32;
                of(Shader::ProductFew, Some(inputs), Groups::Few { groups, inputs })
            };
            if self.experts.is_some() {
                return vec![few(1)];
            }
            let tile = self.tile.filter(|_| matches!(matrix.layout, Layout::Coded(_)));
            let shader = tile.map_or(Shader::ProductMany, Shader::ProductTiles);
            let mut many = of(shader, None, Groups::Many(part.n_rows.div_ceil(MANY_ROWS) as u32));
            // Its shader asks nobody whose rows they are.
            many.constants.retain(|(name, _)| *name != "IS_EXPERT");
            vec![few(1), few(FEW_INPUTS), many]
        };
        matrix.parts.iter().map(each).collect()
    }

    /// What the experts of each row make of their inputs, one for each slot, in sum.
    pub(super) fn mix(&self, matrix: &Uploaded, sum: Sum<'_>) -> Vec<DraftStage> {
        let each = |(number, part): (usize, &Part)| {
            let sum = if number == 0 { sum } else { Sum::Output };
            let finish = Finish { sum, ..Finish::plain() };
            let mut draft = self.draft(Shader::ProductMix, matrix, part, (0, matrix.n_results), finish);
            // All rows are experts', and they are met as they are.
            draft.constants.retain(|(name, _)| !["IS_EXPERT", "HAS_NORM", "GATED"].contains(name));
            draft.groups = Groups::Few { groups: matrix.n_results.div_ceil(FEW_ROWS) as u32, inputs: 1 };
            vec![draft]
        };
        matrix.parts.iter().enumerate().map(each).collect()
    }

    fn draft(
        &self,
        shader: Shader,
        matrix: &Uploaded,
        part: &Part,
        (first, n_out): (usize, usize),
        finish: Finish<'_>,
    ) -> Draft {
        let mut constants = Layout::constants(&matrix.layout);
        constants.push(flag("IS_WHOLE", matrix.cols.is_multiple_of(32)));
        constants.push(flag("IS_EXPERT", self.experts.is_some()));
        constants.push(flag("HAS_NORM", self.norm.is_some()));
        constants.push(("GATED", f64::from(finish.gated.map_or(0, unit))));
        constants.push(flag("HAS_CAP", finish.cap.is_some()));
        let (routes, slots_per_x) = self.experts.unwrap_or((self.nothing, 1));
        let input = match self.inputs {
            Inputs::Rows => 0,
            Inputs::Wants => 1,
            Inputs::Slots(per_row) => per_row + 1,
        };
        let (sum, other) = match finish.sum {
            Sum::Nothing => (0, self.nothing),
            Sum::Rows(other) => (1, other),
            Sum::Output => (2, self.nothing),
        };
        let (norm_at, eps) = self.norm.unwrap_or((0, 0.0));
        let sizes = [
            n_out,
            first,
            part.n_rows,
            part.first,
            matrix.n_stored,
            slots_per_x,
            matrix.cols,
            matrix.units(),
            stride(matrix.cols) / 4,
            self.out_stride,
        ];
        let more = [
            input,
            sum,
            finish.bias.map_or(0, |at| at + 1),
            norm_at / 4,
            eps.to_bits(),
            finish.factor.to_bits(),
            finish.cap.unwrap_or(1.0).to_bits(),
        ];
        let buffers = [&part.codes, &part.scales, self.x, self.vectors, other, routes, self.out];
        Draft {
            shader,
            constants,
            buffers: buffers.map(Clone::clone).to_vec(),
            params: sizes.into_iter().map(|size| size as u32).chain(more).collect(),
            groups: Groups::Each(1),
            inputs: self.inputs,
        }
    }
}

/// The kind of unit in shaders.
pub(super) fn unit(activation: Activation) -> u32 {
    match activation {
        Activation::Silu => 1,
        Activation::GeluTanh => 2,
    }
}
