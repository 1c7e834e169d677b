//! Parameters of multi-head attention: first values, names, loading, pruning.

use super::{AttentionConfig, MultiHeadAttention};
use crate::error::{Error, Result};
use crate::nn::init::Init;
use crate::nn::linear::Linear;
use crate::nn::state::{Loader, Module, State, Tensor, prefixed};
use crate::simd::Float;

impl<T: Float> MultiHeadAttention<T> {
    /// The same in another float type.
    ///
    /// # Errors
    /// As [`Linear::cast`].
    pub fn cast<U: Float>(&self) -> Result<MultiHeadAttention<U>> {
        Ok(MultiHeadAttention {
            config: self.config.clone(),
            q: self.q.cast()?,
            k: self.k.cast()?,
            v: self.v.cast()?,
            out: self.out.cast()?,
        })
    }

    /// A layer with given projections of the widths that the config names.
    pub fn from_parts(config: AttentionConfig, [q, k, v, out]: [Linear<T>; 4]) -> Self {
        Self { config, q, k, v, out }
    }

    /// Parameters as torch begins with them: projections of Glorot and Bengio, biases of zero.
    ///
    /// # Errors
    /// `Shape` for too many numbers, `Memory`.
    pub fn new(config: AttentionConfig, init: &mut Init) -> Result<Self> {
        let (wide, narrow) = (config.query_width(), config.kv_width());
        // torch draws a packed matrix as one: its fan out is three times the width.
        let fans = |rows: usize, columns: usize| {
            if config.is_packed() { 4 * config.d_model } else { rows + columns }
        };
        let bias = |n: usize| config.bias.then(|| vec![T::ZERO; n]);
        let mut projection = |n: usize, k: usize| init.xavier(&[n, k], fans(n, k))?.map((n, k), bias(n));
        let q = projection(wide, config.d_model)?;
        let k = projection(narrow, config.key_dim)?;
        let v = projection(narrow, config.value_dim)?;
        let out =
            init.linear(&[config.d_model, wide], wide)?.map((config.d_model, wide), bias(config.d_model))?;
        Ok(Self { config, q, k, v, out })
    }

    /// A layer without some heads: their rows of the projections and columns of the output projection are gone.
    ///
    /// # Errors
    /// `Value` for a head that is not there, for all of them, and for a choice that leaves groups of unequal size.
    pub fn prune(&self, heads: &[usize]) -> Result<Self> {
        let config = &self.config;
        if let Some(h) = heads.iter().find(|&&h| h >= config.num_heads) {
            return Err(Error::Value(format!(
                "heads: expected numbers below H = {}, got {h}",
                config.num_heads
            )));
        }
        let kept: Vec<usize> = (0..config.num_heads).filter(|h| !heads.contains(h)).collect();
        if kept.is_empty() {
            return Err(Error::Value(format!(
                "heads: at least one of the {} heads must stay",
                config.num_heads
            )));
        }
        let group = config.num_heads / config.num_kv_heads;
        let left = |g: usize| kept.iter().filter(|&&h| h / group == g).count();
        let kept_groups: Vec<usize> = (0..config.num_kv_heads).filter(|&g| left(g) > 0).collect();
        if kept_groups.iter().any(|&g| left(g) != left(kept_groups[0])) {
            return Err(Error::Value(format!(
                "heads: grouped queries need equally many heads left in every group of {group} that is left, got {heads:?}"
            )));
        }
        let e = config.head_dim;
        let out_weight = self.out.weight()?.data;
        let out_weight: Vec<T> = out_weight
            .chunks_exact(config.query_width())
            .flat_map(|row| kept.iter().flat_map(|&h| row[h * e..(h + 1) * e].iter().copied()))
            .collect();
        let config =
            AttentionConfig { num_heads: kept.len(), num_kv_heads: kept_groups.len(), ..config.clone() };
        Ok(Self {
            q: keep_rows(&self.q, &kept, e)?,
            k: keep_rows(&self.k, &kept_groups, e)?,
            v: keep_rows(&self.v, &kept_groups, e)?,
            out: Linear::new((config.d_model, config.query_width()), &out_weight, self.out.bias())?,
            config,
        })
    }
}

impl<T: Float> MultiHeadAttention<T> {
    /// What belongs to the four projections, parameters or their gradients, under the names of the state.
    pub(super) fn named(&self, [q, k, v, out]: [State<T>; 4]) -> State<T> {
        let config = &self.config;
        let mut state = Vec::new();
        let parts = [("q", q), ("k", k), ("v", v)];
        if config.fits_torch() {
            let (mut weights, mut biases) = (Vec::new(), Vec::new());
            for (x, part) in parts {
                for (name, tensor) in part {
                    if name == "weight" { weights.push((x, tensor)) } else { biases.extend(tensor.data) }
                }
            }
            if config.is_packed() {
                let d = config.d_model;
                let all = weights.into_iter().flat_map(|(_, w)| w.data).collect();
                state.push(("in_proj_weight".to_owned(), Tensor::new(&[3 * d, d], all)));
            } else {
                state.extend(weights.into_iter().map(|(x, w)| (format!("{x}_proj_weight"), w)));
            }
            if config.bias {
                state.push(("in_proj_bias".to_owned(), Tensor::new(&[biases.len()], biases)));
            }
        } else {
            for (x, part) in parts {
                state.extend(prefixed(&format!("{x}_proj."), part));
            }
        }
        state.extend(prefixed("out_proj.", out));
        state
    }
}

impl<T: Float> Module<T> for MultiHeadAttention<T> {
    fn state(&self) -> Result<State<T>> {
        let [q, k, v, out] = [&self.q, &self.k, &self.v, &self.out].map(Module::state);
        Ok(self.named([q?, k?, v?, out?]))
    }

    fn num_parameters(&self) -> usize {
        [&self.q, &self.k, &self.v, &self.out].map(Linear::num_parameters).iter().sum()
    }

    fn load(&self, prefix: &str, loader: &mut Loader<T>) -> Result<Self> {
        let name = |rest: &str| format!("{prefix}{rest}");
        let parts = [("q", &self.q), ("k", &self.k), ("v", &self.v)];
        let mut loaded = Vec::with_capacity(4);
        // Some of the separate form are enough: a state may hold a part of the layer.
        let separate =
            |x: &str| ["weight", "bias"].iter().any(|kind| loader.has(&name(&format!("{x}_proj.{kind}"))));
        let split = parts.iter().any(|(x, _)| separate(x))
            || !(self.config.fits_torch()
                || loader.has(&name("in_proj_weight"))
                || loader.has(&name("q_proj_weight")));
        if split {
            for (x, p) in parts {
                loaded.push(p.load(&name(&format!("{x}_proj.")), loader)?);
            }
        } else {
            let height = parts.iter().map(|(_, p)| p.n()).sum();
            let stacked =
                parts.iter().all(|(_, p)| p.k() == self.q.k()) && !loader.has(&name("q_proj_weight"));
            let all =
                if stacked { loader.take(&name("in_proj_weight"), &[height, self.q.k()])? } else { None };
            let mut own = [None, None, None];
            if !stacked {
                for ((x, p), own) in parts.iter().zip(&mut own) {
                    *own = loader.take(&name(&format!("{x}_proj_weight")), &[p.n(), p.k()])?;
                }
            }
            let bias = parts.map(|(_, p)| p.bias().unwrap_or_default()).concat();
            let bias = loader.take_vec(&name("in_proj_bias"), self.config.bias.then_some(&bias[..]))?;
            let mut at = 0;
            for ((_, p), own) in parts.into_iter().zip(own) {
                let (n, k) = (p.n(), p.k());
                let current;
                let weight = match (&all, &own) {
                    (Some(all), _) => &all.data[at * k..(at + n) * k],
                    (None, Some(own)) => &own.data[..],
                    (None, None) => {
                        current = p.weight()?;
                        &current.data[..]
                    }
                };
                loaded.push(Linear::new((n, k), weight, bias.as_ref().map(|b| &b[at..at + n]))?);
                at += n;
            }
        }
        loaded.push(self.out.load(&name("out_proj."), loader)?);
        let parts = loaded.try_into().expect("four projections");
        Ok(Self::from_parts(self.config.clone(), parts))
    }
}

fn keep_rows<T: Float>(linear: &Linear<T>, heads: &[usize], e: usize) -> Result<Linear<T>> {
    let width = linear.k();
    let weight = linear.weight()?.data;
    let rows: Vec<T> =
        heads.iter().flat_map(|h| weight[h * e * width..(h + 1) * e * width].iter().copied()).collect();
    let bias: Option<Vec<T>> =
        linear.bias().map(|b| heads.iter().flat_map(|h| b[h * e..(h + 1) * e].iter().copied()).collect());
    Linear::new((heads.len() * e, width), &rows, bias.as_deref())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// H heads, Hk groups, E, and the widths of keys and values; D = 12.
    fn layer(heads: (usize, usize, usize), widths: (usize, usize), bias: bool) -> MultiHeadAttention<f32> {
        let widths = (Some(widths.0), Some(widths.1));
        let config =
            AttentionConfig::new(12, heads.0, Some(heads.1), Some(heads.2), widths, bias, 0.0).unwrap();
        MultiHeadAttention::new(config, &mut Init::new(5)).unwrap()
    }

    fn names(state: &State<f32>) -> Vec<&str> {
        state.iter().map(|(name, _)| name.as_str()).collect()
    }

    /// Loads a state into a layer of the same form and other parameters; returns the state that is then there.
    fn reload(layer: &MultiHeadAttention<f32>, state: State<f32>) -> State<f32> {
        let other = MultiHeadAttention::new(layer.config.clone(), &mut Init::new(6)).unwrap();
        assert_ne!(other.state().unwrap(), layer.state().unwrap());
        let mut loader = Loader::new(state).unwrap();
        let loaded = other.load("", &mut loader).unwrap();
        loader.finish(true).unwrap();
        loaded.state().unwrap()
    }

    /// The form of separate layers, as checkpoints that torch's module does not fit have it.
    fn split(layer: &MultiHeadAttention<f32>) -> State<f32> {
        [("q_proj.", &layer.q), ("k_proj.", &layer.k), ("v_proj.", &layer.v), ("out_proj.", &layer.out)]
            .into_iter()
            .flat_map(|(name, part)| prefixed(name, part.state().unwrap()))
            .collect()
    }

    #[test]
    fn names_are_torchs_where_it_could_hold_the_layer() {
        let packed = layer((3, 3, 4), (12, 12), true).state().unwrap();
        assert_eq!(names(&packed), ["in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias"]);
        assert_eq!(packed[0].1.shape, [36, 12]);
        let widths = layer((3, 3, 4), (7, 9), false).state().unwrap();
        assert_eq!(names(&widths), ["q_proj_weight", "k_proj_weight", "v_proj_weight", "out_proj.weight"]);
        let grouped = layer((6, 2, 2), (12, 12), false).state().unwrap();
        assert_eq!(names(&grouped), ["q_proj.weight", "k_proj.weight", "v_proj.weight", "out_proj.weight"]);
    }

    #[test]
    fn every_form_loads() {
        for bias in [false, true] {
            for (heads, widths) in [((3, 3, 4), (12, 12)), ((3, 3, 4), (7, 9)), ((6, 2, 2), (12, 12))] {
                let layer = layer(heads, widths, bias);
                let state = layer.state().unwrap();
                assert_eq!(reload(&layer, state.clone()), state);
                assert_eq!(reload(&layer, split(&layer)), state);
                assert_eq!(layer.num_parameters(), state.iter().map(|(_, t)| t.data.len()).sum::<usize>());
            }
        }
    }

    #[test]
    fn a_part_of_the_separate_form_loads_alone() {
        let layer = layer((3, 3, 4), (12, 12), true);
        for (name, tensor) in split(&layer) {
            let other = MultiHeadAttention::new(layer.config.clone(), &mut Init::new(6)).unwrap();
            let other_state = split(&other);
            let changed = Tensor::new(&tensor.shape, tensor.data.iter().map(|x| x + 1.0).collect());
            let mut loader = Loader::new([(name.clone(), changed.clone())]).unwrap();
            let loaded = other.load("", &mut loader).unwrap();
            for ((own, now), (_, before)) in split(&loaded).into_iter().zip(other_state) {
                assert_eq!(now, if own == name { changed.clone() } else { before }, "{own} by {name}");
            }
        }
    }

    #[test]
    fn pruning_keeps_the_parameters_of_the_heads_that_stay() {
        let whole = layer((3, 3, 4), (12, 12), true);
        let pruned = whole.prune(&[1]).unwrap();
        assert_eq!((pruned.config.num_heads, pruned.config.num_kv_heads), (2, 2));
        for (small, large) in [(&pruned.q, &whole.q), (&pruned.k, &whole.k), (&pruned.v, &whole.v)] {
            let (small, large) = (small.weight().unwrap().data, large.weight().unwrap().data);
            assert_eq!(small, [&large[..4 * 12], &large[8 * 12..]].concat());
        }
        let (small, large) = (pruned.out.weight().unwrap().data, whole.out.weight().unwrap().data);
        for (small, large) in small.chunks(8).zip(large.chunks(12)) {
            assert_eq!(small, [&large[..4], &large[8..]].concat());
        }
        // Groups of three queries: one whole group may go, or one head of each.
        let grouped = layer((6, 2, 2), (12, 12), true);
        assert_eq!(grouped.prune(&[3, 4, 5]).unwrap().config.num_kv_heads, 1);
        assert_eq!(grouped.prune(&[0, 5]).unwrap().config.num_kv_heads, 2);
        for (refused, heads) in [(&grouped, &[0][..]), (&whole, &[0, 1, 2]), (&whole, &[3])] {
            assert!(refused.prune(heads).is_err(), "{heads:?}");
        }
    }
}
