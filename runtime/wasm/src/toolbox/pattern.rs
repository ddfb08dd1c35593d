//! The patterns of `grep` and `find`: a subset of basic regular expressions, and shell patterns for names.
//!
//! Invariant: a pattern with syntax that is not supported is refused, never taken for another one. It must not know what
//! is searched.

/// A pattern of `grep`: text, `.`, `*` after one character, `^`, `$`, and `\` in front of any of them.
pub(super) struct Pattern {
    atoms: Vec<Atom>,
    at_start: bool,
    at_end: bool,
    ignores_case: bool,
}

#[derive(Clone, Copy)]
struct Atom {
    /// `None` is any byte.
    byte: Option<u8>,
    /// Any number of times.
    many: bool,
}

impl Atom {
    fn literal(byte: u8) -> Self {
        Self {
            byte: Some(byte),
            many: false,
        }
    }

    fn any() -> Self {
        Self {
            byte: None,
            many: false,
        }
    }
}

impl Pattern {
    /// Parses `text`; if `fixed`, every byte stands for itself. Errors: a message for syntax that is not supported.
    pub(super) fn parse(text: &str, fixed: bool, ignores_case: bool) -> Result<Self, String> {
        let mut pattern = Self {
            atoms: Vec::new(),
            at_start: false,
            at_end: false,
            ignores_case,
        };
        match fixed {
            true => pattern.atoms = text.bytes().map(Atom::literal).collect(),
            false => pattern.parse_basic(text)?,
        }
        Ok(pattern)
    }

    fn parse_basic(&mut self, text: &str) -> Result<(), String> {
        let mut bytes = text.bytes().enumerate().peekable();
        while let Some((at, byte)) = bytes.next() {
            match byte {
                b'^' if at == 0 => self.at_start = true,
                b'$' if bytes.peek().is_none() => self.at_end = true,
                b'*' if !self.atoms.is_empty() => self.repeat_last(),
                b'\\' => match bytes.next() {
                    Some((_, byte)) if is_escapable(byte) => self.atoms.push(Atom::literal(byte)),
                    _ => return Err(refusal(text)),
                },
                b'[' => return Err(refusal(text)),
                b'.' => self.atoms.push(Atom::any()),
                byte => self.atoms.push(Atom::literal(byte)),
            }
        }
        Ok(())
    }

    fn repeat_last(&mut self) {
        if let Some(last) = self.atoms.last_mut() {
            last.many = true;
        }
    }

    /// Whether it occurs in `line`.
    pub(super) fn is_in(&self, line: &[u8]) -> bool {
        let last = if self.at_start { 0 } else { line.len() };
        (0..=last).any(|start| self.begins(&line[start..]))
    }

    /// Whether `line` begins with it. The set of places that the atoms so far can end at, atom by atom: no pattern makes
    /// this slower than its length times the line's.
    fn begins(&self, line: &[u8]) -> bool {
        let mut ends = vec![false; line.len() + 1];
        ends[0] = true;
        for atom in &self.atoms {
            let mut next = vec![false; line.len() + 1];
            for at in 0..=line.len() {
                if atom.many {
                    let repeats = at > 0 && next[at - 1] && self.fits(*atom, line[at - 1]);
                    next[at] = ends[at] || repeats;
                } else {
                    next[at] = at > 0 && ends[at - 1] && self.fits(*atom, line[at - 1]);
                }
            }
            ends = next;
        }
        match self.at_end {
            true => ends[line.len()],
            false => ends.contains(&true),
        }
    }

    fn fits(&self, atom: Atom, byte: u8) -> bool {
        atom.byte.is_none_or(|own| match self.ignores_case {
            true => own.eq_ignore_ascii_case(&byte),
            false => own == byte,
        })
    }
}

/// Whether a backslash makes `byte` literal. In front of the others it begins syntax that is not supported.
fn is_escapable(byte: u8) -> bool {
    byte.is_ascii_punctuation() && !b"(){}<>|+?".contains(&byte)
}

fn refusal(text: &str) -> String {
    format!(
        "pattern {text:?}: only text, `.`, `*`, `^`, `$` and `\\` are supported; -F takes the pattern as plain text"
    )
}

/// Whether `name` is what a shell's `pattern` of `*` and `?` means.
pub(super) fn is_named(pattern: &[u8], name: &[u8]) -> bool {
    let mut ends = vec![false; name.len() + 1];
    ends[0] = true;
    for byte in pattern {
        let mut next = vec![false; name.len() + 1];
        for at in 0..=name.len() {
            next[at] = match byte {
                b'*' => ends[at] || (at > 0 && next[at - 1]),
                b'?' => at > 0 && ends[at - 1],
                byte => at > 0 && ends[at - 1] && name[at - 1] == *byte,
            };
        }
        ends = next;
    }
    ends[name.len()]
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_what_greps_do() {
        let is_in = |pattern: &str, line: &str| {
            Pattern::parse(pattern, false, false)
                .unwrap()
                .is_in(line.as_bytes())
        };
        for (pattern, line, expected) in [
            ("b", "abc", true),
            ("^b", "abc", false),
            ("^ab*c$", "abbbc", true),
            ("^ab*c$", "ac", true),
            ("^ab*c$", "abd", false),
            ("a.c", "xabcx", true),
            ("a\\.c", "abc", false),
            (".*", "", true),
            ("*a", "*a", true),
            ("$a", "$a", true),
            ("", "anything", true),
        ] {
            assert_eq!(is_in(pattern, line), expected, "{pattern:?} in {line:?}");
        }
        assert!(Pattern::parse("[ab]", false, false).is_err());
        assert!(Pattern::parse("a\\|b", false, false).is_err());
        assert!(Pattern::parse("[A]", true, true).unwrap().is_in(b"x[a]"));
        let hostile = Pattern::parse(&"a*".repeat(50), false, false).unwrap();
        assert!(hostile.is_in(&[b'a'; 2_000]));
    }

    #[test]
    fn names_match_as_in_a_shell() {
        for (pattern, name, expected) in [
            ("*.txt", "a.txt", true),
            ("*.txt", "a.txt.gz", false),
            ("?", "a", true),
            ("?", "", false),
            ("*", "", true),
            ("a*b*c", "aXbYc", true),
        ] {
            assert_eq!(
                is_named(pattern.as_bytes(), name.as_bytes()),
                expected,
                "{pattern} {name}"
            );
        }
    }
}
