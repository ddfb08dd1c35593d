//! The floor below every profile: calls that the node refuses a payload, in front of its own filter.
//!
//! Called by [`super::cache`]. libseccomp builds it for the host's architecture and those that its kernel runs besides;
//! where it would allow a call, it goes on with the payload's filter.
//! Invariants: what the floor refuses no profile allows; what it does not refuse the profile decides, unchanged.
//! It must not know why a payload has one.

use libseccomp::{ScmpAction, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};

use super::super::seccomp::export;
use super::HOST_ARCHITECTURE;
use super::compile::{companions, fits, refused};
use coracle_spec::Floor;
use coracle_spec::error::Result;

/// Families whose sockets are of the pod's network, or of no network at all.
const GOVERNED: [i32; 4] = [
    libc::AF_UNIX,
    libc::AF_INET,
    libc::AF_INET6,
    libc::AF_NETLINK,
];

/// The functions of socketcall(2) that make sockets. Source: linux/net.h, SYS_SOCKET and SYS_SOCKETPAIR.
const MAKING_SOCKETS: [u64; 2] = [1, 8];

/// Puts `floor` in front of `filter`; without a filter everything else is allowed.
///
/// Errors: libseccomp refuses a rule, or the two together are longer than the kernel accepts.
pub(super) fn in_front(floor: Floor, filter: Option<Vec<u8>>) -> Result<Vec<u8>> {
    if floor.is_open()
        && let Some(filter) = filter
    {
        return Ok(filter);
    }
    let mut parts = vec![export(&calls(floor)?)?];
    if floor.only_governed_sockets {
        // Apart: from rules for socket(2) libseccomp derives some for socketcall(2), which contradict those above.
        parts.push(export(&families()?)?);
    }
    parts.extend(filter);
    fits(chain(parts))
}

/// A filter that allows everything on all architectures of this host.
fn open() -> Result<ScmpFilterContext> {
    let what = "begin the floor below it";
    let mut filter = ScmpFilterContext::new(ScmpAction::Allow).map_err(|e| refused(what, e))?;
    for arch in companions() {
        let added = filter.add_arch(arch);
        added.map_err(|e| refused(format_args!("add {arch:?} to its floor"), e))?;
    }
    Ok(filter)
}

/// The part that refuses whole calls, and namespaces by their flags.
fn calls(floor: Floor) -> Result<ScmpFilterContext> {
    let mut filter = open()?;
    if floor.no_user_namespaces {
        without_user_namespaces(&mut filter)?;
    }
    if floor.only_governed_sockets {
        without_hidden_sockets(&mut filter)?;
    }
    Ok(filter)
}

/// A filter cannot see the flags of clone3(2); with ENOSYS, C libraries use clone(2).
fn without_user_namespaces(filter: &mut ScmpFilterContext) -> Result<()> {
    let flags = if HOST_ARCHITECTURE == "s390x" { 1 } else { 0 };
    let new_user = libc::CLONE_NEWUSER as u64;
    let makes_one =
        |argument| ScmpArgCompare::new(argument, ScmpCompareOp::MaskedEqual(new_user), new_user);
    let denied = ScmpAction::Errno(libc::EPERM);
    add(filter, denied, "clone", &[makes_one(flags)])?;
    add(filter, denied, "unshare", &[makes_one(0)])?;
    add(filter, ScmpAction::Errno(libc::ENOSYS), "clone3", &[])
}

/// The arguments of socketcall(2) are behind a pointer, and what io_uring does no filter sees.
fn without_hidden_sockets(filter: &mut ScmpFilterContext) -> Result<()> {
    let absent = ScmpAction::Errno(libc::ENOSYS);
    for function in MAKING_SOCKETS {
        let is_it = ScmpArgCompare::new(0, ScmpCompareOp::Equal, function);
        add(filter, absent, "socketcall", &[is_it])?;
    }
    add(filter, absent, "io_uring_setup", &[])
}

/// The part that refuses sockets of other families.
fn families() -> Result<ScmpFilterContext> {
    let mut filter = open()?;
    let denied = ScmpAction::Errno(libc::EAFNOSUPPORT);
    for call in ["socket", "socketpair"] {
        for (mask, value) in all_but(&GOVERNED.map(i32::cast_unsigned)) {
            let is_other = ScmpCompareOp::MaskedEqual(mask.into());
            let is_other = ScmpArgCompare::new(0, is_other, value.into());
            add(&mut filter, denied, call, &[is_other])?;
        }
    }
    Ok(filter)
}

fn add(
    filter: &mut ScmpFilterContext,
    action: ScmpAction,
    call: &str,
    when: &[ScmpArgCompare],
) -> Result<()> {
    let what = || format!("add the floor's rule for {call}");
    let number = ScmpSyscall::from_name(call).map_err(|e| refused(what(), e))?;
    filter
        .add_rule_conditional(action, number, when)
        .map_err(|e| refused(what(), e))
        .map(drop)
}

/// All numbers of 32 bits but `left_out`, as (mask, value).
fn all_but(left_out: &[u32]) -> Vec<(u32, u32)> {
    let mut blocks = Vec::new();
    let mut open = vec![(0_u32, 0_u32)];
    while let Some((mask, value)) = open.pop() {
        match left_out.iter().any(|number| number & mask == value) {
            false => blocks.push((mask, value)),
            true if mask == u32::MAX => {}
            true => {
                let bit = 1 << (31 - mask.leading_ones());
                open.extend([(mask | bit, value), (mask | bit, value | bit)]);
            }
        }
    }
    blocks
}

/// One filter of several: what one allows, the next decides.
fn chain(parts: Vec<Vec<u8>>) -> Vec<u8> {
    let mut steps = Vec::new();
    let last = parts.len().saturating_sub(1);
    for (number, mut part) in parts.into_iter().enumerate() {
        if number < last {
            go_on(&mut part);
        }
        steps.extend(part);
    }
    steps
}

/// Makes each "allow" of the complete filter `steps` a jump behind its end.
fn go_on(steps: &mut [u8]) {
    const JUMP: u16 = 0x05;
    let mut left = steps.len() / size_of::<libc::sock_filter>();
    for step in steps.chunks_exact_mut(size_of::<libc::sock_filter>()) {
        left -= 1;
        if *step == ALLOW {
            step[..2].copy_from_slice(&JUMP.to_ne_bytes());
            // A filter has some thousand steps at most.
            step[4..].copy_from_slice(&(left as u32).to_ne_bytes());
        }
    }
}

/// `return SECCOMP_RET_ALLOW`. Source: linux/filter.h, linux/seccomp.h.
const ALLOW: [u8; 8] = {
    let [c0, c1] = 0x06_u16.to_ne_bytes();
    let [v0, v1, v2, v3] = 0x7fff_0000_u32.to_ne_bytes();
    [c0, c1, 0, 0, v0, v1, v2, v3]
};

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::super::Profile;
    use super::super::compile::tests::{CLONE3, Call, ENOSYS, EPERM, call, under};
    use super::*;

    const EAFNOSUPPORT: i64 = -(libc::EAFNOSUPPORT as i64);
    const NO_USERS: Floor = Floor {
        no_user_namespaces: true,
        only_governed_sockets: false,
    };
    const GOVERNED_ONLY: Floor = Floor {
        no_user_namespaces: false,
        only_governed_sockets: true,
    };

    /// Allows everything and says so with a filter, as profiles that are written for a node often do.
    const OPEN: &str = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
        {"names":["getppid"],"action":"SCMP_ACT_ERRNO","errnoRet":77}]}"#;

    /// The answers without a profile, then those with an open one.
    fn with_and_without_profile(floor: Floor, calls: &[Call]) -> [Vec<i64>; 2] {
        let profile = Profile::parse(OPEN.as_bytes()).unwrap();
        let own = profile.compile(0).unwrap();
        [None, Some(own)].map(|own| under(&in_front(floor, own).unwrap(), 0, calls))
    }

    fn socket(family: i32) -> Call {
        let family = u64::from(family.cast_unsigned());
        (libc::SYS_socket, [family, libc::SOCK_DGRAM as u64, 0])
    }

    #[test]
    fn no_profile_lets_a_payload_make_user_namespaces() {
        let user = libc::CLONE_NEWUSER as u64;
        let calls = [
            call(libc::SYS_unshare, user),
            call(libc::SYS_unshare, user | libc::CLONE_FS as u64),
            call(libc::SYS_clone, user | libc::SIGCHLD as u64),
            call(CLONE3, 0),
            call(libc::SYS_unshare, libc::CLONE_FS as u64),
        ];
        for answers in with_and_without_profile(NO_USERS, &calls) {
            assert_eq!(answers, [EPERM, EPERM, EPERM, ENOSYS, 0]);
        }
    }

    #[test]
    fn no_profile_lets_a_payload_have_sockets_that_no_rule_sees() {
        let calls = [
            socket(libc::AF_VSOCK),
            socket(libc::AF_ALG),
            socket(libc::AF_PACKET),
            socket(libc::AF_UNSPEC),
            // The kernel reads the lower 32 bits.
            (libc::SYS_socket, [1 << 32 | libc::AF_VSOCK as u64, 1, 0]),
            (libc::SYS_socketpair, [libc::AF_TIPC as u64, 1, 0]),
            call(libc::SYS_io_uring_setup, 1),
            socket(libc::AF_UNIX),
            socket(libc::AF_INET),
            socket(libc::AF_INET6),
            socket(libc::AF_NETLINK),
            (libc::SYS_socket, [1 << 32 | libc::AF_UNIX as u64, 1, 0]),
        ];
        for answers in with_and_without_profile(GOVERNED_ONLY, &calls) {
            assert_eq!(answers[..6], [EAFNOSUPPORT; 6]);
            assert_eq!(answers[6], ENOSYS);
            assert!(
                answers[7..].iter().all(|answer| *answer >= 0),
                "{answers:?}"
            );
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_program_of_32_bits_makes_sockets_by_the_call_that_is_looked_at() {
        use super::super::compile::tests::SOCKETCALL;
        let by_socketcall =
            |family: i32| (SOCKETCALL, [family as u64, libc::SOCK_STREAM as u64, 0]);
        let calls = [by_socketcall(libc::AF_VSOCK), by_socketcall(libc::AF_UNIX)];
        for answers in with_and_without_profile(GOVERNED_ONLY, &calls) {
            assert_eq!(answers, [ENOSYS; 2]);
        }
    }

    #[test]
    fn the_rest_is_decided_by_the_profile() {
        let getppid = [call(libc::SYS_getppid, 0), call(libc::SYS_getuid, 0)];
        let floor = Floor {
            no_user_namespaces: true,
            only_governed_sockets: true,
        };
        let [without, with] = with_and_without_profile(floor, &getppid);
        assert_eq!(without, [i64::from(std::process::id()), 0]);
        assert_eq!(with, [-77, 0]);
        let default = Profile::runtime_default().compile(0).unwrap();
        let both = in_front(floor, Some(default)).unwrap();
        let calls = [call(libc::SYS_mount, 0), call(900, 0), getppid[0]];
        let answers = under(&both, 0, &calls);
        assert_eq!(answers, [EPERM, ENOSYS, i64::from(std::process::id())]);
    }

    #[test]
    fn every_other_number_is_in_one_block() {
        let blocks = all_but(&[1, 2, 10, 16]);
        let covers = |number: u32| {
            blocks
                .iter()
                .filter(move |(mask, value)| number & mask == *value)
        };
        for number in (0..4096).chain([u32::MAX, 1 << 31, 1 << 31 | 1]) {
            let left_out = [1, 2, 10, 16].contains(&number);
            assert_eq!(covers(number).count(), usize::from(!left_out), "{number}");
        }
        assert!(all_but(&[]) == [(0, 0)]);
    }
}
