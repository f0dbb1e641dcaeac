//! HTTP and SOCKS5 proxies between `rproc` and the API server, whose name only the proxies know.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::Output;
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::json;

use crate::api::{Api, TOKEN, stderr};

/// A proxy that leads to one port of this machine.
struct Proxy {
    port: u16,
    /// The requests: target and credentials.
    seen: Arc<Mutex<Vec<(String, String)>>>,
}

impl Proxy {
    fn start(target: u16, greet: fn(&mut TcpStream) -> (String, String)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let seen = Arc::<Mutex<Vec<_>>>::default();
        let log = seen.clone();
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut client) = stream else { return };
                let log = log.clone();
                thread::spawn(move || {
                    let asked = greet(&mut client);
                    log.lock().unwrap().push(asked);
                    let server = TcpStream::connect(("127.0.0.1", target)).unwrap();
                    join(client, server);
                });
            }
        });
        Self { port, seen }
    }

    fn seen(&self) -> Vec<(String, String)> {
        self.seen.lock().unwrap().clone()
    }
}

/// Copies in both directions until one has ended.
fn join(client: TcpStream, server: TcpStream) {
    let copy = |mut from: TcpStream, mut to: TcpStream| {
        let _ = std::io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Both);
    };
    let (back, forth) = (server.try_clone().unwrap(), client.try_clone().unwrap());
    thread::spawn(move || copy(back, forth));
    copy(client, server);
}

/// Reads the head of a CONNECT request and grants it.
fn connect(client: &mut TcpStream) -> (String, String) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(byte(client));
    }
    let head = String::from_utf8(head).unwrap();
    let target = head.split(' ').nth(1).unwrap().to_owned();
    let user = head
        .lines()
        .find_map(|line| line.strip_prefix("Proxy-Authorization: "))
        .unwrap_or_default()
        .to_owned();
    assert!(head.starts_with("CONNECT "), "{head}");
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
    (target, user)
}

/// SOCKS5 (RFC 1928, RFC 1929).
fn socks(client: &mut TcpStream) -> (String, String) {
    assert_eq!(byte(client), 5);
    let count = byte(client);
    let methods = bytes(client, count);
    let wants_user = methods.contains(&2);
    client.write_all(&[5, if wants_user { 2 } else { 0 }]).unwrap();
    let mut user = String::new();
    if wants_user {
        assert_eq!(byte(client), 1);
        let parts = [(); 2].map(|()| {
            let length = byte(client);
            String::from_utf8(bytes(client, length)).unwrap()
        });
        user = parts.join(":");
        client.write_all(&[1, 0]).unwrap();
    }
    assert_eq!(bytes(client, 3), [5, 1, 0]);
    let host = match byte(client) {
        3 => {
            let length = byte(client);
            String::from_utf8(bytes(client, length)).unwrap()
        }
        kind => {
            assert_eq!(kind, 1);
            bytes(client, 4).iter().map(u8::to_string).collect::<Vec<_>>().join(".")
        }
    };
    let port = bytes(client, 2);
    client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).unwrap();
    (format!("{host}:{}", u16::from_be_bytes([port[0], port[1]])), user)
}

/// The same, for a proxy that accepts no user.
fn socks_without_user(client: &mut TcpStream) -> (String, String) {
    let mut head = [0; 2];
    client.peek(&mut head).unwrap();
    if head == [5, 1] {
        let mut offer = [0; 3];
        client.peek(&mut offer).unwrap();
        if offer[2] != 0 {
            client.write_all(&[5, 0xff]).unwrap();
            let _ = client.shutdown(Shutdown::Both);
            return (String::new(), "refused".to_owned());
        }
    }
    socks(client)
}

fn byte(client: &mut TcpStream) -> u8 {
    bytes(client, 1)[0]
}

fn bytes(client: &mut TcpStream, count: u8) -> Vec<u8> {
    let mut bytes = vec![0; count.into()];
    client.read_exact(&mut bytes).unwrap();
    bytes
}

/// `rproc ps` against `api.example.com`.
fn ps(api: &Api, cluster: &serde_json::Value, variables: &[(&str, &str)]) -> Output {
    let mut entry = json!({"server": format!("https://api.example.com:{}", api.port)});
    entry
        .as_object_mut()
        .unwrap()
        .extend(cluster.as_object().unwrap().clone());
    let kubeconfig = api.kubeconfig(&json!({"token": TOKEN}), &entry);
    api.rproc(&kubeconfig, &["ps"])
        .envs(variables.iter().copied())
        .output()
        .unwrap()
}

#[test]
fn behind_a_proxy_that_a_variable_names_the_api_server_is_reached() {
    let api = Api::start();
    let target = format!("api.example.com:{}", api.port);
    for (scheme, greet, user) in [
        ("http", connect as fn(&mut TcpStream) -> _, "Basic bWU6YUBi"),
        ("socks5", socks, "me:a@b"),
        ("socks5h", socks, "me:a@b"),
        ("socks5", socks_without_user, ""),
    ] {
        let proxy = Proxy::start(api.port, greet);
        for (login, user) in [("", ""), ("me:a%40b@", user)] {
            let url = format!("{scheme}://{login}127.0.0.1:{}", proxy.port);
            let output = ps(&api, &json!({}), &[("HTTPS_PROXY", &url)]);
            assert!(output.status.success(), "{url}: {}", stderr(&output));
            assert_eq!(proxy.seen().pop().unwrap(), (target.clone(), user.to_owned()), "{url}");
        }
    }
}

#[test]
fn behind_a_proxy_that_the_kubeconfig_names_the_api_server_is_reached() {
    let api = Api::start();
    let proxy = Proxy::start(api.port, socks);
    let url = format!("socks5://127.0.0.1:{}", proxy.port);
    let output = ps(
        &api,
        &json!({"proxy-url": url}),
        &[("NO_PROXY", "*"), ("HTTPS_PROXY", "http://127.0.0.1:1")],
    );
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(proxy.seen().len(), 1);
}

#[test]
fn no_proxy_keeps_a_server_off_the_proxy() {
    let api = Api::start();
    let proxy = Proxy::start(api.port, connect);
    let url = format!("http://127.0.0.1:{}", proxy.port);
    let here = json!({"server": format!("https://127.0.0.1:{}", api.port)});
    let output = ps(&api, &here, &[("HTTPS_PROXY", &url)]);
    assert!(output.status.success(), "{}", stderr(&output));
    let output = ps(&api, &json!({}), &[("HTTPS_PROXY", &url), ("NO_PROXY", ".example.com")]);
    assert_eq!(output.status.code(), Some(125));
    assert_eq!(proxy.seen(), []);
}

#[test]
fn a_proxy_that_is_not_there_is_named_without_its_password() {
    let api = Api::start();
    let port = remoteprocess_ports::free_port();
    let url = format!("http://me:secret@127.0.0.1:{port}");
    let text = stderr(&ps(&api, &json!({}), &[("HTTPS_PROXY", &url)]));
    let shown = format!("http://127.0.0.1:{port} (from HTTPS_PROXY)");
    assert!(text.contains(&shown) && !text.contains("secret"), "{text}");
}

#[test]
fn a_proxy_behind_tls_is_trusted_by_the_ca_of_the_cluster() {
    let api = Api::start();
    let proxy = Proxy::start(api.port, connect);
    let outer = api.tls_in_front_of(proxy.port);
    let url = format!("https://127.0.0.1:{outer}");
    let output = ps(&api, &json!({"proxy-url": url}), &[]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(proxy.seen().len(), 1);
}
