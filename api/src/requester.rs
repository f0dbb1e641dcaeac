//! Who requested the desired state, and why, as far as the object itself records it.
//!
//! The API server records no user names in an object, only the program ("field manager") that set a field. The relay
//! names the user for whom it sets the field. The annotations [`names::ANNOTATION_REASON`] and
//! [`names::ANNOTATION_REQUESTED_BY`] count only if the same program has set them.

use std::fmt::{self, Display};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use serde_json::Value;

use crate::names;
use crate::sanitize::plain;
use crate::spec::RemoteProcess;

/// Maximum length of a name or reason that is passed on, in characters.
const LONGEST: usize = 256;
/// Where the request was made.
const WAY: &str = "spec.desiredState";

/// Who requested it, and why; as text `by kubectl-patch through spec.desiredState (for maintenance)`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requester {
    /// The user if the relay set the field for one, otherwise the field manager.
    pub by: Option<String>,
    /// The given reason, without control characters.
    pub why: Option<String>,
}

impl RemoteProcess {
    /// Who last set `spec.desiredState`.
    pub fn requester(&self) -> Requester {
        let entries = self.metadata.managed_fields.iter().flatten();
        let setter = entries
            .filter(|entry| sets_desired_state(entry))
            .max_by_key(|entry| entry.time.clone());
        let Some(setter) = setter else {
            return Requester::default();
        };
        let is_of_relay = setter.manager.as_deref() == Some(names::RELAY_MANAGER);
        let user = self.said_with(setter, names::ANNOTATION_REQUESTED_BY);
        Requester {
            by: user.filter(|_| is_of_relay).or_else(|| setter.manager.clone()),
            why: self.said_with(setter, names::ANNOTATION_REASON),
        }
    }

    /// The value of an annotation, if this manager has set it.
    fn said_with(&self, setter: &ManagedFieldsEntry, annotation: &str) -> Option<String> {
        let text = self.metadata.annotations.as_ref()?.get(annotation)?;
        let path = ["f:metadata", "f:annotations", &format!("f:{annotation}")];
        owns(setter, &path)
            .then(|| plain(text, LONGEST))
            .filter(|text| !text.is_empty())
    }
}

impl Requester {
    /// Who, and through what, as the status shows it for every stop (`requestedBy`): `kubectl-patch through
    /// spec.desiredState`.
    pub fn requested_by(&self) -> String {
        match &self.by {
            Some(by) => format!("{by} through {WAY}"),
            None => WAY.to_owned(),
        }
    }
}

impl Display for Requester {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "by {}", self.requested_by())?;
        match &self.why {
            Some(why) => write!(formatter, " ({why})"),
            None => Ok(()),
        }
    }
}

/// Whether this manager has set the desired state.
pub fn sets_desired_state(entry: &ManagedFieldsEntry) -> bool {
    entry.subresource.is_none() && owns(entry, &["f:spec", "f:desiredState"])
}

fn owns(entry: &ManagedFieldsEntry, path: &[&str]) -> bool {
    let fields = entry.fields_v1.as_ref().map(|fields| &fields.0);
    let found = path.iter().fold(fields, |at, name| at.and_then(|at| at.get(name)));
    found.is_some_and(Value::is_object)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(managed: Value) -> RemoteProcess {
        let object = serde_json::json!({
            "apiVersion": "remoteprocess.dev/v1alpha1", "kind": "RemoteProcess",
            "metadata": {
                "name": "job", "annotations": {
                    "remoteprocess.dev/reason": "for \u{1b}maintenance",
                    "remoteprocess.dev/requested-by": "alice",
                },
                "managedFields": managed,
            },
            "spec": {"image": "i", "command": ["x"], "desiredState": "Paused"},
        });
        serde_json::from_value(object).unwrap()
    }

    fn entry(manager: &str, second: u32, fields: Value) -> Value {
        serde_json::json!({
            "manager": manager, "operation": "Update", "apiVersion": "remoteprocess.dev/v1alpha1",
            "time": format!("2026-01-01T00:00:0{second}Z"), "fieldsType": "FieldsV1", "fieldsV1": fields,
        })
    }

    #[test]
    fn the_last_who_set_it_has_asked() {
        let state = || serde_json::json!({"f:spec": {"f:desiredState": {}, "f:image": {}}});
        let reason = serde_json::json!({"f:metadata": {"f:annotations": {"f:remoteprocess.dev/reason": {}}}});
        let of = |entries: &[Value]| process(Value::Array(entries.to_vec())).requester().to_string();
        assert_eq!(of(&[]), "by spec.desiredState");
        assert_eq!(of(&[entry("helm", 1, state())]), "by helm through spec.desiredState");
        let patched = entry("kubectl-patch", 2, state());
        let patch = "by kubectl-patch through spec.desiredState";
        assert_eq!(of(&[entry("helm", 1, state()), patched.clone()]), patch);
        let mut status = entry("remoteprocess-controller", 3, state());
        status["subresource"] = "status".into();
        let stranger = entry("kubectl-annotate", 3, reason.clone());
        assert_eq!(of(&[patched, status, stranger]), patch, "the reason of another manager");
        let mut both = state();
        both["f:metadata"] = reason["f:metadata"].clone();
        assert_eq!(
            of(&[entry("rproc", 4, both.clone())]),
            "by rproc through spec.desiredState (for maintenance)"
        );
        both["f:metadata"]["f:annotations"]["f:remoteprocess.dev/requested-by"] = serde_json::json!({});
        assert_eq!(
            of(&[entry("remoteprocess-relay", 5, both.clone())]),
            "by alice through spec.desiredState (for maintenance)"
        );
        let other = of(&[entry("kubectl-patch", 6, both)]);
        assert_eq!(
            other,
            format!("{patch} (for maintenance)"),
            "only the relay knows the user"
        );
    }
}
