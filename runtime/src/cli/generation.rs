//! Options of commands that let a model write: how long, until what, in how much memory.

use farpost::engine::{GenerateOptions, Speculate};
use farpost_kernels::backend::{Activations, KvType};

use super::amount;
use super::device::{BackendChoice, GpuLayers};
use super::exit::Failure;
use super::sampling::SamplingArgs;

/// How much to write and what to keep of it.
#[derive(clap::Args, Debug, Clone)]
pub struct GenerationArgs {
    /// Write at most N tokens [default: until the model ends or the context is full]
    #[arg(short = 'n', long, value_name = "N", allow_negative_numbers = true, value_parser = amount::whole::<usize>(0..))]
    pub max_tokens: Option<usize>,
    /// End before this text (may be given several times); no part of it is shown
    #[arg(long, value_name = "TEXT", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub stop: Vec<String>,
    /// Go on where the model would end
    #[arg(long)]
    pub ignore_eos: bool,
    /// Guess tokens ahead where the text repeats itself (lookup), and run them in one step; each is chosen as without
    #[arg(long, value_name = "HOW", default_value = "off")]
    pub speculate: SpeculateChoice,
    #[command(flatten)]
    pub memory: MemoryArgs,
}

/// [`Speculate`] with a name on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpeculateChoice(pub Speculate);

impl clap::ValueEnum for SpeculateChoice {
    fn value_variants<'a>() -> &'a [Self] {
        const LOOKUP: SpeculateChoice = SpeculateChoice(Speculate::lookup());
        &[LOOKUP, Self(Speculate::Off)]
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(clap::builder::PossibleValue::new(match self.0 {
            Speculate::Off => "off",
            // No value of the option: --draft brings it.
            Speculate::Draft { .. } => return None,
            Speculate::Lookup { .. } => "lookup",
        }))
    }
}

/// What the context costs, and how exactly a model is computed.
#[derive(clap::Args, Debug, Clone)]
pub struct MemoryArgs {
    /// Tokens of context, prompt and answer together [default: what the model was made for, at most 4096]
    #[arg(short, long, value_name = "N", allow_negative_numbers = true, value_parser = amount::whole::<u32>(1..))]
    pub context: Option<u32>,
    /// Device to compute on: cpu, wgpu, cuda or auto
    #[arg(
        long,
        value_name = "DEVICE",
        env = "FARPOST_BACKEND",
        hide_env = true,
        default_value = "auto",
        hide_possible_values = true
    )]
    pub backend: BackendChoice,
    /// Last layers to compute there; auto: what has room
    #[arg(long, value_name = "N", default_value = "auto")]
    pub gpu_layers: GpuLayers,
    /// How keys and values are kept: f16, q8_0 (half of that) or f32
    #[arg(long, value_name = "TYPE", default_value = "f16")]
    pub kv_type: KvChoice,
    /// Bits that activations are rounded to for quantized weights: int8 (fast), int16, or int16 in small models only
    #[arg(long, value_name = "TYPE", default_value = "auto")]
    pub activations: ActivationsChoice,
    /// Refuse to take more memory than this beside the model's file, such as 512M or 2G [default: what is available]
    #[arg(long, value_name = "SIZE", value_parser = amount::parse_bytes)]
    pub memory_cap: Option<u64>,
}

/// [`KvType`] with a name on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvChoice(pub KvType);

impl clap::ValueEnum for KvChoice {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self(KvType::F16), Self(KvType::Q8_0), Self(KvType::F32)]
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(clap::builder::PossibleValue::new(self.0.name()))
    }
}

/// [`Activations`] with a name on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActivationsChoice(pub Activations);

impl clap::ValueEnum for ActivationsChoice {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self(Activations::Auto), Self(Activations::Int8), Self(Activations::Int16)]
    }

    fn to_possible_value(&self) -> Option<clap::builder::PossibleValue> {
        Some(clap::builder::PossibleValue::new(self.0.name()))
    }
}

impl GenerationArgs {
    /// What the engine is asked for, checked.
    pub fn options(&self, sampling: &SamplingArgs, is_built_in: bool) -> Result<GenerateOptions, Failure> {
        let sampling = sampling.sampling(is_built_in);
        sampling.validate()?;
        Ok(GenerateOptions {
            sampling,
            max_tokens: self.max_tokens,
            stop: self.stop.clone(),
            ignore_eos: self.ignore_eos,
            render_special: false,
            grammar: None,
            speculate: self.speculate.0,
        })
    }
}
