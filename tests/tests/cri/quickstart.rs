//! Pages of docs/quickstart as a reader follows them: their files are written, their commands run, by one shell.
//!
//! A block ```` ```sh ```` is commands, a block with a second word on its first line is the file of that name, and any other
//! is left alone. Of the languages, each a `###`, one at a time is chosen. A daemon, a registry and crictl are there, as
//! the document asks for.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use coracle_tests::daemon::{self, Daemon};
use coracle_tests::scratch::Scratch;
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

/// Writes the files that a reader of `language` would, and returns the commands. A file with an absolute path goes below
/// `directory`, too.
fn prepare(directory: &Path, document: &str, language: &str) -> String {
    let mut script = String::from("set -eu\n");
    let chosen = |block: &Block| block.language.is_empty() || block.language == language;
    for block in blocks(document).into_iter().filter(chosen) {
        match block.info.split_once(' ') {
            Some((_, name)) => {
                let path = directory.join(name.trim_start_matches('/'));
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, block.text).unwrap();
            }
            None if block.info == "sh" => script += &block.text,
            None => {}
        }
    }
    script
}

/// Puts a `coracle` on the reader's path that finds the daemon of this test, as one on a node finds the node's.
fn install_command(daemon: &Daemon, directory: &Path) -> PathBuf {
    let programs = directory.join("programs");
    fs::create_dir(&programs).unwrap();
    let (binary, socket) = (daemon::binary().unwrap(), daemon.socket());
    let run = socket.parent().unwrap().display();
    let text = format!(
        "#!/bin/bash\ncase $1 in\nimage) exec {0} \"$@\" --socket {1} ;;\nwhy) exec {0} \"$@\" --run {run} ;;\nesac\n\
         exec {0} \"$@\"\n",
        binary.display(),
        socket.display()
    );
    let command = programs.join("coracle");
    tools::install(&command, text.as_bytes()).unwrap();
    programs
}

/// Runs a command that has to succeed; what it printed.
fn run(name: &str, command: &mut Command) -> String {
    let run = command.output().unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&run.stdout),
        String::from_utf8_lossy(&run.stderr),
    );
    assert!(run.status.success(), "{name}: {}\n{out}\n{err}", run.status);
    out.into_owned()
}

/// Writes the files and runs the commands that a reader of `language` would; what they printed.
fn follow(daemon: &Daemon, document: &str, language: &str) -> String {
    let directory = daemon.scratch().dir().join(format!("reader-{language}"));
    fs::create_dir(&directory).unwrap();
    let script = prepare(&directory, document, language);
    let crictl = tools::build("crictl.sh", &[]).unwrap();
    let programs = install_command(daemon, &directory);
    // What buildah keeps is below the reader's directory, not with the machine's images.
    let storage = directory.join("storage.conf");
    let below = directory.display();
    fs::write(
        &storage,
        format!("[storage]\ndriver = \"vfs\"\ngraphroot = \"{below}/graph\"\nrunroot = \"{below}/run\"\n"),
    )
    .unwrap();
    let paths =
        [crictl.parent().unwrap(), programs.as_path()].map(|path| path.display().to_string());
    let path = format!("{}:{}", paths.join(":"), std::env::var("PATH").unwrap());
    let socket = format!("unix://{}", daemon.socket().display());
    let mut command = Command::new("bash");
    command
        .arg("-c")
        .arg(&script)
        .current_dir(&directory)
        .env("PATH", path)
        .env("REGISTRY", images().registry.host())
        .env("CORACLE", repository())
        .env("CONTAINERS_STORAGE_CONF", storage)
        .env("CONTAINER_RUNTIME_ENDPOINT", &socket)
        .env("IMAGE_SERVICE_ENDPOINT", &socket)
        .env_remove("CARGO_TARGET_DIR");
    run(language, &mut command)
}

fn page(name: &str) -> String {
    let path = repository().join("docs/quickstart").join(name);
    fs::read_to_string(path).unwrap()
}

async fn is_followed(language: &str) {
    let daemon = daemon().await;
    let printed = follow(&daemon, &page("function.md"), language);
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

#[tokio::test]
async fn a_reader_of_the_page_on_a_node_runs_a_pod_by_hand() {
    let daemon = daemon().await;
    let printed = follow(&daemon, &page("node.md"), "");
    for line in ["hello from a pod", "default/hello"] {
        assert!(printed.contains(line), "{line}: {printed}");
    }
    daemon.finish().await.unwrap();
}

/// Nodes before Coracle: the files of the kubelet, of which some name a socket and one node has none that does.
const KUBELETS: [&[(&str, &str)]; 3] = [
    &[
        (
            "config.yaml",
            "kind: KubeletConfiguration\ncontainerRuntimeEndpoint: unix:///var/run/containerd/containerd.sock\n",
        ),
        (
            "instance-config.yaml",
            "containerRuntimeEndpoint: unix:///run/containerd/containerd.sock\n",
        ),
    ],
    &[
        ("config.yaml", "kind: KubeletConfiguration\n"),
        (
            "kubeadm-flags.env",
            "KUBELET_KUBEADM_ARGS=\"--container-runtime-endpoint=unix:///run/containerd/containerd.sock --v=2\"\n",
        ),
    ],
    &[("config.yaml", "kind: KubeletConfiguration\n")],
];

#[test]
fn a_reader_of_the_page_on_containerd_moves_the_kubelet_there_and_back() {
    let scratch = Scratch::new().unwrap();
    let document = page("containerd.md");
    for (number, files) in KUBELETS.into_iter().enumerate() {
        let directory = scratch.dir().join(format!("kubelet-{number}"));
        fs::create_dir(&directory).unwrap();
        for (name, text) in files {
            fs::write(directory.join(name), text).unwrap();
        }
        let walk = |heading: &str| {
            let mut command = Command::new("bash");
            let script = prepare(&directory, &document, heading);
            command.arg("-c").arg(script).env("KUBELET", &directory);
            run(heading, &mut command)
        };
        let there = walk("To Coracle");
        assert!(
            there.contains("unix:///run/coracle/coracle.sock"),
            "{there}"
        );
        for (name, _) in files {
            let text = fs::read_to_string(directory.join(name)).unwrap();
            assert!(!text.contains("containerd"), "{name}: {text}");
        }
        walk("Back to containerd");
        assert_eq!(fs::read_dir(&directory).unwrap().count(), files.len());
        for (name, text) in files {
            assert_eq!(&fs::read_to_string(directory.join(name)).unwrap(), text);
        }
    }
}
