//! The chart and the command line know the same flags.

use std::collections::BTreeSet;
use std::fs;

use clap::CommandFactory;
use remoteprocess_operator::args::Args;

/// Flags that the chart does not need: its ports and paths are fixed, and its values are flags instead of a file.
const NOT_IN_THE_CHART: [&str; 7] = [
    "admin-port",
    "config",
    "enroll-port",
    "help",
    "listen-address",
    "relay-port",
    "version",
];

fn flags_of_the_chart() -> BTreeSet<String> {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../charts/remoteprocess-operator/templates/deployment.yaml"
    );
    let template = fs::read_to_string(path).expect("the template is in the repository");
    let flags = template
        .lines()
        .filter_map(|line| line.trim_start().strip_prefix("- --"));
    flags
        .map(|flag| flag.split_once('=').map_or(flag, |(name, _)| name).to_owned())
        .collect()
}

#[test]
fn every_flag_of_the_chart_exists_and_every_flag_is_in_the_chart() {
    let mut command = Args::command();
    command.build();
    let known: BTreeSet<String> = command
        .get_arguments()
        .filter_map(|argument| argument.get_long().map(str::to_owned))
        .collect();
    let chart = flags_of_the_chart();
    assert_eq!(
        chart.difference(&known).collect::<Vec<_>>(),
        Vec::<&String>::new(),
        "unknown to the operator"
    );
    let missing = known
        .difference(&chart)
        .filter(|flag| !NOT_IN_THE_CHART.contains(&flag.as_str()));
    assert_eq!(
        missing.collect::<Vec<_>>(),
        Vec::<&String>::new(),
        "missing in the chart"
    );
}
