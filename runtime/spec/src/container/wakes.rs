//! How often a function that sleeps was woken, as the name of the process that holds its socket says it.
//!
//! Written by the holder, read by the daemon's metrics. A process's name is in the kernel. Its command line is in its own
//! memory, and whoever reads that waits for as long as the process, or a file system that it has mapped, holds it.
//! Invariant: [`Wakes::read`] understands what [`Wakes::name`] writes, and no other name of ours.

use std::time::Duration;

/// Digits are those of `u64::from_str_radix`.
const RADIX: u32 = 36;
/// The largest count, of six digits. Both numbers and the mark between them fill the 15 bytes of a name.
const MAX_COUNT: u64 = 36_u64.pow(6) - 1;
/// The largest sum of microseconds, of eight digits: 32 days.
const MAX_MICROS: u64 = 36_u64.pow(8) - 1;

/// How often a function that sleeps was woken since its container was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Wakes {
    /// How often.
    pub count: u64,
    /// How long all of them took, from a connection to its being accepted by a guest's server.
    pub took: Duration,
}

impl Wakes {
    /// The name of a process that has woken its server so often.
    #[must_use]
    pub fn name(self) -> String {
        let micros = u64::try_from(self.took.as_micros()).unwrap_or(u64::MAX);
        let count = digits(self.count.min(MAX_COUNT));
        format!("{count}+{}", digits(micros.min(MAX_MICROS)))
    }

    /// What such a name says; `None` for any other.
    #[must_use]
    pub fn read(name: &str) -> Option<Self> {
        let (count, micros) = name.split_once('+')?;
        let number = |text| u64::from_str_radix(text, RADIX).ok();
        Some(Self {
            count: number(count)?,
            took: Duration::from_micros(number(micros)?),
        })
    }
}

fn digits(mut number: u64) -> String {
    let mut text = Vec::new();
    loop {
        // Less than 36.
        let digit = (number % u64::from(RADIX)) as u32;
        text.push(char::from_digit(digit, RADIX).unwrap_or('0'));
        number /= u64::from(RADIX);
        if number == 0 {
            return text.into_iter().rev().collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_says_what_was_counted_and_fits_the_kernels_fifteen_bytes() {
        for (count, micros) in [(0, 0), (1, 5_000), (35, 36), (MAX_COUNT, MAX_MICROS)] {
            let wakes = Wakes {
                count,
                took: Duration::from_micros(micros),
            };
            let name = wakes.name();
            assert!(name.len() <= 15, "{name}");
            assert_eq!(Wakes::read(&name), Some(wakes), "{name}");
        }
        let beyond = Wakes {
            count: u64::MAX,
            took: Duration::MAX,
        };
        let most = Wakes::read(&beyond.name()).map(|read| read.count);
        assert_eq!(most, Some(MAX_COUNT));
        assert_eq!(beyond.name().len(), 15);
    }

    #[test]
    fn no_other_name_is_taken_for_one() {
        for name in ["coracle guest a", "coracle", "", "+", "a+", "1+-2", "1 + 2"] {
            assert_eq!(Wakes::read(name), None, "{name}");
        }
    }
}
