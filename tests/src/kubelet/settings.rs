//! How the kubelet of the tests is configured: its file, its directories, the files that it sees in place of others.
//!
//! Source: kubelet.config.k8s.io/v1beta1 of Kubernetes 1.36; pkg/kubelet/cm/container_manager_linux.go for the sysctls
//! that a kubelet sets when it starts.
//! Not here: starting it.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::Outcome;
use crate::daemon::Daemon;
use crate::registry::free_port;

/// Directories below the scratch's.
pub const ROOT: &str = "kubelet";
pub const MANIFESTS: &str = "manifests";

/// What a kubelet writes to /proc/sys; it is content when it reads the same.
const SYSCTLS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// The ports of one kubelet, all on loopback.
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// The one for exec, attach, port-forward and logs.
    pub main: u16,
    /// The one that answers without asking who asks.
    pub read_only: u16,
    /// `/healthz`.
    pub healthz: u16,
}

impl Ports {
    /// Ports that nobody listens on.
    pub fn free() -> Outcome<Self> {
        Ok(Self {
            main: free_port()?,
            read_only: free_port()?,
            healthz: free_port()?,
        })
    }
}

/// Makes the directories of a kubelet in this scratch.
pub fn make_directories(dir: &Path) -> Outcome<()> {
    for part in [
        ROOT, MANIFESTS, "certs", "plugins", "var-lib", "var-log", "sysctls",
    ] {
        fs::create_dir_all(dir.join(part))?;
    }
    for (name, value) in SYSCTLS {
        fs::write(dir.join("sysctls").join(name.replace('/', "-")), value)?;
    }
    Ok(())
}

/// The configuration of a standalone kubelet on this daemon, with `changes` laid over it key by key.
pub fn kubelet(daemon: &Daemon, ports: &Ports, changes: &Value) -> Value {
    let dir = daemon.scratch().dir();
    let mut config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "staticPodPath": dir.join(MANIFESTS), "fileCheckFrequency": "1s",
        "containerRuntimeEndpoint": format!("unix://{}", daemon.socket().display()),
        "authentication": {"anonymous": {"enabled": true}, "webhook": {"enabled": false}},
        "authorization": {"mode": "AlwaysAllow"},
        "address": "127.0.0.1", "port": ports.main, "readOnlyPort": ports.read_only, "healthzPort": ports.healthz,
        "failCgroupV1": false, "cgroupDriver": "cgroupfs", "cgroupRoot": daemon.cgroup_parent(),
        "cgroupsPerQOS": true, "enforceNodeAllocatable": ["pods"], "failSwapOn": false,
        "localStorageCapacityIsolation": true, "makeIPTablesUtilChains": false,
        "clusterDNS": ["10.96.0.10"], "clusterDomain": "cluster.test", "resolvConf": "/etc/resolv.conf",
        "runtimeRequestTimeout": "2m", "podLogsDir": dir.join("logs"), "volumePluginDir": dir.join("plugins"),
        "imageGCHighThresholdPercent": 99, "imageGCLowThresholdPercent": 98,
        "evictionHard": {
            "memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%",
            "nodefs.inodesFree": "1%",
        },
        "serializeImagePulls": false, "maxParallelImagePulls": 4, "seccompDefault": true, "registerNode": false,
    });
    for (key, value) in changes.as_object().into_iter().flatten() {
        config[key] = value.clone();
    }
    config
}

/// Shell words that become the kubelet, in a mount namespace of their own. Runs in the daemon's cgroup.
pub fn script(daemon: &Daemon, kubelet: &Path) -> Outcome<String> {
    let dir = daemon.scratch().dir().display();
    let mut script = daemon.scratch().enter_cgroup();
    for (name, _) in SYSCTLS {
        let file = name.replace('/', "-");
        script += &format!("mount --bind {dir}/sysctls/{file} /proc/sys/{name}\n");
    }
    for (ours, theirs) in [("var-lib", "/var/lib"), ("var-log", "/var/log")] {
        script += &format!("mount --bind {dir}/{ours} {theirs}\n");
    }
    script += &format!(
        "exec {} --config={dir}/kubelet.json --root-dir={dir}/{ROOT} --cert-dir={dir}/certs \
         --hostname-override={} --v=2",
        kubelet.display(),
        super::NODE
    );
    Ok(script)
}
