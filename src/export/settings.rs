//! What the `[export]` part of the configuration says.
//!
//! Secrets are not in here: keys and passwords come from files that are named, from systemd
//! credentials, or from the environment.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer};

use crate::event::Expression;

/// Everything under `[export]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    pub spool: SpoolSettings,
    pub file: FileSettings,
    pub secops: SecopsSettings,
    pub nats: NatsSettings,
    pub kafka: KafkaSettings,
}

/// `[export.spool]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SpoolSettings {
    /// Bytes of events kept; the newest are refused and counted beyond that.
    pub max_bytes: u64,
    /// Bytes left free on its disk.
    pub reserve: u64,
}

impl Default for SpoolSettings {
    fn default() -> Self {
        Self { max_bytes: 4_000_000_000, reserve: 64 << 20 }
    }
}

/// `[export.file]`
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FileSettings {
    /// Bytes at which the log begins anew, the old one renamed to `<path>.1`; 0: never.
    pub rotate_size: u64,
    /// Old logs kept.
    pub keep: u32,
    pub fields: Fields,
}

impl Default for FileSettings {
    fn default() -> Self {
        Self { rotate_size: 0, keep: 5, fields: Fields::default() }
    }
}

/// Which events and fields an exporter gets.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fields {
    /// Only events for which this holds.
    pub filter: Option<Expression>,
    /// Of every so many flows one, always the same ones: all deltas of a flow, or none. 0 and 1: all.
    pub sample: u64,
    /// Fields left out.
    pub leave_out: Vec<String>,
    /// Fields replaced by a keyed hash; needs MALAKOCUT_HASH_KEY.
    pub hash: Vec<String>,
}

/// How batches are made and repeated; the same for every engine.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Delivery {
    /// Events in a batch.
    pub events: usize,
    /// Batches under way at once; with 1, order is kept over repeats too.
    pub in_flight: usize,
    /// How long an event waits for its batch to fill.
    #[serde(deserialize_with = "seconds")]
    pub linger: Duration,
    /// An attempt may take this long.
    #[serde(deserialize_with = "seconds")]
    pub timeout: Duration,
    /// The first pause after a failure, and the longest.
    #[serde(deserialize_with = "seconds")]
    pub retry_first: Duration,
    #[serde(deserialize_with = "seconds")]
    pub retry_longest: Duration,
    /// The pause between attempts while the receiver refuses everything.
    #[serde(deserialize_with = "seconds")]
    pub hold: Duration,
}

impl Default for Delivery {
    fn default() -> Self {
        Self {
            events: 100,
            in_flight: 4,
            linger: Duration::from_secs(1),
            timeout: Duration::from_secs(30),
            retry_first: Duration::from_secs(1),
            retry_longest: Duration::from_secs(300),
            hold: Duration::from_secs(60),
        }
    }
}

impl Delivery {
    fn check(&self, name: &str) -> Result<(), String> {
        let at_least = |what: &str, ok: bool, least: &str| {
            ok.then_some(()).ok_or_else(|| format!("[export.{name}] {what}: at least {least}"))
        };
        at_least("delivery.events", self.events > 0, "1")?;
        at_least("delivery.in_flight", self.in_flight > 0, "1")?;
        at_least("delivery.timeout", !self.timeout.is_zero(), "0.001 (seconds)")?;
        at_least("delivery.retry_first", !self.retry_first.is_zero(), "0.001 (seconds)")?;
        at_least("delivery.hold", !self.hold.is_zero(), "0.001 (seconds)")?;
        let ordered = self.retry_longest >= self.retry_first;
        at_least("delivery.retry_longest", ordered, "retry_first")
    }
}

/// Which of Google's interfaces is spoken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Api {
    /// Raw logs by the Chronicle API: `logs:import`.
    #[default]
    Chronicle,
    /// Raw logs by the ingestion API: `unstructuredlogentries:batchCreate`; it ends in July 2027.
    Legacy,
    /// UDM events by the Chronicle API: `events:import`; no parser is needed.
    Udm,
}

/// `[export.secops]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SecopsSettings {
    pub api: Api,
    /// The SecOps instance, a UUID. CHRONICLE_CUSTOMER_ID
    pub customer_id: Option<String>,
    /// The Google Cloud project the instance belongs to. CHRONICLE_PROJECT
    pub project: Option<String>,
    /// `us`, `eu`, `asia-southeast1`, ... CHRONICLE_REGION
    pub region: Option<String>,
    /// Version of the Chronicle API. Default: v1.
    pub version: Option<String>,
    /// Default: MALAKOCUT_NETWORK_CUSTOM. CHRONICLE_LOG_TYPE
    pub log_type: Option<String>,
    /// The whole address, where the one made of the above is not right. CHRONICLE_INGESTION_URL
    pub url: Option<String>,
    /// Service account key file. GOOGLE_APPLICATION_CREDENTIALS, or the systemd credential
    /// `google-service-account`
    pub credentials: Option<PathBuf>,
    pub namespace: Option<String>,
    pub labels: BTreeMap<String, String>,
    /// `projects/.../forwarders/...`
    pub forwarder: Option<String>,
    /// Largest body in bytes. Default: 3900000, and 950000 for the legacy API.
    pub max_bytes: Option<usize>,
    /// Network interface that requests leave by.
    pub interface: Option<String>,
    /// `http://host:port`; HTTPS_PROXY otherwise.
    pub proxy: Option<String>,
    pub delivery: Delivery,
    pub fields: Fields,
}

/// `[export.nats]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NatsSettings {
    /// `nats://host:4222` or `tls://host:4222`; several are one cluster.
    pub servers: Vec<String>,
    /// Default: ndr.flow.SENSOR. A JetStream stream has to take it.
    pub subject: Option<String>,
    /// File of NATS credentials (`.creds`).
    pub credentials: Option<PathBuf>,
    /// Its password is MALAKOCUT_NATS_PASSWORD, or the systemd credential `nats-password`.
    pub user: Option<String>,
    /// Certificates of the authority that signed the servers'.
    pub ca: Option<PathBuf>,
    pub delivery: Delivery,
    pub fields: Fields,
}

/// `[export.kafka]`
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct KafkaSettings {
    /// `host:9092`
    pub brokers: Vec<String>,
    /// Default: malakocut-flows.
    pub topic: Option<String>,
    /// Field whose value keys the messages; flows with the same key keep their order. Default:
    /// flow_id.
    pub key: Option<String>,
    /// librdkafka properties, such as `security.protocol = "sasl_ssl"`. The password is
    /// MALAKOCUT_KAFKA_PASSWORD, or the systemd credential `kafka-password`.
    pub properties: BTreeMap<String, String>,
    pub delivery: Delivery,
    pub fields: Fields,
}

impl Settings {
    /// Fills in what the environment says, which beats the file; `lookup` gives a variable.
    pub fn with_environment(mut self, lookup: impl Fn(&str) -> Option<String>) -> Self {
        let get = |name: &str| lookup(name).filter(|v| !v.is_empty());
        let s = &mut self.secops;
        for (name, field) in [
            ("CHRONICLE_CUSTOMER_ID", &mut s.customer_id),
            ("CHRONICLE_PROJECT", &mut s.project),
            ("CHRONICLE_REGION", &mut s.region),
            ("CHRONICLE_LOG_TYPE", &mut s.log_type),
            ("CHRONICLE_INGESTION_URL", &mut s.url),
        ] {
            if let Some(value) = get(name) {
                *field = Some(value);
            }
        }
        if let Some(path) = get("GOOGLE_APPLICATION_CREDENTIALS") {
            s.credentials = Some(path.into());
        }
        if s.proxy.is_none() {
            s.proxy = get("HTTPS_PROXY").or_else(|| get("https_proxy"));
        }
        self
    }

    /// Values that no engine can use.
    ///
    /// # Errors
    /// Names the key and what it may be.
    pub fn check(&self) -> Result<(), String> {
        self.secops.delivery.check("secops")?;
        self.nats.delivery.check("nats")?;
        self.kafka.delivery.check("kafka")?;
        if self.spool.max_bytes < 1 << 20 {
            return Err("[export.spool] max_bytes: at least 1048576".into());
        }
        Ok(())
    }
}

fn seconds<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
    let seconds = f64::deserialize(d)?;
    // A year: longer than anything waits here.
    if (0.0..=31_536_000.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err(serde::de::Error::custom("a number of seconds from 0 to 31536000"))
    }
}
