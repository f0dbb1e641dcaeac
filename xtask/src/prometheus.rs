//! What promtool says about metrics and alerts. It takes minutes to build, so `external` calls this.

use std::fs::File;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::steps::step;
use crate::{cluster, exec, paths};

/// Each metric of the operator; a test of the operator keeps it as it is.
const METRICS: &str = "operator/tests/metrics.prom";
const ALERTS: &str = "charts/remoteprocess-operator/files/alerts.yaml";
const ALERT_TESTS: &str = "operator/tests/alerts.yaml";

/// Checks names, units and help of the metrics, the alerts, and when the alerts fire.
pub(crate) fn check() -> Result<()> {
    let promtool = cluster::external_tool("promtool")?;
    let command = |args: &[&str]| {
        let mut command = Command::new(&promtool);
        command.current_dir(paths::repository()).args(args);
        command
    };
    step("promtool on the metrics", || {
        let path = paths::repository().join(METRICS);
        let metrics = File::open(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let judged = command(&["check", "metrics"]).stdin(metrics).output()?;
        // It writes its findings to stderr.
        let findings = String::from_utf8_lossy(&judged.stderr);
        if !judged.status.success() || !findings.trim().is_empty() {
            bail!("promtool found:\n{findings}");
        }
        Ok(())
    })?;
    step("promtool on the alerts", || {
        exec::output(&mut command(&["check", "rules", "--lint=all", "--lint-fatal", ALERTS]))?;
        exec::output(&mut command(&["test", "rules", ALERT_TESTS])).map(drop)
    })
}
