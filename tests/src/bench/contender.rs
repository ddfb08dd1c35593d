//! The runtimes that are compared. A new one is a new implementation of [`Contender`] and a line in [`all`].

use std::path::PathBuf;

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
    /// Its corner of the machine: every process in it belongs to this runtime.
    fn scratch(&self) -> &Scratch;
    /// The pid of the daemon, whose memory is told apart from the pods'.
    fn daemon_pid(&self) -> i32;
    /// The directory for container logs.
    fn logs(&self) -> PathBuf {
        self.scratch().dir().join("logs")
    }
}

/// The names of all contenders, in the order in which they run. The last is what the others are measured against.
pub const NAMES: [&str; 2] = ["coracle-wasm", "containerd-runc"];

/// Starts the contender of this name. Errors: unknown name, or it does not start.
pub async fn start(name: &str, registry: &Registry) -> Outcome<Box<dyn Contender>> {
    match name {
        "coracle-wasm" => Ok(Box::new(CoracleWasm::start(registry).await?)),
        "containerd-runc" => Ok(Box::new(ContainerdRunc::start(registry).await?)),
        _ => Err(format!(
            "no contender is called {name}; there are {}",
            NAMES.join(", ")
        )
        .into()),
    }
}

struct CoracleWasm {
    daemon: Daemon,
    image: String,
}

impl CoracleWasm {
    async fn start(registry: &Registry) -> Outcome<Self> {
        let guest = guests::wat("hello")?;
        let image = Image::wasi(
            &[file("hello.wasm", 0o644, &guest)],
            Packing::Gzip,
            &["/hello.wasm"],
        )?;
        let image = image
            .push(registry.host(), "bench/hello-wasm", "1")?
            .reference;
        let options = crate::daemon::Options {
            quiet: true,
            ..Default::default()
        };
        let daemon = Daemon::start_with(options).await?;
        daemon.cri().pull(&image).await?;
        Ok(Self { daemon, image })
    }
}

impl Contender for CoracleWasm {
    fn name(&self) -> &'static str {
        NAMES[0]
    }
    fn cri(&self) -> Cri {
        self.daemon.cri()
    }
    fn image(&self) -> &str {
        &self.image
    }
    fn scratch(&self) -> &Scratch {
        self.daemon.scratch()
    }
    fn daemon_pid(&self) -> i32 {
        self.daemon.pid()
    }
}

struct ContainerdRunc {
    peer: Containerd,
    image: String,
}

impl ContainerdRunc {
    async fn start(registry: &Registry) -> Outcome<Self> {
        let pause = Image::linux(
            &[file("pause", 0o755, &guests::linux_pause()?)],
            &["/pause"],
        )?;
        let pause = pause.push(registry.host(), "bench/pause", "1")?.reference;
        let hello = Image::linux(
            &[file("hello", 0o755, &guests::linux_workload()?)],
            &["/hello"],
        )?;
        let image = hello
            .push(registry.host(), "bench/hello-linux", "1")?
            .reference;
        let peer = Containerd::start(&pause).await?;
        peer.cri().pull(&pause).await?;
        peer.cri().pull(&image).await?;
        Ok(Self { peer, image })
    }
}

impl Contender for ContainerdRunc {
    fn name(&self) -> &'static str {
        NAMES[1]
    }
    fn cri(&self) -> Cri {
        self.peer.cri()
    }
    fn image(&self) -> &str {
        &self.image
    }
    fn scratch(&self) -> &Scratch {
        self.peer.scratch()
    }
    fn daemon_pid(&self) -> i32 {
        self.peer.pid()
    }
}
