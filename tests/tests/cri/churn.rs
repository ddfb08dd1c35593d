//! The small version of `make churn`: see [`coracle_tests::churn`]. `CORACLE_TEST_PODS` makes it larger.

use std::io::Write as _;

use coracle_tests::churn::{self, Plan};

use crate::site::images;

/// Two hundred pods of both kinds, two kills of daemon and spawner on the way, then fifty on one daemon.
#[tokio::test]
async fn pods_that_come_and_go_under_kills_leave_nothing() {
    let given = std::env::var("CORACLE_TEST_PODS").ok();
    let pods = given.map_or(200, |text| text.parse().unwrap());
    let plan = Plan {
        pods,
        undisturbed: pods / 4,
        in_flight: 8,
        kill_every: if pods > 200 { 200 } else { 80 },
    };
    let report = churn::run(plan, &images().registry).await.unwrap();
    let _ = write!(std::io::stderr(), "{report}");
    assert!(report.kills >= 2, "{report}");
}
