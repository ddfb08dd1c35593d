//! How a guest ended, and what its container's status says of that: one sentence that names what to do, then the trap.
//!
//! Made by [`super::run`] from what the engine returns and from what was refused meanwhile; the guest process turns it
//! into an exit code and a report.
//! Invariants: exit codes are those of wasmtime's command line; whatever a guest wrote is bounded and without control
//! characters.
//! Not here: ends that nobody in the process sees, such as the kernel's.

use wasmtime::Trap;
use wasmtime_wasi::I32Exit;

use super::diagnosis::core_dump;
use super::stop;

/// Exit code of a trap, as wasmtime's own command line has it (128 + SIGABRT).
pub const TRAP_CODE: i32 = 134;
/// Exit code of any other error that ends a guest, as wasmtime's own command line has it.
pub const ERROR_CODE: i32 = 1;
/// Longest trap text kept, in bytes.
pub const TRAP_TEXT_BYTES: usize = 4096;

/// How a guest ended.
#[derive(Debug, PartialEq, Eq)]
pub enum End {
    /// By returning, by `proc_exit`, or by a stop signal (128 + its number).
    Code(i32),
    /// The same, with a sentence on what may have led to it.
    Explained(i32, String),
    /// By an error that is no trap: a host call that ends the guest, an exception that nothing caught. Bounded.
    Failed(String),
    /// By a trap: a sentence, then text with backtrace, bounded.
    Trapped(String),
    /// A server's, because nobody called it for long: whoever holds its socket starts it again.
    Idle(Probes),
}

/// What the guests of one server have told the kubelet's probes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probes {
    /// There was none.
    None,
    /// Whatever was asked last at each path went well.
    Succeeded,
    /// At some path it went wrong last.
    Failed,
}

/// What was refused to a guest while it ran.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    /// The limit that its memory would have outgrown, bytes.
    pub(super) memory: Option<usize>,
    /// What it was not allowed to reach.
    pub(super) egress: Option<String>,
}

impl Refusals {
    /// One sentence, if anything was refused.
    fn sentence(&self) -> Option<String> {
        let memory = self.memory.map(|limit| {
            format!(
                "the guest was refused memory beyond its limit of {limit} bytes: raise resources.limits.memory"
            )
        });
        let egress = self.egress.as_ref().map(|what| {
            format!(
                "the guest was refused egress to {what}: list it in the pod annotation egress.coracle.dev/allow, or in the handler's egress setting"
            )
        });
        match (memory, egress) {
            (Some(memory), Some(egress)) => Some(format!("{memory}; {egress}")),
            (memory, egress) => memory.or(egress),
        }
    }
}

/// The end of a guest whose entry point gave `result`; `None`: the stop signal came first. `dumped` is a sentence on its
/// core dump.
pub(super) fn judge(
    result: Option<wasmtime::Result<()>>,
    refusals: &Refusals,
    dumped: Option<String>,
) -> End {
    let stopped = stop::signal();
    let error = match result {
        None => return End::Code(128 + stopped),
        Some(Ok(())) => return End::Code(0),
        Some(Err(error)) => error,
    };
    if let Some(exit) = error.downcast_ref::<I32Exit>() {
        return match refusals.sentence() {
            Some(sentence) if exit.0 != 0 => End::Explained(exit.0, sentence),
            _ => End::Code(exit.0),
        };
    }
    let trap = error.downcast_ref::<Trap>();
    if stopped != 0 && matches!(trap, Some(Trap::Interrupt)) {
        return End::Code(128 + stopped);
    }
    let sentences = [
        refusals.sentence(),
        trap.map(|trap| advice(trap).to_owned()),
        dumped,
    ];
    let mut text = String::new();
    for sentence in sentences.into_iter().flatten() {
        text = text + &sentence + "\n";
    }
    match trap {
        Some(_) => End::Trapped(bounded(&(text + &described(&error)))),
        None => End::Failed(bounded(&(text + &described(&error)))),
    }
}

/// What a trap says about the program, and where to look.
fn advice(trap: &Trap) -> &'static str {
    match trap {
        Trap::UnreachableCodeReached => {
            "the program gave up by itself (a panic, an abort, a failed check): its last lines on standard error say why"
        }
        Trap::StackOverflow => {
            "the program used up its stack, 512 KiB: look for a recursion without an end in the backtrace"
        }
        Trap::IntegerOverflow | Trap::IntegerDivisionByZero | Trap::BadConversionToInteger => {
            "the program did arithmetic that has no result: its backtrace says where"
        }
        Trap::MemoryOutOfBounds
        | Trap::HeapMisaligned
        | Trap::TableOutOfBounds
        | Trap::IndirectCallToNull
        | Trap::BadSignature
        | Trap::NullReference
        | Trap::ArrayOutOfBounds
        | Trap::CastFailure => {
            "the program used memory or called a function that it does not have: the bug is in its code, its backtrace says where"
        }
        _ => "the engine ended the program: the trap below says why",
    }
}

/// An error with what led to it, without what the engine collected for a core dump.
pub(super) fn described(error: &wasmtime::Error) -> String {
    let parts = error.chain().map(ToString::to_string);
    let mut parts = parts.filter(|part| !core_dump::is_collected(part));
    let mut text = parts.next().unwrap_or_default();
    for (number, part) in parts.enumerate() {
        let heading = if number == 0 { "\n\nCaused by:" } else { "" };
        text = format!("{text}{heading}\n    {number}: {part}");
    }
    text
}

/// `text` without control characters but line ends, cut to [`TRAP_TEXT_BYTES`].
pub(super) fn bounded(text: &str) -> String {
    let mut kept = String::new();
    for c in text.chars().filter(|c| *c == '\n' || !c.is_control()) {
        if kept.len() + c.len_utf8() > TRAP_TEXT_BYTES {
            break;
        }
        kept.push(c);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused() -> Refusals {
        Refusals {
            memory: Some(65_536),
            egress: Some("203.0.113.7:443".to_owned()),
        }
    }

    #[test]
    fn an_end_that_follows_a_refusal_names_the_setting() {
        let exit = |code| Some(Err(I32Exit(code).into()));
        assert_eq!(judge(exit(0), &refused(), None), End::Code(0));
        assert_eq!(judge(exit(3), &Refusals::default(), None), End::Code(3));
        let End::Explained(3, text) = judge(exit(3), &refused(), None) else {
            panic!("not explained");
        };
        for word in [
            "65536 bytes",
            "resources.limits.memory",
            "203.0.113.7:443",
            "egress.coracle.dev/allow",
        ] {
            assert!(text.contains(word), "no {word} in {text}");
        }
    }

    #[test]
    fn a_trap_begins_with_a_sentence_and_other_errors_are_none() {
        let trap = Some(Err(Trap::StackOverflow.into()));
        let End::Trapped(text) = judge(trap, &Refusals::default(), None) else {
            panic!("no trap");
        };
        let first = text.lines().next().unwrap_or_default();
        assert!(first.contains("recursion"), "{text}");
        assert!(text.contains("call stack exhausted"), "{text}");
        let error = Some(Err(wasmtime::Error::msg("a\x1b[2J\nhost call")));
        let End::Failed(text) = judge(error, &Refusals::default(), None) else {
            panic!("a trap");
        };
        assert!(text.starts_with("a[2J\nhost call"), "{text}");
    }
}
