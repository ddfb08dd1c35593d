//! Runs the tools on a temporary directory, without a jail.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use super::*;
use coracle_spec::{ProcessRow, WasmKind, Workload};

struct Output {
    out: String,
    err: String,
    failed: bool,
}

fn spec(directory: &Path) -> ContainerSpec {
    let text = serde_json::json!({
        "version": 1, "pod": "a".repeat(64), "id": "b".repeat(64),
        "workload": { "Wasm": {
            "kind": "module", "args": [], "env": [["HOME", "/"], ["A", "b c"]],
            "working_dir": directory, "stdin": false,
        } },
        "root": { "layers": [], "upper": "/u", "work": "/w", "readonly": false },
        "mounts": [{ "source": "/x", "target": directory, "readonly": true }],
        "identity": { "uid": 0, "gid": 0, "groups": [], "range": { "base": 1 << 30, "size": 65536 } },
        "cgroup_procs": [], "memory_limit_bytes": null, "oom_score_adj": 0, "spawn": "fork", "staging": "/s",
    });
    serde_json::from_value(text).unwrap()
}

fn run_tool(directory: &Path, tool: Tool, args: &[&str]) -> Output {
    let spec = spec(directory);
    let Workload::Wasm(wasm) = &spec.workload else {
        unreachable!("the spec above is Wasm's")
    };
    assert_eq!(wasm.kind, WasmKind::Module);
    let mut wasm = wasm.clone();
    wasm.args = std::iter::once(&"tool")
        .chain(args)
        .map(|arg| (*arg).to_owned())
        .collect();
    let processes = vec![ProcessRow {
        pid: 1,
        state: 'S',
        cpu_s: 61,
        command: "/app.wasm serve".to_owned(),
    }];
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut streams = Streams {
        out: &mut out,
        err: &mut err,
        failed: false,
    };
    work(&spec, &wasm, &Toolbox { tool, processes }, &mut streams).unwrap();
    let failed = streams.failed;
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Output {
        out: text(out),
        err: text(err),
        failed,
    }
}

fn directory(name: &str) -> PathBuf {
    let path = std::env::temp_dir().join(format!("coracle-toolbox-{}-{name}", std::process::id()));
    let _ = fs::remove_dir_all(&path);
    fs::create_dir_all(path.join("sub")).unwrap();
    fs::write(path.join("file"), "text\n").unwrap();
    fs::write(path.join(".hidden"), "").unwrap();
    fs::set_permissions(path.join("file"), fs::Permissions::from_mode(0o4754)).unwrap();
    symlink("file", path.join("link")).unwrap();
    path
}

#[test]
fn ls_shows_names_and_long_lines() {
    let dir = directory("ls");
    assert_eq!(run_tool(&dir, Tool::Ls, &[]).out, "file\nlink\nsub\n");
    assert_eq!(
        run_tool(&dir, Tool::Ls, &["-A1"]).out,
        ".hidden\nfile\nlink\nsub\n"
    );
    assert!(
        run_tool(&dir, Tool::Ls, &["-a"])
            .out
            .starts_with(".\n..\n.hidden\n")
    );
    let output = run_tool(&dir, Tool::Ls, &["-l", "file", "absent", "link"]);
    let lines: Vec<&str> = output.out.lines().collect();
    assert!(
        lines[0].starts_with("-rwsr-xr--    1 0     0              5 20"),
        "{}",
        lines[0]
    );
    assert!(
        lines[1].starts_with('l') && lines[1].ends_with("link -> file"),
        "{}",
        lines[1]
    );
    assert_eq!(output.err, "ls: absent: No such file or directory\n");
    assert!(output.failed && lines.len() == 2);
    let output = run_tool(&dir, Tool::Ls, &["sub", "file"]);
    assert_eq!(
        (output.out.as_str(), output.failed),
        ("file\n\nsub:\n", false)
    );
    assert_eq!(run_tool(&dir, Tool::Ls, &["-d", "sub"]).out, "sub\n");
    let output = run_tool(&dir, Tool::Ls, &["-z"]);
    assert!(
        output.failed && output.err.contains("-z") && output.err.contains("-laA1hd"),
        "{}",
        output.err
    );
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn cat_continues_after_a_file_it_cannot_read() {
    let dir = directory("cat");
    let output = run_tool(&dir, Tool::Cat, &["file", "sub", "--", "file"]);
    assert_eq!(output.out, "text\ntext\n");
    assert_eq!(output.err, "cat: sub: Is a directory\n");
    assert!(output.failed);
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn env_and_ps_print_the_environment_and_processes_of_the_spec() {
    let dir = directory("env");
    assert_eq!(run_tool(&dir, Tool::Env, &[]).out, "HOME=/\nA=b c\n");
    assert!(run_tool(&dir, Tool::Env, &["sh"]).failed);
    let output = run_tool(&dir, Tool::Ps, &["aux"]);
    assert!(
        output.out.is_empty()
            || output
                .out
                .ends_with("      1 S        1:01 /app.wasm serve\n"),
        "{}",
        output.out
    );
    assert_eq!(output.out.lines().count(), 2);
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn stat_and_df_show_files_and_space() {
    let dir = directory("stat");
    let output = run_tool(&dir, Tool::Stat, &["file"]);
    for part in [
        "  File: file\n",
        "  Size: 5 ",
        "regular file\n",
        "(4754/-rwsr-xr--)  Uid: 0  Gid: 0\n",
    ] {
        assert!(output.out.contains(part), "no {part:?} in {}", output.out);
    }
    assert!(
        run_tool(&dir, Tool::Stat, &["link"])
            .out
            .contains("File: link -> file\n")
    );
    assert!(
        run_tool(&dir, Tool::Stat, &["-L", "link"])
            .out
            .contains("regular file")
    );
    assert!(run_tool(&dir, Tool::Stat, &[]).failed);
    let output = run_tool(&dir, Tool::Df, &["-h"]);
    let ends: Vec<&str> = output
        .out
        .lines()
        .filter_map(|line| line.split(' ').next_back())
        .collect();
    assert_eq!(ends, ["on", "/", dir.to_str().unwrap()], "{}", output.out);
    fs::remove_dir_all(dir).unwrap();
}

#[test]
fn sizes_and_times_are_readable() {
    for (bytes, shown) in [
        (0, "0"),
        (1023, "1023"),
        (1024, "1.0K"),
        (1536, "1.5K"),
        (10 * 1024, "10K"),
        (1024 * 1024 - 1, "1.0M"),
        (5 << 30, "5.0G"),
        (u64::MAX, "1639P"),
    ] {
        assert_eq!(text::human(bytes), shown, "{bytes}");
    }
    assert_eq!(text::time(0), "1970-01-01 00:00:00");
    assert_eq!(text::time(951_782_399), "2000-02-28 23:59:59");
    assert_eq!(text::time(951_868_800), "2000-03-01 00:00:00");
    assert_eq!(text::time(-1), "1969-12-31 23:59:59");
    assert_eq!(text::time(1_795_249_864), "2026-11-21 08:31:04");
    // A layer may contain any time.
    assert_eq!(text::time(i64::MAX), i64::MAX.to_string());
    assert_eq!(text::time(i64::MIN), i64::MIN.to_string());
}

#[test]
fn ids_of_the_pod_are_translated_to_container_ids() {
    let identity = spec(Path::new("/")).identity;
    assert_eq!(inside(&identity, (1 << 30) + 1000), 1000);
    assert_eq!(inside(&identity, 65_534), 65_534);
    assert_eq!(inside(&identity, (1 << 30) + 65_536), (1 << 30) + 65_536);
}
