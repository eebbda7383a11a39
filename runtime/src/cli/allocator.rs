//! The C library's allocator, held to few arenas.
//!
//! glibc gives threads arenas of their own, up to eight for each core, and what is freed in one is used again by its
//! threads alone. A server whose requests are read and answered by several threads then grows for thousands of requests
//! until every arena has seen the worst of them. With two it has after the first few hundred; what is fast here
//! allocates nothing, so nobody waits for an arena.

/// As `MALLOC_ARENA_MAX` would do, which stays in force where it is set. To be called before threads are started.
pub fn hold_to_few_arenas() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    if std::env::var_os("MALLOC_ARENA_MAX").is_none() {
        use std::ffi::c_int;

        /// `M_ARENA_MAX` of malloc.h.
        const ARENA_MAX: c_int = -8;
        unsafe extern "C" {
            fn mallopt(parameter: c_int, value: c_int) -> c_int;
        }
        // SAFETY: glibc has this function with this signature (malloc.h); it takes two numbers and sets a bound. What it
        // returns says whether it knows the parameter; where it doesn't, memory is handed out as before.
        unsafe { mallopt(ARENA_MAX, 2) };
    }
}
