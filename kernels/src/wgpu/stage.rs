//! What a step submits: dispatches with everything bound when the plan was made, sized by the rows that a step has.

use ::wgpu::{BindGroupEntry, BindingResource, BufferBinding, BufferUsages, ComputePass};

use super::gpu::Gpu;
use super::pipelines::{Key, Shader};
use crate::backend::DeviceError;

/// Distance of parameters in their buffer: no device asks for more.
const PARAMS_STRIDE: u64 = 256;

/// Room for the parameters of one dispatch.
const PARAMS_BYTES: u64 = 128;

/// Most groups along one dimension, kept below what every device allows.
const MOST_GROUPS: u32 = 32_768;

/// How many rows a submission has, and how many of them have results.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counts {
    pub(super) rows: u32,
    pub(super) wants: u32,
    /// Positions that a row looks at, at most.
    pub(super) longest: u32,
    /// Heads of all rows, times parts, that there is room for where keys are split.
    pub(super) most_groups: u32,
}

/// Parts that the keys of a row are split into, at most.
const MOST_PARTS: u32 = 16;

/// Keys of a part, at least. With fewer than twice as many nothing is split.
const PART_KEYS: u32 = 256;

/// Heads of all rows from which on there is work enough without splitting: with parts there are no more of them either.
pub(super) const ENOUGH_GROUPS: u32 = 512;

impl Counts {
    /// Parts that keys are split into where a step has so many groups without.
    fn parts(self, groups: u32) -> u32 {
        let of_keys = (self.longest / PART_KEYS).clamp(1, MOST_PARTS);
        of_keys.min(self.most_groups / (self.rows * groups).max(1)).max(1)
    }
}

/// What a dispatch has one of for each.
#[derive(Clone, Copy, Debug)]
pub(super) enum Inputs {
    Rows,
    Wants,
    /// So many for each row: experts.
    Slots(u32),
}

impl Inputs {
    fn count(self, counts: Counts) -> u32 {
        match self {
            Self::Rows => counts.rows,
            Self::Wants => counts.wants,
            Self::Slots(per_row) => counts.rows * per_row,
        }
    }
}

/// The groups of a dispatch.
#[derive(Clone, Copy, Debug)]
pub(super) enum Groups {
    /// So many for each input.
    Each(u32),
    /// Of 64 threads, so many threads for each input, in one row of groups.
    Threads(u32),
    /// So many for every few inputs.
    Few { groups: u32, inputs: u32 },
    /// So many for every 32 inputs.
    Many(u32),
    /// So many for each input and part of the keys, where they are split and where they are not.
    Parts(u32),
    /// So many for each input, where keys are split alone.
    Merged(u32),
}

/// A dispatch as it is planned.
pub(super) struct Draft {
    pub(super) shader: Shader,
    pub(super) constants: Vec<(&'static str, f64)>,
    /// In the order of bindings, but for the step before and the parameters behind.
    pub(super) buffers: Vec<::wgpu::Buffer>,
    pub(super) params: Vec<u32>,
    pub(super) groups: Groups,
    pub(super) inputs: Inputs,
}

/// A dispatch in its forms for one input, few and many, or the same for all.
pub(super) type DraftStage = Vec<Draft>;

struct Dispatch {
    pipeline: ::wgpu::ComputePipeline,
    bound: ::wgpu::BindGroup,
    groups: Groups,
    inputs: Inputs,
}

/// A dispatch, ready.
pub(super) struct Stage(Vec<Dispatch>);

/// Inputs up to which the form for few is taken.
const FEW: u32 = 8;

impl Stage {
    /// Whether it takes a dispatch in every step, not in long contexts alone.
    pub(super) fn is_always_there(&self) -> bool {
        !self.0.iter().any(|dispatch| matches!(dispatch.groups, Groups::Merged(_)))
    }

    /// Adds the dispatch to a pass.
    pub(super) fn record(&self, pass: &mut ComputePass<'_>, counts: Counts) {
        let Some(first) = self.0.first() else { return };
        let n_inputs = first.inputs.count(counts);
        let form = match n_inputs {
            0 => return,
            1 => 0,
            n if n <= FEW => 1,
            _ => 2,
        };
        let dispatch = match first.groups {
            // Whole, or in parts.
            Groups::Parts(groups) => &self.0[usize::from(counts.parts(groups) > 1)],
            Groups::Merged(groups) if counts.parts(groups) == 1 => return,
            _ => &self.0[form.min(self.0.len() - 1)],
        };
        let folded = |groups: u32| (groups.min(MOST_GROUPS), groups.div_ceil(MOST_GROUPS));
        let (x, y, z) = match dispatch.groups {
            Groups::Each(groups) => (groups, n_inputs, 1),
            Groups::Threads(threads) => {
                let (x, y) = folded((n_inputs * threads).div_ceil(64));
                (x, y, 1)
            }
            Groups::Few { groups, inputs } => {
                let (x, y) = folded(groups);
                (x, y, n_inputs.div_ceil(inputs))
            }
            Groups::Many(groups) => (groups, n_inputs.div_ceil(32), 1),
            Groups::Parts(groups) => (groups, n_inputs, counts.parts(groups)),
            Groups::Merged(groups) => (groups, n_inputs, counts.parts(groups)),
        };
        pass.set_pipeline(&dispatch.pipeline);
        pass.set_bind_group(0, &dispatch.bound, &[]);
        pass.dispatch_workgroups(x, y, z);
    }
}

/// Makes pipelines and binds everything; parameters of all dispatches go into one buffer. Returns as many lists of stages.
pub(super) fn finish<const N: usize>(
    gpu: &Gpu,
    step: &::wgpu::Buffer,
    drafts: [Vec<DraftStage>; N],
) -> Result<([Vec<Stage>; N], u64), DeviceError> {
    let all = || drafts.iter().flatten().flatten();
    gpu.prepare(all().map(|draft| Key::new(draft.shader, &draft.constants)))?;
    let n_dispatches = drafts.iter().flatten().map(Vec::len).sum::<usize>() as u64;
    let params_bytes = n_dispatches.max(1) * PARAMS_STRIDE;
    let params = gpu.buffer("parameters", params_bytes, BufferUsages::UNIFORM | BufferUsages::COPY_DST)?;
    let mut bytes = vec![0; params_bytes as usize];
    let mut at = 0;
    let mut finished = [const { Vec::new() }; N];
    for (finished, stages) in finished.iter_mut().zip(drafts) {
        for forms in stages {
            let mut stage = Vec::with_capacity(forms.len());
            for draft in forms {
                for (word, value) in bytes[at as usize..].as_chunks_mut::<4>().0.iter_mut().zip(&draft.params) {
                    *word = value.to_le_bytes();
                }
                stage.push(bind(gpu, step, &params, at, &draft)?);
                at += PARAMS_STRIDE;
            }
            finished.push(Stage(stage));
        }
    }
    gpu.scoped("parameters", params_bytes, || gpu.queue.write_buffer(&params, 0, &bytes))?;
    Ok((finished, params_bytes))
}

fn bind(
    gpu: &Gpu,
    step: &::wgpu::Buffer,
    params: &::wgpu::Buffer,
    offset: u64,
    draft: &Draft,
) -> Result<Dispatch, DeviceError> {
    let pipeline = gpu.pipeline(&Key::new(draft.shader, &draft.constants))?;
    let own = BufferBinding { buffer: params, offset, size: std::num::NonZero::new(PARAMS_BYTES) };
    let whole = std::iter::once(step).chain(&draft.buffers).map(::wgpu::Buffer::as_entire_binding);
    let resources = whole.chain(std::iter::once(BindingResource::Buffer(own)));
    let entries: Vec<_> = resources.zip(0..).map(|(resource, binding)| BindGroupEntry { binding, resource }).collect();
    let descriptor = ::wgpu::BindGroupDescriptor { label: None, layout: &pipeline.layout, entries: &entries };
    let bound = gpu.scoped("bindings", 0, || gpu.device.create_bind_group(&descriptor))?;
    Ok(Dispatch { pipeline: pipeline.pipeline, bound, groups: draft.groups, inputs: draft.inputs })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_split_where_there_are_many_and_little_else_to_do() {
        let parts =
            |rows, longest, groups| Counts { rows, wants: 1, longest, most_groups: ENOUGH_GROUPS }.parts(groups);
        assert_eq!([0, 511, 512, 1024, 100_000].map(|longest| parts(1, longest, 32)), [1, 1, 2, 4, 16]);
        // Of more rows, fewer.
        assert_eq!([2, 4, 8, 16, 512].map(|rows| parts(rows, 100_000, 32)), [8, 4, 2, 1, 1]);
    }
}
