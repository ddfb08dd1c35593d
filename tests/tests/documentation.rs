//! What the documentation says of things that have a name in the source: links, annotations, errors, RPCs, handlers' keys.
//!
//! Settings and commands are compared where they are defined, in the shim's unit tests; series of metrics against a live
//! scrape, in the end-to-end tests.

#![allow(clippy::unwrap_used, reason = "tests fail by panicking")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(path: &str) -> String {
    fs::read_to_string(top().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The files below `directory` with this extension.
fn files(directory: &Path, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![directory.to_owned()];
    while let Some(path) = open.pop() {
        for entry in fs::read_dir(path).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|kind| kind == extension) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// Every page: those of docs, and those at the top.
fn pages() -> Vec<PathBuf> {
    let mut pages = files(&top().join("docs"), "md");
    pages.extend(["README.md", "CONTRIBUTING.md", "CHANGELOG.md"].map(|page| top().join(page)));
    pages
}

/// The lines of a page outside of fenced blocks.
fn prose(text: &str) -> impl Iterator<Item = &str> {
    let mut is_fenced = false;
    text.lines().filter(move |line| {
        let is_fence = line.starts_with("```");
        is_fenced ^= is_fence;
        !is_fenced && !is_fence
    })
}

/// What the heading is called in a link.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter_map(|c| match c {
        ' ' => Some('-'),
        '-' | '_' => Some(c),
        _ if c.is_alphanumeric() => Some(c.to_ascii_lowercase()),
        _ => None,
    });
    kept.collect()
}

fn anchors(page: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(page).unwrap();
    let headings = prose(&text).filter(|line| line.starts_with('#'));
    headings
        .map(|line| anchor(line.trim_start_matches('#')))
        .collect()
}

#[test]
fn every_relative_link_leads_somewhere() {
    let mut followed = 0;
    let mut broken = Vec::new();
    for page in pages() {
        let text = fs::read_to_string(&page).unwrap();
        for line in prose(&text) {
            for link in line.split("](").skip(1) {
                let link = link.split(')').next().unwrap();
                if link.contains("://") {
                    continue;
                }
                let (path, heading) = link.split_once('#').unwrap_or((link, ""));
                let target = match path {
                    "" => page.clone(),
                    path => page.parent().unwrap().join(path),
                };
                let is_there =
                    target.exists() && (heading.is_empty() || anchors(&target).contains(heading));
                if !is_there {
                    broken.push(format!("{}: {link}", page.display()));
                }
                followed += 1;
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
    assert!(followed > 100, "only {followed} links were found");
}

/// A page is found from the one that lists all.
#[test]
fn every_page_is_listed() {
    let listed =
        read("docs/README.md") + &read("docs/wasm/README.md") + &read("docs/decisions/README.md");
    for page in files(&top().join("docs"), "md") {
        let name = page.file_name().unwrap().to_str().unwrap();
        assert!(listed.contains(name), "no list has {}", page.display());
    }
}

#[test]
fn the_readme_is_short() {
    let lines = read("README.md").lines().count();
    assert!(lines <= 120, "README.md has {lines} lines");
}

/// The source without unit tests, each file with its strings in one line.
fn sources(folders: &[&str]) -> Vec<String> {
    let mut texts = Vec::new();
    for folder in folders {
        for path in files(&top().join(folder), "rs") {
            let text = fs::read_to_string(path).unwrap();
            let code = text.split("#[cfg(test)]").next().unwrap();
            let mut joined = String::new();
            for part in code.split("\\\n") {
                let part = if joined.is_empty() {
                    part
                } else {
                    part.trim_start()
                };
                joined.push_str(part);
            }
            texts.push(joined);
        }
    }
    texts
}

/// The names in the first cells of the page's tables that look like annotations.
fn annotations_on_the_page(page: &str) -> BTreeSet<String> {
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `"));
    let cells = rows.filter_map(|row| row.split(" | ").next());
    let names = cells
        .flat_map(|cell| cell.split('`'))
        .filter(|name| name.contains('/'));
    names.map(str::to_owned).collect()
}

#[test]
fn every_annotation_is_documented_and_no_other() {
    let mut read_by_code = BTreeSet::new();
    for source in sources(&["shim/cri/src"]) {
        for kind in ["Narrows(\"", "Bounded(\"", "Opens(\"", "OpensAll(\""] {
            for found in source.split(kind).skip(1) {
                let name = found.split('"').next().unwrap();
                let prefix = if kind.starts_with("OpensAll") {
                    "*"
                } else {
                    ""
                };
                read_by_code.insert(format!("{name}{prefix}"));
            }
        }
    }
    assert!(read_by_code.len() > 12, "{read_by_code:?}");
    for source in sources(&["shim/lifecycle/src"]) {
        for marker in ["KEYS: [&str; 2] = [", "ANNOTATION: &str = "] {
            let Some((_, listed)) = source.split_once(marker) else {
                continue;
            };
            let listed = listed.split(';').next().unwrap();
            let names = listed.split('"').skip(1).step_by(2);
            read_by_code.extend(names.filter(|name| name.contains('/')).map(str::to_owned));
        }
    }
    let page = annotations_on_the_page(&read("docs/reference/annotations.md"));
    assert_eq!(page, read_by_code);
}

/// The longest part of an error's text between words in capitals, which stand for what differs.
fn constant_part(text: &str) -> &str {
    let is_placeholder =
        |word: &str| word.len() > 2 && word.chars().all(|c| c.is_ascii_uppercase());
    let mut parts = vec![];
    let mut start = 0;
    for (at, word) in words(text) {
        if is_placeholder(word) && !text[..at].ends_with('$') {
            parts.push(&text[start..at]);
            start = at + word.len();
        }
    }
    parts.push(&text[start..]);
    let longest = parts.into_iter().max_by_key(|part| part.len()).unwrap();
    longest.trim_matches(|c: char| c == ' ' || "[]():".contains(c))
}

/// The words of a text with their places, letters only.
fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut at = 0;
    text.split(|c: char| !c.is_ascii_alphabetic())
        .map(move |word| {
            let here = at;
            at += word.len() + 1;
            (here, word)
        })
}

#[test]
fn documented_errors_are_those_of_the_source() {
    assert_eq!(
        constant_part("offer PORT to pod NAME, which NAME has"),
        ", which"
    );
    let sources = sources(&["images", "runtime", "shim"]);
    let page = read("docs/reference/errors.md");
    let mut looked_up = 0;
    for row in page.lines().filter_map(|line| line.strip_prefix("| `")) {
        let text = row.split('`').next().unwrap();
        let constant = constant_part(text);
        assert!(constant.len() > 5, "{text}: {constant:?} says too little");
        let is_there = sources.iter().any(|source| source.contains(constant));
        assert!(is_there, "no source has {constant:?} of {text:?}");
        looked_up += 1;
    }
    assert!(looked_up > 40, "only {looked_up} errors were looked up");
}

#[test]
fn every_rpc_is_in_the_coverage() {
    let page = read("docs/reference/cri-coverage.md");
    let protocol = read("proto/api.proto");
    let calls = protocol
        .lines()
        .filter_map(|line| line.trim().strip_prefix("rpc "));
    let mut named = 0;
    for call in calls.map(|call| call.split('(').next().unwrap()) {
        assert!(page.contains(&format!("`{call}`")), "{call} is missing");
        named += 1;
    }
    assert_eq!(named, 43);
}

#[test]
fn every_key_of_a_handler_is_documented() {
    let page = read("docs/reference/handlers.md");
    let config = read("shim/assets/config.toml");
    let mut named = 0;
    let mut is_handler = false;
    for line in config.lines() {
        if line.starts_with('[') {
            is_handler = line.starts_with("[handlers.");
        } else if let Some((key, _)) = line.split_once(" = ")
            && is_handler
            && !line.starts_with('#')
        {
            assert!(page.contains(&format!("`{key}`")), "{key} is missing");
            named += 1;
        }
    }
    assert!(named > 40, "only {named} keys were found");
}
