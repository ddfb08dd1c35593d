//! Networks of scripted plugins, and what is on disk at each step.
#![allow(
    clippy::unwrap_used,
    reason = "a test stops at the first thing that is not as it should be"
)]

mod in_background;
mod orphans;
mod temp;

use serde_json::{Value, json};

use super::*;

pub use temp::Temp;

const POD: &str = "00aa";
/// How long is waited for what must happen, on however slow a machine. What hangs in these tests hangs until it is let go on.
const PATIENCE: Duration = Duration::from_secs(120);

/// The result of what must not wait for a plugin that hangs.
async fn at_once<T>(work: impl Future<Output = T>) -> T {
    let ended = tokio::time::timeout(PATIENCE / 2, work).await;
    ended.expect("it waits for a plugin that hangs")
}

/// Plugins `one` and `two`, which append each call to `calls` and then run the script `one.do` or `two.do`.
struct Site {
    temp: Temp,
    list: Value,
}

impl Site {
    fn new(version: &str) -> Self {
        let temp = Temp::new();
        let dir = temp.dir().display().to_string();
        for name in ["conf", "bin"] {
            fs::create_dir(temp.dir().join(name)).unwrap();
        }
        for name in ["one", "two"] {
            let script = format!(
                "input=$(cat)\necho \"$CNI_COMMAND {name} $CNI_CONTAINERID [$CNI_NETNS] $input\" >> {dir}/calls\n\
                 . {dir}/{name}.do"
            );
            temp.script(&format!("bin/{name}"), &script);
        }
        let site = Self {
            temp,
            list: json!({"name": "net", "cniVersion": version, "plugins": [
                {"type": "one", "capabilities": {"mac": true}}, {"type": "two"},
            ]}),
        };
        site.write();
        site.does(
            "one",
            r#"echo '{"ips": [{"address": "10.0.0.9/8"}], "by": "one"}'"#,
        );
        site.does(
            "two",
            r#"echo '{"ips": [{"address": "10.0.0.9/8"}], "by": "two"}'"#,
        );
        site
    }

    fn write(&self) {
        let path = self.temp.dir().join("conf/10.conflist");
        fs::write(path, self.list.to_string()).unwrap();
    }

    fn does(&self, plugin: &str, script: &str) {
        fs::write(self.temp.dir().join(format!("{plugin}.do")), script).unwrap();
    }

    fn open(&self) -> Arc<Cni> {
        let dir = self.temp.dir();
        let config = CniConfig {
            conf_dir: dir.join("conf"),
            bin_dirs: vec![dir.join("bin")],
            entry_dir: dir.join("entries"),
            plugin_limit: PATIENCE,
        };
        Cni::open(config).unwrap()
    }

    async fn add(&self, cni: &Arc<Cni>) -> Result<Vec<IpAddr>, Error> {
        let config = NetworkConfig {
            pod: POD.into(),
            namespace: "ns".into(),
            name: "n".into(),
            uid: "u".into(),
            mac: Some("m".into()),
            ..NetworkConfig::default()
        };
        let plan = cni.plan(&config, Path::new("/proc/self/ns/net"))?;
        cni.begin(&plan)?;
        cni.add(plan).await
    }

    /// The plugin calls since the last time, one line each, without the input.
    fn calls(&self) -> Vec<String> {
        let with_input = self.inputs();
        let shown = with_input.iter().map(|(call, _)| call.clone());
        shown.collect()
    }

    fn inputs(&self) -> Vec<(String, Value)> {
        let path = self.temp.dir().join("calls");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let _ = fs::remove_file(path);
        let lines = text.lines().map(|line| {
            let (call, input) = line.split_once("] ").unwrap();
            (format!("{call}]"), serde_json::from_str(input).unwrap())
        });
        lines.collect()
    }

    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.temp.dir().join("entries")).unwrap();
        let mut names: Vec<String> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    async fn becomes(&self, what: &str, check: impl Fn() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !check() {
            assert!(Instant::now() < deadline, "never {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Lets those go on who wait for it by [`Temp::until`].
    fn lets(&self, name: &str) {
        fs::write(self.temp.dir().join(name), "").unwrap();
    }
}

const NETNS: &str = "[/proc/self/ns/net]";

#[tokio::test]
async fn a_pod_is_attached_in_order_and_detached_in_reverse_with_what_it_was_attached_with() {
    let mut site = Site::new("1.0.0");
    let cni = site.open();
    assert_eq!(
        site.add(&cni).await.unwrap(),
        ["10.0.0.9".parse::<IpAddr>().unwrap()]
    );
    assert_eq!(site.files(), ["00aa.added", "00aa.asked"]);
    let calls = site.inputs();
    assert_eq!(calls[0].0, format!("ADD one 00aa {NETNS}"));
    assert_eq!(calls[0].1["runtimeConfig"], json!({"mac": "m"}));
    assert_eq!(calls[0].1.get("prevResult"), None);
    assert_eq!(calls[1].0, format!("ADD two 00aa {NETNS}"));
    assert_eq!(calls[1].1["prevResult"]["by"], "one");
    assert_eq!(calls[1].1.get("runtimeConfig"), None);

    // Another configuration by then, and another daemon.
    site.list["plugins"] = json!([{"type": "two", "other": true}]);
    site.write();
    let later = site.open();
    later.del(POD).await.unwrap();
    let calls = site.inputs();
    assert_eq!(calls[0].0, format!("DEL two 00aa {NETNS}"));
    assert_eq!(calls[0].1["prevResult"]["by"], "two");
    assert_eq!(calls[0].1.get("other"), None);
    assert_eq!(calls[1].0, format!("DEL one 00aa {NETNS}"));
    assert_eq!(calls[1].1["runtimeConfig"], json!({"mac": "m"}));
    assert!(site.files().is_empty());
    later.del(POD).await.unwrap();
    assert!(site.calls().is_empty(), "detached exactly once");
}

#[tokio::test]
async fn del_is_owed_after_a_failed_add_and_after_a_failed_del() {
    let site = Site::new("1.0.0");
    let cni = site.open();
    for (script, expected) in [
        (
            r#"echo '{"code": 7, "msg": "no"}'; exit 1"#,
            "ADD of plugin two for network net: no (code 7)",
        ),
        (
            "echo garbage",
            "ADD of plugin two for network net: its answer is no JSON",
        ),
        ("exit 0", "its answer is empty"),
        ("echo {}", "its answer has no address of eth0"),
    ] {
        site.does("two", script);
        let error = site.add(&cni).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert!(cni.is_owed(POD));
        assert_eq!(site.files(), ["00aa.asked"]);
        site.calls();
        site.does("two", "exit 1");
        assert!(cni.del(POD).await.is_err());
        let both = [
            format!("DEL two 00aa {NETNS}"),
            format!("DEL one 00aa {NETNS}"),
        ];
        assert_eq!(site.calls(), both, "one plugin's failure keeps no other");
        assert!(cni.is_owed(POD));
        site.does("two", "exit 0");
        cni.del(POD).await.unwrap();
        assert!(site.files().is_empty() && !cni.is_owed(POD));
        site.calls();
    }
}

#[tokio::test]
async fn operations_are_observed_once_for_all_plugins_with_how_they_ended() {
    static SEEN: Mutex<Vec<(Verb, bool)>> = Mutex::new(Vec::new());
    let site = Site::new("1.0.0");
    let cni = site.open();
    cni.observe(|verb, took, is_ok| {
        assert!(took > Duration::ZERO);
        SEEN.lock().unwrap().push((verb, is_ok));
    });
    site.add(&cni).await.unwrap();
    assert_eq!(cni.owed(), 1);
    site.does("two", "exit 1");
    cni.del(POD).await.unwrap_err();
    site.does("two", "exit 0");
    cni.del(POD).await.unwrap();
    assert_eq!(cni.owed(), 0);
    let seen = SEEN.lock().unwrap();
    assert_eq!(
        *seen,
        [(Verb::Add, true), (Verb::Del, false), (Verb::Del, true)]
    );
}

#[tokio::test]
async fn versions_before_0_4_0_get_no_result_at_del_and_no_check() {
    let site = Site::new("0.3.1");
    let cni = site.open();
    site.add(&cni).await.unwrap();
    site.calls();
    cni.check(vec![POD.into()]).await;
    assert!(site.calls().is_empty());
    cni.del(POD).await.unwrap();
    assert!(
        site.inputs()
            .iter()
            .all(|(_, input)| input.get("prevResult").is_none())
    );
}

#[tokio::test]
async fn a_pod_without_its_namespace_is_detached_with_an_empty_netns() {
    let site = Site::new("1.0.0");
    let cni = site.open();
    site.add(&cni).await.unwrap();
    site.calls();
    let path = site.temp.dir().join("entries/00aa.asked");
    for pin in ["/nowhere", "/etc/hostname"] {
        let text = fs::read_to_string(&path).unwrap();
        let mut request: Value = serde_json::from_str(&text).unwrap();
        request["netns"] = json!(pin);
        fs::write(&path, request.to_string()).unwrap();
        site.does("two", "exit 1");
        assert!(cni.del(POD).await.is_err());
        assert_eq!(site.calls()[0], "DEL two 00aa []");
    }
    site.does("two", "exit 0");
    cni.del(POD).await.unwrap();
}

#[tokio::test]
async fn a_daemon_that_comes_later_detaches_what_no_pod_owns_and_checks_the_rest() {
    let site = Site::new("1.1.0");
    let cni = site.open();
    site.add(&cni).await.unwrap();
    let config = NetworkConfig {
        pod: "00bb".into(),
        ..NetworkConfig::default()
    };
    cni.begin(&cni.plan(&config, Path::new("/x")).unwrap())
        .unwrap();
    site.calls();

    let later = site.open();
    later.resume(&HashSet::from([POD.to_owned()]), true);
    site.becomes("given back", || !later.is_owed("00bb")).await;
    site.becomes("checked", || {
        let text = fs::read_to_string(site.temp.dir().join("calls")).unwrap_or_default();
        text.contains("CHECK two")
    })
    .await;
    let calls = site.inputs();
    let of = |verb: &str| {
        calls
            .iter()
            .filter(|(call, _)| call.starts_with(verb))
            .collect::<Vec<_>>()
    };
    assert_eq!(of("DEL").len(), 2);
    assert_eq!(of("DEL")[0].0, "DEL two 00bb []");
    assert_eq!(of("CHECK").len(), 2);
    assert_eq!(of("CHECK")[0].1["prevResult"]["by"], "two");
    let garbage = of("GC");
    assert_eq!(garbage.len(), 2);
    let valid = garbage[0].1["cni.dev/valid-attachments"]
        .as_array()
        .unwrap();
    assert!(
        valid.contains(&json!({"containerID": POD, "ifname": "eth0"})),
        "{valid:?}"
    );
    assert_eq!(garbage[0].0, "GC one  []");
    later.del(POD).await.unwrap();
}

#[tokio::test]
async fn lists_can_disable_check_and_gc() {
    let mut site = Site::new("1.1.0");
    site.list["disableCheck"] = json!(true);
    site.list["disableGC"] = json!(true);
    site.write();
    let cni = site.open();
    site.add(&cni).await.unwrap();
    site.calls();
    cni.collect_garbage().await;
    cni.check(vec![POD.into()]).await;
    assert!(site.calls().is_empty());
    cni.del(POD).await.unwrap();
}

#[tokio::test]
async fn what_another_boot_has_left_delays_nobody() {
    let site = Site::new("1.0.0");
    let cni = site.open();
    site.add(&cni).await.unwrap();
    site.does("two", &format!("test -e {}/up", site.temp.dir().display()));
    let path = site.temp.dir().join("entries/00aa.asked");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, text.replace(&cni.boot, "an earlier one")).unwrap();
    let later = site.open();
    // It is tried again and again in the background.
    at_once(later.del(POD)).await.unwrap();
    assert!(later.is_owed(POD));
    fs::write(site.temp.dir().join("up"), "").unwrap();
    site.becomes("detached", || !later.is_owed(POD)).await;
}

#[tokio::test]
async fn pods_with_unsafe_names_are_refused_before_a_plugin_runs() {
    let site = Site::new("1.0.0");
    let cni = site.open();
    let config = NetworkConfig {
        pod: POD.into(),
        name: "a;K8S_POD_NAME=b;IgnoreUnknown=1".into(),
        ..NetworkConfig::default()
    };
    assert!(matches!(
        cni.plan(&config, Path::new("/x")),
        Err(Error::InvalidName { .. })
    ));
    assert!(site.calls().is_empty() && site.files().is_empty());
}

#[tokio::test]
async fn many_pods_are_attached_at_once() {
    let site = Site::new("1.0.0");
    let dir = site.temp.dir().display();
    fs::create_dir(site.temp.dir().join("at")).unwrap();
    // Each waits until all of them are there.
    site.does(
        "one",
        &format!(
            r#": > {dir}/at/$CNI_CONTAINERID; while [ -d {dir} ] && [ $(ls {dir}/at | wc -l) != 8 ]; do sleep 0.02; done
            echo '{{"ips": [{{"address": "10.0.0.9/8"}}]}}'"#
        ),
    );
    let cni = site.open();
    let mut pods = tokio::task::JoinSet::new();
    for number in 0..8 {
        let config = NetworkConfig {
            pod: format!("{number}"),
            ..NetworkConfig::default()
        };
        let plan = cni.plan(&config, Path::new("/x")).unwrap();
        cni.begin(&plan).unwrap();
        let cni = Arc::clone(&cni);
        pods.spawn(async move { cni.add(plan).await });
    }
    while let Some(added) = pods.join_next().await {
        added.unwrap().unwrap();
    }
}
