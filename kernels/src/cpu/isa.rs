//! Which instructions kernels may use: found once, forced by name in tests.
//!
//! An [`Isa`] value other than [`Isa::Scalar`] must only come from [`Isa::available`], [`Isa::detect`] or
//! [`Isa::choose`]: kernels rely on it as the proof that the processor has the instructions.

/// A set of instructions with kernels of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Plain code for any processor; the truth all others are tested against.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C.
    Avx2,
    /// x86-64 with AVX-512 F, BW, VL, DQ and VNNI.
    Avx512,
    /// The same with AMX tiles of bf16 and AVX-512 BF16, for products with many rows; all else is as with `Avx512`.
    Amx,
    /// 64-bit Arm.
    Neon,
    /// 64-bit Arm with the dot product instructions.
    NeonDot,
    /// The same with the matrix instructions for int8, for products with two and more rows.
    NeonI8mm,
}

/// A forced instruction set that is unknown or not there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("instruction set '{found}' is not available on this processor, expected one of: {expected}")]
pub struct IsaError {
    found: String,
    expected: String,
}

impl Isa {
    const ALL: [Self; 7] =
        [Self::Scalar, Self::Avx2, Self::Avx512, Self::Amx, Self::Neon, Self::NeonDot, Self::NeonI8mm];

    /// Name used by `FARPOST_CPU` and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Amx => "amx",
            Self::Neon => "neon",
            Self::NeonDot => "neon-dot",
            Self::NeonI8mm => "neon-i8mm",
        }
    }

    /// The set named `name` (any case), whether this processor has it or not.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|isa| isa.name().eq_ignore_ascii_case(name))
    }

    /// Every set there are kernels for, on whatever processor.
    pub fn all() -> impl Iterator<Item = Self> {
        Self::ALL.into_iter()
    }

    /// Sets this processor has, the slowest first; never empty.
    pub fn available() -> Vec<Self> {
        Self::ALL.into_iter().filter(|isa| isa.is_available()).collect()
    }

    /// The best set of this processor.
    pub fn detect() -> Self {
        Self::available().pop().unwrap_or(Self::Scalar)
    }

    /// The set asked for, or the best one where nothing is.
    pub fn choose(name: Option<&str>) -> Result<Self, IsaError> {
        let Some(name) = name.filter(|name| !name.is_empty()) else { return Ok(Self::detect()) };
        Self::from_name(name).filter(|isa| isa.is_available()).ok_or_else(|| IsaError {
            found: name.to_owned(),
            expected: Self::available().iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", "),
        })
    }

    /// True if this processor has the instructions.
    pub fn is_available(self) -> bool {
        match self {
            Self::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Amx => {
                Self::Avx512.is_available() && is_x86_feature_detected!("avx512bf16") && super::amx::is_available()
            }
            #[cfg(target_arch = "aarch64")]
            Self::Neon => std::arch::is_aarch64_feature_detected!("neon"),
            #[cfg(target_arch = "aarch64")]
            Self::NeonDot => Self::Neon.is_available() && std::arch::is_aarch64_feature_detected!("dotprod"),
            #[cfg(target_arch = "aarch64")]
            Self::NeonI8mm => Self::NeonDot.is_available() && std::arch::is_aarch64_feature_detected!("i8mm"),
            #[allow(unreachable_patterns)]
            _ => false,
        }
    }
}

impl std::fmt::Display for Isa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Whether the processor carries out operations on 512 bits in halves (Zen 4), so that stores of 64 bytes take twice as
/// long as sums of them.
#[cfg(target_arch = "x86_64")]
pub(crate) fn works_in_halves() -> bool {
    static FOUND: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *FOUND.get_or_init(|| {
        use std::arch::x86_64::__cpuid;
        let (vendor, signature) = (__cpuid(0), __cpuid(1).eax);
        let is_amd = [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).concat() == b"AuthenticAMD";
        let family = (signature >> 8 & 0xF) + (signature >> 20 & 0xFF);
        is_amd && family <= 0x19
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scalar_is_always_there_and_the_best_is_the_last() {
        let available = Isa::available();
        assert_eq!(available[0], Isa::Scalar);
        assert_eq!(available.last(), Some(&Isa::detect()));
        assert_eq!(Isa::choose(None), Ok(Isa::detect()));
        assert_eq!(Isa::choose(Some("SCALAR")), Ok(Isa::Scalar));
    }

    #[test]
    #[ignore = "for emulated processors: firmware-tests/aarch64 says in FARPOST_TEST_ISA which set each has"]
    fn the_best_set_is_the_one_the_processor_is_known_for() {
        let expected = std::env::var("FARPOST_TEST_ISA").expect("FARPOST_TEST_ISA is set");
        assert_eq!(Isa::detect().name(), expected, "of {:?}", Isa::available());
    }

    #[test]
    fn a_set_that_is_not_there_is_refused_with_the_list() {
        let error = Isa::choose(Some("mmx")).unwrap_err().to_string();
        assert!(error.starts_with("instruction set 'mmx' is not available on this processor, expected one of: scalar"));
        let foreign = if cfg!(target_arch = "x86_64") { "neon" } else { "avx2" };
        assert!(Isa::choose(Some(foreign)).is_err());
    }
}
