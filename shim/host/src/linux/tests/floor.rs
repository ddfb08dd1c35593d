//! What stands in front of every seccomp filter of a Linux container.

use super::*;

#[test]
fn the_floor_is_that_of_handler_and_pod_and_opens_with_the_capability_alone() {
    let mut fixture = Fixture::new("floor");
    let floor = |fixture: &Fixture, seccomp: &SecurityProfile, add: &[&str]| {
        let security = SecurityContext {
            seccomp: seccomp.clone(),
            capabilities: CapabilityConfig {
                add: add.iter().map(ToString::to_string).collect(),
                ..CapabilityConfig::default()
            },
            ..SecurityContext::default()
        };
        fixture.secured(security).unwrap().floor
    };
    let profiles = [
        SecurityProfile::Unset,
        SecurityProfile::Unconfined,
        SecurityProfile::Default,
    ];
    for profile in &profiles {
        assert!(floor(&fixture, profile, &[]).is_open());
    }
    fixture.handler.no_user_namespaces = true;
    for profile in &profiles {
        assert!(floor(&fixture, profile, &[]).no_user_namespaces);
        assert!(!floor(&fixture, profile, &["SYS_ADMIN"]).no_user_namespaces);
    }
    fixture.handler.no_user_namespaces = false;
    fixture.change(|config| config.is_offline = true);
    for profile in &profiles {
        assert!(floor(&fixture, profile, &[]).only_governed_sockets);
    }
    fixture.change(|config| {
        config.is_offline = false;
        config.egress = Some(coracle_spec::egress::List::default());
    });
    assert!(floor(&fixture, &profiles[0], &[]).only_governed_sockets);
}
