//! Checkpoints and the models that they hold: a folder as the Hugging Face hub lays it out becomes a text encoder.
//!
//! ```text
//! folder       the only door to the disk: names stay inside the folder
//! config       config.json of a BERT family model, checked
//! safetensors  tensors by name, their header checked
//! tensor_data  their bytes, read or mapped, and widened
//! weights      one file of them, or shards and an index
//! tokenizer    text to token ids
//! modules      modules.json: what follows the transformer
//! pooling      token rows to one row for each text
//! dense        a product behind the pooling
//! head         both, in the order of modules.json
//! embeddings   ids to the rows that the encoder begins with
//! bert         the tensors of a BERT, and the encoder made of them
//! checkpoint   all of the above for one folder
//! settings     what a folder says of how its model is meant to be used: prompts, similarity
//! text_encoder the model in memory: texts to embeddings, hidden states, attention weights
//! ```
//!
//! Files come from strangers: whatever they hold, the answer is a model or an [`Error`](crate::Error) that names
//! the file and what is wrong with it.

pub mod bert;
pub mod checkpoint;
pub mod config;
pub mod dense;
pub mod embeddings;
pub mod folder;
pub mod head;
pub mod modules;
pub mod pooling;
pub mod safetensors;
pub mod settings;
pub mod tensor_data;
pub mod text_encoder;
pub mod tokenizer;
pub mod weights;
