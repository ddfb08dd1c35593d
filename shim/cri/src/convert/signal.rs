//! Stop signals: converts CRI's numbers to the kernel's and back.
//!
//! Called by `container` and `render`. Invariant: every value of CRI's enum except the default has exactly one signal.
//! Must not know: which signal a container gets in the end.

use coracle_proto::runtime::v1::Signal;

use super::BadRequest;

/// CRI's number of SIGRTMIN and the kernel's; both count up in step to SIGRTMAX.
const REAL_TIME: (i32, i32) = (Signal::Sigrtmin as i32, 34);

/// Pairs below the real-time signals; of two names for one signal the common one comes first.
const PAIRS: [(Signal, i32); 34] = [
    (Signal::Sigabrt, libc::SIGABRT),
    (Signal::Sigalrm, libc::SIGALRM),
    (Signal::Sigbus, libc::SIGBUS),
    (Signal::Sigchld, libc::SIGCHLD),
    (Signal::Sigcld, libc::SIGCHLD),
    (Signal::Sigcont, libc::SIGCONT),
    (Signal::Sigfpe, libc::SIGFPE),
    (Signal::Sighup, libc::SIGHUP),
    (Signal::Sigill, libc::SIGILL),
    (Signal::Sigint, libc::SIGINT),
    (Signal::Sigio, libc::SIGIO),
    (Signal::Sigiot, libc::SIGABRT),
    (Signal::Sigkill, libc::SIGKILL),
    (Signal::Sigpipe, libc::SIGPIPE),
    (Signal::Sigpoll, libc::SIGIO),
    (Signal::Sigprof, libc::SIGPROF),
    (Signal::Sigpwr, libc::SIGPWR),
    (Signal::Sigquit, libc::SIGQUIT),
    (Signal::Sigsegv, libc::SIGSEGV),
    (Signal::Sigstkflt, libc::SIGSTKFLT),
    (Signal::Sigstop, libc::SIGSTOP),
    (Signal::Sigsys, libc::SIGSYS),
    (Signal::Sigterm, libc::SIGTERM),
    (Signal::Sigtrap, libc::SIGTRAP),
    (Signal::Sigtstp, libc::SIGTSTP),
    (Signal::Sigttin, libc::SIGTTIN),
    (Signal::Sigttou, libc::SIGTTOU),
    (Signal::Sigurg, libc::SIGURG),
    (Signal::Sigusr1, libc::SIGUSR1),
    (Signal::Sigusr2, libc::SIGUSR2),
    (Signal::Sigvtalrm, libc::SIGVTALRM),
    (Signal::Sigwinch, libc::SIGWINCH),
    (Signal::Sigxcpu, libc::SIGXCPU),
    (Signal::Sigxfsz, libc::SIGXFSZ),
];

/// The kernel's number of a CRI signal; `None` for the default.
pub(super) fn requested(field: &str, value: i32) -> Result<Option<i32>, BadRequest> {
    if value == Signal::RuntimeDefault as i32 {
        return Ok(None);
    }
    if let Some((_, number)) = PAIRS.iter().find(|(signal, _)| *signal as i32 == value) {
        return Ok(Some(*number));
    }
    if (REAL_TIME.0..=Signal::Sigrtmax as i32).contains(&value) {
        return Ok(Some(value - REAL_TIME.0 + REAL_TIME.1));
    }
    Err(BadRequest::invalid(
        field,
        format!("is {value}, which is not a signal of the protocol"),
    ))
}

/// CRI's number of a kernel signal; the default's for a signal without one.
pub(super) fn shown(number: i32) -> i32 {
    if let Some((signal, _)) = PAIRS.iter().find(|(_, known)| *known == number) {
        return *signal as i32;
    }
    let real_time = number - REAL_TIME.1 + REAL_TIME.0;
    if (REAL_TIME.0..=Signal::Sigrtmax as i32).contains(&real_time) {
        return real_time;
    }
    Signal::RuntimeDefault as i32
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn every_signal_of_the_protocol_is_known_by_its_name() {
        for value in 1..=Signal::Sigrtmax as i32 {
            let signal = Signal::try_from(value).unwrap();
            let number = requested("stop_signal", value).unwrap().unwrap();
            let name = signal.as_str_name().strip_prefix("SIGNAL_").unwrap();
            let expected = match name {
                "SIGCLD" => libc::SIGCHLD,
                "SIGIOT" => libc::SIGABRT,
                "SIGPOLL" => libc::SIGIO,
                "SIGRTMIN" => 34,
                "SIGRTMAX" => 64,
                _ => match (
                    name.strip_prefix("SIGRTMINPLUS"),
                    name.strip_prefix("SIGRTMAXMINUS"),
                ) {
                    (Some(plus), _) => 34 + plus.parse::<i32>().unwrap(),
                    (_, Some(minus)) => 64 - minus.parse::<i32>().unwrap(),
                    _ => continue,
                },
            };
            assert_eq!(number, expected, "{name}");
        }
        assert_eq!(requested("f", Signal::Sigterm as i32).unwrap(), Some(15));
        assert_eq!(requested("f", Signal::Sigkill as i32).unwrap(), Some(9));
        assert_eq!(requested("f", Signal::Sigusr2 as i32).unwrap(), Some(12));
    }

    #[test]
    fn a_shown_signal_is_the_requested_one() {
        for value in 1..=Signal::Sigrtmax as i32 {
            let number = requested("f", value).unwrap().unwrap();
            assert_eq!(requested("f", shown(number)).unwrap(), Some(number));
        }
        assert_eq!(shown(0), Signal::RuntimeDefault as i32);
        assert_eq!(shown(65), Signal::RuntimeDefault as i32);
    }

    #[test]
    fn default_is_unset_and_unknown_is_refused() {
        assert_eq!(requested("f", 0).unwrap(), None);
        for odd in [-1, 66, i32::MAX] {
            assert!(requested("f", odd).is_err(), "{odd}");
        }
    }
}
