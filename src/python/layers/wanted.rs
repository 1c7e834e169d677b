//! The weights that a call of a stack wants: none, all, or those of some (layer, head), and how they are handed over.

use numpy::Element;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyList, PyString};

use super::batch::{Axes, give_weights};
use crate::error::Error;
use crate::nn::attention::WantedHeads;
use crate::simd::Float;

/// Which weights a call wants.
pub enum Wanted {
    None,
    All,
    /// (layer, head) in the order of asking.
    Pairs(Vec<(usize, usize)>),
}

impl Wanted {
    /// Reads `need_weights=` of a stack whose layers have so many heads.
    ///
    /// # Errors
    /// `TypeError` for anything but booleans and pairs, `ValueError` for a head that is not there.
    pub fn read(object: Option<&Bound<'_, PyAny>>, heads: &[usize]) -> PyResult<Self> {
        let Some(object) = object.filter(|o| !o.is_none()) else { return Ok(Wanted::None) };
        if let Ok(all) = object.cast::<PyBool>() {
            return Ok(if all.is_true() { Wanted::All } else { Wanted::None });
        }
        let expected = "need_weights: expected True, False or a list of (layer, head)";
        let wrong = |came: &dyn std::fmt::Display| Error::Type(format!("{expected}, got {came}"));
        if object.is_instance_of::<PyString>() {
            return Err(wrong(object).into());
        }
        let mut pairs = Vec::new();
        for pair in object.try_iter().map_err(|_| wrong(object))? {
            let pair = pair?;
            let (layer, head): (usize, usize) = pair.extract().map_err(|_| wrong(&pair))?;
            let of_layer = heads.get(layer).copied().unwrap_or(0);
            if head >= of_layer {
                return Err(Error::Value(format!(
                    "need_weights: layer {layer}, head {head} is not there (layers: {}{})",
                    heads.len(),
                    if of_layer > 0 { format!(", heads of this layer: {of_layer}") } else { String::new() }
                ))
                .into());
            }
            if !pairs.contains(&(layer, head)) {
                pairs.push((layer, head));
            }
        }
        Ok(Wanted::Pairs(pairs))
    }

    /// Whether nothing is wanted.
    pub fn is_none(&self) -> bool {
        matches!(self, Wanted::None)
    }

    /// The heads listed of each of so many layers.
    pub fn listed(&self, layers: usize) -> Vec<Vec<usize>> {
        let of_layer = |n: usize| match self {
            Wanted::Pairs(pairs) => pairs.iter().filter(|p| p.0 == n).map(|p| p.1).collect(),
            _ => Vec::new(),
        };
        (0..layers).map(of_layer).collect()
    }

    /// The same as the crate takes it; `listed` is what [`Self::listed`] gave. Nothing wanted of any layer is said by nothing.
    pub fn of_layers<'a>(&self, listed: &'a [Vec<usize>]) -> Vec<WantedHeads<'a>> {
        let of_layer = |heads: &'a Vec<usize>| match self {
            Wanted::All => WantedHeads::All,
            Wanted::Pairs(_) if !heads.is_empty() => WantedHeads::Some(heads),
            _ => WantedHeads::None,
        };
        if self.is_none() { Vec::new() } else { listed.iter().map(of_layer).collect() }
    }

    /// Hands weights over, (heads, L, S) of each sequence back to back for each layer: a list of layers, or a dict of (layer,
    /// head); nothing where none are wanted. `heads` are those of each layer.
    ///
    /// # Errors
    /// `MemoryError`.
    pub fn give<'py, T: Float + Element>(
        &self,
        py: Python<'py>,
        weights: Vec<Vec<T>>,
        heads: &[usize],
        (queries, keys): (&Axes, &Axes),
    ) -> PyResult<Option<Bound<'py, PyAny>>> {
        let pairs = match self {
            Wanted::None => return Ok(None),
            Wanted::All => {
                let list = PyList::empty(py);
                for (&heads, weights) in heads.iter().zip(weights) {
                    list.append(give_weights(py, queries, keys, weights, Some(heads))?)?;
                }
                return Ok(Some(list.into_any()));
            }
            Wanted::Pairs(pairs) => pairs,
        };
        let listed = self.listed(heads.len());
        let products: Vec<usize> = lengths(queries).iter().zip(lengths(keys)).map(|(l, s)| l * s).collect();
        let dict = PyDict::new(py);
        for &(layer, head) in pairs {
            let slot = listed[layer].iter().position(|&h| h == head).unwrap_or(0);
            let (mut one, mut at) = (Vec::new(), 0);
            for &n in &products {
                one.extend_from_slice(&weights[layer][at + slot * n..][..n]);
                at += listed[layer].len() * n;
            }
            dict.set_item((layer, head), give_weights(py, queries, keys, one, None)?)?;
        }
        Ok(Some(dict.into_any()))
    }
}

fn lengths(axes: &Axes) -> Vec<usize> {
    match axes {
        Axes::Single(l) => vec![*l],
        Axes::Batch(b, l) => vec![*l; *b],
        Axes::List(lengths) => lengths.clone(),
    }
}
