//! A node without a registry: images from the preload directory.

use std::fs;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use coracle_tests::client::container;
use coracle_tests::daemon::{Daemon, Options, failpoints_binary};
use coracle_tests::guests;
use coracle_tests::push::{Image, Packing, archive, file};
use rustix::process::{Pid, Signal, kill_process};

use crate::site::{Pod, eventually};

/// The registry of these images is a name that no resolver knows.
const TOOL: &str = "registry.invalid/node/tool:v1";
const ARTIFACT: &str = "registry.invalid/node/hello:v1";

/// A preload directory, removed at the end.
struct Preload(PathBuf);

impl Preload {
    fn new(name: &str) -> Self {
        let path = PathBuf::from(format!(
            "/tmp/coracle-preload-{}-{name}",
            std::process::id()
        ));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn put(&self, name: &str, bytes: &[u8]) {
        fs::write(self.0.join(name), bytes).unwrap();
    }

    async fn daemon(&self) -> Daemon {
        let (images, quiet) = (format!("preload_dir = \"{}\"", self.0.display()), false);
        let options = Options {
            images,
            quiet,
            ..Options::default()
        };
        Daemon::start_with(options).await.unwrap()
    }
}

impl Drop for Preload {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn tool() -> Image {
    let tool = guests::tool().unwrap();
    let files = [file("tool.wasm", 0o755, &tool)];
    Image::wasi(&files, Packing::Gzip, &["/tool.wasm"]).unwrap()
}

fn artifact() -> Image {
    Image::artifact(&guests::wat("hello").unwrap())
}

/// How often the daemon has imported an image.
fn imports(daemon: &Daemon) -> usize {
    daemon.log().matches("image imported").count()
}

#[tokio::test]
async fn an_air_gapped_node_has_its_images_when_it_answers() {
    let preload = Preload::new("air-gapped");
    preload.put(
        "base.tar.zst",
        &zstd(&archive::oci(&[(TOOL, &tool())]).unwrap()),
    );
    preload.put(
        "hello.tar",
        &archive::oci(&[(ARTIFACT, &artifact())]).unwrap(),
    );
    preload.put("broken.tar", b"no archive");
    let mut daemon = preload.daemon().await;
    // What imagePullPolicy: Never looks at.
    let cri = daemon.cri();
    for name in [TOOL, ARTIFACT] {
        let image = cri.image(name).await.unwrap().unwrap();
        assert_eq!(
            (image.pinned, image.repo_tags.as_slice()),
            (true, &[name.to_owned()][..])
        );
    }
    assert!(daemon.log().contains("broken.tar"), "a failure is named");
    let pod = Pod::run(&daemon, "never").await;
    let (status, _) = pod
        .finish(&daemon, &container("main", TOOL, &["show"]))
        .await;
    assert_eq!(status.exit_code, 0);
    cri.remove_all_pods().await.unwrap();
    // Neither a crash nor a reboot takes an archive in again, and the images stay when it is deleted.
    daemon.restart().await.unwrap();
    assert_eq!(imports(&daemon), 2);
    fs::remove_file(preload.0.join("hello.tar")).unwrap();
    daemon.boot_anew().await.unwrap();
    assert!(cri.image(TOOL).await.unwrap().unwrap().pinned);
    assert!(cri.image(ARTIFACT).await.unwrap().unwrap().pinned);
    assert_eq!(imports(&daemon), 2);
    // RemoveImage removes it, pinned or not, as from containerd and CRI-O; while its archive is there it comes back.
    for name in [TOOL, ARTIFACT] {
        cri.remove_image(name).await.unwrap();
        assert_eq!(cri.image(name).await.unwrap(), None);
    }
    daemon.restart().await.unwrap();
    assert!(cri.image(TOOL).await.unwrap().unwrap().pinned);
    assert_eq!(
        (cri.image(ARTIFACT).await.unwrap(), imports(&daemon)),
        (None, 3)
    );
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn sigterm_ends_a_daemon_that_imports_an_archive() {
    let preload = Preload::new("terminated");
    preload.put(
        "hello.tar",
        &archive::oci(&[(ARTIFACT, &artifact())]).unwrap(),
    );
    let options = Options {
        images: format!("preload_dir = \"{}\"", preload.0.display()),
        binary: Some(failpoints_binary().unwrap()),
        failpoints: Some("pull.commit delay:120000".into()),
        ..Options::default()
    };
    let daemon = Daemon::prepare(options).unwrap();
    let mut command = daemon.command().unwrap();
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    eventually("the image is about to be recorded", || {
        daemon.reached().contains(&"pull.commit".to_owned())
    })
    .await;
    let (pid, began) = (i32::try_from(child.id()).unwrap(), Instant::now());
    kill_process(Pid::from_raw(pid).unwrap(), Signal::TERM).unwrap();
    assert!(child.wait().unwrap().success());
    let took = began.elapsed();
    assert!(took < Duration::from_secs(100), "{took:?}");
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::bulk::compress(bytes, 3).unwrap()
}
