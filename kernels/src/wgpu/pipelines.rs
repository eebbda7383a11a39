//! Shaders, and the pipelines that are made of them: each once, for the constants it is specialised by.
//!
//! A shader is the files under `shaders/` that [`Shader::sources`] names, one after the other. What differs between types
//! are constants of theirs (`override`), given when a pipeline is made, and for keys and values the file that says what a
//! word of them is. How threads add up differs with what a device has: `THREAD` and `MEMBER` in a shader stand for the
//! number of a thread in its group, and what it is made of. What compiled pipelines a driver gives away is kept for the next run of the program.

use std::collections::{HashMap, HashSet};
use std::num::NonZero;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use ::wgpu::{AdapterInfo, Device, ErrorFilter, Features, PipelineCache, PipelineCacheDescriptor, ShaderModule};

use super::gpu::{Gpu, Uses, block_on};
use crate::backend::{DeviceError, KvType};
use crate::keep::{self, Keep};

/// What there is to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Shader {
    Embed,
    Norm,
    ProductFew,
    ProductMany,
    ProductTiles(Tile),
    ProductMix,
    Rope,
    Store(StoredAs),
    Attention(StoredAs),
    Merge,
    Elementwise,
    Route,
    Gather,
    ArgMax,
}

/// What weights and inputs are met as where inputs are rounded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Tile {
    /// Signed bytes, four at a time.
    Bytes,
    /// Halves.
    Halves,
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
    /// All that a device has a use for.
    fn all(uses: Uses) -> Vec<Self> {
        let of_cache = [StoredAs::F16, StoredAs::Q8, StoredAs::F32];
        let mut all = vec![Self::Embed, Self::Norm, Self::ProductFew, Self::ProductMany, Self::ProductMix, Self::Rope];
        all.extend([
            Self::Elementwise,
            Self::Merge,
            Self::Route,
            Self::Gather,
            Self::ArgMax,
            Self::ProductTiles(Tile::Bytes),
        ]);
        all.extend(uses.has_halves.then_some(Self::ProductTiles(Tile::Halves)));
        all.extend(of_cache.map(Self::Store));
        all.extend(of_cache.map(Self::Attention));
        all
    }

    /// Its text for a device.
    fn source(self, uses: Uses) -> String {
        let word = |stored_as| match stored_as {
            StoredAs::F16 => source!("kv_f16"),
            StoredAs::Q8 => source!("kv_q8_0"),
            StoredAs::F32 => source!("kv_f32"),
        };
        let products = [source!("weights"), source!("product")];
        let parts = match self {
            Self::Embed => vec![source!("weights"), source!("embed")],
            Self::Norm => vec![source!("norm")],
            Self::ProductFew => [&products[..], &[source!("product_few")]].concat(),
            Self::ProductMany => [&products[..], &[source!("write_tile"), source!("product_many")]].concat(),
            Self::ProductTiles(tile) => {
                let tile = if tile == Tile::Bytes { source!("tile_bytes") } else { source!("tile_halves") };
                [&products[..], &[source!("write_tile"), tile, source!("product_tiles")]].concat()
            }
            Self::ProductMix => [&products[..], &[source!("product_mix")]].concat(),
            Self::Rope => vec![source!("rope")],
            Self::Store(stored_as) => {
                let main = if stored_as == StoredAs::Q8 { source!("store_q8_0") } else { source!("store") };
                vec![word(stored_as), source!("store_bind"), source!("heads"), source!("store_read"), main]
            }
            Self::Attention(stored_as) => {
                vec![word(stored_as), source!("attention_bind"), source!("heads"), source!("attention")]
            }
            Self::Merge => vec![source!("merge")],
            Self::Elementwise => vec![source!("elementwise")],
            Self::Route => vec![source!("route")],
            Self::Gather => vec![source!("gather")],
            Self::ArgMax => vec![source!("arg_max")],
        };
        let has_subgroups = self.sums_up() && uses.subgroup.is_some();
        let threads = match (self.sums_up(), has_subgroups) {
            (false, _) => "",
            (true, false) => source!("thread_shared"),
            (true, true) => source!("thread_subgroup"),
        };
        let (member, thread) = if has_subgroups {
            let member = "@builtin(subgroup_id) subgroup: u32, @builtin(subgroup_size) n_members: u32, \
                          @builtin(subgroup_invocation_id) member: u32,";
            (member, "number_of(subgroup, n_members, member)")
        } else {
            ("", "index")
        };
        // Subgroups need no such line: naga knows none for them.
        let enabled = if self == Self::ProductTiles(Tile::Halves) { "enable f16;\n" } else { "" };
        let body = parts.concat().replace("MEMBER", member).replace("THREAD", thread);
        format!("{enabled}{}{threads}{body}", source!("step"))
    }

    /// Whether threads add up: with subgroups where there are any.
    fn sums_up(self) -> bool {
        matches!(
            self,
            Self::Norm | Self::ProductFew | Self::ProductMix | Self::Gather | Self::Store(_) | Self::Attention(_)
        )
    }

    /// Its bindings in order: first the step, last its parameters.
    fn bindings(self) -> &'static [Binding] {
        use Binding::{Read, Uniform, Write};
        match self {
            Self::Embed | Self::Rope | Self::Elementwise => &[Read, Read, Read, Write, Uniform],
            Self::Norm => &[Read, Read, Read, Read, Write, Uniform],
            Self::ProductFew | Self::ProductMany | Self::ProductTiles(_) | Self::ProductMix => {
                &[Read, Read, Read, Read, Read, Read, Read, Write, Uniform]
            }
            Self::Store(_) => &[Read, Read, Read, Read, Read, Write, Write, Uniform],
            Self::Attention(_) => &[Read, Read, Read, Read, Read, Read, Write, Uniform],
            Self::Gather => &[Read, Read, Read, Write, Uniform],
            Self::Merge | Self::Route | Self::ArgMax => &[Read, Read, Write, Uniform],
        }
    }
}

/// A shader and its constants, by their bits.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    shader: Shader,
    constants: Vec<(&'static str, u64)>,
}

/// A pipeline, and the layout of what it binds.
#[derive(Clone)]
pub(super) struct Pipeline {
    pub(super) pipeline: ::wgpu::ComputePipeline,
    pub(super) layout: ::wgpu::BindGroupLayout,
}

impl Key {
    pub(super) fn new(shader: Shader, constants: &[(&'static str, f64)]) -> Self {
        Self { shader, constants: constants.iter().map(|(name, value)| (*name, value.to_bits())).collect() }
    }
}

/// What was made so far, and what is kept of it.
pub(super) struct Pipelines {
    modules: Mutex<HashMap<Shader, ShaderModule>>,
    made: Mutex<HashMap<Key, Pipeline>>,
    /// The driver's cache, where it has one, and the hash of what of it is kept already.
    cache: Option<PipelineCache>,
    kept: Mutex<Option<u64>>,
    keep: Arc<dyn Keep>,
    /// What it is kept under: by adapter, driver and shaders.
    name: String,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pipelines {
    pub(super) fn new(device: &Device, info: &AdapterInfo, uses: Uses, keep: Arc<dyn Keep>) -> Self {
        let name = kept_name(info, uses);
        let mut kept = None;
        let has_cache = device.features().contains(Features::PIPELINE_CACHE);
        let cache = has_cache.then(|| {
            let sealed = keep.load(&name);
            let data = sealed.as_deref().and_then(keep::opened);
            kept = data.map(|data| keep::hash([data]));
            let make = |data| {
                let errors = device.push_error_scope(ErrorFilter::Validation);
                let descriptor = PipelineCacheDescriptor { label: None, data, fallback: true };
                // SAFETY: the bytes are those that `get_data` gave, as their seal is whole; their header, which is checked,
                // says of which device and driver they are.
                let cache = unsafe { device.create_pipeline_cache(&descriptor) };
                block_on(errors.pop()).is_none().then_some(cache)
            };
            // The fallback is for what is broken; what another device has written is refused in spite of it.
            make(data).or_else(|| make(None))
        });
        let cache = cache.flatten();
        Self { modules: Mutex::default(), made: Mutex::default(), cache, kept: Mutex::new(kept), keep, name }
    }

    /// Keeps what the driver gives away, if it is not what is kept already.
    fn save(&self) {
        let Some(data) = self.cache.as_ref().and_then(PipelineCache::get_data) else { return };
        let hash = keep::hash([&data[..]]);
        if locked(&self.kept).replace(hash) != Some(hash) {
            self.keep.save(&self.name, &keep::sealed(&data));
        }
    }
}

/// The name of compiled pipelines: of another driver, or other shaders, it is another one.
fn kept_name(info: &AdapterInfo, uses: Uses) -> String {
    let texts = [&info.name, &info.driver, &info.driver_info].map(String::as_bytes);
    let ids = [info.vendor.to_le_bytes(), info.device.to_le_bytes()];
    let backend = info.backend.to_string();
    let sources: Vec<String> = Shader::all(uses).into_iter().map(|shader| shader.source(uses)).collect();
    let ids = ids.iter().map(|id| &id[..]);
    let version = env!("CARGO_PKG_VERSION").as_bytes();
    keep::name(
        "wgpu-pipelines",
        texts.into_iter().chain(ids).chain([backend.as_bytes(), version]).chain(sources.iter().map(String::as_bytes)),
    )
}

impl Gpu {
    /// Makes all pipelines that are not there yet, on several threads, and keeps what can be kept of them.
    pub(super) fn prepare(&self, keys: impl Iterator<Item = Key>) -> Result<(), DeviceError> {
        let missing: Vec<Key> = {
            let made = locked(&self.pipelines.made);
            let mut seen = HashSet::new();
            keys.filter(|key| !made.contains_key(key) && seen.insert(key.clone())).collect()
        };
        if missing.is_empty() {
            return Ok(());
        }
        let (next, failure) = (AtomicUsize::new(0), OnceLock::new());
        let work = || {
            while let Some(key) = missing.get(next.fetch_add(1, Ordering::Relaxed)) {
                if let Err(error) = self.pipeline(key) {
                    let _ = failure.set(error);
                }
            }
        };
        let n_threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(missing.len());
        std::thread::scope(|scope| {
            for _ in 1..n_threads {
                // Where no more threads can be started, those that are there do it all.
                let _ = std::thread::Builder::new().name("farpost-shaders".to_owned()).spawn_scoped(scope, work);
            }
            work();
        });
        if let Some(error) = failure.into_inner() {
            return Err(error);
        }
        self.pipelines.save();
        Ok(())
    }

    /// The pipeline of a shader with some constants.
    pub(super) fn pipeline(&self, key: &Key) -> Result<Pipeline, DeviceError> {
        if let Some(known) = locked(&self.pipelines.made).get(key) {
            return Ok(known.clone());
        }
        let made = self.scoped("a shader", 0, || self.make(key))?;
        locked(&self.pipelines.made).insert(key.clone(), made.clone());
        Ok(made)
    }

    fn module(&self, shader: Shader) -> ShaderModule {
        let mut modules = locked(&self.pipelines.modules);
        let make = || {
            let label = format!("{shader:?}");
            let source = ::wgpu::ShaderSource::Wgsl(shader.source(self.uses).into());
            let descriptor = ::wgpu::ShaderModuleDescriptor { label: Some(&label), source };
            let checks =
                ::wgpu::ShaderRuntimeChecks { force_loop_bounding: false, ..::wgpu::ShaderRuntimeChecks::checked() };
            // SAFETY: every loop of the shaders counts up to a bound (or halves down to zero); all other checks stay.
            unsafe { self.device.create_shader_module_trusted(descriptor, checks) }
        };
        modules.entry(shader).or_insert_with(make).clone()
    }

    fn make(&self, key: &Key) -> Pipeline {
        let Key { shader, constants } = key;
        let label = format!("{shader:?}");
        let module = self.module(*shader);
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
        let mut constants: Vec<(&str, f64)> =
            constants.iter().map(|(name, bits)| (*name, f64::from_bits(*bits))).collect();
        let least = self.uses.subgroup.filter(|_| shader.sums_up());
        constants.extend(least.map(|least| ("SMALLEST", f64::from(least))));
        let pipeline = self.device.create_compute_pipeline(&::wgpu::ComputePipelineDescriptor {
            label: Some(&label),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some("main"),
            compilation_options: ::wgpu::PipelineCompilationOptions {
                constants: &constants,
                // Nothing is read from it before it is written.
                zero_initialize_workgroup_memory: false,
            },
            cache: self.pipelines.cache.as_ref(),
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

    use ::wgpu::naga::valid::{Capabilities, ShaderStages, SubgroupOperationSet, ValidationFlags, Validator};
    use ::wgpu::naga::{AddressSpace, StorageAccess};

    #[test]
    fn every_shader_is_valid_and_binds_what_it_is_given() {
        let choices = [None, Some(4), Some(8), Some(16)];
        for (subgroup, has_halves) in choices.into_iter().flat_map(|least| [(least, false), (least, true)]) {
            let uses = Uses { subgroup, has_halves, has_packed: true };
            // Halves packed in words are no numbers.
            let mut capabilities = Capabilities::SHADER_FLOAT16_IN_FLOAT32;
            capabilities.set(Capabilities::SHADER_FLOAT16, has_halves);
            capabilities.set(Capabilities::SUBGROUP, subgroup.is_some());
            Shader::all(uses).into_iter().for_each(|shader| check(shader, uses, capabilities));
        }
    }

    fn check(shader: Shader, uses: Uses, capabilities: Capabilities) {
        let source = shader.source(uses);
        let module = ::wgpu::naga::front::wgsl::parse_str(&source)
            .unwrap_or_else(|error| panic!("{shader:?}: {}", error.emit_to_string(&source)));
        let mut validator = Validator::new(ValidationFlags::all(), capabilities);
        validator.subgroup_stages(ShaderStages::COMPUTE).subgroup_operations(SubgroupOperationSet::all());
        let validated = validator.validate(&module);
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
