//! Medians, ratios and Markdown.

use anyhow::Result;
use jiff::Zoned;
use remoteprocess_e2e::kubectl;

/// Median; not a number where there is none.
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => f64::NAN,
        length if length % 2 == 1 => sorted[length / 2],
        length => f64::midpoint(sorted[length / 2 - 1], sorted[length / 2]),
    }
}

/// When, where and by which command.
pub fn head(command: &str) -> Result<String> {
    let info = ".items[0].status.nodeInfo";
    let path = format!("--output=jsonpath={{{info}.kubeletVersion}}, {{{info}.containerRuntimeVersion}}");
    let version = kubectl(["get", "nodes", &path]).succeed()?;
    let cores = std::thread::available_parallelism()?;
    let system = rustix::system::uname();
    let date = Zoned::now().strftime("%Y-%m-%d");
    Ok(format!(
        "`{command}`, {date}, Kubernetes {version}, Linux {}, {cores} cores, one node. Medians; the client runs on the \
         node.\n",
        system.release().to_string_lossy()
    ))
}

/// A Markdown table.
pub fn table(header: &[&str], rows: &[Vec<String>]) -> String {
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
    fn a_table() {
        assert_eq!(
            table(&["a", "b"], &[vec!["1".to_owned(), "2".to_owned()]]),
            "| a | b |\n|---|---|\n| 1 | 2 |\n"
        );
    }
}
