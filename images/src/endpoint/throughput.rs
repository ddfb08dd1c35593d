//! The minimum rate of a blob stream, so that a slow host cannot keep a pull running for ever.
//!
//! Called by [`super::BlobStream`] with the time and the bytes of each read. Invariant: only the time spent waiting
//! for the host counts, never the time that this node takes to write. Not here: the idle timeout.

use std::time::Duration;

/// The limits for every host.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TransferLimits {
    /// The idle timeout, and the window over which the rate is measured.
    pub idle: Duration,
    /// The least rate. Bytes a second; 0 for any.
    pub min_rate: u64,
}

/// Measures the rate of one stream.
#[derive(Debug)]
pub(super) struct Throughput {
    limits: TransferLimits,
    /// In the window at hand.
    waited: Duration,
    received: u64,
}

/// The host was slower than the minimum rate.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooSlow {
    /// Bytes that came.
    pub received: u64,
    /// The time spent waiting for them.
    pub waited: Duration,
}

impl Throughput {
    pub(super) fn new(limits: TransferLimits) -> Self {
        Self {
            limits,
            waited: Duration::ZERO,
            received: 0,
        }
    }

    /// Counts `bytes` that took `waited` to arrive. Errors: a whole window was below the minimum rate.
    pub(super) fn count(&mut self, waited: Duration, bytes: usize) -> Result<(), TooSlow> {
        self.waited += waited;
        self.received = self.received.saturating_add(bytes as u64);
        if self.waited < self.limits.idle {
            return Ok(());
        }
        let (waited, received) = (self.waited, self.received);
        let least = u128::from(self.limits.min_rate) * waited.as_millis() / 1000;
        (self.waited, self.received) = (Duration::ZERO, 0);
        match u128::from(received) < least {
            true => Err(TooSlow { received, waited }),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pace(min_rate: u64) -> Throughput {
        Throughput::new(TransferLimits {
            idle: Duration::from_secs(10),
            min_rate,
        })
    }

    #[test]
    fn a_drip_is_too_slow_after_a_window_and_not_before() {
        let mut slow = pace(100);
        for _ in 0..9 {
            assert_eq!(slow.count(Duration::from_secs(1), 99), Ok(()));
        }
        let (received, waited) = (990, Duration::from_secs(10));
        let too_slow = TooSlow { received, waited };
        assert_eq!(slow.count(Duration::from_secs(1), 99), Err(too_slow));
    }

    #[test]
    fn each_window_counts_by_itself_and_fast_is_fast_enough() {
        let mut pace = pace(100);
        // What came at once does not pay for what drips later.
        assert_eq!(pace.count(Duration::from_secs(10), 1 << 30), Ok(()));
        assert!(pace.count(Duration::from_secs(10), 999).is_err());
        assert_eq!(pace.count(Duration::from_secs(10), 1000), Ok(()));
        assert_eq!(pace.count(Duration::ZERO, 0), Ok(()), "our own disk's time");
    }

    #[test]
    fn zero_is_no_least_rate() {
        assert_eq!(pace(0).count(Duration::from_secs(1000), 0), Ok(()));
    }
}
