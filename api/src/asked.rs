//! Who asked for the desired state, and why: as far as the object itself tells.
//!
//! The API server tells no user names in an object, only the program ("field manager") by which a field was set. What
//! the annotation [`names::ANNOTATION_REASON`] says counts where the same program has set it.

use std::fmt::{self, Display};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;
use serde_json::Value;

use crate::names;
use crate::sentence::plain;
use crate::spec::RemoteProcess;

/// Longest reason that is passed on, in characters.
const LONGEST: usize = 256;

/// Who asked, and why; as text `by kubectl-patch (for maintenance)`, or nothing where neither is known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// The field manager.
    pub by: Option<String>,
    /// In its own words, control characters left out.
    pub why: Option<String>,
}

impl RemoteProcess {
    /// Who has set `spec.desiredState` last.
    #[must_use]
    pub fn asked(&self) -> Asked {
        let entries = self.metadata.managed_fields.iter().flatten();
        let setter = entries
            .filter(|entry| sets_desired_state(entry))
            .max_by_key(|entry| entry.time.clone());
        let Some(setter) = setter else {
            return Asked::default();
        };
        let reason = self
            .metadata
            .annotations
            .as_ref()
            .and_then(|all| all.get(names::ANNOTATION_REASON));
        let is_of_setter = owns(
            setter,
            &[
                "f:metadata",
                "f:annotations",
                &format!("f:{}", names::ANNOTATION_REASON),
            ],
        );
        Asked {
            by: setter.manager.clone(),
            why: reason
                .filter(|_| is_of_setter)
                .map(|reason| plain(reason, LONGEST))
                .filter(|why| !why.is_empty()),
        }
    }
}

impl Asked {
    /// What was done, and by whom as far as that is known: `paused by kubectl-patch (for maintenance)`.
    #[must_use]
    pub fn of(&self, done: &str) -> String {
        format!("{done} {self}").trim_end().to_owned()
    }

    /// `asked by kubectl-patch (for maintenance)`; `None` where neither is known.
    #[must_use]
    pub fn sentence(&self) -> Option<String> {
        (*self != Self::default()).then(|| self.of("asked"))
    }
}

impl Display for Asked {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.by, &self.why) {
            (Some(by), Some(why)) => write!(formatter, "by {by} ({why})"),
            (Some(by), None) => write!(formatter, "by {by}"),
            (None, Some(why)) => write!(formatter, "({why})"),
            (None, None) => Ok(()),
        }
    }
}

/// Whether the desired state is among what this manager has set.
#[must_use]
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
                "name": "job", "annotations": {"remoteprocess.dev/reason": "for \u{1b}maintenance"},
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
        let asked = |entries: &[Value]| process(Value::Array(entries.to_vec())).asked();
        let of = |entries: &[Value]| asked(entries).to_string();
        assert_eq!(of(&[]), "");
        assert_eq!(
            (asked(&[]).of("paused").as_str(), asked(&[]).sentence()),
            ("paused", None)
        );
        assert_eq!(of(&[entry("helm", 1, state())]), "by helm");
        let patched = entry("kubectl-patch", 2, state());
        assert_eq!(of(&[entry("helm", 1, state()), patched.clone()]), "by kubectl-patch");
        let mut status = entry("remoteprocess-controller", 3, state());
        status["subresource"] = "status".into();
        let stranger = entry("kubectl-annotate", 3, reason.clone());
        assert_eq!(
            of(&[patched, status, stranger]),
            "by kubectl-patch",
            "a reason of somebody else's"
        );
        let mut both = state();
        both["f:metadata"] = reason["f:metadata"].clone();
        let both = [entry("rproc", 4, both)];
        assert_eq!(of(&both), "by rproc (for maintenance)");
        assert_eq!(asked(&both).of("paused"), "paused by rproc (for maintenance)");
        assert_eq!(asked(&both).sentence().unwrap(), "asked by rproc (for maintenance)");
    }
}
