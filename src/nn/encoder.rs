//! A stack of encoder layers.

mod backward;
mod groups;
mod rows;

pub use backward::{SavedStack, StackGradients};

use std::ops::Range;

use super::attention::{Call, WantedHeads};
use super::encoder_layer::{EncoderLayer, LayerBuffers, LayerConfig};
use super::init::Init;
use super::norm::Norm;
use super::state::{Loader, Module, State, prefixed};
use super::tokens::Layout;
use crate::error::{Error, Result};
use crate::ops::masks::Element;
use crate::ops::positions::{Layout as Waves, sinusoidal_positions};
use crate::simd::Float;
use crate::threads::{num_threads, team_size};
use groups::{Group, groups_for, in_turn, side_by_side};

/// How a stack tells tokens apart by their place. Places count the tokens that masks keep, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Positions {
    /// Added to the input: sines and cosines (Vaswani et al. 2017).
    Sinusoidal,
    /// Queries and keys turned by their place (Su et al. 2021).
    Rotary,
    /// A bias that falls with distance (Press et al. 2022).
    Alibi,
}

/// Base of rotary positions, as in their paper.
pub(super) const ROTARY_THETA: f64 = 10_000.0;

/// Refuses rotary positions of an odd head width.
///
/// # Errors
/// `Value`.
pub(super) fn check_positions(positions: Option<Positions>, config: &LayerConfig) -> Result<()> {
    if positions == Some(Positions::Rotary) && !config.attention.head_dim.is_multiple_of(2) {
        return Err(Error::Value(format!(
            "positions: rotary positions turn pairs of columns and need an even head_dim, got {}",
            config.attention.head_dim
        )));
    }
    Ok(())
}

/// A stack with its parameters.
#[derive(Clone, Debug)]
pub struct Encoder<T> {
    /// The layers; pruning may have left them with different numbers of heads.
    pub layers: Vec<EncoderLayer<T>>,
    /// What each layer was made with.
    pub config: LayerConfig,
    /// How places are told.
    pub positions: Option<Positions>,
    norm: Option<Norm<T>>,
}

/// How a stack is called.
#[derive(Clone, Copy, Debug)]
pub struct StackCall<'a, T> {
    /// What masks say of each sequence; empty for nothing.
    pub masks: &'a [Element<'a, T>],
    /// Whether a token sees only those before it.
    pub causal: bool,
    /// Tokens seen to the left and to the right.
    pub window: (Option<usize>, Option<usize>),
    /// Factor of each head, for each layer.
    pub head_mask: Option<&'a [Vec<T>]>,
    /// Which weights of each layer; empty for none.
    pub weights: &'a [WantedHeads<'a>],
    /// Whether the states between layers are wanted.
    pub hidden_states: bool,
    /// Key of dropout in training.
    pub dropout: Option<u64>,
}

impl<'a, T> StackCall<'a, T> {
    /// The call of some of the sequences.
    fn of(&self, sequences: Range<usize>) -> StackCall<'a, T>
    where
        T: Copy,
    {
        StackCall { masks: self.masks.get(sequences).unwrap_or(&[]), ..*self }
    }
}

/// What a stack returns, all as rows without padding.
pub struct StackOutput<T> {
    /// (T, D)
    pub rows: Vec<T>,
    /// The input and the output of each layer, where wanted; the last with the final norm.
    pub hidden_states: Vec<Vec<T>>,
    /// Weights of each layer, (heads, L, S) of each sequence back to back; empty where none are wanted.
    pub weights: Vec<Vec<T>>,
}

impl<T> AsRef<Encoder<T>> for Encoder<T> {
    fn as_ref(&self) -> &Self {
        self
    }
}

impl<T: Float> Encoder<T> {
    /// The same in another float type.
    ///
    /// # Errors
    /// As [`EncoderLayer::cast`].
    pub fn cast<U: Float>(&self) -> Result<Encoder<U>> {
        Ok(Encoder {
            layers: self.layers.iter().map(EncoderLayer::cast).collect::<Result<_>>()?,
            config: self.config.clone(),
            positions: self.positions,
            norm: self.norm.as_ref().map(Norm::cast),
        })
    }

    /// A stack of given layers, without a final norm and without positions.
    pub fn from_layers(config: LayerConfig, layers: Vec<EncoderLayer<T>>) -> Self {
        Self { layers, config, positions: None, norm: None }
    }

    /// Parameters as torch begins with them.
    ///
    /// # Errors
    /// `Value` for rotary positions of an odd head width.
    pub fn new(
        num_layers: usize,
        config: LayerConfig,
        final_norm: bool,
        positions: Option<Positions>,
        init: &mut Init,
    ) -> Result<Self> {
        check_positions(positions, &config)?;
        let layers =
            (0..num_layers).map(|_| EncoderLayer::new(config.clone(), init)).collect::<Result<_>>()?;
        let norm = final_norm.then(|| {
            Norm::new(config.norm, config.attention.d_model, config.layer_norm_eps, config.attention.bias)
        });
        Ok(Self { layers, config, positions, norm })
    }

    /// Whether a norm follows the last layer.
    pub fn has_final_norm(&self) -> bool {
        self.norm.is_some()
    }

    /// Takes rows (T, D) through all layers.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    pub fn forward(&self, rows: Vec<T>, layout: &Layout, call: &StackCall<'_, T>) -> Result<StackOutput<T>> {
        let mut x = rows;
        if self.positions == Some(Positions::Sinusoidal) {
            self.add_positions(&mut x, layout)?;
        }
        let mut output = StackOutput { rows: Vec::new(), hidden_states: Vec::new(), weights: Vec::new() };
        output.weights = vec![Vec::new(); self.layers.len()];
        let team = num_threads()?.min(team_size());
        // Dropout counts its numbers over the whole batch, and hidden states are those of the whole batch.
        let whole = call.dropout.is_some() || call.hidden_states;
        let groups = if whole { layout.groups(usize::MAX) } else { groups_for(layout, team) };
        if team > 1 && groups.len() >= team {
            side_by_side(self, self.cut(&mut x, layout, &groups), call, &mut output)?;
        } else if team > 1 && rows::fits(self, layout, call, team) {
            rows::in_rows(self, &mut x, layout, call, team)?;
        } else {
            in_turn(self, self.cut(&mut x, layout, &groups), call, &mut output)?;
        }
        if let Some(norm) = &self.norm {
            let mut normed = crate::ops::buffer::zeros(x.len())?;
            norm.forward(&x, &mut normed)?;
            x = normed;
        }
        if call.hidden_states {
            output.hidden_states.push(x.clone());
        }
        output.rows = x;
        Ok(output)
    }

    /// The groups with their rows of `x`.
    fn cut<'x>(&self, x: &'x mut [T], layout: &Layout, groups: &[Range<usize>]) -> Vec<Group<'x, T>> {
        let d = self.config.attention.d_model;
        let mut rest = x;
        let mut cut = Vec::with_capacity(groups.len());
        for sequences in groups {
            let layout = layout.part(sequences.clone());
            let (rows, after) = rest.split_at_mut(layout.total() * d);
            rest = after;
            cut.push(Group { sequences: sequences.clone(), layout, rows });
        }
        cut
    }

    /// Takes the rows of some sequences through all layers; `buffers` have room for those of `largest`.
    fn layers_of_group(
        &self,
        x: &mut [T],
        (layout, largest): (&Layout, &Layout),
        call: &StackCall<'_, T>,
        buffers: &mut Option<((usize, usize), LayerBuffers<T>)>,
        output: &mut StackOutput<T>,
    ) -> Result<()> {
        for (n, layer) in self.layers.iter().enumerate() {
            if call.hidden_states {
                output.hidden_states.push(x.to_vec());
            }
            let slopes = self.slopes(layer)?;
            let weights = call.weights.get(n).copied().unwrap_or(WantedHeads::None);
            let of_layer = Call { weights, ..self.call_of(n, call, slopes.as_deref()) };
            // Layers share the buffers as long as they have the same widths.
            let config = &layer.config.attention;
            let widths = (config.query_width(), config.kv_width());
            if buffers.as_ref().is_none_or(|(of, _)| *of != widths) {
                *buffers = Some((widths, layer.buffers(largest, call.dropout.is_some())?));
            }
            let (_, buffers) = buffers.as_mut().expect("made above");
            let next = self.layers.get(n + 1).map_or(&[][..], EncoderLayer::panels);
            let weights = layer.forward(x, layout, &of_layer, buffers, next)?;
            if output.weights[n].is_empty() {
                output.weights[n] = weights;
            } else {
                output.weights[n].extend(weights);
            }
        }
        Ok(())
    }

    fn add_positions(&self, x: &mut [T], layout: &Layout) -> Result<()> {
        let d = self.config.attention.d_model;
        let longest = layout.lengths.iter().copied().max().unwrap_or(0);
        let table = sinusoidal_positions::<T>(longest, d, Waves::Interleaved)?;
        let mut at = 0;
        for &n in &layout.lengths {
            x[at..at + n * d].iter_mut().zip(&table).for_each(|(x, &p)| *x += p);
            at += n * d;
        }
        Ok(())
    }

    /// A stack without some heads of some layers.
    ///
    /// # Errors
    /// `Value` for a layer that is not there, and those of [`EncoderLayer::prune`].
    pub fn prune(&self, heads: &[(usize, Vec<usize>)]) -> Result<Self> {
        let mut pruned = self.clone();
        for (n, heads) in heads {
            let layer = pruned.layers.get(*n).ok_or_else(|| {
                Error::Value(format!("heads: expected layers below {}, got {n}", self.layers.len()))
            })?;
            pruned.layers[*n] = layer.prune(heads)?;
        }
        Ok(pruned)
    }
}

impl<T: Float> Module<T> for Encoder<T> {
    fn state(&self) -> Result<State<T>> {
        let mut state = Vec::new();
        for (n, layer) in self.layers.iter().enumerate() {
            state.extend(prefixed(&format!("layers.{n}."), layer.state()?));
        }
        if let Some(norm) = &self.norm {
            state.extend(prefixed("norm.", norm.state()?));
        }
        Ok(state)
    }

    fn num_parameters(&self) -> usize {
        let norm = self.norm.as_ref().map_or(0, Module::num_parameters);
        self.layers.iter().map(Module::num_parameters).sum::<usize>() + norm
    }

    fn load(&self, prefix: &str, loader: &mut Loader<T>) -> Result<Self> {
        let layers = self.layers.iter().enumerate();
        let layers =
            layers.map(|(n, l)| l.load(&format!("{prefix}layers.{n}."), loader)).collect::<Result<_>>()?;
        let norm = match &self.norm {
            Some(norm) => Some(norm.load(&format!("{prefix}norm."), loader)?),
            None => None,
        };
        Ok(Self { layers, norm, config: self.config.clone(), positions: self.positions })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::activation::Activation;
    use crate::kernels::testing::{assert_same_bits, normals};
    use crate::nn::attention::AttentionConfig;
    use crate::nn::norm::NormKind;
    use crate::threads::override_num_threads;

    const D: usize = 16;

    fn stack(
        positions: Option<Positions>,
        norm_first: bool,
        change: impl Fn(&mut LayerConfig),
    ) -> Encoder<f32> {
        let attention = AttentionConfig::new(D, 4, Some(2), None, (None, None), true, 0.0).unwrap();
        let mut config = LayerConfig {
            attention,
            d_ff: 24,
            activation: Activation::Gelu,
            norm: NormKind::Layer,
            norm_first,
            layer_norm_eps: 1e-5,
            gated: false,
        };
        change(&mut config);
        Encoder::new(2, config, norm_first, positions, &mut Init::new(1)).unwrap()
    }

    fn call(dropout: Option<u64>) -> StackCall<'static, f32> {
        StackCall {
            masks: &[],
            causal: true,
            window: (None, None),
            head_mask: None,
            weights: &[],
            hidden_states: false,
            dropout,
        }
    }

    fn run(stack: &Encoder<f32>, rows: &[f32], layout: &Layout, dropout: Option<u64>) -> Vec<f32> {
        stack.forward(rows.to_vec(), layout, &call(dropout)).unwrap().rows
    }

    #[test]
    fn positions_count_the_tokens_that_are_kept() {
        let lengths = [3, 70];
        let rows = normals(73 * D, 1, 1.0);
        // Padding on the left of the first sequence, and a hole in the second.
        let keep: Vec<bool> = (0..2 * 71).map(|i| if i < 71 { i >= 68 } else { i != 80 }).collect();
        let padded = Layout::padded(2, 71, Some(&keep));
        assert_eq!(padded.lengths, lengths);
        let (kinds, dense) =
            ([Positions::Sinusoidal, Positions::Rotary, Positions::Alibi], Layout::dense(lengths.to_vec()));
        let mut seen = vec![run(&stack(None, false, |_| ()), &rows, &dense, None)];
        for positions in kinds {
            let stack = stack(Some(positions), false, |_| ());
            let out = run(&stack, &rows, &padded, None);
            assert_same_bits(&out, &run(&stack, &rows, &dense, None));
            let alone = run(&stack, &rows[3 * D..], &Layout::dense(vec![70]), None);
            assert_same_bits(&out[3 * D..], &alone);
            assert!(!seen.contains(&out), "{positions:?} changes nothing");
            seen.push(out);
        }
    }

    #[test]
    fn groups_of_sequences_leave_no_trace() {
        // Six groups on one thread, the last one small; each sequence alone has the same bits, and the same weights.
        let lengths = [700, 600, 1500, 3, 900, 1000, 5];
        let total: usize = lengths.iter().sum();
        let rows = normals(total * D, 5, 1.0);
        for positions in [None, Some(Positions::Sinusoidal), Some(Positions::Rotary), Some(Positions::Alibi)]
        {
            let stack = stack(positions, positions.is_some(), |_| ());
            let wanted = [WantedHeads::None, WantedHeads::Some(&[1])];
            let with_weights = StackCall { weights: &wanted, ..call(None) };
            let layout = Layout::dense(lengths.to_vec());
            let all = stack.forward(rows.clone(), &layout, &with_weights).unwrap();
            assert_same_bits(&all.rows, &run(&stack, &rows, &layout, None));
            let states = StackCall { hidden_states: true, ..call(None) };
            assert_same_bits(&all.rows, &stack.forward(rows.clone(), &layout, &states).unwrap().rows);
            let (mut at, mut seen) = (0, 0);
            for n in lengths {
                let alone = Layout::dense(vec![n]);
                let one = stack.forward(rows[at * D..(at + n) * D].to_vec(), &alone, &with_weights).unwrap();
                assert_same_bits(&all.rows[at * D..(at + n) * D], &one.rows);
                assert_same_bits(&all.weights[1][seen..seen + n * n], &one.weights[1]);
                (at, seen) = (at + n, seen + n * n);
            }
            assert_eq!((at, seen, all.weights[0].len()), (total, all.weights[1].len(), 0));
        }
    }

    #[test]
    fn threads_with_groups_of_their_own_give_the_bits_of_one() {
        let lengths = [33, 64, 70, 5, 128, 90, 61, 64, 40, 80, 33, 36];
        let rows = normals(lengths.iter().sum::<usize>() * D, 6, 1.0);
        let layout = Layout::dense(lengths.to_vec());
        let wanted = [WantedHeads::Some(&[0, 3]), WantedHeads::None];
        let with_weights = StackCall { weights: &wanted, ..call(None) };
        for positions in [None, Some(Positions::Alibi)] {
            let stack = stack(positions, false, |_| ());
            let with = |threads| {
                let before = override_num_threads(Some(threads)).unwrap();
                let output = stack.forward(rows.clone(), &layout, &with_weights).unwrap();
                override_num_threads(before).unwrap();
                output
            };
            assert!(groups_for(&layout, 2).len() > 1);
            let (one, two) = (with(1), with(2));
            assert_same_bits(&one.rows, &two.rows);
            assert_same_bits(&one.weights[0], &two.weights[0]);
        }
    }

    #[test]
    fn threads_that_share_few_sequences_leave_no_trace() {
        for (lengths, norm_first) in [(&[130][..], false), (&[130], true), (&[40, 3, 97], false)] {
            let layout = Layout::dense(lengths.to_vec());
            let rows = normals(layout.total() * D, 6, 1.0);
            let stack = stack(None, norm_first, |_| ());
            let masked = [0.5, 2.0, 1.0, 0.0];
            let factors = [masked.to_vec(), masked.to_vec()];
            let window = StackCall { window: (Some(9), Some(70)), causal: false, ..call(None) };
            for call in [call(None), window, StackCall { head_mask: Some(&factors), ..call(None) }] {
                assert!(rows::fits(&stack, &layout, &call, 2));
                let with = |threads: usize| {
                    let before = override_num_threads(Some(threads)).unwrap();
                    let output = stack.forward(rows.clone(), &layout, &call).unwrap();
                    override_num_threads(before).unwrap();
                    output.rows
                };
                let one = with(1);
                assert_same_bits(&with(2), &one);
                assert_same_bits(&with(5), &one);
            }
        }
    }

    #[test]
    fn training_in_which_nothing_falls_gives_the_bits_of_inference() {
        let rows = normals(20 * D, 2, 1.0);
        let layout = Layout::dense(vec![7, 13]);
        for (norm_first, gated) in [(false, false), (true, false), (false, true), (true, true)] {
            let with = |dropout: f64| {
                stack(None, norm_first, |c| {
                    c.gated = gated;
                    c.attention.dropout = dropout;
                })
            };
            let (never, often) = (with(1e-300), with(0.3));
            let inference = run(&never, &rows, &layout, None);
            assert_same_bits(&run(&never, &rows, &layout, Some(8)), &inference);
            assert_same_bits(&run(&often, &rows, &layout, None), &inference);
            assert_ne!(run(&often, &rows, &layout, Some(8)), inference);
            assert_same_bits(&run(&often, &rows, &layout, Some(8)), &run(&often, &rows, &layout, Some(8)));
        }
    }

    #[test]
    fn hidden_states_are_the_input_and_what_each_layer_made_of_it() {
        let stack = stack(None, true, |_| ());
        let (rows, layout) = (normals(5 * D, 3, 1.0), Layout::dense(vec![5]));
        let call = StackCall { hidden_states: true, ..call(None) };
        let output = stack.forward(rows.clone(), &layout, &call).unwrap();
        assert_eq!(output.hidden_states.len(), 3);
        assert_same_bits(&output.hidden_states[0], &rows);
        assert_same_bits(&output.hidden_states[2], &output.rows);
    }
}
