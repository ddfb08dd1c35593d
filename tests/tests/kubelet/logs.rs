//! Logs that the kubelet rotates while they are written.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use coracle_tests::kubelet::Node;
use coracle_tests::log;
use flate2::read::GzDecoder;
use serde_json::json;

use crate::node::{node, pod, script, wasm};

/// Lines `line 000000` to `line 007999` within some ten seconds: several times what a log file may hold.
const LINES: usize = 8000;
const WRITES: &str = "i=0; while [ $i -lt 8000 ]; do printf 'line %06d\\n' $i; i=$((i+1)); \
                      [ $((i % 80)) = 0 ] && sleep 0.1; done";

/// The text of a log file, packed or not.
fn text_of(file: &Path) -> String {
    let mut bytes = std::fs::read(file).unwrap();
    if file.extension().is_some_and(|kind| kind == "gz") {
        let packed = std::mem::take(&mut bytes);
        GzDecoder::new(packed.as_slice())
            .read_to_end(&mut bytes)
            .unwrap();
    }
    log::text(&log::parse(&bytes).unwrap(), "stdout")
}

/// Oldest first: `0.log` sorts before the names of those rotated away, which end in the time.
fn files(node: &Node, pod: &str) -> Vec<PathBuf> {
    let mut files = node.log_files(pod, "writes").unwrap();
    files.rotate_left(1);
    files
}

#[tokio::test]
#[ignore = "needs a kubelet: make kubelet"]
async fn no_line_is_lost_while_the_kubelet_rotates() {
    let limits = json!({
        "containerLogMaxSize": "64Ki", "containerLogMaxFiles": 10, "containerLogMonitorInterval": "3s",
    });
    let node = node(limits).await;
    let writers = [
        ("linux", script("writes", WRITES)),
        ("wasm", wasm("writes", &["count", "8000", "1"])),
    ];
    for (name, container) in &writers {
        let mut pod = pod(name, std::slice::from_ref(container));
        pod["spec"]["restartPolicy"] = json!("Never");
        node.put(&pod).unwrap();
    }
    for (name, _) in &writers {
        let done = node.wait(name, "done", |pod| pod["status"]["phase"] == "Succeeded");
        done.await.unwrap();
        let files = files(&node, name);
        let packed = files
            .iter()
            .filter(|file| file.extension().is_some_and(|kind| kind == "gz"));
        assert!(packed.count() >= 1 && files.len() >= 3, "{name}: {files:?}");
        let whole: String = files.iter().map(|file| text_of(file)).collect();
        let wanted = (0..LINES).map(|number| format!("line {number:06}"));
        assert!(
            wanted.eq(whole.lines().map(str::to_owned)),
            "{name}: {} lines in {files:?}",
            whole.lines().count()
        );
    }
    node.finish().await.unwrap();
}
