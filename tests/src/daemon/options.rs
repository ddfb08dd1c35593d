//! How a daemon under test is started, and the configuration that follows from it: Coracle's own or the peer's.
//!
//! Called by: [`super`]. Not here: starting it.

use std::path::PathBuf;

use crate::peer;
use crate::scratch::Scratch;

/// How to start a daemon, where it differs from the ordinary way.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The binary; the one built beside the tests unless set.
    pub binary: Option<PathBuf>,
    /// TOML appended to the configuration: whole tables, not ones that the harness writes itself. `@scratch@` stands for the
    /// scratch's directory.
    pub config: String,
    /// Lines of `[images]`.
    pub images: String,
    /// Lines of `[network]`.
    pub network: String,
    /// Lines of `[sandbox]`.
    pub sandbox: String,
    /// Have host ids for thousands of pods; two such daemons cannot run at once.
    pub many_pods: bool,
    /// Have CNI plugins connect pods, each given this many seconds; see [`crate::cni`].
    pub cni: Option<u64>,
    /// Put the root directory on a tmpfs of this many bytes.
    pub root_bytes: Option<u64>,
    /// The failpoint plan, `site action` a line; needs a binary built with failpoints.
    pub failpoints: Option<String>,
    /// Log at `warn`, as in production, instead of `debug`.
    pub quiet: bool,
    /// Start containerd with this sandbox image instead, to prove a test on a runtime that is known to be right.
    /// Leaks are not looked for then.
    pub peer_sandbox_image: Option<String>,
    /// The runtime that containerd calls instead of runc, an absolute path.
    pub peer_runtime: Option<PathBuf>,
    /// A file that the daemon sees in place of /proc/sys/kernel/random/boot_id.
    pub boot_id: Option<PathBuf>,
    /// Hide the unified tree of a hybrid node from the daemon, which then sees cgroup v1 alone.
    pub pure_v1: bool,
    /// Start the daemon in a mount namespace where every mount is shared, as systemd has them.
    pub shared_mounts: bool,
}

impl Options {
    /// The configuration file of the daemon, in the scratch's directories.
    pub(crate) fn config_text(&self, scratch: &Scratch) -> String {
        match &self.peer_sandbox_image {
            Some(image) => peer::config(scratch, image) + &self.peer_runtime_text(),
            None => self.own_config_text(scratch),
        }
    }

    fn peer_runtime_text(&self) -> String {
        let Some(runtime) = &self.peer_runtime else {
            return String::new();
        };
        let table = "plugins.\"io.containerd.grpc.v1.cri\".containerd";
        format!(
            "[{table}]\ndefault_runtime_name = \"other\"\n\
             [{table}.runtimes.other]\nruntime_type = \"io.containerd.runc.v2\"\n\
             [{table}.runtimes.other.options]\nBinaryName = \"{}\"\n",
            runtime.display()
        )
    }

    fn own_config_text(&self, scratch: &Scratch) -> String {
        let dir = scratch.dir().display();
        let (images, mut network) = (&self.images, self.network.clone());
        if let Some(limit_s) = self.cni {
            network += &format!(
                "\nmode = \"cni\"\ncni_conf_dir = \"{dir}/cni\"\n\
                 cni_bin_dirs = [\"{dir}/plugins\", \"/usr/lib/cni\"]\ncni_plugin_timeout_s = {limit_s}"
            );
        }
        format!(
            "root = \"{dir}/root\"\nrun = \"{dir}/run\"\nsocket = \"{dir}/run/coracle.sock\"\n\
             [log]\nlevel = \"{level}\"\n\
             [cgroup]\ndriver = \"cgroupfs\"\npod_parent = \"{cgroup}/pods\"\n\
             [network]\nsubnet = \"{subnet}\"\ninterface_prefix = \"{prefix}\"\n{network}\n\
             [images]\n{images}\n[sandbox]\n{ids}{sandbox}\n{extra}",
            level = if self.quiet { "warn" } else { "debug" },
            cgroup = scratch.cgroup(),
            subnet = scratch.subnet(),
            prefix = scratch.interface_prefix(),
            ids = scratch.host_ids(self.many_pods),
            sandbox = self.sandbox,
            extra = self.config.replace("@scratch@", &dir.to_string()),
        )
    }
}
