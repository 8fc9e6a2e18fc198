//! Google SecOps: raw logs or UDM events by the Chronicle API, or raw logs by the older ingestion API.
//!
//! Neither API takes an id from the sender; the service drops batches that it has seen by their
//! content, so a repeat has to be the same bytes. Bodies are made from the events and the time their
//! batch was formed, and from nothing else.
//!
//! Sources: Chronicle API `logs.import`, `events.import`; Ingestion API
//! `unstructuredlogentries.batchCreate`; burst limits and retries in the SecOps documentation.

mod auth;
mod body;
mod udm;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, LOCATION, RETRY_AFTER};
use reqwest::{Client, Response, StatusCode, Url};
use serde_json::Value;

use super::settings::{Api, SecopsSettings};
use super::{Exporter, Failure, Frozen, Make, Outgoing, Sending, credential_path};
use auth::Auth;
use body::Form;

const LOG_TYPE: &str = "MALAKOCUT_NETWORK_CUSTOM";
const CONNECT: Duration = Duration::from_secs(10);
const IDLE: Duration = Duration::from_secs(60);
/// After 429 it is never tried sooner: the limit is over minutes.
const AFTER_429: Duration = Duration::from_secs(5);
/// Of an answer, no more is read.
const ANSWER: usize = 64 << 10;

/// One instance of SecOps.
struct Secops {
    client: Client,
    auth: Auth,
    url: Url,
    /// Where a GET shows whether the log type is there.
    check: Option<Url>,
    form: Form,
    max_bytes: usize,
    after_429: Duration,
    /// The interface that requests leave by, if one is named.
    interface: Option<String>,
}

/// Checks the settings.
pub(super) fn prepare(settings: &SecopsSettings) -> Result<Make, String> {
    let s = settings.clone();
    let path = s
        .credentials
        .clone()
        .or_else(|| credential_path("google-service-account"))
        .ok_or("set GOOGLE_APPLICATION_CREDENTIALS to a service account's key file")?;
    let key = auth::read_key(&path)?;
    let customer = s.customer_id.clone().unwrap_or_default();
    if customer.is_empty() && (s.url.is_none() || s.api == Api::Legacy) {
        return Err("set CHRONICLE_CUSTOMER_ID (or customer_id) to the instance's UUID".into());
    }
    let log_type = s.log_type.clone().unwrap_or_else(|| LOG_TYPE.into());
    if !log_type.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') || log_type.is_empty() {
        return Err(format!("log_type {log_type}: capital letters, digits and _"));
    }
    let url = address(&s, &customer, &log_type)?;
    let check = (s.api == Api::Chronicle)
        .then(|| url.as_str().strip_suffix("/logs:import").and_then(|u| Url::parse(u).ok()))
        .flatten();
    let max_bytes = s.max_bytes.unwrap_or(match s.api {
        Api::Legacy => 950_000,
        Api::Chronicle | Api::Udm => 3_900_000,
    });
    let form = Form::new(&s, customer, log_type);
    if max_bytes < form.smallest() {
        return Err(format!("max_bytes {max_bytes}: at least {}", form.smallest()));
    }
    let proxy = match &s.proxy {
        Some(proxy) => Some(Url::parse(proxy).map_err(|e| format!("proxy: {e}"))?),
        None => None,
    };
    let after_429 = AFTER_429.min(s.delivery.retry_longest);
    Ok(Box::new(move || {
        Box::pin(async move {
            let timeout = s.delivery.timeout;
            let client = client(timeout, s.interface.as_deref(), proxy.as_ref())?;
            let interface = s.interface.as_deref();
            let auth = Auth::new(key, s.api, timeout, interface, proxy.as_ref()).await?;
            let interface = s.interface;
            let secops = Secops { client, auth, url, check, form, max_bytes, after_429, interface };
            Ok(Arc::new(secops) as Arc<dyn Exporter>)
        })
    }))
}

/// Where batches go, if the settings say so.
pub(super) fn ingestion_url(s: &SecopsSettings) -> Option<String> {
    let customer = s.customer_id.as_deref().unwrap_or_default();
    let log_type = s.log_type.as_deref().unwrap_or(LOG_TYPE);
    address(s, customer, log_type).ok().map(String::from)
}

/// Where batches go.
fn address(s: &SecopsSettings, customer: &str, log_type: &str) -> Result<Url, String> {
    let region = s.region.as_deref().unwrap_or("us");
    let version = s.version.as_deref().unwrap_or("v1");
    let text = match (&s.url, s.api) {
        (Some(url), _) => url.clone(),
        (None, Api::Legacy) => {
            let prefix = match region {
                "us" => String::new(),
                "eu" => "europe-".into(),
                other => format!("{other}-"),
            };
            format!(
                "https://{prefix}malachiteingestion-pa.googleapis.com/v2/\
                 unstructuredlogentries:batchCreate"
            )
        }
        (None, api) => {
            let project = s.project.as_deref().ok_or(
                "set CHRONICLE_PROJECT (or project) to the Google Cloud project of the instance",
            )?;
            let rest = match api {
                Api::Udm => "events:import".to_owned(),
                _ => format!("logTypes/{log_type}/logs:import"),
            };
            format!(
                "https://{region}-chronicle.googleapis.com/{version}/projects/{project}/locations/\
                 {region}/instances/{customer}/{rest}"
            )
        }
    };
    let url = Url::parse(&text).map_err(|e| format!("url {text}: {e}"))?;
    // A token is not sent in the clear, other than to this machine.
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let here = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    if url.scheme() != "https" && !(url.scheme() == "http" && here) {
        return Err(format!("url {text}: https is needed"));
    }
    Ok(url)
}

fn client(
    timeout: Duration,
    interface: Option<&str>,
    proxy: Option<&Url>,
) -> Result<Client, String> {
    // Another part may have installed the same one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = Client::builder()
        .connect_timeout(CONNECT.min(timeout))
        .timeout(timeout)
        .pool_idle_timeout(IDLE)
        // Following one would turn the POST into a GET, whose 200 means nothing.
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("malakocut/", env!("CARGO_PKG_VERSION")))
        .no_proxy();
    if let Some(name) = interface {
        builder = builder.interface(name);
    }
    if let Some(proxy) = proxy {
        let proxy = reqwest::Proxy::all(proxy.clone()).map_err(|e| format!("proxy: {e}"))?;
        builder = builder.proxy(proxy);
    }
    builder.build().map_err(|e| format!("HTTP client: {}", chain(&e)))
}

impl Exporter for Secops {
    fn cost(&self, event: &Outgoing) -> usize {
        self.form.cost(event)
    }

    fn room(&self) -> usize {
        self.max_bytes.saturating_sub(self.form.envelope())
    }

    fn send<'a>(&'a self, batch: &'a Frozen) -> Sending<'a> {
        Box::pin(async move { self.deliver(batch).await.map_err(|f| self.by_interface(f)) })
    }

    fn test(&self) -> std::pin::Pin<Box<dyn Future<Output = Result<String, String>> + Send + '_>> {
        Box::pin(async move {
            let say = |f: Failure| match self.by_interface(f) {
                Failure::Retry { why, .. } | Failure::Hold { why, .. } => why,
                Failure::TooLarge { why } | Failure::Invalid { why } => why,
            };
            let token = self.auth.token().await.map_err(say)?;
            let Some(check) = &self.check else {
                return Ok(format!("a token was given; events go to {}", self.url));
            };
            let request = self.client.get(check.clone()).header(AUTHORIZATION, bearer(&token));
            let answer = request.send().await.map_err(|e| say(failed(&e)))?;
            if answer.status().is_success() {
                return Ok(format!("a token was given, and the log type is there: {check}"));
            }
            let status = answer.status();
            let said = message(&read(answer).await.unwrap_or_default());
            Err(format!("{check}: {status}{said}{}", advice(status)))
        })
    }
}

impl Secops {
    async fn deliver(&self, batch: &Frozen) -> Result<(), Failure> {
        let body = self.form.body(batch);
        let token = self.auth.token().await?;
        let answer = match self.post(&token, body.clone()).await {
            Ok(answer) if answer.status() == StatusCode::UNAUTHORIZED => {
                let token = self.auth.new_token().await?;
                self.post(&token, body.clone()).await
            }
            other => other,
        };
        let answer = answer.map_err(|e| failed(&e))?;
        self.judge(answer, body.len(), batch.events.len()).await
    }

    /// A failure that may be the interface's says which one it is.
    fn by_interface(&self, failure: Failure) -> Failure {
        match (failure, &self.interface) {
            (Failure::Retry { kind, why, after }, Some(name)) => {
                Failure::Retry { kind, why: format!("by interface {name}: {why}"), after }
            }
            (other, _) => other,
        }
    }

    async fn post(&self, token: &str, body: Vec<u8>) -> Result<Response, reqwest::Error> {
        self.client
            .post(self.url.clone())
            .header(AUTHORIZATION, bearer(token))
            .header(CONTENT_TYPE, "application/json")
            .body(body)
            .send()
            .await
    }

    async fn judge(&self, answer: Response, size: usize, events: usize) -> Result<(), Failure> {
        let status = answer.status();
        let header = |name| answer.headers().get(name).and_then(|v| v.to_str().ok());
        let after = header(RETRY_AFTER).and_then(retry_after);
        let location = header(LOCATION).unwrap_or_default().to_owned();
        let text = read(answer).await.map_err(|e| failed(&e));
        let why = |said: &str| format!("{status}{}{}", message(said), advice(status));
        let hold = |kind, why| Err(Failure::Hold { kind, why });
        match status.as_u16() {
            200..=299 => match text?.trim() {
                "" => Ok(()),
                said if said.starts_with('{') && serde_json::from_str::<Value>(said).is_ok() => {
                    Ok(())
                }
                // A login page or a proxy; the API answers with JSON or nothing.
                _ => Err(Failure::Retry {
                    kind: "odd_answer",
                    why: format!("{status}, but not with the API's answer: is a proxy in between?"),
                    after: None,
                }),
            },
            300..=399 => hold("redirect", format!("{status} to {location}: check url and proxy")),
            400 if size > self.max_bytes / 2 && events > 1 => {
                Err(Failure::TooLarge { why: why(&text.unwrap_or_default()) })
            }
            400 => Err(Failure::Invalid { why: why(&text.unwrap_or_default()) }),
            413 => Err(Failure::TooLarge { why: why(&text.unwrap_or_default()) }),
            408 | 429 | 500..=599 => {
                let floor = (status == StatusCode::TOO_MANY_REQUESTS).then_some(self.after_429);
                let kind = match status.as_u16() {
                    408 => "408",
                    429 => "429",
                    _ => "5xx",
                };
                let why = why(&text.unwrap_or_default());
                Err(Failure::Retry { kind, why, after: after.max(floor) })
            }
            401 => hold("401", why(&text.unwrap_or_default())),
            403 => hold("403", why(&text.unwrap_or_default())),
            404 => hold("404", why(&text.unwrap_or_default())),
            _ => hold("refused", why(&text.unwrap_or_default())),
        }
    }
}

fn bearer(token: &str) -> reqwest::header::HeaderValue {
    let mut value = reqwest::header::HeaderValue::from_str(&format!("Bearer {token}"))
        .unwrap_or_else(|_| reqwest::header::HeaderValue::from_static("Bearer"));
    value.set_sensitive(true);
    value
}

/// What to do about a status.
fn advice(status: StatusCode) -> &'static str {
    match status.as_u16() {
        400 => "; if it is every event: check region, log_type and customer_id",
        401 => "; check the service account's key and this machine's clock",
        403 => "; the service account lacks the right chronicle.logs.import (or events.import)",
        404 => {
            "; check customer_id, project, region and log_type: a custom log type has to be \
                created first"
        }
        407 => "; the proxy wants a login: proxy = \"http://user:password@host:port\"",
        _ => "",
    }
}

/// What the receiver said, cut to a line that can be printed.
fn message(text: &str) -> String {
    let said = serde_json::from_str::<Value>(text)
        .ok()
        .and_then(|v| v.pointer("/error/message").and_then(Value::as_str).map(str::to_owned))
        .unwrap_or_else(|| text.to_owned());
    let line: String =
        said.chars().map(|c| if c.is_control() { ' ' } else { c }).take(200).collect();
    let line = line.trim();
    if line.is_empty() { String::new() } else { format!(": {line}") }
}

async fn read(mut answer: Response) -> Result<String, reqwest::Error> {
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await? {
        bytes.extend_from_slice(&chunk);
        if bytes.len() > ANSWER {
            break;
        }
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Nothing, or not all, of an answer came.
fn failed(e: &reqwest::Error) -> Failure {
    let kind = match () {
        () if e.is_timeout() => "timeout",
        () if e.is_connect() => "connect",
        () => "connection",
    };
    Failure::Retry { kind, why: chain(e), after: None }
}

/// An error with what is behind it.
fn chain(e: &dyn std::error::Error) -> String {
    let mut text = e.to_string();
    let mut source = e.source();
    while let Some(next) = source {
        let more = next.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = next.source();
    }
    text
}

/// Seconds, or a date.
fn retry_after(text: &str) -> Option<Duration> {
    if let Ok(seconds) = text.trim().parse::<u64>() {
        return Some(Duration::from_secs(seconds));
    }
    let at = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text.trim()).ok()?;
    let seconds = at.as_second() - jiff::Timestamp::now().as_second();
    u64::try_from(seconds).ok().map(Duration::from_secs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_by_api_and_region() {
        let at =
            |toml: &str| address(&toml::from_str(toml).unwrap(), "c-1", "LT").map(String::from);
        assert_eq!(
            at("region = 'eu'\nproject = 'p'").unwrap(),
            "https://eu-chronicle.googleapis.com/v1/projects/p/locations/eu/instances/c-1/logTypes/LT/\
             logs:import"
        );
        assert_eq!(
            at("api = 'udm'\nversion = 'v1alpha'\nproject = 'p'").unwrap(),
            "https://us-chronicle.googleapis.com/v1alpha/projects/p/locations/us/instances/c-1/\
             events:import"
        );
        assert_eq!(
            at("api = 'legacy'\nregion = 'eu'").unwrap(),
            "https://europe-malachiteingestion-pa.googleapis.com/v2/unstructuredlogentries:batchCreate"
        );
        assert!(at("").unwrap_err().contains("CHRONICLE_PROJECT"));
        assert!(at("url = 'http://example.com/'").unwrap_err().contains("https"));
        assert!(at("url = 'http://127.0.0.1:1/'").is_ok() && at("url = 'http://[::1]:1/'").is_ok());
    }

    #[test]
    fn retry_after_as_seconds_and_as_a_date() {
        assert_eq!(retry_after("120"), Some(Duration::from_secs(120)));
        let far = retry_after("Tue, 31 Dec 2999 23:59:59 GMT").unwrap();
        assert!(far > Duration::from_secs(1_000_000));
        assert_eq!(retry_after("Sun, 06 Nov 1994 08:49:37 GMT"), None);
        assert_eq!(retry_after("soon"), None);
    }

    #[test]
    fn what_a_receiver_says_is_one_short_line() {
        assert_eq!(message("{\"error\":{\"message\":\"no\\nway\"}}"), ": no way");
        assert_eq!(message("<html>\u{1b}[31m"), ": <html> [31m");
        assert!(message(&"x".repeat(10_000)).len() < 300 && message("").is_empty());
    }
}
