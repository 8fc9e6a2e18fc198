//! What a DNS answer gave to whom: the name asked for is the name of every address that its aliases
//! lead to. mDNS answers without a question; there the owner is the name.

use std::net::IpAddr;

use arrayvec::ArrayVec;

use super::dns;
use crate::event::{Answer, App, Note, Tag, fields, number};
use crate::packet::Addr;

/// Aliases followed in one answer.
const ALIASES: usize = 16;

/// An answer without an error, from the side that was asked.
#[derive(Debug)]
pub(super) struct Answered<'a> {
    bytes: &'a [u8],
    /// The name asked for; `None` for what is told to all, as by mDNS.
    asked: Option<&'a [u8]>,
    reached: ArrayVec<&'a [u8], ALIASES>,
    /// Who asked; `None` where all were told.
    pub(super) asker: Option<IpAddr>,
}

impl<'a> Answered<'a> {
    /// `None` if the note is no such answer.
    pub(super) fn of(note: &Note, bytes: &'a [u8]) -> Option<Self> {
        let (mut flags, mut app) = (0, None);
        let mut asked: Option<&[u8]> = None;
        let mut reached: ArrayVec<&[u8], ALIASES> = ArrayVec::new();
        for (tag, value) in fields(bytes) {
            match tag {
                Tag::App => app = value.first().and_then(|&n| App::of(n)),
                Tag::DnsFlags => flags = number(value),
                Tag::Query if asked.is_none() => asked = value.get(2..),
                Tag::Answer => {
                    let Some(answer) = Answer::read(value) else { continue };
                    let alias = matches!(answer.kind, dns::kind::CNAME | dns::kind::DNAME);
                    let here = asked == Some(answer.owner) || reached.contains(&answer.owner);
                    if alias && here {
                        let _ = reached.try_push(answer.text);
                    }
                }
                _ => {}
            }
        }
        let told_to_all = app == Some(App::Mdns);
        let good = flags & 0x8000 != 0 && flags & 15 == 0;
        if !good || (note.side == 0 && !told_to_all) || matches!(app, Some(App::Nbns)) {
            return None;
        }
        let orig: Addr = if note.orig_is_a { note.key.a } else { note.key.b };
        let asker = (!told_to_all).then(|| orig.ip(note.key.is_v6()));
        let asked = asked.filter(|_| !told_to_all);
        Some(Self { bytes, asked, reached, asker })
    }

    /// Name, TTL and address of each address.
    pub(super) fn addresses(&self) -> impl Iterator<Item = (&'a [u8], u32, IpAddr)> {
        fields(self.bytes).filter(|(tag, _)| *tag == Tag::Address).filter_map(|(_, value)| {
            let (ttl, owner, address) = address(value)?;
            let name = match self.asked {
                Some(asked) if owner == asked || self.reached.contains(&owner) => asked,
                Some(_) => return None,
                None => owner,
            };
            Some((name, ttl, address))
        })
    }
}

/// TTL, owner and address of [`Tag::Address`].
fn address(value: &[u8]) -> Option<(u32, &[u8], IpAddr)> {
    let (&[t0, t1, t2, t3, l0, l1], rest) = value.split_first_chunk()?;
    let (owner, ip) = rest.split_at_checked(usize::from(u16::from_be_bytes([l0, l1])))?;
    let ip = match (<[u8; 4]>::try_from(ip), <[u8; 16]>::try_from(ip)) {
        (Ok(v4), _) => IpAddr::from(v4),
        (_, Ok(v6)) => IpAddr::from(v6),
        _ => return None,
    };
    Some((u32::from_be_bytes([t0, t1, t2, t3]), owner, ip))
}
