//! A list of domains, each of which stands for itself and everything below it.
//!
//! The names lie one behind the other in one piece of memory, sorted out by a table of their
//! numbers: a million names of 25 bytes take 50 MB, 85 while they are read. A name is looked up whole
//! and then without its first label, its first two and so on: labels, never parts of labels. Nothing
//! is allocated for a look-up.
//!
//! The file has a domain a line, or a line of a hosts file (an address and its names); `*.` in front
//! changes nothing, `#` begins a comment. Names may be in upper case or another script (IDN).
//!
//! Limit: a name on the wire that is not ASCII is not found; such names travel as `xn--`.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use arrayvec::ArrayVec;
use hashbrown::HashTable;
use rapidhash::v3::{DEFAULT_RAPID_SECRETS, rapidhash_v3_nano_inline};

/// Bytes of a name at most, dots included.
const LONGEST: usize = 253;
/// Bytes of a line that are read.
const LINE: usize = 4096;

/// The list cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    #[error("blocklist {file}: {error}")]
    Read { file: String, error: io::Error },
    #[error(
        "blocklist {file}: {bad} of its lines are no domains, such as line {line}, \"{text}\": \
         is it a list of domains?"
    )]
    NoList { file: String, bad: u64, line: u64, text: String },
    #[error("blocklist {file}: more than 4 GB of names")]
    TooLarge { file: String },
}

/// What was in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Loaded {
    pub domains: u64,
    /// Lines that are none, and the first of them.
    pub bad: u64,
    pub first_bad: Option<(u64, String)>,
}

impl fmt::Display for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} domains", self.domains)?;
        match &self.first_bad {
            Some((line, text)) => {
                write!(f, "; {} lines are none, such as line {line}, \"{text}\"", self.bad)
            }
            None => Ok(()),
        }
    }
}

/// The list.
#[derive(Debug, Default)]
pub struct List {
    names: Vec<u8>,
    /// Where each name ends; it begins where the one before ends.
    ends: Vec<u32>,
    numbers: HashTable<u32>,
    /// How often each was met.
    hits: Vec<AtomicU64>,
    /// Labels of the longest.
    labels: usize,
}

impl List {
    /// Reads a file.
    pub fn open(path: &Path) -> Result<(Self, Loaded), ListError> {
        let file = || path.display().to_string();
        let opened = File::open(path).map_err(|error| ListError::Read { file: file(), error })?;
        Self::read(BufReader::with_capacity(1 << 16, opened), &file())
    }

    /// Reads lines; `file` is what errors call it.
    pub fn read(mut from: impl BufRead, file: &str) -> Result<(Self, Loaded), ListError> {
        let mut this = Self::default();
        let mut loaded = Loaded::default();
        let mut bytes = Vec::new();
        let mut line = 0;
        while next_line(&mut from, &mut bytes)
            .map_err(|error| ListError::Read { file: file.to_owned(), error })?
        {
            line += 1;
            let text = String::from_utf8_lossy(&bytes);
            let text = text.trim_start_matches('\u{feff}');
            let meant = text.split('#').next().unwrap_or("").trim();
            if this.take_line(meant).is_none() {
                loaded.bad += 1;
                let shown = || (line, meant.chars().take(60).collect());
                loaded.first_bad.get_or_insert_with(shown);
            }
            if this.names.len() > u32::MAX as usize {
                return Err(ListError::TooLarge { file: file.to_owned() });
            }
        }
        loaded.domains = this.len() as u64;
        if let Some((line, text)) = loaded.first_bad.clone().filter(|_| loaded.bad > loaded.domains)
        {
            return Err(ListError::NoList { file: file.to_owned(), bad: loaded.bad, line, text });
        }
        this.names.shrink_to_fit();
        this.ends.shrink_to_fit();
        this.hits = (0..this.len()).map(|_| AtomicU64::new(0)).collect();
        Ok((this, loaded))
    }

    /// Takes the names of a line without its comment; `None` if it has something else.
    fn take_line(&mut self, line: &str) -> Option<()> {
        let mut words = line.split_whitespace();
        let Some(first) = words.next() else { return Some(()) };
        if !is_address(first) {
            let name = domain(first).filter(|_| words.next().is_none())?;
            self.insert(&name);
            return Some(());
        }
        // A hosts file: its own names of this machine (localhost and the like) are no domains.
        let mut any = None;
        for word in words {
            any = Some(());
            let local = !word.contains('.') || word == "localhost.localdomain" || is_address(word);
            if !local {
                self.insert(&domain(word)?);
            }
        }
        any
    }

    fn insert(&mut self, name: &[u8]) {
        if self.number(name).is_some() {
            return;
        }
        let number = self.ends.len() as u32;
        self.names.extend_from_slice(name);
        self.ends.push(self.names.len() as u32);
        self.labels = self.labels.max(labels(name));
        let Self { names, ends, numbers, .. } = self;
        numbers.insert_unique(hash(name), number, |&n| hash(name_at(names, ends, n)));
    }

    /// Its number, if exactly this name is in the list.
    fn number(&self, name: &[u8]) -> Option<u32> {
        let is_it = |&n: &u32| name_at(&self.names, &self.ends, n) == name;
        self.numbers.find(hash(name), is_it).copied()
    }

    /// The entry that a name falls under, the longest if there are several.
    pub fn find(&self, name: &[u8]) -> Option<u32> {
        let name = name.strip_suffix(b".").unwrap_or(name);
        if self.ends.is_empty() || name.is_empty() || name.len() > LONGEST {
            return None;
        }
        let mut lower: ArrayVec<u8, LONGEST> = name.iter().copied().collect();
        lower.make_ascii_lowercase();
        let (mut rest, mut left) = (lower.as_slice(), labels(&lower));
        loop {
            if left <= self.labels
                && let Some(number) = self.number(rest)
            {
                return Some(number);
            }
            let dot = rest.iter().position(|&b| b == b'.')?;
            rest = rest.get(dot + 1..)?;
            left -= 1;
        }
    }

    /// Counts that an entry was met.
    pub fn hit(&self, entry: u32) {
        if let Some(hits) = self.hits.get(entry as usize) {
            hits.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Every entry and how often it was met.
    pub fn hits(&self) -> impl Iterator<Item = (&str, u64)> {
        self.hits.iter().enumerate().map(|(n, hits)| {
            let name = name_at(&self.names, &self.ends, n as u32);
            (std::str::from_utf8(name).unwrap_or_default(), hits.load(Ordering::Relaxed))
        })
    }

    /// Takes over what was counted for the names that are in an earlier list too.
    pub fn count_on(&self, earlier: &Self) {
        for (name, hits) in earlier.hits().filter(|(_, hits)| *hits > 0) {
            if let Some(mine) = self.number(name.as_bytes()).and_then(|n| self.hits.get(n as usize))
            {
                mine.fetch_add(hits, Ordering::Relaxed);
            }
        }
    }
}

/// The next line without its end, as much of it as is looked at; false at the end.
fn next_line(from: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<bool> {
    line.clear();
    let mut any = false;
    loop {
        let there = from.fill_buf()?;
        if there.is_empty() {
            return Ok(any);
        }
        any = true;
        let end = there.iter().position(|&b| b == b'\n');
        let part = there.get(..end.unwrap_or(there.len())).unwrap_or(there);
        let room = LINE.saturating_sub(line.len()).min(part.len());
        line.extend_from_slice(part.get(..room).unwrap_or_default());
        let used = part.len() + usize::from(end.is_some());
        from.consume(used);
        if end.is_some() {
            return Ok(true);
        }
    }
}

fn name_at<'a>(names: &'a [u8], ends: &[u32], number: u32) -> &'a [u8] {
    let at = number as usize;
    let start = at.checked_sub(1).and_then(|n| ends.get(n)).map_or(0, |&end| end as usize);
    let end = ends.get(at).map_or(start, |&end| end as usize);
    names.get(start..end).unwrap_or_default()
}

fn hash(name: &[u8]) -> u64 {
    rapidhash_v3_nano_inline::<true, false>(name, &DEFAULT_RAPID_SECRETS)
}

fn labels(name: &[u8]) -> usize {
    1 + name.iter().filter(|&&b| b == b'.').count()
}

/// Whether a word is an address, as it begins a line of a hosts file; it may name an interface.
fn is_address(word: &str) -> bool {
    word.split('%').next().unwrap_or(word).parse::<IpAddr>().is_ok()
}

/// A domain as it travels in DNS, in lower case and without a dot at either end.
fn domain(word: &str) -> Option<ArrayVec<u8, LONGEST>> {
    let word = word.strip_prefix("*.").or_else(|| word.strip_prefix('.')).unwrap_or(word);
    let word = word.strip_suffix('.').unwrap_or(word);
    if !word.is_ascii() {
        let ascii = idna::domain_to_ascii(word).ok()?;
        return plain(&ascii);
    }
    plain(word)
}

fn plain(word: &str) -> Option<ArrayVec<u8, LONGEST>> {
    let mut out = ArrayVec::new();
    out.try_extend_from_slice(word.as_bytes()).ok()?;
    out.make_ascii_lowercase();
    let letter = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
    let label = |l: &[u8]| (1..=63).contains(&l.len()) && l.iter().all(letter);
    out.split(|&b| b == b'.').all(label).then_some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> (List, Loaded) {
        List::read(text.as_bytes(), "test").unwrap()
    }

    fn found(list: &List, name: &str) -> Option<String> {
        let entry = list.find(name.as_bytes())?;
        list.hits().nth(entry as usize).map(|(name, _)| name.to_owned())
    }

    #[test]
    fn a_domain_and_what_is_below_it_by_labels() {
        let (l, loaded) = list("hulu.com\nads.hulu.com\n*.netflix.com\n.nflxvideo.net\nzip\n");
        assert_eq!((loaded.domains, loaded.bad), (5, 0));
        for (name, entry) in [
            ("hulu.com", Some("hulu.com")),
            ("HULU.com.", Some("hulu.com")),
            ("a.b.c.hulu.com", Some("hulu.com")),
            ("x.ads.hulu.com", Some("ads.hulu.com")),
            ("www.netflix.com", Some("netflix.com")),
            ("netflix.com", Some("netflix.com")),
            ("v.nflxvideo.net", Some("nflxvideo.net")),
            ("evil.zip", Some("zip")),
            ("x.hulu.com.evil.example", None),
            ("nothulu.com", None),
            ("hulu.com.au", None),
            ("ulu.com", None),
            ("com", None),
            (".", None),
            ("", None),
            ("..hulu.com", Some("hulu.com")),
        ] {
            assert_eq!(found(&l, name).as_deref(), entry, "{name}");
        }
        let long = format!("{}hulu.com", "a.".repeat(200));
        assert_eq!(found(&l, &long), None, "no name is that long");
    }

    #[test]
    fn hosts_files_comments_scripts_and_cases() {
        let text = "\u{feff}# a list\r\n127.0.0.1 localhost localhost.localdomain\r\n\
            ::1 ip6-localhost ip6-loopback\nfe80::1%lo0 localhost\n0.0.0.0 0.0.0.0\n\
            0.0.0.0 Ads.Example.COM tracker.example # two\n\n   \n\
            :: six.example\nb\u{fc}cher.example\nXN--BCHER-KVA.test\n_dmarc.example.org\n\
            \u{43f}\u{440}\u{438}\u{43c}\u{435}\u{440}.\u{440}\u{444}#end";
        let (l, loaded) = list(text);
        assert_eq!((loaded.domains, loaded.bad), (7, 0), "{loaded}");
        for name in [
            "ads.example.com",
            "tracker.example",
            "six.example",
            "www.xn--bcher-kva.example",
            "xn--bcher-kva.test",
            "_dmarc.example.org",
            "xn--e1afmkfd.xn--p1ai",
        ] {
            assert!(found(&l, name).is_some(), "{name}");
        }
        assert_eq!(found(&l, "localhost"), None);
    }

    #[test]
    fn lines_that_are_no_domains_are_counted_and_a_page_is_no_list() {
        let (l, loaded) = list("good.example\nalso.example\ntwo words\n10.0.0.1\n");
        assert_eq!((l.len(), loaded.bad), (2, 2));
        assert_eq!(
            loaded.to_string(),
            "2 domains; 2 lines are none, such as line 3, \"two words\""
        );
        let page = "<!DOCTYPE html>\n<html>\n<p>404 not found</p>\n</html>\n";
        let error = List::read(page.as_bytes(), "l.txt").unwrap_err().to_string();
        assert!(error.contains("l.txt") && error.contains("line 1"), "{error}");
        let (empty, _) = list("# nothing\n");
        assert!(empty.is_empty() && empty.find(b"a.example").is_none());
        assert!(
            List::open(Path::new("/no/such/list")).unwrap_err().to_string().contains("/no/such")
        );
        let long = format!("{}\nok.example\nok2.example\n", "x".repeat(100_000));
        assert_eq!(list(&long).1.bad, 1);
    }

    #[test]
    fn counts_go_on_in_the_next_list() {
        let (first, _) = list("a.example\nb.example\n");
        for name in ["a.example", "x.a.example", "b.example"] {
            first.hit(first.find(name.as_bytes()).unwrap());
        }
        let (second, _) = list("c.example\na.example\n");
        second.count_on(&first);
        assert_eq!(second.hits().collect::<Vec<_>>(), [("c.example", 0), ("a.example", 2)]);
    }
}
