//! The packets of an answer as a capture file: nanosecond pcap, or pcapng.

use std::borrow::Cow;
use std::io::{self, Write};
use std::time::Duration;

use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketBlock;
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use pcap_file::pcapng::blocks::interface_statistics::{
    InterfaceStatisticsBlock, InterfaceStatisticsOption,
};
use pcap_file::pcapng::blocks::section_header::{SectionHeaderBlock, SectionHeaderOption};
use pcap_file::{DataLink, Endianness, PcapError, TsResolution};

use super::pcap::SNAPLEN;
use super::query::Packet;

/// A kind of capture file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// Classic pcap in nanoseconds; one link type.
    #[default]
    Pcap,
    /// pcapng, any number of link types; says which program wrote it.
    Pcapng,
}

/// Why a packet was not written.
#[derive(Debug, thiserror::Error)]
pub enum OutputError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(
        "packets of link types {first} and {other}: a pcap file holds one; choose with --link, or \
         take --format pcapng"
    )]
    Links { first: u16, other: u16 },
    #[error("a packet cannot be written: {0}")]
    Packet(String),
}

impl From<PcapError> for OutputError {
    fn from(e: PcapError) -> Self {
        match e {
            PcapError::IoError(e) => Self::Io(e),
            other => Self::Packet(other.to_string()),
        }
    }
}

enum State<W: Write> {
    /// Nothing is written before the link type is known.
    Empty(W),
    Pcap(PcapWriter<W>, u16),
    Pcapng(PcapNgWriter<W>, Vec<u16>),
    /// Only while it is being changed.
    Gone,
}

/// Writes packets to a stream.
pub struct Output<W: Write> {
    format: Format,
    state: State<W>,
}

impl<W: Write> Output<W> {
    pub fn new(format: Format, to: W) -> Self {
        Self { format, state: State::Empty(to) }
    }

    /// Writes the file's header, for packets of a link type.
    fn begin(&mut self, link: u16) -> Result<(), OutputError> {
        let to = match std::mem::replace(&mut self.state, State::Gone) {
            State::Empty(to) => to,
            begun => {
                self.state = begun;
                return Ok(());
            }
        };
        self.state = match self.format {
            Format::Pcap => {
                let header = PcapHeader {
                    snaplen: SNAPLEN,
                    datalink: DataLink::from(u32::from(link)),
                    ts_resolution: TsResolution::NanoSecond,
                    endianness: Endianness::Little,
                    ..PcapHeader::default()
                };
                State::Pcap(PcapWriter::with_header(to, header)?, link)
            }
            Format::Pcapng => {
                let by = format!("malakocut {}", crate::VERSION);
                let section = SectionHeaderBlock {
                    endianness: Endianness::Little,
                    options: vec![SectionHeaderOption::UserApplication(Cow::Owned(by))],
                    ..SectionHeaderBlock::default()
                };
                State::Pcapng(PcapNgWriter::with_section_header(to, section)?, Vec::new())
            }
        };
        Ok(())
    }

    /// Writes one packet.
    pub fn write(&mut self, packet: &Packet) -> Result<(), OutputError> {
        if let State::Empty(_) = self.state {
            self.begin(packet.link)?;
        }
        let timestamp = Duration::from_nanos(packet.timestamp_ns);
        match &mut self.state {
            State::Pcap(_, link) if *link != packet.link => {
                return Err(OutputError::Links { first: *link, other: packet.link });
            }
            State::Pcap(out, _) => {
                out.write_packet(&PcapPacket::new(timestamp, packet.wire_len, &packet.data))?;
            }
            State::Pcapng(out, links) => {
                let known = links.iter().position(|l| *l == packet.link);
                let interface_id = match known {
                    Some(n) => n,
                    None => {
                        out.write_pcapng_block(InterfaceDescriptionBlock {
                            linktype: DataLink::from(u32::from(packet.link)),
                            snaplen: SNAPLEN,
                            // Nanoseconds.
                            options: vec![InterfaceDescriptionOption::IfTsResol(9)],
                        })?;
                        links.push(packet.link);
                        links.len() - 1
                    }
                } as u32;
                out.write_pcapng_block(EnhancedPacketBlock {
                    interface_id,
                    timestamp,
                    original_len: packet.wire_len,
                    data: Cow::Borrowed(&packet.data),
                    options: Vec::new(),
                })?;
            }
            State::Empty(_) | State::Gone => {}
        }
        Ok(())
    }

    /// Ends the file: one without packets still has its header, for a link type.
    pub fn finish(mut self, link: u16) -> Result<(), OutputError> {
        self.begin(link)?;
        self.flush()
    }

    /// The same, with a remark where the format has a place for one: in pcapng behind the last packet.
    pub fn finish_with(mut self, link: u16, remark: &str) -> Result<(), OutputError> {
        self.begin(link)?;
        if let State::Pcapng(out, links) = &mut self.state
            && !links.is_empty()
        {
            out.write_pcapng_block(InterfaceStatisticsBlock {
                interface_id: 0,
                timestamp: 0,
                options: vec![InterfaceStatisticsOption::Comment(Cow::Borrowed(remark))],
            })?;
        }
        self.flush()
    }

    fn flush(self) -> Result<(), OutputError> {
        match self.state {
            State::Pcap(out, _) => out.into_writer().flush()?,
            State::Pcapng(out, _) => out.into_inner().flush()?,
            State::Empty(_) | State::Gone => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk that is full when the last bytes come.
    struct Full;

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Err(io::ErrorKind::StorageFull.into())
        }
    }

    #[test]
    fn what_the_disk_refuses_at_the_end_is_no_success() {
        let packet = Packet {
            timestamp_ns: 1,
            wire_len: 4,
            link: 1,
            data: vec![0; 4],
            segment: 1,
            offset: 24,
        };
        for format in [Format::Pcap, Format::Pcapng] {
            let mut output = Output::new(format, Full);
            output.write(&packet).unwrap();
            assert!(output.finish(1).is_err(), "{format:?}");
            assert!(Output::new(format, Full).finish(1).is_err(), "{format:?}, empty");
        }
    }
}
