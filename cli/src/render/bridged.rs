//! Triggers and sinks for people: one as a line of a table, and what their details have in common.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::Resource;
use kube::core::DynamicObject;
use remoteprocess_api::bridge::{BridgeCondition, BrokerTls};
use serde::de::DeserializeOwned;

use super::description::Page;
use super::since;

/// A kind of objects that is a table.
pub trait Row: Resource<DynamicType = ()> + DeserializeOwned {
    /// The columns between NAME and AGE.
    const COLUMNS: &'static [&'static str];
    /// The columns after AGE, for which a terminal of 80 columns has no room.
    const WIDE_COLUMNS: &'static [&'static str];

    /// The cells of these columns. An object that this version cannot read is absent.
    fn cells(object: Option<&Self>, now: Timestamp) -> (Vec<String>, Vec<String>);
}

/// The columns of the table.
#[derive(Clone, Copy, Debug, Default)]
pub struct Columns {
    /// NAMESPACE in front.
    pub namespace: bool,
    /// All columns.
    pub wide: bool,
}

impl Columns {
    /// The header.
    pub fn header<K: Row>(self) -> Vec<String> {
        let namespace = self.namespace.then_some("NAMESPACE");
        let wide = if self.wide { K::WIDE_COLUMNS } else { &[] };
        let names = namespace.into_iter().chain(["NAME"]).chain(K::COLUMNS.iter().copied());
        let names = names.chain(["AGE"]).chain(wide.iter().copied());
        names.map(str::to_owned).collect()
    }

    /// The row of one object. One that this version cannot read has its name and little more.
    pub fn row<K: Row>(self, object: &DynamicObject, now: Timestamp) -> Vec<String> {
        let metadata = &object.metadata;
        let created = metadata.creation_timestamp.as_ref().map(|time| time.0);
        let object = object.clone().try_parse::<K>().ok();
        let (cells, wide) = K::cells(object.as_ref(), now);
        let namespace = self.namespace.then(|| metadata.namespace.clone().unwrap_or_default());
        let name = metadata.name.clone().unwrap_or_default();
        let row = namespace
            .into_iter()
            .chain([name])
            .chain(cells)
            .chain([since(created, now)]);
        row.chain(wide.into_iter().filter(|_| self.wide)).collect()
    }
}

/// The condition Ready, if the bridge has written it.
pub(super) fn ready(conditions: &[Condition]) -> Option<&Condition> {
    let ready: &str = BridgeCondition::Ready.into();
    conditions.iter().find(|condition| condition.type_ == ready)
}

/// Status and reason of the condition Ready.
pub(super) fn ready_cells(conditions: &[Condition]) -> (String, String) {
    let cells = ready(conditions).map(|condition| (condition.status.clone(), condition.reason.clone()));
    cells.unwrap_or_default()
}

pub(super) fn number(count: Option<impl ToString>) -> String {
    count.map(|count| count.to_string()).unwrap_or_default()
}

/// How bridge and broker trust each other.
pub(super) fn trust(page: &mut Page, tls: Option<&BrokerTls>) {
    let Some(tls) = tls else { return };
    page.inner("CA", tls.ca_secret_name.as_deref());
    page.inner("Certificate", tls.client_certificate_secret_name.as_deref());
}

#[cfg(test)]
pub(super) mod tests {
    use remoteprocess_api::{ProcessSink, ProcessTrigger};
    use serde::Serialize;
    use serde_json::Value;

    /// What these tests must know about a kind.
    pub(crate) trait Example: Row + Serialize {
        const KIND: &'static str;
        fn account(&self) -> &str;
    }

    impl Example for ProcessTrigger {
        const KIND: &'static str = "ProcessTrigger";

        fn account(&self) -> &str {
            &self.spec.service_account_name
        }
    }

    impl Example for ProcessSink {
        const KIND: &'static str = "ProcessSink";

        fn account(&self) -> &str {
            &self.spec.service_account_name
        }
    }

    use super::*;

    /// Fields of `one` that `other` has not, or has with another value.
    fn missing(one: &Value, other: &Value, path: &str) -> Vec<String> {
        match (one, other) {
            (Value::Object(one), Value::Object(_)) => one
                .iter()
                .flat_map(|(name, value)| missing(value, &other[name], &format!("{path}.{name}")))
                .collect(),
            _ if one == other => Vec::new(),
            _ => vec![path.to_owned()],
        }
    }

    /// Checks a file of examples: a ServiceAccount, its binding to the role, and an object without unknown fields.
    pub(crate) fn assert_examples<K: Example>(text: &str, namespace: &str, role: &str) -> K {
        let objects: Vec<Value> = text
            .split("\n---\n")
            .map(|object| serde_saphyr::from_str(object).unwrap())
            .collect();
        let kinds: Vec<_> = objects.iter().map(|object| object["kind"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["ServiceAccount", "RoleBinding", K::KIND]);
        let is_there = |object: &Value| object["metadata"]["namespace"] == namespace;
        assert!(objects.iter().all(is_there), "{text}");
        let object: K = serde_json::from_value(objects[2].clone()).unwrap();
        let (account, binding) = (&objects[0]["metadata"]["name"], &objects[1]);
        assert_eq!(account, object.account());
        assert_eq!(&binding["subjects"][0]["name"], account);
        assert_eq!(binding["roleRef"]["name"], role);
        let known = serde_json::to_value(&object).unwrap();
        assert_eq!(missing(&objects[2]["spec"], &known["spec"], ""), Vec::<String>::new());
        object
    }
}
