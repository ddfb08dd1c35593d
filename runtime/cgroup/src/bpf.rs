//! The device policy of a cgroup v2: a `BPF_PROG_TYPE_CGROUP_DEVICE` program, assembled here and attached to the
//! cgroup. Called by: `v2`, and by `v1` on a node without a `devices` hierarchy. Calls: bpf(2), nothing else.
//! Invariants: the program ends in "deny"; a new program replaces the old one of a cgroup in one step, or is
//! attached before the old one is detached, so that a policy is always in force.
//! Not here: what the rules mean ([`super::devices`]).
//! Source: Documentation/admin-guide/cgroup-v2.rst "Device controller", include/uapi/linux/bpf.h.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use coracle_sys::bpf::{ALLOW_MULTI, Instruction, attach, attached, detach, load};

use super::devices::{Access, Node, Policy};
use super::error::Error;

/// `BPF_DEVCG_DEV_BLOCK` and `BPF_DEVCG_DEV_CHAR`.
const BLOCK: i32 = 1;
const CHAR: i32 = 2;
/// How many programs are kept for later containers with the same policy.
const MAX_LOADED: usize = 16;

/// Operations, with 64-bit operands unless the name says otherwise.
mod code {
    pub(super) const LOAD_WORD: u8 = 0x61;
    pub(super) const AND: u8 = 0x57;
    pub(super) const SHIFT_RIGHT: u8 = 0x77;
    pub(super) const SET: u8 = 0xb7;
    pub(super) const COPY: u8 = 0xbf;
    pub(super) const JUMP_UNLESS_EQUAL: u8 = 0x55;
    pub(super) const JUMP_UNLESS_EQUAL_32: u8 = 0x56;
    pub(super) const EXIT: u8 = 0x95;
}

/// The registers of the program: the kernel passes the request's address in 1 and reads the result from 0.
mod register {
    pub(super) const ANSWER: u8 = 0;
    pub(super) const REQUEST: u8 = 1;
    pub(super) const KIND: u8 = 2;
    pub(super) const ACCESS: u8 = 3;
    pub(super) const MAJOR: u8 = 4;
    pub(super) const MINOR: u8 = 5;
    pub(super) const SCRATCH: u8 = 6;
}

fn with_value(code: u8, target: u8, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: target,
        offset: 0,
        immediate,
    }
}

fn with_source(code: u8, target: u8, source: u8, offset: i16) -> Instruction {
    Instruction {
        code,
        registers: target | source << 4,
        offset,
        immediate: 0,
    }
}

fn answer(value: i32) -> [Instruction; 2] {
    [
        with_value(code::SET, register::ANSWER, value),
        with_value(code::EXIT, 0, 0),
    ]
}

/// The program for `nodes`: unpack `struct bpf_cgroup_dev_ctx`, allow what one node allows, deny the rest.
fn assemble<'a>(nodes: impl IntoIterator<Item = (&'a Node, &'a Access)>) -> Vec<Instruction> {
    let mut program = vec![
        with_source(code::LOAD_WORD, register::KIND, register::REQUEST, 0),
        with_source(code::COPY, register::ACCESS, register::KIND, 0),
        with_value(code::SHIFT_RIGHT, register::ACCESS, 16),
        with_value(code::AND, register::KIND, 0xffff),
        with_source(code::LOAD_WORD, register::MAJOR, register::REQUEST, 4),
        with_source(code::LOAD_WORD, register::MINOR, register::REQUEST, 8),
    ];
    for (node, access) in nodes {
        program.extend(allow(node, *access));
    }
    program.extend(answer(0));
    program
}

/// Returns 1 if the request is for `node` and for no more than `access`; else continues with the next block.
fn allow(node: &Node, access: Access) -> Vec<Instruction> {
    let kind = if node.is_block { BLOCK } else { CHAR };
    let mut block = vec![with_value(code::JUMP_UNLESS_EQUAL, register::KIND, kind)];
    if access != Access::ALL {
        let forbidden = (Access::ALL.0 & !access.0).cast_signed();
        block.push(with_source(
            code::COPY,
            register::SCRATCH,
            register::ACCESS,
            0,
        ));
        block.push(with_value(code::AND, register::SCRATCH, forbidden));
        block.push(with_value(code::JUMP_UNLESS_EQUAL, register::SCRATCH, 0));
    }
    for (register, number) in [(register::MAJOR, node.major), (register::MINOR, node.minor)] {
        let number = number.map(u32::cast_signed);
        block.extend(number.map(|n| with_value(code::JUMP_UNLESS_EQUAL_32, register, n)));
    }
    block.extend(answer(1));
    let end = block.len();
    for (at, instruction) in block.iter_mut().enumerate() {
        if matches!(
            instruction.code,
            code::JUMP_UNLESS_EQUAL | code::JUMP_UNLESS_EQUAL_32
        ) {
            // A block has at most eight instructions.
            instruction.offset = i16::try_from(end - at - 1).unwrap_or(i16::MAX);
        }
    }
    block
}

/// Loaded programs, the latest last. Containers with equal policies share one: loading takes five times as long as
/// attaching, and each program holds kernel memory of its own.
#[derive(Debug, Default)]
pub(super) struct Programs {
    loaded: Mutex<Vec<(Vec<Instruction>, Arc<OwnedFd>)>>,
}

impl Programs {
    /// The program that consists of `instructions`.
    fn get(&self, instructions: Vec<Instruction>) -> Result<Arc<OwnedFd>, Errno> {
        let lock = || self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let mut loaded = lock();
        if let Some(at) = loaded.iter().position(|(known, _)| *known == instructions) {
            let entry = loaded.remove(at);
            let program = Arc::clone(&entry.1);
            loaded.push(entry);
            return Ok(program);
        }
        drop(loaded);
        let program = Arc::new(load(&instructions)?);
        let mut loaded = lock();
        if loaded.len() >= MAX_LOADED {
            loaded.remove(0);
        }
        loaded.push((instructions, Arc::clone(&program)));
        Ok(program)
    }

    /// Makes `policy` the only device policy of the cgroup `dir` itself; those of its ancestors stay in force.
    /// Errors: the kernel has no device programs, or we lack CAP_BPF, CAP_NET_ADMIN or CAP_SYS_ADMIN.
    pub(super) fn apply(&self, dir: &Path, policy: &Policy) -> Result<(), Error> {
        let failed = |doing: &'static str| {
            move |errno: Errno| Error::io(format!("{doing} cgroup"), dir, errno.into())
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let cgroup = rustix::fs::open(dir, flags, Mode::empty()).map_err(failed("open"))?;
        let cgroup = cgroup.as_fd();
        let (old, old_flags) = attached(cgroup).map_err(failed("list the device programs of"))?;
        let Policy::Only(nodes) = policy else {
            return detach_all(cgroup, &old).map_err(failed("detach the device program of"));
        };
        let program = self
            .get(assemble(nodes))
            .map_err(failed("load a device program for"))?;
        replace(cgroup, program.as_fd(), &old, old_flags)
            .map_err(failed("attach a device program to"))
    }
}

/// Replaces the attached programs by `program`.
fn replace(
    cgroup: BorrowedFd,
    program: BorrowedFd,
    old: &[OwnedFd],
    old_flags: u32,
) -> Result<(), Errno> {
    match old {
        [only] if old_flags & ALLOW_MULTI != 0 => attach(cgroup, program, Some(only.as_fd())),
        // Attached without ALLOW_MULTI: two programs cannot be attached, even for a moment.
        [only] => {
            detach(cgroup, only.as_fd())?;
            attach(cgroup, program, None)
        }
        _ => {
            attach(cgroup, program, None)?;
            detach_all(cgroup, old)
        }
    }
}

fn detach_all(cgroup: BorrowedFd, programs: &[OwnedFd]) -> Result<(), Errno> {
    let mut programs = programs.iter();
    programs.try_for_each(|program| detach(cgroup, program.as_fd()))
}

#[cfg(test)]
mod tests {
    use super::super::devices::{DeviceClass, DeviceRule};
    use super::*;

    /// Runs `program` on a request, as the kernel would.
    fn run(program: &[Instruction], kind: i32, access: u32, number: (u32, u32)) -> u64 {
        let request = [access << 16 | kind.cast_unsigned(), number.0, number.1];
        let mut registers = [0_u64; 11];
        let mut at = 0;
        loop {
            let i = program[at];
            let (target, source) = (usize::from(i.registers & 15), usize::from(i.registers >> 4));
            let value = i64::from(i.immediate).cast_unsigned();
            let mut jump = false;
            match i.code {
                code::LOAD_WORD => {
                    assert_eq!(source, 1, "only the request is read");
                    let word = usize::try_from(i.offset / 4).unwrap_or(9);
                    registers[target] = u64::from(request[word]);
                }
                code::AND => registers[target] &= value,
                code::SHIFT_RIGHT => registers[target] >>= value,
                code::SET => registers[target] = value,
                code::COPY => registers[target] = registers[source],
                code::JUMP_UNLESS_EQUAL => jump = registers[target] != value,
                code::JUMP_UNLESS_EQUAL_32 => jump = registers[target] as u32 != value as u32,
                code::EXIT => return registers[0],
                other => panic!("{other:#x} is not an operation"),
            }
            at += 1 + if jump {
                usize::try_from(i.offset).unwrap_or(999)
            } else {
                0
            };
        }
    }

    fn is_allowed(
        rules: &[DeviceRule],
        kind: i32,
        access: u32,
        (major, minor): (u32, u32),
    ) -> bool {
        rules.iter().any(|rule| {
            let is_kind = match rule.kind {
                DeviceClass::Any => true,
                DeviceClass::Char => kind == CHAR,
                DeviceClass::Block => kind == BLOCK,
            };
            let granted =
                u32::from(rule.mknod) | u32::from(rule.read) << 1 | u32::from(rule.write) << 2;
            is_kind
                && rule.major.is_none_or(|number| number == major)
                && rule.minor.is_none_or(|number| number == minor)
                && access & !granted == 0
        })
    }

    #[test]
    fn the_program_implements_the_rules() {
        let mut rules = DeviceRule::defaults();
        rules.push(DeviceRule::new(DeviceClass::Block, Some(8), None, "r"));
        rules.push(DeviceRule::new(DeviceClass::Any, Some(10), Some(229), "rw"));
        rules.push(DeviceRule::new(
            DeviceClass::Char,
            Some(4095),
            Some(0xf_ffff),
            "w",
        ));
        let Policy::Only(nodes) = Policy::of(&rules) else {
            panic!("these rules do not allow everything")
        };
        let program = assemble(&nodes);
        let mut allowed = 0;
        for kind in [BLOCK, CHAR] {
            for access in 1..8 {
                for major in [0, 1, 5, 8, 10, 136, 4095] {
                    for minor in [0, 1, 2, 3, 5, 9, 229, 0xf_ffff] {
                        let expected = is_allowed(&rules, kind, access, (major, minor));
                        let answer = run(&program, kind, access, (major, minor));
                        assert_eq!(
                            answer,
                            u64::from(expected),
                            "{kind} {access} {major}:{minor}"
                        );
                        allowed += answer;
                    }
                }
            }
        }
        assert!(allowed > 100, "{allowed}");
    }

    #[test]
    fn no_rules_deny_all() {
        let program = assemble([]);
        assert_eq!(run(&program, CHAR, 1, (1, 3)), 0);
        assert_eq!(program.last().map(|last| last.code), Some(code::EXIT));
    }
}
