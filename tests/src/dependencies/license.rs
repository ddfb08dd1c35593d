//! SPDX licence expressions, as far as `Cargo.toml` files have them: licences, exceptions by `WITH`, `AND`, `OR` and brackets.
//!
//! Called by [`super::policy`]. Invariant: what is not understood is not permitted. Must not know: which licences are.

use std::collections::BTreeSet;

/// Whether `expression` can be fulfilled by permitted licences alone. A slash, of old manifests, means `OR`.
pub(super) fn is_permitted(expression: &str, permitted: &BTreeSet<String>) -> bool {
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let mut words = Words {
        words: spaced.split_whitespace().peekable(),
        permitted,
    };
    words.any() == Some(true) && words.words.peek().is_none()
}

struct Words<'a, I: Iterator<Item = &'a str>> {
    words: std::iter::Peekable<I>,
    permitted: &'a BTreeSet<String>,
}

impl<'a, I: Iterator<Item = &'a str>> Words<'a, I> {
    /// Alternatives. None for what is no expression.
    fn any(&mut self) -> Option<bool> {
        let mut holds = self.all()?;
        while self.words.next_if_eq(&"OR").is_some() {
            holds |= self.all()?;
        }
        Some(holds)
    }

    fn all(&mut self) -> Option<bool> {
        let mut holds = self.one()?;
        while self.words.next_if_eq(&"AND").is_some() {
            holds &= self.one()?;
        }
        Some(holds)
    }

    fn one(&mut self) -> Option<bool> {
        let word = self.words.next()?;
        if word == "(" {
            let holds = self.any()?;
            return self.words.next_if_eq(&")").map(|_| holds);
        }
        if ["OR", "AND", "WITH", ")"].contains(&word) {
            return None;
        }
        if self.words.next_if_eq(&"WITH").is_some() {
            let exception = self.words.next()?;
            return Some(self.permitted.contains(&format!("{word} WITH {exception}")));
        }
        Some(self.permitted.contains(word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alternatives_need_one_permitted_side_and_conjunctions_both() {
        let permitted = ["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"];
        let permitted = permitted.map(str::to_owned).into_iter().collect();
        for (expression, expected) in [
            ("MIT", true),
            ("GPL-3.0", false),
            ("MIT OR GPL-3.0", true),
            ("MIT/GPL-3.0", true),
            ("MIT AND GPL-3.0", false),
            ("(MIT OR GPL-3.0) AND Apache-2.0", true),
            ("GPL-3.0 OR MIT AND Apache-2.0", true),
            ("Apache-2.0 WITH LLVM-exception", true),
            ("Apache-2.0 WITH other-exception", false),
            ("MIT WITH", false),
            ("MIT Apache-2.0", false),
            ("(MIT", false),
            ("", false),
        ] {
            assert_eq!(
                is_permitted(expression, &permitted),
                expected,
                "{expression}"
            );
        }
    }
}
