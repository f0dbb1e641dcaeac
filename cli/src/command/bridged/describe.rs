//! `describe`: the details of triggers or sinks.

use jiff::Timestamp;

use super::super::describe::events;
use super::super::selection::Failures;
use super::{Bridged, found, typed};
use crate::args::GlobalArgs;
use crate::failure::Failure;
use crate::print::print;

/// Prints the details of the objects. If one fails, the others are printed nevertheless.
pub(in crate::command) async fn describe<K: Bridged>(global: &GlobalArgs, names: &[String]) -> Result<u8, Failure> {
    let cluster = global.open().await?;
    let api = typed::<K>(&cluster);
    let mut failures = Failures::default();
    let mut is_first = true;
    for name in names {
        let Some(object) = failures.keep(found::<K, K>(&cluster, name, api.get_opt(name).await))? else {
            continue;
        };
        let events = events(&cluster, object.meta().uid.as_deref().unwrap_or_default()).await;
        if !std::mem::take(&mut is_first) {
            print("\n")?;
        }
        print(&object.description(events.as_deref(), Timestamp::now()))?;
    }
    failures.conclude()
}
