//! Who may pass: a program or a browser that has opened the link, at our own address, on our own page.
//!
//! The link works once. It gives a session, as a cookie or, to programs that ask for JSON, as a bearer token.

use std::io;
use std::sync::{Mutex, PoisonError};

use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, COOKIE, HOST, HeaderName, HeaderValue, ORIGIN};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use rustix::rand::{GetRandomFlags, getrandom};
use serde_json::json;
use sha2::{Digest, Sha256};

use super::problem::Problem;
use super::{Body, full, with_cookie};

/// The path of the link.
pub const LOGIN: &str = "/login";
/// Sent by browsers: whether the page that makes a request is ours (W3C Fetch Metadata).
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// Leads a browser to the page. A redirect would not do: after a link on another site, it has no cookie.
const WELCOME: &str = "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>rproc</title>\
                       <meta http-equiv=\"refresh\" content=\"0;url=/\"><p><a href=\"/\">Continue</a></p></html>";

/// The gate of one proxy.
pub struct Gate {
    port: u16,
    /// Until it is used.
    link: Mutex<Option<String>>,
    session: String,
}

impl Gate {
    /// A gate with new secrets, at this port.
    ///
    /// # Errors
    /// The system gives no random bytes.
    pub fn new(port: u16) -> io::Result<Self> {
        Ok(Self {
            port,
            link: Mutex::new(Some(secret()?)),
            session: secret()?,
        })
    }

    /// The link, until it is used.
    pub fn link(&self) -> Option<String> {
        let link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        link.as_ref()
            .map(|token| format!("http://127.0.0.1:{}{LOGIN}?token={token}", self.port))
    }

    /// Exchanges the token of the link for the session.
    pub(super) fn login<B>(&self, request: &Request<B>) -> Result<Response<Body>, Problem> {
        self.host(request)?;
        if request.method() != Method::GET {
            return Err(Problem::new(StatusCode::METHOD_NOT_ALLOWED, "a login is a GET"));
        }
        let token = request.uri().query().and_then(|query| query.strip_prefix("token="));
        let mut link = self.link.lock().unwrap_or_else(PoisonError::into_inner);
        let is_right = link
            .as_deref()
            .zip(token)
            .is_some_and(|(ours, theirs)| is_same(ours, theirs));
        if !is_right {
            return Err(Problem::unauthenticated(
                "this link is not valid: each link works once. Start rproc again to get another one",
            ));
        }
        *link = None;
        let accepted = request.headers().get(ACCEPT).and_then(|value| value.to_str().ok());
        if accepted.is_some_and(|accepted| accepted.starts_with("application/json")) {
            let mut answer = Response::new(full(json!({"token": self.session}).to_string()));
            let kind = HeaderValue::from_static("application/json");
            answer.headers_mut().insert(CONTENT_TYPE, kind);
            return Ok(answer);
        }
        let cookie = format!(
            "{}={}; Path=/; HttpOnly; SameSite=Strict",
            self.cookie_name(),
            self.session
        );
        with_cookie(&cookie, WELCOME)
    }

    /// Whether a request has the session, and is not made by another site.
    pub(super) fn admit<B>(&self, request: &Request<B>) -> Result<(), Problem> {
        let host = self.host(request)?;
        let headers = request.headers();
        let is_ours = headers
            .get_all(ORIGIN)
            .iter()
            .all(|origin| origin.as_bytes() == format!("http://{host}").as_bytes());
        let is_own_page = headers
            .get_all(SEC_FETCH_SITE)
            .iter()
            .all(|site| [&b"same-origin"[..], b"none"].contains(&site.as_bytes()));
        if !is_ours || !is_own_page {
            return Err(Problem::forbidden("a page of another site made this request"));
        }
        match self.has_session(headers) {
            true => Ok(()),
            false => Err(Problem::unauthenticated(
                "open the link that rproc printed, or send the bearer token that it gives",
            )),
        }
    }

    /// The name under which this was called. A page of another site can make its own name point to us.
    fn host<B>(&self, request: &Request<B>) -> Result<String, Problem> {
        let mut hosts = request.headers().get_all(HOST).iter();
        let named = request.uri().authority().map(http::uri::Authority::as_str);
        let found = match (hosts.next(), hosts.next()) {
            (Some(host), None) => host
                .to_str()
                .ok()
                .filter(|host| named.is_none_or(|named| named == *host)),
            _ => None,
        };
        let port = self.port;
        found
            .filter(|host| [format!("127.0.0.1:{port}"), format!("localhost:{port}")].contains(&(*host).to_owned()))
            .map(str::to_owned)
            .ok_or_else(|| {
                Problem::forbidden(format!(
                    "the header Host must be 127.0.0.1:{port} or localhost:{port}; another name may belong to another \
                     site"
                ))
            })
    }

    fn has_session(&self, headers: &HeaderMap) -> bool {
        let bearer = headers.get(AUTHORIZATION).and_then(|value| {
            let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(token)
        });
        let cookies = headers.get_all(COOKIE).iter().filter_map(|value| value.to_str().ok());
        let ours = cookies
            .flat_map(|value| value.split(';'))
            .filter_map(|cookie| cookie.trim().split_once('='))
            .filter(|(name, _)| *name == self.cookie_name())
            .map(|(_, value)| value);
        bearer
            .into_iter()
            .chain(ours)
            .any(|token| is_same(&self.session, token))
    }

    /// Browsers send a cookie to all ports of a host.
    fn cookie_name(&self) -> String {
        format!("rproc-{}", self.port)
    }
}

/// Compares in a time that says nothing about where the texts differ.
fn is_same(ours: &str, theirs: &str) -> bool {
    Sha256::digest(ours) == Sha256::digest(theirs)
}

/// 256 random bits.
fn secret() -> io::Result<String> {
    let mut bytes = [0_u8; 32];
    let filled = getrandom(&mut bytes[..], GetRandomFlags::empty())?;
    // Up to 256 bytes are never cut.
    debug_assert_eq!(filled, bytes.len());
    Ok(hex::encode(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gate() -> Gate {
        Gate {
            port: 9,
            link: Mutex::new(Some("once".to_owned())),
            session: "session".to_owned(),
        }
    }

    fn request(path: &str, headers: &[(&str, &str)]) -> Request<()> {
        let mut request = Request::builder().uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap()
    }

    const HOST: (&str, &str) = ("host", "127.0.0.1:9");
    const BEARER: (&str, &str) = ("authorization", "Bearer session");

    #[test]
    fn only_the_session_at_our_own_address_passes() {
        let cookie = ("cookie", "a=b; rproc-9=session");
        for (headers, expected) in [
            (&[HOST, BEARER][..], None),
            (&[HOST, cookie], None),
            (
                &[("host", "localhost:9"), cookie, ("origin", "http://localhost:9")],
                None,
            ),
            (&[HOST, cookie, ("sec-fetch-site", "none")], None),
            (&[HOST, cookie, ("sec-fetch-site", "same-origin")], None),
            (&[HOST], Some(401)),
            (&[HOST, ("authorization", "Bearer once")], Some(401)),
            (&[HOST, ("authorization", "Basic session")], Some(401)),
            (&[HOST, ("cookie", "rproc-10=session")], Some(401)),
            (&[BEARER], Some(403)),
            (&[HOST, HOST, BEARER], Some(403)),
            (&[("host", "evil.example:9"), BEARER], Some(403)),
            (&[("host", "127.0.0.1:10"), BEARER], Some(403)),
            (&[("host", "127.0.0.1"), BEARER], Some(403)),
            (&[HOST, cookie, ("origin", "http://evil.example")], Some(403)),
            (&[HOST, cookie, ("origin", "http://localhost:9")], Some(403)),
            (&[HOST, cookie, ("origin", "https://127.0.0.1:9")], Some(403)),
            (&[HOST, cookie, ("origin", "null")], Some(403)),
            (&[HOST, cookie, ("sec-fetch-site", "same-site")], Some(403)),
            (&[HOST, cookie, ("sec-fetch-site", "cross-site")], Some(403)),
        ] {
            let refused = gate().admit(&request("/v1/x", headers)).err();
            let status = refused.map(|problem| problem.status().as_u16());
            assert_eq!(status, expected, "{headers:?}");
        }
        let other = request("http://evil.example/v1/x", &[HOST, BEARER]);
        assert!(gate().admit(&other).is_err(), "the name in the request line counts");
    }

    #[test]
    fn the_link_works_once() {
        let gate = gate();
        assert_eq!(gate.link().unwrap(), "http://127.0.0.1:9/login?token=once");
        for wrong in ["/login", "/login?token=", "/login?token=session", "/login?x=once"] {
            assert!(gate.login(&request(wrong, &[HOST])).is_err(), "{wrong}");
        }
        let rebound = request("/login?token=once", &[("host", "evil.example:9")]);
        assert!(gate.login(&rebound).is_err());
        let link = request("/login?token=once", &[HOST, ("sec-fetch-site", "cross-site")]);
        let answer = gate.login(&link).unwrap();
        let cookie = answer.headers()["set-cookie"].to_str().unwrap();
        assert_eq!(cookie, "rproc-9=session; Path=/; HttpOnly; SameSite=Strict");
        assert!(gate.login(&link).is_err());
        assert_eq!(gate.link(), None);
    }

    #[test]
    fn secrets_differ() {
        let secrets = [secret().unwrap(), secret().unwrap()];
        assert!(secrets[0] != secrets[1] && secrets[0].len() == 64);
    }
}
