//! The gradient of attention over batches: cuts the work into tasks and hands each to the kernel.
//!
//! Where there are enough pairs of a sequence and a key/value head for the threads, a task is one such pair or several, and
//! computes all gradients in one sweep: five products. Else the gradients of queries are tasks by queries (three products),
//! and those of keys and values tasks by keys (four). The kernel's sums have one order, so the bits are the same. Beside the
//! gradients themselves, memory is needed for three numbers a row and a tile for each thread.

mod plan;
mod task;

use super::{Attention, Kept, Strides};
use crate::error::Result;
use crate::kernels::gemm::OutRows;
use crate::ops::try_parallel;
use crate::simd::{Float, Isa, active};
use crate::threads::team_size;
pub(crate) use plan::Plan;
use task::Shared;

/// What the forward pass left.
#[derive(Clone, Copy, Debug)]
pub struct Saved<'a, T> {
    /// The output, as [`Attention::run`] wrote it.
    pub out: &'a [T],
    /// The log-sum-exp of each row and its distances.
    pub lse: (&'a [T], Strides),
}

/// Where the gradient of a mask goes.
#[derive(Debug)]
pub struct MaskGradient<'a, T> {
    /// The numbers, zeros at first.
    pub data: &'a mut [T],
    /// Element (head, place of the query, place of the key) is at `head * strides[0] + query * strides[1] + key * strides[2]`
    /// from where the sequence begins; 0 along an axis that was repeated.
    pub strides: [usize; 3],
    /// Where each sequence begins: the same place for all of them, or for each its own part.
    pub starts: &'a [usize],
}

/// Where gradients go.
#[derive(Debug)]
pub struct Gradients<'a, T> {
    /// (L, E) for each of H heads, and distances.
    pub dq: (&'a mut [T], Strides),
    /// (S, E) for each of Hk heads; exactly 0 for keys that nobody may attend.
    pub dk: (&'a mut [T], Strides),
    /// (S, Ev) for each of Hk heads.
    pub dv: (&'a mut [T], Strides),
    /// The gradient of what is added to scores, if wanted.
    pub mask: Option<MaskGradient<'a, T>>,
    /// Where dq, dk and dv of each sequence begin, if not where its queries, keys and values do.
    pub starts: Option<&'a [[usize; 3]]>,
}

impl<T: Float> Attention<'_, T> {
    /// Writes the gradients of queries, keys and values of every sequence, given that of the output, which lies as the output
    /// does.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`; a wrong `HEADWISE_ISA`.
    pub fn backward(&self, saved: Saved<'_, T>, d_out: &[T], gradients: Gradients<'_, T>) -> Result<()> {
        let kept: Vec<Kept> = self.sequences.iter().map(Kept::of).collect::<Result<_>>()?;
        let plan = Plan::new(self, &kept, team_size());
        self.backward_by(active()?, &plan, &kept, saved, d_out, gradients)
    }

    /// The same with the instructions of `isa`, cut as `plan` has it.
    fn backward_by(
        &self,
        isa: Isa,
        plan: &Plan,
        kept: &[Kept],
        saved: Saved<'_, T>,
        d_out: &[T],
        gradients: Gradients<'_, T>,
    ) -> Result<()> {
        let Gradients { dq, dk, dv, mask, starts } = gradients;
        let jobs = plan.jobs(self, kept, mask.as_ref().map(|m| (m.strides, m.starts)));
        let shared = Shared {
            call: self,
            isa,
            kept,
            saved,
            d_out,
            operands: [dq, dk, dv].map(|(data, strides)| (OutRows::new(data), strides)),
            mask: mask.map(|m| (OutRows::new(m.data), m.strides, m.starts)),
            starts,
        };
        if plan.alone {
            return try_parallel(1, |_| jobs.iter().try_for_each(|job| shared.run(job)));
        }
        try_parallel(jobs.len(), |i| shared.run(&jobs[i]))
    }
}

#[cfg(test)]
mod tests;
