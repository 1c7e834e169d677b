//! Attention pooling over pairs of a query and a key: scores that are no plain product, the normalisations of a row of
//! scores, and the sums over pairs that mixtures and gradients are made of.
//!
//! A pair that is blocked is not read: it takes no place in any sum, so that padding and holes leave the same bits as
//! rows from which they were cut.

pub mod backward;
pub mod map;
pub mod normalize;
pub mod pairs;
pub mod scores;
pub mod sparse;
