//! All settings as plain values by key, to tell which of them a changed file changes.
//!
//! Called by: the reload of the daemon. Invariant: the values have been checked. Must not know: what they do.

use std::path::Path;

use toml::{Table, Value};

use super::{Config, Error, Overrides, resolve, table_of};

/// The settings of a configuration, by key.
#[derive(Clone, Debug, PartialEq)]
pub struct SettingsByKey(Table);

impl SettingsByKey {
    /// Reads and checks the configuration; `path` and `overrides` as for [`super::load`].
    pub fn load(path: Option<&Path>, overrides: &Overrides) -> Result<(Config, Self), Error> {
        let (file, config) = resolve(path, overrides)?;
        Ok((config, Self(table_of(&file))))
    }

    /// The keys, with their tables, whose values differ in `other`; sorted.
    #[must_use]
    pub fn changed_in(&self, other: &Self) -> Vec<String> {
        let mut keys = Vec::new();
        compare("", &self.0, &other.0, &mut keys);
        keys.sort();
        keys.dedup();
        keys
    }

    /// Takes the value of `key` (with its tables) over from `other`.
    pub fn take(&mut self, key: &str, other: &Self) {
        let (mut mine, mut theirs) = (&mut self.0, &other.0);
        let (tables, last) = key.rsplit_once('.').unwrap_or(("", key));
        for name in tables.split('.').filter(|name| !name.is_empty()) {
            let (Some(Value::Table(inner)), Some(Value::Table(of))) =
                (mine.get_mut(name), theirs.get(name))
            else {
                return;
            };
            (mine, theirs) = (inner, of);
        }
        match theirs.get(last) {
            Some(value) => mine.insert(last.to_owned(), value.clone()),
            None => mine.remove(last),
        };
    }
}

fn compare(prefix: &str, one: &Table, other: &Table, keys: &mut Vec<String>) {
    for name in one.keys().chain(other.keys()) {
        let key = match prefix {
            "" => name.clone(),
            prefix => format!("{prefix}.{name}"),
        };
        match (one.get(name), other.get(name)) {
            (Some(Value::Table(one)), Some(Value::Table(other))) => {
                compare(&key, one, other, keys);
            }
            (one, other) if one != other => keys.push(key),
            _ => {}
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use super::*;

    #[test]
    fn changed_keys_are_named_with_their_tables_until_they_are_taken_over() {
        let of = |text: &str| SettingsByKey(text.parse().unwrap());
        let mut held =
            of("root = \"/a\"\n[log]\nlevel = \"info\"\n[h.x.http]\nidle_s = 0\nlist = [1]\n");
        let new =
            of("root = \"/b\"\n[log]\nlevel = \"debug\"\n[h.x.http]\nidle_s = 0\nlist = [1, 2]\n");
        assert_eq!(held.changed_in(&held), [""; 0]);
        assert_eq!(
            held.changed_in(&new),
            ["h.x.http.list", "log.level", "root"]
        );
        held.take("log.level", &new);
        held.take("h.x.http.list", &new);
        assert_eq!(held.changed_in(&new), ["root"]);
        held.take("no.such.key", &new);
        held.take("root", &new);
        assert_eq!(held, new);
        let fewer =
            of("root = \"/b\"\n[log]\n[h.x.http]\nidle_s = 0\nlist = [1, 2]\n[h.y]\nz = 1\n");
        assert_eq!(held.changed_in(&fewer), ["h.y", "log.level"]);
        held.take("log.level", &fewer);
        held.take("h.y", &fewer);
        assert_eq!(held, fewer);
    }
}
