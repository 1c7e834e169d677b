//! Philox4x32-10, the counter-based generator of Salmon et al. 2011: random numbers that depend on a key and an index alone.

/// Ten rounds over a counter.
pub fn philox4x32(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let a = 0xD251_1F53_u64 * u64::from(counter[0]);
        let b = 0xCD9E_8D57_u64 * u64::from(counter[2]);
        counter = [
            (b >> 32) as u32 ^ counter[1] ^ key[0],
            b as u32,
            (a >> 32) as u32 ^ counter[3] ^ key[1],
            a as u32,
        ];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    counter
}

/// Whether element `index` is kept where each is dropped with probability `p`.
pub fn keep(key: u64, index: u64, p: f64) -> bool {
    let block = index / 4;
    let numbers = philox4x32([block as u32, (block >> 32) as u32, 0, 0], [key as u32, (key >> 32) as u32]);
    f64::from(numbers[(index % 4) as usize]) >= p * 4_294_967_296.0
}
