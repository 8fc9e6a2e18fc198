//! Packet-buffer pools.
//!
//! A pool is never freed: buffers may sit in rings and drivers until the last moment, and the
//! process gives its memory back at exit anyway. That makes a buffer's pointer to its pool valid
//! for ever.

use std::ffi::CString;
use std::ptr::NonNull;

use dpdk_sys as sys;

use crate::mbuf::{Burst, Mbuf, receive_into};
use crate::{Eal, Error, Result, strerror};

/// A pool of packet buffers, shared by all threads.
#[derive(Clone, Copy, Debug)]
pub struct Mempool {
    pool: NonNull<sys::rte_mempool>,
    room: u16,
}

// SAFETY: rte_mempool is made for concurrent use from any thread; the pool is never freed.
unsafe impl Send for Mempool {}
// SAFETY: as above.
unsafe impl Sync for Mempool {}

/// Buffers that each lcore keeps to itself.
pub const CACHE: u32 = 256;

impl Mempool {
    /// Makes a pool of `count` buffers with `room` bytes for packet data each.
    pub fn new(_eal: &Eal, name: &str, count: u32, room: u16) -> Result<Self> {
        let fail = |why: String| Error::Pool { count, room, why };
        let c_name = CString::new(name).map_err(|_| fail("bad name".into()))?;
        let headroom = sys::RTE_PKTMBUF_HEADROOM as u16;
        let buffer = room.checked_add(headroom).ok_or_else(|| fail("frame too large".into()))?;
        // SAFETY: a valid name; -1 is SOCKET_ID_ANY; the returned pool is checked for null.
        let pool =
            unsafe { sys::rte_pktmbuf_pool_create(c_name.as_ptr(), count, CACHE, 0, buffer, -1) };
        NonNull::new(pool).map(|pool| Self { pool, room }).ok_or_else(|| {
            // SAFETY: reads a thread-local integer.
            fail(strerror(unsafe { sys::shim_errno() }))
        })
    }

    pub(crate) fn as_ptr(&self) -> *mut sys::rte_mempool {
        self.pool.as_ptr()
    }

    /// A buffer, or a chain of them, holding a copy of `data`; `None` if the pool is empty. `stock`
    /// keeps fresh buffers between calls, since they cost less by the burst.
    #[inline]
    pub fn copy_in(&self, data: &[u8], stock: &mut Burst) -> Option<Mbuf> {
        let (first, rest) = data.split_at(data.len().min(usize::from(self.room)));
        if stock.is_empty() {
            self.refill(stock);
        }
        let mut head = stock.pop().or_else(|| self.alloc())?;
        head.fill(first);
        if rest.is_empty() {
            return Some(head);
        }
        for part in rest.chunks(usize::from(self.room).max(1)) {
            let mut segment = self.alloc()?;
            segment.fill(part);
            head.chain(segment).ok()?;
        }
        Some(head)
    }

    /// Fills an empty stock, if the pool has as many buffers.
    fn refill(&self, stock: &mut Burst) {
        let pool = self.pool.as_ptr();
        // SAFETY: the pool is valid; the call gives all that are asked for, each with reference count
        // 1, or none at all.
        unsafe {
            receive_into(stock, |to, room| {
                let rc = sys::shim_pktmbuf_alloc_bulk(pool, to, u32::from(room));
                if rc == 0 { room } else { 0 }
            });
        }
    }

    fn alloc(&self) -> Option<Mbuf> {
        // SAFETY: the pool is valid; a non-null result is a fresh buffer with reference count 1.
        NonNull::new(unsafe { sys::shim_pktmbuf_alloc(self.pool.as_ptr()) })
            .map(|m| unsafe { Mbuf::from_raw(m) })
    }
}
