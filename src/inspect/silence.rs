//! Which flows are silenced, by the names that were read: out of telemetry and journal.
//!
//! A [`Silencer`] belongs to one worker. It hears every note before the control thread does and
//! marks the note's flow; a flow that begins is asked for by its addresses.
//!
//! * A name in the flow itself (a DNS question, the server name of TLS and QUIC, HTTP's Host) decides
//!   first: listed, the flow is silenced; not listed, it is open and stays so, whatever follows.
//! * Without one, a flow from a client to an address that it was given by listed names, and by no
//!   others, is silenced while the answer lives. An address with other names too is not: the
//!   name in the flow will say. Such flows are counted, and the control thread hears of them.
//!
//! So a connection that carries several names (a proxy's, a resolver's) is silenced only as long as
//! all of them are listed; a note about a listed name stays out of telemetry even where its flow
//! does not.
//!
//! Limits: the client is who asked as far as we see: where the mirror shows only what a resolver asks
//! for others, names decide. An address of the other family than the question travelled over is not
//! known. What another worker reads is known here with the next burst.

use rtrb::{Consumer, Producer, RingBuffer};
use std::net::IpAddr;
use std::sync::Arc;

use super::answers::Answered;
use crate::event::{App, Mark, Note, NoteKind, NoteSink, Seen, Tag, fields, number};
use crate::packet::{Addr, FlowKey};
use crate::shunt::{Addresses, Answer, Current, Known, Party, View, parties};

/// Reports that wait for the control thread.
const REPORTS: usize = 64;
/// A flow's own name proves for so long that its address has other names.
const PROVED_S: u32 = 300;

/// What a silencer did, for the counters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Flows silenced by a name in them, and by their address.
    pub by_name: u64,
    pub by_address: u64,
    /// Flows not silenced since their address has other names too.
    pub shared: u64,
    /// Flows that were silenced until a name in them was not listed.
    pub reopened: u64,
    /// What others were not told, and what made room too early.
    pub lost: u64,
}

/// An address that listed names and others share.
#[derive(Clone, Copy, Debug)]
pub struct Shared {
    pub client: IpAddr,
    pub address: IpAddr,
    pub at_ns: u64,
}

/// Marks the flows of one worker.
#[derive(Debug)]
pub struct Silencer {
    view: View,
    addresses: Addresses,
    party: Party,
    reports: Producer<Shared>,
    stats: Stats,
}

/// The silencers of so many workers, and where each reports.
pub fn silencers(list: &Arc<Current>, workers: usize) -> Vec<(Silencer, Consumer<Shared>)> {
    let of = |party| {
        let (reports, rx) = RingBuffer::new(REPORTS);
        let view = View::new(Arc::clone(list));
        let addresses = Addresses::default();
        (Silencer { view, addresses, party, reports, stats: Stats::default() }, rx)
    };
    parties(workers).into_iter().map(of).collect()
}

impl Silencer {
    pub fn stats(&self) -> Stats {
        Stats { lost: self.party.lost + self.addresses.evicted, ..self.stats }
    }

    /// Takes in what changed outside; to be called between bursts.
    #[inline]
    pub fn refresh(&mut self) {
        self.view.refresh();
        self.party.hear(|answer| self.addresses.learn(answer));
    }

    /// How a flow is marked that begins.
    pub fn begins(&mut self, key: &FlowKey, orig_is_a: bool, at_ns: u64) -> Mark {
        let (client, address) = ends(key, orig_is_a);
        match self.addresses.known(client, address, at_ns) {
            Known::Otherwise => Mark::Plain,
            Known::Listed => {
                self.stats.by_address += 1;
                Mark::Silenced
            }
            Known::Shared => {
                self.stats.shared += 1;
                self.report(client, address, key.is_v6(), at_ns);
                Mark::Plain
            }
        }
    }

    /// Looks again at a flow of which a payload is about to be read: its answer may have been read
    /// on another worker, just when it began.
    pub fn look_again(&mut self, seen: &mut Seen<'_>) {
        if seen.mark == Mark::Plain {
            let (client, address) = ends(&seen.key, seen.orig_is_a);
            if self.addresses.known(client, address, seen.timestamp_ns) == Known::Listed {
                self.stats.by_address += 1;
                seen.mark = Mark::Silenced;
            }
        }
    }

    /// Marks a note, and with it its flow.
    fn hear(&mut self, note: &mut Note, bytes: &[u8], mark: &mut Mark) {
        let listed = match note.kind {
            NoteKind::Dns => self.dns(note, bytes),
            NoteKind::TlsClient | NoteKind::Quic => {
                field(bytes, Tag::Sni).and_then(|name| self.name(note, name))
            }
            NoteKind::HttpRequest => {
                field(bytes, Tag::Host).and_then(|host| self.name(note, without_port(host)))
            }
            _ => None,
        };
        let before = *mark;
        match (listed, before) {
            (Some(true), Mark::Plain) => {
                self.stats.by_name += 1;
                *mark = Mark::Silenced;
            }
            (Some(false), Mark::Silenced) => {
                self.stats.reopened += 1;
                *mark = Mark::Open;
            }
            (Some(false), _) => *mark = Mark::Open,
            _ => {}
        }
        note.silenced = listed == Some(true) || *mark == Mark::Silenced;
    }

    /// Whether the name that a flow's client gave is listed; `None` if it is an address.
    fn name(&mut self, note: &Note, name: &[u8]) -> Option<bool> {
        if std::str::from_utf8(name).ok()?.trim_matches(['[', ']']).parse::<IpAddr>().is_ok() {
            return None;
        }
        let listed = self.listed(name, true);
        let (client, address) = ends(&note.key, note.orig_is_a);
        let known = self.addresses.known(client, address, note.timestamp_ns);
        if !listed && known == Known::Listed {
            // The same address by a name that nobody asked for here.
            self.learn(Answer {
                client,
                address,
                at_ns: note.timestamp_ns,
                ttl: PROVED_S,
                listed: false,
            });
            self.report(client, address, note.key.is_v6(), note.timestamp_ns);
        }
        Some(listed)
    }

    fn listed(&self, name: &[u8], count: bool) -> bool {
        let list = self.view.list();
        let entry = list.find(name);
        if let Some(entry) = entry.filter(|_| count) {
            list.hit(entry);
        }
        entry.is_some()
    }

    /// Whether the name asked for is listed; learns the addresses of an answer.
    fn dns(&mut self, note: &Note, bytes: &[u8]) -> Option<bool> {
        let app = field(bytes, Tag::App).and_then(|value| App::of(*value.first()?));
        if app != Some(App::Dns) {
            return None;
        }
        let is_answer = number(field(bytes, Tag::DnsFlags)?) & 0x8000 != 0;
        let asked = field(bytes, Tag::Query)?.get(2..)?;
        let listed = self.listed(asked, !is_answer);
        if let Some(answered) = Answered::of(note, bytes) {
            let (client, resolver) = ends(&note.key, note.orig_is_a);
            for (_, ttl, ip) in answered.addresses() {
                let Some(address) = reachable(ip, note.key.is_v6()) else { continue };
                // A resolver that answers with itself, to keep its clients away.
                if address != resolver {
                    self.learn(Answer { client, address, at_ns: note.timestamp_ns, ttl, listed });
                }
            }
        }
        Some(listed)
    }

    fn learn(&mut self, answer: Answer) {
        self.addresses.learn(&answer);
        self.party.tell(&answer);
    }

    fn report(&mut self, client: Addr, address: Addr, v6: bool, at_ns: u64) {
        let shared = Shared { client: client.ip(v6), address: address.ip(v6), at_ns };
        // One of many is enough.
        let _ = self.reports.push(shared);
    }
}

/// Client and server.
fn ends(key: &FlowKey, orig_is_a: bool) -> (Addr, Addr) {
    if orig_is_a { (key.a, key.b) } else { (key.b, key.a) }
}

fn field(bytes: &[u8], tag: Tag) -> Option<&[u8]> {
    fields(bytes).find(|(t, _)| *t == tag).map(|(_, value)| value)
}

/// An address that a flow of this family can go to.
fn reachable(ip: IpAddr, v6: bool) -> Option<Addr> {
    let nowhere = ip.is_unspecified() || ip.is_loopback() || ip.is_multicast();
    match ip {
        _ if nowhere => None,
        IpAddr::V4(ip) => (!v6).then(|| Addr::v4(ip.octets())),
        IpAddr::V6(ip) => v6.then(|| Addr::v6(ip.octets())),
    }
}

/// A host without `:port`.
fn without_port(host: &[u8]) -> &[u8] {
    let colon = host.iter().rposition(|&b| b == b':');
    let digits = |at: usize| host.get(at + 1..).is_some_and(|p| p.iter().all(u8::is_ascii_digit));
    let is_v6 = host.last() == Some(&b']');
    match colon.filter(|&at| digits(at) && !is_v6) {
        Some(at) => host.get(..at).unwrap_or(host),
        None => host,
    }
}

/// A way for notes on which a silencer hears them first.
pub struct Heard<'a, N> {
    pub notes: &'a mut N,
    pub silencer: Option<&'a mut Silencer>,
    /// Of the flow that is being read.
    pub mark: Mark,
}

impl<N: NoteSink> NoteSink for Heard<'_, N> {
    fn push(&mut self, mut note: Note, fields: &[u8]) {
        if let Some(silencer) = &mut self.silencer {
            silencer.hear(&mut note, fields, &mut self.mark);
        }
        self.notes.push(note, fields);
    }
}
