//! The weights of a model: one file of tensors, or shards and an index that says which tensor lies in which.
//!
//! ```text
//! model.safetensors                 all tensors, or
//! model.safetensors.index.json      {"weight_map": {tensor: shard, ...}}
//! model-00001-of-00002.safetensors  the shards, beside the index
//! ```
//!
//! The index is a stranger's: a shard's name is the plain name of a file beside it, and every tensor that it tells of must
//! be in its shard. A tensor that the index does not tell of is never read. All shards stay open, so that what was
//! checked is what is read.

use std::collections::HashMap;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::models::folder::Folder;
use crate::models::safetensors::TensorFile;
use crate::models::tensor_data::{Access, Table};
use crate::nn::linear::Linear;
use crate::simd::Float;

const FILE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// Files of weights that are not read, and why.
const OTHER_FORMS: [(&str, &str); 7] = [
    ("pytorch_model.bin", PICKLED),
    ("pytorch_model.bin.index.json", PICKLED),
    ("model.ckpt.index", OTHER_PACKAGE),
    ("tf_model.h5", OTHER_PACKAGE),
    ("flax_model.msgpack", OTHER_PACKAGE),
    ("model.gguf", OTHER_PACKAGE),
    ("model.onnx", OTHER_PACKAGE),
];
const PICKLED: &str = "pickled weights are never read: they can run code; \
    where you trust them, `model.save_pretrained(folder)` of transformers writes model.safetensors";
const OTHER_PACKAGE: &str = "weights of another package; \
    `model.save_pretrained(folder)` of transformers writes model.safetensors";

/// The tensors of a model by name, in one file or several.
#[derive(Debug)]
pub struct Weights {
    /// At least one.
    files: Vec<TensorFile>,
    /// Which file holds a tensor, where there is an index.
    places: Option<HashMap<String, usize>>,
    /// What errors call the index.
    label: String,
}

impl Weights {
    /// Opens the weights in a folder and checks all headers.
    ///
    /// # Errors
    /// `NotFound` where there are none, `Unsupported` for pickles and other forms, `ModelFormat` where a file is
    /// damaged or the index lies.
    pub fn open(folder: &Folder, access: Access) -> Result<Self> {
        let label = |name| folder.root().join(name).display().to_string();
        if folder.file(FILE)?.is_some() {
            let files = vec![TensorFile::open(folder, FILE, access)?];
            return Ok(Self { files, places: None, label: label(FILE) });
        }
        if let Some(index) = folder.json(INDEX)? {
            let (files, places) = open_shards(folder, &index, access)?;
            return Ok(Self { files, places: Some(places), label: label(INDEX) });
        }
        for (other, why) in OTHER_FORMS {
            if folder.file(other)?.is_some() {
                return Err(Error::Unsupported(format!("{}: {why}", label(other))));
            }
        }
        Err(folder.missing(FILE, ""))
    }

    fn file_of(&self, name: &str) -> Option<&TensorFile> {
        match &self.places {
            None => self.files.first(),
            Some(places) => places.get(name).and_then(|&i| self.files.get(i)),
        }
    }

    fn file_with(&self, name: &str, shape: &[usize]) -> Result<&TensorFile> {
        self.file_of(name).ok_or_else(|| {
            Error::ModelFormat(format!(
                "{}: tensor {name}: missing; expected with shape {shape:?}",
                self.label
            ))
        })
    }

    /// Whether there is a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.file_of(name).is_some_and(|file| file.contains(name))
    }

    /// The shape of a tensor, if it is there.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.file_of(name)?.shape(name)
    }

    /// As [`TensorFile::check`].
    ///
    /// # Errors
    /// As [`TensorFile::check`].
    pub fn check(&self, name: &str, shape: &[usize]) -> Result<()> {
        self.file_with(name, shape)?.check(name, shape)
    }

    /// As [`TensorFile::read`].
    ///
    /// # Errors
    /// As [`TensorFile::read`].
    pub fn read<T: Float>(&self, name: &str, shape: &[usize]) -> Result<Vec<T>> {
        self.file_with(name, shape)?.read(name, shape)
    }

    /// As [`TensorFile::table`].
    ///
    /// # Errors
    /// As [`TensorFile::read`].
    pub fn table<T: Float>(&self, name: &str, shape: &[usize]) -> Result<Table<T>> {
        self.file_with(name, shape)?.table(name, shape)
    }

    /// The linear map of a weight (N, K) and, where it is named, a bias (N). The rows of the weight go through the caches
    /// into the panels.
    ///
    /// # Errors
    /// As [`TensorFile::read`].
    pub fn linear<T: Float>(
        &self,
        weight: &str,
        bias: Option<&str>,
        (n, k): (usize, usize),
    ) -> Result<Linear<T>> {
        let bias = bias.map(|name| self.read(name, &[n])).transpose()?;
        let file = self.file_with(weight, &[n, k])?;
        file.check(weight, &[n, k])?;
        Linear::read((n, k), bias, |rows, out| file.rows(weight, [n, k], rows, out))
    }
}

/// Opens the shards of an index; gives them and the place of each tensor.
fn open_shards(
    folder: &Folder,
    index: &Value,
    access: Access,
) -> Result<(Vec<TensorFile>, HashMap<String, usize>)> {
    let broken = |what: &str| folder.broken(INDEX, what);
    let map = index["weight_map"].as_object().filter(|map| !map.is_empty());
    let map =
        map.ok_or_else(|| broken("expected an object weight_map that names tensors and their files"))?;
    // All names are looked at before the first is opened.
    for (tensor, shard) in map {
        let name = shard.as_str().unwrap_or_default();
        let plain = name.ends_with(".safetensors")
            && !name.starts_with('.')
            && !name.contains(['/', '\\', ':', '\0']);
        if !plain {
            return Err(broken(&format!(
                "tensor {tensor}: expected the name of a .safetensors file beside the index, got {shard}"
            )));
        }
    }
    let mut files: Vec<TensorFile> = Vec::new();
    let mut opened = HashMap::new();
    let mut places = HashMap::with_capacity(map.len());
    for (tensor, shard) in map {
        let name = shard.as_str().unwrap_or_default();
        let place = if let Some(&place) = opened.get(name) {
            place
        } else {
            let file = TensorFile::open(folder, name, access).map_err(|e| match e {
                Error::NotFound(_) => broken(&format!("tensor {tensor}: there is no file {name}")),
                other => other,
            })?;
            files.push(file);
            opened.insert(name, files.len() - 1);
            files.len() - 1
        };
        if !files[place].contains(tensor) {
            return Err(broken(&format!("tensor {tensor} is not in {name}")));
        }
        places.insert(tensor.clone(), place);
    }
    Ok((files, places))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::bert::tests::write_small_weights;
    use serde_json::json;
    use std::path::Path;

    fn open(dir: &Path) -> Result<Weights> {
        Weights::open(&Folder::open(dir).unwrap(), Access::Read)
    }

    /// The small model in one shard, under an index that `change` spoils.
    fn sharded(change: impl Fn(&mut Value)) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        write_small_weights(dir.path(), str::to_string);
        let shard = "model-00001-of-00001.safetensors";
        let names: serde_json::Map<_, _> =
            open(dir.path()).unwrap().files[0].names().into_iter().map(|name| (name, json!(shard))).collect();
        std::fs::rename(dir.path().join(FILE), dir.path().join(shard)).unwrap();
        let mut index = json!({"metadata": {}, "weight_map": names});
        change(&mut index);
        std::fs::write(dir.path().join(INDEX), index.to_string()).unwrap();
        dir
    }

    #[test]
    fn shards_are_one_model() {
        let name = "embeddings.LayerNorm.weight";
        let plain = tempfile::tempdir().unwrap();
        write_small_weights(plain.path(), str::to_string);
        let dir = sharded(|_| ());
        let (one, several) = (open(plain.path()).unwrap(), open(dir.path()).unwrap());
        assert!(several.contains(name) && !several.contains("x"));
        assert_eq!(several.shape(name), Some(&[4][..]));
        assert_eq!(several.read::<f32>(name, &[4]).unwrap(), one.read::<f32>(name, &[4]).unwrap());
        let Err(Error::ModelFormat(text)) = several.check("x", &[1]) else { panic!() };
        assert!(text.contains(INDEX) && text.contains('x'), "{text}");
    }

    #[test]
    fn an_index_that_lies() {
        let outside =
            ["../model.safetensors", "/tmp/x.safetensors", "a/b.safetensors", "x.bin", "C:x.safetensors"];
        for shard in
            outside.iter().map(|s| json!(s)).chain([json!(3), json!(null), json!("absent.safetensors")])
        {
            let dir = sharded(|index| index["weight_map"]["embeddings.LayerNorm.weight"] = shard.clone());
            let Err(Error::ModelFormat(text)) = open(dir.path()) else { panic!("{shard}") };
            assert!(text.contains(INDEX) && text.contains("embeddings.LayerNorm.weight"), "{text}");
        }
        let dir =
            sharded(|index| index["weight_map"]["not.there"] = json!("model-00001-of-00001.safetensors"));
        assert!(matches!(open(dir.path()), Err(Error::ModelFormat(text)) if text.contains("not.there")));
        for index in [json!([]), json!({}), json!({"weight_map": {}}), json!({"weight_map": 3})] {
            let dir = sharded(|i| *i = index.clone());
            assert!(matches!(open(dir.path()), Err(Error::ModelFormat(_))), "{index}");
        }
    }

    #[test]
    fn other_forms_are_named() {
        for (name, _) in OTHER_FORMS {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join(name), "x").unwrap();
            let Err(Error::Unsupported(text)) = open(dir.path()) else { panic!("{name}") };
            assert!(text.contains(name), "{text}");
        }
        assert!(matches!(open(tempfile::tempdir().unwrap().path()), Err(Error::NotFound(_))));
    }
}
