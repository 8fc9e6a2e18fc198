//! TLS: a certificate and its key from files, read anew when they change.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use rustls::ServerConfig;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// Where they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Files {
    pub cert: PathBuf,
    pub key: PathBuf,
}

/// Why there can be no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("{}: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{}: {what}", path.display())]
    Content { path: PathBuf, what: String },
    #[error("TLS: {0}")]
    Rustls(#[from] rustls::Error),
}

/// The certificate in use.
#[derive(Debug)]
pub(super) struct Certificate {
    files: Files,
    current: RwLock<Arc<CertifiedKey>>,
    stamps: RwLock<Stamps>,
}

/// Time and size of each file: what changes when one is replaced.
type Stamps = [Option<(SystemTime, u64)>; 2];

impl Files {
    fn stamps(&self) -> Stamps {
        [&self.cert, &self.key].map(|path| {
            let meta = fs::metadata(path).ok()?;
            Some((meta.modified().ok()?, meta.len()))
        })
    }

    fn load(&self) -> Result<CertifiedKey, TlsError> {
        let bad = |path: &Path, what: String| TlsError::Content { path: path.into(), what };
        let read = |path: &Path| {
            fs::read(path).map_err(|source| TlsError::Read { path: path.into(), source })
        };
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&read(&self.cert)?).collect();
        let chain = chain.map_err(|e| bad(&self.cert, format!("no PEM certificates: {e}")))?;
        if chain.is_empty() {
            return Err(bad(&self.cert, "no PEM certificate in it".into()));
        }
        let key = PrivateKeyDer::from_pem_slice(&read(&self.key)?)
            .map_err(|e| bad(&self.key, format!("no PEM private key: {e}")))?;
        let certified = CertifiedKey::from_der(chain, key, &ring::default_provider())
            .map_err(|e| bad(&self.key, format!("with {}: {e}", self.cert.display())))?;
        Ok(certified)
    }
}

impl Certificate {
    pub(super) fn load(files: &Files) -> Result<Arc<Self>, TlsError> {
        // Before the files: a change meanwhile is seen later.
        let stamps = files.stamps();
        let current = RwLock::new(Arc::new(files.load()?));
        Ok(Arc::new(Self { files: files.clone(), current, stamps: RwLock::new(stamps) }))
    }

    pub(super) fn config(self: &Arc<Self>) -> Result<ServerConfig, TlsError> {
        let resolver: Arc<dyn ResolvesServerCert> = Arc::clone(self) as _;
        Ok(ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(resolver))
    }

    /// Takes changed files in. Damaged ones are said, and the old certificate stays.
    pub(super) fn look(&self) {
        let now = self.files.stamps();
        if now == *self.stamps.read().unwrap_or_else(PoisonError::into_inner) {
            return;
        }
        *self.stamps.write().unwrap_or_else(PoisonError::into_inner) = now;
        match self.files.load() {
            Ok(new) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(new);
                tracing::info!("API: took in the certificate {}", self.files.cert.display());
            }
            Err(e) => tracing::warn!("API: the certificate stays as it was: {e}"),
        }
    }
}

impl ResolvesServerCert for Certificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner)))
    }
}
