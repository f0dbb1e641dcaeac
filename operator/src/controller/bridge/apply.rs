//! Creates, changes and deletes the objects of a bridge, or reports why the API server refuses it.

use std::fmt::Debug;

use kube::api::{Api, DeleteParams, Patch, PatchParams, Preconditions};
use kube::core::{NamespaceResourceScope, Status};
use kube::{Client, Resource, ResourceExt};
use remoteprocess_api::names;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::info;

use super::super::error::Error;
use super::difference::is_contained;
use super::kind::Bridged;

/// What came of an object that a bridge needs.
#[derive(Debug)]
pub(super) enum Applied<K> {
    /// It is as it should be.
    There(Box<K>),
    /// There is no such object, in the words for the user.
    Refused(String),
    /// The namespace, or an object of that name, is being deleted, or was replaced: the next reconcile knows more.
    Leaving,
}

/// Makes the object as it is wanted, unless `found` in the cache contains all that is wanted. An object of that name that
/// `owner` does not control is left alone.
///
/// # Errors
/// When the API server did not decide.
pub(super) async fn apply<K, O>(client: &Client, owner: &O, wanted: &K, found: Option<&K>) -> Result<Applied<K>, Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    K: Clone + Debug + Serialize + DeserializeOwned,
    O: Bridged,
{
    let (kind, name) = (K::kind(&()), wanted.name_any());
    let api: Api<K> = Api::namespaced(client.clone(), &owner.namespace().unwrap_or_default());
    // The cache has only objects with our labels.
    let found = match found {
        Some(found) => Some(found.clone()),
        None => api.get_opt(&name).await.map_err(Error::Observe)?,
    };
    if let Some(found) = &found {
        if !is_controlled(found, owner) {
            let word = O::WORD;
            let message = format!(
                "there is a {kind} {name} that this {word} does not control; delete it, or give the {word} another name"
            );
            return Ok(Applied::Refused(message));
        }
        if found.meta().deletion_timestamp.is_some() {
            return Ok(Applied::Leaving);
        }
        if is_contained(wanted, found) {
            return Ok(Applied::There(Box::new(found.clone())));
        }
    }
    let mut object = wanted.clone();
    // What another client creates in this moment is not taken over: its uid, or its fields, are others.
    object.meta_mut().uid = found.as_ref().and_then(ResourceExt::uid);
    let params = PatchParams {
        force: found.is_some(),
        ..PatchParams::apply(names::CONTROLLER_MANAGER)
    };
    match api.patch(&name, &params, &Patch::Apply(&object)).await {
        Ok(applied) => {
            info!(%kind, name, "applied");
            Ok(Applied::There(Box::new(applied)))
        }
        Err(kube::Error::Api(status)) => decide(&kind, &name, *status),
        Err(error) => Err(Error::Apply(error)),
    }
}

/// Deletes an object of the cache, if `owner` controls it.
///
/// # Errors
/// When the API server did not decide.
pub(super) async fn delete<K, O>(client: &Client, owner: &O, found: &K) -> Result<(), Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    O: Bridged,
{
    if !is_controlled(found, owner) || found.meta().deletion_timestamp.is_some() {
        return Ok(());
    }
    let api: Api<K> = Api::namespaced(client.clone(), &owner.namespace().unwrap_or_default());
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: found.uid(),
            resource_version: None,
        }),
        ..DeleteParams::default()
    };
    match api.delete(&found.name_any(), &params).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(error) => Err(Error::Cleanup(error)),
    }
}

/// Whether `owner` is the controller of an object.
fn is_controlled<K: Resource, O: Bridged>(object: &K, owner: &O) -> bool {
    let uid = owner.meta().uid.as_ref();
    let mut owners = object.owner_references().iter();
    owners.any(|owner| owner.controller == Some(true) && Some(&owner.uid) == uid)
}

/// Interprets a refusal: admission answers with any code of these, also for a webhook that does not answer (500).
fn decide<K>(kind: &str, name: &str, status: Status) -> Result<Applied<K>, Error> {
    let is_terminating = || {
        let causes = status.details.iter().flat_map(|details| &details.causes);
        causes.into_iter().any(|cause| cause.reason == "NamespaceTerminating")
    };
    let refused = |message: &str| {
        Ok(Applied::Refused(format!(
            "the API server refuses the {kind} {name}: {message}"
        )))
    };
    match status.code {
        404 => Ok(Applied::Leaving),
        403 if is_terminating() => Ok(Applied::Leaving),
        400 | 403 | 422 => refused(&status.message),
        500 if status.message.contains("failed calling webhook") => refused(&status.message),
        409 => Ok(Applied::Leaving),
        _ => Err(Error::Apply(kube::Error::Api(Box::new(status)))),
    }
}
