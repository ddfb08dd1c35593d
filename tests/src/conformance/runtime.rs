//! The runtime that critest tests: Coracle, or Debian's containerd with runc to prove the harness itself.
//!
//! Both run in a scratch of their own and pull every image through the same `hosts.toml` files.
//! Not here: critest.

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::daemon::{Daemon, Options};
use crate::peer::Containerd;
use crate::push::{Image, file};
use crate::{Outcome, guests};

/// A running daemon; ends, with all it started, on [`Runtime::finish`] or on drop.
#[derive(Debug)]
pub enum Runtime {
    /// The product, as the Makefile builds it.
    Coracle(Box<Daemon>),
    /// containerd and runc.
    Peer(Box<Containerd>),
}

impl Runtime {
    /// Starts the runtime with these mirrors and waits until it answers. Errors: as the starters say.
    pub async fn start(peer: bool, registry: &str, mirrors: &Path) -> Outcome<Self> {
        if peer {
            return Self::start_peer(registry, mirrors).await;
        }
        let images = format!("registry_config = \"{}\"", mirrors.display());
        let daemon = Daemon::start_with(Options {
            images,
            ..Options::default()
        })
        .await?;
        Ok(Self::Coracle(Box::new(daemon)))
    }

    /// The peer's network gains host ports; Coracle's own is what it is.
    async fn start_peer(registry: &str, mirrors: &Path) -> Outcome<Self> {
        // Not the image of a spec: two of them count the tags of `pause`.
        let pause = Image::linux(
            &[file("sandbox", 0o755, &guests::linux_pause()?)],
            &["/sandbox"],
        )?;
        let pause = pause.push(registry, "sandbox", "latest")?;
        let config = format!(
            "[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"{}\"\n",
            mirrors.display()
        );
        let ports =
            json!({"type": "portmap", "capabilities": {"portMappings": true}, "snat": true});
        let peer = Containerd::start_with(&pause.reference, &config, &[ports]).await?;
        Ok(Self::Peer(Box::new(peer)))
    }

    /// For messages.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Coracle(_) => "coracle",
            Self::Peer(_) => "containerd",
        }
    }

    /// The CRI socket.
    pub fn socket(&self) -> PathBuf {
        match self {
            Self::Coracle(daemon) => daemon.socket(),
            Self::Peer(peer) => peer.socket(),
        }
    }

    /// All that the daemon has logged.
    pub fn log(&self) -> String {
        match self {
            Self::Coracle(daemon) => daemon.log(),
            Self::Peer(peer) => {
                std::fs::read_to_string(peer.scratch().dir().join("daemon.log")).unwrap_or_default()
            }
        }
    }

    /// Removes what pods failed specs left, and ends the daemon. Errors: Coracle left something behind.
    pub async fn finish(self) -> Outcome<()> {
        match self {
            Self::Coracle(daemon) => daemon.finish().await,
            Self::Peer(peer) => Ok(peer.cri().remove_all_pods().await?),
        }
    }
}
