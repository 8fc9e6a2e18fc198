//! Packet buffers that free themselves.
//!
//! An [`Mbuf`] holds one reference to a packet and hands it on by move. A driver may hold another:
//! what writes to a packet checks that it has the only one.

use std::ptr::NonNull;
use std::sync::atomic::{AtomicU16, Ordering};

use arrayvec::ArrayVec;
use dpdk_sys as sys;

use crate::eal::{META_OFFSET, TIMESTAMP_FLAG, TIMESTAMP_OFFSET};

/// Packets that travel together.
pub const BURST: usize = 32;

/// A burst of packets.
pub type Burst = ArrayVec<Mbuf, BURST>;

/// What we note on each packet at reception, beside its timestamp.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Meta {
    /// The source's clock at this packet, nanoseconds: the largest timestamp so far.
    pub clock_ns: u64,
    /// Length on the wire, bytes; more than the buffer holds when the capture was cut.
    pub wire_len: u32,
    /// Link type of the frame (the LINKTYPE_ numbers of capture files; 1 is Ethernet).
    pub link: u16,
    /// [`Meta::LENGTH_UNKNOWN`] and friends.
    pub flags: u16,
}

impl Meta {
    /// The driver cuts frames without saying how long they were.
    pub const LENGTH_UNKNOWN: u16 = 1;
}

/// One reference to a packet; dropping it gives the buffer back when it was the last.
#[derive(Debug)]
#[repr(transparent)]
pub struct Mbuf(NonNull<sys::rte_mbuf>);

// SAFETY: a buffer belongs to no thread; its reference count is atomic (RTE_MBUF_REFCNT_ATOMIC in
// Debian's build) and everything else is written only while the count is one.
unsafe impl Send for Mbuf {}

impl Mbuf {
    /// Takes over one reference.
    ///
    /// # Safety
    /// `m` must be a valid packet of which the caller holds a reference and gives it away.
    pub(crate) unsafe fn from_raw(m: NonNull<sys::rte_mbuf>) -> Self {
        Self(m)
    }

    fn head(&self) -> &sys::rte_mbuf {
        // SAFETY: we hold a reference, so the buffer is valid, and shared ones are read only.
        unsafe { self.0.as_ref() }
    }

    /// Bytes of the packet in all segments.
    pub fn len(&self) -> u32 {
        self.head().pkt_len
    }

    /// Whether the packet holds no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The first segment's bytes: the whole packet unless it is chained.
    #[inline]
    pub fn data(&self) -> &[u8] {
        segment(self.head())
    }

    /// Fetches what [`Mbuf::data`], [`Mbuf::meta`] and freeing read of the buffer's own header.
    #[inline]
    pub fn prefetch(&self) {
        const LINE: usize = 64;
        let head = self.0.as_ptr().cast::<u8>();
        crate::memory::prefetch_at(head);
        crate::memory::prefetch_at(head.wrapping_add(LINE));
    }

    /// The bytes of all segments, in order.
    pub fn segments(&self) -> impl Iterator<Item = &[u8]> {
        let mut next = Some(self.head());
        std::iter::from_fn(move || {
            let now = next?;
            // SAFETY: `next` is null or a valid segment, kept alive by our reference to the chain.
            next = unsafe { now.next.as_ref() };
            Some(segment(now))
        })
    }

    /// Whether this is the only reference.
    #[inline]
    pub fn is_unique(&self) -> bool {
        // SAFETY: we hold a reference, so the field is valid and aligned; others only change it
        // atomically.
        let count = unsafe { AtomicU16::from_ptr(&raw mut (*self.0.as_ptr()).refcnt) };
        count.load(Ordering::Acquire) == 1
    }

    /// The timestamp that the driver left, in its own unit, if it left one.
    #[inline]
    pub fn driver_timestamp(&self) -> Option<u64> {
        let flagged = self.head().ol_flags & TIMESTAMP_FLAG.load(Ordering::Relaxed) != 0;
        flagged.then(|| self.timestamp_ns())
    }

    /// The value of the timestamp field: nanoseconds since 1970 once [`Mbuf::stamp`] was called.
    #[inline]
    pub fn timestamp_ns(&self) -> u64 {
        // SAFETY: the field was registered at start: aligned, inside the buffer's header, and
        // written only by a sole owner.
        unsafe { self.field::<u64>(TIMESTAMP_OFFSET.load(Ordering::Relaxed)).read() }
    }

    /// What [`Mbuf::stamp`] noted.
    #[inline]
    pub fn meta(&self) -> Meta {
        // SAFETY: as for the timestamp.
        unsafe { self.field::<Meta>(META_OFFSET.load(Ordering::Relaxed)).read() }
    }

    /// Notes timestamp and the rest on the packet.
    ///
    /// # Panics
    /// If the packet is shared.
    #[inline]
    pub fn stamp(&mut self, timestamp_ns: u64, meta: Meta) {
        assert!(self.is_unique(), "a shared packet is read only");
        // SAFETY: as for the reads, and no one else has a reference.
        unsafe {
            self.field::<u64>(TIMESTAMP_OFFSET.load(Ordering::Relaxed)).write(timestamp_ns);
            self.field::<Meta>(META_OFFSET.load(Ordering::Relaxed)).write(meta);
        }
    }

    #[inline]
    fn field<T>(&self, offset: i32) -> *mut T {
        self.0.as_ptr().cast::<u8>().wrapping_offset(offset as isize).cast()
    }

    /// Copies `data` into this fresh, single buffer; the caller made sure that it fits.
    pub(crate) fn fill(&mut self, data: &[u8]) {
        // SAFETY: only called on buffers just allocated, so we are the only owner.
        let m = unsafe { self.0.as_mut() };
        let room = usize::from(m.buf_len.saturating_sub(m.data_off));
        let n = data.len().min(room);
        // SAFETY: the buffer has `room` bytes behind data_off; the ranges cannot overlap.
        unsafe {
            let to = m.buf_addr.cast::<u8>().add(usize::from(m.data_off));
            std::ptr::copy_nonoverlapping(data.as_ptr(), to, n);
        }
        m.data_len = n as u16;
        m.pkt_len = n as u32;
    }

    /// Puts `tail` behind this packet; gives it back if the packet has all the segments it can.
    pub(crate) fn chain(&mut self, tail: Self) -> Result<(), Self> {
        // SAFETY: only called while building a packet, so we own every segment alone.
        let head = unsafe { self.0.as_mut() };
        let Some(segments) = head.nb_segs.checked_add(1) else { return Err(tail) };
        let mut last = self.0.as_ptr();
        // SAFETY: walks the valid segments of our own chain.
        unsafe {
            while !(*last).next.is_null() {
                last = (*last).next;
            }
            let bytes = (*tail.0.as_ptr()).pkt_len;
            (*last).next = tail.into_raw().as_ptr();
            head.nb_segs = segments;
            head.pkt_len += bytes;
        }
        Ok(())
    }

    fn into_raw(self) -> NonNull<sys::rte_mbuf> {
        std::mem::ManuallyDrop::new(self).0
    }
}

impl Drop for Mbuf {
    fn drop(&mut self) {
        // SAFETY: gives back the one reference that we hold.
        unsafe { sys::shim_pktmbuf_free(self.0.as_ptr()) }
    }
}

fn segment(m: &sys::rte_mbuf) -> &[u8] {
    // SAFETY: data_off and data_len describe initialised bytes inside the segment's buffer, which
    // lives as long as the reference that `m` was reached by.
    unsafe {
        let data = m.buf_addr.cast::<u8>().add(usize::from(m.data_off));
        std::slice::from_raw_parts(data, usize::from(m.data_len))
    }
}

/// Gives back a whole burst at once, which costs less than one by one.
pub fn free_burst(burst: &mut Burst) {
    let n = burst.len() as u32;
    // SAFETY: Mbuf is a transparent non-null pointer, so the array is one of rte_mbuf pointers;
    // each reference is given away, and the length is set to zero so that none is dropped again.
    unsafe {
        sys::rte_pktmbuf_free_bulk(burst.as_mut_ptr().cast(), n);
        burst.set_len(0);
    }
}

/// Appends up to the burst's free room from a function that fills an array of pointers.
///
/// # Safety
/// `rx(to, room)` must write that many valid packets, each with a reference given to us, and
/// return how many.
pub(crate) unsafe fn receive_into(
    burst: &mut Burst,
    rx: impl FnOnce(*mut *mut sys::rte_mbuf, u16) -> u16,
) -> usize {
    let (at, room) = (burst.len(), burst.remaining_capacity());
    // SAFETY: the pointer is to the free room behind the existing elements.
    let n = usize::from(rx(unsafe { burst.as_mut_ptr().add(at) }.cast(), room as u16)).min(room);
    // SAFETY: by the contract above the next n elements are now valid.
    unsafe { burst.set_len(at + n) };
    n
}
