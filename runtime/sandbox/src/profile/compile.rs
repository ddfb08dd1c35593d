//! Compiles rules to a filter: libseccomp builds it, then a few instructions are put in front.
//!
//! Called by [`Profile::compile`]. Which rules apply, in which order and with which errno is the same as in runc, so
//! that a profile has the same meaning: a rule equal to the default is left out, two conditions on one argument are
//! alternatives, calls newer than the newest one that the profile names return ENOSYS. Other than in runc, a condition on
//! socket(2) also holds for the older way to make a socket, socketcall(2), whose arguments no filter sees: it returns
//! ENOSYS.
//! Invariant: the result is complete instructions, not more than the kernel accepts.
//! It must not know about JSON, caching or loading.

use libseccomp::{ScmpAction, ScmpArch, ScmpArgCompare, ScmpFilterContext, ScmpSyscall};

use super::super::seccomp::export;
use super::{Profile, Rule};
use coracle_spec::error::{Error, Kind, Result};

/// The longest filter that the kernel accepts, in instructions. Source: BPF_MAXINSNS.
const MOST_INSTRUCTIONS: usize = 4096;

/// With at least this many rules, libseccomp arranges them as a tree.
const TREE_FROM: usize = 32;

/// The bit in the numbers of x32 calls, which have the architecture of x86-64.
const X32_BIT: u32 = 1 << 30;

/// `AUDIT_ARCH_X86_64`.
const AUDIT_X86_64: u32 = 0xc000_003e;

/// Other architectures whose programs this host's kernel runs.
pub(super) fn companions() -> Vec<ScmpArch> {
    match ScmpArch::native() {
        ScmpArch::X8664 => vec![ScmpArch::X86, ScmpArch::X32],
        ScmpArch::Aarch64 => vec![ScmpArch::Arm],
        ScmpArch::S390X => vec![ScmpArch::S390],
        _ => Vec::new(),
    }
}

/// See [`Profile::compile`].
pub(super) fn compile(profile: &Profile, capabilities: u64) -> Result<Vec<u8>> {
    let kernel = running_kernel();
    let rules: Vec<&Rule> = (profile.rules.iter())
        .filter(|rule| rule.applies(capabilities, kernel))
        .collect();
    let mut filter = ScmpFilterContext::new(profile.default)
        .map_err(|e| refused("begin with the default action", e))?;
    for &arch in &profile.arches {
        let what = || format!("add architecture {arch:?}");
        if !filter
            .is_arch_present(arch)
            .map_err(|e| refused(what(), e))?
        {
            filter.add_arch(arch).map_err(|e| refused(what(), e))?;
        }
    }
    let calls: usize = rules.iter().map(|rule| rule.names.len()).sum();
    if calls > TREE_FROM {
        // An older libseccomp does not have this; the filter has the same meaning.
        let _ = filter.set_ctl_optimize(2);
    }
    for rule in &rules {
        add(&mut filter, rule, profile.default)?;
    }
    let mut bytes = Vec::new();
    for step in front(profile, &rules) {
        bytes.extend(step.bytes());
    }
    bytes.extend(export(&filter)?);
    fits(bytes)
}

/// Returns the filter `bytes` if the kernel takes one that long.
pub(super) fn fits(bytes: Vec<u8>) -> Result<Vec<u8>> {
    let count = bytes.len() / size_of::<libc::sock_filter>();
    if count > MOST_INSTRUCTIONS {
        return Err(Error::new(
            Kind::Invalid,
            format!(
                "seccomp profile: its filter has {count} instructions, the kernel takes {MOST_INSTRUCTIONS}"
            ),
        ));
    }
    Ok(bytes)
}

pub(super) fn refused(
    what: impl std::fmt::Display,
    cause: libseccomp::error::SeccompError,
) -> Error {
    Error::with(Kind::Invalid, format!("seccomp profile: {what}"), cause)
}

/// Major and minor version; 0.0 if the kernel's release does not start with one.
fn running_kernel() -> (u32, u32) {
    let name = rustix::system::uname();
    let release = name.release().to_string_lossy();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn add(filter: &mut ScmpFilterContext, rule: &Rule, default: ScmpAction) -> Result<()> {
    if rule.action == default {
        return Ok(());
    }
    let conditions: Vec<ScmpArgCompare> = (rule.conditions.iter())
        .map(|c| ScmpArgCompare::new(c.argument, c.op, c.value))
        .collect();
    let mut arguments: Vec<u32> = rule.conditions.iter().map(|c| c.argument).collect();
    arguments.sort_unstable();
    let alternatives = arguments.windows(2).any(|pair| pair[0] == pair[1]);
    for name in &rule.names {
        // A call that libseccomp does not know has no number.
        let Ok(call) = ScmpSyscall::from_name(name) else {
            continue;
        };
        let sets: Vec<&[ScmpArgCompare]> = if alternatives {
            conditions.iter().map(std::slice::from_ref).collect()
        } else {
            vec![&conditions]
        };
        for set in sets {
            let added = if set.is_empty() {
                filter.add_rule(rule.action, call)
            } else {
                filter.add_rule_conditional(rule.action, call, set)
            };
            added.map_err(|e| refused(format_args!("add the rule for {name}"), e))?;
        }
    }
    Ok(())
}

/// One instruction. Source: struct sock_filter, linux/filter.h.
#[derive(Clone, Copy)]
struct Step {
    code: u16,
    when: u8,
    otherwise: u8,
    value: u32,
}

impl Step {
    /// Loads the 32 bits at `offset` of struct seccomp_data.
    fn load(offset: u32) -> Self {
        Self::jump(0x20, offset, 0, 0)
    }

    fn jump_forward(by: usize) -> Self {
        // There are a handful of architectures with a dozen steps each.
        Self::jump(0x05, by as u32, 0, 0)
    }

    fn return_enosys() -> Self {
        Self::jump(0x06, 0x0005_0000 | libc::ENOSYS.unsigned_abs(), 0, 0)
    }

    fn jump(code: u16, value: u32, when: u8, otherwise: u8) -> Self {
        Self {
            code,
            when,
            otherwise,
            value,
        }
    }

    fn bytes(self) -> [u8; 8] {
        let [c0, c1] = self.code.to_ne_bytes();
        let [v0, v1, v2, v3] = self.value.to_ne_bytes();
        [c0, c1, self.when, self.otherwise, v0, v1, v2, v3]
    }
}

const EQUAL: u16 = 0x15;
const GREATER: u16 = 0x25;
const HAS_BIT: u16 = 0x45;

/// The instructions in front of the filter, by architecture: ENOSYS for calls above every call that the rules name, and
/// for sockets by socketcall(2) where rules have conditions for them; other calls fall through.
fn front(profile: &Profile, rules: &[&Rule]) -> Vec<Step> {
    let open = matches!(
        profile.default,
        ScmpAction::Allow | ScmpAction::Log | ScmpAction::Trace(_)
    );
    let is_bounded = !open && profile.default != ScmpAction::Errno(libc::ENOSYS);
    let newest = |arch| is_bounded.then(|| newest_call(rules, arch));
    let functions = conditional_functions(rules);
    let mut arches = vec![ScmpArch::native()];
    arches.extend(&profile.arches);
    let mut sections: Vec<(u32, Vec<Step>)> = Vec::new();
    for arch in arches {
        let Some(audit) = audit_number(arch) else {
            continue;
        };
        if sections.iter().any(|(seen, _)| *seen == audit) {
            continue;
        }
        let mut section = match (audit, newest(arch)) {
            (_, None) => Vec::new(),
            (AUDIT_X86_64, Some(_)) => section_x86_64(
                newest_call(rules, ScmpArch::X8664),
                newest_call(rules, ScmpArch::X32),
            ),
            (_, Some(newest)) => section(newest),
        };
        if !functions.is_empty() {
            section.extend(without_socketcall(arch, &functions));
        }
        if !section.is_empty() {
            sections.push((audit, section));
        }
    }
    match sections.is_empty() {
        true => Vec::new(),
        false => join(sections),
    }
}

/// The functions of socketcall(2) that make sockets, with the calls that do the same. Source: linux/net.h.
const MAKING_SOCKETS: [(&str, u32); 2] = [("socket", 1), ("socketpair", 8)];

/// Those for which the rules tell sockets apart by the arguments of the call.
fn conditional_functions(rules: &[&Rule]) -> Vec<u32> {
    let is_conditional = |call: &str| {
        let mut named = rules
            .iter()
            .filter(|rule| rule.names.iter().any(|name| name == call))
            .peekable();
        named.peek().is_some() && named.all(|rule| !rule.conditions.is_empty())
    };
    MAKING_SOCKETS
        .into_iter()
        .filter_map(|(call, function)| is_conditional(call).then_some(function))
        .collect()
}

/// ENOSYS for these functions of socketcall(2), if `arch` has that: libraries then use socket(2). Its arguments are behind a
/// pointer, and libseccomp allows it whole where a rule allows some of socket(2).
fn without_socketcall(arch: ScmpArch, functions: &[u32]) -> Vec<Step> {
    const FIRST_ARGUMENT: u32 = 16;
    let known = ScmpSyscall::from_name_by_arch("socketcall", arch).ok();
    let Some(number) = known.and_then(|call| u32::try_from(call.as_raw_syscall()).ok()) else {
        return Vec::new();
    };
    // Two at most, so that the jumps are short.
    let count = functions.len() as u8;
    let mut steps = vec![
        Step::load(0),
        Step::jump(EQUAL, number, 0, count + 2),
        Step::load(FIRST_ARGUMENT),
    ];
    for (function, left) in functions.iter().zip((0..count).rev()) {
        let past = u8::from(left == 0);
        steps.push(Step::jump(EQUAL, *function, left, past));
    }
    steps.push(Step::return_enosys());
    steps
}

/// The largest number on `arch` of a call that the rules name; the largest of all numbers if they name none above 0.
fn newest_call(rules: &[&Rule], arch: ScmpArch) -> u32 {
    (rules.iter().flat_map(|rule| &rule.names))
        .filter_map(|name| ScmpSyscall::from_name_by_arch(name, arch).ok())
        // Negative numbers are calls that this architecture does not have.
        .filter_map(|call| u32::try_from(call.as_raw_syscall()).ok())
        .max()
        .filter(|&number| number > 0)
        .unwrap_or(u32::MAX)
}

/// The kernel's number of an architecture on which newer calls have larger numbers.
fn audit_number(arch: ScmpArch) -> Option<u32> {
    Some(match arch {
        ScmpArch::X8664 | ScmpArch::X32 => AUDIT_X86_64,
        ScmpArch::X86 => 0x4000_0003,
        ScmpArch::Aarch64 => 0xc000_00b7,
        ScmpArch::Arm => 0x4000_0028,
        ScmpArch::Riscv64 => 0xc000_00f3,
        ScmpArch::Ppc64Le => 0xc000_0015,
        _ => return None,
    })
}

fn section(newest: u32) -> Vec<Step> {
    vec![
        Step::load(0),
        Step::jump(GREATER, newest, 0, 1),
        Step::return_enosys(),
    ]
}

fn section_x86_64(newest: u32, newest_x32: u32) -> Vec<Step> {
    vec![
        Step::load(0),
        Step::jump(HAS_BIT, X32_BIT, 1, 0),
        Step::jump(GREATER, newest, 1, 2),
        Step::jump(GREATER, newest_x32, 0, 1),
        Step::return_enosys(),
    ]
}

/// Puts a test for its architecture before each section, and a jump to the filter after it.
fn join(sections: Vec<(u32, Vec<Step>)>) -> Vec<Step> {
    let mut left: usize = sections.iter().map(|(_, s)| s.len() + 2).sum();
    let mut steps = vec![Step::load(4)];
    for (audit, section) in sections {
        let own = section.len() + 1;
        left -= own + 1;
        steps.push(Step::jump(EQUAL, audit, 0, own as u8));
        steps.extend(section);
        steps.push(Step::jump_forward(left));
    }
    steps
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
pub(super) mod tests {
    use std::io::Read as _;
    use std::os::fd::AsRawFd as _;

    use super::*;

    /// A system call by number and its arguments.
    pub(in super::super) type Call = (libc::c_long, [u64; 3]);

    const ADMIN: u64 = 1 << 21;
    /// Stands for socketcall(2) of 32 bits.
    pub(in super::super) const SOCKETCALL: libc::c_long = -102;
    pub(in super::super) const CLONE3: libc::c_long = libc::SYS_clone3;

    /// Runs `calls` in a new process under `filter`. Each result is the call's return value or its negative errno.
    /// Fewer results than calls: the process was killed.
    pub(in super::super) fn under(filter: &[u8], flags: u32, calls: &[Call]) -> Vec<i64> {
        let mut steps: Vec<libc::sock_filter> = (filter.chunks_exact(8))
            .map(|s| libc::sock_filter {
                code: u16::from_ne_bytes([s[0], s[1]]),
                jt: s[2],
                jf: s[3],
                k: u32::from_ne_bytes([s[4], s[5], s[6], s[7]]),
            })
            .collect();
        let program = libc::sock_fprog {
            len: steps.len().try_into().unwrap(),
            filter: steps.as_mut_ptr(),
        };
        let (mut reader, writer) = std::io::pipe().unwrap();
        #[allow(
            unsafe_code,
            reason = "a filter cannot be removed, so it needs its own process"
        )]
        // SAFETY: after the fork the child only makes system calls on memory that exists already.
        let child = unsafe {
            let child = libc::fork();
            if child == 0 {
                in_child(&program, flags, calls, writer.as_raw_fd());
            }
            child
        };
        drop(writer);
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).unwrap();
        #[allow(unsafe_code, reason = "the child of a raw fork is reaped by hand")]
        // SAFETY: `child` is our own, and the status pointer is null.
        let reaped = unsafe { libc::waitpid(child, std::ptr::null_mut(), 0) };
        assert_eq!(reaped, child);
        (bytes.chunks_exact(8))
            .map(|b| i64::from_ne_bytes(b.try_into().unwrap()))
            .collect()
    }

    #[allow(unsafe_code, reason = "raw system calls are what is tested")]
    unsafe fn in_child(program: &libc::sock_fprog, flags: u32, calls: &[Call], out: i32) -> ! {
        // SAFETY: plain system calls whose pointers live; write and _exit end it.
        unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            let loaded = libc::syscall(libc::SYS_seccomp, 1, flags, std::ptr::from_ref(program));
            if loaded != 0 {
                libc::_exit(1);
            }
            for (number, arguments) in calls {
                let got = match *number {
                    SOCKETCALL => socketcall(arguments),
                    number => {
                        libc::syscall(number, arguments[0], arguments[1], arguments[2], 0, 0, 0)
                    }
                };
                let got = match (got, *number) {
                    (..0, SOCKETCALL) => got,
                    (..0, _) => -i64::from(*libc::__errno_location()),
                    _ => got,
                };
                libc::write(out, (&raw const got).cast(), 8);
            }
            libc::_exit(0)
        }
    }

    /// A socket as a program of 32 bits makes it.
    #[allow(unsafe_code, reason = "raw system calls are what is tested")]
    #[cfg(target_arch = "x86_64")]
    unsafe fn socketcall(arguments: &[u64; 3]) -> i64 {
        let result: i32;
        // SAFETY: the memory is below 4 GiB and never unmapped; the kernel reads three words of it, and changes no other
        // register than those that are named.
        unsafe {
            let (protection, flags) = (
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT,
            );
            let low = libc::mmap(std::ptr::null_mut(), 4096, protection, flags, -1, 0);
            low.cast::<[u32; 3]>().write(arguments.map(|a| a as u32));
            std::arch::asm!(
                "xchg rbx, {call}",
                "int 0x80",
                "xchg rbx, {call}",
                call = inout(reg) 1_u64 => _,
                inlateout("eax") 102 => result,
                in("rcx") low,
                out("r8") _, out("r9") _, out("r10") _, out("r11") _,
            );
        }
        i64::from(result)
    }

    fn by_default(capabilities: u64, calls: &[Call]) -> Vec<i64> {
        let profile = Profile::runtime_default();
        under(
            &profile.compile(capabilities).unwrap(),
            Profile::flags(Some(profile)),
            calls,
        )
    }

    fn by(json: &str, calls: &[Call]) -> Vec<i64> {
        let profile = Profile::parse(json.as_bytes()).unwrap();
        under(
            &profile.compile(0).unwrap(),
            Profile::flags(Some(&profile)),
            calls,
        )
    }

    pub(in super::super) fn call(number: libc::c_long, first: u64) -> Call {
        (number, [first, 0, 0])
    }

    pub(in super::super) const EPERM: i64 = -(libc::EPERM as i64);
    pub(in super::super) const ENOSYS: i64 = -(libc::ENOSYS as i64);
    const EFAULT: i64 = -(libc::EFAULT as i64);

    #[test]
    fn the_default_denies_calls_that_affect_the_node() {
        let answers = by_default(
            0,
            &[
                call(libc::SYS_getppid, 0),
                call(libc::SYS_unshare, libc::CLONE_NEWUSER as u64),
                call(libc::SYS_mount, 0),
                call(libc::SYS_io_uring_setup, 1),
                call(libc::SYS_keyctl, 0),
                call(libc::SYS_userfaultfd, 0),
                call(libc::SYS_bpf, 0),
                call(libc::SYS_chroot, 0),
                call(CLONE3, 0),
                call(libc::SYS_clone, libc::CLONE_NEWNET as u64),
                // Newer than every call that the profile names.
                call(900, 0),
            ],
        );
        assert_eq!(answers[0], i64::from(std::process::id()));
        assert_eq!(answers[1..8], [EPERM; 7]);
        assert_eq!(answers[8..], [ENOSYS, EPERM, ENOSYS]);
    }

    #[test]
    fn capabilities_allow_the_calls_that_need_them() {
        let bad = u64::MAX - 4095;
        let calls = [
            (libc::SYS_mount, [bad, bad, bad]),
            (CLONE3, [bad, 88, 0]),
            call(libc::SYS_chroot, bad),
            call(libc::SYS_syslog, 99),
        ];
        assert_eq!(by_default(0, &calls), [EPERM, ENOSYS, EPERM, EPERM]);
        let admin = by_default(ADMIN, &calls);
        assert_eq!(admin[..3], [EFAULT, EFAULT, EPERM]);
        assert_ne!(admin[3], EPERM);
        assert_eq!(by_default(1 << 18, &calls)[2], EFAULT);
    }

    #[test]
    fn personality_and_socket_are_allowed_by_value() {
        let socket = |family: u64| (libc::SYS_socket, [family, libc::SOCK_STREAM as u64, 0]);
        let answers = by_default(
            0,
            &[
                call(libc::SYS_personality, 0xffff_ffff),
                call(libc::SYS_personality, 0x20000),
                call(libc::SYS_personality, 1),
                socket(libc::AF_UNIX as u64),
                socket(libc::AF_VSOCK as u64),
                socket(libc::AF_ALG as u64),
                // The kernel reads only the lower 32 bits, and so must the filter.
                socket(1 << 32 | libc::AF_VSOCK as u64),
                socket(1 << 32 | libc::AF_ALG as u64),
            ],
        );
        assert!(answers[0] >= 0 && answers[1] >= 0, "{answers:?}");
        assert_eq!(answers[2], EPERM);
        assert!(answers[3] >= 0, "{answers:?}");
        assert_eq!(answers[4..], [EPERM; 4]);
    }

    /// Whatever number the next kernel gives to a family: asking for one loads its module.
    #[test]
    fn sockets_and_pairs_of_them_are_of_five_families_and_of_no_other() {
        const LISTED: [u64; 5] = [1, 2, 10, 16, 17];
        const STREAM: u64 = libc::SOCK_STREAM as u64;
        let families: Vec<u64> = (1..=64).chain([1 << 31, 1 << 32 | 21]).collect();
        let calls = |call| -> Vec<_> {
            let of = |family: &u64| (call, [*family, STREAM, 0]);
            families.iter().map(of).collect()
        };
        for call in [libc::SYS_socket, libc::SYS_socketpair] {
            let answers = by_default(0, &calls(call));
            for (family, answer) in families.iter().zip(answers) {
                let is_listed = LISTED.contains(family);
                // The kernel refuses packets for lack of CAP_NET_RAW, unless the test has it.
                let is_refused = answer == EPERM && *family != 17;
                assert_eq!(
                    is_refused, !is_listed,
                    "call {call}, family {family}: {answer}"
                );
            }
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_condition_on_sockets_holds_for_programs_of_32_bits_too() {
        let socket = |family: i32| (SOCKETCALL, [family as u64, libc::SOCK_STREAM as u64, 0]);
        let calls = [
            socket(libc::AF_VSOCK),
            socket(libc::AF_ALG),
            socket(libc::AF_UNIX),
        ];
        assert_eq!(by_default(0, &calls), [ENOSYS; 3]);
        let json = |rule: &str| {
            format!(
                r#"{{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86"],"syscalls":[
                    {{"names":["socketcall","write","exit_group","_exit","mmap","mmap2"],"action":"SCMP_ACT_ALLOW"}},
                    {{"names":["socket"],"action":"SCMP_ACT_ALLOW"{rule}}}]}}"#
            )
        };
        let only_unix = json(r#","args":[{"index":0,"value":1,"op":"SCMP_CMP_EQ"}]"#);
        assert_eq!(by(&only_unix, &calls), [ENOSYS; 3]);
        let denied = r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86"],
            "syscalls":[{"names":["socket"],"action":"SCMP_ACT_ERRNO","args":[{"index":0,"value":40,"op":"SCMP_CMP_EQ"}]}]}"#;
        assert_eq!(by(denied, &calls), [ENOSYS; 3]);
        // Whose author has no condition means none.
        let all = by(&json(""), &calls);
        assert!(all[2] >= 0, "{all:?}");
    }

    #[test]
    fn a_parsed_profile_compares_arguments_and_returns_its_errno() {
        let answers = by(
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
                {"names":["getppid","no_such_call"],"action":"SCMP_ACT_ERRNO","errnoRet":77},
                {"names":["kill"],"action":"SCMP_ACT_ERRNO","args":[
                    {"index":0,"value":0,"op":"SCMP_CMP_EQ"},{"index":1,"value":10,"op":"SCMP_CMP_GE"}]},
                {"names":["close"],"action":"SCMP_ACT_ERRNO","errnoRet":5,"args":[
                    {"index":0,"value":1000,"op":"SCMP_CMP_EQ"},{"index":0,"value":1001,"op":"SCMP_CMP_EQ"}]}]}"#,
            &[
                call(libc::SYS_getppid, 0),
                (libc::SYS_kill, [0, 9999, 0]),
                (libc::SYS_kill, [0, 0, 0]),
                call(libc::SYS_close, 1000),
                call(libc::SYS_close, 1001),
                call(libc::SYS_close, 1002),
                call(900, 0),
            ],
        );
        assert_eq!(
            answers,
            [-77, EPERM, 0, -5, -5, -i64::from(libc::EBADF), ENOSYS]
        );
    }

    #[test]
    fn a_kill_action_kills_but_newer_calls_get_enosys() {
        for action in ["SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS", "SCMP_ACT_TRAP"] {
            let answers = by(
                &format!(
                    r#"{{"defaultAction":"{action}","flags":["SECCOMP_FILTER_FLAG_LOG"],"syscalls":[
                        {{"names":["write","exit_group","getpid"],"action":"SCMP_ACT_ALLOW"}}]}}"#
                ),
                &[
                    call(libc::SYS_getpid, 0),
                    call(900, 0),
                    call(libc::SYS_getuid, 0),
                ],
            );
            assert_eq!(answers[1..], [ENOSYS], "{action}");
        }
    }

    #[test]
    fn profiles_that_cannot_be_applied_are_refused() {
        let refusal = |json: &str| {
            Profile::parse(json.as_bytes())
                .unwrap()
                .compile(0)
                .unwrap_err()
        };
        let foreign =
            refusal(r#"{"defaultAction":"SCMP_ACT_ERRNO","architectures":["SCMP_ARCH_S390X"]}"#);
        assert!(foreign.chain().contains("S390X"), "{foreign:?}");
        let many: Vec<String> = (0..4096)
            .map(|n| format!(r#"{{"names":["read"],"action":"SCMP_ACT_LOG","args":[{{"index":0,"value":{n},"op":"SCMP_CMP_EQ"}}]}}"#))
            .collect();
        let long = refusal(&format!(
            r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{}]}}"#,
            many.join(",")
        ));
        assert!(long.chain().contains("the kernel takes 4096"), "{long:?}");
    }
}
