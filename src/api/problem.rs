//! An answer that says why there is no other: `{"error": ..., "field": ...}`.

use std::fmt;

use actix_web::http::StatusCode;
use actix_web::http::header::{ALLOW, RETRY_AFTER};
use actix_web::{HttpResponse, ResponseError};
use serde_json::json;

use crate::control::AskError;

/// Why a request is not answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    status: StatusCode,
    error: String,
    /// The field or parameter that is wrong.
    field: Option<String>,
    /// Seconds after which another try may do better.
    retry_after: Option<u64>,
    /// The method that there is.
    allow: Option<&'static str>,
}

impl Problem {
    pub(super) fn new(status: StatusCode, error: impl fmt::Display) -> Self {
        Self { status, error: error.to_string(), field: None, retry_after: None, allow: None }
    }

    /// A field or parameter that cannot be used.
    pub(super) fn field(name: &str, error: impl fmt::Display) -> Self {
        let field = Some(name.to_owned());
        Self { field, ..Self::new(StatusCode::BAD_REQUEST, format!("{name}: {error}")) }
    }

    pub(super) fn bad(error: impl fmt::Display) -> Self {
        Self::new(StatusCode::BAD_REQUEST, error)
    }

    pub(super) fn not_found(what: impl fmt::Display) -> Self {
        Self::new(StatusCode::NOT_FOUND, what)
    }

    pub(super) fn not_allowed(allow: &'static str) -> Self {
        let allow = Some(allow);
        Self { allow, ..Self::new(StatusCode::METHOD_NOT_ALLOWED, "there is another method only") }
    }

    /// It may go better later.
    pub(super) fn busy(error: impl fmt::Display, seconds: u64) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, error).after(seconds)
    }

    pub(super) fn after(self, seconds: u64) -> Self {
        Self { retry_after: Some(seconds), ..self }
    }

    /// Something of ours failed; the log says the same.
    pub(super) fn internal(error: impl fmt::Display) -> Self {
        tracing::error!("API: {error}");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, error)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.error)
    }
}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        self.status
    }

    fn error_response(&self) -> HttpResponse {
        let mut answer = HttpResponse::build(self.status);
        if let Some(seconds) = self.retry_after {
            answer.insert_header((RETRY_AFTER, seconds));
        }
        if let Some(method) = self.allow {
            answer.insert_header((ALLOW, method));
        }
        answer.json(match &self.field {
            Some(field) => json!({"error": self.error, "field": field}),
            None => json!({"error": self.error}),
        })
    }
}

impl From<AskError> for Problem {
    fn from(e: AskError) -> Self {
        Self::busy(e, 1)
    }
}
