//! Energy that the processor packages take, from the counters that Linux exposes (powercap, RAPL).
//!
//! The counters are of whole packages: what other programs use counts too. They are readable by root alone on many
//! systems; where one can't be read there is no figure.

use std::path::{Path, PathBuf};

const FOLDER: &str = "/sys/class/powercap";

/// A counter of one package, in microjoules.
#[derive(Debug)]
struct Counter {
    file: PathBuf,
    /// It starts again from 0 after this.
    range: u64,
}

/// The counters of all packages.
#[derive(Debug)]
pub struct Counters(Vec<Counter>);

/// What they showed at one moment.
#[derive(Debug)]
pub struct Reading(Vec<u64>);

impl Counters {
    /// Those of this machine; `None` where there are none to be read.
    pub fn find() -> Option<Self> {
        Self::find_in(Path::new(FOLDER))
    }

    fn find_in(folder: &Path) -> Option<Self> {
        let zones = std::fs::read_dir(folder).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
        let packages = zones.filter(|zone| {
            std::fs::read_to_string(zone.join("name")).is_ok_and(|name| name.trim_end().starts_with("package-"))
        });
        let counters: Option<Vec<Counter>> = packages
            .map(|zone| {
                let counter =
                    Counter { file: zone.join("energy_uj"), range: number(&zone.join("max_energy_range_uj"))? };
                number(&counter.file).map(|_| counter)
            })
            .collect();
        counters.filter(|counters| !counters.is_empty()).map(Self)
    }

    /// What they show now.
    pub fn read(&self) -> Option<Reading> {
        self.0.iter().map(|counter| number(&counter.file)).collect::<Option<_>>().map(Reading)
    }

    /// Joules from `start` until now. A counter that came round more than once cannot be told from one that did so once:
    /// that takes minutes.
    pub fn joules_since(&self, start: &Reading) -> Option<f64> {
        let now = self.read()?;
        let parts = self.0.iter().zip(&start.0).zip(&now.0);
        let sum: u64 = parts
            .map(
                |((counter, &start), &now)| {
                    if now >= start { now - start } else { counter.range.saturating_sub(start).saturating_add(now) }
                },
            )
            .fold(0, u64::saturating_add);
        Some(sum as f64 / 1e6)
    }
}

fn number(file: &Path) -> Option<u64> {
    std::fs::read_to_string(file).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn zone(folder: &Path, zone: &str, name: &str, energy: u64) {
        let zone = folder.join(zone);
        std::fs::create_dir_all(&zone).unwrap();
        for (file, text) in [("name", format!("{name}\n")), ("energy_uj", format!("{energy}\n"))] {
            std::fs::write(zone.join(file), text).unwrap();
        }
        std::fs::write(zone.join("max_energy_range_uj"), "10000000\n").unwrap();
    }

    #[test]
    fn packages_are_summed_parts_of_them_are_not_and_counters_come_round() {
        let folder = std::env::temp_dir().join(format!("farpost-energy-{}", std::process::id()));
        assert!(Counters::find_in(&folder).is_none());
        zone(&folder, "intel-rapl:0", "package-0", 1_000_000);
        zone(&folder, "intel-rapl:0:0", "core", 0);
        zone(&folder, "intel-rapl:1", "package-1", 9_500_000);
        let counters = Counters::find_in(&folder).unwrap();
        let start = counters.read().unwrap();
        zone(&folder, "intel-rapl:0", "package-0", 3_000_000);
        zone(&folder, "intel-rapl:0:0", "core", 9_000_000);
        zone(&folder, "intel-rapl:1", "package-1", 250_000);
        assert_eq!(counters.joules_since(&start), Some(2.75));
        std::fs::remove_dir_all(&folder).unwrap();
        assert!(counters.read().is_none());
    }
}
