//! Processes and their attempts, as the API server has them.

use std::sync::Arc;

use axum::extract::{Extension, Path, RawQuery, State};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use http::header::CONTENT_TYPE;
use kube::core::{Selector, SelectorExt};
use kube::{Resource, ResourceExt};
use remoteprocess_api::{Phase, RemoteProcess, identifier};
use serde::{Deserialize, Serialize, Serializer};

use super::problem::Problem;
use super::{Client, Uid, key, parse, selector};
use crate::directory::Listed;
use crate::relay::core::Core;
use crate::relay::error::{Code, Error};

/// Processes of a page, unless the request says how many, and at most.
const PAGE: usize = 100;
const MAX_PAGE: usize = 500;
/// A page ends with the process that makes it larger than this, in bytes.
const PAGE_BYTES: usize = 4 << 20;

/// The query of the list.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct ListQuery {
    label_selector: String,
    /// Phases, separated by commas.
    phase: String,
    limit: Option<usize>,
    r#continue: String,
}

/// Which processes a page has.
#[derive(Debug)]
struct Selection {
    labels: Selector,
    phases: Vec<Phase>,
    limit: usize,
    after: Option<String>,
}

/// A page, in the form of a list of the API server.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    api_version: String,
    kind: &'static str,
    metadata: PageMetadata,
    #[serde(serialize_with = "as_objects")]
    items: Vec<Arc<RemoteProcess>>,
}

#[derive(Serialize)]
struct PageMetadata {
    /// Where the next page begins.
    #[serde(skip_serializing_if = "Option::is_none")]
    r#continue: Option<String>,
}

/// `GET /v1/namespaces/{namespace}/processes`
pub(super) async fn list(
    State(core): State<Arc<Core>>,
    Extension(client): Extension<Client>,
    Path(namespace): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let selection = Selection::of(parse(query)?)?;
    let processes = core.processes(&client.user, &namespace).await?;
    let processes = processes.after(selection.after.as_deref().unwrap_or_default());
    json(&selection.page(processes).await?)
}

/// `GET /v1/namespaces/{namespace}/processes/{name}`
pub(super) async fn get(
    State(core): State<Arc<Core>>,
    Extension(client): Extension<Client>,
    Path(path): Path<(String, String)>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let Uid { uid } = parse(query)?;
    json(&*core.process(&client.user, key(path, uid)).await?)
}

/// `GET /v1/namespaces/{namespace}/processes/{name}/attempts/{attempt}`
pub(super) async fn attempt(
    State(core): State<Arc<Core>>,
    Extension(client): Extension<Client>,
    Path((namespace, name, attempt)): Path<(String, String, String)>,
    RawQuery(query): RawQuery,
) -> Result<Response, Problem> {
    let Uid { uid } = parse(query)?;
    let number = attempt.parse().ok().filter(|number| *number > 0);
    let number = number.ok_or_else(|| Error::invalid("the attempt is a number from 1"))?;
    json(&core.attempt(&client.user, key((namespace, name), uid), number).await?)
}

fn as_objects<S: Serializer>(items: &[Arc<RemoteProcess>], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(items.iter().map(|process| &**process))
}

/// A JSON answer.
pub(super) fn json(answer: &impl Serialize) -> Result<Response, Problem> {
    let body = serde_json::to_vec(answer).map_err(defect)?;
    Ok(([(CONTENT_TYPE, "application/json")], body).into_response())
}

fn defect(error: serde_json::Error) -> Error {
    Error::new(Code::Internal, error.to_string())
}

impl Selection {
    fn of(query: ListQuery) -> Result<Self, Error> {
        let phase = |name: &str| {
            let unknown = || Error::invalid(format!("phase: {name:?} is not a phase, such as Running or Succeeded"));
            name.parse().map_err(|_| unknown())
        };
        let phases = query.phase.split(',').filter(|name| !name.is_empty());
        let limit = query.limit.unwrap_or(PAGE);
        if !(1..=MAX_PAGE).contains(&limit) {
            return Err(Error::invalid(format!("limit must be 1 to {MAX_PAGE}")));
        }
        let after = || {
            let name = BASE64_URL_SAFE_NO_PAD.decode(&query.r#continue).ok()?;
            String::from_utf8(name).ok().filter(|name| identifier::is_name(name))
        };
        let unknown = || Error::invalid("continue is not from an earlier page");
        Ok(Self {
            labels: selector::parse(&query.label_selector)?,
            phases: phases.map(phase).collect::<Result<_, Error>>()?,
            limit,
            after: match query.r#continue.as_str() {
                "" => None,
                _ => Some(after().ok_or_else(unknown)?),
            },
        })
    }

    fn has(&self, process: &RemoteProcess) -> bool {
        let phase = process.status.as_ref().and_then(|status| status.phase);
        self.after.as_ref().is_none_or(|after| process.name_any() > *after)
            && (self.phases.is_empty() || self.phases.contains(&phase.unwrap_or_default()))
            && self.labels.matches(process.labels())
    }

    /// The page; `processes` are those of one namespace, by name.
    async fn page(&self, mut processes: Listed) -> Result<Page, Error> {
        let (mut items, mut bytes, mut next) = (Vec::<Arc<RemoteProcess>>::new(), 0, None);
        while let Some(process) = processes.next().await {
            if !self.has(&process) {
                continue;
            }
            if items.len() == self.limit || bytes >= PAGE_BYTES {
                next = items.last().map(|last| BASE64_URL_SAFE_NO_PAD.encode(last.name_any()));
                break;
            }
            bytes += serde_json::to_vec(&*process).map_err(defect)?.len();
            items.push(process);
        }
        Ok(Page {
            api_version: RemoteProcess::api_version(&()).into_owned(),
            kind: "RemoteProcessList",
            metadata: PageMetadata { r#continue: next },
            items,
        })
    }
}

#[cfg(test)]
mod tests {
    use remoteprocess_api::{RemoteProcessSpec, RemoteProcessStatus};

    use super::*;
    use crate::directory::Directory;

    fn processes() -> Directory {
        let directory = Directory::default();
        let process = |(name, phase): (&str, Phase)| {
            let mut process = RemoteProcess::new(name, RemoteProcessSpec::default());
            process.metadata.namespace = Some("team".to_owned());
            process.metadata.uid = Some(name.to_owned());
            process.metadata.labels = Some([("first".to_owned(), name[..1].to_owned())].into());
            process.status = Some(RemoteProcessStatus {
                phase: Some(phase),
                ..RemoteProcessStatus::default()
            });
            directory.apply(process);
        };
        let all = [
            ("a1", Phase::Running),
            ("a2", Phase::Failed),
            ("b1", Phase::Running),
            ("c1", Phase::Pending),
        ];
        all.into_iter().for_each(process);
        directory
    }

    fn names(page: &Page) -> Vec<String> {
        page.items.iter().map(|process| process.name_any()).collect()
    }

    #[tokio::test]
    async fn pages_follow_each_other_without_a_hole() {
        let (directory, mut found, mut after) = (processes(), Vec::new(), String::new());
        for pages in 1.. {
            let query = ListQuery {
                limit: Some(3),
                r#continue: after,
                ..ListQuery::default()
            };
            let page = Selection::of(query)
                .unwrap()
                .page(directory.list("team"))
                .await
                .unwrap();
            found.extend(names(&page));
            match page.metadata.r#continue {
                Some(next) => after = next,
                None => {
                    assert_eq!(pages, 2);
                    break;
                }
            }
        }
        assert_eq!(found, ["a1", "a2", "b1", "c1"]);
    }

    #[tokio::test]
    async fn a_page_has_what_is_asked_for() {
        let query = ListQuery {
            label_selector: "first in (a,c)".into(),
            phase: "Running,Pending".into(),
            ..ListQuery::default()
        };
        let page = Selection::of(query).unwrap().page(processes().list("team")).await;
        assert_eq!(names(&page.unwrap()), ["a1", "c1"]);
        let wrong = |query| Selection::of(query).unwrap_err().message;
        let phase = wrong(ListQuery {
            phase: "Done".into(),
            ..ListQuery::default()
        });
        assert!(phase.contains("Succeeded"), "{phase}");
        for limit in [0, 501] {
            let limit = wrong(ListQuery {
                limit: Some(limit),
                ..ListQuery::default()
            });
            assert!(limit.contains("500"), "{limit}");
        }
        let after = wrong(ListQuery {
            r#continue: "!".into(),
            ..ListQuery::default()
        });
        assert!(after.contains("continue"), "{after}");
    }
}
