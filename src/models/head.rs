//! From the transformer's rows to embeddings: pooling, then the modules behind it.
//!
//! ```text
//! x (T, D)  ->  pooling (B, kinds * D)  ->  Dense (B, N), Normalize, in the order of modules.json  ->  (B, width)
//! ```

mod backward;

pub use backward::SavedHead;

use crate::account::at;
use crate::error::{Error, Result};
use crate::models::dense::Dense;
use crate::models::modules::{Modules, Step};
use crate::models::pooling::{Pooling, normalize_rows, pool};
use crate::nn::state::{Loader, State, prefixed};
use crate::ops::buffer::zeros;
use crate::simd::{Float, active};

/// A module behind the pooling, in memory.
#[derive(Clone, Debug)]
enum Loaded<T> {
    Dense(Dense<T>),
    Normalize,
}

/// What follows the transformer.
#[derive(Clone, Debug)]
pub struct Head<T> {
    poolings: Vec<Pooling>,
    include_prompt: bool,
    steps: Vec<Loaded<T>>,
    /// D, the width of the token rows.
    d: usize,
    width: usize,
}

impl<T: Float> Head<T> {
    /// Reads the modules behind a transformer of width `d`; `pooling` stands in for the model's own.
    ///
    /// # Errors
    /// `ModelFormat` where weights cannot be read, `Memory`; `Value` for a pooling that does not fit what follows.
    pub fn load(modules: &Modules, pooling: Option<Pooling>, d: usize) -> Result<Self> {
        let poolings = pooling.map_or_else(|| modules.poolings.clone(), |one| vec![one]);
        let dense = modules.steps.iter().find_map(|step| match step {
            Step::Dense(dense) => Some(dense.in_features),
            Step::Normalize => None,
        });
        if let Some(wanted) = dense.filter(|&k| k != poolings.len() * d) {
            return Err(Error::Value(format!(
                "pooling: the model's Dense module takes rows of {wanted} numbers, these have {}",
                poolings.len() * d
            )));
        }
        let load = |step: &Step| match step {
            Step::Dense(dense) => dense.load().map(Loaded::Dense),
            Step::Normalize => Ok(Loaded::Normalize),
        };
        let steps = modules.steps.iter().map(load).collect::<Result<_>>()?;
        let width = if dense.is_some() { modules.width(d) } else { poolings.len() * d };
        Ok(Self { poolings, include_prompt: modules.include_prompt, steps, d, width })
    }

    /// The parameters of the Dense modules, which are numbered from 0.
    ///
    /// # Errors
    /// As [`Linear::weight`](crate::nn::linear::Linear::weight).
    pub fn state(&self) -> Result<State<T>> {
        let mut state = Vec::new();
        for (n, dense) in self.dense().enumerate() {
            state.extend(prefixed(&format!("dense.{n}.linear."), dense.state()?));
        }
        Ok(state)
    }

    /// The same with the parameters of a state; those missing stay.
    ///
    /// # Errors
    /// As [`Module::load`](crate::nn::state::Module::load).
    pub fn with_state(&self, loader: &mut Loader<T>) -> Result<Self> {
        let mut new = self.clone();
        let mut n = 0;
        for step in &mut new.steps {
            if let Loaded::Dense(dense) = step {
                *dense = dense.with_state(&format!("dense.{n}.linear."), loader)?;
                n += 1;
            }
        }
        Ok(new)
    }

    fn dense(&self) -> impl Iterator<Item = &Dense<T>> {
        self.steps.iter().filter_map(|step| match step {
            Loaded::Dense(dense) => Some(dense),
            Loaded::Normalize => None,
        })
    }

    /// The width of the embeddings.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The kinds of pooling, side by side.
    pub fn poolings(&self) -> &[Pooling] {
        &self.poolings
    }

    /// Whether a prompt's tokens count in the pooling, as the folder says; the caller of [`Head::embed`] heeds it.
    pub fn include_prompt(&self) -> bool {
        self.include_prompt
    }

    /// Whether embeddings come out with length 1.
    pub fn normalizes(&self) -> bool {
        matches!(self.steps.last(), Some(Loaded::Normalize))
    }

    /// Embeddings (B, width) of the rows x (T, D) of B texts; text b has the rows `starts[b]..starts[b + 1]`.
    /// The first `left_out` tokens of each, those of a prompt, do not count.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    pub fn embed(&self, x: &[T], starts: &[usize], left_out: usize) -> Result<Vec<T>> {
        at!(Pooling);
        let mut width = self.poolings.len() * self.d;
        let mut rows = zeros((starts.len() - 1) * width)?;
        pool(&self.poolings, x, starts, left_out, self.d, &mut rows);
        for step in &self.steps {
            match step {
                Loaded::Normalize => normalize_rows(active()?, &mut rows, width),
                Loaded::Dense(dense) => {
                    rows = dense.forward(&rows)?;
                    width = dense.n();
                }
            }
        }
        Ok(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::dense::DenseFiles;
    use crate::models::dense::tests::write_dense;
    use crate::models::folder::Folder;
    use crate::models::tensor_data::Access;

    /// cls and mean of two numbers, a Dense from four to three, unit length; prompts left out.
    fn modules(dir: &std::path::Path) -> Modules {
        write_dense(dir, (3, 4), "torch.nn.modules.activation.Tanh");
        let dense = DenseFiles::open(&Folder::open(dir).unwrap(), Access::Read).unwrap();
        Modules {
            poolings: vec![Pooling::Cls, Pooling::Mean],
            include_prompt: false,
            steps: vec![Step::Dense(Box::new(dense)), Step::Normalize],
        }
    }

    #[test]
    fn the_chain_by_hand() {
        let dir = tempfile::tempdir().unwrap();
        let modules = modules(dir.path());
        let head = Head::<f64>::load(&modules, None, 2).unwrap();
        assert_eq!((head.width(), head.normalizes(), head.include_prompt()), (3, true, false));
        let x = [9.0, 9.0, 0.5, -0.25, 1.5, 0.75, 0.125, 2.0];
        let got = head.embed(&x, &[0, 3, 4], 1).unwrap();
        let Step::Dense(dense) = &modules.steps[0] else { panic!() };
        let mut want = dense.load::<f64>().unwrap().forward(&[0.5, -0.25, 1.0, 0.25]).unwrap();
        normalize_rows(active().unwrap(), &mut want, 3);
        assert_eq!(got[..3], want);
        // The second text is all prompt: pooled to zeros, it still has the bias.
        let mut bias = dense.load::<f64>().unwrap().forward(&[0.0; 4]).unwrap();
        normalize_rows(active().unwrap(), &mut bias, 3);
        assert_eq!(got[3..], bias);
        assert_eq!(head.embed(&x[..6], &[0, 3], 1).unwrap(), want);
        assert!(head.embed(&[], &[0], 0).unwrap().is_empty());
    }

    #[test]
    fn another_pooling_must_fit_the_dense_module() {
        let dir = tempfile::tempdir().unwrap();
        let mut modules = modules(dir.path());
        let got = Head::<f32>::load(&modules, Some(Pooling::Max), 2);
        assert!(matches!(got, Err(Error::Value(text)) if text.contains("pooling")));
        modules.steps.remove(0);
        let head = Head::<f32>::load(&modules, Some(Pooling::Max), 2).unwrap();
        assert_eq!((head.width(), head.poolings()), (2, &[Pooling::Max][..]));
    }
}
