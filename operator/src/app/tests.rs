//! The metrics: their names, their documentation, and where the chart uses them.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;

use remoteprocess_runtime::prometheus_client::encoding::text::encode;

use super::*;
use crate::authority::metrics::{count_refusal, expiry};
use crate::relay::calls::Call;

/// A metric as Prometheus stores it: the suffix `_total` is part of the name of a counter.
struct Family {
    name: String,
    kind: String,
    help: String,
    labels: Vec<String>,
}

impl Family {
    /// The names of its series.
    fn series(&self) -> Vec<String> {
        match self.kind.as_str() {
            "histogram" => ["_bucket", "_sum", "_count"]
                .iter()
                .map(|suffix| format!("{}{suffix}", self.name))
                .collect(),
            _ => vec![self.name.clone()],
        }
    }
}

/// All metrics of the operator, by name.
fn families() -> BTreeMap<String, Family> {
    // Metrics with labels appear with their first value.
    drop(Call::begin("grpc", "List", None, None));
    count_refusal("main", "NoRight");
    expiry("ca", None);
    expiry("operator", Some(std::time::SystemTime::now()));
    controller::metrics::metrics().count_reconcile("ok");
    let mut text = String::new();
    encode(&mut text, &metrics()).unwrap();
    let (mut families, mut help, mut base) = (BTreeMap::new(), String::new(), String::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ').unwrap().1.to_owned();
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            base = match kind {
                "counter" => format!("{name}_total"),
                _ => name.to_owned(),
            };
            let family = Family {
                name: base.clone(),
                kind: kind.to_owned(),
                help: help.clone(),
                labels: Vec::new(),
            };
            families.insert(base.clone(), family);
        } else if let Some((_, labels)) = line.split_once('{').filter(|_| !line.starts_with('#')) {
            let names = labels
                .split("=\"")
                .filter_map(|part| part.rsplit(['{', ',', '"']).next());
            let names = names.filter(|name| !name.is_empty() && !name.starts_with([' ', '}']) && *name != "le");
            families.get_mut(&base).unwrap().labels = names.map(str::to_owned).collect();
        }
    }
    families
}

fn repository(path: &str) -> String {
    format!("{}/../{path}", env!("CARGO_MANIFEST_DIR"))
}

/// What `promtool check metrics` reads: each metric with its labels and without values.
fn exposition(families: &BTreeMap<String, Family>) -> String {
    let mut text = String::new();
    for family in families.values() {
        let Family {
            name,
            kind,
            help,
            labels,
        } = family;
        let mut labels: Vec<_> = labels.iter().map(|label| format!("{label}=\"\"")).collect();
        writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}").unwrap();
        for series in family.series() {
            if series.ends_with("_bucket") {
                labels.push("le=\"+Inf\"".to_owned());
            }
            let of_it = if labels.is_empty() {
                String::new()
            } else {
                format!("{{{}}}", labels.join(","))
            };
            writeln!(text, "{series}{of_it} 0").unwrap();
            labels.retain(|label| !label.starts_with("le="));
        }
    }
    text
}

#[test]
fn every_metric_is_in_the_documentation() {
    let page = fs::read_to_string(repository("docs/operations.md")).unwrap();
    let families = families();
    let missing: Vec<_> = families
        .keys()
        .filter(|name| !page.contains(&format!("`{name}`")))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
    let is_word = |c: char| c.is_ascii_lowercase() || c == '_';
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `remoteprocess_"));
    let documented = rows.map(|row| format!("remoteprocess_{}", row.split(|c| !is_word(c)).next().unwrap()));
    // The metrics of a bridge are compared by the bridge's own test.
    let ours = documented
        .filter(|name| !name.starts_with("remoteprocess_bridge_") && !name.starts_with("remoteprocess_sink_"));
    let unknown: Vec<_> = ours.filter(|name| !families.contains_key(name)).collect();
    assert!(unknown.is_empty(), "these do not exist: {unknown:?}");
}

/// The file is what `cargo xtask external` gives to promtool.
#[test]
fn metrics_follow_the_conventions_of_prometheus() {
    let families = families();
    for family in families.values() {
        let (name, kind) = (&family.name, family.kind.as_str());
        assert!(
            name.starts_with("remoteprocess_"),
            "{name}: the prefix is the program's"
        );
        assert!(
            name.chars().all(|c| c.is_ascii_lowercase() || c == '_'),
            "{name}: lower case and underscores"
        );
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
        assert!(kind != "histogram" || name.ends_with("_seconds"), "{name}: base unit");
        for unit in ["_ms", "_milliseconds", "_minutes", "_hours", "_kb", "_mb", "_mebibytes"] {
            assert!(!name.contains(unit), "{name}: use seconds and bytes");
        }
        assert!(
            family.help.len() > 10 && family.help.ends_with('.'),
            "{name}: {}",
            family.help
        );
    }
    let (path, text) = (repository("operator/tests/metrics.prom"), exposition(&families));
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &text).unwrap();
    }
    assert!(
        fs::read_to_string(&path).unwrap_or_default() == text,
        "run UPDATE_DOCS=1 cargo test -p remoteprocess-operator --lib app"
    );
}

#[test]
fn alerts_and_dashboard_use_only_metrics_that_exist() {
    let families = families();
    let known: BTreeSet<String> = families.values().flat_map(Family::series).collect();
    let chart = |file| fs::read_to_string(repository(&format!("charts/remoteprocess-operator/files/{file}"))).unwrap();
    let rules = chart("alerts.yaml");
    let rules = rules
        .lines()
        .filter_map(|line| line.trim().strip_prefix("expr: "))
        .map(str::to_owned);
    let dashboard: serde_json::Value = serde_json::from_str(&chart("dashboard.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let queries = targets.map(|target| target["expr"].as_str().unwrap().to_owned());
    let expressions: Vec<String> = rules.chain(queries).collect();
    assert!(expressions.len() > 30, "{expressions:?}");
    for expression in &expressions {
        let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
        let used: Vec<_> = words.filter(|word| word.starts_with("remoteprocess_")).collect();
        assert!(!used.is_empty(), "{expression}");
        for name in used {
            assert!(known.contains(name), "{name} does not exist: {expression}");
        }
    }
    // Everything that is measured can be seen.
    let all = expressions.join(" ");
    let unseen: Vec<_> = families.keys().filter(|name| !all.contains(name.as_str())).collect();
    assert_eq!(
        unseen,
        ["remoteprocess_controller_image_volumes"],
        "in no alert and no panel"
    );
}

#[test]
fn a_listed_reason_has_a_value_from_the_beginning() {
    // `increase` sees only what had a value before.
    let mut text = String::new();
    encode(&mut text, &metrics()).unwrap();
    let zero = r#"remoteprocess_relay_gaps_total{reason="SpoolFull"}"#;
    assert!(text.contains(zero), "{text}");
}
