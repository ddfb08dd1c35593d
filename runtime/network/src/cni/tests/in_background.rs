//! Tests of background work: nobody waits for it.

use super::*;

use super::super::background::AT_ONCE;

/// Records the request of a pod's ADD, so that DEL is owed; its namespace is pinned at `pin`.
fn begin(cni: &Cni, pod: &str, pin: &Path) {
    let config = NetworkConfig {
        pod: pod.into(),
        ..NetworkConfig::default()
    };
    cni.begin(&cni.plan(&config, pin).unwrap()).unwrap();
}

async fn wait_for_call(site: &Site, call: &str) {
    let calls = site.temp.dir().join("calls");
    site.becomes(call, || {
        fs::read_to_string(&calls).is_ok_and(|calls| calls.contains(call))
    })
    .await;
}

#[tokio::test]
async fn few_pods_are_detached_in_the_background_at_once() {
    let site = Site::new("1.0.0");
    let dir = site.temp.dir().display().to_string();
    fs::create_dir(site.temp.dir().join("at")).unwrap();
    site.does(
        "two",
        &format!(
            ": > {dir}/at/$CNI_CONTAINERID; ls {dir}/at | wc -l >> {dir}/counts; sleep 0.1; rm {dir}/at/$CNI_CONTAINERID"
        ),
    );
    let cni = site.open();
    for number in 0..24 {
        begin(&cni, &format!("{number}"), Path::new("/x"));
    }
    cni.resume(&HashSet::new(), false);
    site.becomes("all given back", || cni.cache.pods().is_empty())
        .await;
    let counts = fs::read_to_string(site.temp.dir().join("counts")).unwrap();
    let counts: Vec<usize> = counts
        .lines()
        .map(|count| count.trim().parse().unwrap())
        .collect();
    assert_eq!(counts.len(), 24);
    let most = counts.iter().max().copied().unwrap();
    assert!((2..=AT_ONCE).contains(&most), "{counts:?}");
}

#[tokio::test]
async fn a_hanging_detach_delays_neither_an_attach_nor_other_pods_while_garbage_waits() {
    let site = Site::new("1.1.0");
    let cni = site.open();
    begin(&cni, "hangs", Path::new("/x"));
    let ok = r#"echo '{"ips": [{"address": "10.0.0.9/8"}]}'"#;
    site.does(
        "two",
        &format!(
            r#"[ "$CNI_CONTAINERID" = hangs ] && {{ {}; }}; {ok}"#,
            site.temp.until("go")
        ),
    );
    cni.abandon("hangs");
    wait_for_call(&site, "DEL two hangs").await;
    let collector = Arc::clone(&cni);
    let garbage = tokio::spawn(async move { collector.collect_garbage().await });
    tokio::time::sleep(Duration::from_millis(200)).await;
    at_once(site.add(&cni)).await.unwrap();
    at_once(cni.del(POD)).await.unwrap();
    assert!(cni.is_owed("hangs") && !garbage.is_finished());
    site.lets("go");
    garbage.await.unwrap();
    assert!(site.calls().contains(&"GC two  []".to_owned()));
}

#[tokio::test]
async fn garbage_is_collected_before_debris_is_detached() {
    let site = Site::new("1.1.0");
    let cni = site.open();
    begin(&cni, "00bb", Path::new("/x"));
    cni.resume(&HashSet::new(), true);
    site.becomes("given back", || !cni.is_owed("00bb")).await;
    assert_eq!(
        site.calls(),
        [
            "GC one  []",
            "GC two  []",
            "DEL two 00bb []",
            "DEL one 00bb []"
        ]
    );
}

#[tokio::test]
async fn a_check_gives_way_to_a_detach() {
    let site = Site::new("1.0.0");
    let cni = site.open();
    site.add(&cni).await.unwrap();
    let hang = site.temp.until("go");
    site.does(
        "one",
        &format!("[ $CNI_COMMAND = CHECK ] && {{ {hang}; }}; true"),
    );
    let checker = Arc::clone(&cni);
    let checked = tokio::spawn(async move { checker.check(vec![POD.into()]).await });
    wait_for_call(&site, "CHECK one").await;
    at_once(cni.del(POD)).await.unwrap();
    site.lets("go");
    checked.await.unwrap();
    let calls = site.calls();
    assert!(
        !calls.contains(&format!("CHECK two 00aa {NETNS}")),
        "{calls:?}"
    );
}

#[tokio::test]
async fn pod_locks_are_dropped_when_unused() {
    let site = Site::new("1.0.0");
    let cni = site.open();
    site.add(&cni).await.unwrap();
    cni.check(vec![POD.into(), "unknown".into()]).await;
    assert_eq!(cni.pod_locks.len(), 0);
    cni.del_now("unknown").await.unwrap();
    assert_eq!(cni.pod_locks.len(), 0);
    site.does("two", "exit 1");
    cni.del_now(POD).await.unwrap_err();
    assert_eq!(cni.pod_locks.len(), 0);
    fs::write(site.temp.dir().join("entries/00aa.asked"), "torn").unwrap();
    cni.del_now(POD).await.unwrap();
    assert_eq!(cni.pod_locks.len(), 0);
    assert_eq!(site.files(), ["00aa.broken"]);
}

#[tokio::test]
async fn a_pin_stays_while_a_detach_is_owed_and_goes_after_it() {
    let site = Site::new("1.0.0");
    let dir = site.temp.dir();
    let cni = site.open();
    let (pin, other) = (dir.join("00bb"), dir.join("other"));
    for path in [&pin, &other] {
        fs::write(path, "").unwrap();
    }
    begin(&cni, "00bb", &pin);
    begin(&cni, "00cc", &other);
    site.does(
        "two",
        &format!(
            "test -e {} || {{ {}; exit 1; }}",
            dir.join("up").display(),
            site.temp.until("up")
        ),
    );
    at_once(cni.del_soon("00bb")).await;
    assert!(cni.is_owed("00bb") && pin.exists());
    site.lets("up");
    site.becomes("unpinned", || !pin.exists()).await;
    assert!(!cni.is_owed("00bb"));
    cni.del_soon("00cc").await;
    assert!(
        !cni.is_owed("00cc") && other.exists(),
        "not a pin of the pod's"
    );
}
