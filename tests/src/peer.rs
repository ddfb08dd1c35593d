//! containerd + runc, Debian's, behind a private socket: the peer that the bench compares with, and the proof that the
//! harness itself is right.
//!
//! Everything it writes lies in its scratch; CNI plugins are Debian's `containernetworking-plugins` (bridge without
//! masquerade, as the baselines were measured).

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::client::Cri;
use crate::procs;
use crate::scratch::Scratch;

/// Where Debian puts the CNI plugins.
const CNI_PLUGINS: &str = "/usr/lib/cni";

/// A running containerd; it and all it started end on drop.
#[derive(Debug)]
pub struct Containerd {
    child: Child,
    scratch: Scratch,
}

impl Containerd {
    /// Starts containerd with this sandbox image and waits until its CRI answers.
    /// Errors: not installed, or no answer within fifteen seconds.
    pub async fn start(sandbox_image: &str) -> Outcome<Self> {
        Self::start_with(sandbox_image, "", &[]).await
    }

    /// The same with lines appended to its configuration and plugins to its network list.
    pub async fn start_with(
        sandbox_image: &str,
        extra_config: &str,
        extra_plugins: &[serde_json::Value],
    ) -> Outcome<Self> {
        if !PathBuf::from(CNI_PLUGINS).join("bridge").exists() {
            return Err(format!(
                "no bridge plugin in {CNI_PLUGINS}; apt-get install containernetworking-plugins"
            )
            .into());
        }
        let scratch = Scratch::new()?;
        let dir = scratch.dir();
        fs::create_dir_all(dir.join("cni"))?;
        fs::create_dir_all(dir.join("logs"))?;
        let config = config(&scratch, sandbox_image) + extra_config;
        fs::write(dir.join("config.toml"), config)?;
        let mut network: serde_json::Value = serde_json::from_str(&cni(&scratch))?;
        if let Some(plugins) = network["plugins"].as_array_mut() {
            plugins.extend_from_slice(extra_plugins);
        }
        fs::write(dir.join("cni/10-bridge.conflist"), network.to_string())?;
        let log = fs::File::create(dir.join("daemon.log"))?;
        let script = format!("{}exec containerd --config \"$0\"", scratch.enter_cgroup());
        let child = Command::new("/bin/sh")
            .args(["-c", &script])
            .arg(dir.join("config.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let peer = Self { child, scratch };
        let answered = peer.cri().wait_ready(Duration::from_secs(15)).await;
        answered.map_err(|e| {
            let log = fs::read_to_string(peer.scratch.dir().join("daemon.log")).unwrap_or_default();
            format!("containerd does not answer: {e}\n{log}")
        })?;
        Ok(peer)
    }

    /// A client of its CRI.
    pub fn cri(&self) -> Cri {
        Cri::new(&self.socket())
    }

    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.scratch.dir().join("run/coracle.sock")
    }

    /// Its corner of the machine.
    pub fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// The daemon's pid.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        for process in procs::of_scratch(&self.scratch) {
            procs::kill(process.pid);
        }
        let _ = self.child.wait();
        self.drop_namespaces();
        remove_bridge(&self.scratch);
    }
}

impl Containerd {
    /// Drops the network namespaces that containerd pinned for pods that were never stopped.
    fn drop_namespaces(&self) {
        let end = Instant::now() + Duration::from_secs(2);
        while !procs::of_scratch(&self.scratch).is_empty() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        let pins = fs::read_dir(self.scratch.dir().join("netns"))
            .into_iter()
            .flatten()
            .flatten();
        for pin in pins {
            let _ = rustix::mount::unmount(pin.path(), rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// Takes the bridge away that the CNI plugin made.
pub(crate) fn remove_bridge(scratch: &Scratch) {
    let bridge = scratch.interface_prefix() + "br";
    let mut ip = Command::new("ip");
    let _ = ip
        .args(["link", "delete", &bridge])
        .stderr(Stdio::null())
        .status();
}

/// containerd's configuration for this scratch.
pub(crate) fn config(scratch: &Scratch, sandbox_image: &str) -> String {
    let dir = scratch.dir().display();
    format!(
        "version = 2\nroot = \"{dir}/root\"\nstate = \"{dir}/run\"\n\
         disabled_plugins = [\"io.containerd.snapshotter.v1.aufs\", \"io.containerd.snapshotter.v1.btrfs\", \
         \"io.containerd.snapshotter.v1.devmapper\", \"io.containerd.snapshotter.v1.zfs\"]\n\
         [grpc]\naddress = \"{dir}/run/coracle.sock\"\n[debug]\nlevel = \"warn\"\n\
         [plugins.\"io.containerd.internal.v1.opt\"]\npath = \"{dir}/opt\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_image = \"{sandbox_image}\"\nstream_server_port = \"0\"\n\
         restrict_oom_score_adj = true\ntolerate_missing_hugetlb_controller = true\n\
         disable_apparmor = true\nnetns_mounts_under_state_dir = true\n\
         [plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"{CNI_PLUGINS}\"\nconf_dir = \"{dir}/cni\"\n"
    )
}

/// The bridge network of this scratch.
pub(crate) fn cni(scratch: &Scratch) -> String {
    serde_json::json!({
        "cniVersion": "0.4.0", "name": scratch.interface_prefix(),
        "plugins": [{
            "type": "bridge", "bridge": scratch.interface_prefix() + "br", "isGateway": true, "ipMasq": false,
            "ipam": {
                "type": "host-local", "dataDir": scratch.dir().join("ipam"),
                "ranges": [[{"subnet": scratch.subnet()}]], "routes": [{"dst": "0.0.0.0/0"}],
            },
        }],
    })
    .to_string()
}
