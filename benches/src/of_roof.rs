//! Times whose rates are told as shares of what the machine itself reaches, on one thread.

use std::time::Duration;

use criterion::measurement::{Measurement, ValueFormatter, WallTime};
use criterion::{Criterion, Throughput};
use farpost_kernels::cpu::isa::Isa;
use farpost_kernels::cpu::roof::Roof;

/// How long each rate of the machine is measured.
const PATIENCE: Duration = Duration::from_millis(500);

/// What elements stand for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Elements {
    /// Multiply-adds of bytes.
    Int8,
    /// Multiply-adds of floats.
    F32,
}

/// Wall-clock time; bytes a second are told beside reads from memory, elements beside multiply-adds on registers.
pub struct OfRoof {
    rates: Rates,
}

struct Rates {
    /// Bytes a second.
    reads: Option<f64>,
    /// Multiply-adds a second.
    multiply_adds: f64,
}

/// A Criterion of a few samples, which measures the machine first.
///
/// # Panics
/// Where the system starts no threads.
pub fn criterion(elements: Elements) -> Criterion<OfRoof> {
    let mut roof = Roof::new(Isa::detect(), 1, None).expect("the roof needs a thread");
    let multiply_adds = match elements {
        Elements::Int8 => roof.int8_macs(PATIENCE),
        Elements::F32 => roof.f32_macs(PATIENCE),
    };
    let rates = Rates {
        reads: roof.read_bytes(PATIENCE).expect("reading needs a thread").map(|rate| rate.per_second),
        multiply_adds: multiply_adds.expect("multiplying needs a thread").per_second,
    };
    println!(
        "roof of one thread: reads {:.1} GB/s, {elements:?} {:.0} G multiply-adds/s\n",
        rates.reads.unwrap_or(f64::NAN) / 1e9,
        rates.multiply_adds / 1e9
    );
    Criterion::default()
        .with_measurement(OfRoof { rates })
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(400))
}

impl Measurement for OfRoof {
    type Intermediate = <WallTime as Measurement>::Intermediate;
    type Value = Duration;

    fn start(&self) -> Self::Intermediate {
        WallTime.start()
    }
    fn end(&self, start: Self::Intermediate) -> Duration {
        WallTime.end(start)
    }
    fn add(&self, first: &Duration, second: &Duration) -> Duration {
        *first + *second
    }
    fn zero(&self) -> Duration {
        Duration::ZERO
    }
    fn to_f64(&self, time: &Duration) -> f64 {
        time.as_nanos() as f64
    }
    fn formatter(&self) -> &dyn ValueFormatter {
        &self.rates
    }
}

impl ValueFormatter for Rates {
    fn format_throughput(&self, throughput: &Throughput, nanoseconds: f64) -> String {
        let mut rates = [nanoseconds];
        let unit = self.scale_throughputs(nanoseconds, throughput, &mut rates);
        let roof = if is_bytes(throughput) { self.reads } else { Some(self.multiply_adds) };
        match roof {
            Some(roof) => format!("{:.1} {unit} ({:.0} %)", rates[0], 100.0 * rates[0] * 1e9 / roof),
            None => format!("{:.1} {unit}", rates[0]),
        }
    }

    fn scale_values(&self, typical: f64, values: &mut [f64]) -> &'static str {
        WallTime.formatter().scale_values(typical, values)
    }

    /// Always in thousands of millions: one unit to compare.
    fn scale_throughputs(&self, _: f64, throughput: &Throughput, values: &mut [f64]) -> &'static str {
        let count = match *throughput {
            Throughput::Bits(bits) => bits as f64 / 8.0,
            Throughput::Bytes(count) | Throughput::BytesDecimal(count) | Throughput::Elements(count) => count as f64,
            Throughput::ElementsAndBytes { elements, .. } => elements as f64,
        };
        values.iter_mut().for_each(|nanoseconds| *nanoseconds = count / *nanoseconds);
        if is_bytes(throughput) { "GB/s" } else { "G/s" }
    }

    fn scale_for_machines(&self, values: &mut [f64]) -> &'static str {
        WallTime.formatter().scale_for_machines(values)
    }
}

fn is_bytes(throughput: &Throughput) -> bool {
    matches!(throughput, Throughput::Bits(_) | Throughput::Bytes(_) | Throughput::BytesDecimal(_))
}
