//! The options of tools, some of which have values: `-n 5`, `-n5`, `-5`, `--` ends them.
//!
//! Invariant: an option that a tool does not have is an error, never an operand. Not here: long options.

use super::Job;

/// The arguments of a tool, sorted.
pub(super) struct Options<'a> {
    flags: Vec<char>,
    values: Vec<(char, &'a str)>,
    /// `-5`, where the tool has `-n`.
    pub(super) number: Option<u64>,
    /// The other arguments.
    pub(super) operands: Vec<&'a str>,
}

impl<'a> Options<'a> {
    /// Sorts the arguments of `job`, which knows `flags`, and options with `values`. Errors: any other option, as a text.
    pub(super) fn parse(job: &'a Job<'_>, flags: &str, values: &str) -> Result<Self, String> {
        let mut parsed = Self {
            flags: Vec::new(),
            values: Vec::new(),
            number: None,
            operands: Vec::new(),
        };
        let mut arguments = job.wasm.args.iter().skip(1).map(String::as_str);
        while let Some(argument) = arguments.next() {
            match argument.strip_prefix('-').filter(|rest| !rest.is_empty()) {
                None => parsed.operands.push(argument),
                Some("-") => parsed.operands.extend(arguments.by_ref()),
                Some(digits) if values.contains('n') && digits.parse::<u64>().is_ok() => {
                    parsed.number = digits.parse().ok();
                }
                Some(letters) => {
                    for (at, letter) in letters.char_indices() {
                        let rest = &letters[at + letter.len_utf8()..];
                        if values.contains(letter) {
                            let value = match rest {
                                "" => arguments.next(),
                                rest => Some(rest),
                            };
                            let value = value.ok_or(format!("-{letter} needs a value"))?;
                            parsed.values.push((letter, value));
                            break;
                        }
                        if !flags.contains(letter) {
                            return Err(format!(
                                "it has no option -{letter}; it has -{flags}{values}"
                            ));
                        }
                        parsed.flags.push(letter);
                    }
                }
            }
        }
        Ok(parsed)
    }

    pub(super) fn has(&self, flag: char) -> bool {
        self.flags.contains(&flag)
    }

    /// The last value of `-letter`.
    pub(super) fn value(&self, letter: char) -> Option<&'a str> {
        let mut values = self.values.iter().rev();
        values
            .find(|(own, _)| *own == letter)
            .map(|(_, value)| *value)
    }
}
