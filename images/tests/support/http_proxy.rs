//! A proxy for HTTP and, by CONNECT, for TLS, that resolves names as a test has set.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// A proxy on loopback that keeps the head of every request. Ends on drop.
pub struct HttpProxy {
    /// `127.0.0.1:PORT`.
    pub host: String,
    heads: Arc<Mutex<Vec<String>>>,
    task: tokio::task::JoinHandle<()>,
}

#[derive(Clone)]
struct Rules {
    /// Where a host leads; any other is answered 502.
    routes: HashMap<String, String>,
    /// The value of Proxy-Authorization without which a request is answered 407.
    password: Option<String>,
}

impl HttpProxy {
    /// `routes`: which address a host stands for. `password`: the only value of Proxy-Authorization that is let through.
    pub async fn start(routes: &[(&str, &str)], password: Option<&str>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let heads: Arc<Mutex<Vec<String>>> = Arc::default();
        let routes = routes
            .iter()
            .map(|(from, to)| ((*from).to_owned(), (*to).to_owned()));
        let rules = Rules {
            routes: routes.collect(),
            password: password.map(str::to_owned),
        };
        let log = Arc::clone(&heads);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                tokio::spawn(serve(stream, rules.clone(), Arc::clone(&log)));
            }
        });
        Self { host, heads, task }
    }

    /// The heads of all requests.
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().unwrap().clone()
    }
}

impl Drop for HttpProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut near: TcpStream, rules: Rules, log: Arc<Mutex<Vec<String>>>) -> Option<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(near.read_u8().await.ok()?);
    }
    let head = String::from_utf8(head).unwrap();
    log.lock().unwrap().push(head.clone());
    let is_let_through = rules.password.is_none_or(|password| {
        let field = format!("proxy-authorization: {password}");
        head.lines().any(|line| line.eq_ignore_ascii_case(&field))
    });
    let (method, rest) = head.split_once(' ').unwrap();
    let (target, after) = rest.split_once(' ').unwrap();
    let (host, path) = match target.strip_prefix("http://") {
        Some(target) => target.split_once('/').unwrap(),
        None => (target, ""),
    };
    let name = host.split(':').next().unwrap();
    let Some(to) = rules.routes.get(name).filter(|_| is_let_through) else {
        let status = if is_let_through { "502 X" } else { "407 X" };
        let answer = format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        return near.write_all(answer.as_bytes()).await.ok();
    };
    let mut far = TcpStream::connect(to).await.ok()?;
    if method == "CONNECT" {
        near.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
            .await
            .ok()?;
    } else {
        let fields = after
            .lines()
            .filter(|line| !line.to_ascii_lowercase().starts_with("proxy-"));
        let fields: Vec<&str> = fields.collect();
        let head = format!("{method} /{path} {}\r\n", fields.join("\r\n"));
        far.write_all(head.as_bytes()).await.ok()?;
    }
    tokio::io::copy_bidirectional(&mut near, &mut far)
        .await
        .ok();
    Some(())
}
