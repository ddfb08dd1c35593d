//! The servers that are compared. A new one is a name in [`NAMES`] and a line in [`start`].

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use coracle_proto::runtime::v1 as cri;

use crate::client::{self, Cri, container};
use crate::daemon::{Daemon, Options};
use crate::peer::Containerd;
use crate::procs::{self, Role};
use crate::push::{Image, Packing, file};
use crate::registry::Registry;
use crate::scratch::Scratch;
use crate::{Outcome, guests, tools};

/// All servers, in the order in which each round has them.
pub const NAMES: [&str; 5] = [
    "coracle-http",
    "coracle-http-reuse",
    "wasmtime-serve",
    "wasmtime-serve-reuse",
    "containerd-native",
];

/// Where every server listens.
const PORT: u16 = 8080;
/// How many requests an instance answers where instances are reused, at Coracle and its peer. Not more: the component, as
/// many do, gives back nothing of what a request left behind.
const REUSE: &str = "128";
/// How long a server may take to listen: wasmtime compiles the component first.
const PATIENCE: Duration = Duration::from_secs(60);
/// What makes `wasmtime serve` fastest: memory, tables and stacks of a pool that keep their pages. Source: its
/// `-O help`, and trials on the machine of docs/performance.md.
const WASMTIME_FLAGS: [&str; 4] = [
    "-Scli=y",
    "-Opooling-allocator=y",
    "-Opooling-memory-keep-resident=2097152,pooling-table-keep-resident=65536",
    "-Opooling-async-stack-keep-resident=65536",
];

/// A server that listens.
pub struct Server {
    /// Its name in the table and in the JSON.
    pub name: &'static str,
    /// Where it listens, behind a veth.
    pub at: SocketAddr,
    parts: Parts,
}

/// What a server consists of; all of it ends with the value.
enum Parts {
    Coracle(Daemon),
    Wasmtime { server: Running, _pod: Daemon },
    Containerd(Containerd),
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Server {
    /// The processes that serve and that keep the server, but no daemon: those of the pod, where there is one.
    pub fn pids(&self) -> Vec<i32> {
        match &self.parts {
            Parts::Coracle(daemon) => pod_pids(daemon.scratch()),
            Parts::Wasmtime { server, .. } => vec![server.0.id().cast_signed()],
            Parts::Containerd(peer) => pod_pids(peer.scratch()),
        }
    }
}

/// The processes of all pods of a daemon.
pub fn pod_pids(scratch: &Scratch) -> Vec<i32> {
    let of_pod = |role| !matches!(role, Role::Daemon | Role::Spawner);
    let processes = procs::of_scratch(scratch).into_iter();
    processes
        .filter(|process| of_pod(process.role))
        .map(|process| process.pid)
        .collect()
}

/// Starts the server of this name and waits until it listens. Errors: unknown name, or it does not start.
pub async fn start(name: &str, registry: &Registry) -> Outcome<Server> {
    let Some(name) = NAMES.into_iter().find(|known| *known == name) else {
        let known = NAMES.join(", ");
        return Err(format!("no server is called {name}; there are {known}").into());
    };
    let (at, parts) = match name {
        "coracle-http" => coracle(registry, &[]).await?,
        "coracle-http-reuse" => {
            coracle(
                registry,
                &[("http.coracle.dev/max-instance-requests", REUSE)],
            )
            .await?
        }
        "wasmtime-serve" => wasmtime(registry, &[]).await?,
        "wasmtime-serve-reuse" => {
            wasmtime(registry, &["--max-instance-reuse-count", REUSE]).await?
        }
        _ => containerd(registry).await?,
    };
    let server = Server { name, at, parts };
    wait_listening(at)?;
    Ok(server)
}

/// Pushes the image of the component `function.c`, and gives its reference.
pub fn function_image(registry: &Registry) -> Outcome<String> {
    image(registry, "bench/function", &guests::function()?)
}

/// Pushes an image of this component, and gives its reference.
pub fn image(registry: &Registry, name: &str, component: &[u8]) -> Outcome<String> {
    let files = [file("function.wasm", 0o755, component)];
    let image = Image::wasi(&files, Packing::Gzip, &["/function.wasm"])?;
    Ok(image.push(registry.host(), name, "1")?.reference)
}

/// A daemon that logs little and has pulled `image`.
pub async fn daemon(image: &str) -> Outcome<Daemon> {
    let options = Options {
        quiet: true,
        ..Options::default()
    };
    let daemon = Daemon::start_with(options).await?;
    daemon.cri().pull(image).await?;
    Ok(daemon)
}

/// Runs a container of `image` in a pod of this name with these annotations; where its port is.
pub async fn run(
    daemon: &Daemon,
    image: &str,
    name: &str,
    annotations: &[(&str, &str)],
) -> Outcome<(SocketAddr, Started)> {
    let mut pod = daemon.pod(name);
    let annotations = annotations.iter();
    pod.annotations
        .extend(annotations.map(|(key, value)| ((*key).to_owned(), (*value).to_owned())));
    run_in(&daemon.cri(), &pod, image).await
}

/// What was made for a server under test.
pub struct Started {
    /// The sandbox.
    pub pod: String,
    /// Its only container.
    pub container: String,
}

async fn run_in(
    cri: &Cri,
    pod: &cri::PodSandboxConfig,
    image: &str,
) -> Outcome<(SocketAddr, Started)> {
    let sandbox = cri.run_pod(pod).await?;
    let id = cri
        .create_started(&sandbox, &container("function", image, &[]), pod)
        .await?;
    let status = cri.pod_status(&sandbox).await?;
    let network = status.network.ok_or("a pod without a network")?;
    let address: IpAddr = network.ip.parse()?;
    let started = Started {
        pod: sandbox,
        container: id,
    };
    Ok((SocketAddr::new(address, PORT), started))
}

async fn coracle(
    registry: &Registry,
    annotations: &[(&str, &str)],
) -> Outcome<(SocketAddr, Parts)> {
    let image = function_image(registry)?;
    let daemon = daemon(&image).await?;
    let (at, _) = run(&daemon, &image, "function", annotations).await?;
    Ok((at, Parts::Coracle(daemon)))
}

/// `wasmtime serve` in the network of a pod of Coracle's that does nothing else, so that its veth is the same kind.
async fn wasmtime(registry: &Registry, flags: &[&str]) -> Outcome<(SocketAddr, Parts)> {
    let program = tools::build("wasmtime.sh", &[])?;
    let hello = guests::linux_pause()?;
    let image = Image::linux(&[file("pause", 0o755, &hello)], &["/pause"])?;
    let image = image.push(registry.host(), "bench/pause", "1")?.reference;
    let pod = daemon(&image).await?;
    let (at, _) = run(&pod, &image, "wasmtime", &[]).await?;
    let inside = procs::with_role(pod.scratch(), Role::Guest);
    let inside = inside.first().ok_or("the pod of wasmtime has no process")?;
    let component = pod.scratch().dir().join("function.wasm");
    std::fs::write(&component, guests::function()?)?;
    let server = serve(&program, inside.pid, &component, flags)?;
    Ok((at, Parts::Wasmtime { server, _pod: pod }))
}

fn serve(program: &Path, inside: i32, component: &Path, flags: &[&str]) -> Outcome<Running> {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net=/proc/{inside}/ns/net"))
        .arg(program)
        .arg("serve")
        .args(WASMTIME_FLAGS)
        .args(flags)
        .args(["--addr", &format!("0.0.0.0:{PORT}")])
        .arg(component)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let child = command.spawn().map_err(|e| format!("nsenter: {e}"))?;
    Ok(Running(child))
}

/// The same answer from a static Go program.
async fn containerd(registry: &Registry) -> Outcome<(SocketAddr, Parts)> {
    let server = std::fs::read(tools::build("go-server.sh", &[])?)?;
    let image = Image::linux(&[file("server", 0o755, &server)], &["/server"])?;
    let image = image.push(registry.host(), "bench/server", "1")?.reference;
    let pause = Image::linux(
        &[file("pause", 0o755, &guests::linux_pause()?)],
        &["/pause"],
    )?;
    let pause = pause.push(registry.host(), "bench/pause", "1")?.reference;
    let peer = Containerd::start(&pause).await?;
    peer.cri().pull(&pause).await?;
    peer.cri().pull(&image).await?;
    let logs = peer.scratch().dir().join("logs/native");
    std::fs::create_dir_all(&logs)?;
    let parent = format!("{}/pods", peer.scratch().cgroup());
    let pod = client::pod("native", &logs, &parent);
    let (at, _) = run_in(&peer.cri(), &pod, &image).await?;
    Ok((at, Parts::Containerd(peer)))
}

/// Waits until a connection is taken. Errors: none is for a minute.
fn wait_listening(at: SocketAddr) -> Outcome<()> {
    let end = Instant::now() + PATIENCE;
    while TcpStream::connect(at).is_err() {
        if Instant::now() > end {
            return Err(format!("nothing listened at {at} for {PATIENCE:?}").into());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}
