//! `sh -c 'COMMAND'` where there is no shell: one simple command, split into its words.
//!
//! Called by: an exec in a Wasm container, before its program is looked for. Pure.
//! Invariant: what a shell would do and this does not is refused by name, never passed over.
//! Source: "Shell Command Language" of POSIX, sections 2.2 and 2.6.2. Not here: which program the first word names.

/// Shells that people type.
const SHELLS: [&str; 5] = ["sh", "bash", "ash", "dash", "busybox"];

/// Whether `program` is a shell, by its last name.
pub(super) fn is_shell(program: &str) -> bool {
    let name = program.rsplit('/').next().unwrap_or(program);
    SHELLS.contains(&name)
}

/// The words of the command in `argv`, `sh -c COMMAND`. Variables are those of `env`. Errors: a text that names what is
/// missing here.
pub(super) fn command(argv: &[String], env: &[(String, String)]) -> Result<Vec<String>, String> {
    let mut arguments = argv[1..].iter().map(String::as_str).peekable();
    // Of busybox.
    arguments.next_if(|word| is_shell(word));
    let (flags, text) = (arguments.next(), arguments.next());
    let (Some(flags), Some(text)) = (flags, text) else {
        return Err(format!(
            "{}: there is no shell in a WebAssembly container, only {0} -c 'COMMAND' with one simple command",
            argv[0]
        ));
    };
    if !flags.starts_with('-') || !flags.ends_with('c') {
        return Err(format!("{}: there is only {0} -c 'COMMAND' here", argv[0]));
    }
    let refused = |what: &str| {
        format!(
            "{} -c: {what}: a WebAssembly container has no shell; one simple command with quotes and variables is all",
            argv[0]
        )
    };
    let mut words = words(text, env).map_err(|what| refused(&what))?;
    if words.first().is_some_and(|word| word == "exec") {
        words.remove(0);
    }
    if words.is_empty() {
        return Err(refused("there is no command"));
    }
    if words[0]
        .split_once('=')
        .is_some_and(|(name, _)| is_name(name))
    {
        return Err(refused("there are no assignments"));
    }
    Ok(words)
}

fn is_name(text: &str) -> bool {
    let is_part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    !text.is_empty() && text.chars().all(is_part) && !text.starts_with(|c: char| c.is_ascii_digit())
}

/// How the characters at a place are quoted.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Quote {
    No,
    Single,
    Double,
}

/// Splits `text`. Errors: what is not known here.
fn words(text: &str, env: &[(String, String)]) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = Quote::No;
    let mut left = text.trim().chars().peekable();
    while let Some(c) = left.next() {
        match (quote, c) {
            (Quote::No, '\'') => (quote, word) = (Quote::Single, Some(word.unwrap_or_default())),
            (Quote::No, '"') => (quote, word) = (Quote::Double, Some(word.unwrap_or_default())),
            (Quote::Single, '\'') | (Quote::Double, '"') => quote = Quote::No,
            (Quote::No, ' ' | '\t') => words.extend(word.take()),
            (Quote::No, '\\') => word.get_or_insert_default().extend(left.next()),
            (Quote::Double, '\\') => word.get_or_insert_default().extend(escaped(&mut left)),
            (Quote::No | Quote::Double, '$') => {
                let value = variable(&mut left, env)?;
                if quote == Quote::No && value.contains([' ', '\t', '\n']) {
                    return Err("a variable of several words without quotes".to_owned());
                }
                if quote == Quote::Double || !value.is_empty() {
                    word.get_or_insert_default().push_str(&value);
                }
            }
            (Quote::No | Quote::Double, '`') => return Err("`...`".to_owned()),
            (Quote::No, '|' | '&' | ';' | '<' | '>' | '(' | ')' | '\n') => {
                return Err(format!("{c:?}"));
            }
            (Quote::No, '*' | '?') => return Err(format!("{c:?} for names of files")),
            (Quote::No, '#' | '~') if word.is_none() => return Err(format!("{c:?}")),
            (_, c) => word.get_or_insert_default().push(c),
        }
    }
    if quote != Quote::No {
        return Err("a quote that does not end".to_owned());
    }
    words.extend(word);
    Ok(words)
}

/// What a backslash between double quotes stands for.
fn escaped(left: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<char> {
    let is_special = left.peek().is_some_and(|c| "\"\\$`".contains(*c));
    if is_special { left.next() } else { Some('\\') }
}

/// The value of the variable behind a `$`.
fn variable(
    left: &mut std::iter::Peekable<std::str::Chars<'_>>,
    env: &[(String, String)],
) -> Result<String, String> {
    let is_braced = left.next_if_eq(&'{').is_some();
    let mut name = String::new();
    while let Some(c) = left.next_if(|c| c.is_ascii_alphanumeric() || *c == '_') {
        name.push(c);
    }
    let is_whole = !is_braced || left.next_if_eq(&'}').is_some();
    if !is_whole || !is_name(&name) {
        return match left.peek() {
            // A dollar alone is one.
            None | Some(' ' | '"') if !is_braced && name.is_empty() => Ok("$".to_owned()),
            _ => Err("`$` with anything but a variable's name".to_owned()),
        };
    }
    let value = env.iter().find(|(own, _)| *own == name);
    Ok(value.map(|(_, value)| value.clone()).unwrap_or_default())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]
mod tests {
    use super::*;

    fn split(text: &str) -> Result<Vec<String>, String> {
        let argv = ["sh", "-c", text].map(str::to_owned);
        let env = [("A", "b"), ("TWO", "c d")].map(|(n, v)| (n.to_owned(), v.to_owned()));
        command(&argv, &env)
    }

    #[test]
    fn a_simple_command_is_split_as_a_shell_does() {
        for (text, expected) in [
            ("ls -l /", &["ls", "-l", "/"][..]),
            ("  echo  'a b'\"c d\"e\\ f ", &["echo", "a bc de f"]),
            (
                "echo $A ${A}x \"$TWO\" '$A' $NONE \"\"",
                &["echo", "b", "bx", "c d", "$A", ""],
            ),
            ("exec /app.wasm --x", &["/app.wasm", "--x"]),
            ("[ -f /x ]", &["[", "-f", "/x", "]"]),
            ("grep 'a|b;c' x#y", &["grep", "a|b;c", "x#y"]),
            ("echo \"a\\\"b\\n\" $", &["echo", "a\"b\\n", "$"]),
        ] {
            assert_eq!(split(text).unwrap(), expected, "{text}");
        }
    }

    #[test]
    fn what_takes_a_shell_is_refused_by_name() {
        for (text, word) in [
            ("a | b", "'|'"),
            ("a && b", "'&'"),
            ("a; b", "';'"),
            ("a > b", "'>'"),
            ("ls *.txt", "'*'"),
            ("echo $(date)", "`$`"),
            ("echo `date`", "`...`"),
            ("echo $TWO", "several words"),
            ("A=1 env", "assignments"),
            ("echo 'a", "quote"),
            ("", "no command"),
            ("a\nb", "'\\n'"),
            ("# nothing", "'#'"),
        ] {
            let refused = split(text).unwrap_err();
            assert!(refused.contains(word), "{text}: {refused}");
        }
        for argv in [&["sh"][..], &["/bin/bash", "-i"], &["sh", "script.sh", "x"]] {
            let argv: Vec<String> = argv.iter().map(ToString::to_string).collect();
            assert!(command(&argv, &[]).unwrap_err().contains("-c"), "{argv:?}");
        }
        let busybox = ["busybox", "sh", "-c", "ls"].map(str::to_owned);
        assert_eq!(command(&busybox, &[]).unwrap(), ["ls"]);
        assert!(is_shell("/bin/sh") && !is_shell("/bin/fish"));
    }
}
