//! Sizes and times as people write them.

use std::net::SocketAddr;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

/// `500MB`, `2GiB`, `65536`: bytes. KB, MB, GB, TB count in thousands; KiB and so on in 1024.
pub(super) fn bytes(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor: u64 = match unit.trim() {
        "" | "B" => 1,
        "K" | "KB" | "kB" => 1_000,
        "M" | "MB" => 1_000_000,
        "G" | "GB" => 1_000_000_000,
        "T" | "TB" => 1_000_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        "TiB" => 1 << 40,
        _ => return Err("a size is a number of bytes, or like 500MB or 2GiB".into()),
    };
    let number: u64 = number.parse().map_err(|_| "a size starts with a number".to_owned())?;
    number.checked_mul(factor).ok_or_else(|| "too large".into())
}

/// Seconds, a fraction allowed, 0 allowed.
pub(super) fn seconds(text: &str) -> Result<Duration, String> {
    let seconds: f64 = text.trim().parse().map_err(|_| "not a number of seconds".to_owned())?;
    in_range(seconds)
}

/// Seconds, more than 0.
pub(super) fn some_seconds(text: &str) -> Result<Duration, String> {
    match seconds(text)? {
        Duration::ZERO => Err("must be more than 0 seconds".into()),
        some => Ok(some),
    }
}

fn in_range(seconds: f64) -> Result<Duration, String> {
    // A year is more than any flow's silence, and nowhere near the end of the clock.
    if (0.0..=31_536_000.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err("must be between 0 and 31536000 seconds (a year)".into())
    }
}

/// `48h`, `90m`, `7d`, `3600s`: a time with its unit, more than nothing.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let second = match unit.trim() {
        "s" => 1.0,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return Err("a time is a number and its unit: s, m, h or d, such as 48h".into()),
    };
    let number: f64 =
        number.trim().parse().map_err(|_| "a time starts with a number".to_owned())?;
    let seconds = number * second;
    // A century is longer than any disk lasts.
    if (1.0..=3_155_760_000.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err("must be between 1s and 36525d".into())
    }
}

/// A part of something, with or without the sign.
pub(super) fn percent(text: &str) -> Result<u8, String> {
    match text.trim().trim_end_matches('%').parse::<u8>() {
        Ok(n) if n < 100 => Ok(n),
        _ => Err("a number from 0 to 99".into()),
    }
}

/// A flow table's size: from one flow to as many as a machine could hold.
pub(super) fn flows(text: &str) -> Result<usize, String> {
    match text.trim().parse::<usize>() {
        Ok(n) if (1..=200_000_000).contains(&n) => Ok(n),
        _ => Err("a number from 1 to 200000000".into()),
    }
}

/// Packets of a flow that are read.
pub(super) fn packets(text: &str) -> Result<u8, String> {
    match text.trim().parse::<u8>() {
        Ok(n) if n <= 100 => Ok(n),
        _ => Err("a number from 0 to 100".into()),
    }
}

/// A value of the file, which may be a number or a string.
#[derive(Deserialize)]
#[serde(untagged)]
enum Value {
    Integer(i64),
    Float(f64),
    Text(String),
}

fn from_value<'de, D: Deserializer<'de>, T>(
    d: D,
    parse: fn(&str) -> Result<T, String>,
) -> Result<Option<T>, D::Error> {
    let text = match Value::deserialize(d)? {
        Value::Integer(n) => n.to_string(),
        Value::Float(n) => n.to_string(),
        Value::Text(t) => t,
    };
    parse(&text).map(Some).map_err(serde::de::Error::custom)
}

pub(super) fn de_bytes<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
    from_value(d, bytes)
}

pub(super) fn de_duration<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
    from_value(d, duration)
}

pub(super) fn de_percent<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u8>, D::Error> {
    from_value(d, percent)
}

pub(super) fn de_seconds<'de, D: Deserializer<'de>>(d: D) -> Result<Option<Duration>, D::Error> {
    from_value(d, seconds)
}

pub(super) fn de_some_seconds<'de, D: Deserializer<'de>>(
    d: D,
) -> Result<Option<Duration>, D::Error> {
    from_value(d, some_seconds)
}

pub(super) fn de_flows<'de, D: Deserializer<'de>>(d: D) -> Result<Option<usize>, D::Error> {
    from_value(d, flows)
}

pub(super) fn de_packets<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u8>, D::Error> {
    from_value(d, packets)
}

pub(super) fn de_listen<'de, D: Deserializer<'de>>(d: D) -> Result<Option<SocketAddr>, D::Error> {
    from_value(d, super::api::listen)
}
