//! bpf(2) for the device programs of cgroups: load, attach, detach, list.
//!
//! Called by `cgroup`, which assembles the programs. Invariant: every new descriptor is owned at once.
//! Not here: what a program allows. Source: include/uapi/linux/bpf.h.

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;

const PROG_LOAD: u32 = 5;
const PROG_ATTACH: u32 = 8;
const PROG_DETACH: u32 = 9;
const PROG_GET_FD_BY_ID: u32 = 13;
const PROG_QUERY: u32 = 16;
const TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
/// The program is attached beside others of its cgroup.
pub const ALLOW_MULTI: u32 = 2;
const REPLACE: u32 = 4;
/// The kernel attaches no more than this to one cgroup.
const MOST_PROGRAMS: usize = 64;

// The layout of instructions and of addresses below is that of the machines we are built for.
const _: () = assert!(cfg!(target_endian = "little"));

/// One instruction, `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// The operation.
    pub code: u8,
    /// Destination in the lower four bits, source in the upper four.
    pub registers: u8,
    /// How far a jump or a load goes.
    pub offset: i16,
    /// The constant.
    pub immediate: i32,
}

/// The arguments of one bpf(2) call, `union bpf_attr`, as 32-bit words. Longer than any kernel's, because the kernel
/// may write beyond the length that it was passed; words that it does not know must be 0.
#[repr(C, align(8))]
struct Arguments([u32; 64]);

impl Arguments {
    fn new(words: &[u32]) -> Self {
        let mut arguments = [0; 64];
        arguments[..words.len()].copy_from_slice(words);
        Self(arguments)
    }

    /// Puts an address into the words `at` and `at + 1`.
    fn with_address<T>(mut self, at: usize, address: *const T) -> Self {
        let address = address as u64;
        self.0[at] = address as u32;
        self.0[at + 1] = (address >> 32) as u32;
        self
    }
}

/// # Safety
/// Addresses inside `arguments` must be valid for what `command` reads and writes through them.
unsafe fn bpf(command: u32, arguments: &mut Arguments) -> Result<i32, Errno> {
    // SAFETY: `arguments` is valid for reads and writes of its size, which is passed; the caller guarantees the
    // memory that it points to.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(arguments),
            size_of::<Arguments>(),
        )
    };
    match i32::try_from(result) {
        Ok(result) if result >= 0 => Ok(result),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)),
    }
}

fn number(fd: impl AsRawFd) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// # Safety
/// `fd` must be open and nobody else's.
unsafe fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: the caller guarantees exactly what is required.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Loads a device program. Errors: the kernel has no such programs, or its verifier refuses this one.
pub fn load(program: &[Instruction]) -> Result<OwnedFd, Errno> {
    // The kernel does not check the licence of device programs, but requires a string.
    let licence = c"Apache-2.0";
    let length = u32::try_from(program.len()).map_err(|_| Errno::TOOBIG)?;
    let mut arguments = Arguments::new(&[TYPE_CGROUP_DEVICE, length])
        .with_address(2, program.as_ptr())
        .with_address(4, licence.as_ptr());
    arguments.0[17] = ATTACH_CGROUP_DEVICE;
    // SAFETY: `program` holds `length` instructions and `licence` ends in 0; both outlive the call,
    // which only reads them. No log buffer is given.
    let fd = unsafe { bpf(PROG_LOAD, &mut arguments) }?;
    // SAFETY: the kernel made the descriptor for us just now.
    Ok(unsafe { owned(fd) })
}

/// Attaches `program` to `cgroup`, beside others or in the place of `old`. Errors: bpf(2) refuses.
pub fn attach(
    cgroup: BorrowedFd,
    program: BorrowedFd,
    old: Option<BorrowedFd>,
) -> Result<(), Errno> {
    let flags = ALLOW_MULTI | if old.is_some() { REPLACE } else { 0 };
    let (cgroup, program, old) = (number(cgroup), number(program), old.map_or(0, number));
    let words = [cgroup, program, ATTACH_CGROUP_DEVICE, flags, old];
    // SAFETY: the command takes numbers only.
    unsafe { bpf(PROG_ATTACH, &mut Arguments::new(&words)) }.map(drop)
}

/// Takes `program` off `cgroup`. Errors: bpf(2) refuses.
pub fn detach(cgroup: BorrowedFd, program: BorrowedFd) -> Result<(), Errno> {
    let words = [number(cgroup), number(program), ATTACH_CGROUP_DEVICE];
    // SAFETY: the command takes numbers only.
    unsafe { bpf(PROG_DETACH, &mut Arguments::new(&words)) }.map(drop)
}

/// The device programs of the cgroup itself, and the flags that they were attached with. Errors: bpf(2) refuses.
pub fn attached(cgroup: BorrowedFd) -> Result<(Vec<OwnedFd>, u32), Errno> {
    let mut ids = [0_u32; MOST_PROGRAMS];
    let mut arguments = Arguments::new(&[number(cgroup), ATTACH_CGROUP_DEVICE])
        .with_address(4, ids.as_mut_ptr().cast_const());
    arguments.0[6] = MOST_PROGRAMS as u32;
    // SAFETY: `ids` has room for the number of words that is passed, and is not touched meanwhile.
    unsafe { bpf(PROG_QUERY, &mut arguments) }?;
    let count = (arguments.0[6] as usize).min(MOST_PROGRAMS);
    let mut programs = Vec::with_capacity(count);
    for id in &ids[..count] {
        // SAFETY: the command takes numbers only.
        match unsafe { bpf(PROG_GET_FD_BY_ID, &mut Arguments::new(&[*id])) } {
            // SAFETY: the kernel made the descriptor for us just now.
            Ok(fd) => programs.push(unsafe { owned(fd) }),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok((programs, arguments.0[3]))
}
