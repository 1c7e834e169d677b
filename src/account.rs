//! Where the time of a call goes: clock ticks by stage, for the account in docs/performance.md.
//!
//! It exists with feature `account` only, which `make account` builds beside the ordinary module. Without it [`at`] and
//! [`turn`] expand to nothing: the compiler sees the kernels as if they were not there.
//!
//! A stage lasts to the end of its block. One that begins inside another takes over from it and gives back at its end, so
//! that every tick is charged to one stage, the innermost. Each thread has a ledger of its own, which is added to the
//! totals of the process whenever its outermost stage ends: nothing is shared while a task runs.

#[cfg(any(test, feature = "account"))]
mod ledger;
#[cfg(feature = "account")]
mod running;

#[cfg(feature = "account")]
pub use running::{Part, Totals, call, stage, take, turn_to};

/// To the end of the block, this thread is at a stage: `at!(Norm)`, or `at!(if condition => Norm else Other)`.
macro_rules! at {
    ($stage:ident) => {
        #[cfg(feature = "account")]
        let _part = $crate::account::stage($crate::account::Stage::$stage);
    };
    (if $condition:expr => $stage:ident else $other:ident) => {
        #[cfg(feature = "account")]
        let _part = {
            use $crate::account::Stage;
            $crate::account::stage(if $condition { Stage::$stage } else { Stage::$other })
        };
    };
}
pub(crate) use at;

/// Goes on with another stage, to the end of the block of the [`at`] before.
macro_rules! turn {
    ($stage:ident) => {
        #[cfg(feature = "account")]
        $crate::account::turn_to($crate::account::Stage::$stage);
    };
}
pub(crate) use turn;

/// What a thread is at.
#[cfg(any(test, feature = "account"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Products with weights, up to the sum with its bias in the output.
    Product,
    /// Activations behind them.
    Activation,
    /// Residuals behind them.
    Residual,
    /// Layer norm and RMS norm.
    Norm,
    /// Rows of the embedding tables, added.
    Embedding,
    /// From the rows of a text to its embedding.
    Pooling,
    /// Keys and values of attention, turned and packed into tiles.
    Packing,
    /// Both products of attention.
    AttentionProduct,
    /// Its scores, maxima, exponentials and sums.
    Softmax,
    /// What else attention does: quotients, masks.
    Attention,
    /// Tasks are dealt out, and the last of them waited for.
    Threads,
    /// All else inside a call and inside its tasks.
    Other,
}

#[cfg(any(test, feature = "account"))]
impl Stage {
    /// All stages and their names, in the order of their numbers.
    pub const ALL: [(Self, &'static str); 12] = [
        (Self::Product, "product"),
        (Self::Activation, "activation"),
        (Self::Residual, "residual"),
        (Self::Norm, "norm"),
        (Self::Embedding, "embedding"),
        (Self::Pooling, "pooling"),
        (Self::Packing, "packing"),
        (Self::AttentionProduct, "attention product"),
        (Self::Softmax, "softmax"),
        (Self::Attention, "attention"),
        (Self::Threads, "threads"),
        (Self::Other, "other"),
    ];
}

#[cfg(test)]
mod tests {
    use super::Stage;

    #[test]
    fn stages_stand_at_their_numbers() {
        for (number, (stage, _)) in Stage::ALL.into_iter().enumerate() {
            assert_eq!(stage as usize, number);
        }
    }
}
