//! Large pages for memory that is read at random, and pages that are there before they are wanted.

use rustix::mm::{Advice, madvise};

use crate::PAGE;

/// Asks for large pages for memory of which nothing was touched yet; where the system has none,
/// nothing changes.
pub fn prefer_large_pages<T>(memory: &[T]) {
    let start = (memory.as_ptr() as usize).next_multiple_of(PAGE);
    let end = memory.as_ptr_range().end as usize;
    let Some(len) = end.checked_sub(start).map(|len| len - len % PAGE) else { return };
    // SAFETY: whole pages inside the slice's own allocation; the advice changes no content.
    let _ = unsafe { madvise(start as *mut _, len, Advice::LinuxHugepage) };
}

/// Has the system give the pages of this memory now, on this thread, instead of when they are first
/// written to by one that must not wait; where it cannot (before Linux 5.14), nothing changes.
pub fn populate<T>(memory: &[T]) {
    let start = memory.as_ptr() as usize / PAGE * PAGE;
    let end = (memory.as_ptr_range().end as usize).next_multiple_of(PAGE);
    if memory.is_empty() {
        return;
    }
    // SAFETY: the pages that hold the slice, all of them mapped; giving a page changes no content,
    // and neighbours on the same page do not notice.
    let _ = unsafe { madvise(start as *mut _, end - start, Advice::LinuxPopulateWrite) };
}
