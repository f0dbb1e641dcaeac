//! Every route: its method and path, and the permission that a user needs for it.
//!
//! The router is made from this table. A route whose request has no [`Right`] does not compile.

use std::sync::Arc;

use axum::Router;
use axum::routing::{MethodFilter, on};
use http::Method;
use remoteprocess_proto::v1::{GetStateRequest, ListRequest, SignalRequest, StopRequest, WatchOutputRequest};

use super::{control, openapi, output, problem, process};
use crate::relay::core::Core;
use crate::relay::core::authorize::{Action, Authorized};

/// One route.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Route {
    /// Its method.
    pub method: &'static str,
    /// Its path.
    pub path: &'static str,
    /// What RBAC has to allow; `None`: each user with a certificate may use it.
    #[cfg_attr(not(test), expect(dead_code, reason = "the table in docs/threat-model.md has it"))]
    pub action: Option<Action>,
}

/// What a user needs for a request.
trait Right {
    /// See [`Route::action`].
    const ACTION: Option<Action>;
}

impl<R: Authorized> Right for R {
    const ACTION: Option<Action> = Some(R::ACTION);
}

/// The request for what every user may know.
struct Description;

impl Right for Description {
    const ACTION: Option<Action> = None;
}

/// The path of the route of a request, for metrics and logs; `other` for none.
pub(super) fn name(method: &Method, path: &str) -> &'static str {
    let is_head = *method == Method::HEAD;
    let fits = |route: &&Route| {
        let (mut ours, mut theirs) = (route.path.split('/'), path.split('/'));
        let same = ours
            .by_ref()
            .zip(theirs.by_ref())
            .all(|(ours, theirs)| ours.starts_with('{') || ours == theirs);
        same && route.path.matches('/').count() == path.matches('/').count()
            && (*method == route.method || (is_head && route.method == "GET"))
    };
    ROUTES.iter().find(fits).map_or("other", |route| route.path)
}

macro_rules! routes {
    ($($method:ident $path:literal, $request:ty, $handler:path;)*) => {
        /// All of them.
        pub(crate) const ROUTES: &[Route] = &[$(Route {
            method: stringify!($method),
            path: $path,
            action: <$request as Right>::ACTION,
        }),*];

        /// Serves all of them.
        pub(super) fn router(core: Arc<Core>) -> Router {
            Router::new()
                $(.route($path, on(MethodFilter::$method, $handler)))*
                .method_not_allowed_fallback(problem::no_method)
                .fallback(problem::no_route)
                .with_state(core)
        }
    };
}

routes! {
    GET "/openapi.json", Description, openapi::openapi;
    GET "/v1/namespaces/{namespace}/processes", ListRequest, process::list;
    GET "/v1/namespaces/{namespace}/processes/{name}", GetStateRequest, process::get;
    GET "/v1/namespaces/{namespace}/processes/{name}/attempts/{attempt}", GetStateRequest, process::attempt;
    GET "/v1/namespaces/{namespace}/processes/{name}/output", WatchOutputRequest, output::output;
    POST "/v1/namespaces/{namespace}/processes/{name}/signal", SignalRequest, control::signal;
    POST "/v1/namespaces/{namespace}/processes/{name}/stop", StopRequest, control::stop;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_the_name_of_its_route() {
        let list = "/v1/namespaces/{namespace}/processes";
        for (method, path, expected) in [
            (Method::GET, "/v1/namespaces/default/processes", list),
            (Method::HEAD, "/v1/namespaces/default/processes", list),
            (Method::POST, "/v1/namespaces/default/processes", "other"),
            (
                Method::GET,
                "/v1/namespaces/default/processes/",
                "/v1/namespaces/{namespace}/processes/{name}",
            ),
            (Method::GET, "/v1/namespaces/default", "other"),
            (Method::GET, "/openapi.json", "/openapi.json"),
            (Method::GET, "/openapi.json/x", "other"),
        ] {
            assert_eq!(name(&method, path), expected, "{method} {path}");
        }
    }
}
