//! Every RPC with fields left out, nil or hostile, over the real socket: always an answer with a code, never a crash,
//! and nothing left: case 16, T33 and T37. `CORACLE_TEST_SEED` repeats a run, `CORACLE_TEST_ROUNDS` makes it longer.

mod valid_requests;

use std::time::Duration;

use coracle_tests::client::{self, TIMEOUT};
use coracle_tests::daemon::{Daemon, Options};
use coracle_tests::dice::Dice;
use coracle_tests::hostile::{Hostile, reaches_out};
use coracle_tests::protobuf::{Rpc, Schema, Tree, Value};
use coracle_tests::raw::{self, Answer};
use coracle_tests::vitals::Vitals;
use tonic::Code;
use tonic::transport::Channel;

use valid_requests::put_sandbox;

use crate::linux::shell;
use crate::site::{Pod, eventually, tool};

/// How long the daemon may take for one call.
const LIMIT: Duration = Duration::from_millis(1500);
/// How much larger the daemon may be after all, KiB: RSS(64) of the catalogue.
const GROWTH_KIB: u64 = 64 << 10;

/// A daemon, what is called on it, and what a good request of each kind is.
struct Target {
    daemon: Daemon,
    channel: Channel,
    schema: Schema,
    /// A pod with a running container of each kind, and one that is only created.
    pod: Pod,
    before: Vitals,
}

impl Target {
    async fn start() -> Self {
        let mut daemon = Daemon::start_with(Options {
            quiet: true,
            ..Options::default()
        })
        .await
        .unwrap();
        for image in [tool(), shell::images().base.reference.as_str()] {
            daemon.cri().pull(image).await.unwrap();
        }
        std::fs::create_dir_all(daemon.scratch().dir().join("vol")).unwrap();
        daemon.rebase();
        let pod = Pod::run(&daemon, "target").await;
        let target = Self {
            channel: client::channel(&daemon.socket()),
            schema: Schema::read().unwrap(),
            before: Vitals::of(daemon.pid()).unwrap(),
            pod,
            daemon,
        };
        target.furnish().await;
        target
    }

    /// Makes sure that images, pod and containers are there, as chance may have removed them, and that there are not
    /// too many others.
    async fn furnish(&self) -> Vec<String> {
        let cri = self.daemon.cri();
        cri.remove_all_pods().await.unwrap();
        for image in [tool(), shell::images().base.reference.as_str()] {
            cri.pull(image).await.unwrap();
        }
        let pod = cri.run_pod(&self.pod.config).await.unwrap();
        let mut ids = vec![pod.clone()];
        let wasm = client::container("wasm", tool(), &["sleep"]);
        for config in [&wasm, &shell::sh("linux", "sleep 1000")] {
            let made = cri.create_started(&pod, config, &self.pod.config).await;
            ids.push(made.unwrap());
        }
        let mut created = wasm.clone();
        created.metadata.as_mut().unwrap().name = "created".into();
        let created = cri.create(&pod, &created, &self.pod.config).await.unwrap();
        ids.push(created);
        ids
    }

    /// Makes a call and holds the answer to being one. Gives its code.
    async fn call(&self, rpc: &Rpc, request: Vec<u8>, what: &str) -> Code {
        self.call_within(LIMIT, rpc, request, what).await
    }

    async fn call_within(&self, limit: Duration, rpc: &Rpc, request: Vec<u8>, what: &str) -> Code {
        let answer = raw::call(&self.channel, rpc, request, limit).await;
        let log = || self.daemon.log();
        match answer {
            Answer::Replies(_) => Code::Ok,
            // The transport's own answer to what is no message.
            Answer::Refused(status) if status.message().contains("failed to decode") => {
                Code::Internal
            }
            Answer::Refused(status) if status.code() == Code::Internal => {
                panic!("{}: {what}: a bug: {status}\n{}", rpc.name, log())
            }
            Answer::Refused(status) => status.code(),
            Answer::Late => {
                let alive = self.daemon.cri().wait_ready(TIMEOUT).await;
                alive.unwrap_or_else(|e| panic!("{}: {what}: {e}", rpc.name));
                Code::DeadlineExceeded
            }
            Answer::Silence => panic!("{}: {what}: no answer", rpc.name),
            Answer::Broken(status) => panic!("{}: {what}: {status}\n{}", rpc.name, log()),
        }
    }

    /// Ends the test: the daemon has not grown, and all that [`Target::finish`] looks at.
    async fn finish_as_small(self, pid: i32) {
        let limit = self.before.rss_kib + GROWTH_KIB;
        eventually("the daemon is no larger than it may be", || {
            Vitals::of(pid).unwrap().rss_kib < limit
        })
        .await;
        self.finish(pid).await;
    }

    /// Ends the test: the daemon is the same process and has not panicked, and nothing is left.
    async fn finish(mut self, pid: i32) {
        assert_eq!(self.daemon.pid(), pid);
        let cri = self.daemon.cri();
        cri.remove_all_pods().await.unwrap();
        assert!(!self.daemon.log().contains("panicked"));
        // A keeper that is told to end late, as its call was given up, is gone by now, too.
        self.daemon.expect_no_leak().await.unwrap();
        self.daemon.rebase();
        self.daemon.finish().await.unwrap();
    }
}

/// Case 16: each field of a good request left out in turn, and the request without any.
#[tokio::test]
async fn a_request_without_any_one_field_is_answered() {
    let target = Target::start().await;
    let pid = target.daemon.pid();
    let mut number = 0;
    for rpc in target.schema.rpcs.clone() {
        let mut ids = target.furnish().await;
        let whole = target.good(&rpc.request, &ids, number);
        let code = target.call(&rpc, Vec::new(), "no field").await;
        if whole.count() > 0 && !rpc.name.contains("List") && !rpc.name.contains("Stream") {
            let idempotent = rpc.name.contains("Stop") || rpc.name.contains("Remove");
            assert!(
                code != Code::Ok || idempotent || rpc.name.starts_with("Update"),
                "{}",
                rpc.name
            );
        }
        for at in 0..whole.count() {
            number += 1;
            let mut good = target.good(&rpc.request, &ids, number);
            if let Some((owner, index)) = good.find(at) {
                owner.0.remove(index);
            }
            let what = format!("without field {at} of {whole:?}");
            // What is refused is refused soon, also on a machine that has other things to do.
            let is_metadata = rpc.name == "RunPodSandbox" && (0..5).contains(&at);
            let limit = if is_metadata { TIMEOUT } else { LIMIT };
            let call = target.call_within(limit, &rpc, good.encode(), &what);
            let code = call.await;
            if is_metadata {
                assert_eq!(code, Code::InvalidArgument, "{}: {what}", rpc.name);
            }
            if rpc.name.contains("Remove") || rpc.name.contains("Stop") {
                ids = target.furnish().await;
            }
        }
    }
    target.finish_as_small(pid).await;
}

/// Random messages to every RPC, some of them almost good, some of them no messages.
#[tokio::test]
async fn random_requests_are_answered() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let (mut dice, mut seed) = Dice::fresh();
    if let Some(given) = number("CORACLE_TEST_SEED") {
        (dice, seed) = (Dice::new(given), given);
    }
    let rounds = number("CORACLE_TEST_ROUNDS").unwrap_or(6);
    let target = Target::start().await;
    let pid = target.daemon.pid();
    let mut made = 0;
    for round in 0..rounds {
        let ids = target.furnish().await;
        let words = target.words(&ids);
        let mut hostile = Hostile {
            schema: &target.schema,
            dice: Dice::new(seed ^ round << 32),
            words,
        };
        for rpc in &target.schema.rpcs {
            for _ in 0..3 {
                made += 1;
                let good = target.good(&rpc.request, &ids, made);
                let request = match dice.below(4) {
                    0 => hostile.message(&rpc.request, 0).encode(),
                    1 if reaches_out(rpc) => {
                        let mut cut = good.encode();
                        cut.truncate(dice.below(cut.len() as u64) as usize);
                        cut
                    }
                    1 => hostile.scrambled(&good),
                    _ => hostile.spoiled(&rpc.request, &good).encode(),
                };
                let shown = String::from_utf8_lossy(&request[..request.len().min(2000)]);
                let what = format!("seed {seed}, round {round}, request {shown:?}");
                target.call(rpc, request, &what).await;
            }
        }
    }
    target.finish_as_small(pid).await;
}

/// T37: what is larger than a message may be, and one that holds a million labels.
#[tokio::test]
async fn requests_beyond_all_bounds_are_refused() {
    let target = Target::start().await;
    let pid = target.daemon.pid();
    let rpcs = target.schema.rpcs.clone();
    let rpc = |name: &str| rpcs.iter().find(|rpc| rpc.name == name).unwrap();
    for _ in 0..2 {
        let mut huge = Tree::default();
        let id = Value::Bytes(vec![b'a'; 17 << 20]);
        huge.put(
            &target.schema,
            "StopPodSandboxRequest",
            "pod_sandbox_id",
            id,
        )
        .unwrap();
        let code = target
            .call_within(TIMEOUT, rpc("StopPodSandbox"), huge.encode(), "17 MiB")
            .await;
        assert!(
            matches!(code, Code::OutOfRange | Code::ResourceExhausted),
            "{code:?}"
        );
        let mut many = Tree::default();
        put_sandbox(
            &mut |path, value| {
                let value = Value::Bytes(value.into());
                many.put(&target.schema, "RunPodSandboxRequest", path, value)
                    .unwrap();
            },
            "config",
            &target.daemon.pod("labels"),
        );
        let labels = target
            .schema
            .field("PodSandboxConfig", "labels")
            .unwrap()
            .number;
        let Some((config, 0)) = many.find(1) else {
            panic!("the config is not first")
        };
        config.0.extend((0..1_000_000_u32).map(|n| {
            let key = Value::Bytes(n.to_string().into());
            (labels, Value::Message(Tree(vec![(1, key)])))
        }));
        let code = target
            .call_within(
                TIMEOUT,
                rpc("RunPodSandbox"),
                many.encode(),
                "a million labels",
            )
            .await;
        assert_eq!(code, Code::InvalidArgument);
    }
    target.finish_as_small(pid).await;
}
