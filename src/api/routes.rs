//! What there is to ask, and the short answers.

use std::path::Path;
use std::sync::PoisonError;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use actix_web::http::header;
use actix_web::web::{self, Data, ServiceConfig};
use actix_web::{HttpRequest, HttpResponse, Route};
use serde_json::{Value, json};

use super::State;
use super::extract;
use super::flows::{self, Pairs, number};
use super::pages;
use super::problem::Problem;
use crate::control::{Status, metrics};
use crate::journal::catalogue;
use crate::journal::query::text::rfc3339;

/// The control thread speaks every second; one that is silent for so long is in trouble.
const SILENCE: Duration = Duration::from_secs(10);
/// Alerts of one answer, unless more are asked for.
const ALERTS: usize = 100;

macro_rules! routes {
    ($($access:ident $method:ident $path:literal $handler:path;)*) => {
        /// Every path with its method, and whether it is open to all.
        pub(super) const ROUTES: &[(&str, &str, bool)] =
            &[$((stringify!($method), $path, open!($access))),*];

        pub(super) fn configure(config: &mut ServiceConfig) {
            $(config.service(
                web::resource($path)
                    .route(Route::new().method(method!($method)).to($handler))
                    .default_service(web::to(|| async { Err::<String, _>(Problem::not_allowed(stringify!($method))) })),
            );)*
            config.default_service(web::to(nowhere));
        }
    };
}

macro_rules! open {
    (open) => {
        true
    };
    (token) => {
        false
    };
}

macro_rules! method {
    ($method:ident) => {
        actix_web::http::Method::$method
    };
}

routes! {
    open GET "/" pages::index;
    open GET "/app.js" pages::script;
    open GET "/style.css" pages::style;
    open GET "/openapi.json" pages::openapi;
    open GET "/healthz" healthz;
    token GET "/status" status;
    token GET "/metrics" metrics_text;
    token GET "/alerts" alerts;
    token GET "/flows" flows::list;
    token GET "/flows/{flow_id}" flows::one;
    token GET "/flows/{flow_id}/pcap" extract::flow;
    token POST "/extract" extract::post;
    token GET "/extract/{request_id}" extract::facts;
    token GET "/journal" journal;
    token POST "/reload" reload;
}

/// Whether a request to this path needs no token.
pub(super) fn is_open(path: &str) -> bool {
    ROUTES.iter().any(|(_, p, open)| *open && *p == path)
}

async fn nowhere(request: HttpRequest) -> Result<HttpResponse, Problem> {
    Err(Problem::not_found(format!(
        "there is no {}; /openapi.json says what there is",
        request.path()
    )))
}

fn json_bytes(value: &impl serde::Serialize) -> Result<HttpResponse, Problem> {
    Ok(HttpResponse::Ok().json(value))
}

async fn status(state: Data<State>) -> Result<HttpResponse, Problem> {
    json_bytes(&*state.house.status())
}

async fn metrics_text(state: Data<State>) -> HttpResponse {
    let mut text = metrics::text(&state.house.status());
    own_metrics(&state, &mut text);
    HttpResponse::Ok().insert_header((header::CONTENT_TYPE, "text/plain; version=0.0.4")).body(text)
}

/// What the API itself counts.
fn own_metrics(state: &State, out: &mut String) {
    let answers = state.answers.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let answers = answers.into_iter().map(|((path, status), n)| {
        (format!("{{path=\"{}\",status=\"{status}\"}}", metrics::label(&path)), n as f64)
    });
    metrics::metric(out, "api_requests_total", "counter", "Requests by path and answer.", answers);
    let (open, packets, bytes) = state.extractions.counts();
    for (name, kind, help, value) in [
        ("extractions_open", "gauge", "Extractions under way.", open as f64),
        ("extracted_packets_total", "counter", "Packets given out.", packets as f64),
        ("extracted_bytes_total", "counter", "Bytes of them.", bytes as f64),
    ] {
        metrics::metric(out, name, kind, help, [(String::new(), value)]);
    }
}

async fn healthz(state: Data<State>) -> HttpResponse {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    match trouble(&state.house.status(), now) {
        None => HttpResponse::Ok().json(json!({"ready": true})),
        Some(why) => HttpResponse::ServiceUnavailable()
            .insert_header((header::RETRY_AFTER, 1))
            .json(json!({"ready": false, "error": why})),
    }
}

/// Why the sensor is not doing its work.
fn trouble(status: &Status, now: Duration) -> Option<String> {
    if status.lcores.is_empty() {
        return Some("starting".into());
    }
    let silent = now.saturating_sub(Duration::from_nanos(status.now_ns));
    if silent > SILENCE {
        return Some(format!("no report of the sensor for {} s", silent.as_secs()));
    }
    if let Some(dead) = status.lcores.iter().find(|l| !l.alive) {
        return Some(format!("lcore {} ({}) has ended", dead.id, dead.role.name()));
    }
    let problem = status.export.as_ref().and_then(|e| e.spool.problem.as_ref());
    problem.map(|why| format!("the spool takes no events: {why}"))
}

async fn alerts(state: Data<State>, pairs: Pairs) -> Result<HttpResponse, Problem> {
    let (mut after, mut limit) = (0, ALERTS);
    for (name, value) in pairs.iter() {
        match name.as_str() {
            "after" => after = number(name, value)?,
            "limit" => limit = number(name, value)?,
            other => return Err(Problem::field(other, "there is no such parameter")),
        }
    }
    json_bytes(&json!({"alerts": state.house.alerts(after, limit)}))
}

async fn reload(state: Data<State>) -> Result<HttpResponse, Problem> {
    json_bytes(&State::answered(state.house.reload()).await?)
}

async fn journal(state: Data<State>) -> Result<HttpResponse, Problem> {
    let journal = state.journal()?;
    let directory = journal.reader.directory().to_owned();
    let listed = web::block(move || segments(&directory)).await;
    let listed = listed.map_err(Problem::internal)?.map_err(|e| {
        Problem::internal(format!(
            "journal directory {}: {e}",
            journal.reader.directory().display()
        ))
    })?;
    json_bytes(&json!({
        "directory": journal.reader.directory(),
        "status": journal.monitor.status(),
        "segments": listed,
    }))
}

fn segments(directory: &Path) -> std::io::Result<Vec<Value>> {
    let all = catalogue::list(directory)?;
    Ok(all
        .iter()
        .map(|s| {
            json!({
                "number": s.number,
                "file": s.path.file_name().and_then(|n| n.to_str()),
                "start": rfc3339(s.first_ns),
                "bytes": s.len,
                "bytes_on_disk": s.bytes_on_disk(),
                "indexed": s.index_len.is_some(),
                "torn": s.has_torn,
            })
        })
        .collect())
}
