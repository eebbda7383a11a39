//! Zeroed memory on cache-line boundaries, written in disjoint parts by several threads.

use std::cell::UnsafeCell;

/// One cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Numbers for which any bits are a value: the element types of [`Block`].
pub(crate) trait Plain: Copy {}
impl Plain for f32 {}
impl Plain for i8 {}
impl Plain for u8 {}

/// A fixed number of elements, zero at first. Access is by pointer; who may touch what is the user's to keep.
pub(crate) struct Block<T: Plain> {
    lines: Box<[UnsafeCell<Line>]>,
    _element: std::marker::PhantomData<T>,
}

// SAFETY: plain numbers; every access goes through `at`, whose users promise that parts are disjoint.
unsafe impl<T: Plain> Sync for Block<T> {}
// SAFETY: plain numbers, no owner thread.
unsafe impl<T: Plain> Send for Block<T> {}

impl<T: Plain> Block<T> {
    /// `len` zeros, rounded up to whole cache lines.
    pub(crate) fn new(len: usize) -> Self {
        let n_lines = (len * size_of::<T>()).div_ceil(64);
        let lines = (0..n_lines).map(|_| UnsafeCell::new(Line([0; 64]))).collect();
        Self { lines, _element: std::marker::PhantomData }
    }

    /// Elements there are.
    pub(crate) fn len(&self) -> usize {
        self.lines.len() * 64 / size_of::<T>()
    }

    /// Bytes taken.
    pub(crate) fn bytes(&self) -> u64 {
        self.lines.len() as u64 * 64
    }

    /// Address of element `index`, which must not lie past the end.
    #[inline(always)]
    pub(crate) fn at(&self, index: usize) -> *mut T {
        assert!(index <= self.len(), "an element lies inside its block");
        // `UnsafeCell<Line>` has the layout of `Line`; the cell allows writing through the shared block.
        UnsafeCell::raw_get(self.lines.as_ptr()).cast::<T>().wrapping_add(index)
    }
}
