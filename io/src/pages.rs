//! Large pages for memory that is read at random.

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
