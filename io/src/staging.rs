//! A buffer with one writer and many readers.
//!
//! The [`Filler`] writes behind what it has published; a [`Filled`] sees only what was published.
//! The two never touch the same byte at the same time, so neither waits.

use std::io;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

/// Buffers begin at and are a multiple of this many bytes, as direct writes want them.
pub const PAGE: usize = 4096;

#[derive(Debug)]
struct Buffer {
    start: NonNull<u8>,
    capacity: usize,
    /// Bytes from the start that are written and will not change until the buffer is reclaimed.
    published: AtomicUsize,
}

// SAFETY: the memory is the buffer's own mapping, valid from any thread; who may write where is
// kept by Filler and Filled.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: the mapping was made in `Filler::new` with this length, and no handle is left.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.capacity) };
    }
}

/// The only writer of a buffer.
#[derive(Debug)]
pub struct Filler {
    buffer: Arc<Buffer>,
    /// Bytes written, published or not.
    at: usize,
    /// Some were written past the caches since the last publication.
    streamed: bool,
}

/// A reader of a buffer's published bytes.
#[derive(Clone, Debug)]
pub struct Filled(Arc<Buffer>);

impl Filler {
    /// A new, empty buffer of `capacity` bytes, rounded up to whole pages. Its memory is not touched
    /// before it is filled.
    pub fn new(capacity: usize) -> io::Result<Self> {
        let capacity = capacity.max(1).next_multiple_of(PAGE);
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice touches no memory
        // of others.
        let start = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                capacity,
                ProtFlags::READ | ProtFlags::WRITE,
                flags,
            )
        }?;
        let start: NonNull<u8> = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: the mapping just made; the advice changes no content.
        let _ = unsafe { madvise(start.as_ptr().cast(), capacity, Advice::LinuxHugepage) };
        Ok(Self {
            buffer: Arc::new(Buffer { start, capacity, published: AtomicUsize::new(0) }),
            at: 0,
            streamed: false,
        })
    }

    /// Has the system give the buffer's memory now, on this thread, instead of while it is filled.
    pub fn populate(&self) {
        // SAFETY: the mapping, whole; giving pages changes no content.
        let _ = unsafe {
            let start = self.buffer.start.as_ptr().cast();
            madvise(start, self.buffer.capacity, Advice::LinuxPopulateWrite)
        };
    }

    /// A reader of this buffer.
    pub fn share(&self) -> Filled {
        Filled(Arc::clone(&self.buffer))
    }

    pub fn capacity(&self) -> usize {
        self.buffer.capacity
    }

    /// Bytes written so far.
    #[inline]
    pub fn len(&self) -> usize {
        self.at
    }

    pub fn is_empty(&self) -> bool {
        self.at == 0
    }

    /// Bytes that still fit.
    #[inline]
    pub fn room(&self) -> usize {
        self.buffer.capacity - self.at
    }

    /// Appends as much of `bytes` as fits and returns the rest.
    #[inline]
    pub fn push<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let n = bytes.len().min(self.room());
        let (now, rest) = bytes.split_at(n);
        // SAFETY: `at + n` is within the mapping; the bytes from `at` on are unpublished, so no
        // reader looks at them, and we are the only writer.
        unsafe {
            let to = self.buffer.start.as_ptr().add(self.at);
            if n < STREAM {
                std::ptr::copy_nonoverlapping(now.as_ptr(), to, n);
            } else {
                stream(now.as_ptr(), to, n);
                self.streamed = true;
            }
        }
        self.at += n;
        rest
    }

    /// Lets readers see everything written so far.
    #[inline]
    pub fn publish(&mut self) {
        if std::mem::take(&mut self.streamed) {
            fence();
        }
        self.buffer.published.store(self.at, Ordering::Release);
    }
}

/// From this length on bytes go past the caches: they are read again by another thread, much later,
/// and would only be fetched from memory to be overwritten, and push out what is needed.
const STREAM: usize = 256;

/// Copies `n` bytes, whole cache lines of the destination past the caches.
///
/// # Safety
/// As [`std::ptr::copy_nonoverlapping`]. Another thread may look at the destination only after
/// [`fence`].
#[cfg(target_arch = "x86_64")]
#[inline]
unsafe fn stream(from: *const u8, to: *mut u8, n: usize) {
    use std::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_stream_si128};
    const LINE: usize = 64;
    let head = to.align_offset(LINE).min(n);
    // SAFETY: all offsets stay below `n`; `to + at` is on a multiple of 64 in the loop.
    unsafe {
        std::ptr::copy_nonoverlapping(from, to, head);
        let mut at = head;
        while at + LINE <= n {
            for part in (at..at + LINE).step_by(16) {
                let bytes = _mm_loadu_si128(from.add(part).cast::<__m128i>());
                _mm_stream_si128(to.add(part).cast::<__m128i>(), bytes);
            }
            at += LINE;
        }
        std::ptr::copy_nonoverlapping(from.add(at), to.add(at), n - at);
    }
}

/// Orders streamed bytes before what follows.
#[cfg(target_arch = "x86_64")]
#[inline]
fn fence() {
    // SAFETY: every processor of this architecture has the instruction.
    unsafe { std::arch::x86_64::_mm_sfence() };
}

/// # Safety
/// As [`std::ptr::copy_nonoverlapping`].
#[cfg(not(target_arch = "x86_64"))]
#[inline]
unsafe fn stream(from: *const u8, to: *mut u8, n: usize) {
    // SAFETY: the caller's.
    unsafe { std::ptr::copy_nonoverlapping(from, to, n) };
}

#[cfg(not(target_arch = "x86_64"))]
fn fence() {}

impl Filled {
    /// The published bytes.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        let len = self.0.published.load(Ordering::Acquire);
        // SAFETY: the first `len` bytes were written before they were published, and nobody writes
        // to them while a handle like this one exists.
        unsafe { std::slice::from_raw_parts(self.0.start.as_ptr(), len) }
    }

    /// Whether nothing more can come.
    pub fn is_full(&self) -> bool {
        self.0.published.load(Ordering::Acquire) == self.0.capacity
    }

    pub fn capacity(&self) -> usize {
        self.0.capacity
    }

    /// The buffer for new content, if nobody else has a handle on it.
    pub fn reclaim(self) -> Result<Filler, Self> {
        let mut buffer = self.0;
        match Arc::get_mut(&mut buffer) {
            Some(sole) => {
                *sole.published.get_mut() = 0;
                Ok(Filler { buffer, at: 0, streamed: false })
            }
            None => Err(Self(buffer)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_populated_buffer_has_its_memory_and_is_empty() {
        let resident = || -> usize {
            let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
            statm.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * PAGE
        };
        let filler = Filler::new(256 << 20).unwrap();
        let before = resident();
        filler.populate();
        // Other tests run beside this one and give memory back.
        assert!(resident() > before + (200 << 20), "{before}, then {}", resident());
        assert!(filler.is_empty() && filler.share().bytes().is_empty());
    }

    #[test]
    fn readers_see_what_is_published_and_only_that() {
        let mut filler = Filler::new(5000).unwrap();
        assert_eq!(filler.capacity(), 8192);
        let filled = filler.share();
        assert!(filler.push(b"abc").is_empty());
        assert!(filled.bytes().is_empty());
        filler.publish();
        assert_eq!(filled.bytes(), b"abc");
        assert_eq!(filled.bytes().as_ptr() as usize % PAGE, 0);
        assert_eq!(filler.push(&[7; 9000]).len(), 9000 - (8192 - 3));
        filler.publish();
        assert!(filled.is_full());
        let filled = filled.reclaim().unwrap_err();
        drop(filler);
        let filler = filled.reclaim().unwrap();
        assert!(filler.is_empty() && filler.share().bytes().is_empty());
    }

    #[test]
    fn long_pieces_arrive_whole_at_any_alignment() {
        let bytes: Vec<u8> = (0..2000u32).map(|n| ((n * 7) >> 2) as u8).collect();
        for (before, len) in (0..70).flat_map(|at| [(at, 256), (at, 319), (at, 1500)]) {
            let mut filler = Filler::new(4096).unwrap();
            filler.push(&bytes[..before]);
            filler.push(&bytes[3..3 + len]);
            filler.publish();
            let filled = filler.share();
            let (first, second) = filled.bytes().split_at(before);
            assert!(first == &bytes[..before] && second == &bytes[3..3 + len], "{before} {len}");
        }
    }

    #[test]
    fn a_reader_beside_the_writer_sees_whole_values() {
        let mut filler = Filler::new(1 << 20).unwrap();
        let filled = filler.share();
        let reader = std::thread::spawn(move || {
            let mut seen = 0;
            while !filled.is_full() {
                let bytes = filled.bytes();
                assert!(bytes.len() >= seen);
                seen = bytes.len();
                if let Some(last) = bytes.as_chunks::<8>().0.last() {
                    assert_eq!(u64::from_le_bytes(*last), (seen / 8 - 1) as u64);
                }
            }
        });
        for n in 0..(1u64 << 17) {
            filler.push(&n.to_le_bytes());
            filler.publish();
        }
        reader.join().unwrap();
    }
}
