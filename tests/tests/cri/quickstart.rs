//! docs/quickstart/function.md as a reader follows it: its files are written, its commands run, by one shell.
//!
//! A block ```` ```sh ```` is commands, a block with a second word on its first line is the file of that name, and any other
//! is left alone. Of the languages, each a `###`, one at a time is chosen. A daemon, a registry and crictl are there, as
//! the document asks for.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use coracle_tests::daemon::Daemon;
use coracle_tests::tools;

use crate::site::{daemon, images};

fn repository() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap().to_owned()
}

/// One fenced block.
struct Block {
    /// The heading of level 3 above it, empty below one of level 2.
    language: String,
    /// The rest of the line that opens it: `sh`, `python app.py`.
    info: String,
    text: String,
}

fn blocks(document: &str) -> Vec<Block> {
    let (mut blocks, mut language, mut open) = (Vec::new(), String::new(), None::<Block>);
    for line in document.lines() {
        match (&mut open, line.strip_prefix("```")) {
            (Some(_), Some(_)) => blocks.extend(open.take()),
            (Some(block), None) => block.text.extend([line, "\n"]),
            (None, Some(info)) => {
                open = Some(Block {
                    language: language.clone(),
                    info: info.to_owned(),
                    text: String::new(),
                });
            }
            (None, None) => {
                if let Some(heading) = line.strip_prefix("### ") {
                    heading.clone_into(&mut language);
                } else if line.starts_with("## ") {
                    language.clear();
                }
            }
        }
    }
    blocks
}

/// Writes the files and runs the commands that a reader of `language` would; what they printed.
fn follow(daemon: &Daemon, document: &str, language: &str) -> String {
    let directory = daemon.scratch().dir().join(format!("reader-{language}"));
    fs::create_dir(&directory).unwrap();
    let mut script = String::from("set -eu\n");
    let chosen = |block: &Block| block.language.is_empty() || block.language == language;
    for block in blocks(document).into_iter().filter(chosen) {
        match block.info.split_once(' ') {
            Some((_, name)) => {
                let path = directory.join(name);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, block.text).unwrap();
            }
            None if block.info == "sh" => script += &block.text,
            None => {}
        }
    }
    let crictl = tools::build("crictl.sh", &[]).unwrap();
    // What buildah keeps is below the reader's directory, not with the machine's images.
    let storage = directory.join("storage.conf");
    let below = directory.display();
    fs::write(
        &storage,
        format!("[storage]\ndriver = \"vfs\"\ngraphroot = \"{below}/graph\"\nrunroot = \"{below}/run\"\n"),
    )
    .unwrap();
    let path = std::env::var("PATH").unwrap();
    let run = Command::new("bash")
        .arg("-c")
        .arg(&script)
        .current_dir(&directory)
        .env(
            "PATH",
            format!("{}:{path}", crictl.parent().unwrap().display()),
        )
        .env("REGISTRY", images().registry.host())
        .env("CORACLE", repository())
        .env("CONTAINERS_STORAGE_CONF", storage)
        .env(
            "CONTAINER_RUNTIME_ENDPOINT",
            format!("unix://{}", daemon.socket().display()),
        )
        .env(
            "IMAGE_SERVICE_ENDPOINT",
            format!("unix://{}", daemon.socket().display()),
        )
        .env_remove("CARGO_TARGET_DIR")
        .output()
        .unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&run.stdout),
        String::from_utf8_lossy(&run.stderr),
    );
    assert!(
        run.status.success(),
        "{language}: {}\n{out}\n{err}",
        run.status
    );
    out.into_owned()
}

async fn is_followed(language: &str) {
    let document = repository().join("docs/quickstart/function.md");
    let document = fs::read_to_string(document).unwrap();
    let daemon = daemon().await;
    let printed = follow(&daemon, &document, language);
    assert!(
        printed.contains("\nhello from a function\n"),
        "{language}: {printed}"
    );
    daemon.finish().await.unwrap();
}

#[tokio::test]
async fn a_reader_of_the_quickstart_has_a_function_in_python() {
    is_followed("Python").await;
}

#[tokio::test]
#[ignore = "needs Node.js and npm: make quickstart"]
async fn a_reader_of_the_quickstart_has_a_function_in_javascript() {
    is_followed("JavaScript").await;
}

#[tokio::test]
#[ignore = "needs rustup's target wasm32-wasip2: make quickstart"]
async fn a_reader_of_the_quickstart_has_a_function_in_rust() {
    is_followed("Rust").await;
}
