//! kubectl exec, attach, port-forward, cp and logs through the kubelet, by SPDY and by WebSocket, on Linux and on Wasm.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use coracle_tests::http;
use coracle_tests::kubelet::Node;
use serde_json::{Value, json};

use crate::node::{boxed, node, pod, script};

const SERVE: &str = "mkdir /www; echo page > /www/index.html; httpd -f -p 8080 -h /www & \
                     while :; do echo tick; sleep 0.2; done";

/// A node with a Linux pod and one of a component, each with a server at 8080 and a container that reads its input.
async fn two_pods() -> Node {
    let node = node(json!({})).await;
    let reads = |mut container: Value| {
        container["stdin"] = json!(true);
        container
    };
    let linux = [
        script("main", SERVE),
        reads(script("reads", "while read l; do echo got $l; done")),
    ];
    let ticks = ["sh", "-c", "while true; do echo tick; sleep 0.2; done"];
    let wasm = [
        boxed("main", &ticks),
        boxed("serves", &["httpd", "8080"]),
        reads(boxed("reads", &["cat"])),
    ];
    node.put(&pod("linux", &linux)).unwrap();
    node.put(&pod("wasm", &wasm)).unwrap();
    for name in ["linux", "wasm"] {
        node.ready(name).await.unwrap();
    }
    node
}

/// How long a line may be waited for.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A kubectl that runs until it is dropped, and the lines that it prints.
struct Running {
    child: Child,
    lines: Receiver<String>,
}

impl Running {
    fn start(mut kubectl: Command) -> Running {
        let mut child = kubectl
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (tell, lines) = channel();
        std::thread::spawn(move || {
            output
                .lines()
                .map_while(Result::ok)
                .try_for_each(|line| tell.send(line))
        });
        Running { child, lines }
    }

    fn say(&mut self, text: &str) {
        self.child
            .stdin
            .as_mut()
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
    }

    /// Waits for a line that holds these words, and gives it.
    fn until(&mut self, expected: &str) -> String {
        loop {
            let line = self.lines.recv_timeout(TIMEOUT);
            let line = line.unwrap_or_else(|error| panic!("no {expected:?}: {error}"));
            if line.contains(expected) {
                return line;
            }
        }
    }

    fn code(&mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Each protocol of kubectl (SPDY, or else WebSocket) with each kind of pod.
const STREAMS: [(bool, &str); 4] = [
    (true, "linux"),
    (false, "linux"),
    (true, "wasm"),
    (false, "wasm"),
];

#[tokio::test]
#[ignore = "needs a kubelet: make kubelet"]
async fn exec_carries_streams_and_exit_codes() {
    let node = two_pods().await;
    for (spdy, pod) in STREAMS {
        let full = format!("{pod}-node1");
        let exec = |args: &[&str]| {
            let args = [&["exec", &full, "-c", "main"], args].concat();
            node.kubectl(spdy, &args)
        };
        let run = exec(&["--", "sh", "-c", "echo out; cat /nowhere; exit 5"])
            .output()
            .unwrap();
        // A component of WASI 0.2 ends well or not: there are no other codes.
        let code = if pod == "linux" { 5 } else { 1 };
        assert_eq!(run.status.code(), Some(code), "{pod}, {spdy}: {run:?}");
        assert_eq!(run.stdout, b"out\n", "{pod}, {spdy}");
        let complaint = String::from_utf8(run.stderr).unwrap();
        assert!(complaint.contains("/nowhere"), "{complaint}");
        // A megabyte in and out again, with an end of input in between.
        let mut cat = exec(&["-i", "--", "cat"]);
        let mut cat = cat
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let sent: Vec<u8> = (0..1_000_000_u32)
            .map(|n| n.wrapping_mul(2_654_435_761).to_be_bytes()[0])
            .collect();
        let mut input = cat.stdin.take().unwrap();
        let bytes = sent.clone();
        let writer = std::thread::spawn(move || input.write_all(&bytes).unwrap());
        let mut got = Vec::new();
        cat.stdout.take().unwrap().read_to_end(&mut got).unwrap();
        writer.join().unwrap();
        assert!(
            cat.wait().unwrap().success() && got == sent,
            "{pod}, {spdy}: {} bytes",
            got.len()
        );
        let refused = exec(&["--", "/no/such/program"]).output().unwrap();
        assert!(!refused.status.success(), "{pod}, {spdy}: {refused:?}");
    }
    node.finish().await.unwrap();
}

/// kubectl wants a terminal of its own for `-t`, which script(1) gives it.
#[tokio::test]
#[ignore = "needs a kubelet: make kubelet"]
async fn exec_with_a_terminal_has_its_size_and_echoes() {
    let node = two_pods().await;
    for spdy in [true, false] {
        let kubectl = node.kubectl(
            spdy,
            &["exec", "-it", "linux-node1", "-c", "main", "--", "sh"],
        );
        let mut command = vec![kubectl.get_program().to_str().unwrap()];
        command.extend(kubectl.get_args().map(|arg| arg.to_str().unwrap()));
        let mut script = Command::new("script");
        let line = format!("stty rows 33 cols 99; exec {}", command.join(" "));
        script.args(["-q", "-e", "-c", &line, "/dev/null"]);
        for (name, value) in kubectl.get_envs() {
            script.env(name, value.unwrap());
        }
        let mut running = Running::start(script);
        running.say("stty size; tty\n");
        running.until("33 99");
        running.until("/dev/pts/0");
        running.say("exit 9\n");
        assert_eq!(running.code(), Some(9));
    }
    node.finish().await.unwrap();
}

#[tokio::test]
#[ignore = "needs a kubelet: make kubelet"]
async fn attach_logs_and_port_forward_reach_the_container() {
    let node = two_pods().await;
    for (spdy, pod) in STREAMS {
        let full = format!("{pod}-node1");
        let start = |args: &[&str]| Running::start(node.kubectl(spdy, args));
        let mut logs = start(&["logs", "-f", "--tail=1", &full, "-c", "main"]);
        for _ in 0..3 {
            logs.until("tick");
        }
        let mut attached = start(&["attach", &full, "-c", "main"]);
        for _ in 0..3 {
            attached.until("tick");
        }
        // Twice: what attaches and leaves takes nothing from the next.
        for text in ["one", "two"] {
            let mut talks = start(&["attach", "-i", &full, "-c", "reads"]);
            let line = format!("{text}-{spdy}\n");
            talks.say(&line);
            talks.until(line.trim());
        }
        let mut forward = start(&["port-forward", &full, ":8080"]);
        let output = forward.until("Forwarding from 127.0.0.1:");
        let port = output
            .split("127.0.0.1:")
            .nth(1)
            .unwrap()
            .split(' ')
            .next()
            .unwrap();
        let seen = node.pod(pod).unwrap();
        let direct = format!("{}:8080", seen["status"]["podIP"].as_str().unwrap());
        let reply = http::request(&direct, "GET", "/", None).map(|reply| reply.status);
        assert_eq!(reply.map_err(|error| error.to_string()), Ok(200), "{pod}");
        for number in 0..3 {
            let reply = http::request(&format!("127.0.0.1:{port}"), "GET", "/", None);
            let status = reply
                .map(|reply| reply.status)
                .map_err(|error| error.to_string());
            assert_eq!(status, Ok(200), "{pod}, {spdy}, {number}");
        }
    }
    node.finish().await.unwrap();
}

#[tokio::test]
#[ignore = "needs a kubelet: make kubelet"]
async fn cp_goes_both_ways() {
    let node = two_pods().await;
    let file = node.dir().join("sent");
    let bytes: Vec<u8> = (0..3_000_000_u32)
        .map(|n| n.wrapping_mul(2_246_822_519).to_be_bytes()[1])
        .collect();
    std::fs::write(&file, &bytes).unwrap();
    for spdy in [true, false] {
        let back = node.dir().join(format!("back-{spdy}"));
        let there = format!("linux-node1:/tmp/copy-{spdy}");
        let cp = |from: &str, to: &str| node.says(spdy, &["cp", "-c", "main", from, to]).unwrap();
        cp(file.to_str().unwrap(), &there);
        cp(&there, back.to_str().unwrap());
        assert!(std::fs::read(back).unwrap() == bytes, "{spdy}");
    }
    node.finish().await.unwrap();
}
