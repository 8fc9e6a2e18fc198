//! Hints to the machine: what will be read soon, and memory that wants large pages.

/// Fetches the start of `what` into the nearest cache.
#[inline(always)]
pub fn prefetch<T: ?Sized>(what: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch reads nothing and never faults, whatever the address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(what).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = what;
}

/// Fetches what is at an address, if anything is.
#[inline(always)]
pub(crate) fn prefetch_at(address: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: as above.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(address.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

/// Asks for large pages for a vector's whole capacity, before it is filled; where the system has
/// none, nothing changes.
pub fn prefer_large_pages<T>(vector: &Vec<T>) {
    const PAGE: usize = 4096;
    let start = (vector.as_ptr() as usize).next_multiple_of(PAGE);
    let end = vector.as_ptr() as usize + vector.capacity() * size_of::<T>();
    let Some(len) = end.checked_sub(start) else { return };
    // SAFETY: whole pages inside the vector's own allocation; the advice changes no content.
    unsafe { libc::madvise(start as *mut libc::c_void, len, libc::MADV_HUGEPAGE) };
}
