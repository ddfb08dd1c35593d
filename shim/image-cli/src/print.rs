//! What the commands print: a table or lines for people, JSON for scripts.
//!
//! Called by: the commands. Invariants: a reader that has closed its end is no error; what an image says of itself moves no
//! terminal, in JSON neither.
//! Must not know: the daemon.

use std::collections::BTreeMap;
use std::io::{self, Write as _};

use coracle_proto::archives::v1::ImportedImage;
use coracle_proto::runtime::v1 as cri;
use serde_json::{Value, json};

use crate::error::Error;

/// Digits of an id in a table.
const SHORT_ID: usize = 12;

/// Text for standard output.
#[derive(Default)]
pub(crate) struct Output(String);

impl Output {
    pub(crate) fn line(&mut self, text: &str) {
        self.0.push_str(text);
        self.0.push('\n');
    }

    pub(crate) fn json(&mut self, value: &Value) {
        self.line(&escaped(&format!("{value:#}")));
    }

    /// One line for each name of each image.
    pub(crate) fn table(&mut self, images: &[cri::Image]) {
        let mut rows = vec![["IMAGE", "ID", "SIZE", "PINNED"].map(str::to_owned)];
        for image in images {
            let id = image.id.trim_start_matches("sha256:");
            let id = id.get(..SHORT_ID).unwrap_or(id).to_owned();
            let names = if image.repo_tags.is_empty() {
                &image.repo_digests
            } else {
                &image.repo_tags
            };
            let none = ["<none>".to_owned()];
            let names = if names.is_empty() { &none[..] } else { names };
            for name in names {
                let pinned = if image.pinned { "yes" } else { "" };
                rows.push([
                    name.clone(),
                    id.clone(),
                    size(image.size),
                    pinned.to_owned(),
                ]);
            }
        }
        rows[1..].sort();
        let width = |column: usize| {
            rows.iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths = [width(0), width(1), width(2)];
        for [name, id, size, pinned] in &rows {
            let line = format!(
                "{name:0$}  {id:1$}  {size:2$}  {pinned}",
                widths[0], widths[1], widths[2]
            );
            self.line(line.trim_end());
        }
    }

    /// Writes it. Returns exit code 0. Errors: standard output is broken, but for a reader that left.
    pub(crate) fn print(self) -> Result<u8, Error> {
        let mut out = io::stdout().lock();
        match out.write_all(self.0.as_bytes()).and_then(|()| out.flush()) {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
                Err(Error::because("write to standard output", error))
            }
            _ => Ok(0),
        }
    }
}

/// The same JSON without the characters that a terminal obeys and JSON has no need to escape: those of control beyond
/// ASCII's first, and those that turn the direction of text (Unicode, UAX #9).
fn escaped(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for character in json.chars() {
        match character {
            // The only one between strings.
            '\n' => text.push('\n'),
            '\u{61c}'
            | '\u{200e}'
            | '\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}' => {
                text += &format!("\\u{:04x}", u32::from(character));
            }
            other if other.is_control() => text += &format!("\\u{:04x}", u32::from(other)),
            other => text.push(other),
        }
    }
    text
}

/// An image as `ls --json` has it.
pub(crate) fn image(image: &cri::Image) -> Value {
    json!({
        "id": image.id, "repoTags": image.repo_tags, "repoDigests": image.repo_digests,
        "size": image.size, "pinned": image.pinned,
    })
}

/// An imported image, as the same.
pub(crate) fn imported(image: &ImportedImage) -> Value {
    json!({
        "id": image.id, "repoTags": image.repo_tags, "repoDigests": image.repo_digests, "size": image.size,
    })
}

/// An image with all that its status says; `info` has JSON texts.
pub(crate) fn details(status: &cri::Image, info: &BTreeMap<String, String>) -> Value {
    let mut value = image(status);
    value["username"] = json!(status.username);
    value["uid"] = json!(status.uid.map(|uid| uid.value));
    let annotations = status.spec.as_ref().map(|spec| &spec.annotations);
    value["annotations"] = json!(annotations);
    for (key, text) in info {
        value[key] = serde_json::from_str(text).unwrap_or_else(|_| json!(text));
    }
    value
}

/// Bytes for people.
pub(crate) fn size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    let (mut value, mut unit) = (bytes as f64 / 1024.0, 0);
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        (value, unit) = (value / 1024.0, unit + 1);
    }
    format!("{value:.1} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_the_unit_that_fits() {
        for (bytes, text) in [
            (0, "0.0 KiB"),
            (1536, "1.5 KiB"),
            (3 << 20, "3.0 MiB"),
            (5 << 40, "5.0 TiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }

    #[test]
    fn json_moves_no_terminal_and_says_the_same() {
        let value = json!({"a\u{9b}31m": ["\u{202e}\u{7f}\u{1b}]0;x\u{7}", "\u{e4}\\ \n"]});
        let mut out = Output::default();
        out.json(&value);
        let is_plain = |c: char| c == '\n' || !c.is_control() && c != '\u{202e}';
        assert!(out.0.chars().all(is_plain), "{}", out.0);
        assert!(out.0.contains('\u{e4}') && out.0.contains("\\u009b31m"));
        assert_eq!(serde_json::from_str::<Value>(&out.0).ok(), Some(value));
    }

    #[test]
    fn a_table_has_a_line_for_each_name() {
        let image = |tags: &[&str], pinned| cri::Image {
            id: format!("sha256:{}", "ab".repeat(32)),
            repo_tags: tags.iter().map(|&tag| tag.to_owned()).collect(),
            size: 2048,
            pinned,
            ..Default::default()
        };
        let mut out = Output::default();
        out.table(&[image(&["r.io/b:1", "r.io/a:1"], true), image(&[], false)]);
        let lines: Vec<&str> = out.0.lines().collect();
        assert_eq!(
            lines,
            [
                "IMAGE     ID            SIZE     PINNED",
                "<none>    abababababab  2.0 KiB",
                "r.io/a:1  abababababab  2.0 KiB  yes",
                "r.io/b:1  abababababab  2.0 KiB  yes",
            ]
        );
    }
}
