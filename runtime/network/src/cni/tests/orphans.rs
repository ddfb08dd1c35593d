//! Plugins that a killed daemon has left.

use super::*;

#[tokio::test]
async fn a_plugin_of_a_killed_daemon_is_ended_before_its_pod_is_detached() {
    let site = Site::new("1.0.0");
    let pod = format!("00cc{}", std::process::id());
    let cni = site.open();
    let config = NetworkConfig {
        pod: pod.clone(),
        ..NetworkConfig::default()
    };
    cni.begin(&cni.plan(&config, Path::new("/x")).unwrap())
        .unwrap();
    let mut plugin = std::process::Command::new("sleep")
        .arg("60")
        .env("CNI_CONTAINERID", &pod)
        .spawn()
        .unwrap();
    let later = site.open();
    // On a slow machine it is killed a little later.
    let mut status = None;
    let deadline = Instant::now() + PATIENCE;
    while status.is_none() && Instant::now() < deadline {
        status = plugin.try_wait().unwrap();
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let _ = plugin.kill();
    plugin.wait().unwrap();
    assert!(status.is_some_and(|status| !status.success()));
    later.del(&pod).await.unwrap();
}
