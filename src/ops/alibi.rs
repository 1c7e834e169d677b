//! Slopes of ALiBi (Press, Smith, Lewis 2022): head h adds -slope * distance to its scores.
//!
//! For n heads, n a power of two, the slopes are `2^(-8 (h + 1) / n)`. For other n they are those of the power of two below,
//! then every second one of the power above, as in the authors' code.

use super::buffer::zeros;
use crate::error::{Error, Result};
use crate::simd::Float;

/// One slope for each head, computed in f64.
///
/// # Errors
/// `Value` for no heads, `Memory`.
pub fn alibi_slopes<T: Float>(num_heads: usize) -> Result<Vec<T>> {
    if num_heads == 0 {
        return Err(Error::Value("num_heads: expected 1 or more, got 0".into()));
    }
    let power = 1_usize << num_heads.ilog2();
    let mut slopes = zeros(num_heads)?;
    for (h, slope) in slopes.iter_mut().enumerate() {
        // Of the power above every second one: h - power counts them, twice as finely spaced.
        let step = if h < power {
            (h + 1) as f64 / power as f64
        } else {
            (2 * (h - power) + 1) as f64 / (2.0 * power as f64)
        };
        *slope = T::from_f64(libm::exp2(-8.0 * step));
    }
    Ok(slopes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_of_two_are_exact() {
        assert_eq!(alibi_slopes::<f32>(1).unwrap(), [2f32.powi(-8)]);
        assert_eq!(alibi_slopes::<f32>(8).unwrap(), [-1, -2, -3, -4, -5, -6, -7, -8].map(|e| 2f32.powi(e)));
        assert_eq!(alibi_slopes::<f64>(16).unwrap()[1], 0.5);
    }

    #[test]
    fn other_numbers_are_filled_up_from_the_power_above() {
        let (twelve, eight, sixteen) = (
            alibi_slopes::<f64>(12).unwrap(),
            alibi_slopes::<f64>(8).unwrap(),
            alibi_slopes::<f64>(16).unwrap(),
        );
        assert_eq!(twelve[..8], eight);
        assert_eq!(twelve[8..], [sixteen[0], sixteen[2], sixteen[4], sixteen[6]]);
    }

    #[test]
    fn errors() {
        assert!(matches!(alibi_slopes::<f32>(0), Err(Error::Value(text)) if text.contains("num_heads")));
        assert!(matches!(alibi_slopes::<f64>(1 << 60), Err(Error::Memory(_))));
    }
}
