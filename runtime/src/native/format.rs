//! Why the kernel does not execute a file, by its first bytes: what to do about it.
//!
//! Called once execve(2) has said ENOEXEC, in the finished jail. Invariant: a file that cannot be read is no error here.
//! Source: elf(5). Not here: what is executed.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

/// Machines that images are made for, by `e_machine`.
const MACHINES: [(u16, &str); 8] = [
    (3, "386"),
    (21, "ppc64le"),
    (22, "s390x"),
    (40, "arm"),
    (62, "amd64"),
    (183, "arm64"),
    (243, "riscv64"),
    (258, "loong64"),
];

/// One sentence on the file at `path`; `None` if nothing is known of it.
pub(super) fn hint(path: impl AsRef<Path>) -> Option<String> {
    let mut first = Vec::new();
    let file = File::open(path).ok()?;
    file.take(20).read_to_end(&mut first).ok()?;
    of(&first)
}

fn of(first: &[u8]) -> Option<String> {
    let own = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    match first {
        [0, b'a', b's', b'm', ..] => Some(
            "it is a WebAssembly module in an image for Linux: annotate the pod with module.wasm.image/variant=compat-smart"
                .to_owned(),
        ),
        [0x7f, b'E', b'L', b'F', _, order, .., low, high] if first.len() == 20 => {
            let machine = match order {
                2 => u16::from_be_bytes([*low, *high]),
                _ => u16::from_le_bytes([*low, *high]),
            };
            let known = MACHINES.iter().find(|(number, _)| *number == machine);
            let name = known.map_or_else(|| format!("machine {machine}"), |(_, name)| (*name).to_owned());
            (name != own).then(|| {
                format!("it is made for {name}, and this node is {own}: the image needs a variant for linux/{own}")
            })
        }
        [] => Some("it is empty".to_owned()),
        _ => Some("it is neither a program nor a script that begins with #!".to_owned()),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn each_format_has_its_sentence() {
        let elf = |machine: [u8; 2]| {
            let mut first = b"\x7fELF\x02\x01\x01".to_vec();
            first.resize(18, 0);
            first.extend(machine);
            of(&first)
        };
        assert!(elf([8, 0]).unwrap().contains("machine 8"));
        assert!(elf([21, 0]).unwrap().contains("made for ppc64le"));
        assert!(of(b"\0asm\x01").unwrap().contains("compat-smart"));
        assert!(of(b"echo").unwrap().contains("#!"));
        let own = if cfg!(target_arch = "x86_64") {
            62
        } else {
            183
        };
        if cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) {
            assert_eq!(elf([own, 0]), None);
        }
    }
}
