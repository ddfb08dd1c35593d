//! A small generator of numbers, so that a random test can be repeated from its seed.

/// The generator; equal seeds throw equal numbers.
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    /// A generator with this seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A generator with a seed that differs each time, and the seed.
    pub fn fresh() -> (Self, u64) {
        let now = std::time::UNIX_EPOCH.elapsed().unwrap_or_default();
        let seed = u64::from(now.subsec_nanos());
        (Self(seed), seed)
    }

    /// A number below `bound`, which is not 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    /// Whether something that happens so many times in a hundred happens now.
    pub fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    /// One of these. Panics on an empty list.
    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len() as u64) as usize]
    }
}
