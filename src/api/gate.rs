//! Who asks, and whether they may.

use std::any::Any;
use std::fmt;
use std::net::SocketAddr;

use actix_web::Error;
use actix_web::body::MessageBody;
use actix_web::dev::{Extensions, ServiceRequest, ServiceResponse};
use actix_web::http::header::{HeaderName, HeaderValue};
use actix_web::middleware::Next;
use actix_web::rt::net::UnixStream;

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

/// Notes who connected.
pub(super) fn meet(io: &dyn Any, extensions: &mut Extensions) {
    if let Some(stream) = io.downcast_ref::<UnixStream>() {
        extensions.insert(Caller::Local(stream.peer_cred().ok().map(|c| c.uid())));
    }
}

/// Lets a request through, or not.
pub(super) async fn pass(
    request: ServiceRequest,
    next: Next<impl MessageBody>,
) -> Result<ServiceResponse<impl MessageBody>, Error> {
    let mut answer = next.call(request).await?;
    let headers = answer.headers_mut();
    for (name, value) in HEADERS {
        headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
    }
    Ok(answer)
}

/// What every answer says to a browser.
const HEADERS: [(&str, &str); 3] = [
    ("cache-control", "no-store"),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
];
