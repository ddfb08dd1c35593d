//! The kinds of containers that are compared, and how the facts of each are gathered.

use std::collections::BTreeSet;

use coracle_proto::runtime::v1 as cri;
use coracle_tests::daemon::Daemon;
use coracle_tests::oracle::Facts;
use cri::NamespaceMode::Node;
use cri::security_profile::ProfileType::RuntimeDefault;

use crate::linux::shell::{
    facts, host_dir, host_pid, look, mount, namespaces, pod_security, program, resources, run,
    security,
};
use crate::site::Pod;

/// One kind of container.
pub struct Variant {
    /// Its name in reports and in the list of known differences.
    pub name: &'static str,
    pod: fn(&mut cri::PodSandboxConfig),
    container: fn(&mut cri::ContainerConfig),
    kind: Kind,
}

enum Kind {
    /// What the probe sees of itself.
    Look,
    /// How every system call ends.
    Syscalls,
    /// What the host's cgroup files and /proc say.
    FromHost,
}

/// Every variant, in the order they are run.
pub fn all() -> Vec<Variant> {
    let look = |name, container: fn(&mut cri::ContainerConfig)| Variant {
        name,
        pod: |_| {},
        container,
        kind: Kind::Look,
    };
    vec![
        look("default", |_| {}),
        look("readonly", |c| security(c).readonly_rootfs = true),
        look("user", as_user),
        look("capabilities", |c| {
            security(c).capabilities = Some(cri::Capability {
                add_capabilities: vec!["NET_ADMIN".into(), "SYS_ADMIN".into()],
                drop_capabilities: vec!["MKNOD".into()],
                ..Default::default()
            });
        }),
        look("confined", |c| {
            security(c).no_new_privs = true;
            security(c).seccomp = default_seccomp();
        }),
        look("tty", |c| {
            c.tty = true;
            c.stdin = true;
        }),
        Variant {
            name: "privileged",
            pod: |pod| pod_security(pod).privileged = true,
            container: |c| {
                let context = security(c);
                context.privileged = true;
                context.masked_paths.clear();
                context.readonly_paths.clear();
            },
            kind: Kind::Look,
        },
        Variant {
            name: "node",
            pod: |pod| {
                pod.hostname.clear();
                on_node(pod_security(pod).namespace_options.as_mut().unwrap());
            },
            container: |c| on_node(namespaces(c)),
            kind: Kind::Look,
        },
        Variant {
            name: "seccomp",
            pod: |_| {},
            container: |c| security(c).seccomp = default_seccomp(),
            kind: Kind::Syscalls,
        },
        Variant {
            name: "resources",
            pod: |_| {},
            container: limited,
            kind: Kind::FromHost,
        },
    ]
}

fn default_seccomp() -> Option<cri::SecurityProfile> {
    Some(cri::SecurityProfile {
        profile_type: RuntimeDefault as i32,
        ..Default::default()
    })
}

fn on_node(options: &mut cri::NamespaceOption) {
    (options.pid, options.ipc, options.network) = (Node as i32, Node as i32, Node as i32);
}

fn as_user(config: &mut cri::ContainerConfig) {
    config.working_dir = "/home/app".into();
    let context = security(config);
    context.run_as_user = Some(cri::Int64Value { value: 1000 });
    context.run_as_group = Some(cri::Int64Value { value: 1001 });
    context.supplemental_groups = vec![2000, 2001];
}

fn limited(config: &mut cri::ContainerConfig) {
    let limits = resources(config);
    limits.cpu_shares = 256;
    limits.cpu_quota = 20_000;
    limits.cpu_period = 100_000;
    limits.memory_limit_in_bytes = 128 << 20;
    limits.oom_score_adj = 500;
    limits.cpuset_cpus = "0".into();
    limits.cpuset_mems = "0".into();
}

impl Variant {
    /// Runs such a container in a pod of its own, and gives what was seen.
    pub async fn facts(&self, daemon: &Daemon) -> Facts {
        let mut sandbox = daemon.pod(self.name);
        (self.pod)(&mut sandbox);
        let pod = Pod::run_config(daemon, sandbox).await;
        let mut config = program("c", &["/bin/probe", "syscalls"]);
        let volume = host_dir(daemon, "volume");
        config.mounts = vec![
            mount(&volume, "/volume", false),
            mount(&volume, "/volume-ro", true),
        ];
        (self.container)(&mut config);
        let facts = match self.kind {
            Kind::Look => look(daemon, &pod, config).await,
            Kind::Syscalls => facts(&run(daemon, &pod, &config).await.ok()),
            Kind::FromHost => from_host(daemon, &pod, config).await,
        };
        pod.cri.stop_pod(&pod.id).await.unwrap();
        pod.cri.remove_pod(&pod.id).await.unwrap();
        facts
    }
}

/// Files of a container's cgroup that say how it is confined, with the v1 hierarchy that has them.
const FILES: [(&str, &str); 22] = [
    ("cpu", "cpu.shares"),
    ("cpu", "cpu.cfs_quota_us"),
    ("cpu", "cpu.cfs_period_us"),
    ("cpu", "cpu.rt_runtime_us"),
    ("cpu", "cpu.idle"),
    ("cpu", "cpu.cfs_burst_us"),
    ("cpuset", "cpuset.cpus"),
    ("cpuset", "cpuset.mems"),
    ("memory", "memory.limit_in_bytes"),
    ("memory", "memory.memsw.limit_in_bytes"),
    ("memory", "memory.soft_limit_in_bytes"),
    ("memory", "memory.swappiness"),
    ("memory", "memory.kmem.limit_in_bytes"),
    ("memory", "memory.oom_control"),
    ("memory", "memory.use_hierarchy"),
    ("pids", "pids.max"),
    ("devices", "devices.list"),
    ("blkio", "blkio.bfq.weight"),
    ("freezer", "freezer.state"),
    ("unified", "cpu.max"),
    ("unified", "memory.max"),
    ("unified", "pids.max"),
];

async fn from_host(daemon: &Daemon, pod: &Pod, mut config: cri::ContainerConfig) -> Facts {
    config.command = ["sleep", "1234567"].map(str::to_owned).to_vec();
    pod.start(&config).await;
    let pid = host_pid(daemon, "sleep 1234567");
    let read =
        |path: String| std::fs::read_to_string(path).unwrap_or_else(|e| e.kind().to_string());
    let cgroups = read(format!("/proc/{pid}/cgroup"));
    let mut facts = Facts::new();
    for (controller, name) in FILES {
        let path = cgroups.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let names = parts.next()?;
            let found = names.split(',').any(|name| name == controller)
                || names.is_empty() && controller == "unified";
            found.then(|| parts.next().unwrap_or_default().to_owned())
        });
        let Some(path) = path else { continue };
        let lines: BTreeSet<String> = read(format!("/sys/fs/cgroup/{controller}{path}/{name}"))
            .lines()
            .map(str::to_owned)
            .collect();
        if name == "devices.list" {
            facts.extend(
                lines
                    .into_iter()
                    .map(|line| (format!("device {line}"), "allowed".to_owned())),
            );
        } else {
            facts.insert(
                format!("cgroup file {name}"),
                lines.into_iter().collect::<Vec<_>>().join(", "),
            );
        }
    }
    for file in [
        "oom_score_adj",
        "loginuid",
        "timerslack_ns",
        "coredump_filter",
    ] {
        let text = read(format!("/proc/{pid}/{file}"));
        facts.insert(format!("proc file {file}"), text.trim().to_owned());
    }
    facts
}
