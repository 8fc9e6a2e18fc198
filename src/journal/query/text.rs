//! Parts of a question as people write them.

use jiff::Timestamp;
use jiff::civil::DateTime;

use super::Identity;
use crate::event::parse_community_id;

const NS: u64 = 1_000_000_000;

/// `2026-01-02T03:04:05.678Z` (RFC 3339), the same without zone for UTC or as a date alone, seconds
/// since 1970 with or without a fraction, or so long before now: `-90s`, `-15m`, `-2h`, `-3d`.
/// Nanoseconds since 1970.
pub fn moment(text: &str) -> Result<u64, String> {
    let now = Timestamp::now().as_nanosecond();
    at(text.trim(), u64::try_from(now).unwrap_or(0)).ok_or_else(|| {
        "a moment is like 2026-01-02T03:04:05Z, 2026-01-02, 1767323045.5 or -15m (before now)"
            .to_owned()
    })
}

fn at(text: &str, now_ns: u64) -> Option<u64> {
    if text == "now" {
        return Some(now_ns);
    }
    if let Some(ago) = text.strip_prefix('-') {
        return now_ns.checked_sub(span(ago)?);
    }
    if text.bytes().all(|b| b.is_ascii_digit() || b == b'.') {
        return seconds(text);
    }
    let ns = match text.parse::<Timestamp>() {
        Ok(t) => t.as_nanosecond(),
        Err(_) => {
            let civil: DateTime = text.parse().ok()?;
            civil.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp().as_nanosecond()
        }
    };
    u64::try_from(ns).ok()
}

/// Seconds since 1970, exact to the nanosecond.
fn seconds(text: &str) -> Option<u64> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.len() > 9 || fraction.contains('.') || whole.is_empty() {
        return None;
    }
    let fraction: u64 = format!("{fraction:0<9}").parse().ok()?;
    whole.parse::<u64>().ok()?.checked_mul(NS)?.checked_add(fraction)
}

/// A number with a unit: `90s`, `15m`, `2h`, `3d`; nanoseconds.
fn span(text: &str) -> Option<u64> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let unit = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    seconds(number)?.checked_mul(unit)
}

/// A moment as RFC 3339, UTC, to the second.
pub fn show(ns: u64) -> String {
    let time = Timestamp::from_nanosecond(i128::from(ns / NS * NS));
    time.map_or_else(|_| ns.to_string(), |t| t.to_string())
}

/// A moment as RFC 3339, UTC, exact.
pub fn rfc3339(ns: u64) -> String {
    Timestamp::from_nanosecond(i128::from(ns)).map_or_else(|_| ns.to_string(), |t| t.to_string())
}

/// An IP protocol by its name or number.
pub fn protocol(text: &str) -> Result<u8, String> {
    Ok(match text.to_ascii_lowercase().as_str() {
        "icmp" => 1,
        "igmp" => 2,
        "tcp" => 6,
        "udp" => 17,
        "gre" => 47,
        "esp" => 50,
        "icmp6" | "icmpv6" => 58,
        "ospf" => 89,
        "sctp" => 132,
        number => number
            .parse()
            .map_err(|_| "tcp, udp, icmp, icmp6, sctp, gre, esp, or a number to 255".to_owned())?,
    })
}

/// A flow by the `community_id` of its events.
pub fn community(text: &str) -> Result<Identity, String> {
    parse_community_id(text)
        .map(Identity::Community)
        .ok_or_else(|| "like 1:0obY5qdXvEqAjcWj+38nMbjXg2c= (version 1)".to_owned())
}

/// A flow by the `flow_id` of its events.
pub fn flow_id(text: &str) -> Result<Identity, String> {
    let hex = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
    let id = hex.then(|| u64::from_str_radix(text, 16).ok()).flatten();
    id.map(Identity::FlowId).ok_or_else(|| "16 hexadecimal digits".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments() {
        let now = 1_800_000_000 * NS;
        for (text, want) in [
            ("1970-01-01T00:00:01Z", Some(NS)),
            ("1970-01-01T01:00:00.5+01:00", Some(NS / 2)),
            ("1970-01-02", Some(86_400 * NS)),
            ("1970-01-01 00:00:02", Some(2 * NS)),
            ("1767323045.123456789", Some(1_767_323_045_123_456_789)),
            ("3", Some(3 * NS)),
            ("-15m", Some(now - 900 * NS)),
            ("-1.5h", Some(now - 5400 * NS)),
            ("now", Some(now)),
            ("yesterday", None),
            ("", None),
            ("-", None),
            ("1.2.3", None),
            ("-5y", None),
            ("99999999999999999999", None),
        ] {
            assert_eq!(at(text, now), want, "{text}");
        }
        assert_eq!(show(1_767_323_045_999_999_999), "2026-01-02T03:04:05Z");
    }
}
