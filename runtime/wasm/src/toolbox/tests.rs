//! Runs the tools on a temporary directory, without a jail.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use tempfile::TempDir;

use super::*;
use coracle_spec::{ProcessRow, WasmKind, Workload};

struct Output {
    out: String,
    err: String,
    failed: bool,
    code: i32,
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
        code: None,
    };
    let toolbox = Toolbox {
        tool,
        processes,
        ..Toolbox::default()
    };
    work(&spec, &wasm, &toolbox, &mut streams).unwrap();
    let code = streams.code.unwrap_or(i32::from(streams.failed));
    let failed = streams.failed;
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Output {
        out: text(out),
        err: text(err),
        failed,
        code,
    }
}

/// A directory with some files, removed when it is dropped.
fn directory() -> TempDir {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path();
    fs::create_dir_all(path.join("sub")).unwrap();
    fs::write(path.join("file"), "text\n").unwrap();
    fs::write(path.join(".hidden"), "").unwrap();
    fs::set_permissions(path.join("file"), fs::Permissions::from_mode(0o4754)).unwrap();
    symlink("file", path.join("link")).unwrap();
    temp
}

#[test]
fn ls_shows_names_and_long_lines() {
    let temp = directory();
    let dir = temp.path();
    assert_eq!(run_tool(dir, Tool::Ls, &[]).out, "file\nlink\nsub\n");
    assert_eq!(
        run_tool(dir, Tool::Ls, &["-A1"]).out,
        ".hidden\nfile\nlink\nsub\n"
    );
    assert!(
        run_tool(dir, Tool::Ls, &["-a"])
            .out
            .starts_with(".\n..\n.hidden\n")
    );
    let output = run_tool(dir, Tool::Ls, &["-l", "file", "absent", "link"]);
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
    let output = run_tool(dir, Tool::Ls, &["sub", "file"]);
    assert_eq!(
        (output.out.as_str(), output.failed),
        ("file\n\nsub:\n", false)
    );
    assert_eq!(run_tool(dir, Tool::Ls, &["-d", "sub"]).out, "sub\n");
    let output = run_tool(dir, Tool::Ls, &["-z"]);
    assert!(
        output.failed && output.err.contains("-z") && output.err.contains("-laA1hd"),
        "{}",
        output.err
    );
}

#[test]
fn cat_continues_after_a_file_it_cannot_read() {
    let temp = directory();
    let dir = temp.path();
    let output = run_tool(dir, Tool::Cat, &["file", "sub", "--", "file"]);
    assert_eq!(output.out, "text\ntext\n");
    assert_eq!(output.err, "cat: sub: Is a directory\n");
    assert!(output.failed);
}

#[test]
fn env_and_ps_print_the_environment_and_processes_of_the_spec() {
    let temp = directory();
    let dir = temp.path();
    assert_eq!(run_tool(dir, Tool::Env, &[]).out, "HOME=/\nA=b c\n");
    assert!(run_tool(dir, Tool::Env, &["sh"]).failed);
    let output = run_tool(dir, Tool::Ps, &["aux"]);
    assert!(
        output.out.is_empty()
            || output
                .out
                .ends_with("      1 S        1:01 /app.wasm serve\n"),
        "{}",
        output.out
    );
    assert_eq!(output.out.lines().count(), 2);
}

#[test]
fn stat_and_df_show_files_and_space() {
    let temp = directory();
    let dir = temp.path();
    let output = run_tool(dir, Tool::Stat, &["file"]);
    for part in [
        "  File: file\n",
        "  Size: 5 ",
        "regular file\n",
        "(4754/-rwsr-xr--)  Uid: 0  Gid: 0\n",
    ] {
        assert!(output.out.contains(part), "no {part:?} in {}", output.out);
    }
    assert!(
        run_tool(dir, Tool::Stat, &["link"])
            .out
            .contains("File: link -> file\n")
    );
    assert!(
        run_tool(dir, Tool::Stat, &["-L", "link"])
            .out
            .contains("regular file")
    );
    assert!(run_tool(dir, Tool::Stat, &[]).failed);
    let output = run_tool(dir, Tool::Df, &["-h"]);
    let ends: Vec<&str> = output
        .out
        .lines()
        .filter_map(|line| line.split(' ').next_back())
        .collect();
    assert_eq!(ends, ["on", "/", dir.to_str().unwrap()], "{}", output.out);
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

/// Runs a tool with these words, split at spaces.
fn say(dir: &Path, tool: Tool, args: &str) -> Output {
    let args: Vec<&str> = args.split(' ').filter(|arg| !arg.is_empty()).collect();
    run_tool(dir, tool, &args)
}

#[test]
fn head_tail_wc_and_grep_read_files() {
    let temp = directory();
    let dir = temp.path();
    let lines: String = (1..=20).map(|number| format!("line {number}\n")).collect();
    fs::write(dir.join("lines"), &lines).unwrap();
    assert_eq!(say(dir, Tool::Head, "-n 2 lines").out, "line 1\nline 2\n");
    assert_eq!(say(dir, Tool::Head, "-2 lines").out, "line 1\nline 2\n");
    assert_eq!(say(dir, Tool::Head, "lines").out.lines().count(), 10);
    assert_eq!(say(dir, Tool::Head, "-c4 lines").out, "line");
    assert_eq!(say(dir, Tool::Tail, "-n2 lines").out, "line 19\nline 20\n");
    assert_eq!(say(dir, Tool::Tail, "-c 5 lines").out, "e 20\n");
    assert_eq!(say(dir, Tool::Tail, "-n 0 lines").out, "");
    let both = say(dir, Tool::Head, "-n1 lines file").out;
    assert_eq!(both, "==> lines <==\nline 1\n\n==> file <==\ntext\n");
    assert_eq!(say(dir, Tool::Wc, "-l lines").out, "     20 lines\n");
    let all = say(dir, Tool::Wc, "lines file").out;
    assert!(all.ends_with("     21      41     156 total\n"), "{all}");
    let found = say(dir, Tool::Grep, "-n 1$ lines");
    assert_eq!(
        (found.out.as_str(), found.code),
        ("1:line 1\n11:line 11\n", 0)
    );
    assert_eq!(say(dir, Tool::Grep, "-ci LINE lines absent").code, 0);
    assert_eq!(say(dir, Tool::Grep, "nothing lines").code, 1);
    assert_eq!(say(dir, Tool::Grep, "x absent").code, 2);
    assert_eq!(say(dir, Tool::Grep, "[a-z] lines").code, 2);
    let odd = say(dir, Tool::Tail, "-f lines");
    assert!(odd.failed && odd.err.contains("-f"), "{}", odd.err);
}

#[test]
fn find_goes_down_and_follows_no_link() {
    let temp = directory();
    let dir = temp.path();
    symlink("..", dir.join("sub/up")).unwrap();
    let all = say(dir, Tool::Find, "");
    assert_eq!(all.out, ".\n./.hidden\n./file\n./link\n./sub\n./sub/up\n");
    assert_eq!(say(dir, Tool::Find, "-type d").out, ".\n./sub\n");
    assert_eq!(say(dir, Tool::Find, ". -name *i*e -type f").out, "./file\n");
    assert_eq!(say(dir, Tool::Find, "sub -maxdepth 0").out, "sub\n");
    assert!(say(dir, Tool::Find, ". -delete").failed);
}

#[test]
fn echo_and_test_answer() {
    let temp = directory();
    let dir = temp.path();
    assert_eq!(say(dir, Tool::Echo, "a b").out, "a b\n");
    assert_eq!(say(dir, Tool::Echo, "-n a").out, "a");
    for (args, code) in [
        ("-f file", 0),
        ("-d file", 1),
        ("-e absent", 1),
        ("-L link", 0),
        ("! -e absent", 0),
        ("a = a", 0),
        ("a != a", 1),
        ("10 -gt 9", 0),
        ("10 -gt x", 2),
        ("! a = b", 0),
        ("word", 0),
        ("", 1),
        ("a b c d", 2),
    ] {
        assert_eq!(say(dir, Tool::Test, args).code, code, "{args:?}");
    }
    assert!(say(dir, Tool::Sleep, "1x").failed && !say(dir, Tool::Sleep, "0.01s").failed);
}

#[test]
fn a_message_is_said_on_standard_error_with_its_code() {
    let temp = directory();
    let dir = temp.path();
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let mut streams = Streams {
        out: &mut out,
        err: &mut err,
        failed: false,
        code: None,
    };
    let spec = spec(dir);
    let Workload::Wasm(wasm) = &spec.workload else {
        unreachable!("the spec above is Wasm's")
    };
    let message = Toolbox::message(127, "nothing of that name".to_owned());
    work(&spec, wasm, &message, &mut streams).unwrap();
    assert_eq!(streams.code, Some(127));
    assert_eq!(
        (out.len(), err.as_slice()),
        (0, &b"nothing of that name\n"[..])
    );
}
