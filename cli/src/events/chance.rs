//! Chance from a seed: owns one 64-bit state; the same seed gives the same numbers on every machine, for ever.

/// SplitMix64 (Steele, Lea, Flood 2014): one addition and a mix; good enough for users that are made up.
#[derive(Clone, Debug)]
pub(super) struct Chance {
    state: u64,
}

impl Chance {
    pub(super) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    pub(super) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.state ^ self.state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }

    /// Below `end`: the high half of a product, so that no number is more likely than another by more than `end` / 2⁶⁴.
    pub(super) fn below(&mut self, end: u64) -> u64 {
        assert!(end > 0, "there is something to choose from");
        ((u128::from(self.next()) * u128::from(end)) >> 64) as u64
    }

    pub(super) fn one_in(&mut self, count: u64) -> bool {
        self.below(count) == 0
    }

    /// From 0 to 1, 1 left out.
    pub(super) fn fraction(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_published_generator() {
        let mut chance = Chance::new(1_234_567);
        let numbers = [chance.next(), chance.next(), chance.next()];
        assert_eq!(numbers, [6_457_827_717_110_365_317, 3_203_168_211_198_807_973, 9_817_491_932_198_370_423]);
    }

    #[test]
    fn choices_stay_below_their_end() {
        let mut chance = Chance::new(9);
        assert!((0..10_000).all(|_| chance.below(7) < 7 && (0.0..1.0).contains(&chance.fraction())));
    }
}
