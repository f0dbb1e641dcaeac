//! Every call of a method, through each face of the relay: counted, measured, traced, and recorded if it is refused.

use std::net::IpAddr;
use std::sync::{Arc, LazyLock, OnceLock};
use std::time::Duration;

use remoteprocess_runtime::prometheus_client::metrics::counter::Counter;
use remoteprocess_runtime::prometheus_client::metrics::family::Family;
use remoteprocess_runtime::prometheus_client::metrics::gauge::Gauge;
use remoteprocess_runtime::prometheus_client::metrics::histogram::Histogram;
use remoteprocess_runtime::prometheus_client::registry::{Registry, Unit};
use remoteprocess_tls::{PeerIdentity, Role};
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, sleep};
use tracing::{Span, field, info_span};

use crate::audit::Audit;
use crate::authority::metrics::count_refusal;
use crate::authority::rate::RateLimit;

/// Bytes of a request that is not a stream. The longest that we send has about two thousand.
pub(crate) const REQUEST_SIZE: usize = 16 << 10;
/// Time until such a request is complete.
pub(crate) const REQUEST_TIME: Duration = Duration::from_secs(10);
/// Calls of one user at once, and per second after that. Each may cost one request to the API server.
const BURST: f64 = 2000.0;
const PER_SECOND: f64 = 100.0;
/// Time until a call beyond that is refused. A client that asks again as soon as it is refused would otherwise take the
/// processors from others; so each of its streams takes one call per second.
const PENALTY: Duration = Duration::from_secs(1);
/// Upper limits of the buckets of durations in seconds: short calls, and streams that stay open for hours.
const BUCKETS: [f64; 10] = [0.005, 0.025, 0.1, 0.5, 2.5, 10.0, 60.0, 600.0, 3600.0, 14400.0];

/// By face and method.
type ByMethod = [(&'static str, &'static str); 2];
/// By face, method and code.
type ByCode = [(&'static str, &'static str); 3];

struct Metrics {
    requests: Family<ByCode, Counter>,
    duration: Family<ByMethod, Histogram, fn() -> Histogram>,
    in_flight: Family<ByMethod, Gauge>,
    received: Family<ByMethod, Counter>,
    sent: Family<ByMethod, Counter>,
}

static METRICS: LazyLock<Metrics> = LazyLock::new(|| Metrics {
    requests: Family::default(),
    duration: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
    in_flight: Family::default(),
    received: Family::default(),
    sent: Family::default(),
});

/// Adds the metrics of calls to the program's registry.
pub(crate) fn register(registry: &mut Registry) {
    let calls = registry.sub_registry_with_prefix("remoteprocess_rpc");
    let metrics = &*METRICS;
    calls.register(
        "requests",
        "Calls that have ended, by method and code",
        metrics.requests.clone(),
    );
    calls.register_with_unit(
        "duration",
        "Duration of calls; of a stream, until its end",
        Unit::Seconds,
        metrics.duration.clone(),
    );
    calls.register("in_flight", "Calls that have not ended", metrics.in_flight.clone());
    calls.register_with_unit(
        "received",
        "Bytes of requests, without headers",
        Unit::Bytes,
        metrics.received.clone(),
    );
    calls.register_with_unit(
        "sent",
        "Bytes of answers, without headers",
        Unit::Bytes,
        metrics.sent.clone(),
    );
}

/// Why a call was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The request is larger than the method allows.
    TooLarge,
    /// The request was not complete in time.
    TooLate,
    /// The caller has made too many calls.
    TooMany,
    /// The method is not for the role of the caller.
    NoRole,
    /// RBAC does not allow it to the user.
    NoRight,
    /// The certificate of the caller has expired.
    Unauthenticated,
}

impl Refused {
    fn reason(self) -> &'static str {
        match self {
            Self::TooLarge => "TooLarge",
            Self::TooLate => "TooLate",
            Self::TooMany => "TooMany",
            Self::NoRole => "NoRole",
            Self::NoRight => "NoRight",
            Self::Unauthenticated => "Unauthenticated",
        }
    }
}

/// Limits the calls of each user, through all faces together, and those of each agent. Cheap to clone.
#[derive(Clone)]
pub(crate) struct CallLimit(Arc<RateLimit<[u8; 32]>>);

impl Default for CallLimit {
    fn default() -> Self {
        Self(Arc::new(RateLimit::new(BURST, PER_SECOND)))
    }
}

impl CallLimit {
    /// Whether its caller may make this call now. If not, the call is refused, and its answer must wait for
    /// [`Self::penalty`].
    pub(crate) fn admits(&self, call: &Call) -> bool {
        let admit = |caller| self.0.admit(caller, Instant::now());
        let is_admitted = call.limited().is_none_or(admit);
        if !is_admitted {
            call.refusal().refuse(Refused::TooMany);
        }
        is_admitted
    }

    /// Ends when a call that was not admitted may be answered.
    pub(crate) async fn penalty() {
        sleep(PENALTY).await;
    }
}

/// Lets what serves a call tell why it refuses it: the first reason counts.
#[derive(Clone, Debug, Default)]
pub(crate) struct RefusalReason(Arc<OnceLock<Refused>>);

impl RefusalReason {
    pub(crate) fn refuse(&self, reason: Refused) {
        // An error means that there is one already.
        let _ = self.0.set(reason);
    }

    pub(crate) fn reason(&self) -> Option<Refused> {
        self.0.get().copied()
    }
}

/// One call, from its headers to the end of its answer. It ends with `Cancelled` if it is dropped before.
pub(crate) struct Call {
    face: &'static str,
    method: &'static str,
    peer: Option<Arc<PeerIdentity>>,
    source: Option<IpAddr>,
    refusal: RefusalReason,
    began: Instant,
    span: Span,
    received: Counter,
    sent: Counter,
    is_over: bool,
}

impl Call {
    /// Begins a call. `face` and `method` are of closed sets.
    pub(crate) fn begin(
        face: &'static str,
        method: &'static str,
        peer: Option<Arc<PeerIdentity>>,
        source: Option<IpAddr>,
    ) -> Self {
        let labels = [("face", face), ("method", method)];
        METRICS.in_flight.get_or_create(&labels).inc();
        let user = peer.as_ref().and_then(|peer| peer.user.as_ref());
        let span = info_span!(
            "rpc",
            face,
            method,
            user = user.map(|user| remoteprocess_api::sanitize::plain(&user.name, USER)),
            source = source.map(field::display),
        );
        Self {
            face,
            method,
            source,
            refusal: RefusalReason::default(),
            began: Instant::now(),
            span,
            received: METRICS.received.get_or_create_owned(&labels),
            sent: METRICS.sent.get_or_create_owned(&labels),
            is_over: false,
            peer,
        }
    }

    /// The caller whose calls are counted, as the SHA-256 of a name, which can be long: a user, or the agent of a pod.
    /// `None` for another replica, which calls for many.
    fn limited(&self) -> Option<[u8; 32]> {
        let peer = self.peer.as_ref()?;
        let name = match &peer.role {
            Role::User => peer.user.as_ref()?.name.clone(),
            // No user has a name with this character.
            Role::Agent { pod_uid, .. } => format!("\0{pod_uid}"),
            Role::Operator => return None,
        };
        Some(Sha256::digest(name).into())
    }

    /// Where the reason of a refusal is noted.
    pub(crate) fn refusal(&self) -> &RefusalReason {
        &self.refusal
    }

    /// The span of everything that serves the call.
    pub(crate) fn span(&self) -> &Span {
        &self.span
    }

    /// Counts the bytes of the request.
    pub(crate) fn received(&self) -> Counter {
        self.received.clone()
    }

    /// Counts bytes of the answer.
    pub(crate) fn send(&self, bytes: usize) {
        self.sent.inc_by(bytes as u64);
    }

    /// Ends the call with a code, which is of a closed set. `refused` is the reason that the code tells, if it is that of
    /// a refusal.
    pub(crate) fn end(&mut self, code: &'static str, refused: Option<Refused>) {
        if std::mem::replace(&mut self.is_over, true) {
            return;
        }
        let [face, method] = [("face", self.face), ("method", self.method)];
        METRICS.requests.get_or_create(&[face, method, ("code", code)]).inc();
        let seconds = self.began.elapsed().as_secs_f64();
        METRICS.duration.get_or_create(&[face, method]).observe(seconds);
        METRICS.in_flight.get_or_create(&[face, method]).dec();
        if let Some(refused) = self.refusal.reason().or(refused) {
            count_refusal("main", refused.reason());
            self.audit(refused);
        }
    }

    fn audit(&self, refused: Refused) {
        let peer = self.peer.as_deref();
        let user = peer.and_then(|peer| peer.user.as_ref());
        let audit = Audit {
            serial: peer.map_or("", |peer| &peer.serial),
            source: self.source,
            ..user.map(Audit::by).unwrap_or_default()
        };
        let role = peer.map(|peer| peer.role.to_string());
        audit.refuse(self.method, role.as_deref(), refused.reason());
    }
}

/// Characters of a user's name in a span.
const USER: usize = 64;

impl Drop for Call {
    fn drop(&mut self) {
        self.end("Cancelled", None);
    }
}

#[cfg(test)]
mod tests {
    use remoteprocess_runtime::prometheus_client::encoding::text::encode;

    use super::*;

    /// The lines of the metrics about a face.
    fn scrape(face: &str) -> Vec<String> {
        let (mut registry, mut text) = (Registry::default(), String::new());
        register(&mut registry);
        encode(&mut text, &registry).unwrap();
        let face = format!("face=\"{face}\"");
        let lines = text
            .lines()
            .filter(|line| line.contains(&face) && !line.contains("_bucket"));
        lines.map(str::to_owned).collect()
    }

    #[test]
    fn a_call_is_counted_once_however_it_ends() {
        let mut answered = Call::begin("test", "Stop", None, None);
        answered.send(7);
        answered.received().inc_by(3);
        answered.end("OK", None);
        answered.end("Internal", None);
        drop(answered);
        drop(Call::begin("test", "Stop", None, None));
        let open = Call::begin("test", "Stop", None, None);
        let lines = scrape("test");
        let value = |name: &str| {
            let line = lines.iter().find(|line| line.starts_with(name)).expect(name);
            line.rsplit(' ').next().unwrap().to_owned()
        };
        let labels = r#"{face="test",method="Stop""#;
        assert_eq!(
            value(&format!(r#"remoteprocess_rpc_requests_total{labels},code="OK"}}"#)),
            "1"
        );
        assert_eq!(
            value(&format!(
                r#"remoteprocess_rpc_requests_total{labels},code="Cancelled"}}"#
            )),
            "1"
        );
        assert_eq!(
            value(&format!("remoteprocess_rpc_duration_seconds_count{labels}}}")),
            "2"
        );
        assert_eq!(value(&format!("remoteprocess_rpc_in_flight{labels}}}")), "1");
        assert_eq!(value(&format!("remoteprocess_rpc_received_bytes_total{labels}}}")), "3");
        assert_eq!(value(&format!("remoteprocess_rpc_sent_bytes_total{labels}}}")), "7");
        drop(open);
    }
}
