//! What a step runs: kernels with all that they are given but the number of inputs, which a step has.

use super::driver::{Kernel, Launch};
use super::gpu::Gpu;
use super::sources::Module;
use crate::backend::DeviceError;

/// How many rows a submission has, and how many of them have results.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Counts {
    pub(super) rows: u32,
    pub(super) wants: u32,
}

/// What a kernel has one of for each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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

    /// As kernels are told: see `n_inputs` in `base.cu`.
    pub(super) fn word(self) -> u32 {
        match self {
            Self::Rows => 0,
            Self::Wants => 1,
            Self::Slots(per_row) => per_row + 1,
        }
    }
}

/// The argument of a kernel, a structure as its compiler lays it out.
#[derive(Clone, Debug, Default)]
pub(super) struct Args(Vec<u8>);

impl Args {
    /// An address.
    pub(super) fn pointer(mut self, address: u64) -> Self {
        self = self.aligned();
        self.0.extend(address.to_le_bytes());
        self
    }

    pub(super) fn word(mut self, word: u32) -> Self {
        self.0.extend(word.to_le_bytes());
        self
    }

    pub(super) fn words<const N: usize>(self, words: [usize; N]) -> Self {
        words.into_iter().fold(self, |args, word| args.word(word as u32))
    }

    pub(super) fn float(self, value: f32) -> Self {
        self.word(value.to_bits())
    }

    /// Ends a structure that has addresses.
    pub(super) fn aligned(mut self) -> Self {
        self.0.resize(self.0.len().next_multiple_of(8), 0);
        self
    }
}

/// A kernel as it is planned.
pub(super) struct Draft {
    pub(super) module: Module,
    pub(super) kernel: &'static str,
    pub(super) threads: u32,
    pub(super) args: Args,
    /// Blocks for every so many inputs, and parts that each is split into.
    pub(super) blocks: usize,
    pub(super) inputs_of_block: u32,
    pub(super) parts: u32,
}

/// Kernels for steps of up to so many inputs.
pub(super) struct Form<T> {
    pub(super) most_inputs: u32,
    pub(super) kernels: Vec<T>,
}

/// Work in its forms for few inputs and many, in this order.
pub(super) struct DraftStage {
    pub(super) inputs: Inputs,
    pub(super) forms: Vec<Form<Draft>>,
}

impl DraftStage {
    /// With one kernel for any number of inputs.
    pub(super) fn one(inputs: Inputs, draft: Draft) -> Self {
        Self { inputs, forms: vec![Form { most_inputs: u32::MAX, kernels: vec![draft] }] }
    }
}

struct Ready {
    kernel: Kernel,
    threads: u32,
    args: Vec<u8>,
    blocks: u32,
    inputs_of_block: u32,
    parts: u32,
}

/// Work, ready.
pub(super) struct Stage {
    inputs: Inputs,
    forms: Vec<Form<Ready>>,
}

impl Stage {
    /// Compiles the kernels.
    pub(super) fn new(gpu: &Gpu, draft: DraftStage) -> Result<Self, DeviceError> {
        let ready = |draft: Draft| {
            let kernel = gpu.kernel(&draft.module, draft.kernel)?;
            let Ok(blocks) = u32::try_from(draft.blocks) else {
                return Err(DeviceError::Refused(format!("{}: {} blocks are too many", draft.kernel, draft.blocks)));
            };
            let Draft { threads, inputs_of_block, parts, .. } = draft;
            Ok(Ready { kernel, threads, args: draft.args.aligned().0, blocks, inputs_of_block, parts })
        };
        let form = |form: Form<Draft>| {
            let kernels = form.kernels.into_iter().map(ready).collect::<Result<_, DeviceError>>()?;
            Ok(Form { most_inputs: form.most_inputs, kernels })
        };
        Ok(Self { inputs: draft.inputs, forms: draft.forms.into_iter().map(form).collect::<Result<_, DeviceError>>()? })
    }

    /// Adds its launches for so many inputs.
    pub(super) fn launches(&self, counts: Counts, launches: &mut Vec<Launch>) {
        let n_inputs = self.inputs.count(counts);
        let form = self.forms.iter().find(|form| n_inputs <= form.most_inputs);
        for ready in form.into_iter().flat_map(|form| &form.kernels).filter(|ready| n_inputs > 0 && ready.blocks > 0) {
            let grid = [ready.blocks, n_inputs.div_ceil(ready.inputs_of_block), ready.parts];
            launches.push(Launch { kernel: ready.kernel, grid, threads: ready.threads, args: ready.args.clone() });
        }
    }
}
