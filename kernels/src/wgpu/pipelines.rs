//! Shaders, and the pipelines that are made of them: each once, for the constants it is specialised by.
//!
//! A shader is the files under `shaders/` that [`Shader::sources`] names, one after the other. What differs between types
//! are constants of theirs (`override`), given when a pipeline is made, and for keys and values the file that says what a
//! word of them is.

use super::gpu::Gpu;
use crate::backend::{DeviceError, KvType};

/// What there is to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Shader {
    Embed,
    Norm,
    ProductFew,
    ProductMany,
    Rope,
    Store(StoredAs),
    Attention(StoredAs),
    Elementwise,
    Route,
    Combine,
    Gather,
    Finish,
    ArgMax,
}

/// [`KvType`] as part of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum StoredAs {
    F16,
    Q8,
    F32,
}

impl From<KvType> for StoredAs {
    fn from(kv_type: KvType) -> Self {
        match kv_type {
            KvType::F16 => Self::F16,
            KvType::Q8_0 => Self::Q8,
            KvType::F32 => Self::F32,
        }
    }
}

/// What a shader binds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Binding {
    Read,
    Write,
    Uniform,
}

macro_rules! source {
    ($name:literal) => {
        include_str!(concat!("shaders/", $name, ".wgsl"))
    };
}

impl Shader {
    /// All there are.
    #[cfg(test)]
    fn all() -> Vec<Self> {
        let of_cache = [StoredAs::F16, StoredAs::Q8, StoredAs::F32];
        let mut all = vec![Self::Embed, Self::Norm, Self::ProductFew, Self::ProductMany, Self::Rope, Self::Elementwise];
        all.extend([Self::Route, Self::Combine, Self::Gather, Self::Finish, Self::ArgMax]);
        all.extend(of_cache.map(Self::Store));
        all.extend(of_cache.map(Self::Attention));
        all
    }

    fn sources(self) -> Vec<&'static str> {
        let word = |stored_as| match stored_as {
            StoredAs::F16 => source!("kv_f16"),
            StoredAs::Q8 => source!("kv_q8_0"),
            StoredAs::F32 => source!("kv_f32"),
        };
        let step = source!("step");
        match self {
            Self::Embed => vec![step, source!("weights"), source!("embed")],
            Self::Norm => vec![step, source!("norm")],
            Self::ProductFew => vec![step, source!("weights"), source!("product"), source!("product_few")],
            Self::ProductMany => vec![step, source!("weights"), source!("product"), source!("product_many")],
            Self::Rope => vec![step, source!("rope")],
            Self::Store(StoredAs::Q8) => vec![step, word(StoredAs::Q8), source!("store_q8_0")],
            Self::Store(stored_as) => vec![step, word(stored_as), source!("store")],
            Self::Attention(stored_as) => vec![step, word(stored_as), source!("attention")],
            Self::Elementwise => vec![step, source!("elementwise")],
            Self::Route => vec![step, source!("route")],
            Self::Combine => vec![step, source!("combine")],
            Self::Gather => vec![step, source!("gather")],
            Self::Finish => vec![step, source!("finish")],
            Self::ArgMax => vec![step, source!("arg_max")],
        }
    }

    /// Its bindings in order: first the step, last its parameters.
    fn bindings(self) -> &'static [Binding] {
        use Binding::{Read, Uniform, Write};
        match self {
            Self::Embed | Self::Norm | Self::Rope | Self::Elementwise | Self::Combine => {
                &[Read, Read, Read, Write, Uniform]
            }
            Self::ProductFew | Self::ProductMany => &[Read, Read, Read, Read, Read, Read, Read, Write, Uniform],
            Self::Store(_) => &[Read, Read, Read, Write, Write, Uniform],
            Self::Gather | Self::ArgMax => &[Read, Read, Write, Uniform],
            Self::Finish => &[Read, Write, Uniform],
            Self::Attention(_) => &[Read, Read, Read, Read, Write, Uniform],
            Self::Route => &[Read, Read, Write, Write, Uniform],
        }
    }
}

/// A shader and its constants, by their bits.
pub(super) type Key = (Shader, Vec<(&'static str, u64)>);

/// A pipeline, and the layout of what it binds.
#[derive(Clone)]
pub(super) struct Pipeline {
    pub(super) pipeline: ::wgpu::ComputePipeline,
    pub(super) layout: ::wgpu::BindGroupLayout,
}

impl Gpu {
    /// The pipeline of a shader with some constants.
    pub(super) fn pipeline(&self, shader: Shader, constants: &[(&'static str, f64)]) -> Result<Pipeline, DeviceError> {
        let key = (shader, constants.iter().map(|(name, value)| (*name, value.to_bits())).collect());
        if let Some(known) = self.pipelines().get(&key) {
            return Ok(known.clone());
        }
        let made = self.scoped("a shader", 0, || self.make(shader, constants))?;
        self.pipelines().insert(key, made.clone());
        Ok(made)
    }

    fn make(&self, shader: Shader, constants: &[(&str, f64)]) -> Pipeline {
        let label = format!("{shader:?}");
        let source = ::wgpu::ShaderSource::Wgsl(shader.sources().concat().into());
        let descriptor = ::wgpu::ShaderModuleDescriptor { label: Some(&label), source };
        let checks =
            ::wgpu::ShaderRuntimeChecks { force_loop_bounding: false, ..::wgpu::ShaderRuntimeChecks::checked() };
        // SAFETY: every loop of the shaders counts up to a bound (or halves down to zero); all other checks stay.
        let module = unsafe { self.device.create_shader_module_trusted(descriptor, checks) };
        let entries: Vec<_> =
            shader.bindings().iter().zip(0..).map(|(binding, number)| entry(*binding, number)).collect();
        let layout = self
            .device
            .create_bind_group_layout(&::wgpu::BindGroupLayoutDescriptor { label: Some(&label), entries: &entries });
        let pipeline_layout = self.device.create_pipeline_layout(&::wgpu::PipelineLayoutDescriptor {
            label: Some(&label),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let pipeline = self.device.create_compute_pipeline(&::wgpu::ComputePipelineDescriptor {
            label: Some(&label),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: ::wgpu::PipelineCompilationOptions {
                constants,
                // Nothing is read from it before it is written.
                zero_initialize_workgroup_memory: false,
            },
            cache: None,
        });
        Pipeline { pipeline, layout }
    }
}

fn entry(binding: Binding, number: u32) -> ::wgpu::BindGroupLayoutEntry {
    let ty = match binding {
        Binding::Uniform => ::wgpu::BufferBindingType::Uniform,
        other => ::wgpu::BufferBindingType::Storage { read_only: other == Binding::Read },
    };
    ::wgpu::BindGroupLayoutEntry {
        binding: number,
        visibility: ::wgpu::ShaderStages::COMPUTE,
        ty: ::wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
        count: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shader_is_valid_and_binds_what_it_is_given() {
        use ::wgpu::naga::valid::{Capabilities, ValidationFlags, Validator};
        use ::wgpu::naga::{AddressSpace, StorageAccess};
        // Of halves packed in words, not as numbers.
        let capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
        for shader in Shader::all() {
            let source = shader.sources().concat();
            let module = ::wgpu::naga::front::wgsl::parse_str(&source)
                .unwrap_or_else(|error| panic!("{shader:?}: {}", error.emit_to_string(&source)));
            let validated = Validator::new(ValidationFlags::all(), capabilities).validate(&module);
            assert!(validated.is_ok(), "{shader:?}: {}", validated.unwrap_err().emit_to_string(&source));
            let mut found = vec![None; shader.bindings().len()];
            for (_, variable) in module.global_variables.iter() {
                let Some(binding) = variable.binding else { continue };
                found[binding.binding as usize] = Some(match variable.space {
                    AddressSpace::Uniform => Binding::Uniform,
                    AddressSpace::Storage { access } if access.contains(StorageAccess::STORE) => Binding::Write,
                    _ => Binding::Read,
                });
            }
            let expected: Vec<_> = shader.bindings().iter().map(|binding| Some(*binding)).collect();
            assert_eq!(found, expected, "{shader:?}");
        }
    }
}
