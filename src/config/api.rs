//! The API: who may ask the sensor, and for how much.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::Deserialize;

use super::{ConfigError, Layer};
use crate::api::{self, Limits, Settings, SocketPath, TlsFiles, Token};
use crate::secret;

/// The table `[api]` as it is written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ApiLayer {
    tls_cert: Option<PathBuf>,
    tls_key: Option<PathBuf>,
    max_open: Option<usize>,
    max_reading: Option<usize>,
    max_bytes: Option<u64>,
    max_seconds: Option<u64>,
    patience: Option<u64>,
}

/// An address with or without a port.
pub(super) fn listen(text: &str) -> Result<SocketAddr, String> {
    let text = text.trim();
    let bare = text.trim_start_matches('[').trim_end_matches(']');
    let address = bare.parse::<IpAddr>().map(|ip| SocketAddr::new(ip, api::PORT));
    address.or_else(|_| text.parse()).map_err(|_| {
        "an address of this machine, with or without a port: 192.0.2.1, 192.0.2.1:8080, [::1]:8080"
            .to_owned()
    })
}

/// What to listen on, of the settings of all layers.
pub(super) fn settings(l: &Layer, is_file: bool) -> Result<Settings, ConfigError> {
    let bad = |text: String| Err(ConfigError::Bad(text));
    let socket = match &l.control_socket {
        Some(path) => Some(SocketPath { path: path.clone(), is_wanted: true }),
        // A file being read is over before anybody asks.
        None if is_file => None,
        None => Some(SocketPath { path: api::CONTROL_SOCKET.into(), is_wanted: false }),
    };
    let token = secret::read("MALAKO_API_TOKEN", "api-token").map_err(ConfigError::Bad)?;
    let token = token.map(Token::new).transpose().map_err(ConfigError::Bad)?;
    let table = &l.api;
    let tls = match (&table.tls_cert, &table.tls_key) {
        (Some(cert), Some(key)) => Some(TlsFiles { cert: cert.clone(), key: key.clone() }),
        (None, None) => None,
        _ => return bad("[api] tls_cert and tls_key: one does not go without the other".into()),
    };
    let usual = Limits::default();
    let limits = Limits {
        open: table.max_open.unwrap_or(usual.open),
        reading: table.max_reading.unwrap_or(usual.reading),
        bytes: table.max_bytes.filter(|n| *n > 0),
        time: table.max_seconds.map_or(usual.time, Duration::from_secs),
    };
    let patience = table.patience.map_or(api::PATIENCE, Duration::from_secs);
    for (name, is_zero) in [
        ("max_open", limits.open == 0),
        ("max_reading", limits.reading == 0),
        ("max_seconds", limits.time.is_zero()),
        ("patience", patience.is_zero()),
    ] {
        if is_zero {
            return bad(format!("[api] {name}: at least 1"));
        }
    }
    // The same configuration serves a sensor that runs beside a file being read.
    let listen = match l.api_listen {
        None if is_file => None,
        given => Some(given.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], api::PORT)))),
    };
    let is_wanted = l.api_listen.is_some();
    Ok(Settings {
        socket,
        listen,
        is_wanted,
        token,
        tls,
        limits,
        patience,
        idle_timeout: Duration::ZERO,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_to_listen_on() {
        for (text, want) in [
            ("192.0.2.1", Some("192.0.2.1:8080")),
            ("192.0.2.1:443", Some("192.0.2.1:443")),
            ("::1", Some("[::1]:8080")),
            ("[::1]", Some("[::1]:8080")),
            ("[2001:db8::1]:80", Some("[2001:db8::1]:80")),
            ("0.0.0.0", Some("0.0.0.0:8080")),
            ("", None),
            ("8080", None),
            (":8080", None),
            ("attic:8080", None),
        ] {
            assert_eq!(listen(text).ok(), want.map(|w| w.parse().unwrap()), "{text}");
        }
    }
}
