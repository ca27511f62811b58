//! Deterministic names: uids and generateName suffixes from one seed. Used by the object rules only. Never secret,
//! never unique across stores with the same seed.

/// splitmix64: small, seedable, and good enough for names that only need to differ from each other.
#[derive(Clone, Debug)]
pub(crate) struct Seed(u64);

/// The alphabet real servers use: no vowels and no look-alikes, so that suffixes spell nothing.
const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";

impl Seed {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A version 4 UUID.
    pub(crate) fn uid(&mut self) -> String {
        let bytes = (u128::from(self.next()) << 64 | u128::from(self.next())).to_be_bytes();
        uuid::Builder::from_random_bytes(bytes).into_uuid().to_string()
    }

    /// Five characters to put behind a generateName.
    pub(crate) fn suffix(&mut self) -> String {
        let mut bits = self.next();
        let mut suffix = String::with_capacity(5);
        for _ in 0..5 {
            let index = (bits % ALPHABET.len() as u64) as usize;
            suffix.push(char::from(ALPHABET[index]));
            bits /= ALPHABET.len() as u64;
        }
        suffix
    }
}
