//! The archive for nodes without dpkg and rpm.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use coracle_tests::builds;
use coracle_tests::scratch::Scratch;

use super::{built, run};

/// The files below `directory`, by their paths there, with their modes.
pub fn files(directory: &Path) -> Vec<(String, u32)> {
    let mut found = Vec::new();
    let mut waiting = vec![directory.to_owned()];
    while let Some(next) = waiting.pop() {
        for entry in fs::read_dir(next).unwrap().map(|entry| entry.unwrap()) {
            let (path, facts) = (entry.path(), entry.metadata().unwrap());
            if facts.is_dir() {
                waiting.push(path);
                continue;
            }
            let name = path.strip_prefix(directory).unwrap().to_str().unwrap();
            found.push((name.to_owned(), facts.permissions().mode() & 0o7777));
        }
    }
    found.sort();
    found
}

/// Has `script` of .ci make a package again, by somebody with another mask, into `directory`; the arguments follow.
pub fn made_again(script: &str, directory: &Path, rest: &[&str]) -> PathBuf {
    let checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let release = builds::target_dir().unwrap().join("release");
    let mut command = Command::new("sh");
    command.args(["-c", "umask 077; exec \"$@\"", "sh"]);
    command.arg(checkout.join(".ci").join(script));
    let made = command.args([&release, directory]).args(rest).output();
    let made = made.unwrap();
    let said = String::from_utf8_lossy(&made.stderr);
    assert!(made.status.success(), "{said}");
    PathBuf::from(String::from_utf8_lossy(&made.stdout).trim())
}

#[test]
#[ignore = "needs the archive: make test-tarball"]
fn the_archive_installs_a_program_that_runs_and_keeps_the_configuration_that_is_there() {
    let scratch = Scratch::new().unwrap();
    let archive = built("tarball", ".tar.gz");
    let (unpacked, root) = (scratch.dir().join("unpacked"), scratch.dir().join("root"));
    fs::create_dir(&unpacked).unwrap();
    let unpack = [
        "-xzf",
        archive.to_str().unwrap(),
        "-C",
        unpacked.to_str().unwrap(),
    ];
    run("tar", &unpack);
    let name = archive.file_name().unwrap().to_str().unwrap();
    let own = unpacked.join(name.trim_end_matches(".tar.gz"));
    for file in [
        "LICENSE",
        "usr/share/doc/coracle/NOTICE",
        "usr/share/doc/coracle/sbom.cdx.json",
    ] {
        assert!(fs::metadata(own.join(file)).unwrap().len() > 1000, "{file}");
    }
    let install = || {
        let mut install = Command::new(own.join("install.sh"));
        let output = install.arg("/opt/coracle").env("DESTDIR", &root).output();
        let output = output.unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(install().contains("/opt/coracle/bin/coracle check"));
    let installed = files(&root);
    let shipped = files(&own);
    let inside: Vec<(String, u32)> = shipped
        .iter()
        .filter_map(|(name, mode)| {
            let moved = name
                .strip_prefix("usr/")
                .map(|rest| format!("opt/coracle/{rest}"));
            let stays = name.starts_with("etc/").then(|| name.clone());
            Some((moved.or(stays)?, *mode))
        })
        .collect();
    let mut inside = inside;
    inside.sort();
    assert_eq!(installed, inside);
    for (name, mode) in &installed {
        let expected = if name.ends_with("bin/coracle") {
            0o755
        } else {
            0o644
        };
        assert_eq!(*mode, expected, "{name}");
    }

    let program = root.join("opt/coracle/bin/coracle");
    let program = program.to_str().unwrap();
    assert!(run(program, &["--version"]).starts_with("coracle "));
    let config = root.join("etc/coracle/config.toml");
    run(program, &["config", "check", config.to_str().unwrap()]);
    // What it finds is this machine's; that it looked is seen by what it prints.
    let check = Command::new(program).args(["check", "--json"]).output();
    let check: serde_json::Value = serde_json::from_slice(&check.unwrap().stdout).unwrap();
    assert!(check.to_string().contains("overlayfs"), "{check}");
    let unit = root.join("opt/coracle/lib/systemd/system/coracle.service");
    let unit = fs::read_to_string(unit).unwrap();
    assert!(
        unit.contains("ExecStart=/opt/coracle/bin/coracle serve"),
        "{unit}"
    );
    assert!(
        unit.contains("ExecReload=/opt/coracle/bin/coracle reload"),
        "{unit}"
    );

    fs::write(&config, "# changed here\n").unwrap();
    assert!(install().contains("kept "));
    assert_eq!(fs::read_to_string(&config).unwrap(), "# changed here\n");
}

#[test]
#[ignore = "needs the archive: make test-tarball"]
fn the_archive_is_the_same_byte_by_byte_whoever_makes_it() {
    let scratch = Scratch::new().unwrap();
    let again = made_again("tarball", &scratch.dir().join("again"), &[]);
    let first = fs::read(built("tarball", ".tar.gz")).unwrap();
    assert!(first == fs::read(again).unwrap(), "they differ");
}
