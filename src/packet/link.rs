//! Link types of capture files, by their LINKTYPE_ numbers.

/// How the first bytes of a frame are laid out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Link {
    /// LINKTYPE_NULL (0) and LINKTYPE_LOOP (108): four bytes of address family.
    Loopback,
    /// LINKTYPE_ETHERNET (1).
    #[default]
    Ethernet,
    /// LINKTYPE_PPP (9) and LINKTYPE_PPP_HDLC (50).
    Ppp,
    /// LINKTYPE_RAW (101), its BSD numbers 12 and 14, LINKTYPE_IPV4 (228), LINKTYPE_IPV6 (229).
    Raw,
    /// LINKTYPE_FRELAY (107), RFC 2427.
    FrameRelay,
    /// LINKTYPE_LINUX_SLL (113).
    Cooked,
    /// LINKTYPE_LINUX_SLL2 (276).
    Cooked2,
    /// LINKTYPE_NFLOG (239).
    Nflog,
    /// Any other; its frames are counted, not read.
    Other(u16),
}

impl Link {
    /// The link type of a LINKTYPE_ number.
    pub fn from_number(number: u16) -> Self {
        match number {
            0 | 108 => Self::Loopback,
            1 => Self::Ethernet,
            9 | 50 => Self::Ppp,
            12 | 14 | 101 | 228 | 229 => Self::Raw,
            107 => Self::FrameRelay,
            113 => Self::Cooked,
            239 => Self::Nflog,
            276 => Self::Cooked2,
            other => Self::Other(other),
        }
    }
}
