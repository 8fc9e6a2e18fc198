//! Capture filters: pcap-filter text, compiled and run by libpcap.
//!
//! pcap-filter looks at one layer: `tcp port 80` is false for every VLAN-tagged frame, and
//! `not tcp port 80` true. Here a filter that does not speak of `vlan` holds for a frame whatever
//! its tags: it is compiled again behind one, two and three tags, and the frame's own tags choose.
//! A filter that does speak of `vlan` means what tcpdump would mean by it.
//!
//! [`Filters`] asks them of frames of any link type. Where an expression cannot be asked of a link
//! type, its frames are taken.
//!
//! Limits: at most three tags are looked through. A frame is filtered by its captured bytes; later
//! fragments have no ports.

pub(crate) mod text;

use libpcap::Program;

pub use text::{in_file, strip_comments};

/// Tags looked through.
const TAGS: usize = 3;
const ETHERNET: u16 = 1;
/// What libpcap says of an expression that is always false.
const REJECTS_ALL: &str = "rejects all packets";

/// A filter expression that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// Where it stops making sense: a character's place from 1, and the word there.
    #[error("{message} at {} (character {at})", if word.is_empty() { "its end".into() } else { format!("\"{word}\"") })]
    At { message: String, at: usize, word: String },
    /// The same in a file.
    #[error("{message} at {} (line {line}, character {at})", if word.is_empty() { "its end".into() } else { format!("\"{word}\"") })]
    InFile { message: String, line: usize, at: usize, word: String },
    #[error("{0}")]
    Whole(String),
}

/// A compiled filter for one link type.
pub struct Filter {
    /// The program for each number of tags, from none; `None` takes nothing.
    programs: Vec<Option<Program>>,
    /// Frames on which no program needs to be run.
    constant: Option<bool>,
}

impl Filter {
    /// Compiles an expression for a LINKTYPE_ number; the empty one takes every packet.
    pub fn compile(expression: &str, link: u16) -> Result<Self, FilterError> {
        let plain =
            Program::compile(expression, link).map_err(|e| text::locate(expression, link, e))?;
        let constant = plain.constant();
        let mut programs = vec![Some(plain)];
        if link == ETHERNET && constant.is_none() && !text::speaks_of(expression, "vlan") {
            for tags in 1..=TAGS {
                let behind = format!("{} and ({expression})", vec!["vlan"; tags].join(" and "));
                match Program::compile(&behind, link) {
                    Ok(program) => programs.push(Some(program)),
                    Err(e) if e.contains(REJECTS_ALL) => programs.push(None),
                    // What cannot be asked behind a tag is asked of the frame as it is.
                    Err(_) => break,
                }
            }
        }
        Ok(Self { programs, constant })
    }

    /// Whether a frame is wanted, given its captured bytes and its length on the wire.
    #[inline]
    pub fn matches(&self, data: &[u8], wire_len: u32) -> bool {
        if let Some(answer) = self.constant {
            return answer;
        }
        let tags = if self.programs.len() > 1 { tags(data, self.programs.len() - 1) } else { 0 };
        let program = self.programs.get(tags).and_then(Option::as_ref);
        program.is_some_and(|program| program.matches(data, wire_len))
    }

    /// Whether it takes every packet.
    pub fn takes_all(&self) -> bool {
        self.constant == Some(true)
    }
}

/// Expressions that all must hold, for frames of any link type.
pub struct Filters {
    /// What they decide on, for the log.
    what: &'static str,
    texts: Vec<String>,
    /// By link type; none where every frame is taken.
    by_link: Vec<(u16, Vec<Filter>)>,
}

impl Filters {
    /// Compiles the expressions for Ethernet; other link types when their first frame comes.
    /// `None` if every frame is taken.
    pub fn new(what: &'static str, texts: &[&str]) -> Result<Option<Self>, FilterError> {
        let mut these = Vec::new();
        for text in texts {
            let filter = Filter::compile(text, ETHERNET)?;
            if !filter.takes_all() {
                these.push(((*text).to_owned(), filter));
            }
        }
        if these.is_empty() {
            return Ok(None);
        }
        let (texts, filters) = these.into_iter().unzip();
        let mut by_link = Vec::with_capacity(8);
        by_link.push((ETHERNET, filters));
        Ok(Some(Self { what, texts, by_link }))
    }

    /// Whether a frame is wanted.
    #[inline]
    pub fn take(&mut self, link: u16, wire_len: u32, data: &[u8]) -> bool {
        let all = |filters: &[Filter]| filters.iter().all(|f| f.matches(data, wire_len));
        match self.by_link.iter().find(|(l, _)| *l == link) {
            Some((_, filters)) => all(filters),
            None => all(self.compile(link)),
        }
    }

    #[cold]
    fn compile(&mut self, link: u16) -> &[Filter] {
        let mut filters = Vec::new();
        for text in &self.texts {
            match Filter::compile(text, link) {
                Ok(filter) if filter.takes_all() => {}
                Ok(filter) => filters.push(filter),
                Err(e) => {
                    let what = self.what;
                    tracing::warn!("{what} does not fit link type {link} ({e}); all is taken");
                }
            }
        }
        self.by_link.push((link, filters));
        self.by_link.last().map_or(&[], |(_, filters)| filters)
    }
}

/// The VLAN tags of an Ethernet frame, those that libpcap's `vlan` knows, at most so many.
#[inline]
fn tags(data: &[u8], most: usize) -> usize {
    let is_tag = |n: &usize| {
        let kind = data.get(12 + 4 * n..).and_then(|d| d.first_chunk::<2>());
        matches!(kind, Some([0x81, 0x00] | [0x88, 0xa8] | [0x91, 0x00]))
    };
    (0..most).take_while(is_tag).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(tags: &[(u16, u16)], port: u16) -> Vec<u8> {
        let mut out = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        for (kind, id) in tags {
            out.extend(kind.to_be_bytes());
            out.extend(id.to_be_bytes());
        }
        out.extend([8, 0, 0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
        out.extend(4321u16.to_be_bytes());
        out.extend(port.to_be_bytes());
        out.extend([0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x02, 0, 9, 0, 0, 0, 0]);
        out
    }

    #[test]
    fn a_filter_written_for_untagged_frames_holds_for_tagged_ones() {
        let tagged: [&[(u16, u16)]; 5] = [
            &[],
            &[(0x8100, 5)],
            &[(0x88a8, 7), (0x8100, 5)],
            &[(0x9100, 7), (0x8100, 5)],
            &[(0x88a8, 7), (0x8100, 5), (0x8100, 6)],
        ];
        for (text, on_80, on_22) in [
            ("tcp port 80", true, false),
            ("not tcp port 80", false, true),
            ("ip and not (port 80 or port 443)", false, true),
            ("tcp[13] & 2 != 0 and dst host 10.0.0.2", true, true),
            ("ether host 02:00:00:00:00:01", true, true),
            ("arp", false, false),
        ] {
            let filter = Filter::compile(text, 1).unwrap();
            for tags in tagged {
                for (port, want) in [(80, on_80), (22, on_22)] {
                    let data = frame(tags, port);
                    let got = filter.matches(&data, data.len() as u32);
                    assert_eq!(got, want, "{text}, {tags:x?}, port {port}");
                }
            }
        }
    }

    #[test]
    fn a_filter_that_speaks_of_vlan_means_what_it_says() {
        let data = frame(&[(0x88a8, 7), (0x8100, 5)], 80);
        for (text, want) in [
            ("vlan", true),
            ("vlan 5", false),
            ("vlan 7", true),
            ("vlan 7 and vlan 5 and port 80", true),
            ("vlan 7 and port 80", false),
            ("not vlan", false),
        ] {
            let filter = Filter::compile(text, 1).unwrap();
            assert_eq!(filter.matches(&data, data.len() as u32), want, "{text}");
        }
    }

    #[test]
    fn constant_filters_cost_nothing_and_other_links_compile() {
        assert!(Filter::compile("", 1).unwrap().takes_all());
        assert!(!Filter::compile("ip", 1).unwrap().takes_all());
        let raw = Filter::compile("udp or tcp port 80", 101).unwrap();
        let data = &frame(&[], 80)[14..];
        assert!(raw.matches(data, data.len() as u32));
    }

    #[test]
    fn an_error_shows_where() {
        for (text, at, word) in [
            ("tcp prot 80", 5, "prot"),
            ("host 10.0.0.1 and (port 80 or", 30, ""),
            ("port 80 and and port 90", 13, "and"),
            ("tcp[13 & 2 != 0", 12, "!="),
            ("udp and port 99999", 14, "99999"),
            ("host 1.2.3.4.5.6", 6, "1.2.3.4.5.6"),
        ] {
            match Filter::compile(text, 1).err().unwrap() {
                FilterError::At { at: got, word: got_word, message } => {
                    assert_eq!((got, got_word.as_str()), (at, word), "{text}: {message}");
                    assert!(!message.contains('\n'), "{message}");
                }
                other => panic!("{text}: {other}"),
            }
        }
    }

    #[test]
    fn an_error_in_a_file_shows_the_line() {
        let text = "# web\n(tcp port 80 # prot\n  or tcp prot 443)\n";
        let error = in_file(text, Filter::compile(&strip_comments(text), 1).err().unwrap());
        let FilterError::InFile { line, at, word, .. } = &error else { panic!("{error}") };
        assert_eq!((*line, *at, word.as_str()), (3, 10, "prot"), "{error}");
        let cut = "udp\nand (port 53 # end\n";
        let error = in_file(cut, Filter::compile(&strip_comments(cut), 1).err().unwrap());
        let FilterError::InFile { line, word, .. } = &error else { panic!("{error}") };
        assert_eq!((*line, word.as_str()), (2, ""), "{error}");
    }

    #[test]
    fn all_expressions_hold_on_every_link_type() {
        assert!(Filters::new("it", &["", "  "]).unwrap().is_none());
        let mut both = Filters::new("it", &["not vlan 6", "not port 80"]).unwrap().unwrap();
        for (tags, port, want) in [
            (&[][..], 22, true),
            (&[], 80, false),
            (&[(0x8100, 5)], 22, true),
            (&[(0x8100, 5)], 80, false),
            (&[(0x8100, 6)], 22, false),
        ] {
            let data = frame(tags, port);
            assert_eq!(both.take(1, data.len() as u32, &data), want, "{tags:?} {port}");
        }
        let raw = &frame(&[], 80)[14..];
        let mut web = Filters::new("it", &["not port 80"]).unwrap().unwrap();
        assert!(!web.take(101, raw.len() as u32, raw));
        // 802.11 has no Ethernet header to ask for.
        let mut ether = Filters::new("it", &["ether proto 0x888e"]).unwrap().unwrap();
        assert!(!ether.take(1, 60, &frame(&[], 80)));
    }
}
