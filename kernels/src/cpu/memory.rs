//! Zeroed memory on cache-line boundaries, written in disjoint parts by several threads.
//!
//! The system hands zero pages out on first touch, so a large cache costs memory only as it fills.

use std::cell::UnsafeCell;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Numbers for which any bits are a value: the element types of [`Block`].
pub(crate) trait Plain: Copy {}
impl Plain for f32 {}
impl Plain for i8 {}
impl Plain for u8 {}
impl Plain for u16 {}

/// A fixed number of elements, zero at first. Access is by pointer; who may touch what is the user's to keep.
pub(crate) struct Block<T: Plain> {
    /// Bytes with room to start on a cache line. Plain bytes, because the allocator zeroes only those lazily.
    bytes: Box<[UnsafeCell<u8>]>,
    /// First byte in use.
    offset: usize,
    len: usize,
    _element: std::marker::PhantomData<T>,
}

// SAFETY: plain numbers; every access goes through `at`, whose users promise that parts are disjoint.
unsafe impl<T: Plain> Sync for Block<T> {}
// SAFETY: plain numbers, no owner thread.
unsafe impl<T: Plain> Send for Block<T> {}

impl<T: Plain> Block<T> {
    /// `len` zeros, rounded up to whole cache lines.
    pub(crate) fn new(len: usize) -> Self {
        let n_bytes = Self::bytes_for(len) as usize;
        let zeros = vec![0_u8; n_bytes + if n_bytes == 0 { 0 } else { LINE - 1 }].into_boxed_slice();
        // SAFETY: `UnsafeCell<u8>` has the layout of `u8`.
        let bytes = unsafe { Box::from_raw(Box::into_raw(zeros) as *mut [UnsafeCell<u8>]) };
        let start = bytes.as_ptr() as usize;
        let offset = if n_bytes == 0 { 0 } else { start.next_multiple_of(LINE) - start };
        Self { bytes, offset, len: n_bytes / size_of::<T>(), _element: std::marker::PhantomData }
    }

    /// Bytes that `len` elements take.
    pub(crate) fn bytes_for(len: usize) -> u64 {
        (len * size_of::<T>()).next_multiple_of(LINE) as u64
    }

    /// Bytes taken.
    pub(crate) fn bytes(&self) -> u64 {
        (self.len * size_of::<T>()) as u64
    }

    /// Address of element `index`, which must not lie past the end.
    #[inline(always)]
    pub(crate) fn at(&self, index: usize) -> *mut T {
        assert!(index <= self.len, "an element lies inside its block");
        // The cell allows writing through the shared block.
        UnsafeCell::raw_get(self.bytes.as_ptr()).wrapping_add(self.offset).cast::<T>().wrapping_add(index)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_start_on_a_cache_line_and_are_zero() {
        for len in [0, 1, 15, 16, 17, 100_000] {
            let block: Block<f32> = Block::new(len);
            assert!(block.len >= len && block.bytes() == Block::<f32>::bytes_for(len));
            if len > 0 {
                assert!((block.at(0) as usize).is_multiple_of(64));
                // SAFETY: inside the block, nobody writes.
                assert!((0..len).all(|index| unsafe { *block.at(index) } == 0.0));
            }
        }
    }
}
