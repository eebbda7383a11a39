//! Zeroed memory on cache-line boundaries, written in disjoint parts by several threads.
//!
//! The system hands zero pages out on first touch, so a large cache costs memory only as it fills. Memory that is not to
//! be had is an error that names the bytes, never the end of the program.

use std::alloc::{Layout, alloc_zeroed};
use std::cell::UnsafeCell;

use crate::backend::DeviceError;

/// Bytes of a cache line.
const LINE: usize = 64;

/// Numbers for which any bits are a value: the element types of [`Block`] and [`zeros`].
pub(crate) trait Plain: Copy {}
impl Plain for f32 {}
impl Plain for i8 {}
impl Plain for i32 {}
impl Plain for u8 {}
impl Plain for u16 {}
impl Plain for u32 {}

/// The error that there is no memory for `len` elements.
fn none_left<T>(len: usize) -> DeviceError {
    let needed_bytes = (len as u64).saturating_mul(size_of::<T>() as u64);
    DeviceError::OutOfMemory { what: "a buffer", needed_bytes, free_bytes: None }
}

/// `len` zeros, or [`DeviceError::OutOfMemory`].
pub(crate) fn zeros<T: Plain>(len: usize) -> Result<Vec<T>, DeviceError> {
    let layout = Layout::array::<T>(len).map_err(|_| none_left::<T>(len))?;
    if layout.size() == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: the size is not zero.
    let start = unsafe { alloc_zeroed(layout) }.cast::<T>();
    if start.is_null() {
        return Err(none_left::<T>(len));
    }
    // SAFETY: from this allocator with the layout of `len` elements, for which zero bytes are a value.
    Ok(unsafe { Vec::from_raw_parts(start, len, len) })
}

/// An empty vector with room for `len` elements, or [`DeviceError::OutOfMemory`].
pub(crate) fn room<T>(len: usize) -> Result<Vec<T>, DeviceError> {
    let mut vec = Vec::new();
    vec.try_reserve_exact(len).map_err(|_| none_left::<T>(len))?;
    Ok(vec)
}

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
    /// `len` zeros, rounded up to whole cache lines, or [`DeviceError::OutOfMemory`].
    pub(crate) fn try_new(len: usize) -> Result<Self, DeviceError> {
        let n_bytes = Self::bytes_for(len) as usize;
        let zeros = zeros::<u8>(if n_bytes == 0 { 0 } else { n_bytes.saturating_add(LINE - 1) })?.into_boxed_slice();
        // SAFETY: `UnsafeCell<u8>` has the layout of `u8`.
        let bytes = unsafe { Box::from_raw(Box::into_raw(zeros) as *mut [UnsafeCell<u8>]) };
        let start = bytes.as_ptr() as usize;
        let offset = if n_bytes == 0 { 0 } else { start.next_multiple_of(LINE) - start };
        Ok(Self { bytes, offset, len: n_bytes / size_of::<T>(), _element: std::marker::PhantomData })
    }

    /// Bytes that `len` elements take; of more than there can be, more than there are anywhere.
    pub(crate) fn bytes_for(len: usize) -> u64 {
        let n_bytes = len.checked_mul(size_of::<T>()).and_then(|bytes| bytes.checked_next_multiple_of(LINE));
        n_bytes.unwrap_or(usize::MAX) as u64
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
    use std::hint::black_box;

    use super::*;

    #[test]
    fn blocks_start_on_a_cache_line_and_are_zero() {
        for len in [0, 1, 15, 16, 17, 100_000] {
            let block: Block<f32> = Block::try_new(len).unwrap();
            assert!(block.len >= len && block.bytes() == Block::<f32>::bytes_for(len));
            if len > 0 {
                assert!((block.at(0) as usize).is_multiple_of(64));
                // SAFETY: inside the block, nobody writes.
                assert!((0..len).all(|index| unsafe { *block.at(index) } == 0.0));
            }
        }
    }

    #[test]
    fn memory_that_is_not_to_be_had_is_an_error_with_its_bytes() {
        // More than any machine can address; the second more than a size can be.
        for len in [1_usize << 60, usize::MAX / 4] {
            // What nobody looks at the compiler need not ask for.
            let (block, numbers, bytes) = (Block::<u8>::try_new(len), zeros::<u32>(len), room::<u8>(len));
            let errors = [black_box(block).err(), black_box(numbers).err(), black_box(bytes).err()];
            let needed = errors.map(|error| match error {
                Some(DeviceError::OutOfMemory { needed_bytes, free_bytes: None, .. }) => needed_bytes,
                other => panic!("{other:?}"),
            });
            assert!(needed[0] >= len as u64 && needed[1] == 4 * len as u64 && needed[2] == len as u64);
        }
        // What is too much to be counted is too much to be had.
        for len in [usize::MAX / 4 + 1, usize::MAX / 2, usize::MAX] {
            let needed = match black_box(Block::<f32>::try_new(len)).err() {
                Some(DeviceError::OutOfMemory { needed_bytes, .. }) => needed_bytes,
                other => panic!("{other:?}"),
            };
            assert_eq!((needed, Block::<f32>::bytes_for(len)), (u64::MAX, u64::MAX));
        }
        assert!(zeros::<f32>(0).unwrap().is_empty() && zeros::<u32>(9).unwrap() == [0; 9]);
    }
}
