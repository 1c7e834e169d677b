//! A table of rows, one for each id: `y = weight[id]`.
//!
//! The gradient of the table is a sum over the places where an id stood, in their order: the places are sorted by their
//! ids first (stably, by counting), so that each row of the table is one thread's own and no thread count shows in a
//! sum. As in every sum over rows, blocks of 256 places start at zero and are added in order.

use super::init::Init;
use super::state::{Loader, Module, State, Tensor};
use crate::error::Result;
use crate::kernels::gemm::OutRows;
use crate::ops::aligned::with_scratch;
use crate::ops::buffer::{elements, zeros};
use crate::ops::rows::over_rows;
use crate::ops::try_parallel;
use crate::simd::Float;

/// Places that one chain of additions takes.
const BLOCK: usize = 256;

/// Rows of the table whose gradients are one task; most rows of a large table stood nowhere in a batch.
const TASK_ROWS: usize = 64;

/// A table (N, D) with one row for each id.
#[derive(Clone, Debug)]
pub struct Embedding<T> {
    weight: Vec<T>,
    n: usize,
    width: usize,
    padding: Option<usize>,
}

impl<T: Float> Embedding<T> {
    /// Standard normal numbers, as torch begins, and zeros in the row of `padding`, which is below `n`.
    ///
    /// # Errors
    /// `Shape` for too many numbers, `Memory`.
    pub fn new((n, width): (usize, usize), padding: Option<usize>, init: &mut Init) -> Result<Self> {
        let mut weight = init.normal(&[n, width])?.vector()?;
        if let Some(id) = padding {
            weight[id * width..(id + 1) * width].fill(T::ZERO);
        }
        Ok(Self { weight, n, width, padding })
    }

    /// N
    pub fn n(&self) -> usize {
        self.n
    }

    /// D
    pub fn width(&self) -> usize {
        self.width
    }

    /// The id whose row gets no gradient.
    pub fn padding(&self) -> Option<usize> {
        self.padding
    }

    /// The same in another float type.
    ///
    /// # Errors
    /// `Memory`.
    pub fn cast<U: Float>(&self) -> Result<Embedding<U>> {
        let mut weight = zeros(self.weight.len())?;
        weight.iter_mut().zip(&self.weight).for_each(|(y, x): (&mut U, _)| *y = U::from_f64(x.to_f64()));
        Ok(Embedding { weight, n: self.n, width: self.width, padding: self.padding })
    }

    /// The rows of `ids`, all below N, into `out` (ids, D).
    ///
    /// # Errors
    /// `Interrupted`, `Internal`.
    pub fn forward(&self, ids: &[usize], out: &mut [T]) -> Result<()> {
        let width = self.width;
        over_rows(out, width, 1 + width / 8, |first, out| {
            for (row, &id) in out.chunks_exact_mut(width).zip(&ids[first..]) {
                row.copy_from_slice(&self.weight[id * width..(id + 1) * width]);
            }
        })
    }

    /// The gradient of the table, named as in the state, from `dy` (ids, D): zeros for ids that are not there, and for the
    /// padding.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    pub fn backward(&self, ids: &[usize], dy: &[T]) -> Result<State<T>> {
        let weight = table_gradient(ids, dy, (self.n, self.width), self.padding)?;
        Ok(vec![("weight".to_owned(), Tensor::new(&[self.n, self.width], weight))])
    }
}

/// The gradient of a table (N, D) whose rows `ids` were taken, from `dy` (ids, D): zeros for ids that are not there, and for
/// the padding.
///
/// # Errors
/// `Memory`, `Interrupted`, `Internal`.
pub fn table_gradient<T: Float>(
    ids: &[usize],
    dy: &[T],
    (n, width): (usize, usize),
    padding: Option<usize>,
) -> Result<Vec<T>> {
    let mut weight: Vec<T> = zeros(elements("weight", &[n, width])?)?;
    let sorted = Places::of(ids, n, padding)?;
    let rows = OutRows::new(&mut weight[..]);
    try_parallel(n.div_ceil(TASK_ROWS), |task| {
        let own = task * TASK_ROWS..n.min((task + 1) * TASK_ROWS);
        // SAFETY: each task has rows of its own.
        let out = unsafe { rows.slice(own.start * width, own.len() * width) };
        with_scratch(width, |sum: &mut [T]| {
            for (id, row) in own.zip(out.chunks_exact_mut(width)) {
                for block in sorted.places(id).chunks(BLOCK) {
                    sum.fill(T::ZERO);
                    for &place in block {
                        add(sum, &dy[place * width..(place + 1) * width]);
                    }
                    add(row, sum);
                }
            }
            Ok(())
        })
    })?;
    Ok(weight)
}

fn add<T: Float>(x: &mut [T], y: &[T]) {
    x.iter_mut().zip(y).for_each(|(x, &y)| *x += y);
}

/// Places in ascending order for each id.
struct Places {
    /// The first place of each id in `sorted`, and the end of the last.
    starts: Vec<usize>,
    sorted: Vec<usize>,
}

impl Places {
    /// Those of all ids but `without`.
    fn of(ids: &[usize], n: usize, without: Option<usize>) -> Result<Self> {
        let mut starts: Vec<usize> = zeros(n + 1)?;
        let wanted = || ids.iter().enumerate().filter(|&(_, &id)| Some(id) != without);
        wanted().for_each(|(_, &id)| starts[id + 1] += 1);
        for id in 0..n {
            starts[id + 1] += starts[id];
        }
        let mut sorted = zeros(starts[n])?;
        // `starts[id]` walks to the end of its id, which is where the next begins.
        for (place, &id) in wanted() {
            sorted[starts[id]] = place;
            starts[id] += 1;
        }
        starts.rotate_right(1);
        starts[0] = 0;
        Ok(Self { starts, sorted })
    }

    fn places(&self, id: usize) -> &[usize] {
        &self.sorted[self.starts[id]..self.starts[id + 1]]
    }
}

impl<T: Float> Module<T> for Embedding<T> {
    fn state(&self) -> Result<State<T>> {
        let mut copy = zeros(self.weight.len())?;
        copy.copy_from_slice(&self.weight);
        Ok(vec![("weight".to_owned(), Tensor::new(&[self.n, self.width], copy))])
    }

    fn num_parameters(&self) -> usize {
        self.weight.len()
    }

    fn load(&self, prefix: &str, loader: &mut Loader<T>) -> Result<Self> {
        let given = loader.take(&format!("{prefix}weight"), &[self.n, self.width])?;
        let weight = match given {
            Some(tensor) => tensor.data,
            None => self.weight.clone(),
        };
        Ok(Self { weight, ..*self })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{assert_same_bits, normals};

    #[test]
    fn rows_are_those_of_the_ids() {
        let table = Embedding::<f32>::new((7, 5), Some(2), &mut Init::new(1)).unwrap();
        let ids = [6, 0, 2, 6, 3];
        let mut out = vec![f32::NAN; 25];
        table.forward(&ids, &mut out).unwrap();
        for (row, id) in out.chunks(5).zip(ids) {
            assert_same_bits(row, &table.weight[5 * id..5 * id + 5]);
        }
        assert_eq!(out[10..15], [0.0; 5]);
    }

    #[test]
    fn gradients_are_summed_in_the_order_of_places() {
        for (n, width, count) in [(1, 1, 0), (1, 3, 1), (3, 5, 2000), (300, 7, 1000)] {
            let table = Embedding::<f32>::new((n, width), Some(n / 2), &mut Init::new(1)).unwrap();
            let ids: Vec<usize> = (0..count).map(|i| (i * i + i / 3) % n).collect();
            let dy: Vec<f32> = normals(count * width, 2, 1.0);
            let mut want = vec![0.0f32; n * width];
            for id in (0..n).filter(|&id| id != n / 2) {
                let places: Vec<usize> = (0..count).filter(|&p| ids[p] == id).collect();
                for column in 0..width {
                    for block in places.chunks(BLOCK) {
                        want[id * width + column] +=
                            block.iter().fold(0.0, |sum, p| sum + dy[p * width + column]);
                    }
                }
            }
            let grads = table.backward(&ids, &dy).unwrap();
            assert_eq!((grads[0].0.as_str(), &grads[0].1.shape), ("weight", &vec![n, width]));
            assert_same_bits(&grads[0].1.data, &want);
        }
    }
}
