//! The same containers under Coracle, under containerd + runc and under containerd + crun: what they see from inside
//! and what the host sees of them is equal, but for a committed list of differences, each with its reason.
//!
//! The requests are the same CRI messages, so whatever containerd's CRI plugin makes of them is compared, too.

mod known;
mod variants;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use coracle_tests::daemon::{Daemon, Options};
use coracle_tests::guests;
use coracle_tests::linux;
use coracle_tests::oracle::{self, Difference, Facts};
use coracle_tests::push::{Image, file};

use crate::linux::shell::{images, namespace, on_peer, push};
use known::KNOWN;

/// The facts of every variant under one runtime.
type View = BTreeMap<String, Facts>;

#[tokio::test]
async fn a_container_looks_as_under_runc_and_crun() {
    if on_peer() {
        return;
    }
    let ours = view(Options {
        shared_mounts: true,
        ..Options::default()
    })
    .await;
    let pause = guests::linux_pause().unwrap();
    let pause = Image::linux(&[file("pause", 0o755, &pause)], &["/pause"]).unwrap();
    let pause = push("pause", &pause).reference;
    let mut used = BTreeSet::new();
    let crun = crun();
    let mut report = String::new();
    for (peer, runtime) in [("runc", None), ("crun", Some(crun.clone()))] {
        let theirs = view(Options {
            peer_sandbox_image: Some(pause.clone()),
            peer_runtime: runtime,
            shared_mounts: true,
            ..Options::default()
        })
        .await;
        let found = compare(&ours, &theirs);
        for left in oracle::unexplained(peer, &found, KNOWN, &mut used) {
            let Difference {
                variant,
                fact,
                ours,
                theirs,
            } = left;
            report += &format!("{variant}: {fact}\n    coracle: {ours}\n    {peer}: {theirs}\n");
        }
    }
    assert!(report.is_empty(), "differences without a reason:\n{report}");
    let stale: Vec<_> = KNOWN
        .iter()
        .enumerate()
        .filter(|(index, _)| !used.contains(index))
        .collect();
    assert!(
        stale.is_empty(),
        "reasons for differences that are no more: {stale:#?}"
    );
}

/// Runs every variant under one runtime.
async fn view(options: Options) -> View {
    let daemon = Daemon::start_with(options).await.unwrap();
    daemon.cri().pull(&images().base.reference).await.unwrap();
    let host = host_facts();
    let mut view = View::new();
    for variant in variants::all() {
        let facts = variant.facts(&daemon).await;
        view.insert(variant.name.to_owned(), oracle::normalize(&facts, &host));
    }
    daemon.finish().await.unwrap();
    view
}

fn host_facts() -> Facts {
    let kinds = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];
    kinds
        .map(|kind| (format!("ns.{kind}"), namespace("self", kind)))
        .into()
}

/// crun in the wrapping that this node needs.
fn crun() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tools/crun.sh")
}

fn compare(ours: &View, theirs: &View) -> Vec<Difference> {
    let of =
        |(variant, facts): (&String, &Facts)| oracle::differences(variant, facts, &theirs[variant]);
    ours.iter().flat_map(of).collect()
}

#[test]
fn every_known_difference_has_its_reason() {
    for known in KNOWN {
        assert!(
            known.because.len() > 20 && known.because.ends_with('.'),
            "{known:?}"
        );
        assert!(["*", "runc", "crun"].contains(&known.peer), "{known:?}");
    }
    // The list speaks of the image that the variants run.
    assert!(linux::USERS.contains("app:x:1000"));
}
