//! Calls to the API server, and what its refusals mean.

use std::fmt::Debug;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::NamespaceResourceScope;
use kube::core::Status;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource, ResourceExt as _};
use remoteprocess_api::bridge::{BridgeCondition, BridgeReason};
use remoteprocess_api::names::{
    ANNOTATION_RESULT_SENT, BRIDGE_MANAGER, GROUP, LABEL_TRIGGER_UID, SINK_ROLE, TRIGGER_ROLE,
};
use remoteprocess_api::{ProcessSink, ProcessTrigger, RemoteProcess, sanitize};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::message::Message;
use crate::process::{build_config_map, is_of, stored_message};
use crate::status::Finding;

/// Longest note of an Event, in characters: the API server takes 1 KiB.
const MAX_NOTE: usize = 250;
/// How long one call may take.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Calls in the namespace of the trigger. Cheap to clone.
#[derive(Clone)]
pub struct Kubernetes {
    client: Client,
    namespace: String,
}

/// The process of a message.
#[derive(Debug)]
pub enum Created {
    /// It was created.
    New(Box<RemoteProcess>),
    /// It was there already.
    Exists(Box<RemoteProcess>),
    /// The name belongs to a process that is not of this trigger.
    Foreign,
}

/// Why the API server does not do what it should.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApiError {
    /// It will never accept this object.
    #[error("the API server refuses the process: {0}")]
    Invalid(String),
    /// The ServiceAccount may not do that, or a quota is used up.
    #[error("{0}")]
    Forbidden(String),
    /// It does not answer, or not with a decision.
    #[error("the API server does not answer: {0}")]
    Unavailable(String),
}

impl ApiError {
    /// Why a watch does not work.
    pub fn of_watch(error: &kube::runtime::watcher::Error) -> Self {
        use kube::runtime::watcher::Error;
        match error {
            Error::InitialListFailed(error) | Error::WatchStartFailed(error) | Error::WatchFailed(error) => {
                classify(error)
            }
            Error::WatchError(status) => classify_status(status),
            Error::NoResourceVersion => Self::Unavailable(error.to_string()),
        }
    }

    /// The reason for the condition Ready.
    pub fn reason(&self) -> BridgeReason {
        match self {
            Self::Invalid(_) => BridgeReason::InvalidTemplate,
            Self::Forbidden(_) => BridgeReason::Forbidden,
            Self::Unavailable(_) => BridgeReason::Waiting,
        }
    }
}

impl Kubernetes {
    /// For a namespace.
    pub fn new(client: Client, namespace: &str) -> Self {
        Self {
            client,
            namespace: namespace.to_owned(),
        }
    }

    /// The client.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The processes.
    pub fn processes(&self) -> Api<RemoteProcess> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The triggers.
    pub fn triggers(&self) -> Api<ProcessTrigger> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The sinks.
    pub fn sinks(&self) -> Api<ProcessSink> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    fn config_maps(&self) -> Api<ConfigMap> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// Creates a process, or finds the one of this name.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn create(&self, process: &RemoteProcess) -> Result<Created, ApiError> {
        match self.call(self.processes().create(&post(), process)).await {
            Ok(created) => return Ok(Created::New(Box::new(created))),
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(classify(&error)),
        }
        let found = self.call(self.processes().get(&process.name_any())).await;
        let found = match found {
            Err(kube::Error::Api(status)) if status.code == 404 => {
                return Err(ApiError::Unavailable("the process has just been deleted".to_owned()));
            }
            found => found.map_err(|error| classify(&error))?,
        };
        if found.labels().get(LABEL_TRIGGER_UID) != process.labels().get(LABEL_TRIGGER_UID) {
            return Ok(Created::Foreign);
        }
        if found.metadata.deletion_timestamp.is_some() {
            return Err(ApiError::Unavailable(
                "the former process of this message is being deleted".to_owned(),
            ));
        }
        Ok(Created::Exists(Box::new(found)))
    }

    /// Makes sure that the ConfigMap of a process exists.
    ///
    /// # Errors
    /// See [`ApiError`]. A ConfigMap of that name that is not ours is [`ApiError::Unavailable`]: it can go.
    pub async fn ensure_config_map(&self, process: &RemoteProcess, message: &Message) -> Result<(), ApiError> {
        let config_map = build_config_map(process, message);
        match self.call(self.config_maps().create(&post(), &config_map)).await {
            Ok(_) => return Ok(()),
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(classify(&error)),
        }
        let name = process.name_any();
        let found = self
            .call(self.config_maps().get(&name))
            .await
            .map_err(|error| classify(&error))?;
        if is_of(&found, &process.uid().unwrap_or_default()) {
            return Ok(());
        }
        Err(ApiError::Unavailable(format!(
            "the ConfigMap {name} belongs to something else; it must be deleted before the process can start"
        )))
    }

    /// The message of a process; `None` if it is gone.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn message_of(&self, process: &RemoteProcess) -> Result<Option<Message>, ApiError> {
        let found = self.call(self.config_maps().get_opt(&process.name_any())).await;
        let found = found.map_err(|error| classify(&error))?;
        let own = found.filter(|found| is_of(found, &process.uid().unwrap_or_default()));
        Ok(own.as_ref().and_then(stored_message))
    }

    /// Whether the ConfigMap of a process exists.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn has_message(&self, process: &RemoteProcess) -> Result<bool, ApiError> {
        let found = self.call(self.config_maps().get_opt(&process.name_any())).await;
        let found = found.map_err(|error| classify(&error))?;
        Ok(found.is_some_and(|found| is_of(&found, &process.uid().unwrap_or_default())))
    }

    /// A trigger or a sink by name.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn object<K>(&self, name: &str) -> Result<K, ApiError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        let api = Api::<K>::namespaced(self.client.clone(), &self.namespace);
        self.call(api.get(name)).await.map_err(|error| classify(&error))
    }

    /// The same, if there is one.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn found<K>(&self, name: &str) -> Result<Option<K>, ApiError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        let api = Api::<K>::namespaced(self.client.clone(), &self.namespace);
        self.call(api.get_opt(name)).await.map_err(|error| classify(&error))
    }

    /// A process by name, if there is one.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn process(&self, name: &str) -> Result<Option<RemoteProcess>, ApiError> {
        self.found(name).await
    }

    /// Notes in the process that its result is sent.
    ///
    /// # Errors
    /// See [`ApiError`]. That the process is gone is none.
    pub async fn mark_sent(&self, process: &RemoteProcess) -> Result<(), ApiError> {
        let (uid, now) = (process.uid().unwrap_or_default(), Timestamp::now().to_string());
        self.annotate(&process.name_any(), &uid, ANNOTATION_RESULT_SENT, &now)
            .await
    }

    /// Deletes a process.
    ///
    /// # Errors
    /// See [`ApiError`]. That the process is gone is none.
    pub async fn delete(&self, name: &str, uid: &str) -> Result<(), ApiError> {
        let params = DeleteParams {
            preconditions: Some(Preconditions {
                uid: Some(uid.to_owned()),
                resource_version: None,
            }),
            ..DeleteParams::background()
        };
        match self.call(self.processes().delete(name, &params)).await {
            Err(error) if !is_gone(&error) => Err(classify(&error)),
            _ => Ok(()),
        }
    }

    /// Whether the ServiceAccount may create processes.
    ///
    /// # Errors
    /// [`ApiError::Forbidden`] if not.
    pub async fn check_permission(&self) -> Result<(), ApiError> {
        let review = SelfSubjectAccessReview {
            spec: SelfSubjectAccessReviewSpec {
                resource_attributes: Some(ResourceAttributes {
                    namespace: Some(self.namespace.clone()),
                    group: Some(GROUP.to_owned()),
                    resource: Some("remoteprocesses".to_owned()),
                    verb: Some("create".to_owned()),
                    ..ResourceAttributes::default()
                }),
                ..SelfSubjectAccessReviewSpec::default()
            },
            ..SelfSubjectAccessReview::default()
        };
        let api: Api<SelfSubjectAccessReview> = Api::all(self.client.clone());
        let answer = match self
            .call(api.create(&post(), &review))
            .await
            .map_err(|error| classify(&error))
        {
            // An account that may not ask learns it from the first process.
            Err(ApiError::Forbidden(_)) => return Ok(()),
            answer => answer?,
        };
        if answer.status.is_some_and(|status| status.allowed) {
            return Ok(());
        }
        Err(ApiError::Forbidden(
            "the ServiceAccount of the trigger may not create RemoteProcesses".to_owned(),
        ))
    }

    /// Writes an annotation of a process.
    ///
    /// # Errors
    /// See [`ApiError`]. That the process is gone is none.
    pub async fn annotate(&self, name: &str, uid: &str, key: &str, value: &str) -> Result<(), ApiError> {
        // The API server refuses to change a uid: so this is the process that was meant, or none.
        let patch = json!({"metadata": {"uid": uid, "annotations": {key: value}}});
        let params = PatchParams {
            field_manager: Some(BRIDGE_MANAGER.to_owned()),
            ..PatchParams::default()
        };
        let api = self.processes();
        match self.call(api.patch_metadata(name, &params, &Patch::Merge(patch))).await {
            Err(error) if !is_gone(&error) => Err(classify(&error)),
            _ => Ok(()),
        }
    }

    /// Applies the part of the status of a trigger or a sink that the bridge owns.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn apply_status<K>(&self, name: &str, status: &Value) -> Result<(), ApiError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        let applied = self.apply::<K>(name, &json!({"name": name}), status).await;
        applied.map_err(|error| classify(&error))
    }

    /// The same, if the object is still as it was read: otherwise false.
    ///
    /// # Errors
    /// See [`ApiError`].
    pub async fn apply_status_of<K>(&self, object: &K, status: &Value) -> Result<bool, ApiError>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        let name = object.name_any();
        let metadata = json!({"name": name, "resourceVersion": object.resource_version()});
        match self.apply::<K>(&name, &metadata, status).await {
            Err(error) if is_gone(&error) => Ok(false),
            applied => applied.map(|()| true).map_err(|error| classify(&error)),
        }
    }

    async fn apply<K>(&self, name: &str, metadata: &Value, status: &Value) -> kube::Result<()>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    {
        let object = json!({
            "apiVersion": K::api_version(&()), "kind": K::kind(&()), "metadata": metadata, "status": status,
        });
        let params = PatchParams::apply(BRIDGE_MANAGER).force();
        let api = Api::<K>::namespaced(self.client.clone(), &self.namespace);
        let applied = self.call(api.patch_status(name, &params, &Patch::Apply(&object))).await;
        applied.map(|_| ())
    }

    /// Writes an Event about a trigger or a sink. One that cannot be written is only logged: the status says the same.
    pub async fn report<K: Resource<DynamicType = ()>>(
        &self,
        about: &K,
        condition: BridgeCondition,
        finding: &Finding,
    ) {
        let recorder = Recorder::new(self.client(), Reporter::from(BRIDGE_MANAGER));
        let event = Event {
            type_: if finding.holds {
                EventType::Normal
            } else {
                EventType::Warning
            },
            reason: finding.reason.to_string(),
            note: Some(sanitize::plain(&finding.message, MAX_NOTE)),
            action: condition.to_string(),
            secondary: None,
        };
        let published = tokio::time::timeout(TIMEOUT, recorder.publish(&event, &about.object_ref(&()))).await;
        if !matches!(published, Ok(Ok(()))) {
            tracing::debug!(?published, "cannot write an event");
        }
    }

    async fn call<T>(&self, call: impl Future<Output = kube::Result<T>>) -> kube::Result<T> {
        match tokio::time::timeout(TIMEOUT, call).await {
            Ok(answer) => answer,
            Err(_) => Err(kube::Error::Service("no answer within 10 s".into())),
        }
    }
}

fn post() -> PostParams {
    PostParams {
        field_manager: Some(BRIDGE_MANAGER.to_owned()),
        ..PostParams::default()
    }
}

/// The object is not there any more, or another one has its name.
fn is_gone(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 404 || status.code == 409)
}

/// What a refusal means for a message.
fn classify(error: &kube::Error) -> ApiError {
    match error {
        kube::Error::Api(status) => classify_status(status),
        // What cannot be written as JSON does not change either.
        kube::Error::SerdeError(error) => ApiError::Invalid(error.to_string()),
        other => ApiError::Unavailable(other.to_string()),
    }
}

fn classify_status(status: &Status) -> ApiError {
    let said = status.message.clone();
    match status.code {
        400 | 413 | 422 => ApiError::Invalid(said),
        401 | 403 => ApiError::Forbidden(said),
        _ => ApiError::Unavailable(format!("{said} (code {})", status.code)),
    }
}

/// How an administrator gives the ServiceAccount of a sink its rights.
pub fn remedy_for_sink(sink: &str, namespace: &str, service_account: &str) -> String {
    format!(
        "kubectl create rolebinding {sink}-sink --namespace={namespace} --clusterrole={SINK_ROLE} \
         --serviceaccount={namespace}:{service_account}"
    )
}

/// How an administrator gives the ServiceAccount its rights.
pub fn remedy(trigger: &str, namespace: &str, service_account: &str) -> String {
    format!(
        "kubectl create rolebinding {trigger}-trigger --namespace={namespace} --clusterrole={TRIGGER_ROLE} \
         --serviceaccount={namespace}:{service_account}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_the_fault_of_the_message_or_not() {
        let said = |code| classify_status(&Status::failure("said", "Reason").with_code(code));
        for code in [400, 413, 422] {
            assert_eq!(said(code), ApiError::Invalid("said".into()), "{code}");
        }
        for code in [401, 403] {
            assert_eq!(said(code), ApiError::Forbidden("said".into()), "{code}");
        }
        for code in [404, 409, 429, 500, 503, 504] {
            assert!(matches!(said(code), ApiError::Unavailable(_)), "{code}");
        }
    }
}
