//! `coracle image`: the images of a running daemon on the command line.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use coracle_tests::daemon::{self, Daemon};
use coracle_tests::guests;
use coracle_tests::push::{Image, Packing, archive, file};
use serde_json::Value;

use crate::site::{daemon, images, tool};

const NAME: &str = "registry.invalid/cli/app:v1";

fn app() -> Image {
    let module = guests::nothing("image-cli").unwrap();
    let files = [file("m.wasm", 0o644, &module)];
    Image::wasi(&files, Packing::Gzip, &["/m.wasm"]).unwrap()
}

/// Runs `coracle image` against the daemon, with this standard input.
fn run_with(daemon: &Daemon, args: &[&str], input: &[u8]) -> Output {
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
fn run(daemon: &Daemon, args: &[&str]) -> String {
    let output = run_with(daemon, args, b"");
    assert!(
        output.status.success(),
        "{args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn json(daemon: &Daemon, args: &[&str]) -> Value {
    serde_json::from_str(&run(daemon, args)).unwrap()
}

/// The message of a command that fails with exit code 1.
fn fails(output: &Output) -> String {
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
