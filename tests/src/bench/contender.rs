//! The runtimes that are compared. A new one is a new implementation of [`Contender`] and a line in `all`.

use crate::client::Cri;
use crate::daemon::Daemon;
use crate::peer::Containerd;
use crate::push::{Image, Packing, file};
use crate::registry::Registry;
use crate::scratch::Scratch;
use crate::{Outcome, guests};

/// One runtime, running, with its image pulled.
pub trait Contender {
    /// Its name in the table and in the JSON.
    fn name(&self) -> &'static str;
    /// A client of its CRI.
    fn cri(&self) -> Cri;
    /// The reference of the image whose container prints "hello" and then waits.
    fn image(&self) -> &str;
    /// The RuntimeClass handler its pods name.
    fn handler(&self) -> &'static str {
        ""
    }
    /// Whether plugins connect its pods, by the bridge that all such contenders have.
    fn has_plugins(&self) -> bool;
    /// Its corner of the machine: every process in it belongs to this runtime.
    fn scratch(&self) -> &Scratch;
    /// The pid of the daemon, whose memory is reported apart from that of pods.
    fn daemon_pid(&self) -> i32;
}

/// The names of all contenders, in the order in which they run. The last is what the others are measured against.
pub const NAMES: [&str; 6] = [
    "coracle-wasm",
    "coracle-linux",
    "coracle-wasm-cni",
    "coracle-linux-cni",
    "containerd-crun",
    "containerd-runc",
];

/// What makes crun the runtime of every pod, by a script that knows where Debian's runs. Source: containerd 1.6 and
/// later, CRI plugin, version 2 configuration.
const CRUN: &str = concat!(
    "[plugins.\"io.containerd.grpc.v1.cri\".containerd]\ndefault_runtime_name = \"crun\"\n\
    [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.crun]\nruntime_type = \"io.containerd.runc.v2\"\n\
    [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.crun.options]\nBinaryName = \"",
    env!("CARGO_MANIFEST_DIR"),
    "/tools/crun.sh\"\n"
);

/// How long a plugin may take, seconds, where plugins connect Coracle's pods: as long as the configuration's default.
const PLUGIN_LIMIT_S: Option<u64> = Some(60);

/// Starts the contender of this name. Errors: unknown name, or it does not start.
pub async fn start(name: &str, registry: &Registry) -> Outcome<Box<dyn Contender>> {
    match name {
        "coracle-wasm" => coracle(NAMES[0], &wasm_image(registry)?, None).await,
        "coracle-linux" => coracle(NAMES[1], &linux_image(registry)?, None).await,
        "coracle-wasm-cni" => coracle(NAMES[2], &wasm_image(registry)?, PLUGIN_LIMIT_S).await,
        "coracle-linux-cni" => coracle(NAMES[3], &linux_image(registry)?, PLUGIN_LIMIT_S).await,
        "containerd-crun" => containerd(NAMES[4], registry, CRUN).await,
        "containerd-runc" => containerd(NAMES[5], registry, "").await,
        _ => Err(format!(
            "no contender is called {name}; there are {}",
            NAMES.join(", ")
        )
        .into()),
    }
}

/// Pushes the Wasm image that prints "hello" and waits. Errors: the registry refuses it.
pub fn wasm_image(registry: &Registry) -> Outcome<String> {
    let guest = guests::wat("hello")?;
    let image = Image::wasi(
        &[file("hello.wasm", 0o644, &guest)],
        Packing::Gzip,
        &["/hello.wasm"],
    )?;
    let pushed = image.push(registry.host(), "bench/hello-wasm", "1")?;
    Ok(pushed.reference)
}

/// Pushes the Linux image that does the same.
fn linux_image(registry: &Registry) -> Outcome<String> {
    let hello = guests::linux_workload()?;
    let image = Image::linux(&[file("hello", 0o755, &hello)], &["/hello"])?;
    let pushed = image.push(registry.host(), "bench/hello-linux", "1")?;
    Ok(pushed.reference)
}

/// With plugins of the peers' bridge if `plugin_limit_s` is given, else with the built-in network.
async fn coracle(
    name: &'static str,
    image: &str,
    plugin_limit_s: Option<u64>,
) -> Outcome<Box<dyn Contender>> {
    let options = crate::daemon::Options {
        quiet: true,
        cni: plugin_limit_s,
        ..Default::default()
    };
    let daemon = Daemon::start_with(options).await?;
    daemon.cri().pull(image).await?;
    Ok(Box::new(Coracle {
        name,
        daemon,
        image: image.to_owned(),
        has_plugins: plugin_limit_s.is_some(),
    }))
}

async fn containerd(
    name: &'static str,
    registry: &Registry,
    config: &str,
) -> Outcome<Box<dyn Contender>> {
    let pause = Image::linux(
        &[file("pause", 0o755, &guests::linux_pause()?)],
        &["/pause"],
    )?;
    let pause = pause.push(registry.host(), "bench/pause", "1")?.reference;
    let image = linux_image(registry)?;
    let peer = Containerd::start_with(&pause, config, &[]).await?;
    peer.cri().pull(&pause).await?;
    peer.cri().pull(&image).await?;
    Ok(Box::new(Peer { name, peer, image }))
}

struct Coracle {
    name: &'static str,
    daemon: Daemon,
    image: String,
    has_plugins: bool,
}

impl Contender for Coracle {
    fn name(&self) -> &'static str {
        self.name
    }
    fn cri(&self) -> Cri {
        self.daemon.cri()
    }
    fn image(&self) -> &str {
        &self.image
    }
    fn has_plugins(&self) -> bool {
        self.has_plugins
    }
    fn scratch(&self) -> &Scratch {
        self.daemon.scratch()
    }
    fn daemon_pid(&self) -> i32 {
        self.daemon.pid()
    }
}

struct Peer {
    name: &'static str,
    peer: Containerd,
    image: String,
}

impl Contender for Peer {
    fn name(&self) -> &'static str {
        self.name
    }
    fn cri(&self) -> Cri {
        self.peer.cri()
    }
    fn image(&self) -> &str {
        &self.image
    }
    fn has_plugins(&self) -> bool {
        true
    }
    fn scratch(&self) -> &Scratch {
        self.peer.scratch()
    }
    fn daemon_pid(&self) -> i32 {
        self.peer.pid()
    }
}
