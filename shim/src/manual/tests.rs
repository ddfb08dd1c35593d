use std::fmt::Write as _;
use std::path::PathBuf;

use super::*;

/// What stands at the head of each page.
const MADE: &str = "<!-- Made by `make reference` from the source; a test compares. -->";

/// The pages of the documentation that are made here, and their text.
fn pages() -> [(&'static str, String); 2] {
    [("cli.md", command_page()), ("config.md", config_page())]
}

fn command_page() -> String {
    let mut page = format!(
        "# Command line\n\n{MADE}\n\nAlso as man pages: `man coracle`, `man coracle-image-pull`. \
         `coracle completion bash` prints a completion script.\n"
    );
    describe(&command_line(), &mut page);
    page
}

fn describe(command: &Command, page: &mut String) {
    let name = command.get_bin_name().unwrap_or("coracle");
    let help = command.clone().render_long_help().to_string();
    let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
    write!(page, "\n## {name}\n\n```text\n{}\n```\n", lines.join("\n")).unwrap();
    for sub in command.get_subcommands() {
        describe(sub, page);
    }
}

fn config_page() -> String {
    let mut page = String::from("# Configuration\n\n");
    writeln!(page, "{MADE}\n").unwrap();
    writeln!(
        page,
        "Every setting with its default. `coracle config default` prints the same as a file, and `man coracle.toml` shows it."
    )
    .unwrap();
    for section in settings::parse(DEFAULT_TEXT) {
        let settings::Section { text, settings, .. } = &section;
        writeln!(page, "\n## {}\n", section.heading()).unwrap();
        if !text.is_empty() {
            writeln!(page, "{}\n", linked(text)).unwrap();
        }
        for setting in settings {
            let (key, default) = (&setting.key, &setting.default);
            writeln!(page, "- **`{key}`** `{default}`: {}", linked(&setting.text)).unwrap();
        }
    }
    page
}

/// The text in Markdown: pages of the documentation become links, and asterisks stay what they are.
fn linked(text: &str) -> String {
    let word = |word: &str| {
        let inner = word.trim_matches(|c: char| "().,;".contains(c));
        match inner.strip_prefix("docs/") {
            Some(page) => word.replace(inner, &format!("[{inner}](../{page})")),
            None => word.replace('*', "\\*").replace('<', "\\<"),
        }
    };
    text.split(' ').map(word).collect::<Vec<_>>().join(" ")
}

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

#[test]
fn reference_pages_are_those_of_this_source() {
    for (name, text) in pages() {
        let path = docs().join("reference").join(name);
        if std::env::var_os("CORACLE_WRITE_REFERENCE").is_some() {
            fs::write(&path, &text).unwrap();
        }
        let there = fs::read_to_string(&path).unwrap_or_default();
        let differs = there
            .lines()
            .zip(text.lines())
            .find(|(old, new)| old != new);
        assert!(
            there == text,
            "docs/reference/{name} is not that of this source, run `make reference`: {differs:?}"
        );
    }
}

#[test]
fn pages_that_the_configuration_names_exist() {
    let mut named = 0;
    for word in DEFAULT_TEXT.split_whitespace() {
        let word = word.trim_matches(|c: char| "().,;:".contains(c));
        if word.starts_with("docs/") {
            assert!(docs().join("..").join(word).exists(), "{word} is not there");
            named += 1;
        }
    }
    assert!(named > 5, "only {named} pages are named");
}

#[test]
fn every_setting_is_read_with_its_comment() {
    let sections = settings::parse(DEFAULT_TEXT);
    let lines = DEFAULT_TEXT.lines();
    let keys = lines.filter(|line| !line.starts_with('#') && line.contains(" = "));
    let read: usize = sections.iter().map(|section| section.settings.len()).sum();
    assert_eq!(keys.count(), read);
    assert!(!sections[0].text.is_empty());
    for section in &sections {
        for setting in &section.settings {
            assert!(!setting.text.is_empty(), "{setting:?}");
        }
    }
}

#[test]
fn hidden_commands_are_in_no_page_and_no_completion() {
    let directory = crate::scratch::Scratch::new("man-pages");
    write_pages(&directory.0).unwrap();
    let pages: Vec<String> = fs::read_dir(&directory.0)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    for page in [
        "coracle.8",
        "coracle-serve.8",
        "coracle-image-pull.8",
        "coracle.toml.5",
    ] {
        assert!(pages.iter().any(|there| there == page), "{page}: {pages:?}");
    }
    let main = fs::read_to_string(directory.0.join("coracle.8")).unwrap();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut command_line(), "coracle", &mut script);
        let script = String::from_utf8(script).unwrap();
        assert!(script.contains("serve"), "{shell}");
        for hidden in ["spawner", "unpacker", "failpoints"] {
            assert!(!script.contains(hidden), "{shell} completes {hidden}");
            assert!(!main.contains(hidden), "coracle.8 has {hidden}");
            assert!(!pages.iter().any(|page| page.contains(hidden)), "{pages:?}");
        }
    }
}
