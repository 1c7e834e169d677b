//! The large parts of a model, read side by side over the pool.
//!
//! Half the time of a load is the tokenizer's vocabulary, which one thread builds from JSON; meanwhile the others read
//! tables and pack linear maps, a task each. With one thread everything happens in this order, and no pool is made.

use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Result};
use crate::models::bert::BertTensors;
use crate::models::checkpoint::Checkpoint;
use crate::models::embeddings::Embeddings;
use crate::models::tokenizer::Tokenizer;
use crate::nn::encoder::Encoder;
use crate::nn::linear::Linear;
use crate::ops::try_parallel;
use crate::simd::Float;

/// What a task leaves behind.
struct Slot<V>(Mutex<Option<V>>);

impl<V> Slot<V> {
    fn new() -> Self {
        Self(Mutex::new(None))
    }

    fn put(&self, value: V) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
    }

    fn take(self) -> Result<V> {
        let value = self.0.into_inner().unwrap_or_else(PoisonError::into_inner);
        value.ok_or_else(|| Error::Internal("a task of a load left nothing behind".into()))
    }
}

/// Reads the tokenizer, the embedding tables and the encoder.
///
/// # Errors
/// Those of [`Checkpoint::tokenizer`]; `ModelFormat` for weights that cannot be read; `Memory`, `Interrupted`.
pub(super) fn load<T: Float>(checkpoint: &Checkpoint) -> Result<(Tokenizer, Embeddings<T>, Encoder<T>)> {
    let tensors = BertTensors::new(&checkpoint.tensors, &checkpoint.config);
    let maps = tensors.maps();
    let (tokenizer, embeddings) = (Slot::new(), Slot::new());
    let linears: Vec<Slot<Linear<T>>> = maps.iter().map(|_| Slot::new()).collect();
    // The longest come first.
    try_parallel(2 + maps.len(), |task| {
        match task {
            0 => tokenizer.put(checkpoint.tokenizer()?),
            1 => embeddings.put(tensors.embeddings()?),
            n => linears[n - 2].put(tensors.map(&maps[n - 2])?),
        }
        Ok(())
    })?;
    let linears = linears.into_iter().map(Slot::take).collect::<Result<_>>()?;
    Ok((tokenizer.take()?, embeddings.take()?, tensors.encoder(linears)?))
}
