//! Philox4x32-10, the counter-based generator of Salmon, Moraes, Dror and Shaw ("Parallel random numbers: as easy as
//! 1, 2, 3", 2011).
//!
//! A number depends on a key and an index alone, so that dropout is the same for every number of threads, every
//! instruction set and every order of the work.

/// Four random words for a counter and a key: ten rounds of two multiplications each.
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let (mut c, mut k) = (counter, key);
    for _ in 0..10 {
        let a = 0xD251_1F53_u64 * u64::from(c[0]);
        let b = 0xCD9E_8D57_u64 * u64::from(c[2]);
        c = [(b >> 32) as u32 ^ c[1] ^ k[0], b as u32, (a >> 32) as u32 ^ c[3] ^ k[1], a as u32];
        k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
    }
    c
}

/// The random word of element `index` in the stream of `key`; four neighbours share a counter.
fn word(key: u64, index: u64) -> u32 {
    let block = index / 4;
    let words = philox4x32([block as u32, (block >> 32) as u32, 0, 0], [key as u32, (key >> 32) as u32]);
    words[(index % 4) as usize]
}

/// Whether dropout with probability `p` keeps element `index`: never for p = 1, always for p = 0.
///
/// p is met to within 2^-32.
pub fn keep(key: u64, index: u64, p: f64) -> bool {
    f64::from(word(key, index)) >= p * 4_294_967_296.0
}

/// A number from 0 to below 1, a multiple of 2^-53, for element `index` in the stream of `key`. The third word of the
/// counter sets these apart from the draws of dropout.
pub fn uniform(key: u64, index: u64) -> f64 {
    let [low, high, ..] =
        philox4x32([index as u32, (index >> 32) as u32, 1, 0], [key as u32, (key >> 32) as u32]);
    (u64::from(high) << 21 | u64::from(low) >> 11) as f64 / 9_007_199_254_740_992.0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Known answers that Random123, the authors' library, publishes for philox4x32 with ten rounds.
    #[test]
    fn known_answers() {
        assert_eq!(philox4x32([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox4x32([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        let pi = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
        assert_eq!(
            philox4x32(pi, [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    #[test]
    fn dropout_keeps_its_share() {
        for p in [0.0, 0.1, 0.5, 0.9, 1.0] {
            for key in [0, 1, u64::MAX] {
                let n = 100_000;
                let kept = (0..n).filter(|&i| keep(key, i, p)).count() as f64;
                let (mean, deviation) = (n as f64 * (1.0 - p), (n as f64 * p * (1.0 - p)).sqrt());
                assert!((kept - mean).abs() <= 5.0 * deviation, "p {p}, key {key}: {kept} of {n}");
            }
        }
    }

    #[test]
    fn uniforms_fill_the_unit_interval() {
        let mut counts = [0_u32; 16];
        for i in 0..160_000 {
            counts[(16.0 * uniform(5, i)) as usize] += 1;
        }
        let deviation = (160_000.0_f64 / 16.0 * (15.0 / 16.0)).sqrt();
        assert!(counts.iter().all(|&n| (f64::from(n) - 10_000.0).abs() <= 5.0 * deviation), "{counts:?}");
    }

    #[test]
    fn streams_differ_and_indices_do_not_wrap() {
        let differ = |a: &dyn Fn(u64) -> u32, b: &dyn Fn(u64) -> u32| (0..64).any(|i| a(i) != b(i));
        assert!(differ(&|i| word(1, i), &|i| word(2, i)));
        assert!(differ(&|i| word(1, i), &|i| word(1 << 32, i)));
        assert!(differ(&|i| word(1, i), &|i| word(1, i + (1 << 34))));
    }
}
