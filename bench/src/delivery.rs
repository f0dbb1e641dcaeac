//! What was delivered to followers, and the cost: the figures by which all ways of following are compared.

use crate::report::{median, table};
use crate::route::Route;

/// One contender's turn.
pub(crate) struct Delivery {
    /// Number of bytes at all its followers together.
    pub bytes: usize,
    /// From the first byte to the last.
    pub seconds: f64,
    /// CPU-seconds of everything in the path.
    pub cpu: f64,
    /// Number of followers that received everything.
    pub whole: usize,
}

impl Delivery {
    /// Reports a turn on stderr.
    pub(crate) fn announce(&self, who: &str) {
        let Self {
            bytes, seconds, cpu, ..
        } = self;
        eprintln!("{who}: {bytes} bytes, {seconds:.2} s, {cpu:.2} s CPU");
    }
}

/// A Markdown table of the medians of each route beside those of `kubectl logs -f`; `header` names its first two columns.
pub(crate) fn compare(header: [&str; 2], routes: &[Route], turns: &[Vec<Delivery>], followers: usize) -> String {
    let of = |turns: &[Delivery], figure: fn(&Delivery) -> f64| median(&turns.iter().map(figure).collect::<Vec<_>>());
    let speed = |turns: &[Delivery]| of(turns, |turn| turn.bytes as f64 / turn.seconds / 1e6);
    let cost = |turns: &[Delivery]| of(turns, |turn| turn.cpu / turn.bytes as f64 * 1e9);
    let logs = routes.iter().zip(turns).find(|(route, _)| **route == Route::Logs);
    let (logs_speed, logs_cost) = logs.map_or((f64::NAN, f64::NAN), |(_, turns)| (speed(turns), cost(turns)));
    let rows = routes.iter().zip(turns).map(|(route, turns)| {
        let whole: usize = turns.iter().map(|turn| turn.whole).sum();
        vec![
            format!("`{}`", route.name()),
            format!("{:.1}", speed(turns)),
            format!("{:.1}×", speed(turns) / logs_speed),
            format!("{:.1}", cost(turns)),
            format!("1/{:.1}", logs_cost / cost(turns)),
            format!("{whole} of {}", turns.len() * followers),
        ]
    });
    let [who, speed] = header;
    let header = [
        who,
        speed,
        "to kubectl logs",
        "CPU ns per byte",
        "to kubectl logs",
        "whole",
    ];
    table(&header, &rows.collect::<Vec<_>>())
}
