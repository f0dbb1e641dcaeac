//! Medians, ratios and Markdown.

use std::fs;

use anyhow::Result;
use jiff::Zoned;
use remoteprocess_e2e::kubectl;

/// Median; NaN if there are no values.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => sorted[length / 2],
        length => f64::midpoint(sorted[length / 2 - 1], sorted[length / 2]),
    }
}

/// The quantile `part` of the values; NaN if there are none.
pub(crate) fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let place = (sorted.len() as f64 * part).ceil() as usize;
    sorted.get(place.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

/// Load averages of the machine over 1, 5 and 15 minutes.
pub(crate) fn load() -> Result<String> {
    let text = fs::read_to_string("/proc/loadavg")?;
    Ok(text.split(' ').take(3).collect::<Vec<_>>().join(" "))
}

/// When, where, by which command, and under which load it began.
pub(crate) fn head(command: &str, load: &str) -> Result<String> {
    let info = ".items[0].status.nodeInfo";
    let path = format!("--output=jsonpath={{{info}.kubeletVersion}}, {{{info}.containerRuntimeVersion}}");
    let version = kubectl(["get", "nodes", &path]).succeed()?;
    let cores = std::thread::available_parallelism()?;
    let system = rustix::system::uname();
    let date = Zoned::now().strftime("%Y-%m-%d");
    Ok(format!(
        "`{command}`, {date}, Kubernetes {version}, Linux {}, {cores} cores, one node; load \
         average {load} before the run. Medians of rounds in turn; the clients run on the node.\n",
        system.release().to_string_lossy()
    ))
}

/// A Markdown table.
pub(crate) fn table(header: &[&str], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut text = line(&header.iter().map(ToString::to_string).collect::<Vec<_>>());
    text.push_str(&format!("|{}\n", "---|".repeat(header.len())));
    rows.iter().for_each(|row| text.push_str(&line(row)));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_one() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn parts_of_the_values() {
        let values: Vec<f64> = (1..=200).rev().map(f64::from).collect();
        assert_eq!(quantile(&values, 0.5), 100.0);
        assert_eq!(quantile(&values, 0.99), 198.0);
        assert_eq!(quantile(&values, 1.0), 200.0);
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn a_table() {
        assert_eq!(
            table(&["a", "b"], &[vec!["1".to_owned(), "2".to_owned()]]),
            "| a | b |\n|---|---|\n| 1 | 2 |\n"
        );
    }
}
