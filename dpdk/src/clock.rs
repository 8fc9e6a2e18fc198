//! What the kernel says of its clock.

/// Whether something (NTP, PTP) keeps the clock right; `None`: the kernel does not say.
pub fn is_synchronised() -> Option<bool> {
    // SAFETY: all-zero is a valid timex; with no modes set the call only reads.
    let mut timex: libc::timex = unsafe { std::mem::zeroed() };
    // SAFETY: a pointer to a live local.
    let state = unsafe { libc::adjtimex(&raw mut timex) };
    (state >= 0).then_some(state != libc::TIME_ERROR && timex.status & libc::STA_UNSYNC == 0)
}
