//! Whoever watches sees how far a pull is, and what all of them have received.

use std::time::Duration;

use coracle_images::{Digest, Transfer};

use super::{open, pull};
use crate::support::{MODULE, Parts, Reply, Scratch, ScriptedRegistry, noise};

#[tokio::test(flavor = "multi_thread")]
async fn a_running_pull_is_listed_with_its_bytes_and_gone_when_it_ends() {
    let registry = ScriptedRegistry::start().await;
    let module = [MODULE, &noise(7, 1 << 20)].concat();
    let parts = Parts::artifact(&module);
    registry.serve_image("app", "v1", &parts);
    let path = format!("/app/blobs/{}", Digest::of(&module));
    registry.on(&path, Reply::Stalls(module.clone(), 300_000));
    let scratch = Scratch::new();
    let images = open(&scratch.0).await;
    let reference = format!("{}/app:v1", registry.host);
    let watch = async {
        loop {
            let transfers = images.transfers(&reference);
            if transfers
                .first()
                .is_some_and(|transfer| transfer.received_bytes >= 300_000)
            {
                return transfers;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let seen = tokio::select! {
        seen = watch => seen,
        pulled = pull(&images, &reference) => panic!("{pulled:?}"),
    };
    let all = (module.len() + parts.config.1.len()) as u64;
    let [
        Transfer {
            reference: name,
            archive: None,
            total_bytes,
            ..
        },
    ] = &seen[..]
    else {
        panic!("{seen:?}");
    };
    assert_eq!((name, *total_bytes), (&reference, all));
    assert!(seen[0].received_bytes < all);
    // The caller has left, and so has the pull.
    tokio::time::timeout(Duration::from_secs(60), async {
        while !images.transfers("").is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .unwrap();
    let counts = images.transfer_counts();
    let others = (counts.from_mirrors, counts.from_archives);
    assert!(
        counts.from_registries >= 300_000 && others == (0, 0),
        "{counts:?}"
    );
}
