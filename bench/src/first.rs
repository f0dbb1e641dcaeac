//! From create to the first instruction of the program.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::Result;
use remoteprocess_e2e::{Namespace, User, until, until_some};

use crate::contender::{CONTENDERS, Contender};
use crate::proxy::Proxy;
use crate::report::{load, median, table};

/// Runs the rounds and describes them.
pub(crate) fn measure(namespace: &Namespace, rounds: usize) -> Result<String> {
    let (proxy, admin, load) = (Proxy::start()?, namespace.admin()?, load()?);
    let mut seconds: [Vec<f64>; 3] = Default::default();
    // The first round warms up: certificates, caches, images.
    for round in 0..=rounds {
        for (contender, seconds) in CONTENDERS.iter().zip(&mut seconds) {
            let took = first_instruction(namespace, &proxy, &admin, contender)?;
            eprintln!("{}: first instruction after {took:.3} s", contender.name);
            if round > 0 {
                seconds.push(took);
            }
        }
    }
    let bare = median(&seconds[1]);
    let rows = CONTENDERS.iter().zip(&seconds).map(|(contender, seconds)| {
        let median = median(seconds);
        vec![
            contender.name.to_owned(),
            format!("{median:.3}"),
            format!("{:.2}×", median / bare),
        ]
    });
    Ok(format!(
        "## From create to the first instruction\n\nThe program is a shell that prints the time; created through `kubectl proxy`. Medians of {rounds} in turn; \
         load average {load} before.\n\n{}",
        table(
            &["", "create → first instruction, s", "to a bare pod"],
            &rows.collect::<Vec<_>>()
        )
    ))
}

fn first_instruction(namespace: &Namespace, proxy: &Proxy, admin: &User, contender: &Contender) -> Result<f64> {
    let object = contender.object("first");
    let begin = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
    proxy.create(&contender.path(namespace), &object)?;
    until("its end", Duration::from_secs(60), || {
        Ok(contender.ended(namespace, proxy)? == 1)
    })?;
    let printed = until_some("what it has printed", Duration::from_secs(60), || {
        let logs = match contender.kind {
            "remoteprocess" => admin.rproc(&["logs", "first"]),
            kind => namespace.kubectl(&["logs", &format!("{kind}/first")]),
        };
        Ok(logs.finish()?.out().trim().parse::<f64>().ok())
    })?;
    contender.remove_all(namespace)?;
    Ok(printed - begin)
}
