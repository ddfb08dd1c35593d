//! The positions of keys in a configuration file, and suggestions for unknown keys.
//!
//! Called by: [`super::load`], which parses the text into a [`Document`], looks for unknown keys before serde sees the
//! text, and later looks up the line of anything that is wrong.
//! Invariant: the known keys are those of the serialised default; there is no second list to maintain.
//! Must not know: files, the meaning of any value.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A parsed file with the positions of its keys.
pub(super) struct Document<'t> {
    text: &'t str,
    table: Spanned<DeTable<'t>>,
}

/// An unknown key.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct UnknownKey {
    /// Line of the key, from 1.
    pub line: usize,
    /// The key with its tables: `images.plan_http`.
    pub key: String,
    /// The setting that was probably meant, in the same form.
    pub meant: Option<String>,
}

impl<'t> Document<'t> {
    /// Parses `text`; the error is the parser's own, with a span.
    pub(super) fn parse(text: &'t str) -> Result<Self, toml::de::Error> {
        Ok(Self {
            text,
            table: DeTable::parse(text)?,
        })
    }

    /// The first key, in the order of the text, that `known` does not contain.
    pub(super) fn first_unknown(&self, known: &toml::Table) -> Option<UnknownKey> {
        let mut found = Vec::new();
        unknown(self.table.get_ref(), known, "", &mut found);
        let (start, key, near) = found.into_iter().min_by_key(|(start, ..)| *start)?;
        let meant = near.or_else(|| elsewhere(known, &key));
        Some(UnknownKey {
            line: line_at(self.text, start),
            key,
            meant,
        })
    }

    /// The names of the tables in `table` that set `key`.
    pub(super) fn tables_with(&self, table: &str, key: &str) -> Vec<String> {
        let sets = |value: &Spanned<DeValue<'_>>| {
            let inner = value.get_ref().as_table();
            inner.is_some_and(|inner| inner.iter().any(|(name, _)| name.get_ref() == key))
        };
        let mut tables = self.table.get_ref().iter();
        let found = tables.find(|(name, _)| name.get_ref() == table);
        let inner = found.and_then(|(_, value)| value.get_ref().as_table());
        let inner = inner.into_iter().flatten();
        let inner = inner.filter(|(_, value)| sets(value));
        inner.map(|(name, _)| name.get_ref().to_string()).collect()
    }

    /// Line of a dotted key, from 1; `None` when the file does not set it.
    pub(super) fn line_of(&self, key: &str) -> Option<usize> {
        let mut table = self.table.get_ref();
        let mut parts = key.split('.').peekable();
        while let Some(part) = parts.next() {
            let (name, value) = table.iter().find(|(name, _)| name.get_ref() == part)?;
            if parts.peek().is_none() {
                return Some(line_at(self.text, name.span().start));
            }
            table = value.get_ref().as_table()?;
        }
        None
    }

    /// The dotted key whose value covers `span`, for messages about a wrong type.
    pub(super) fn key_at(&self, span: &Range<usize>) -> Option<String> {
        covering(self.table.get_ref(), span, "")
    }
}

/// The line, from 1, of the byte at `offset` in `text`.
pub(super) fn line_at(text: &str, offset: usize) -> usize {
    let before = &text.as_bytes()[..offset.min(text.len())];
    before.iter().filter(|byte| **byte == b'\n').count() + 1
}

type Found = (usize, String, Option<String>);

fn unknown(table: &DeTable<'_>, known: &toml::Table, prefix: &str, found: &mut Vec<Found>) {
    for (name, value) in table {
        let key = format!("{prefix}{}", name.get_ref());
        match (known.get(name.get_ref().as_ref()), value.get_ref()) {
            (None, _) => {
                let near =
                    nearest(name.get_ref(), known.keys()).map(|near| format!("{prefix}{near}"));
                found.push((name.span().start, key, near));
            }
            // A table that is empty by default takes keys of the operator's own.
            (Some(toml::Value::Table(inner)), DeValue::Table(_)) if inner.is_empty() => {}
            (Some(toml::Value::Table(inner)), DeValue::Table(table)) => {
                unknown(table, inner, &format!("{key}."), found);
            }
            (Some(_), _) => {}
        }
    }
}

fn covering(table: &DeTable<'_>, span: &Range<usize>, prefix: &str) -> Option<String> {
    table.iter().find_map(|(name, value)| {
        let key = format!("{prefix}{}", name.get_ref());
        if let DeValue::Table(inner) = value.get_ref() {
            return covering(inner, span, &format!("{key}."));
        }
        let value_span = value.span();
        (value_span.start <= span.start && span.end <= value_span.end).then_some(key)
    })
}

/// A setting of the same name in another table: the key is in the wrong table.
fn elsewhere(known: &toml::Table, key: &str) -> Option<String> {
    let name = key.rsplit('.').next()?;
    dotted(known, "")
        .into_iter()
        .find(|full| full.rsplit('.').next() == Some(name))
}

/// Every setting of `table`, with its tables: `images.plain_http`.
pub(super) fn dotted(table: &toml::Table, prefix: &str) -> Vec<String> {
    let mut keys = Vec::new();
    for (name, value) in table {
        match value {
            toml::Value::Table(inner) if !inner.is_empty() => {
                keys.extend(dotted(inner, &format!("{prefix}{name}.")));
            }
            _ => keys.push(format!("{prefix}{name}")),
        }
    }
    keys
}

/// A dotted key as TOML has it: parts that are not bare are quoted. No part has a dot or a quote.
pub(super) fn quoted(key: &str) -> String {
    let is_bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let part = |part: &str| match part.chars().all(is_bare) {
        true => part.to_owned(),
        false => format!("\"{part}\""),
    };
    key.split('.').map(part).collect::<Vec<_>>().join(".")
}

/// The value of a dotted key.
pub(super) fn value<'v>(table: &'v toml::Table, key: &str) -> Option<&'v toml::Value> {
    match key.split_once('.') {
        Some((first, rest)) => value(table.get(first)?.as_table()?, rest),
        None => table.get(key),
    }
}

/// The nearest candidate, if at most a third of the key's letters differ (or two, for swapped letters).
fn nearest<'k>(key: &str, candidates: impl Iterator<Item = &'k String>) -> Option<&'k String> {
    let letters = key.chars().count();
    let limit = (letters / 3).max(2).min(letters.saturating_sub(1));
    candidates
        .map(|candidate| (distance(key, candidate), candidate))
        .filter(|(edits, _)| *edits <= limit)
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, candidate)| candidate)
}

/// Levenshtein distance, one row at a time.
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (above, letter) in from.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = above + 1;
        for (at, other) in to.iter().enumerate() {
            let substituted = diagonal + usize::from(letter != *other);
            diagonal = row[at + 1];
            row[at + 1] = substituted.min(row[at] + 1).min(diagonal + 1);
        }
    }
    row[to.len()]
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_single_letter_edits() {
        for (from, to, edits) in [
            ("", "", 0),
            ("", "abc", 3),
            ("timout", "timeout", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(from, to), edits, "{from} to {to}");
            assert_eq!(distance(to, from), edits, "{to} to {from}");
        }
    }

    #[test]
    fn the_first_unknown_key_in_the_text_is_the_one_reported() {
        let known: toml::Table = "[b]\nkey = 1\n[a]\nother = 1\n".parse().unwrap();
        let document = Document::parse("[b]\nkez = 1\n[a]\nothr = 2\n").unwrap();
        let unknown = document.first_unknown(&known).unwrap();
        assert_eq!(
            unknown,
            UnknownKey {
                line: 2,
                key: "b.kez".into(),
                meant: Some("b.key".into())
            }
        );
    }

    #[test]
    fn lines_of_dotted_and_inline_keys_are_found() {
        let document = Document::parse("a.b = 1\n\n[c]\nd = { e = 2 }\n").unwrap();
        assert_eq!(document.line_of("a.b"), Some(1));
        assert_eq!(document.line_of("c.d.e"), Some(4));
        assert_eq!(document.line_of("c.f"), None);
    }
}
