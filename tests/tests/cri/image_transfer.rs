//! `coracle image export` and `push`: what other tools and other daemons make of it.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use coracle_tests::client::container;
use coracle_tests::daemon::{self, Daemon, Options};
use coracle_tests::guests;
use coracle_tests::registry::Registry;
use serde_json::Value;

use crate::image_cli::{fails, json, packed, run, run_with};
use crate::site::{Pod, daemon, daemon_with, images, tool};

/// A directory of one test.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let path = PathBuf::from(format!("/tmp/coracle-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).display().to_string()
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What skopeo says. Panics when it fails.
fn skopeo(args: &[&str]) -> String {
    let output = Command::new("skopeo").args(args).output().unwrap();
    let problem = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "skopeo {args:?}: {problem}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs the multi-verb guest of this image.
async fn runs(daemon: &Daemon, image: &str) {
    let pod = Pod::run(daemon, "exported").await;
    let mut container = container("main", image, &[]);
    container.args = vec!["show".into()];
    let (status, _) = pod.finish(daemon, &container).await;
    assert_eq!(status.exit_code, 0, "{image}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exported_image_is_read_by_skopeo_and_runs_elsewhere() {
    let place = Place::new("image-export");
    let kept = Options {
        images: "keep_blobs = true\n".into(),
        ..Options::default()
    };
    for (options, is_kept) in [(Options::default(), false), (kept, true)] {
        let here = daemon_with(options).await;
        let file = place.path("tool.tar");
        let output = run_with(&here, &["export", tool(), "-o", &file, "--json"], b"");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        assert_eq!(said.contains("packed anew"), !is_kept, "{said}");
        let exported: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(exported[0]["names"], serde_json::json!([tool()]));
        assert_eq!(exported[0]["asReceived"], is_kept);
        assert_eq!(place.names(), ["tool.tar"], "a part of a file stays");
        // Another tool reads it, verifies all digests, and writes it elsewhere.
        let archive = format!("oci-archive:{file}:{}", tool());
        let inspected = skopeo(&["inspect", "--raw", &archive]);
        assert!(inspected.contains("layers"), "{inspected}");
        let digest = skopeo(&["inspect", "--format", "{{.Digest}}", &archive]);
        assert_eq!(digest.trim(), exported[0]["digest"].as_str().unwrap());
        if is_kept {
            assert_eq!(digest.trim(), images().tool.digest);
        }
        let policy = ["--insecure-policy", "copy", "--dest-tls-verify=false"];
        let copied = format!("{}/copied/tool:v1", images().registry.host());
        let to = format!("docker://{copied}");
        skopeo(&[&policy[..], &[&archive, &to]].concat());
        // Another daemon imports the one and pulls the other.
        let there = daemon().await;
        run(&there, &["rm", tool()]);
        let imported = json(&there, &["import", &file, "--json"]);
        assert_eq!(
            imported[0]["id"] == exported[0]["id"],
            is_kept,
            "{imported}"
        );
        runs(&there, tool()).await;
        run(&there, &["pull", &copied]);
        let ids =
            [tool(), &copied].map(|name| json(&there, &["ls", name, "--json"])[0]["id"].clone());
        assert_eq!(ids[0], ids[1]);
        // By a pipe, and to a reader that leaves.
        run(&there, &["rm", tool()]);
        let piped = run_with(&here, &["export", tool(), "-o", "-"], b"");
        assert!(piped.status.success());
        let imported = run_with(&there, &["import", "-"], &piped.stdout);
        assert!(
            imported.status.success(),
            "{}",
            String::from_utf8_lossy(&imported.stderr)
        );
        let script =
            "(sleep 0.2; exec \"$0\" image export \"$2\" -o - --socket \"$1\" 2>/dev/null) | true";
        let mut early = Command::new("/bin/bash");
        early.args(["-o", "pipefail", "-c", script]);
        let early = early
            .arg(daemon::binary().unwrap())
            .arg(here.socket())
            .arg(tool());
        assert!(early.status().unwrap().success());
        there.finish().await.unwrap();
        here.finish().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_export_leaves_no_file() {
    let (daemon, place) = (daemon().await, Place::new("image-export-refused"));
    let file = place.path("x.tar");
    for args in [
        [
            "export",
            "registry.invalid/no/such:v1",
            "-o",
            &file,
            "--platform",
            "",
        ],
        ["export", tool(), "-o", &file, "--platform", "linux/s390x"],
    ] {
        let refused = fails(&run_with(&daemon, &args, b""));
        assert!(refused.contains(args[1]), "{refused}");
    }
    let nowhere = place.path("no/such/x.tar");
    assert!(fails(&run_with(&daemon, &["export", tool(), "-o", &nowhere], b"")).contains(&nowhere));
    assert!(place.names().is_empty());
    // One that was there stays until another is whole.
    fs::write(&file, "old").unwrap();
    run_with(
        &daemon,
        &["export", "registry.invalid/no/such:v1", "-o", &file],
        b"",
    );
    assert_eq!(fs::read(&file).unwrap(), b"old");
    daemon.finish().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn images_and_layouts_are_pushed_with_the_credentials_of_the_node() {
    let (place, private) = (Place::new("image-push"), Registry::start_private().unwrap());
    let auth = place.path("auth.json");
    let login = serde_json::json!({"auths": {private.host(): {"username": "pusher", "password": "s3cret"}}});
    fs::write(&auth, login.to_string()).unwrap();
    fs::set_permissions(&auth, fs::Permissions::from_mode(0o600)).unwrap();
    let options = Options {
        images: format!("auth_file = \"{auth}\"\n"),
        ..Options::default()
    };
    let daemon = daemon_with(options).await;
    let config = daemon.config_path().display().to_string();
    let name = format!("{}/team/tool:v2", private.host());
    // Without credentials: refused, and nothing is there.
    let anonymous = run_with(&daemon, &["push", tool(), &name], b"");
    let said = String::from_utf8_lossy(&anonymous.stderr);
    assert!(
        anonymous.status.code() == Some(1) && said.contains(&name),
        "{said}"
    );
    // An image of the store, by the credentials of the node.
    let pushed = json(
        &daemon,
        &["push", tool(), &name, "--config", &config, "--json"],
    );
    assert_eq!(pushed["reference"], name.as_str());
    run(&daemon, &["pull", &name]);
    let image = daemon.cri().image(&name).await.unwrap().unwrap();
    let digest = pushed["digest"].as_str().unwrap();
    assert_eq!(
        image.repo_digests,
        [format!("{}/team/tool@{digest}", private.host())]
    );
    runs(&daemon, &name).await;
    // A second time everything is there already.
    let again = json(
        &daemon,
        &["push", tool(), &name, "--config", &config, "--json"],
    );
    assert_eq!(again, pushed);
    // An OCI layout, as a directory and as a tar, with a user and a password.
    fs::write(
        place.path("hello.wasm"),
        guests::wat("component-hello").unwrap(),
    )
    .unwrap();
    let hello = place.path("hello.wasm");
    for layout in ["layout", "hello.tar"] {
        let digest = packed(&[
            &hello,
            "-t",
            "packed.invalid/hello:v1",
            "-o",
            &place.path(layout),
        ]);
        let name = format!("{}/team/hello:{}", private.host(), layout.replace('.', "-"));
        let args = ["push", &place.path(layout), &name, "--username", "pusher"];
        let pushed = run_with(&daemon, &args, b"s3cret\n");
        assert!(
            pushed.status.success(),
            "{}",
            String::from_utf8_lossy(&pushed.stderr)
        );
        let said = String::from_utf8(pushed.stdout).unwrap();
        assert_eq!(said.trim(), format!("{name} {digest}"));
        run(&daemon, &["pull", &name]);
    }
    // What is pushed must have a name, and be there.
    let unnamed = fails(&run_with(&daemon, &["push", &place.path("layout")], b""));
    assert!(unnamed.contains("REF"), "{unnamed}");
    let compressed = place.path("c.tar.gz");
    fs::write(&compressed, b"\x1f\x8b\x08\0").unwrap();
    let refused = fails(&run_with(&daemon, &["push", &compressed, &name], b""));
    assert!(refused.contains("image import"), "{refused}");
    daemon.finish().await.unwrap();
}

/// On a terminal a bar is drawn; on a pipe a command that is quick says nothing.
#[tokio::test(flavor = "multi_thread")]
async fn progress_is_shown_on_a_terminal_alone() {
    let (daemon, place) = (daemon().await, Place::new("image-progress"));
    run(&daemon, &["export", tool(), "-o", &place.path("tool.tar")]);
    let import = format!(
        "(sleep 1; cat {}) | {} image import - --socket {}",
        place.path("tool.tar"),
        daemon::binary().unwrap().display(),
        daemon.socket().display()
    );
    let mut terminal = Command::new("script");
    terminal
        .args(["-qec", &import, "/dev/null"])
        .stdin(Stdio::null());
    let shown = terminal.output().unwrap();
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    assert!(shown.contains("importing -"), "{shown}");
    let piped = Command::new("/bin/sh")
        .args(["-c", &import])
        .output()
        .unwrap();
    assert!(piped.status.success() && piped.stderr.is_empty());
    let all = json(&daemon, &["ls", "--json"]);
    for image in all.as_array().unwrap() {
        run(&daemon, &["rm", image["id"].as_str().unwrap(), "--json"]);
    }
    daemon.finish().await.unwrap();
}

#[test]
fn a_reader_that_has_left_is_no_error() {
    for command in ["config default", "version", "version --json"] {
        let script = format!("(sleep 0.2; exec \"$0\" {command}) | true");
        let mut shell = Command::new("/bin/bash");
        shell
            .args(["-o", "pipefail", "-c", &script])
            .arg(daemon::binary().unwrap());
        let output = shell.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success() && said.is_empty(),
            "{command}: {said}"
        );
    }
}
