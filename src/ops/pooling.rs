//! Attention pooling, one step a call: scores, weights, sums over pairs, each with what its gradient needs.
//!
//! N is the number of batch elements times heads, L of queries, S of keys; all arrays are dense. The L x S matrix is
//! built: this is for small models and for looking into, [`super::attention`] is for the rest.

mod pairs;
mod rows;
mod weights;

pub use pairs::{Over, Pairs, pair_sums, product_scores, scores};
pub use rows::{map, unit_rows, unit_rows_backward};
pub use weights::{draw, weights, weights_backward};
