//! What the tests share: a registry with the images, a node to hand, the shapes of pods.

use std::sync::OnceLock;

use coracle_tests::daemon::Daemon;
use coracle_tests::kubelet::Node;
use coracle_tests::push::{Image, Packing, file};
use coracle_tests::registry::Registry;
use coracle_tests::{component, guests, linux};
use serde_json::{Value, json};

/// The registry of this test process and what is in it.
pub struct Images {
    /// Ends with the process.
    _registry: Registry,
    /// busybox and a shell.
    pub shell: String,
    /// The multi-verb p1 module.
    pub wasm: String,
    /// The component of many commands, in `/bin` under the names of some.
    pub component: String,
    /// The component of `function.c`, which handles HTTP requests.
    pub function: String,
    /// A file and a directory, to be mounted.
    pub content: String,
}

/// Everything is pushed once a process.
pub fn images() -> &'static Images {
    static IMAGES: OnceLock<Images> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let registry = Registry::start().unwrap();
        let tool = guests::tool().unwrap();
        let files = [file("tool.wasm", 0o755, &tool)];
        let wasm = Image::wasi(&files, Packing::Gzip, &["/tool.wasm"]).unwrap();
        let many = component::from_c("box.c").unwrap();
        let names = ["bin/sh", "bin/cat", "bin/httpd", "bin/echo"];
        let files = names.map(|name| file(name, 0o755, &many));
        let component = Image::wasi(&files, Packing::Gzip, &["/bin/sh"]).unwrap();
        let handler = guests::function().unwrap();
        let files = [
            file("function.wasm", 0o755, &handler),
            file("etc/motd", 0o644, b"from the image"),
        ];
        let function = Image::wasi(&files, Packing::Gzip, &["/function.wasm"]).unwrap();
        let push =
            |image: Image, name: &str| image.push(registry.host(), name, "v1").unwrap().reference;
        Images {
            shell: push(linux::base().unwrap(), "shell"),
            wasm: push(wasm, "wasm"),
            component: push(component, "component"),
            function: push(function, "function"),
            content: push(linux::content().unwrap(), "content"),
            _registry: registry,
        }
    })
}

/// A daemon and a kubelet with nothing to do yet. `changes` are laid over the kubelet's configuration.
pub async fn node(changes: Value) -> Node {
    let daemon = Daemon::start().await.unwrap();
    Node::start(daemon, &changes).await.unwrap()
}

/// A pod of these containers.
pub fn pod(name: &str, containers: &[Value]) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "default"},
        "spec": {"terminationGracePeriodSeconds": 2, "containers": containers},
    })
}

/// A Linux container that runs a script.
pub fn script(name: &str, text: &str) -> Value {
    json!({
        "name": name, "image": images().shell, "imagePullPolicy": "IfNotPresent",
        "command": ["/bin/sh", "-c", text],
    })
}

/// A Wasm container with these arguments.
pub fn wasm(name: &str, arguments: &[&str]) -> Value {
    json!({"name": name, "image": images().wasm, "imagePullPolicy": "IfNotPresent", "args": arguments})
}

/// A container of the component of many commands.
pub fn boxed(name: &str, command: &[&str]) -> Value {
    json!({
        "name": name, "image": images().component, "imagePullPolicy": "IfNotPresent", "command": command,
    })
}

/// How the kubelet sees a pod's container: an entry of `containerStatuses`; null when there is none.
pub fn status(pod: &Value, container: &str) -> Value {
    let all = pod["status"]["containerStatuses"].as_array();
    let found = all
        .into_iter()
        .flatten()
        .find(|one| one["name"] == container);
    found.cloned().unwrap_or(Value::Null)
}

/// How often the kubelet has started it again.
pub fn restarts(pod: &Value, container: &str) -> u64 {
    status(pod, container)["restartCount"].as_u64().unwrap_or(0)
}
