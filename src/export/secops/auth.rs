//! Tokens for a service account.
//!
//! The token request leaves by the same interface and proxy as the batches.

use std::path::Path;
use std::time::Duration;

use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::rt::TokioExecutor;
use reqwest::Url;
use yup_oauth2::AccessToken;
use yup_oauth2::authenticator::Authenticator;
use yup_oauth2::error::AuthErrorCode;
use yup_oauth2::{CustomHyperClientBuilder, Error, ServiceAccountAuthenticator, ServiceAccountKey};

use super::super::Failure;
use super::super::settings::Api;

/// Where tokens come from.
pub(super) struct Auth {
    source: Source,
    scope: &'static str,
    timeout: Duration,
}

enum Source {
    Direct(Authenticator<HttpsConnector<HttpConnector>>),
    Proxied(Authenticator<HttpsConnector<Tunnel<HttpConnector>>>),
}

/// Reads a key file.
pub(super) fn read_key(path: &Path) -> Result<ServiceAccountKey, String> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| format!("service account key {}: {e}", path.display()))?;
    // The parser's own message may quote the file.
    serde_json::from_str(&text).map_err(|e| {
        format!(
            "service account key {}: not a key file (line {}); it is the JSON file that Google \
             Cloud gives for a service account",
            path.display(),
            e.line()
        )
    })
}

impl Auth {
    pub(super) async fn new(
        key: ServiceAccountKey,
        api: Api,
        timeout: Duration,
        interface: Option<&str>,
        proxy: Option<&Url>,
    ) -> Result<Self, String> {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(super::CONNECT.min(timeout)));
        if let Some(name) = interface {
            tcp.set_interface(name);
        }
        let tls = HttpsConnectorBuilder::new()
            .with_provider_and_native_roots(rustls::crypto::ring::default_provider())
            .map_err(|e| format!("certificates: {e} (package ca-certificates)"))?
            .https_or_http()
            .enable_http1();
        let bad_key = |e: std::io::Error| {
            // What it says is about the key's form, not its content.
            format!("service account key: the private key cannot be used ({})", e.kind())
        };
        let source = match proxy {
            None => {
                let client = Client::builder(TokioExecutor::new()).build(tls.wrap_connector(tcp));
                let custom = CustomHyperClientBuilder::from(client);
                let made = ServiceAccountAuthenticator::with_client(key, custom);
                Source::Direct(made.build().await.map_err(bad_key)?)
            }
            Some(proxy) => {
                let uri = proxy.as_str().parse().map_err(|e| format!("proxy: {e}"))?;
                let mut tunnel = Tunnel::new(uri, tcp);
                if !proxy.username().is_empty() {
                    tunnel = tunnel.with_auth(basic(proxy)?);
                }
                let client =
                    Client::builder(TokioExecutor::new()).build(tls.wrap_connector(tunnel));
                let custom = CustomHyperClientBuilder::from(client);
                let made = ServiceAccountAuthenticator::with_client(key, custom);
                Source::Proxied(made.build().await.map_err(bad_key)?)
            }
        };
        let scope = match api {
            Api::Chronicle | Api::Udm => "https://www.googleapis.com/auth/cloud-platform",
            Api::Legacy => "https://www.googleapis.com/auth/malachite-ingestion",
        };
        Ok(Self { source, scope, timeout })
    }

    /// The token in use, or a new one if it has run out.
    pub(super) async fn token(&self) -> Result<String, Failure> {
        self.get(false).await
    }

    /// A new token, since the old one is refused.
    pub(super) async fn new_token(&self) -> Result<String, Failure> {
        self.get(true).await
    }

    async fn get(&self, new: bool) -> Result<String, Failure> {
        let retry = |why: String| Failure::Retry { kind: "token", why, after: None };
        // An answer without a token, such as a gateway's, is kept by yup-oauth2 like one with a token.
        for new in [new, true] {
            // A client of one's own has no timeout in yup-oauth2.
            let answer = tokio::time::timeout(self.timeout, self.ask(new))
                .await
                .map_err(|_| retry("token: no answer in time".into()))?;
            let token = answer.map_err(refused)?;
            if let Some(token) = token.token() {
                return Ok(token.to_owned());
            }
        }
        Err(retry("token: the answer holds none".into()))
    }

    async fn ask(&self, new: bool) -> Result<AccessToken, Error> {
        let scopes = [self.scope];
        match (&self.source, new) {
            (Source::Direct(a), false) => a.token(&scopes).await,
            (Source::Direct(a), true) => a.force_refreshed_token(&scopes).await,
            (Source::Proxied(a), false) => a.token(&scopes).await,
            (Source::Proxied(a), true) => a.force_refreshed_token(&scopes).await,
        }
    }
}

/// What a refused token request means.
fn refused(e: Error) -> Failure {
    let why = format!("token: {}", super::chain(&e));
    let hopeless = match &e {
        Error::AuthError(e) => !matches!(&e.error, AuthErrorCode::Other(code)
            if matches!(code.as_str(), "temporarily_unavailable" | "server_error" | "internal_failure")),
        Error::UserError(_) => true,
        _ => false,
    };
    if hopeless {
        let why = format!(
            "{why}; check that the service account and its key are still there, and this machine's clock"
        );
        Failure::Hold { kind: "token_refused", why }
    } else {
        Failure::Retry { kind: "token", why, after: None }
    }
}

fn basic(proxy: &Url) -> Result<http::HeaderValue, String> {
    use base64::Engine as _;
    let login = format!("{}:{}", proxy.username(), proxy.password().unwrap_or_default());
    let text = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(login));
    let mut value = http::HeaderValue::from_str(&text).map_err(|e| format!("proxy: {e}"))?;
    value.set_sensitive(true);
    Ok(value)
}
