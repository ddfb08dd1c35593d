//! Modules beside each other do not import each other in a circle: what both sides name is a leaf of its own. A module and
//! those inside it may, they are one concern.
//!
//! Paths are read from the text, without tests: `use` trees, and paths in code that begin at a module.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Circles that are there, by the sources of their crate: modules, and why they are not apart.
const LISTED: [(&str, &str, &str); 12] = [
    (
        "runtime/src",
        "keeper::container_process::{exit,idle,init,wasm}",
        "init chooses the last step, and every last step ends through init",
    ),
    (
        "runtime/wasm/src",
        "host http network random surroundings",
        "host has the state for which the others implement the engine's traits",
    ),
    (
        "runtime/wasm/src",
        "server::{answers,connections,requests}",
        "one server: a connection counts its requests, and an answer ends one",
    ),
    (
        "shim/admin/src",
        "client dump",
        "dump is one of the commands of the client",
    ),
    (
        "shim/admin/src",
        "explain server status tasks",
        "one service: the server's methods are in the files of their subjects",
    ),
    (
        "shim/host/src",
        "linux relabel",
        "labels of a container are those of its volumes",
    ),
    (
        "shim/lifecycle/src",
        "driver::{plugins,requests}",
        "methods of one driver",
    ),
    (
        "shim/lifecycle/src",
        "recover unrecovered",
        "a pod that is not recovered is recovered later",
    ),
    (
        "shim/streaming/src",
        "connection send spdy",
        "one wire: frames of either protocol go through one queue",
    ),
    ("tests/src", "component guests", "both build guests"),
    ("tests/src", "procs scratch", "a scratch ends its processes"),
    (
        "tests/src",
        "power::{churn,guest}",
        "one program in the guest",
    ),
];

#[test]
fn modules_import_each_other_in_no_circle_but_those_listed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut found = BTreeSet::new();
    for source in crates(root) {
        let name = source.strip_prefix(root).unwrap().display().to_string();
        for circle in circles_of(&source) {
            found.insert((name.clone(), circle));
        }
    }
    let listed = LISTED.map(|(source, circle, _)| (source.to_owned(), circle.to_owned()));
    assert_eq!(found, BTreeSet::from(listed));
}

/// The folders of sources of all crates.
fn crates(root: &Path) -> Vec<PathBuf> {
    let (mut found, mut open) = (Vec::new(), vec![root.to_owned()]);
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && name == "src" && dir.join("Cargo.toml").exists() {
                found.push(path);
            } else if path.is_dir() && name != "target" && !name.starts_with('.') {
                open.push(path);
            }
        }
    }
    found
}

type Edges = BTreeMap<String, BTreeSet<String>>;

/// The circles among the modules of a crate, or of one of its modules: names with spaces, behind what they all begin with.
fn circles_of(source: &Path) -> Vec<String> {
    let modules = modules(source);
    let edges: Vec<(&String, String)> = modules
        .iter()
        .flat_map(|(from, text)| {
            let targets = imported(from, text, &modules);
            targets.into_iter().map(move |to| (from, to))
        })
        .collect();
    let above = |module: &String| {
        module
            .rsplit_once("::")
            .map_or(String::new(), |(above, _)| above.to_owned())
    };
    let parents: BTreeSet<String> = modules.keys().map(above).collect();
    let mut circles = Vec::new();
    for parent in parents {
        let mut siblings = Edges::new();
        for (from, to) in &edges {
            if let (Some(from), Some(to)) = (child_of(&parent, from), child_of(&parent, to))
                && from != to
            {
                siblings.entry(from).or_default().insert(to);
            }
        }
        circles.extend(shown(&parent, &siblings));
    }
    circles
}

/// The module directly inside `parent` that has `module` in it.
fn child_of(parent: &str, module: &str) -> Option<String> {
    let rest = match parent {
        "" => module,
        parent => module.strip_prefix(parent)?.strip_prefix("::")?,
    };
    let name = rest.split("::").next()?;
    (!name.is_empty()).then(|| name.to_owned())
}

fn shown(parent: &str, edges: &Edges) -> BTreeSet<String> {
    let all: BTreeMap<&String, BTreeSet<String>> = edges
        .keys()
        .map(|from| (from, reached_from(from, edges)))
        .collect();
    let circle = |from: &String| -> Vec<String> {
        let back = |to: &&String| all.get(to).is_some_and(|reached| reached.contains(from));
        all[from].iter().filter(back).cloned().collect()
    };
    let circles = edges.keys().map(circle);
    let circles = circles.filter(|circle| circle.len() > 1);
    circles
        .map(|circle| match parent {
            "" => circle.join(" "),
            parent => format!("{parent}::{{{}}}", circle.join(",")),
        })
        .collect()
}

fn reached_from(from: &str, edges: &Edges) -> BTreeSet<String> {
    let (mut reached, mut open) = (BTreeSet::new(), vec![from.to_owned()]);
    while let Some(module) = open.pop() {
        for next in edges.get(&module).into_iter().flatten() {
            if reached.insert(next.clone()) {
                open.push(next.clone());
            }
        }
    }
    reached
}

/// The code of each module, without comments, texts and tests; "" is that of the crate.
fn modules(source: &Path) -> BTreeMap<String, String> {
    let (mut found, mut open) = (BTreeMap::new(), vec![source.to_owned()]);
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(source).unwrap().display().to_string();
            let is_test = name.ends_with("tests.rs") || name.contains("tests/");
            if path.is_dir() {
                open.push(path);
            } else if let Some(name) = name.strip_suffix(".rs").filter(|_| !is_test) {
                let module = match name {
                    "lib" | "main" => String::new(),
                    name => name.replace('/', "::"),
                };
                found.insert(module, code(&std::fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found
}

fn code(text: &str) -> String {
    let text = text
        .split("#[cfg(test)]\n#[allow")
        .next()
        .unwrap_or_default();
    let text = text
        .split("#[cfg(test)]\nmod tests")
        .next()
        .unwrap_or_default();
    let lines = text
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

/// The other modules that the code of one names.
fn imported(from: &str, text: &str, modules: &BTreeMap<String, String>) -> BTreeSet<String> {
    let mut paths = Vec::new();
    for statement in text.split("use ").skip(1) {
        let tree = statement.split(';').next().unwrap_or_default();
        let tree: String = tree.split_whitespace().collect::<Vec<_>>().join(" ");
        expand("", &tree, &mut paths);
    }
    let is_of_path = |c: char| c.is_alphanumeric() || c == '_' || c == ':';
    let words = text.split(|c| !is_of_path(c));
    paths.extend(words.filter(|word| word.contains("::")).map(str::to_owned));
    let targets = paths
        .iter()
        .filter_map(|path| module_of(from, path, modules));
    targets.filter(|to| to != from && !to.is_empty()).collect()
}

/// The paths of a `use` tree.
fn expand(prefix: &str, tree: &str, paths: &mut Vec<String>) {
    let Some((before, rest)) = tree.split_once('{') else {
        let path = tree.split(" as ").next().unwrap_or_default();
        paths.push(format!("{prefix}{}", path.replace(' ', "")));
        return;
    };
    let prefix = format!("{prefix}{}", before.replace(' ', ""));
    let (mut depth, mut part) = (0, String::new());
    for c in rest.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            _ => {}
        }
        if c == ',' && depth == 0 {
            expand(&prefix, &std::mem::take(&mut part), paths);
        } else {
            part.push(c);
        }
    }
    expand(&prefix, &part, paths);
}

/// The innermost module of a path that is written in `from`.
fn module_of(from: &str, path: &str, modules: &BTreeMap<String, String>) -> Option<String> {
    let mut whole: Vec<&str> = from.split("::").filter(|name| !name.is_empty()).collect();
    for (at, name) in path.split("::").enumerate() {
        match name {
            "crate" if at == 0 => whole.clear(),
            "self" => {}
            "super" => drop(whole.pop()),
            name => whole.push(name),
        }
    }
    loop {
        let module = whole.join("::");
        if module.is_empty() || modules.contains_key(&module) {
            return (!module.is_empty()).then_some(module);
        }
        whole.pop();
    }
}
