//! Credentials that change while we run: from a credential plugin, or from a file.
//!
//! Invariant: a credential is obtained once and used for all calls until it must be renewed. A plugin never sees our
//! standard input, unless it is a terminal and nothing has been read from it.

use std::path::PathBuf;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures::future::BoxFuture;
use http::{HeaderValue, Request, Response, StatusCode};
use jiff::Timestamp;
use kube::client::Body;
use kube::{Client, Config};
use tokio::sync::Mutex;
use tokio::time::Instant;
use tower::{BoxError, Service};

use super::connector::{Connector, client};
use super::kubeconfig;
use crate::retry::innermost;

pub(super) use plugin::Plugin;

mod plugin;

/// How often a token file is read again, as in client-go.
const FILE_PERIOD: Duration = Duration::from_secs(60);
/// How long before its expiry a credential is renewed.
const MARGIN: Duration = Duration::from_secs(10);
/// A refusal and an expiry have no effect for this long, so that a source of bad credentials is not called for each
/// request.
const SETTLED: Duration = Duration::from_secs(30);
/// Time limit for a plugin that runs in the middle of another operation.
const RENEW_LIMIT: Duration = Duration::from_secs(30);

/// Why there is no credential; names its source and the fix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub(super) struct Error(pub String);

/// A credential for the API server.
#[derive(Clone, Default, PartialEq, Eq)]
pub(super) struct Credential {
    /// Bearer token.
    pub token: Option<String>,
    /// Client certificate and its key, PEM.
    pub certificate: Option<(String, String)>,
    /// When it expires, if that is known.
    pub until: Option<Timestamp>,
}

impl Credential {
    fn is_ending(&self, now: Timestamp) -> bool {
        self.until.is_some_and(|until| until.duration_since(now) <= margin())
    }

    fn has_ended(&self, now: Timestamp) -> bool {
        self.until.is_some_and(|until| until <= now)
    }

    /// The configuration with this credential.
    fn put_into(&self, mut config: Config) -> Config {
        let user = &mut config.auth_info;
        if let Some(token) = &self.token {
            user.token = Some(token.clone().into());
        }
        if let Some((chain, key)) = &self.certificate {
            user.client_certificate_data = Some(STANDARD.encode(chain));
            user.client_key_data = Some(STANDARD.encode(key).into());
        }
        config
    }
}

fn margin() -> jiff::SignedDuration {
    jiff::SignedDuration::from_secs(i64::try_from(MARGIN.as_secs()).unwrap_or(0))
}

/// A source of credentials.
pub(super) enum Source {
    /// A plugin prints them.
    Plugin(Box<Plugin>),
    /// A file has the token.
    File {
        /// Path of the file.
        path: PathBuf,
        /// The token to use while the file cannot be read.
        fallback: Option<String>,
        /// Description of the user entry.
        owner: String,
    },
}

impl Source {
    async fn get(&self, is_first: bool) -> Result<Credential, Error> {
        match self {
            Self::Plugin(plugin) if is_first => plugin.run(true).await,
            Self::Plugin(plugin) => tokio::time::timeout(RENEW_LIMIT, plugin.run(false))
                .await
                .unwrap_or_else(|_| Err(plugin.error(format_args!("has not answered within {RENEW_LIMIT:?}")))),
            Self::File { path, fallback, owner } => token(path).or_else(|Error(why)| {
                let fallback = fallback.as_ref().ok_or_else(|| Error(format!("{owner}: {why}")))?;
                Ok(Credential {
                    token: Some(fallback.clone()),
                    ..Credential::default()
                })
            }),
        }
    }

    /// Whether to ask for another credential than `current`.
    fn is_due(&self, current: &Current, now: Timestamp) -> bool {
        let age = current.since.elapsed();
        match self {
            Self::Plugin(_) => age >= SETTLED && current.credential.is_ending(now),
            Self::File { .. } => age >= FILE_PERIOD,
        }
    }
}

/// The token in a file, without surrounding white space.
fn token(path: &std::path::Path) -> Result<Credential, Error> {
    let bytes = kubeconfig::read(path)
        .map_err(|error| Error(format!("cannot read the token file {}: {error}", path.display())))?;
    match String::from_utf8_lossy(&bytes).trim() {
        "" => Err(Error(format!("the token file {} is empty", path.display()))),
        token if !is_sendable(token) => Err(Error(format!("the token file {} has no valid token", path.display()))),
        token => Ok(Credential {
            token: Some(token.to_owned()),
            ..Credential::default()
        }),
    }
}

/// Whether a token is valid in a header. kube panics at an invalid one.
pub(super) fn is_sendable(token: &str) -> bool {
    HeaderValue::from_str(&format!("Bearer {token}")).is_ok()
}

/// Calls the API server with a credential that is renewed. Each change creates a new client, so that no connection with
/// the old certificate stays in use.
#[derive(Clone)]
pub(super) struct Renewing {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    connector: Connector,
    source: Source,
    current: Mutex<Option<Current>>,
}

#[derive(Clone)]
struct Current {
    client: Client,
    credential: Credential,
    since: Instant,
}

impl Renewing {
    /// Gets the first credential.
    ///
    /// # Errors
    /// There is none, or it is unusable.
    pub(super) async fn open(config: Config, connector: Connector, source: Source) -> Result<Self, Error> {
        let inner = Inner {
            config,
            connector,
            source,
            current: Mutex::new(None),
        };
        let renewing = Self { inner: Arc::new(inner) };
        renewing.current(None).await?;
        Ok(renewing)
    }

    /// The client to use now; another one than `refused` if there is one.
    async fn current(&self, refused: Option<&Current>) -> Result<Current, Error> {
        let mut slot = self.inner.current.lock().await;
        let now = Timestamp::now();
        let is_refused = |current: &Current| refused.is_some_and(|refused| refused.since == current.since);
        if let Some(current) = slot
            .as_ref()
            .filter(|current| !is_refused(current) && !self.inner.source.is_due(current, now))
        {
            return Ok(current.clone());
        }
        let credential = match (self.inner.source.get(slot.is_none()).await, slot.as_ref()) {
            (Ok(credential), _) => credential,
            (Err(_), Some(current)) if !is_refused(current) && !current.credential.has_ended(now) => {
                current.credential.clone()
            }
            (Err(error), _) => return Err(error),
        };
        let client = match slot.as_ref().filter(|current| current.credential == credential) {
            Some(current) => current.client.clone(),
            None => self.client(&credential)?,
        };
        Ok(slot
            .insert(Current {
                client,
                credential,
                since: Instant::now(),
            })
            .clone())
    }

    fn client(&self, credential: &Credential) -> Result<Client, Error> {
        let config = credential.put_into(self.inner.config.clone());
        client(&config, self.inner.connector.clone()).map_err(|error| match &self.inner.source {
            Source::Plugin(plugin) => plugin.error(format_args!(
                "gave a credential that cannot be used: {}",
                innermost(&error)
            )),
            Source::File { .. } => Error(innermost(&error)),
        })
    }

    async fn send(self, request: Request<Body>) -> Result<Response<Body>, BoxError> {
        let (head, body) = request.into_parts();
        let copy = body.try_clone();
        let current = self.current(None).await?;
        let answer = current.client.send(Request::from_parts(head.clone(), body)).await?;
        let (Some(copy), true) = (copy, is_refusal(&answer, &current)) else {
            return Ok(answer);
        };
        let next = self.current(Some(&current)).await?;
        Ok(next.client.send(Request::from_parts(head, copy)).await?)
    }
}

fn is_refusal(answer: &Response<Body>, current: &Current) -> bool {
    answer.status() == StatusCode::UNAUTHORIZED && current.since.elapsed() >= SETTLED
}

impl Service<Request<Body>> for Renewing {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.clone().send(request))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_file_may_end_with_a_line_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        assert!(token(&path).err().unwrap().0.contains("cannot read the token file"));
        std::fs::write(&path, " \n").unwrap();
        assert!(token(&path).err().unwrap().0.contains("is empty"));
        std::fs::write(&path, "a\nb").unwrap();
        assert!(token(&path).err().unwrap().0.contains("no valid token"));
        std::fs::write(&path, "abc\n").unwrap();
        assert_eq!(token(&path).unwrap().token.as_deref(), Some("abc"));
    }

    #[test]
    fn a_credential_is_renewed_before_it_ends() {
        let now = Timestamp::UNIX_EPOCH;
        let at = |seconds| Credential {
            until: Some(Timestamp::from_second(seconds).unwrap()),
            ..Credential::default()
        };
        assert!(!Credential::default().is_ending(now) && !Credential::default().has_ended(now));
        assert!(!at(60).is_ending(now) && at(5).is_ending(now) && !at(5).has_ended(now) && at(-5).has_ended(now));
    }

    /// A plugin that prints a token with this expiry, and how often it ran.
    async fn counted(folder: &tempfile::TempDir, until: &str) -> (Renewing, impl Fn() -> usize) {
        use std::os::unix::fs::PermissionsExt;
        remoteprocess_tls::install_crypto_provider();
        let (path, runs) = (folder.path().join("plugin"), folder.path().join("runs"));
        let text = format!(
            "#!/bin/sh\necho run >> {}\necho '{{\"kind\": \"ExecCredential\", \"apiVersion\": \"{V1}\", \"status\": {{\
             \"token\": \"t'$(wc -l < {})'\", \"expirationTimestamp\": \"{until}\"}}}}'\n",
            runs.display(),
            runs.display()
        );
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        let exec = serde_json::json!({"command": path, "apiVersion": V1, "interactiveMode": "Never"});
        let plugin = Plugin::new(serde_json::from_value(exec).unwrap(), None, "user".into()).unwrap();
        let config = Config::new("https://cluster".parse().unwrap());
        let renewing = Renewing::open(config, Connector::default(), Source::Plugin(Box::new(plugin))).await;
        let count = move || std::fs::read_to_string(&runs).unwrap().lines().count();
        (renewing.ok().unwrap(), count)
    }

    const V1: &str = "client.authentication.k8s.io/v1";

    async fn pass(time: Duration) {
        tokio::time::pause();
        tokio::time::advance(time).await;
        tokio::time::resume();
    }

    #[tokio::test]
    async fn a_plugin_runs_again_only_once_its_credential_is_due() {
        let folder = tempfile::tempdir().unwrap();
        let (renewing, runs) = counted(&folder, "2020-01-01T00:00:00Z").await;
        for _ in 0..3 {
            renewing.current(None).await.ok().unwrap();
        }
        assert_eq!(runs(), 1, "one that has ended at once is not asked for at each call");
        pass(SETTLED).await;
        let current = renewing.current(None).await.ok().unwrap();
        assert_eq!((runs(), current.credential.token.as_deref()), (2, Some("t2")));
        let folder = tempfile::tempdir().unwrap();
        let (renewing, runs) = counted(&folder, "9000-01-01T00:00:00Z").await;
        pass(SETTLED * 100).await;
        renewing.current(None).await.ok().unwrap();
        assert_eq!(runs(), 1);
    }

    #[tokio::test]
    async fn a_plugin_runs_again_after_its_credential_was_refused() {
        let folder = tempfile::tempdir().unwrap();
        let (renewing, runs) = counted(&folder, "9000-01-01T00:00:00Z").await;
        let refused = renewing.current(None).await.ok().unwrap();
        let (one, two) = tokio::join!(renewing.current(Some(&refused)), renewing.current(Some(&refused)));
        assert_eq!((one.ok().unwrap().since, runs()), (two.ok().unwrap().since, 2));
        let answer = |code| Response::builder().status(code).body(Body::empty()).unwrap();
        assert!(
            !is_refusal(&answer(401), &refused),
            "a fresh one is not asked for again"
        );
        pass(SETTLED).await;
        assert!(is_refusal(&answer(401), &refused) && !is_refusal(&answer(403), &refused));
    }

    #[tokio::test]
    async fn a_plugin_that_fails_later_does_not_take_a_valid_credential_away() {
        let folder = tempfile::tempdir().unwrap();
        let soon = (Timestamp::now() + jiff::SignedDuration::from_secs(8)).to_string();
        let (renewing, _) = counted(&folder, &soon).await;
        std::fs::write(folder.path().join("plugin"), "#!/bin/sh\nexit 3\n").unwrap();
        pass(SETTLED).await;
        let current = renewing.current(None).await.ok().unwrap();
        assert_eq!(current.credential.token.as_deref(), Some("t1"));
        assert!(renewing.current(Some(&current)).await.is_err());
    }
}
