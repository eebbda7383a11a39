//! Finding an adapter, and it as a [`Backend`].

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::wgpu::{Adapter, AdapterInfo, Backends, DeviceType, DownlevelFlags, Instance, InstanceDescriptor, InstanceFlags};

use super::gpu::{Gpu, block_on};
use super::{plan, self_test};
use crate::backend::{Backend, DeviceError, DeviceInfo, Limits, Plan};
use crate::graph::Graph;
use crate::keep::{Keep, Nowhere};

/// Which adapters may be taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Adapters {
    /// Graphics processors.
    Hardware,
    /// Those, or else a driver that computes on the processor: slower than the processor itself, but for tests.
    Any,
}

/// How a graphics processor is opened.
#[derive(Clone)]
pub struct Options {
    /// Which adapters may be taken.
    pub adapters: Adapters,
    /// Whether subgroups are used where they are offered.
    pub subgroups: bool,
    /// Whether halves are computed with where that is offered.
    pub halves: bool,
    /// Whether bytes are met four at a time, where the device has that.
    pub packed: bool,
    /// Bytes of a buffer that are bound at once, at most: as if the device could no more.
    pub most_bound_bytes: Option<u64>,
    /// Where compiled shaders are kept.
    pub keep: Arc<dyn Keep>,
}

impl Default for Options {
    fn default() -> Self {
        let (adapters, keep) = (Adapters::Hardware, Arc::new(Nowhere));
        Self { adapters, subgroups: true, halves: true, packed: true, most_bound_bytes: None, keep }
    }
}

/// How long a submission may take on a graphics processor.
const PATIENCE: Duration = Duration::from_secs(60);

/// The same where the processor plays one.
const SOFTWARE_PATIENCE: Duration = Duration::from_secs(1800);

/// Storage buffers that a shader binds, at most.
const STORAGE_BUFFERS: u32 = 8;

/// A graphics processor. One device is shared by all plans; if it is lost, the next plan opens another.
pub struct Wgpu {
    adapter: Adapter,
    info: AdapterInfo,
    options: Options,
    gpu: Mutex<Arc<Gpu>>,
}

impl Wgpu {
    /// Opens the best adapter there is: discrete before integrated ones, software last; Vulkan before Direct3D.
    ///
    /// # Errors
    /// [`DeviceError::Absent`] where there is none of those asked for, or none that has what plans need.
    pub fn open(which: Adapters) -> Result<Self, DeviceError> {
        Self::open_with(Options { adapters: which, ..Options::default() })
    }

    /// The same, as `options` say.
    ///
    /// # Errors
    /// As [`Wgpu::open`].
    pub fn open_with(options: Options) -> Result<Self, DeviceError> {
        let instance = Instance::new(InstanceDescriptor {
            backends: Backends::VULKAN | Backends::METAL | Backends::DX12,
            flags: InstanceFlags::empty(),
            ..InstanceDescriptor::new_without_display_handle()
        });
        let mut found: Vec<(Adapter, AdapterInfo)> = block_on(instance.enumerate_adapters(Backends::all()))
            .into_iter()
            .map(|adapter| {
                let info = adapter.get_info();
                (adapter, info)
            })
            .collect();
        found.sort_by_key(|(_, info)| (rank(info.device_type), info.backend == ::wgpu::Backend::Dx12));
        let mut refused = Vec::new();
        for (adapter, info) in found {
            let why = match options.adapters {
                Adapters::Hardware if info.device_type == DeviceType::Cpu => {
                    Err("computes on the processor".to_owned())
                }
                _ => suits(&adapter),
            };
            match why {
                Ok(()) => {
                    let gpu = Gpu::open(&adapter, &info, &options, patience(&info))?;
                    return Ok(Self { adapter, info, options, gpu: Mutex::new(Arc::new(gpu)) });
                }
                Err(why) => refused.push(format!("{} {why}", info.name)),
            }
        }
        Err(DeviceError::Absent(match refused.len() {
            0 => "no graphics processor with a driver".to_owned(),
            _ => format!("no graphics processor: {}", refused.join(", ")),
        }))
    }

    /// Whether the processor plays the graphics processor.
    pub fn is_software(&self) -> bool {
        self.info.device_type == DeviceType::Cpu
    }

    /// The device, opened again if it was lost.
    fn gpu(&self) -> Result<Arc<Gpu>, DeviceError> {
        let mut gpu = self.gpu.lock().unwrap_or_else(PoisonError::into_inner);
        if gpu.check().is_err() {
            *gpu = Arc::new(Gpu::open(&self.adapter, &self.info, &self.options, patience(&self.info))?);
        }
        Ok(Arc::clone(&gpu))
    }
}

fn patience(info: &AdapterInfo) -> Duration {
    if info.device_type == DeviceType::Cpu { SOFTWARE_PATIENCE } else { PATIENCE }
}

/// The lower the better.
fn rank(device_type: DeviceType) -> u8 {
    match device_type {
        DeviceType::DiscreteGpu => 0,
        DeviceType::IntegratedGpu => 1,
        DeviceType::VirtualGpu => 2,
        DeviceType::Other => 3,
        DeviceType::Cpu => 4,
    }
}

/// Says what an adapter lacks.
fn suits(adapter: &Adapter) -> Result<(), String> {
    let limits = adapter.limits();
    let flags = adapter.get_downlevel_capabilities().flags;
    if !flags.contains(DownlevelFlags::COMPUTE_SHADERS | DownlevelFlags::SHADER_F16_IN_F32) {
        return Err("has no compute shaders with packed halves".to_owned());
    }
    let needed = [
        ("storage buffers of a shader", limits.max_storage_buffers_per_shader_stage, STORAGE_BUFFERS),
        ("threads of a group", limits.max_compute_invocations_per_workgroup, 256),
        ("bytes of workgroup memory", limits.max_compute_workgroup_storage_size, 16 << 10),
        ("groups along one dimension", limits.max_compute_workgroups_per_dimension, 65_535),
    ];
    match needed.into_iter().find(|(_, found, least)| found < least) {
        Some((what, found, least)) => Err(format!("has {found} {what}, expected {least}")),
        None => Ok(()),
    }
}

impl Backend for Wgpu {
    fn describe(&self) -> DeviceInfo {
        let info = &self.info;
        let uses = self.gpu.lock().unwrap_or_else(PoisonError::into_inner).uses;
        let kind = match info.device_type {
            DeviceType::DiscreteGpu => "discrete",
            DeviceType::IntegratedGpu => "integrated",
            DeviceType::VirtualGpu => "virtual",
            DeviceType::Other => "other",
            DeviceType::Cpu => "software",
        };
        DeviceInfo {
            backend: "wgpu",
            name: info.name.clone(),
            driver: format!("{} {} {}", info.backend, info.driver, info.driver_info).trim().to_owned(),
            memory_bytes: None,
            features: std::iter::once(kind.to_owned()).chain(uses.names()).collect(),
        }
    }

    fn shares_memory(&self) -> bool {
        matches!(self.info.device_type, DeviceType::IntegratedGpu | DeviceType::Cpu)
    }

    fn self_test(&self) -> Result<(), DeviceError> {
        self_test::run(&self.gpu()?)
    }

    fn compile(&self, graph: &Graph, limits: &Limits) -> Result<Box<dyn Plan>, DeviceError> {
        Ok(Box::new(plan::compile(&self.gpu()?, graph, limits)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Batch, KvStore, Output, Row, Want, WantKind};
    use crate::graph::GraphBuilder;
    use crate::keep::InMemory;
    use crate::tensor::Weight;

    fn graph() -> Graph {
        let mut graph = GraphBuilder::new();
        let weight = |rows: usize| Weight::from_f32("w", rows, 512, &vec![0.1; rows * 512]).unwrap();
        let mut x = graph.embed(weight(7), 1.0);
        for _ in 0..8 {
            x = graph.linear(x, weight(512), None).unwrap();
        }
        graph.head(x, weight(7), None, 1.0, None, 1000).unwrap()
    }

    fn step(plan: &mut dyn Plan) -> Result<(), DeviceError> {
        let kv: &mut dyn KvStore = plan.kv();
        let sequence = kv.open().unwrap();
        assert!(kv.reserve(sequence, 200));
        let rows = (0..200).map(|position| Row { token: 1, position, sequence }).collect();
        let want = vec![Want { row: 0, kind: WantKind::Greedy }];
        let result = plan.step(&Batch { rows, want, interrupt: None }, &mut Output::default());
        let len = plan.kv().len(sequence);
        assert_eq!(len, if result.is_ok() { 200 } else { 0 });
        plan.kv().close(sequence);
        result
    }

    fn device() -> Option<Wgpu> {
        Wgpu::open(Adapters::Any).map_err(|error| println!("skipped: {error}; install a Vulkan driver")).ok()
    }

    #[test]
    fn a_lost_device_is_an_error_and_the_next_plan_opens_it_anew() {
        let Some(device) = device() else { return };
        let limits = Limits { max_rows: 256, ..Limits::default() };
        let mut plan = device.compile(&graph(), &limits).unwrap();
        assert_eq!(step(&mut *plan), Ok(()));
        device.gpu.lock().unwrap().device.destroy();
        for _ in 0..2 {
            assert!(matches!(step(&mut *plan), Err(DeviceError::Lost(_))));
        }
        let mut plan = device.compile(&graph(), &limits).unwrap();
        assert_eq!(step(&mut *plan), Ok(()));
    }

    #[test]
    fn a_device_that_does_not_answer_in_time_hangs() {
        let Some(device) = device() else { return };
        let limits = Limits { max_rows: 256, ..Limits::default() };
        let gpu = Arc::new(Gpu::open(&device.adapter, &device.info, &device.options, Duration::ZERO).unwrap());
        // Whether it is found when weights are uploaded or when a step runs: there is no time for either.
        let error = match plan::compile(&gpu, &graph(), &limits) {
            Ok(mut plan) => step(&mut plan).and_then(|()| step(&mut plan)),
            Err(error) => Err(error),
        };
        assert_eq!(error, Err(DeviceError::Hung("no answer within 0 seconds".to_owned())));
    }

    #[test]
    fn a_buffer_that_no_device_has_is_out_of_memory() {
        let Some(device) = device() else { return };
        let gpu = device.gpu().unwrap();
        let error = gpu.buffer("a test", gpu.max_buffer + 1, ::wgpu::BufferUsages::COPY_DST).err();
        assert!(matches!(error, Some(DeviceError::OutOfMemory { what: "a test", .. })), "{error:?}");
        assert_eq!(gpu.check(), Ok(()));
    }

    #[test]
    fn compiled_shaders_are_kept_and_broken_ones_made_anew() {
        let keep = Arc::new(InMemory::default());
        let run = || {
            let options = Options { adapters: Adapters::Any, keep: Arc::clone(&keep) as _, ..Options::default() };
            let device = Wgpu::open_with(options).ok()?;
            let is_cached = device.adapter.features().contains(::wgpu::Features::PIPELINE_CACHE);
            let mut plan = device.compile(&graph(), &Limits { max_rows: 256, ..Limits::default() }).unwrap();
            assert_eq!(step(&mut *plan), Ok(()));
            Some(is_cached)
        };
        let Some(is_cached) = run() else { return };
        let names = || keep.0.lock().unwrap().keys().cloned().collect::<Vec<_>>();
        let kept = names();
        assert_eq!(kept.len(), usize::from(is_cached));
        let Some(name) = kept.first() else { return };
        assert!(name.starts_with("wgpu-pipelines-"), "{name}");
        let whole = keep.load(name).unwrap();
        let bytes = crate::keep::opened(&whole).unwrap().to_vec();
        // A bit of the driver's, its seal made anew for the header of another device, nothing, half of it.
        let mut flipped = whole.clone();
        *flipped.last_mut().unwrap() ^= 1;
        let mut foreign = bytes.clone();
        foreign[16..24].fill(0x55);
        for broken in [flipped, crate::keep::sealed(&foreign), Vec::new(), whole[..whole.len() / 2].to_vec()] {
            keep.save(name, &broken);
            assert!(run().is_some());
            assert_eq!(keep.load(name).map(|kept| crate::keep::opened(&kept).is_some()), Some(true), "made anew");
        }
        assert_eq!(names(), kept);
    }
}
