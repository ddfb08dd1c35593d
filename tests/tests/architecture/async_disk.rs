//! No async worker of the daemon waits for a disk: in async code of images and of the host, whatever touches a file is in a
//! closure that goes to a thread which may wait.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What touches a disk by its name alone.
const CALLS: [&str; 12] = [
    "tokio::fs",
    "fs::",
    "File::",
    "OpenOptions",
    "openat(",
    "openat2(",
    ".metadata()",
    ".exists()",
    ".is_dir()",
    ".is_file()",
    ".sync_all()",
    ".rewind()",
];
/// How a function says that it blocks.
const SAYS: [&str; 3] = ["Blocking.", "Blocks.", "Blocks on"];

/// Names of such functions that others have, too.
const SHARED: [&str; 4] = ["collect", "find", "reach", "remove"];
/// What waits for no disk, by file.
const NO_DISK: [(&str, &str); 1] = [
    // A cgroup: it is in the kernel's memory.
    ("ending.rs", ".exists()"),
];

/// The text of an async function or block, without the closures in it that take nothing or own what they use: those are for
/// other threads.
fn async_code(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("async ") {
        let rest = &text[at..];
        let is_code = ["async fn ", "async move {", "async {"]
            .iter()
            .any(|begin| rest.starts_with(begin));
        if let Some(open) = rest.find(['{', ';']).filter(|_| is_code)
            && rest[open..].starts_with('{')
        {
            found.push(without_closures(block(&rest[open..])));
        }
    }
    found
}

/// From an opening brace to the one that closes it.
fn block(text: &str) -> &str {
    let mut depth = 0;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' | b'(' | b'[' => depth += 1,
            b'}' | b')' | b']' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return &text[..=at];
        }
    }
    text
}

fn without_closures(text: &str) -> String {
    let (mut left, mut code) = (text, String::new());
    while let Some(at) = left.find('|') {
        let (before, rest) = left.split_at(at + 1);
        code.push_str(before);
        let said = before.trim_end_matches('|').trim_end();
        let (is_moved, has_none) = (said.ends_with("move"), rest.starts_with('|'));
        // `a || b` is none.
        let is_own = is_moved || has_none && said.ends_with(['(', '=', ',']);
        let arguments = rest.find('|').map_or(rest.len(), |end| end + 1);
        left = match (is_own, has_none) {
            (true, _) => &rest[arguments + expression(&rest[arguments..])..],
            (false, true) => &rest[1..],
            (false, false) => rest,
        };
    }
    code + left
}

/// Where an expression ends.
fn expression(text: &str) -> usize {
    let mut depth = 0;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' | b'(' | b'[' => depth += 1,
            b'}' | b')' | b']' if depth == 0 => return at,
            b'}' | b')' | b']' => depth -= 1,
            b',' | b';' if depth == 0 => return at,
            _ => {}
        }
    }
    text.len()
}

/// The code of a file, without its comments and its tests.
fn code(path: &Path) -> String {
    let text = std::fs::read_to_string(path).unwrap();
    let text = text.split("#[cfg(test)]\n#[allow").next().unwrap();
    let lines = text
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    lines.map(|line| format!("{line}\n")).collect()
}

/// The functions that say of themselves that they block.
fn blocking(path: &Path) -> BTreeSet<String> {
    let text = std::fs::read_to_string(path).unwrap();
    let (mut says, mut found) = (false, BTreeSet::new());
    for line in text.lines().map(str::trim_start) {
        if let Some(comment) = line.strip_prefix("///") {
            says |= SAYS.iter().any(|word| comment.contains(word));
        } else if let Some((_, name)) = line.split_once("fn ").filter(|_| says) {
            let end = name.find(['(', '<']).unwrap_or(name.len());
            found.insert(name[..end].to_owned());
            says = false;
        } else if !line.starts_with('#') {
            says = false;
        }
    }
    found
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() && name != "tests" {
            sources(&path, found);
        } else if name.ends_with(".rs") && name != "tests.rs" {
            found.push(path);
        }
    }
}

/// What the async code of a crate does that may wait for a disk, by file.
fn waits(dir: &Path) -> BTreeMap<String, BTreeSet<String>> {
    let mut files = Vec::new();
    sources(dir, &mut files);
    let blocking: BTreeSet<String> = files.iter().flat_map(|path| blocking(path)).collect();
    let mut found: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for path in &files {
        let name = path.strip_prefix(dir).unwrap().display().to_string();
        for code in async_code(&code(path)) {
            let by_name = CALLS.iter().filter(|call| code.contains(**call));
            let by_word = blocking.iter().filter(|name| is_called(&code, name));
            let by_word = by_word.map(String::as_str);
            let all = by_name
                .copied()
                .chain(by_word.filter(|name| !SHARED.contains(name)));
            for call in all.filter(|call| !NO_DISK.contains(&(&name, call))) {
                let calls = found.entry(name.clone()).or_default();
                calls.insert(call.to_owned());
            }
        }
    }
    found
}

/// Whether a method of this name is called, and is not one that is awaited.
fn is_called(code: &str, name: &str) -> bool {
    let call = format!(".{name}(");
    code.match_indices(&call).any(|(at, _)| {
        let arguments = &code[at + call.len() - 1..];
        let after = arguments[block(arguments).len()..].trim_start();
        !after.starts_with(".await")
    })
}

#[test]
fn no_async_code_of_images_and_host_touches_a_disk() {
    let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    for dir in ["images/src", "shim/host/src", "runtime/wasm/src/cache"] {
        let found = waits(&top.join(dir));
        assert!(found.is_empty(), "{dir}: {found:#?}");
    }
}

#[test]
fn what_waits_is_told_from_what_goes_to_another_thread() {
    let text = "
        async fn one(&self) -> u32 {
            let open = move || fs::read(&path);
            let read = spawn(\"read\", move || {
                fs::read_to_string(&path)
            });
            let is_there = a || b.exists();
            finish(move |file| file.metadata());
        }
        fn two() { fs::read() }
        async fn three() { work(|path| fs::read(path)).await }
        fn four(&self) { Box::pin(async move { File::open(x) }) }
        async fn five() { self.has(&blob); self.find(\"x\").await }
    ";
    let code = async_code(text);
    let has = |at: usize, what: &str| code[at].contains(what);
    assert_eq!(code.len(), 4);
    assert!(has(0, "b.exists()") && !has(0, "fs::") && !has(0, "metadata"));
    assert!(has(1, "fs::read") && has(2, "File::open"));
    assert!(is_called(&code[3], "has") && !is_called(&code[3], "find"));
}
