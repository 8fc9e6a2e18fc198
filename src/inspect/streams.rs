//! Follows the two streams of a TCP connection from their beginnings, as far as a parser asks.

use super::sniff::{self, Sniffed};
use super::stream::{self, CAPACITY};
use super::{Inspector, PATIENCE, dns, http, not_allowed, note, report, ssh, tls};
use crate::event::{App, FieldWriter, NoteKind, NoteSink, Seen, Wants};

/// What is kept of a flow.
#[derive(Clone, Copy, Debug)]
pub(super) struct State {
    place: u32,
    app: Option<App>,
    /// Packets beyond the first few that were granted.
    extra: u8,
    halves: [Half; 2],
}

/// What is kept of one direction.
#[derive(Clone, Copy, Debug)]
struct Half {
    /// Where in its stream the next byte stands that a parser wants.
    base: u32,
    buffer: u32,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Nothing was understood yet.
    Start,
    /// Something of it was said already: a TLS server's hello, an SSH banner.
    Told,
    /// Behind a head, before the next; or in a protocol that is not read, which may turn to one that
    /// is: STARTTLS, a proxy.
    Between,
    Done,
}

/// What a parser made of the bytes so far.
enum Step {
    /// They are not all.
    More,
    /// So many were read, and more may follow.
    Read(usize),
    /// The side is to be looked at again where a packet begins with a head.
    Next,
    Done,
}

impl Default for State {
    fn default() -> Self {
        let half = Half { base: 0, buffer: stream::NONE, phase: Phase::Start };
        Self { place: u32::MAX, app: None, extra: 0, halves: [half; 2] }
    }
}

impl State {
    pub(super) fn begin(&mut self, place: u32) {
        *self = Self { place, ..Self::default() };
    }

    pub(super) fn place(&self) -> u32 {
        self.place
    }

    pub(super) fn buffers(&mut self) -> impl Iterator<Item = &mut u32> {
        self.halves.iter_mut().map(|half| &mut half.buffer)
    }

    pub(super) fn first_buffer(&mut self) -> &mut u32 {
        &mut self.halves[0].buffer
    }
}

impl Inspector {
    /// Reads a segment's payload.
    pub(super) fn segment(
        &mut self,
        seen: &Seen<'_>,
        payload: &[u8],
        out: &mut impl NoteSink,
    ) -> Wants {
        let Some(index) = self.state(seen) else { return Wants::default() };
        let left = seen.wants.left().saturating_sub(1);
        let mut endless = false;
        if self.advance(index, seen, payload, out) {
            // DNS goes on as long as the flow does.
            endless = self.states.get(index as usize).is_some_and(|s| s.app == Some(App::Dns));
        }
        let Some(state) = self.states.get_mut(index as usize) else { return Wants::default() };
        let side = &mut state.halves[seen.side & 1];
        if side.phase == Phase::Done {
            self.pool.give_back(&mut side.buffer);
        }
        let open = state.halves.iter().any(|half| half.phase != Phase::Done);
        let unfinished = state.halves.iter().any(|half| half.buffer != stream::NONE);
        if open && (left > 0 || endless) {
            return Wants::held(if endless { seen.wants.left() } else { left });
        }
        if open && unfinished && state.extra < PATIENCE {
            state.extra += 1;
            return Wants::held(1);
        }
        self.forget(seen.place);
        Wants::default()
    }

    /// Adds a payload to its side's stream and lets the parser see it; true if anything was read.
    fn advance(
        &mut self,
        index: u32,
        seen: &Seen<'_>,
        payload: &[u8],
        out: &mut impl NoteSink,
    ) -> bool {
        let Some(state) = self.states.get_mut(index as usize) else { return false };
        let half = &mut state.halves[seen.side & 1];
        if half.phase == Phase::Done {
            return false;
        }
        let ahead = seen.stream_at.wrapping_sub(half.base).cast_signed();
        if half.phase == Phase::Between {
            let Some(app) = head(payload).filter(|_| ahead >= 0) else { return false };
            state.app = Some(app);
            *half = Half { base: seen.stream_at, buffer: stream::NONE, phase: Phase::Start };
        }
        let ahead = seen.stream_at.wrapping_sub(half.base).cast_signed();
        // What was read already, or sent before.
        let behind = usize::try_from(-i64::from(ahead)).unwrap_or(0);
        let Some(fresh) = payload.get(behind..).filter(|p| !p.is_empty()) else { return false };
        let at = usize::try_from(ahead).unwrap_or(0);
        if half.buffer == stream::NONE && at == 0 {
            return self.read(index, seen, fresh, out);
        }
        if at >= CAPACITY {
            return false;
        }
        if half.buffer == stream::NONE {
            match self.pool.take() {
                Some(free) => half.buffer = free,
                None => {
                    self.stats.buffers_full += 1;
                    half.phase = Phase::Done;
                    return false;
                }
            }
        }
        let buffer = half.buffer;
        let Some(assembly) = self.pool.get(buffer) else { return false };
        assembly.insert(at, fresh);
        self.read_assembled(index, seen, buffer, out)
    }

    /// Reads the whole messages at the start of `bytes`; what is left of them goes to a buffer.
    fn read(&mut self, index: u32, seen: &Seen<'_>, bytes: &[u8], out: &mut impl NoteSink) -> bool {
        let Some(mut state) = self.states.get(index as usize).copied() else { return false };
        let (mut rest, mut any) = (bytes, false);
        loop {
            let before = state.halves[seen.side & 1].phase;
            match self.step(&mut state, seen, rest, out) {
                Step::Read(n) => {
                    any = true;
                    let half = &mut state.halves[seen.side & 1];
                    half.base = half.base.wrapping_add(n as u32);
                    rest = rest.get(n..).unwrap_or_default();
                    if !rest.is_empty() && n > 0 {
                        continue;
                    }
                }
                Step::More => {
                    any |= state.halves[seen.side & 1].phase != before;
                    match self.pool.take() {
                        Some(free) => {
                            state.halves[seen.side & 1].buffer = free;
                            if let Some(assembly) = self.pool.get(free) {
                                assembly.insert(0, rest);
                            }
                        }
                        None => {
                            self.stats.buffers_full += 1;
                            state.halves[seen.side & 1].phase = Phase::Done;
                        }
                    }
                }
                Step::Next => {
                    any = true;
                    let half = &mut state.halves[seen.side & 1];
                    half.phase = Phase::Between;
                    half.base = seen.stream_at.wrapping_add(1);
                }
                Step::Done => state.halves[seen.side & 1].phase = Phase::Done,
            }
            break;
        }
        if let Some(slot) = self.states.get_mut(index as usize) {
            *slot = state;
        }
        any
    }

    /// As [`Self::read`], for what stands in a buffer.
    fn read_assembled(
        &mut self,
        index: u32,
        seen: &Seen<'_>,
        buffer: u32,
        out: &mut impl NoteSink,
    ) -> bool {
        let Some(mut state) = self.states.get(index as usize).copied() else { return false };
        // Taken out while it is read, so that the rest of the inspector is at hand.
        let Some(assembly) = self.pool.lift(buffer) else { return false };
        let (mut read, mut any) = (0, false);
        let full = assembly.prefix().len() == CAPACITY;
        loop {
            let rest = assembly.prefix().get(read..).unwrap_or_default();
            if rest.is_empty() {
                break;
            }
            match self.step(&mut state, seen, rest, out) {
                Step::Read(n) if n > 0 => {
                    (read, any) = (read + n, true);
                    continue;
                }
                Step::Read(_) => {}
                Step::More if full && read == 0 => {
                    state.halves[seen.side & 1].phase = Phase::Done;
                }
                Step::More => {}
                Step::Next => {
                    any = true;
                    state.halves[seen.side & 1].phase = Phase::Between;
                }
                Step::Done => state.halves[seen.side & 1].phase = Phase::Done,
            }
            break;
        }
        let half = &mut state.halves[seen.side & 1];
        let mut assembly = assembly;
        assembly.consume(read);
        half.base = half.base.wrapping_add(read as u32);
        let empty = assembly.is_empty();
        self.pool.put(buffer, assembly);
        if half.phase == Phase::Between {
            half.base = seen.stream_at.wrapping_add(1);
        }
        if empty || half.phase == Phase::Between {
            self.pool.give_back(&mut half.buffer);
        }
        if let Some(slot) = self.states.get_mut(index as usize) {
            *slot = state;
        }
        any
    }

    /// Shows the parser the bytes of one side from where it stands.
    fn step(
        &mut self,
        state: &mut State,
        seen: &Seen<'_>,
        bytes: &[u8],
        out: &mut impl NoteSink,
    ) -> Step {
        let app = match state.app {
            Some(app) => app,
            None => {
                let ports = [seen.decoded.tuple.sport, seen.decoded.tuple.dport];
                match sniff::stream(bytes, ports) {
                    Sniffed::Is(app) => app,
                    Sniffed::Short => return Step::More,
                    Sniffed::Unknown => return Step::Next,
                }
            }
        };
        if !matches!(app, App::Tls | App::Http | App::Ssh | App::Dns) {
            report::app(app, &mut FieldWriter::new(&mut self.fields));
            note(NoteKind::App, seen, &self.fields, out);
            // Once is enough: the other side only waits for a turn of the protocol.
            let now = Half { phase: Phase::Between, ..state.halves[1 - (seen.side & 1)] };
            state.halves[1 - (seen.side & 1)] = now;
            return Step::Next;
        }
        state.app = Some(app);
        let half = &mut state.halves[seen.side & 1];
        match app {
            App::Tls => self.tls(half, seen, bytes, out),
            App::Http => self.http(seen, bytes, out),
            App::Ssh => self.ssh(half, seen, bytes, out),
            _ => self.dns(seen, bytes, out),
        }
    }

    /// A ClientHello, or a ServerHello and the certificate behind it.
    fn tls(
        &mut self,
        half: &mut Half,
        seen: &Seen<'_>,
        bytes: &[u8],
        out: &mut impl NoteSink,
    ) -> Step {
        use tls::message::{CERTIFICATE, CLIENT_HELLO, SERVER_HELLO, SERVER_HELLO_DONE};
        if !tls::may_be(bytes) && half.phase == Phase::Start {
            return Step::Done;
        }
        let Some((handshake, reach)) = tls::handshake(bytes, &mut self.joined) else {
            return if bytes.len() < 5 { Step::More } else { Step::Done };
        };
        for (kind, body) in tls::messages(handshake) {
            match kind {
                CLIENT_HELLO => {
                    let Some(hello) = tls::ClientHello::parse(body) else {
                        not_allowed(App::Tls, seen, &mut self.fields, out);
                        return Step::Done;
                    };
                    let w = &mut FieldWriter::new(&mut self.fields);
                    report::client_hello(&hello, tls::Transport::Tcp, w);
                    note(NoteKind::TlsClient, seen, &self.fields, out);
                    return Step::Done;
                }
                SERVER_HELLO if half.phase == Phase::Start => {
                    let Some(hello) = tls::ServerHello::parse(body) else { return Step::Done };
                    let w = &mut FieldWriter::new(&mut self.fields);
                    report::server_hello(&hello, w);
                    note(NoteKind::TlsServer, seen, &self.fields, out);
                    half.phase = Phase::Told;
                    // From TLS 1.3 on the rest is encrypted.
                    if tls::version_name(hello.version()) == "TLS 1.3" {
                        return tls_end(None, seen, &mut self.fields, out);
                    }
                }
                SERVER_HELLO => {}
                CERTIFICATE if half.phase == Phase::Told => {
                    let first = tls::certificates(body).next();
                    return tls_end(first, seen, &mut self.fields, out);
                }
                SERVER_HELLO_DONE if half.phase == Phase::Told => {
                    return tls_end(None, seen, &mut self.fields, out);
                }
                _ => {}
            }
        }
        match (reach, half.phase) {
            (tls::Reach::Open, _) => Step::More,
            (tls::Reach::Ended, Phase::Told) => tls_end(None, seen, &mut self.fields, out),
            (tls::Reach::Ended, _) => Step::Done,
        }
    }

    fn http(&mut self, seen: &Seen<'_>, bytes: &[u8], out: &mut impl NoteSink) -> Step {
        let w = &mut FieldWriter::new(&mut self.fields);
        // A head that fills half a buffer is given as far as it goes.
        let long = bytes.len() >= CAPACITY / 2;
        let kind = if http::may_be_response(bytes) {
            match http::response(bytes) {
                http::Head::Whole(r) => report::response(&r, w),
                http::Head::Cut(r) if long && r.status != 0 => report::response(&r, w),
                http::Head::Cut(_) => return Step::More,
                http::Head::Not => return Step::Done,
            }
            NoteKind::HttpResponse
        } else if http::may_be_request(bytes) {
            match http::request(bytes) {
                http::Head::Whole(r) => report::request(&r, w),
                http::Head::Cut(r) if long && !r.method.is_empty() => report::request(&r, w),
                http::Head::Cut(_) => return Step::More,
                http::Head::Not => return Step::Done,
            }
            NoteKind::HttpRequest
        } else {
            return Step::Done;
        };
        note(kind, seen, &self.fields, out);
        Step::Next
    }

    fn ssh(
        &mut self,
        half: &mut Half,
        seen: &Seen<'_>,
        bytes: &[u8],
        out: &mut impl NoteSink,
    ) -> Step {
        let said = ssh::opening(bytes, seen.side == 0);
        // The banner at once, the rest when it is there.
        let news = said.hassh.is_some() || (said.banner.is_some() && half.phase == Phase::Start);
        if news {
            report::ssh(&said, &mut FieldWriter::new(&mut self.fields));
            note(NoteKind::Ssh, seen, &self.fields, out);
            half.phase = Phase::Told;
        }
        if said.done { Step::Done } else { Step::More }
    }

    /// One message behind its length (RFC 1035, section 4.2.2).
    fn dns(&mut self, seen: &Seen<'_>, bytes: &[u8], out: &mut impl NoteSink) -> Step {
        let Some((&len, rest)) = bytes.split_first_chunk::<2>() else { return Step::More };
        let len = usize::from(u16::from_be_bytes(len));
        if !(12..=CAPACITY - 2).contains(&len) {
            return Step::Done;
        }
        let Some(message) = rest.get(..len) else {
            // What cannot be a header is not waited for.
            let hopeless = rest.len() >= 12 && dns::Message::parse(rest).is_none();
            return if hopeless { Step::Done } else { Step::More };
        };
        let Some(message) = dns::Message::parse(message) else { return Step::Done };
        report::dns(App::Dns, &message, &mut FieldWriter::new(&mut self.fields));
        note(NoteKind::Dns, seen, &self.fields, out);
        Step::Read(2 + len)
    }
}

/// What a packet in the middle of a stream begins, if it is something that is read.
fn head(payload: &[u8]) -> Option<App> {
    if payload.len() < 6 {
        None
    } else if tls::may_be(payload) {
        Some(App::Tls)
    } else if ssh::may_be(payload) {
        Some(App::Ssh)
    } else if http::may_be_request(payload) || http::may_be_response(payload) {
        Some(App::Http)
    } else {
        None
    }
}

fn tls_end(
    certificate: Option<&[u8]>,
    seen: &Seen<'_>,
    fields: &mut Vec<u8>,
    out: &mut impl NoteSink,
) -> Step {
    report::certificate(certificate, &mut FieldWriter::new(fields));
    note(NoteKind::TlsEnd, seen, fields, out);
    Step::Done
}
