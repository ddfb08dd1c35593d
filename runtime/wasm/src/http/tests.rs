//! Outgoing requests against servers on this machine.

use super::*;
use coracle_spec::WasmNetwork;
use coracle_spec::egress::Egress;

fn endpoint(uri: &str) -> Result<(String, u16, bool)> {
    Endpoint::of(&uri.parse().unwrap()).map(|endpoint| (endpoint.host, endpoint.port, endpoint.tls))
}

#[test]
fn the_endpoint_comes_from_the_authority_only() {
    let is = |uri, host: &str, port, tls| {
        assert_eq!(
            endpoint(uri).unwrap(),
            (host.to_owned(), port, tls),
            "{uri}"
        );
    };
    is("http://a.example/x?y", "a.example", 80, false);
    is("https://a.example/", "a.example", 443, true);
    is("https://a.example:8443/", "a.example", 8443, true);
    is("http://[::1]:81/", "[::1]", 81, false);
    for uri in ["http://good.example@bad.example/", "http://a:0/", "/x"] {
        assert!(endpoint(uri).is_err(), "{uri}");
    }
}

#[test]
fn only_the_path_is_sent() {
    let path = |uri: &str| only_path(&uri.parse().unwrap()).unwrap().to_string();
    assert_eq!(path("http://a/b?c=d"), "/b?c=d");
    assert_eq!(path("http://a"), "/");
}

fn client(tls: Tls) -> Client {
    let guard = Guard::new(&WasmNetwork::On(Egress::Open), None);
    let mut client = Client::new(Arc::new(guard));
    client.tls = Arc::new(tls);
    client
}

fn request(method: &str, uri: &str) -> Request<WasiBody> {
    let empty = Empty::new().map_err(|never: std::convert::Infallible| match never {});
    let request = Request::builder().method(method).uri(uri);
    request.body(empty.boxed_unsync()).unwrap()
}

/// Version and body of the answer, or the error.
async fn ask(client: &Client, method: &str, uri: &str) -> Result<(http::Version, String)> {
    let request = request(method, uri);
    let response = client.fetch(request, RequestOptions::default()).await?;
    let version = response.version();
    let body = response.into_body().collect().await?.to_bytes();
    // The connection is in the pool a moment later.
    let endpoint = Endpoint::of(&uri.parse().unwrap())?;
    let kept = async {
        while !client.pool.has(&endpoint) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(60), kept).await.unwrap();
    Ok((version, String::from_utf8_lossy(&body).into_owned()))
}

/// A server that answers each request with the number of its connection.
async fn counting(tls: Option<tokio_rustls::TlsAcceptor>) -> SocketAddr {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        for number in 1.. {
            let (stream, _) = listener.accept().await.unwrap();
            let tls = tls.clone();
            tokio::spawn(async move {
                let service = hyper::service::service_fn(move |_| async move {
                    let body = http_body_util::Full::new(bytes::Bytes::from(number.to_string()));
                    Ok::<_, std::convert::Infallible>(Response::new(body))
                });
                match tls {
                    None => {
                        let builder = hyper::server::conn::http1::Builder::new();
                        let _ = builder
                            .serve_connection(TokioIo::new(stream), service)
                            .await;
                    }
                    Some(tls) => {
                        let stream = TokioIo::new(tls.accept(stream).await.unwrap());
                        let builder =
                            hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                        let _ = builder.serve_connection(stream, service).await;
                    }
                }
            });
        }
    });
    at
}

#[tokio::test]
async fn a_connection_is_kept_for_its_own_authority_alone() {
    let client = client(Tls::default());
    let (one, other) = (counting(None).await, counting(None).await);
    for at in [one, other, one, other] {
        let answer = ask(&client, "GET", &format!("http://{at}/")).await.unwrap();
        assert_eq!(answer.1, "1", "{at}");
    }
    // Another name of the same address is another authority.
    let named = format!("http://localhost:{}/", one.port());
    assert_eq!(ask(&client, "GET", &named).await.unwrap().1, "2");
    assert_eq!(ask(&client, "GET", &named).await.unwrap().1, "2");
    // What is under way has a connection to itself.
    let uri = format!("http://{one}/");
    let both = tokio::join!(ask(&client, "GET", &uri), ask(&client, "GET", &uri));
    let mut both = [both.0.unwrap().1, both.1.unwrap().1];
    both.sort();
    assert_eq!(both, ["1", "3"]);
    // Another instance of the client has no part in it.
    let stranger = self::client(Tls::default());
    assert_eq!(ask(&stranger, "GET", &uri).await.unwrap().1, "4");
}

/// A server whose first connection ends at the second request on it.
async fn forgetful() -> SocketAddr {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut some = [0; 1024];
            let _ = stream.read(&mut some).await;
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
            stream.write_all(answer).await.unwrap();
            let _ = stream.read(&mut some).await;
        }
    });
    at
}

#[tokio::test]
async fn what_a_closed_connection_has_not_answered_is_repeated_if_it_may_be() {
    let client = client(Tls::default());
    for (method, is_repeated) in [("GET", true), ("PUT", true), ("POST", false)] {
        let uri = format!("http://{}/", forgetful().await);
        assert_eq!(ask(&client, "POST", &uri).await.unwrap().1, "ok");
        let second = ask(&client, method, &uri).await;
        assert_eq!(second.is_ok(), is_repeated, "{method}: {second:?}");
    }
}

/// An acceptor that offers HTTP/2, and the certificate of localhost that it has.
fn acceptor() -> (tokio_rustls::TlsAcceptor, Vec<u8>) {
    use rustls::pki_types::pem::PemObject as _;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    let place = tempfile::tempdir().unwrap();
    let made = std::process::Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt"])
        .args(["ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=localhost", "-addext"])
        .args(["subjectAltName=DNS:localhost", "-addext"])
        .args(["basicConstraints=critical,CA:FALSE", "-keyout", "key"])
        .args(["-out", "certificate"])
        .current_dir(place.path())
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let pem = std::fs::read(place.path().join("certificate")).unwrap();
    let key = PrivateKeyDer::from_pem_file(place.path().join("key")).unwrap();
    let certificate = CertificateDer::from_pem_slice(&pem).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    config.alpn_protocols = vec![tls::HTTP2.to_vec()];
    (Arc::new(config).into(), pem)
}

#[tokio::test]
async fn a_server_that_offers_http_2_has_all_requests_on_one_connection() {
    let (acceptor, pem) = acceptor();
    let client = client(Tls::trusting(&pem));
    let at = counting(Some(acceptor)).await;
    let uri = format!("https://localhost:{}/", at.port());
    let expected = (http::Version::HTTP_2, "1".to_owned());
    assert_eq!(ask(&client, "GET", &uri).await.unwrap(), expected);
    let both = tokio::join!(ask(&client, "GET", &uri), ask(&client, "POST", &uri));
    assert_eq!(
        (both.0.unwrap(), both.1.unwrap()),
        (expected.clone(), expected)
    );
}
