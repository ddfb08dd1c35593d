//! The rpm, as rpm itself sees it: in a root with nothing but a shell, for the scriptlets.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use coracle_tests::scratch::Scratch;

use super::archive::{files, made_again};
use super::{built, run};

fn package(revision: u32) -> PathBuf {
    built("rpm", &format!("-{revision}.x86_64.rpm"))
}

/// Runs rpm on the root `root`. Debian's asks to be told that it is meant.
fn rpm(root: &Path, arguments: &[&str]) -> String {
    let root = root.to_str().unwrap();
    let mut all = vec!["--root", root, "--dbpath", "/var/lib/rpm", "--force-debian"];
    all.extend(arguments);
    run("rpm", &all)
}

#[test]
#[ignore = "needs the package: make test-rpm"]
fn the_rpm_has_the_files_modes_and_owners_that_it_should() {
    let (scratch, path) = (Scratch::new().unwrap(), package(1));
    let query = |format: &str| {
        let (path, database) = (path.to_str().unwrap(), scratch.dir().to_str().unwrap());
        let query = ["--query", "--package", "--queryformat", format, path];
        run("rpm", &[&["--dbpath", database], &query[..]].concat())
    };
    let lines = query(
        "[%{FILENAMES}\\t%{FILEMODES:perms}\\t%{FILEUSERNAME}:%{FILEGROUPNAME}\\t%{FILEFLAGS:fflags}\\n]",
    );
    let files: BTreeMap<&str, Vec<&str>> = lines
        .lines()
        .map(|line| {
            let mut fields = line.split('\t');
            (fields.next().unwrap(), fields.collect())
        })
        .collect();
    for (path, mode, flags) in [
        ("/usr/bin/coracle", "-rwxr-xr-x", ""),
        ("/etc/coracle/config.toml", "-rw-r--r--", "cn"),
        ("/etc/coracle/conf.d", "drwxr-xr-x", ""),
        ("/usr/lib/systemd/system/coracle.service", "-rw-r--r--", ""),
        ("/usr/share/man/man5/coracle.toml.5.gz", "-rw-r--r--", "d"),
        ("/usr/share/man/man8/coracle-serve.8.gz", "-rw-r--r--", "d"),
        ("/usr/share/licenses/coracle/LICENSE", "-rw-r--r--", "l"),
        ("/usr/share/doc/coracle/NOTICE", "-rw-r--r--", "d"),
        ("/usr/share/doc/coracle/sbom.cdx.json", "-rw-r--r--", "d"),
        ("/usr/share/zsh/site-functions/_coracle", "-rw-r--r--", ""),
    ] {
        let found = files.get(path).unwrap_or_else(|| panic!("no {path}"));
        assert_eq!(found[..], [mode, "root:root", flags], "{path}");
    }
    let strange = files.iter().filter(|(_, facts)| {
        let usual = ["-rw-r--r--", "drwxr-xr-x"].contains(&facts[0]);
        !usual || facts[1] != "root:root"
    });
    let strange: Vec<_> = strange.map(|(path, _)| *path).collect();
    assert_eq!(strange, ["/usr/bin/coracle"]);
    let requires = query("[%{REQUIRENAME}\\n]");
    assert!(requires.contains("libseccomp.so.2"), "{requires}");
    assert_eq!(query("%{BUILDHOST}"), "coracle");
}

#[test]
#[ignore = "needs the package: make test-rpm"]
fn the_rpm_is_installed_upgraded_and_removed_and_what_was_changed_stays() {
    let scratch = Scratch::new().unwrap();
    let root = scratch.dir().join("root");
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    std::os::unix::fs::symlink("busybox", root.join("bin/sh")).unwrap();
    let before = files(&root);
    let (older, newer) = (package(1), package(2));
    rpm(&root, &["--nodeps", "--install", older.to_str().unwrap()]);
    assert_eq!(rpm(&root, &["--nodeps", "--verify", "coracle"]), "");
    let program = root.join("usr/bin/coracle");
    let said = run(program.to_str().unwrap(), &["--version"]);
    assert!(said.starts_with("coracle "), "{said}");
    let unit = "etc/systemd/system/multi-user.target.wants/coracle.service";
    assert!(!root.join(unit).exists(), "it is enabled");

    let config = root.join("etc/coracle/config.toml");
    fs::write(&config, "# changed here\n").unwrap();
    let drop_in = root.join("etc/coracle/conf.d/50-site.toml");
    fs::write(&drop_in, "[log]\nlevel = \"warn\"\n").unwrap();
    let version = |root: &Path| rpm(root, &["--query", "--queryformat", "%{RELEASE}", "coracle"]);
    rpm(&root, &["--nodeps", "--upgrade", newer.to_str().unwrap()]);
    assert_eq!(version(&root), "2");
    rpm(
        &root,
        &[
            "--nodeps",
            "--upgrade",
            "--oldpackage",
            older.to_str().unwrap(),
        ],
    );
    assert_eq!(version(&root), "1");
    assert_eq!(fs::read_to_string(&config).unwrap(), "# changed here\n");

    rpm(&root, &["--nodeps", "--erase", "coracle"]);
    let left = files(&root).into_iter();
    let left: Vec<String> = left
        .filter(|file| !before.contains(file) && !file.0.starts_with("var/lib/rpm/"))
        .map(|(name, _)| name)
        .collect();
    let kept = [
        "etc/coracle/conf.d/50-site.toml",
        "etc/coracle/config.toml.rpmsave",
    ];
    assert_eq!(left, kept);
}

#[test]
#[ignore = "needs the package: make test-rpm"]
fn the_rpm_is_the_same_byte_by_byte_whoever_makes_it() {
    let scratch = Scratch::new().unwrap();
    let again = made_again("rpm", &scratch.dir().join("again"), &["1"]);
    let first = fs::read(package(1)).unwrap();
    assert!(first == fs::read(again).unwrap(), "they differ");
}
