//! Whether AMX may be used: the processor has it, the system saves its registers, and this process asked for them.

use std::arch::x86_64::{__cpuid_count, __get_cpuid_max, _xgetbv};
use std::sync::OnceLock;

/// Bits of leaf 7, register EDX: products of bf16, tiles.
const AMX_BF16: u32 = 1 << 22;
const AMX_TILE: u32 = 1 << 24;
/// Bits of XCR0: the shapes of tiles and their data.
const TILE_STATE: u64 = 1 << 17 | 1 << 18;

/// Asked once; other threads and later ones have what the process was given.
pub(super) fn is_available() -> bool {
    static ANSWER: OnceLock<bool> = OnceLock::new();
    *ANSWER.get_or_init(|| has_instructions() && is_permitted())
}

fn has_instructions() -> bool {
    if __get_cpuid_max(0).0 < 7 || !is_x86_feature_detected!("xsave") {
        return false;
    }
    let features = __cpuid_count(7, 0).edx;
    // SAFETY: the processor has XSAVE, and the system uses it or the feature would not be detected.
    features & AMX_BF16 != 0 && features & AMX_TILE != 0 && unsafe { _xgetbv(0) } & TILE_STATE == TILE_STATE
}

/// Linux gives a process tile registers (8 KiB of state a thread that uses them) when it asks.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: i64 = 0x1023;
    const XFEATURE_XTILEDATA: i64 = 18;
    let result: i64;
    // SAFETY: a system call that touches no memory of ours.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => result,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XFEATURE_XTILEDATA,
            out("rcx") _,
            out("r11") _,
            options(nostack),
        );
    }
    result == 0
}

#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}
