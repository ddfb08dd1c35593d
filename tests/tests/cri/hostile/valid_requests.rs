//! What a good request of each kind is, and what may stand in the fields of bad ones.

use coracle_proto::runtime::v1 as cri;
use coracle_tests::hostile::Words;
use coracle_tests::protobuf::{Tree, Value};

use super::Target;
use crate::linux::shell;
use crate::site::tool;

/// Names of images that are absent or invalid.
const IMAGES: [&str; 9] = [
    "127.0.0.1:1/none:v1",
    "127.0.0.1:1/none@sha256:zz",
    "127.0.0.1:1/LONG LONG",
    "UPPER\u{1}",
    "a\0b",
    "\u{1f980}",
    ":",
    "@",
    "",
];

/// Texts for fields by name; DIR is the scratch directory of the daemon.
const TEXTS: [(&str, &[&str]); 13] = [
    (
        "host_path",
        &["DIR/vol", "DIR/vol/a/b", "DIR/vol/../vol", "x", "", "a\0b"],
    ),
    (
        "Device.host_path",
        &["/dev/null", "/dev", "/dev/none", "", "x"],
    ),
    (
        "log_directory",
        &["DIR/logs/h", "DIR/logs/../logs/h", "x", "", "a\0b"],
    ),
    ("log_path", &["c.log", "../up.log", "a/b/c.log", "a\0b", ""]),
    ("location", &["DIR/checkpoint", ""]),
    ("output_path", &["DIR/checkpoint", ""]),
    ("checkpoint_path", &["DIR/checkpoint", ""]),
    (
        "sysctls",
        &["net.core.somaxconn", "kernel.shm_rmid_forced", "1", "x", ""],
    ),
    (
        "annotations",
        &[
            "egress.coracle.dev/allow",
            "cni.coracle.dev/ips",
            "cni.coracle.dev/mac",
            "kubernetes.io/egress-bandwidth",
            "198.51.100.0/24:443,example.org",
            "1M",
            "LONG",
            "",
        ],
    ),
    (
        "runtime_handler",
        &["", "coracle", "coracle-wasm", "coracle-strict", "x", "LONG"],
    ),
    ("command", &["/tool.wasm", "/bin/true", "x", ""]),
    ("args", &["show", "sleep", "exit", "5", "", "LONG"]),
    ("cmd", &["/bin/true", "x", "", "LONG"]),
];

impl Target {
    /// A good request of this kind, as far as the protocol makes one necessary.
    pub(super) fn good(&self, name: &str, ids: &[String], number: usize) -> Tree {
        let mut tree = Tree::default();
        let mut put = |path: &str, value: &str| {
            let value = Value::Bytes(value.into());
            tree.put(&self.schema, name, path, value).unwrap();
        };
        let sandbox = self.daemon.pod(&format!("r{number}"));
        match name {
            "RunPodSandboxRequest" => put_sandbox(&mut put, "config", &sandbox),
            "CreateContainerRequest" => {
                put("pod_sandbox_id", &ids[0]);
                put("config.metadata.name", &format!("c{number}"));
                put("config.image.image", tool());
                put("config.args", "sleep");
                put("config.log_path", "c.log");
                put("config.envs.key", "KEY");
                put("config.labels", "");
                put("config.mounts.container_path", "/data");
                let volume = self.daemon.scratch().dir().join("vol");
                put("config.mounts.host_path", &volume.display().to_string());
                put("config.linux.resources.cpuset_cpus", "0");
                put("config.linux.security_context.run_as_username", "root");
                put_sandbox(&mut put, "sandbox_config", &self.pod.config);
            }
            "PullImageRequest" => {
                put("image.image", tool());
                put("auth.username", "u");
                put("auth.password", "p");
                put_sandbox(&mut put, "sandbox_config", &self.pod.config);
            }
            "ImageStatusRequest" | "RemoveImageRequest" => put("image.image", tool()),
            "ListImagesRequest" | "StreamImagesRequest" => put("filter.image.image", tool()),
            "ExecSyncRequest" | "ExecRequest" => {
                put("container_id", &ids[2]);
                put("cmd", "/bin/true");
            }
            "UpdateRuntimeConfigRequest" => {
                put("runtime_config.network_config.pod_cidr", "10.9.0.0/24");
            }
            "UpdateContainerResourcesRequest" => {
                put("container_id", &ids[1]);
                put("linux.cpuset_cpus", "0");
            }
            _ => {
                let fields = self.schema.fields(name).iter();
                for field in fields {
                    match field.name.as_str() {
                        "container_id" => put("container_id", &ids[1]),
                        "pod_sandbox_id" => put("pod_sandbox_id", &ids[0]),
                        "filter" => put("filter.id", &ids[0]),
                        _ => {}
                    }
                }
            }
        }
        tree
    }

    /// What may stand in fields that name something outside of the test's own corner.
    pub(super) fn words(&self, ids: &[String]) -> Words {
        let dir = self.daemon.scratch().dir().display().to_string();
        let own = |texts: &[&str]| -> Vec<String> {
            texts.iter().map(|text| text.replace("DIR", &dir)).collect()
        };
        let mut images = vec![tool(), &shell::images().base.reference];
        images.extend(IMAGES);
        let mut known: Vec<&str> = ids.iter().map(String::as_str).collect();
        known.extend(["", "..", "a\0b", "LONG", &ids[0][..5]]);
        let parent = self.daemon.cgroup_parent();
        let parents: [&str; 4] = [&parent, "", "x", &format!("{parent}/../pods")];
        let of_ids = [
            "pod_sandbox_id",
            "container_id",
            "container_ids",
            "target_id",
            "id",
        ];
        let of_images = ["image", "image_ref", "user_specified_image"];
        let texts = TEXTS
            .iter()
            .map(|(field, texts)| (*field, own(texts)))
            .chain(of_ids.map(|field| (field, own(&known))))
            .chain(of_images.map(|field| (field, own(&images))))
            .chain([("cgroup_parent", own(&parents))]);
        Words {
            texts: texts.collect(),
            numbers: [
                ("host_port", vec![0, -1, 65_536, i64::from(i32::MAX)]),
                ("timeout", vec![-1, 0, 1, i64::MAX, i64::MIN]),
            ]
            .into(),
        }
    }
}

pub(super) fn put_sandbox(
    put: &mut impl FnMut(&str, &str),
    at: &str,
    config: &cri::PodSandboxConfig,
) {
    let metadata = config.metadata.as_ref().unwrap();
    put(&format!("{at}.metadata.name"), &metadata.name);
    put(&format!("{at}.metadata.uid"), &metadata.uid);
    put(&format!("{at}.metadata.namespace"), &metadata.namespace);
    put(&format!("{at}.hostname"), &config.hostname);
    put(&format!("{at}.log_directory"), &config.log_directory);
    put(&format!("{at}.dns_config.servers"), "198.51.100.53");
    let linux = config.linux.as_ref().unwrap();
    put(&format!("{at}.linux.cgroup_parent"), &linux.cgroup_parent);
    let target = format!("{at}.linux.security_context.namespace_options.target_id");
    put(&target, "");
}
