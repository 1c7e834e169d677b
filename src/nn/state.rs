//! Parameters by name, in torch's names wherever torch could hold the layer.

use std::collections::BTreeMap;

use crate::error::{Error, Result};

/// A parameter: row-major numbers and their shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor<T> {
    /// Extent of each axis.
    pub shape: Vec<usize>,
    /// The numbers.
    pub data: Vec<T>,
}

impl<T: Copy> Tensor<T> {
    /// A tensor of the given shape.
    pub fn new(shape: &[usize], data: Vec<T>) -> Self {
        assert_eq!(shape.iter().product::<usize>(), data.len(), "numbers of a tensor");
        Self { shape: shape.to_vec(), data }
    }
}

/// Parameters in the order in which a layer names them.
pub type State<T> = Vec<(String, Tensor<T>)>;

/// Buffers that checkpoints carry and that are no parameters.
const KNOWN_BUFFERS: [&str; 4] = ["position_ids", "token_type_ids", "inv_freq", "attn_mask"];

/// Prefixes that wrappers of a model put before every name.
const PREFIXES: [&str; 3] = ["module.", "_orig_mod.", "bert."];

/// A name without the prefixes of wrappers.
pub fn short_name(name: &str) -> &str {
    let mut short = name;
    while let Some(rest) = PREFIXES.iter().find_map(|p| short.strip_prefix(p)) {
        short = rest;
    }
    short
}

/// Hands out the parameters of a state by name and shape, each once, and knows at the end which were never asked for.
pub struct Loader<T> {
    given: BTreeMap<String, Tensor<T>>,
    missing: Vec<String>,
}

impl<T: Copy> Loader<T> {
    /// Takes a state; wrappers' prefixes are cut off, known buffers left out.
    ///
    /// # Errors
    /// `Value` for parameters that headwise does not compute with.
    pub fn new(given: impl IntoIterator<Item = (String, Tensor<T>)>) -> Result<Self> {
        let mut all = BTreeMap::new();
        for (name, tensor) in given {
            let short = short_name(&name);
            let last = short.rsplit('.').next().unwrap_or(short);
            if matches!(last, "bias_k" | "bias_v") {
                return Err(Error::Value(format!(
                    "state: {name} cannot be loaded: headwise has no learned extra key and value \
                     (torch's add_bias_kv=True); append them to key and value yourself"
                )));
            }
            if !KNOWN_BUFFERS.contains(&last) {
                all.insert(short.to_owned(), tensor);
            }
        }
        Ok(Self { given: all, missing: Vec::new() })
    }

    /// Whether a parameter is there and was not taken yet.
    pub fn has(&self, name: &str) -> bool {
        self.given.contains_key(name)
    }

    /// A parameter of the given shape, or none where it is missing (which [`Self::finish`] reports).
    ///
    /// # Errors
    /// `Shape` where it has another shape.
    pub fn take(&mut self, name: &str, shape: &[usize]) -> Result<Option<Tensor<T>>> {
        let Some(tensor) = self.given.remove(name) else {
            self.missing.push(name.to_owned());
            return Ok(None);
        };
        if tensor.shape != shape {
            return Err(Error::Shape(format!(
                "state: {name}: expected shape {shape:?}, got {:?}",
                tensor.shape
            )));
        }
        Ok(Some(tensor))
    }

    /// A parameter of one axis in the place of `current`, which stays where it is missing; none where the layer is
    /// without.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn take_vec(&mut self, name: &str, current: Option<&[T]>) -> Result<Option<Vec<T>>> {
        let Some(current) = current else { return Ok(None) };
        let given = self.take(name, &[current.len()])?;
        Ok(Some(given.map_or_else(|| current.to_vec(), |tensor| tensor.data)))
    }

    /// Says what was missing and what was left over.
    ///
    /// # Errors
    /// `Value` where `strict` and either is not empty.
    pub fn finish(self, strict: bool) -> Result<()> {
        let left: Vec<&str> = self.given.keys().map(String::as_str).collect();
        if !strict || (left.is_empty() && self.missing.is_empty()) {
            return Ok(());
        }
        let mut parts = Vec::new();
        if !self.missing.is_empty() {
            parts.push(format!("missing {}", self.missing.join(", ")));
        }
        if !left.is_empty() {
            parts.push(format!("unexpected {}", left.join(", ")));
        }
        Err(Error::Value(format!("state: {}; strict=False loads what fits", parts.join("; "))))
    }
}

/// What has parameters that can be read and loaded by name.
pub trait Module<T>: Sized {
    /// Copies of the parameters, in order.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    fn state(&self) -> Result<State<T>>;

    /// How many numbers the parameters have.
    fn num_parameters(&self) -> usize;

    /// The same with the parameters of a state; those missing stay.
    ///
    /// # Errors
    /// `Shape` where a parameter has another shape.
    fn load(&self, prefix: &str, loader: &mut Loader<T>) -> Result<Self>;
}

/// Puts a prefix before every name.
pub fn prefixed<T>(prefix: &str, state: State<T>) -> impl Iterator<Item = (String, Tensor<T>)> {
    state.into_iter().map(move |(name, tensor)| (format!("{prefix}{name}"), tensor))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(n: usize) -> Tensor<f32> {
        Tensor::new(&[n], vec![1.0; n])
    }

    #[test]
    fn prefixes_are_cut_and_buffers_left_out() {
        let given = [("module._orig_mod.w", 2), ("bert.embeddings.position_ids", 5)];
        let mut loader = Loader::new(given.map(|(n, k)| (n.to_owned(), tensor(k)))).unwrap();
        assert_eq!(loader.take("w", &[2]).unwrap(), Some(tensor(2)));
        loader.finish(true).unwrap();
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let mut loader = Loader::new([("a".to_owned(), tensor(2)), ("c".to_owned(), tensor(1))]).unwrap();
        let error = loader.take("a", &[3]).unwrap_err().to_string();
        assert!(error.contains('a') && error.contains("[3]") && error.contains("[2]"), "{error}");
        let mut loader = Loader::new([("a".to_owned(), tensor(2)), ("c".to_owned(), tensor(1))]).unwrap();
        assert_eq!(loader.take("b", &[4]).unwrap(), None);
        assert_eq!(loader.take_vec("d", Some(&[5.0])).unwrap(), Some(vec![5.0]));
        let error = loader.finish(true).unwrap_err().to_string();
        assert!(error.contains("missing b, d") && error.contains("unexpected a, c"), "{error}");
        assert!(Loader::new([("x.bias_k".to_owned(), tensor(1))]).is_err());
    }
}
