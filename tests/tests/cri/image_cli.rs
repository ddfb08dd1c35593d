//! `coracle image`: the images of a running daemon on the command line.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use coracle_tests::client::container;
use coracle_tests::daemon::{self, Daemon};
use coracle_tests::guests;
use coracle_tests::push::{Image, Packing, archive, file};
use coracle_tests::registry::ClosedPort;
use serde_json::Value;

use crate::site::{Pod, daemon, images, tool};

const NAME: &str = "registry.invalid/cli/app:v1";

pub(crate) fn app() -> Image {
    let module = guests::nothing("image-cli").unwrap();
    let files = [file("m.wasm", 0o644, &module)];
    Image::wasi(&files, Packing::Gzip, &["/m.wasm"]).unwrap()
}

/// Runs `coracle image` against the daemon, with this standard input.
pub(crate) fn run_with(daemon: &Daemon, args: &[&str], input: &[u8]) -> Output {
    let mut command = Command::new(daemon::binary().unwrap());
    command
        .arg("image")
        .args(args)
        .arg("--socket")
        .arg(daemon.socket());
    let pipes = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = pipes.spawn().unwrap();
    // Who refuses an archive does not read it to its end.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

/// The output of a command that succeeds.
pub(crate) fn run(daemon: &Daemon, args: &[&str]) -> String {
    let output = run_with(daemon, args, b"");
    assert!(
        output.status.success(),
        "{args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn json(daemon: &Daemon, args: &[&str]) -> Value {
    serde_json::from_str(&run(daemon, args)).unwrap()
}

/// The message of a command that fails with exit code 1.
pub(crate) fn fails(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(
        (output.status.code(), text.lines().count()),
        (Some(1), 1),
        "{text}"
    );
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_listed_pulled_inspected_and_removed() {
    let daemon = daemon().await;
    let pushed = app()
        .push(images().registry.host(), "image-cli", "v1")
        .unwrap();
    let id = run(&daemon, &["pull", &pushed.reference]);
    let id = id.trim();
    let pulled = json(&daemon, &["pull", &pushed.reference, "--json"]);
    assert_eq!(
        (pulled["id"].as_str(), &pulled["pinned"]),
        (Some(id), &Value::Bool(false))
    );
    let listed = json(&daemon, &["ls", "--json"]);
    let ids: Vec<&str> = listed
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|image| image["id"].as_str())
        .collect();
    assert!(ids.len() == 2 && ids.contains(&id), "{listed}");
    let table = run(&daemon, &["ls"]);
    let row = table
        .lines()
        .find(|line| line.starts_with(&pushed.reference))
        .unwrap();
    assert!(row.contains(&id["sha256:".len()..][..12]), "{table}");
    assert!(
        table.lines().any(|line| line.starts_with(tool())),
        "{table}"
    );
    let inspected = json(&daemon, &["inspect", &pushed.reference]);
    assert_eq!(
        inspected["info"]["entrypoint"],
        serde_json::json!(["/m.wasm"])
    );
    assert_eq!(
        run(&daemon, &["rm", &pushed.reference]).trim(),
        pushed.reference
    );
    for args in [["rm", &pushed.reference], ["inspect", &pushed.reference]] {
        assert!(fails(&run_with(&daemon, &args, b"")).contains(&pushed.reference));
    }
    let unknown = format!("{}/image-cli:nowhere", images().registry.host());
    assert!(fails(&run_with(&daemon, &["pull", &unknown], b"")).contains("nowhere"));
    daemon.finish().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn archives_are_imported_from_files_directories_and_a_pipe() {
    let mut daemon = daemon().await;
    let dir = PathBuf::from(format!("/tmp/coracle-image-cli-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let layout = archive::oci(&[(NAME, &app())]).unwrap();
    tar::Archive::new(layout.as_slice())
        .unpack(dir.join("layout"))
        .unwrap();
    let zstd = zstd::bulk::compress(&archive::docker(NAME, &app()).unwrap(), 3).unwrap();
    for (name, bytes) in [("oci.tar", &layout), ("docker.tar.zst", &zstd)] {
        fs::write(dir.join(name), bytes).unwrap();
    }
    for source in ["layout", "oci.tar", "docker.tar.zst"] {
        let path = dir.join(source).display().to_string();
        let imported = json(&daemon, &["import", &path, "--pin", "--json"]);
        assert_eq!(
            imported[0]["repoTags"],
            serde_json::json!([NAME]),
            "{source}"
        );
        let image = daemon.cri().image(NAME).await.unwrap().unwrap();
        assert!(image.pinned, "{source}");
        run(&daemon, &["rm", NAME]);
    }
    let piped = run_with(
        &daemon,
        &["import", "-", "--ref", "named.invalid/by/request:2"],
        &layout,
    );
    assert!(
        piped.status.success(),
        "{}",
        String::from_utf8_lossy(&piped.stderr)
    );
    let image = daemon
        .cri()
        .image("named.invalid/by/request:2")
        .await
        .unwrap()
        .unwrap();
    assert!(!image.pinned && image.repo_tags.len() == 1);
    let cut = &layout[..layout.len() / 2];
    for (input, part) in [
        (&b"no archive"[..], "import -"),
        (cut, "import -"),
        (b"", "import -"),
    ] {
        let refused = fails(&run_with(&daemon, &["import", "-"], input));
        assert!(refused.contains(part), "{refused}");
    }
    let absent = dir.join("absent.tar").display().to_string();
    assert!(fails(&run_with(&daemon, &["import", &absent], b"")).contains(&absent));
    fs::remove_dir_all(&dir).unwrap();
    let temporary = daemon.scratch().dir().join("root/images/tmp");
    assert_eq!(fs::read_dir(temporary).unwrap().count(), 0, "archives stay");
    run(&daemon, &["rm", "named.invalid/by/request:2"]);
    // A reader that leaves early is no error, and a daemon that is not there has a name.
    let mut early = Command::new("/bin/sh");
    let script = "set -o pipefail 2>/dev/null; \"$0\" image ls --socket \"$1\" | true";
    let early = early
        .args(["-c", script])
        .arg(daemon::binary().unwrap())
        .arg(daemon.socket());
    assert!(early.output().unwrap().stderr.is_empty());
    daemon.kill();
    assert!(fails(&run_with(&daemon, &["ls"], b"")).contains("coracle.sock"));
    daemon.restart().await.unwrap();
    daemon.finish().await.unwrap();
}

/// Runs `coracle pack`, without a daemon.
fn pack(args: &[&str]) -> Output {
    let mut command = Command::new(daemon::binary().unwrap());
    command.arg("pack").args(args).output().unwrap()
}

/// The digest that a pack has printed. Panics when it failed.
pub(crate) fn packed(args: &[&str]) -> String {
    let output = pack(args);
    assert!(
        output.status.success(),
        "{args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let text = String::from_utf8(output.stdout).unwrap();
    text.trim().rsplit(' ').next().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_module_is_packed_pushed_imported_and_run_without_docker() {
    let daemon = daemon().await;
    let dir = PathBuf::from(format!("/tmp/coracle-pack-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let path = |name: &str| dir.join(name).display().to_string();
    fs::write(path("hello.wasm"), guests::wat("component-hello").unwrap()).unwrap();
    fs::write(path("tool.wasm"), guests::tool().unwrap()).unwrap();
    fs::write(path("text.wasm"), "(module)").unwrap();
    let (hello, tool) = (path("hello.wasm"), path("tool.wasm"));
    // By files: a directory and a tar of one content.
    let local = "packed.invalid/hello:v1";
    let digest = packed(&[&hello, "-t", local, "-o", &path("layout")]);
    assert_eq!(
        packed(&[&hello, "-t", local, "-o", &path("hello.tar")]),
        digest
    );
    for source in ["layout", "hello.tar"] {
        let imported = json(&daemon, &["import", &path(source), "--json"]);
        let by_digest = format!("packed.invalid/hello@{digest}");
        assert_eq!(imported[0]["repoDigests"], serde_json::json!([by_digest]));
    }
    // By a registry, in both forms.
    let host = images().registry.host();
    for form in ["artifact", "image"] {
        let name = format!("{host}/packed/{form}:v1");
        let digest = packed(&[&tool, "-t", &name, "--form", form, "--push"]);
        run(&daemon, &["pull", &name]);
        let image = daemon.cri().image(&name).await.unwrap().unwrap();
        assert_eq!(
            image.repo_digests,
            [format!("{host}/packed/{form}@{digest}")]
        );
        let pod = Pod::run(&daemon, form).await;
        let mut container = container("main", &name, &[]);
        container.args = vec!["show".into()];
        let (status, _) = pod.finish(&daemon, &container).await;
        assert_eq!(status.exit_code, 0, "{form}");
    }
    let config = fs::read_dir(path("layout/blobs/sha256")).unwrap();
    let texts = config.filter_map(|entry| fs::read_to_string(entry.unwrap().path()).ok());
    let configs: Vec<Value> = texts
        .filter_map(|text| serde_json::from_str(&text).ok())
        .collect();
    let component = configs
        .iter()
        .find_map(|config| config.get("component"))
        .unwrap();
    assert!(
        component["exports"].to_string().contains("wasi:cli/run"),
        "{component}"
    );
    let refused = fails(&pack(&[
        &path("text.wasm"),
        "-t",
        local,
        "-o",
        &path("no.tar"),
    ]));
    assert!(
        refused.contains("text.wasm") && !dir.join("no.tar").exists(),
        "{refused}"
    );
    let nobody = ClosedPort::take().unwrap();
    let gone = format!("{}/a:v1", nobody.host());
    assert!(fails(&pack(&[&tool, "-t", &gone, "--push"])).contains(&gone));
    fs::remove_dir_all(&dir).unwrap();
    daemon.finish().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_component_is_composed_with_what_it_needs_and_runs() {
    let daemon = daemon().await;
    let dir = PathBuf::from(format!("/tmp/coracle-plug-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    let [greets, greeter, length] = ["greets", "greeter", "length"].map(|name| {
        let path = dir.join(format!("{name}.wasm"));
        let component = guests::wat(&format!("component-{name}")).unwrap();
        fs::write(&path, component).unwrap();
        path.display().to_string()
    });
    let name = format!("{}/composed/greets:v1", images().registry.host());
    let to = ["-t", &name, "--push"];
    let plugs = ["--plug", &greeter, "--plug", &length];
    let arguments = [&[greets.as_str()][..], &plugs, &to].concat();
    let digest = packed(&arguments);
    assert_eq!(packed(&arguments), digest, "the same files, another image");
    run(&daemon, &["pull", &name]);
    let pod = Pod::run(&daemon, "composed").await;
    let (status, output) = pod.finish(&daemon, &container("main", &name, &[])).await;
    assert_eq!(
        (status.exit_code, output.as_str()),
        (0, "hello from a dependency\n")
    );
    // In the other order the first has nothing to do.
    let plugs = ["--plug", &length, "--plug", &greeter];
    let refused = fails(&pack(&[&[greets.as_str()][..], &plugs, &to].concat()));
    let says = format!("{length} exports nothing that {greets} imports");
    assert!(refused.contains(&says), "{refused}");
    fs::remove_dir_all(&dir).unwrap();
    // Not composed, but with its dependencies as further layers.
    let component = |name| guests::wat(&format!("component-{name}")).unwrap();
    let mut image = Image::artifact(&component("greets"));
    let dependency = Image::artifact(&component("greeter"));
    image.layers.extend(dependency.layers);
    let pushed = image.push(images().registry.host(), "composed/layers", "v1");
    let refused = daemon.cri().pull(&pushed.unwrap().reference).await;
    let refused = refused.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::InvalidArgument);
    let message = refused.message();
    for says in [
        "its specification has consumers reject",
        "`coracle pack --plug`",
    ] {
        assert!(message.contains(says), "{message}");
    }
    daemon.finish().await.unwrap();
}
