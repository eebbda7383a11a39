//! The machine as the system describes it: processor, cores this program may use, memory it may have.
//!
//! Whatever a system does not tell stays unknown; nothing is guessed.

use std::path::{Path, PathBuf};

/// What was found.
#[derive(Debug)]
pub struct Machine {
    /// Product name of the processor.
    pub processor: Option<String>,
    /// Features that matter to the kernels, as the system names them.
    pub features: Vec<String>,
    /// Logical processors of the machine.
    pub n_processors: Option<usize>,
    /// Those this program may use: affinity and CPU quota counted in.
    pub n_cores: usize,
    /// Memory of the machine.
    pub total_bytes: Option<u64>,
    /// Memory that programs can get without swapping.
    pub available_bytes: Option<u64>,
    /// The limit of the control group, if there is one.
    pub limit_bytes: Option<u64>,
    /// Threads of all programs that wanted to run, on average over the last minute.
    pub load: Option<f64>,
}

/// Names of features with kernels or plans behind them.
const NOTABLE: [&str; 19] = [
    "sse4_2",
    "avx",
    "f16c",
    "fma",
    "avx2",
    "avx_vnni",
    "avx512f",
    "avx512bw",
    "avx512vl",
    "avx512dq",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_bf16",
    "amx_int8",
    "asimd",
    "asimddp",
    "i8mm",
    "sve",
];

impl Machine {
    /// Asks the system.
    pub fn look() -> Self {
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let memory = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let flags = field(&cpu, "flags").or_else(|| field(&cpu, "Features")).unwrap_or_default();
        let flags: Vec<&str> = flags.split_whitespace().collect();
        let n_processors = cpu.lines().filter(|line| line.starts_with("processor")).count();
        Self {
            processor: field(&cpu, "model name").map(str::to_owned),
            features: NOTABLE.iter().filter(|name| flags.contains(name)).map(|&name| name.to_owned()).collect(),
            n_processors: (n_processors > 0).then_some(n_processors),
            n_cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            total_bytes: kib(&memory, "MemTotal"),
            available_bytes: kib(&memory, "MemAvailable"),
            limit_bytes: group_limit(),
            load: load_now(),
        }
    }

    /// The load, where other programs leave less than half of the machine to this one.
    pub fn busy(&self) -> Option<f64> {
        self.busy_at(self.load)
    }

    /// The same of another load than that found.
    pub fn busy_at(&self, load: Option<f64>) -> Option<f64> {
        load.filter(|&load| load > self.n_processors.unwrap_or(self.n_cores) as f64 / 2.0)
    }

    /// Memory this program may take now, as far as is known.
    pub fn most_bytes(&self) -> Option<u64> {
        [self.available_bytes, self.limit_bytes].into_iter().flatten().min()
    }
}

/// The first value of a field in a file of `name : value` lines.
fn field<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    text.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        (key.trim() == name).then(|| value.trim())
    })
}

fn kib(text: &str, name: &str) -> Option<u64> {
    field(text, name)?.strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// Threads of all programs that wanted to run, on average over the last minute.
pub fn load_now() -> Option<f64> {
    load(&std::fs::read_to_string("/proc/loadavg").ok()?)
}

/// The average over a minute, the first of the system's averages.
fn load(text: &str) -> Option<f64> {
    text.split_whitespace().next()?.parse().ok()
}

/// The smallest memory limit of this process's control group and those above it, versions 2 and 1.
fn group_limit() -> Option<u64> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    groups
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let (controllers, path) = (fields.next()?, fields.next()?);
            let (root, file) = match controllers {
                "" => ("/sys/fs/cgroup", "memory.max"),
                _ if controllers.split(',').any(|name| name == "memory") => {
                    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
                }
                _ => return None,
            };
            limit_along(Path::new(root), path, file)
        })
        .min()
}

/// Limits from `path` under `root` up to `root` itself; inside a container the path may not be visible at all.
fn limit_along(root: &Path, path: &str, file: &str) -> Option<u64> {
    /// "No limit" in version 1 is the largest whole page.
    const NO_LIMIT: u64 = 1 << 60;
    let below: PathBuf = root.join(path.trim_start_matches('/'));
    let folders = below.ancestors().take_while(|folder| folder.starts_with(root));
    let limits =
        folders.filter_map(|folder| std::fs::read_to_string(folder.join(file)).ok()?.trim().parse::<u64>().ok());
    limits.filter(|&limit| limit < NO_LIMIT).min()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_whatever_the_space_around_them() {
        let text = "processor\t: 0\nmodel name\t: Some CPU @ 2:5\nMemTotal:       1024 kB\nOdd: 3\n";
        assert_eq!(field(text, "model name"), Some("Some CPU @ 2:5"));
        assert_eq!(kib(text, "MemTotal"), Some(1 << 20));
        assert_eq!(kib(text, "Odd"), None);
    }

    #[test]
    fn the_tightest_limit_on_the_way_up_counts() {
        let root = std::env::temp_dir().join(format!("farpost-limits-{}", std::process::id()));
        std::fs::create_dir_all(root.join("a/b")).unwrap();
        for (folder, limit) in [("", "max"), ("a", "1000"), ("a/b", "2000")] {
            std::fs::write(root.join(folder).join("memory.max"), limit).unwrap();
        }
        assert_eq!(limit_along(&root, "/a/b", "memory.max"), Some(1000));
        assert_eq!(limit_along(&root, "/elsewhere", "memory.max"), None);
        std::fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn a_machine_is_busy_above_half_of_its_processors() {
        assert_eq!((load("5.40 3.10 1.00 2/345 6789\n"), load("")), (Some(5.4), None));
        let with = |load| Machine { n_processors: Some(4), load, ..Machine::look() }.busy();
        assert_eq!([with(None), with(Some(2.0)), with(Some(2.1))], [None, None, Some(2.1)]);
    }

    #[test]
    fn this_machine_has_at_least_one_core() {
        assert!(Machine::look().n_cores >= 1);
    }
}
