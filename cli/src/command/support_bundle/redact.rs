//! What must not leave the cluster: arguments, values of variables and annotations, and output.

use std::collections::BTreeSet;

use aho_corasick::{AhoCorasick, MatchKind};
use serde_json::{Map, Value};

/// Replaces each redacted text.
pub(super) const REDACTED: &str = "REDACTED";
/// Redacted texts of at least this length are searched for in all other texts. Shorter ones are words such as `sh`.
const MIN_SEARCHED: usize = 6;

/// The texts that were redacted so far.
#[derive(Default)]
pub(super) struct Redacted {
    texts: BTreeSet<String>,
    keeps_arguments: bool,
}

impl Redacted {
    /// Redacts an object: the command line and environment of each container and process, the values of annotations,
    /// the end of the output in the status, and inline attributes of volumes. Keys, names and references stay.
    pub(super) fn redact(&mut self, object: &mut Value) {
        match object {
            Value::Object(fields) => self.fields(fields),
            Value::Array(items) => items.iter_mut().for_each(|item| self.redact(item)),
            _ => {}
        }
    }

    /// As [`Self::redact`], for objects whose command lines are settings.
    pub(super) fn redact_but_arguments(&mut self, object: &mut Value) {
        self.keeps_arguments = true;
        self.redact(object);
        self.keeps_arguments = false;
    }

    fn fields(&mut self, fields: &mut Map<String, Value>) {
        fields.remove("managedFields");
        for (key, value) in fields {
            match key.as_str() {
                "command" | "args" if self.keeps_arguments => {}
                "command" | "args" => self.hide(value),
                "env" => self.variables(value),
                // They are long, or words that others use as well: nothing else is searched for them.
                "annotations" | "tail" | "volumeAttributes" => blank(value),
                _ => self.redact(value),
            }
        }
    }

    /// The values of variables. References to Secrets and ConfigMaps are names.
    fn variables(&mut self, list: &mut Value) {
        for variable in list.as_array_mut().into_iter().flatten() {
            if let Some(value) = variable.get_mut("value") {
                self.hide(value);
            }
        }
    }

    /// Replaces every text in a value, and remembers it.
    fn hide(&mut self, value: &mut Value) {
        each_text(value, &mut |text| {
            // The lines of a script may be quoted one by one, and `--token=x` without its flag.
            self.texts.extend(text.lines().map(|line| line.trim().to_owned()));
            self.texts
                .extend(text.split_once('=').map(|(_, value)| value.to_owned()));
            let is_word = |word: &&str| !word.chars().all(|character| character.is_ascii_lowercase());
            self.texts
                .extend(text.split_whitespace().filter(is_word).map(str::to_owned));
            self.texts.insert(text);
        });
    }

    /// Keeps a text although it was redacted somewhere: a name without which nothing is understood.
    pub(super) fn keep(&mut self, name: &str) {
        self.texts.remove(name);
    }

    /// Removes the redacted texts from another text, such as a log or a message.
    pub(super) fn scrub(&self, text: &str) -> String {
        let searched: Vec<&String> = self.texts.iter().filter(|text| text.len() >= MIN_SEARCHED).collect();
        let found = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(&searched);
        match found {
            Ok(found) => found.replace_all(text, &vec![REDACTED; searched.len()]),
            // Too many texts for one automaton: nothing is better than a secret.
            Err(_) => format!("{REDACTED}: too many texts had to be removed\n"),
        }
    }
}

/// Replaces every text in a value.
fn blank(value: &mut Value) {
    each_text(value, &mut drop);
}

/// Replaces every text in a value, and gives it to `take`.
fn each_text(value: &mut Value, take: &mut dyn FnMut(String)) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| each_text(item, take)),
        Value::Object(fields) => fields.values_mut().for_each(|field| each_text(field, take)),
        Value::Null => {}
        scalar => match std::mem::replace(scalar, Value::String(REDACTED.to_owned())) {
            Value::String(text) => take(text),
            other => take(other.to_string()),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn no_canary_survives() {
        let mut object = json!({
            "metadata": {
                "name": "build", "labels": {"app": "web"},
                "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "canary-annotation"},
                "managedFields": [{"manager": "canary-manager"}],
            },
            "spec": {
                "image": "busybox", "command": ["sh", "-c", "login canary-script"], "args": ["--token=canary-argument"],
                "env": [
                    {"name": "PASSWORD", "value": "canary-variable"},
                    {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "vault", "key": "key"}}},
                ],
                "volumes": [{"name": "v", "csi": {"volumeAttributes": {"k": "canary-volume"}}}],
                "template": {"containers": [{"env": [{"name": "X", "value": "canary-deep"}], "args": ["canary-inner"]}]},
            },
            "status": {
                "output": {"tail": "canary-output"},
                "conditions": [{"type": "Started", "message": "exec canary-argument: no such file; login canary-script"}],
            },
        });
        let mut redacted = Redacted::default();
        redacted.redact(&mut object);
        let text = redacted.scrub(&serde_json::to_string_pretty(&object).unwrap());
        assert!(!text.contains("canary"), "{text}");
        for kept in [
            "build",
            "web",
            "busybox",
            "PASSWORD",
            "vault",
            "no such file",
            "last-applied-configuration",
        ] {
            assert!(text.contains(kept), "{kept}: {text}");
        }
        let log = redacted.scrub("refused canary-variable and canary-deep of canary-inner");
        assert!(!log.contains("canary"), "{log}");
    }

    #[test]
    fn short_words_and_names_stay_readable() {
        let mut redacted = Redacted::default();
        redacted.redact(&mut json!({"command": ["sh", "-c", "default"]}));
        redacted.keep("default");
        assert_eq!(redacted.scrub("sh in namespace default"), "sh in namespace default");
    }
}
