//! Records that cannot be used after a reboot, when nothing of the pod runs any more.

use coracle_proto::runtime::v1 as cri;
use cri::ContainerState::{ContainerExited, ContainerUnknown};
use cri::PodSandboxState::SandboxNotready;

use super::{Fixture, reboot, spoil, wait_for};
use crate::site::{daemon, failing_daemon};

#[tokio::test]
async fn after_a_reboot_no_record_is_lost_to_one_that_cannot_be_used() {
    let mut daemon = daemon().await;
    let fixture = Fixture::new(&daemon).await;
    reboot(&mut daemon);
    let mend = spoil(&fixture.container(&daemon, &fixture.ended), "EISDIR");
    let mend_pod = spoil(&fixture.directory(&daemon), "newer");
    daemon.boot_anew().await.unwrap();
    assert_eq!(fixture.sandbox().await.state(), SandboxNotready);
    mend_pod();
    wait_for("the pod is read", async || {
        fixture.state(&fixture.running).await == ContainerExited
    })
    .await;
    assert_eq!(fixture.exit_code(&fixture.running).await, 255);
    assert_eq!(fixture.state(&fixture.ended).await, ContainerUnknown);
    mend();
    wait_for("the job is read", async || {
        fixture.state(&fixture.ended).await == ContainerExited
    })
    .await;
    assert_eq!(fixture.exit_code(&fixture.ended).await, 7);
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_step_that_fails_after_a_reboot_loses_no_record() {
    for site in ["stoppod.unpin", "stoppod.detach", "stoppod.leave"] {
        let mut daemon = failing_daemon().await;
        let fixture = Fixture::new(&daemon).await;
        reboot(&mut daemon);
        daemon.plan(&format!("{site} error\n")).unwrap();
        daemon.boot_anew().await.unwrap();
        assert_eq!(fixture.sandbox().await.state(), SandboxNotready, "{site}");
        assert!(
            fixture
                .container(&daemon, &fixture.running)
                .join("upper")
                .is_dir()
        );
        daemon.plan("").unwrap();
        wait_for(site, async || {
            fixture.state(&fixture.ended).await == ContainerExited
        })
        .await;
        assert_eq!(fixture.exit_code(&fixture.ended).await, 7);
        daemon.finish().await.unwrap();
    }
}
