//! What the filters decide, by an interpreter of their instructions: loading them would end the test.
#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use super::*;

/// A filter's decision on one call: the lower, the stricter, so that of two filters the lower one counts.
fn verdict(filter: &[u8], call: u64, arguments: [u64; 6]) -> i32 {
    let mut data = [0_u8; 64];
    data[..4].copy_from_slice(&(call as u32).to_ne_bytes());
    // x86-64 and aarch64, with the bits of 64-bit little-endian architectures.
    let arch: u32 = match std::env::consts::ARCH {
        "x86_64" => 0xC000_003E,
        _ => 0xC000_00B7,
    };
    data[4..8].copy_from_slice(&arch.to_ne_bytes());
    for (number, argument) in arguments.iter().enumerate() {
        let at = 16 + number * 8;
        data[at..at + 8].copy_from_slice(&argument.to_ne_bytes());
    }
    let (mut at, mut value) = (0, 0_u32);
    loop {
        let step = &filter[at * 8..at * 8 + 8];
        let code = u16::from_ne_bytes([step[0], step[1]]);
        let operand = u32::from_ne_bytes(step[4..8].try_into().unwrap());
        let is_true = match code {
            // RET
            0x06 => return operand as i32,
            // LD W ABS
            0x20 => {
                let from = operand as usize;
                value = u32::from_ne_bytes(data[from..from + 4].try_into().unwrap());
                None
            }
            // ALU AND
            0x54 => {
                value &= operand;
                None
            }
            // JA
            0x05 => {
                at += operand as usize;
                None
            }
            0x15 => Some(value == operand),
            0x25 => Some(value > operand),
            0x35 => Some(value >= operand),
            0x45 => Some(value & operand != 0),
            other => panic!("instruction {other:#x} at {at}"),
        };
        at += 1 + match is_true {
            Some(true) => usize::from(step[2]),
            Some(false) => usize::from(step[3]),
            None => 0,
        };
    }
}

fn number(name: &str) -> u64 {
    let call = ScmpSyscall::from_name(name).unwrap();
    u64::from(i32::from(call).unsigned_abs())
}

#[test]
fn filters_build_and_hold_whole_instructions() {
    for bytes in [
        guest_filter(Sockets::None, false).unwrap(),
        guest_filter(Sockets::Accepted, true).unwrap(),
        guest_filter(Sockets::Own, true).unwrap(),
        lock_filter(false).unwrap(),
        lock_filter(true).unwrap(),
        compiler_filter().unwrap(),
    ] {
        assert!(bytes.len() > 8 * 4 && bytes.len() % 8 == 0);
    }
}

/// The arguments with which the calls that are decided by them are tried.
fn tried() -> Vec<[u64; 6]> {
    let thread = (libc::CLONE_THREAD | libc::CLONE_VM | libc::CLONE_SIGHAND) as u64;
    let exec = libc::PROT_EXEC as u64;
    [
        [0; 6],
        [u64::MAX; 6],
        [sys::fork::PLAIN_FORK, 0, 0, 0, 0, 0],
        [
            sys::fork::PLAIN_FORK | libc::CLONE_NEWUSER as u64,
            0,
            0,
            0,
            0,
            0,
        ],
        [sys::fork::PLAIN_FORK | libc::CLONE_VM as u64, 0, 0, 0, 0, 0],
        [sys::fork::PLAIN_FORK | 1 << 32, 0, 0, 0, 0, 0],
        [thread, 0, 0, 0, 0, 0],
        [DEATH_SIGNAL, 9, 0, 0, 0, 0],
        [libc::PR_SET_NAME as u64, 0, 0, 0, 0, 0],
        [1, 0, exec, 0, 0, 0],
        [1, libc::AF_UNIX as u64, 0, 0, 0, 0],
        [2, 1, 0, 0, 0, 0],
        [2, 1, 6, 0, 0, 0],
        [10, 2, 17, 0, 0, 0],
    ]
    .to_vec()
}

#[test]
fn a_server_that_was_forked_may_do_what_every_server_may_and_nothing_else() {
    for sockets in [Sockets::Accepted, Sockets::Own] {
        let usual = [
            guest_filter(sockets, false).unwrap(),
            lock_filter(false).unwrap(),
        ];
        let forked = [
            guest_filter(sockets, true).unwrap(),
            lock_filter(true).unwrap(),
        ];
        let both = |filters: &[Vec<u8>; 2], call, arguments| {
            let [first, second] = filters;
            verdict(first, call, arguments).min(verdict(second, call, arguments))
        };
        let mut allowed = 0;
        for call in 0..600 {
            for arguments in tried() {
                let expected = both(&usual, call, arguments);
                assert_eq!(
                    both(&forked, call, arguments),
                    expected,
                    "call {call} with {arguments:x?}"
                );
                allowed += u32::from(expected == libc::SECCOMP_RET_ALLOW as i32);
            }
        }
        assert!(allowed > 500, "{allowed}");
    }
}

#[test]
fn who_holds_a_socket_forks_and_makes_no_namespace() {
    let holding = guest_filter(Sockets::Accepted, true).unwrap();
    let allow = libc::SECCOMP_RET_ALLOW as i32;
    let clone = |flags| verdict(&holding, number("clone"), [flags, 0, 0, 0, 0, 0]);
    assert_eq!(clone(sys::fork::PLAIN_FORK), allow);
    for more in [
        libc::CLONE_NEWUSER,
        libc::CLONE_NEWNS,
        libc::CLONE_NEWPID,
        libc::CLONE_PARENT,
        libc::CLONE_VM,
        libc::CLONE_PTRACE,
    ] {
        assert_ne!(
            clone(sys::fork::PLAIN_FORK | more as u64),
            allow,
            "{more:#x}"
        );
    }
    for name in [
        "fork", "vfork", "execve", "execveat", "unshare", "setns", "ptrace", "kill",
    ] {
        if ScmpSyscall::from_name(name).is_ok() {
            assert_ne!(verdict(&holding, number(name), [0; 6]), allow, "{name}");
        }
    }
}
