//! Who asks, and whether they may.
//!
//! The control socket's file admits its users. Everyone else shows the token, whose digest is compared
//! in constant time. An address that shows wrong ones [`ATTEMPTS`] times is not listened to for the rest
//! of its [`WINDOW`]; [`ADDRESSES`] of them are remembered.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::StatusCode;
use actix_web::http::header::{AUTHORIZATION, HeaderName, HeaderValue, WWW_AUTHENTICATE};
use actix_web::middleware::Next;
use actix_web::web::Data;
use actix_web::{Error, HttpMessage, HttpRequest, ResponseError};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::State;
use super::problem::Problem;
use super::routes;

/// Characters that a token must have.
pub(super) const TOKEN: usize = 16;
const ATTEMPTS: u32 = 10;
const WINDOW: Duration = Duration::from_secs(60);
const ADDRESSES: usize = 4096;

/// What every answer says to a browser.
const HEADERS: [(&str, &str); 4] = [
    ("cache-control", "no-store"),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
    (
        "content-security-policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; \
         base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
];

/// The other end of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Caller {
    /// By the control socket, with the user's number.
    Local(Option<u32>),
    Remote(SocketAddr),
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Local(Some(uid)) => write!(f, "uid {uid}"),
            Self::Local(None) => f.write_str("the control socket"),
            Self::Remote(address) => write!(f, "{address}"),
        }
    }
}

/// Who asks, where that is known.
pub(super) fn caller(request: &HttpRequest) -> Option<Caller> {
    request.conn_data::<Caller>().copied()
}

/// A request's own name.
#[derive(Clone)]
struct RequestId(String);

pub(super) fn request_id(request: &HttpRequest) -> String {
    request.extensions().get::<RequestId>().map(|id| id.0.clone()).unwrap_or_default()
}

/// Wrong tokens of one address.
struct Failed {
    times: u32,
    since: Instant,
}

/// The door's keeper.
pub(super) struct Gate {
    /// The token's digest; nobody from outside comes in without one.
    token: Option<[u8; 32]>,
    failed: Mutex<HashMap<IpAddr, Failed>>,
    random: RandomState,
    requests: AtomicU64,
}

impl Gate {
    pub(super) fn new(token: Option<&str>) -> Self {
        Self {
            token: token.map(|t| Sha256::digest(t).into()),
            failed: Mutex::default(),
            random: RandomState::new(),
            requests: AtomicU64::new(0),
        }
    }

    /// A name that no other request of this run has, and that cannot be guessed.
    fn name(&self) -> String {
        let n = self.requests.fetch_add(1, Ordering::Relaxed);
        format!("{:016x}", self.random.hash_one(n))
    }

    fn admit(&self, address: SocketAddr, shown: Option<&HeaderValue>) -> Result<(), Problem> {
        let from = network(address.ip());
        let now = Instant::now();
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(f) = failed.get(&from)
            && f.times >= ATTEMPTS
            && now < f.since + WINDOW
        {
            let wait = (f.since + WINDOW - now).as_secs() + 1;
            let why = "too many wrong tokens from this address";
            return Err(Problem::new(StatusCode::TOO_MANY_REQUESTS, why).after(wait));
        }
        let token = shown.and_then(|v| v.to_str().ok()).and_then(bearer);
        let digest: [u8; 32] = Sha256::digest(token.unwrap_or_default()).into();
        if self.token.is_some_and(|own| bool::from(own.ct_eq(&digest))) {
            return Ok(());
        }
        let why = if token.is_some() { "a wrong token" } else { "no bearer token" };
        tracing::warn!("API: {why} from {address}");
        if token.is_some() {
            remember(&mut failed, from, now);
        }
        Err(Problem::new(StatusCode::UNAUTHORIZED, format!("{why}: Authorization: Bearer TOKEN")))
    }
}

/// What stands for an address: of IPv6 the network that one owner has whole.
fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(ip) => IpAddr::V6((ip.to_bits() >> 64 << 64).into()),
        v4 => v4,
    }
}

fn bearer(header: &str) -> Option<&str> {
    let (scheme, token) = header.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
}

fn remember(failed: &mut HashMap<IpAddr, Failed>, from: IpAddr, now: Instant) {
    if failed.len() >= ADDRESSES && !failed.contains_key(&from) {
        failed.retain(|_, f| now < f.since + WINDOW);
        if failed.len() >= ADDRESSES
            && let Some(oldest) = failed.iter().min_by_key(|(_, f)| f.since).map(|(a, _)| *a)
        {
            failed.remove(&oldest);
        }
    }
    let entry = failed.entry(from).or_insert(Failed { times: 0, since: now });
    if now >= entry.since + WINDOW {
        *entry = Failed { times: 0, since: now };
    }
    entry.times += 1;
    if entry.times == ATTEMPTS {
        tracing::warn!("API: {from} is not listened to for {} s", WINDOW.as_secs());
    }
}

/// Lets a request through, or not.
pub(super) async fn pass(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let Some(state) = request.app_data::<Data<State>>().cloned() else {
        return Err(Problem::internal("no state").into());
    };
    let id = state.gate.name();
    request.extensions_mut().insert(RequestId(id.clone()));
    let admitted = match caller(request.request()) {
        Some(Caller::Local(_)) => Ok(()),
        Some(Caller::Remote(_)) if routes::is_open(request.path()) => Ok(()),
        Some(Caller::Remote(a)) => state.gate.admit(a, request.headers().get(AUTHORIZATION)),
        None => Err(Problem::internal("a connection of unknown origin")),
    };
    let mut answer = match admitted {
        Ok(()) => next.call(request).await?.map_into_boxed_body(),
        Err(problem) => {
            let (request, _) = request.into_parts();
            ServiceResponse::new(request, problem.error_response())
        }
    };
    let status = answer.status();
    state.count(answer.request().match_pattern(), status.as_u16());
    let headers = answer.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    if status == StatusCode::UNAUTHORIZED {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if let Ok(value) = HeaderValue::from_str(&id) {
        headers.insert(HeaderName::from_static("x-request-id"), value);
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(text: &str) -> SocketAddr {
        SocketAddr::new(text.parse().unwrap(), 1)
    }

    fn status(gate: &Gate, address: &str, shown: &str) -> u16 {
        let value = HeaderValue::from_str(shown).unwrap();
        match gate.admit(from(address), Some(&value)) {
            Ok(()) => 200,
            Err(problem) => problem.status_code().as_u16(),
        }
    }

    #[test]
    fn a_wrong_token_is_refused_and_then_not_listened_to() {
        let gate = Gate::new(Some("0123456789abcdef"));
        let good = "bearer 0123456789abcdef";
        assert_eq!(status(&gate, "192.0.2.1", good), 200);
        assert_eq!(status(&gate, "192.0.2.1", "0123456789abcdef"), 401);
        for bad in ["Bearer 0123456789abcdeg", "Bearer ", "Bearer 0123456789abcdef0"] {
            assert_eq!(status(&gate, "192.0.2.1", bad), 401, "{bad}");
        }
        for _ in 3..ATTEMPTS {
            assert_eq!(status(&gate, "192.0.2.1", "Bearer no"), 401);
        }
        assert_eq!(status(&gate, "192.0.2.1", good), 429);
        assert_eq!(status(&gate, "::ffff:192.0.2.1", good), 429);
        assert_eq!(status(&gate, "192.0.2.2", good), 200);
        let nobody = Gate::new(None);
        assert_eq!(status(&nobody, "192.0.2.1", "Bearer "), 401);
    }

    #[test]
    fn what_is_remembered_of_wrong_tokens_is_bounded() {
        let gate = Gate::new(Some("0123456789abcdef"));
        for n in 0..ADDRESSES as u128 + 100 {
            let address = IpAddr::V6((n << 64 | 7).into());
            let value = HeaderValue::from_static("Bearer no");
            assert!(gate.admit(SocketAddr::new(address, 1), Some(&value)).is_err());
        }
        assert_eq!(gate.failed.lock().unwrap().len(), ADDRESSES);
        assert_eq!(
            network("2001:db8::1".parse().unwrap()),
            network("2001:db8::2".parse().unwrap())
        );
    }
}
