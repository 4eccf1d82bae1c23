//! Random bytes for tests, from a seed that a failing test shows; knows no clock and no entropy.

/// A xorshift generator.
#[derive(Debug)]
pub(crate) struct Seeded(u64);

impl Seeded {
    /// Starts at `seed` and prints it, so that a failure names it.
    pub(crate) fn new(seed: u64) -> Self {
        println!("seed {seed:#x}");
        Self(seed.max(1))
    }

    /// The next 64 bits.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        (self.next() >> 16) as usize % end
    }

    /// Up to `max` bytes, many of them small, so that they pass for lengths and pointers.
    pub(crate) fn bytes(&mut self, max: usize) -> Vec<u8> {
        let len = self.below(max + 1);
        (0..len).map(|_| if self.below(2) == 0 { self.below(4) as u8 } else { self.next() as u8 }).collect()
    }
}
