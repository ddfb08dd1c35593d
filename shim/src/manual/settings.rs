//! Reads the commented default configuration as a list of settings with what the comments say of them.
//!
//! Called by the parent module. Invariant: every line of the file ends up in the result; a unit test of the configuration
//! holds the file to having a comment above every key. Must not know: what a setting means.

/// A table of the file, or its beginning.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Section {
    /// The table's name, such as `images` or `handlers.coracle.http`; empty for the beginning of the file.
    pub name: String,
    /// What stands above the table's name, or at the head of the file.
    pub text: String,
    /// The table's keys, in the order of the file.
    pub settings: Vec<Setting>,
}

/// A key of a table.
#[derive(Debug, PartialEq)]
pub(super) struct Setting {
    /// The key without its table.
    pub key: String,
    /// The default, as TOML.
    pub default: String,
    /// The comment above it, as one line.
    pub text: String,
}

impl Section {
    /// The table's name in brackets, or a title for the beginning of the file.
    pub(super) fn heading(&self) -> String {
        if self.name.is_empty() {
            "THE FILE".to_owned()
        } else {
            format!("[{}]", self.name)
        }
    }
}

/// The tables of `text` in their order. A comment belongs to the key or table name that follows it; one that is followed by
/// an empty line to the table that follows, or at the head of the file to the file.
pub(super) fn parse(text: &str) -> Vec<Section> {
    let mut sections = vec![Section::default()];
    let mut comment = Vec::new();
    let mut above = String::new();
    for line in text.lines() {
        if let Some(said) = line.strip_prefix('#') {
            comment.push(said.trim());
        } else if let Some(name) = line
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'))
        {
            above = joined(&above, &mut comment);
            sections.push(Section {
                name: name.to_owned(),
                text: std::mem::take(&mut above),
                settings: Vec::new(),
            });
        } else if let Some((key, default)) = line.split_once(" = ") {
            let setting = Setting {
                key: key.to_owned(),
                default: default.to_owned(),
                text: joined("", &mut comment),
            };
            if let Some(section) = sections.last_mut() {
                section.settings.push(setting);
            }
        } else {
            above = joined(&above, &mut comment);
            let head = sections.first_mut().filter(|head| head.settings.is_empty());
            if let Some(head) = head {
                head.text = std::mem::take(&mut above);
            }
        }
    }
    sections
}

/// The lines as one, after what was there, and none left.
fn joined(before: &str, lines: &mut Vec<&str>) -> String {
    let mut text = before.to_owned();
    for line in lines.drain(..) {
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(line);
    }
    text
}
