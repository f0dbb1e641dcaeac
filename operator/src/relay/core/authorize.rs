//! Decides who may call what: by the role of the peer and Kubernetes RBAC.
//!
//! RBAC is the only authority: each call of a user is a SubjectAccessReview on the object or on a virtual subresource
//! of it. Agents and other replicas of the operator are identified by their role alone.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use k8s_openapi::api::authorization::v1::{ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec};
use kube::{Api, Client, api::PostParams};
use remoteprocess_api::names;
use remoteprocess_proto::v1::{
    AttachOpen, ExecOpen, GetStateRequest, ListRequest, SignalRequest, StopRequest, WatchOutputRequest,
};
use remoteprocess_tls::User;
use sha2::{Digest as _, Sha256};
use tokio::time::{Instant, timeout};

use crate::audit::Origin;
use crate::relay::error::{Code, Error, MissingRule};

/// How long a permission is remembered, and how often the right to an open stream is checked: a right that was withdrawn
/// ends open streams after twice this time.
const ALLOWED: Duration = Duration::from_secs(25);

/// How long a refusal is remembered: a user who was just given the right should not have to wait.
const DENIED: Duration = Duration::from_secs(2);

/// Maximum number of cached answers, of about 64 bytes each: a question is stored as its digest, because groups may
/// have any size.
const CAPACITY: usize = 16 * 1024;

/// Time limit for one request to the API server.
const LIMIT: Duration = Duration::from_secs(5);

/// Plural of the object.
const RESOURCE: &str = "remoteprocesses";

/// What a user may be allowed to do with a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Read its state.
    Get,
    /// List the states of all in a namespace, or in all namespaces.
    List,
    /// Read its output.
    Log,
    /// Signal or stop it.
    Signal,
    /// Write to its input.
    Attach,
    /// Run further commands in its container.
    Exec,
}

impl Action {
    /// The verb and the subresource (empty: the object itself) of the RBAC question.
    #[must_use]
    pub fn rule(self) -> (&'static str, &'static str) {
        match self {
            Self::Get => ("get", ""),
            Self::List => ("list", ""),
            Self::Log => ("get", "log"),
            Self::Signal => ("create", "signal"),
            Self::Attach => ("create", "attach"),
            Self::Exec => ("create", "exec"),
        }
    }
}

/// A request of a user.
pub(crate) trait Authorized {
    /// What the user has to be allowed.
    const ACTION: Action;
}

macro_rules! authorized {
    ($($request:ty => $action:ident;)*) => {
        $(impl Authorized for $request {
            const ACTION: Action = Action::$action;
        })*
    };
}

authorized! {
    GetStateRequest => Get;
    ListRequest => List;
    WatchOutputRequest => Log;
    SignalRequest => Signal;
    StopRequest => Signal;
    AttachOpen => Attach;
    ExecOpen => Exec;
}

/// Asks the API server who may do what, and caches the answers for a short time.
pub struct Authorizer {
    client: Client,
    memory: Duration,
    answers: Mutex<HashMap<Digest, Answer>>,
}

/// SHA-256 of a question.
type Digest = [u8; 32];

#[derive(Clone, Copy)]
struct Answer {
    is_allowed: bool,
    until: Instant,
}

impl Authorizer {
    /// An authorizer that asks with `client`.
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self::with_memory(client, ALLOWED)
    }

    /// As [`Authorizer::new`]; remembers a permission for this long.
    #[must_use]
    pub fn with_memory(client: Client, memory: Duration) -> Self {
        Self {
            client,
            memory,
            answers: Mutex::default(),
        }
    }

    /// How long a permission is remembered.
    pub(crate) fn memory(&self) -> Duration {
        self.memory
    }

    /// Whether `user` may do `action` with the process; an empty `namespace` means all namespaces, an empty `name` all
    /// processes.
    ///
    /// # Errors
    /// `PermissionDenied` with the missing RBAC rule as YAML; `Unavailable` when the API server does not answer.
    pub async fn authorize(&self, user: &User, action: Action, namespace: &str, name: &str) -> Result<(), Error> {
        let review = build_review(user, action, namespace, name);
        let question = digest(&review)?;
        let is_allowed = match self.remembered(&question) {
            Some(is_allowed) => is_allowed,
            None => {
                let is_allowed = self.ask(&review).await?;
                self.remember(question, is_allowed);
                is_allowed
            }
        };
        if is_allowed {
            Ok(())
        } else {
            Err(refusal(user, action, namespace, name))
        }
    }

    fn remembered(&self, question: &Digest) -> Option<bool> {
        let answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers
            .get(question)
            .filter(|answer| Instant::now() < answer.until)
            .map(|answer| answer.is_allowed)
    }

    async fn ask(&self, review: &SubjectAccessReview) -> Result<bool, Error> {
        let reviews: Api<SubjectAccessReview> = Api::all(self.client.clone());
        let params = PostParams::default();
        match timeout(LIMIT, reviews.create(&params, review)).await {
            Ok(Ok(answer)) => Ok(answer
                .status
                .is_some_and(|status| status.allowed && status.denied != Some(true))),
            Ok(Err(error)) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "cannot check a permission");
                Err(unavailable())
            }
            Err(_) => Err(unavailable()),
        }
    }

    fn remember(&self, question: Digest, is_allowed: bool) {
        let now = Instant::now();
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= CAPACITY {
            answers.retain(|_, answer| now < answer.until);
        }
        if answers.len() < CAPACITY {
            let until = now + if is_allowed { self.memory } else { DENIED };
            answers.insert(question, Answer { is_allowed, until });
        }
    }
}

/// The caller of a user's method.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// A user, to be authorized.
    User(UserCaller),
    /// Another replica, which has authorized its user.
    Replica(Forwarded),
}

impl Caller {
    /// The name of the user, as far as it is known.
    pub(crate) fn user(&self) -> &str {
        match self {
            Self::User(caller) => &caller.user.name,
            Self::Replica(forwarded) => &forwarded.user,
        }
    }
}

/// A user who calls.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserCaller {
    /// The user.
    pub user: User,
    /// The connection, for the audit log.
    pub(crate) origin: Origin,
}

/// An agent that calls.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentCaller {
    /// Namespace of its pod.
    pub namespace: String,
    /// UID of its pod.
    pub pod_uid: String,
    /// The address that it calls from, where that is known.
    pub source: Option<IpAddr>,
}

/// What a replica forwards with the request of a user.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Forwarded {
    /// The attempt of the request.
    pub attempt: Option<u32>,
    /// Name of the user; empty if there is none.
    pub user: String,
}

fn unavailable() -> Error {
    Error::unavailable("the API server cannot be asked for permission now")
}

/// The cache key of a question. The maps of a review are sorted, so equal questions have equal texts.
fn digest(review: &SubjectAccessReview) -> Result<Digest, Error> {
    let text = serde_json::to_vec(&review.spec).map_err(|error| Error::new(Code::Internal, error.to_string()))?;
    Ok(Sha256::digest(&text).into())
}

fn build_review(user: &User, action: Action, namespace: &str, name: &str) -> SubjectAccessReview {
    let (verb, subresource) = action.rule();
    let attributes = ResourceAttributes {
        group: Some(names::GROUP.to_owned()),
        version: Some(names::VERSION.to_owned()),
        resource: Some(RESOURCE.to_owned()),
        subresource: some(subresource),
        verb: Some(verb.to_owned()),
        namespace: some(namespace),
        name: some(name),
        ..ResourceAttributes::default()
    };
    let spec = SubjectAccessReviewSpec {
        user: Some(user.name.clone()),
        groups: Some(user.groups.clone()),
        uid: some(&user.uid),
        extra: (!user.extra.is_empty()).then(|| user.extra.clone()),
        resource_attributes: Some(attributes),
        ..SubjectAccessReviewSpec::default()
    };
    SubjectAccessReview {
        spec,
        ..SubjectAccessReview::default()
    }
}

fn some(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// Who lacks which right, and the rule that would grant it, ready for a Role.
fn refusal(user: &User, action: Action, namespace: &str, name: &str) -> Error {
    let (verb, subresource) = action.rule();
    let resource = if subresource.is_empty() {
        RESOURCE.to_owned()
    } else {
        format!("{RESOURCE}/{subresource}")
    };
    let object = if name.is_empty() {
        String::new()
    } else {
        format!(" {name:?}")
    };
    let (place, kind) = if namespace.is_empty() {
        ("in all namespaces".to_owned(), "ClusterRole")
    } else {
        (format!("in the namespace {namespace:?}"), "Role")
    };
    let message = format!(
        "user {:?} may not {verb} {resource}{object} {place}. The missing rule, for a {kind}:\n\
         - apiGroups: [{}]\n  resources: [{resource}]\n  verbs: [{verb}]",
        user.name,
        names::GROUP
    );
    Error {
        missing: Some(Box::new(MissingRule {
            kind,
            namespace: some(namespace),
            api_groups: [names::GROUP],
            resources: [resource],
            verbs: [verb],
        })),
        ..Error::new(Code::PermissionDenied, message)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use rstest::rstest;
    use serde_json::{Value, json};

    use super::*;
    use crate::fake_api;

    fn alice() -> User {
        User {
            name: "alice".into(),
            groups: vec!["dev".into()],
            uid: String::new(),
            extra: [("scopes".to_owned(), vec!["read".to_owned()])].into(),
        }
    }

    /// An authorizer whose API server gives these answers and counts the requests.
    fn authorizer(mut answer: impl FnMut(&Value) -> (u16, Value) + Send + 'static) -> (Authorizer, Arc<AtomicUsize>) {
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let client = fake_api::client(move |call| {
            assert_eq!(call.path, "/apis/authorization.k8s.io/v1/subjectaccessreviews");
            count.fetch_add(1, Ordering::Relaxed);
            answer(&call.body)
        });
        (Authorizer::new(client), asked)
    }

    fn says(is_allowed: bool) -> (u16, Value) {
        (201, json!({"spec": {}, "status": {"allowed": is_allowed}}))
    }

    #[rstest]
    #[case(Action::Get, "get", None)]
    #[case(Action::List, "list", None)]
    #[case(Action::Log, "get", Some("log"))]
    #[case(Action::Signal, "create", Some("signal"))]
    #[case(Action::Attach, "create", Some("attach"))]
    #[case(Action::Exec, "create", Some("exec"))]
    #[tokio::test]
    async fn each_action_is_one_question(
        #[case] action: Action,
        #[case] verb: &str,
        #[case] subresource: Option<&str>,
    ) {
        let mut wanted = json!({
            "group": "remoteprocess.dev", "version": "v1alpha1", "resource": "remoteprocesses",
            "verb": verb, "namespace": "default", "name": "hello",
        });
        if let Some(subresource) = subresource {
            wanted["subresource"] = subresource.into();
        }
        let (authorizer, _) = authorizer(move |review| {
            assert_eq!(review["spec"]["resourceAttributes"], wanted);
            assert_eq!(review["spec"]["user"], "alice");
            assert_eq!(review["spec"]["groups"], json!(["dev"]));
            assert_eq!(review["spec"]["extra"], json!({"scopes": ["read"]}));
            says(true)
        });
        authorizer
            .authorize(&alice(), action, "default", "hello")
            .await
            .expect("allowed");
    }

    #[tokio::test(start_paused = true)]
    async fn a_permission_is_remembered_for_a_while() {
        let (authorizer, asked) = authorizer(|_| says(true));
        for _ in 0..3 {
            authorizer
                .authorize(&alice(), Action::Log, "default", "hello")
                .await
                .expect("allowed");
        }
        assert_eq!(asked.load(Ordering::Relaxed), 1);
        authorizer
            .authorize(&alice(), Action::Signal, "default", "hello")
            .await
            .expect("allowed");
        authorizer
            .authorize(&alice(), Action::Log, "default", "other")
            .await
            .expect("allowed");
        let other_scope = User {
            extra: Default::default(),
            ..alice()
        };
        authorizer
            .authorize(&other_scope, Action::Log, "default", "hello")
            .await
            .expect("allowed");
        assert_eq!(asked.load(Ordering::Relaxed), 4, "another question is asked");
        tokio::time::advance(ALLOWED).await;
        authorizer
            .authorize(&alice(), Action::Log, "default", "hello")
            .await
            .expect("allowed");
        assert_eq!(asked.load(Ordering::Relaxed), 5, "a revoked right ends");
    }

    #[tokio::test(start_paused = true)]
    async fn a_refusal_names_the_rule_and_is_soon_forgotten() {
        let mut answers = [false, true].into_iter();
        let (authorizer, _) = authorizer(move |_| says(answers.next().expect("asked twice")));
        let refused = authorizer
            .authorize(&alice(), Action::Log, "default", "hello")
            .await
            .expect_err("refused");
        assert_eq!(refused.code, Code::PermissionDenied);
        assert_eq!(
            refused.message,
            "user \"alice\" may not get remoteprocesses/log \"hello\" in the namespace \"default\". The missing rule, \
             for a Role:\n- apiGroups: [remoteprocess.dev]\n  resources: [remoteprocesses/log]\n  verbs: [get]"
        );
        assert!(
            authorizer
                .authorize(&alice(), Action::Log, "default", "hello")
                .await
                .is_err()
        );
        tokio::time::advance(DENIED).await;
        authorizer
            .authorize(&alice(), Action::Log, "default", "hello")
            .await
            .expect("allowed by now");
    }

    #[tokio::test]
    async fn no_answer_is_no_permission() {
        let (authorizer, _) = authorizer(|_| fake_api::refusal(500, "InternalError"));
        let error = authorizer
            .authorize(&alice(), Action::List, "", "")
            .await
            .expect_err("not known");
        assert_eq!(error.code, Code::Unavailable);
    }

    #[test]
    fn a_list_of_everything_needs_a_cluster_role() {
        let sentence = refusal(&alice(), Action::List, "", "").message;
        assert!(
            sentence.starts_with("user \"alice\" may not list remoteprocesses in all namespaces. "),
            "{sentence}"
        );
        assert!(sentence.contains("for a ClusterRole"), "{sentence}");
    }
}
