//! Sleeping until a receive queue has something.
//!
//! A [`Bell`] is a descriptor that becomes readable: a card's interrupt of one queue, or the packet
//! socket of the AF_PACKET driver. Interrupts are switched on only for the sleep; who sleeps polls
//! once more after [`arm`], since what came before gives no interrupt.

use std::time::Duration;

use dpdk_sys as sys;

/// Something that rings when a packet comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bell {
    pub(crate) fd: i32,
    /// Port and queue of a card's interrupt; a socket needs none.
    pub(crate) rings: Option<(u16, u16)>,
}

/// Switches the interrupts on; false where a card refuses.
pub fn arm(bells: &[Bell]) -> bool {
    bells.iter().filter_map(|b| b.rings).all(|(port, queue)| {
        // SAFETY: takes only numbers.
        unsafe { sys::rte_eth_dev_rx_intr_enable(port, queue) == 0 }
    })
}

/// Sleeps until one rings, `most` at the longest, and switches the interrupts off.
pub fn sleep(bells: &[Bell], most: Duration) {
    let mut fds: [libc::pollfd; 16] =
        [libc::pollfd { fd: -1, events: libc::POLLIN, revents: 0 }; 16];
    for (slot, bell) in fds.iter_mut().zip(bells) {
        slot.fd = bell.fd;
    }
    // SAFETY: the array lives through the call; entries of -1 are passed over.
    unsafe { libc::poll(fds.as_mut_ptr(), fds.len() as libc::nfds_t, most.as_millis() as i32) };
    for bell in bells {
        let Some((port, queue)) = bell.rings else { continue };
        // SAFETY: takes only numbers.
        unsafe { sys::rte_eth_dev_rx_intr_disable(port, queue) };
        let rang = fds.iter().any(|f| f.fd == bell.fd && f.revents & libc::POLLIN != 0);
        if rang {
            let mut count = 0u64;
            // SAFETY: an eventfd gives eight bytes into a live local, at once since it is readable.
            unsafe { libc::read(bell.fd, (&raw mut count).cast(), size_of_val(&count)) };
        }
    }
}

/// As many bells as [`sleep`] hears.
pub const MOST: usize = 16;
