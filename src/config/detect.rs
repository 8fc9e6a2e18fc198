//! The table `[detect]`: hosts to watch.

use std::fmt;

use serde::de::value::{MapAccessDeserializer, SeqAccessDeserializer};
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::ConfigError;
use crate::detect::watch::Watched;
use crate::detect::{
    DEFAULT_LIMIT, Eve, EveStyle, Host, Prefix, Rules, ScanMode, Scope, ScopeError, Subject,
};

/// The most endpoints that a watched host may have tracked; they take about 8 MB a worker.
const MAX_LIMIT: usize = 65_536;
const MAX_WINDOW_S: u64 = 86_400;

/// The table as it is written.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DetectLayer {
    /// `[detect.watch]`, or `[[detect.watch]]` for each of several.
    #[serde(deserialize_with = "one_or_many")]
    pub watch: Vec<WatchLayer>,
}

/// One watched host; gomon's options by their names.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WatchLayer {
    address: String,
    #[serde(default)]
    c2: String,
    #[serde(default)]
    sample_id: String,
    #[serde(default)]
    ignore_dst: Vec<String>,
    #[serde(default)]
    scan_detection_mode: String,
    window: Option<u64>,
    packet_threshold: Option<f64>,
    destination_threshold: Option<f64>,
    port_threshold: Option<f64>,
    max_destinations: Option<usize>,
    #[serde(default)]
    show_idle: bool,
}

fn one_or_many<'de, D: Deserializer<'de>>(d: D) -> Result<Vec<WatchLayer>, D::Error> {
    struct OneOrMany;
    impl<'de> Visitor<'de> for OneOrMany {
        type Value = Vec<WatchLayer>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a table [detect.watch], or several [[detect.watch]]")
        }

        fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
            WatchLayer::deserialize(MapAccessDeserializer::new(map)).map(|one| vec![one])
        }

        fn visit_seq<A: SeqAccess<'de>>(self, seq: A) -> Result<Self::Value, A::Error> {
            Vec::deserialize(SeqAccessDeserializer::new(seq))
        }
    }
    d.deserialize_any(OneOrMany)
}

impl DetectLayer {
    /// The hosts to watch, checked.
    pub(super) fn watched(self, sensor: &str) -> Result<Vec<Watched>, ConfigError> {
        let mut out: Vec<Watched> = Vec::new();
        for layer in self.watch {
            let address = layer.address.clone();
            let bad = |why: String| ConfigError::Bad(format!("[detect.watch] {address:?}: {why}"));
            let watched = layer.check(sensor).map_err(bad)?;
            if out.iter().any(|w| w.scope.host == watched.scope.host) {
                return Err(bad("it is listed twice".into()));
            }
            out.push(watched);
        }
        Ok(out)
    }
}

impl WatchLayer {
    fn check(self, sensor: &str) -> Result<Watched, String> {
        let named = |key: &'static str| move |e: ScopeError| format!("{key}: {e}");
        let host: Host = self.address.parse().map_err(named("address"))?;
        let mut left_out = Vec::new();
        for text in &self.ignore_dst {
            left_out.push(text.parse::<Prefix>().map_err(named("ignore_dst"))?);
        }
        if !self.c2.is_empty() {
            left_out.push(self.c2.parse::<Host>().map_err(named("c2"))?.into());
        }
        let mode = ScanMode::from_name(&self.scan_detection_mode).ok_or_else(|| {
            format!(
                "scan_detection_mode {:?}: one of {}",
                self.scan_detection_mode,
                ScanMode::ALL.map(ScanMode::name).join(", ")
            )
        })?;
        let rate = |key: &str, value: f64, lowest: f64| match value {
            v if v.is_finite() && v >= lowest => Ok(v),
            v => Err(format!("{key} = {v}: a number of packets, hosts or ports a second")),
        };
        let port_threshold =
            self.port_threshold.map(|t| rate("port_threshold", t, 0.0)).transpose()?;
        let rules = Rules {
            window_s: within("window", self.window.unwrap_or(30), MAX_WINDOW_S)?,
            packet_threshold: rate(
                "packet_threshold",
                self.packet_threshold.unwrap_or(5.0),
                f64::MIN_POSITIVE,
            )?,
            destination_threshold: rate(
                "destination_threshold",
                self.destination_threshold.unwrap_or(10.0),
                0.0,
            )?,
            port_threshold,
            mode,
            c2_known: !self.c2.is_empty(),
        };
        let limit = self.max_destinations.unwrap_or(DEFAULT_LIMIT) as u64;
        let subject = Subject {
            src_ip: host.to_string(),
            c2_ip: self.c2,
            sample_id: self.sample_id,
            sensor: sensor.into(),
        };
        Ok(Watched {
            scope: Scope::new(host, left_out),
            eve: Eve { style: EveStyle::Suricata, subject, rules },
            limit: within("max_destinations", limit, MAX_LIMIT as u64)? as usize,
            show_idle: self.show_idle,
        })
    }
}

fn within(key: &str, value: u64, highest: u64) -> Result<u64, String> {
    match value {
        v if (1..=highest).contains(&v) => Ok(v),
        v => Err(format!("{key} = {v}: a number from 1 to {highest}")),
    }
}
