//! Selects the proxy for a call. The variables have the same meaning as for kubectl, which reads them with Go's
//! `httpproxy`: `HTTPS_PROXY` or `https_proxy` for TLS, `HTTP_PROXY` or `http_proxy` without TLS, and `NO_PROXY` or
//! `no_proxy` for hosts that are called directly. This machine itself is never called through a proxy of the
//! environment. The `proxy-url` of a kubeconfig takes precedence over all of them.

use std::net::IpAddr;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderValue, Uri};

use super::kubeconfig::Variables;

/// The proxies of one cluster. An invalid value is an error only if it would be used.
#[derive(Clone, Debug, Default)]
pub struct Proxies {
    fixed: Option<Result<Proxy, String>>,
    http: Option<Result<Proxy, String>>,
    https: Option<Result<Proxy, String>>,
    direct: Vec<Exception>,
}

/// One proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proxy {
    /// Its protocol.
    pub protocol: Protocol,
    /// Its address, without user and password.
    pub uri: Uri,
    /// User and password.
    pub user: Option<(String, String)>,
    /// The variable or field that names it, for messages.
    pub source: &'static str,
}

/// The protocol of a proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// HTTP CONNECT.
    Http,
    /// HTTP CONNECT over TLS.
    Https,
    /// SOCKS 5.
    Socks5,
}

/// One entry of `NO_PROXY`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Exception {
    All,
    Network(IpAddr, u8),
    Address(IpAddr, Option<u16>),
    Domain {
        /// With a leading dot.
        suffix: String,
        is_itself_meant: bool,
        port: Option<u16>,
    },
}

impl Proxies {
    /// The proxies in the environment, or the `proxy-url` of a kubeconfig.
    #[must_use]
    pub fn new(proxy_url: &str, variables: Variables<'_>) -> Self {
        let variable = |names: [&'static str; 2]| {
            names.into_iter().find_map(|name| {
                let value = variables(name)?.to_string_lossy().trim().to_owned();
                (!value.is_empty()).then_some((name, value))
            })
        };
        let proxy = |names| variable(names).map(|(name, value)| Proxy::parse(name, &value));
        Self {
            fixed: (!proxy_url.is_empty()).then(|| Proxy::of_kubeconfig(proxy_url)),
            http: proxy(["HTTP_PROXY", "http_proxy"]),
            https: proxy(["HTTPS_PROXY", "https_proxy"]),
            direct: variable(["NO_PROXY", "no_proxy"])
                .map(|(_, list)| list.split(',').filter_map(Exception::parse).collect())
                .unwrap_or_default(),
        }
    }

    /// The proxy for a call; `None` for a direct one.
    ///
    /// # Errors
    /// Names the variable or the field that is wrong.
    pub fn of(&self, is_tls: bool, host: &str, port: u16) -> Result<Option<&Proxy>, String> {
        let of_scheme = if is_tls { &self.https } else { &self.http };
        let proxy = match (&self.fixed, of_scheme) {
            (Some(fixed), _) => fixed,
            (None, Some(proxy)) if !self.is_direct(host, port) => proxy,
            _ => return Ok(None),
        };
        proxy.as_ref().map(Some).map_err(Clone::clone)
    }

    fn is_direct(&self, host: &str, port: u16) -> bool {
        let host = bare(host).to_ascii_lowercase();
        let address = host.parse::<IpAddr>().ok().map(|address| address.to_canonical());
        is_here(&host) || self.direct.iter().any(|rule| rule.covers(&host, address, port))
    }
}

/// Whether a host is this machine.
#[must_use]
pub(super) fn is_here(host: &str) -> bool {
    let host = bare(host);
    let address = host.parse::<IpAddr>().map(|address| address.to_canonical());
    host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|address| address.is_loopback())
}

/// A host without the brackets of an IPv6 address.
fn bare(host: &str) -> &str {
    let inner = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    inner.unwrap_or(host)
}

impl Proxy {
    /// A `proxy-url`. Unlike the variables, it names one of three schemes (`clientcmd.parseProxyURL`).
    fn of_kubeconfig(text: &str) -> Result<Self, String> {
        let scheme = text.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
        match scheme.as_deref() {
            Some("http" | "https" | "socks5") => Self::parse("proxy-url", text),
            _ => Err(
                "proxy-url has no scheme, or one that is not supported: write it as http://HOST:PORT, \
                      https://HOST:PORT or socks5://HOST:PORT"
                    .to_owned(),
            ),
        }
    }

    /// `http://`, `https://`, `socks5://` or `socks5h://`, with user and password where needed; `host:port` is HTTP.
    fn parse(source: &'static str, text: &str) -> Result<Self, String> {
        let wrong = |why: &str| {
            let shown = text.rsplit_once('@').map_or(text, |(_, address)| address);
            format!("{source} {shown:?} {why}: write it as http://HOST:PORT, https://HOST:PORT or socks5://HOST:PORT")
        };
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        let (protocol, scheme, port) = match scheme.to_ascii_lowercase().as_str() {
            "http" => (Protocol::Http, "http", 80),
            "https" => (Protocol::Https, "https", 443),
            "socks5" | "socks5h" => (Protocol::Socks5, "socks5", 1080),
            _ => return Err(wrong("has a scheme that is not supported")),
        };
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        let (user, address) = match authority.rsplit_once('@') {
            Some((user, address)) => (Some(user), address),
            None => (None, authority),
        };
        let parsed: Uri = format!("{scheme}://{address}/")
            .parse()
            .map_err(|_| wrong("is not a URL"))?;
        let host = parsed
            .host()
            .filter(|host| !host.is_empty())
            .ok_or_else(|| wrong("names no host"))?;
        if address.len() > host.len() && parsed.port_u16().is_none() {
            return Err(wrong("has a wrong port"));
        }
        let uri = format!("{scheme}://{host}:{}/", parsed.port_u16().unwrap_or(port));
        let user = user.map(|user| {
            let (name, password) = user.split_once(':').unwrap_or((user, ""));
            (decoded(name), decoded(password))
        });
        Ok(Self {
            protocol,
            uri: uri.parse().map_err(|_| wrong("is not a URL"))?,
            user,
            source,
        })
    }

    /// `Proxy-Authorization`, if there is a user.
    #[must_use]
    pub fn authorization(&self) -> Option<HeaderValue> {
        let (name, password) = self.user.as_ref()?;
        let text = format!("Basic {}", STANDARD.encode(format!("{name}:{password}")));
        HeaderValue::from_str(&text).ok()
    }

    /// The proxy as shown in a message, without its password.
    #[must_use]
    pub fn label(&self) -> String {
        format!(
            "the proxy {} (from {})",
            self.uri.to_string().trim_end_matches('/'),
            self.source
        )
    }
}

impl Exception {
    fn parse(member: &str) -> Option<Self> {
        let member = member.trim().to_lowercase();
        if member == "*" {
            return Some(Self::All);
        }
        if let Some((network, bits)) = member.split_once('/') {
            let network: IpAddr = network.parse().ok()?;
            let bits: u8 = bits.parse().ok()?;
            let longest = if network.is_ipv4() { 32 } else { 128 };
            return (bits <= longest).then_some(Self::Network(network, bits));
        }
        let (host, port) = split_port(&member)?;
        if let Ok(address) = host.parse::<IpAddr>() {
            return Some(Self::Address(address.to_canonical(), port));
        }
        let domain = host
            .strip_prefix('*')
            .filter(|rest| rest.starts_with('.'))
            .unwrap_or(host);
        let is_itself_meant = !domain.starts_with('.');
        let suffix = if is_itself_meant {
            format!(".{domain}")
        } else {
            domain.to_owned()
        };
        (suffix.len() > 1).then_some(Self::Domain {
            suffix,
            is_itself_meant,
            port,
        })
    }

    fn covers(&self, host: &str, address: Option<IpAddr>, port: u16) -> bool {
        match self {
            Self::All => true,
            Self::Network(network, bits) => address.is_some_and(|address| is_within(address, *network, *bits)),
            Self::Address(meant, only) => address == Some(*meant) && only.is_none_or(|only| only == port),
            Self::Domain {
                suffix,
                is_itself_meant,
                port: only,
            } => {
                let is_meant = host.ends_with(suffix) || (*is_itself_meant && host == &suffix[1..]);
                is_meant && only.is_none_or(|only| only == port)
            }
        }
    }
}

/// Host and port of an entry; an IPv6 address may be in brackets. `None` for one without a host.
fn split_port(member: &str) -> Option<(&str, Option<u16>)> {
    if bare(member) != member {
        return Some((bare(member), None));
    }
    match member.rsplit_once(':') {
        // More than one colon and no brackets: an address.
        Some((host, _)) if host.contains(':') && bare(host) == host => Some((member, None)),
        Some((host, port)) => {
            let host = bare(host);
            let port = if port.is_empty() {
                None
            } else {
                Some(port.parse().ok()?)
            };
            (!host.is_empty()).then_some((host, port))
        }
        None => (!member.is_empty()).then_some((member, None)),
    }
}

fn is_within(address: IpAddr, network: IpAddr, bits: u8) -> bool {
    match (address, network) {
        (IpAddr::V4(address), IpAddr::V4(network)) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            address.to_bits() & mask == network.to_bits() & mask
        }
        (IpAddr::V6(address), IpAddr::V6(network)) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            address.to_bits() & mask == network.to_bits() & mask
        }
        _ => false,
    }
}

/// The text with its percent escapes decoded; anything else stays unchanged.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let escape = (*first == b'%').then(|| tail.get(..2)).flatten();
        let mut byte = [0];
        match escape.map(|digits| hex::decode_to_slice(digits, &mut byte)) {
            Some(Ok(())) => (bytes.push(byte[0]), rest = &tail[2..]).1,
            _ => (bytes.push(*first), rest = tail).1,
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    fn proxies(variables: &[(&str, &str)]) -> Proxies {
        let find = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| OsString::from(value))
        };
        Proxies::new("", &find)
    }

    fn uri(proxies: &Proxies, is_tls: bool) -> Option<String> {
        let proxy = proxies.of(is_tls, "x", 443).unwrap();
        proxy.map(|proxy| proxy.uri.to_string())
    }

    fn is_direct(no_proxy: &str, host: &str, port: u16) -> bool {
        let proxies = proxies(&[("HTTPS_PROXY", "http://proxy:3128"), ("NO_PROXY", no_proxy)]);
        proxies.of(true, host, port).unwrap().is_none()
    }

    #[test]
    fn no_proxy_is_read_as_kubectl_reads_it() {
        for (no_proxy, host, port, expected) in [
            ("", "api.example.com", 6443, false),
            ("*", "api.example.com", 6443, true),
            (" , * ", "10.0.0.1", 443, true),
            ("example.com", "example.com", 443, true),
            ("example.com", "api.example.com", 443, true),
            ("example.com", "badexample.com", 443, false),
            (".example.com", "example.com", 443, false),
            (".example.com", "api.example.com", 443, true),
            ("*.example.com", "api.example.com", 443, true),
            ("*.example.com", "example.com", 443, false),
            ("EXAMPLE.com", "api.Example.COM", 443, true),
            ("example.com:6443", "example.com", 6443, true),
            ("example.com:6443", "example.com", 443, false),
            ("10.0.0.0/8", "10.1.2.3", 6443, true),
            ("10.0.0.0/8", "11.1.2.3", 6443, false),
            ("0.0.0.0/0", "11.1.2.3", 6443, true),
            ("10.0.0.0/33", "10.1.2.3", 6443, false),
            ("10.1.2.3", "10.1.2.3", 6443, true),
            ("10.1.2.3:443", "10.1.2.3", 6443, false),
            ("fd00::/8", "[fd00::1]", 6443, true),
            ("[fd00::1]:6443", "fd00::1", 6443, true),
            ("fd00::1", "[fd00::1]", 6443, true),
            ("10.0.0.0/8", "::ffff:10.0.0.1", 6443, true),
            ("a,,:80,b", "b", 1, true),
            ("", "localhost", 6443, true),
            ("", "127.0.0.9", 6443, true),
            ("", "[::1]", 6443, true),
        ] {
            assert_eq!(is_direct(no_proxy, host, port), expected, "{no_proxy:?} {host}:{port}");
        }
    }

    #[test]
    fn upper_case_goes_first_and_each_scheme_has_its_variable() {
        let set = proxies(&[
            ("HTTPS_PROXY", "http://a:1"),
            ("https_proxy", "http://b:2"),
            ("http_proxy", "c:3"),
        ]);
        assert_eq!(uri(&set, true).as_deref(), Some("http://a:1/"));
        assert_eq!(uri(&set, false).as_deref(), Some("http://c:3/"));
        let lower = proxies(&[("HTTPS_PROXY", ""), ("https_proxy", "b")]);
        assert_eq!(uri(&lower, true).as_deref(), Some("http://b:80/"));
        assert_eq!(uri(&proxies(&[("ALL_PROXY", "http://a:1")]), true), None);
    }

    #[test]
    fn a_proxy_url_of_the_kubeconfig_goes_before_no_proxy() {
        let find = |name: &str| (name == "NO_PROXY").then(|| OsString::from("*"));
        let set = Proxies::new("socks5://me:a%40b@gate", &find);
        let proxy = set.of(true, "localhost", 6443).unwrap().unwrap();
        assert_eq!((proxy.protocol, proxy.uri.port_u16()), (Protocol::Socks5, Some(1080)));
        assert_eq!(proxy.user, Some(("me".into(), "a@b".into())));
        assert!(!proxy.label().contains("a@b"));
    }

    #[test]
    fn a_proxy_url_of_the_kubeconfig_has_a_scheme() {
        for url in ["gate:3128", "socks5h://gate", "ftp://gate", "//gate"] {
            let why = Proxies::new(url, &|_| None).of(true, "x", 443).unwrap_err();
            assert!(
                why.starts_with("proxy-url ") && why.contains("socks5://HOST:PORT"),
                "{why}"
            );
        }
        let set = Proxies::new("HTTP://gate:1", &|_| None);
        assert!(set.of(true, "x", 443).unwrap().is_some());
    }

    #[test]
    fn an_unusable_proxy_is_named_without_its_password_and_only_where_it_would_be_used() {
        for text in [
            "ftp://gate",
            "http://",
            "http://u:secret@ho st",
            "socks5://h:99999",
            "h:x",
        ] {
            let set = proxies(&[("HTTPS_PROXY", text), ("NO_PROXY", "direct")]);
            let why = set.of(true, "x", 443).unwrap_err();
            assert!(
                why.starts_with("HTTPS_PROXY ") && why.contains("socks5://HOST:PORT"),
                "{why}"
            );
            assert!(!why.contains("secret"), "{why}");
            assert!(set.of(true, "direct", 443).is_ok() && set.of(false, "x", 80).is_ok());
        }
    }
}
