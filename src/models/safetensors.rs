//! Tensors by name from a `.safetensors` file: header checked, then each tensor read straight to its place.
//!
//! The file is 8 bytes of length n, n bytes of JSON (name -> dtype, shape, byte range), then the data. The `safetensors`
//! crate parses and checks the header (ranges without gap or overlap, each as long as its shape says); here the ranges are
//! compared with the length of the file before anything is allocated, so a header that lies costs nothing. Tensors are
//! read one at a time into the vector that the model keeps: the file is never held whole, and never mapped, since a
//! mapped file that somebody cuts kills the process. Half precision is widened exactly; f64 to f32 rounds to nearest even.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::sync::Mutex;

use half::{bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};

use crate::error::{Error, Result};
use crate::models::folder::Folder;
use crate::simd::Float;

/// Bytes of the longest header that is read; real ones stay below 1 MB.
const MAX_HEADER_BYTES: u64 = 16 << 20;

/// Bytes that are widened at a time.
const CHUNK_BYTES: usize = 1 << 13;

/// An open `.safetensors` file whose header has been checked.
#[derive(Debug)]
pub struct TensorFile {
    file: Mutex<File>,
    /// What errors call the file.
    label: String,
    header: Metadata,
    data_start: u64,
}

impl TensorFile {
    /// Opens `name` in `folder` and checks the header against the file's length.
    ///
    /// # Errors
    /// `NotFound` where there is no such file, `ModelFormat` where the header is damaged or lies.
    pub fn open(folder: &Folder, name: &str) -> Result<Self> {
        let Some(mut file) = folder.file(name)? else {
            return Err(folder.missing(name, ""));
        };
        let broken = |what: &dyn std::fmt::Display| folder.broken(name, what);
        let length = file.metadata().map_err(|e| broken(&e))?.len();
        let mut word = [0; 8];
        file.read_exact(&mut word).map_err(|_| broken(&"shorter than the 8 bytes of the header's length"))?;
        let header_length = u64::from_le_bytes(word);
        if header_length > MAX_HEADER_BYTES || header_length > length - 8 {
            return Err(broken(&format!("header of {header_length} bytes in a file of {length}")));
        }
        let mut bytes = vec![0; header_length as usize];
        file.read_exact(&mut bytes).map_err(|e| broken(&format!("header: {e}")))?;
        let header: Metadata = serde_json::from_slice(&bytes).map_err(|e| broken(&format!("header: {e}")))?;
        let data_start = 8 + header_length;
        let promised = header.data_len() as u64;
        if promised != length - data_start {
            return Err(broken(&format!(
                "the header tells of {promised} bytes of tensors, the file has {}",
                length - data_start
            )));
        }
        Ok(Self {
            file: Mutex::new(file),
            label: folder.root().join(name).display().to_string(),
            header,
            data_start,
        })
    }

    /// Whether the file has a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.header.info(name).is_some()
    }

    /// The names of all tensors, in the order of the file.
    pub fn names(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    /// The shape of a tensor, if it is there.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.header.info(name).map(|info| info.shape.as_slice())
    }

    /// A tensor that must have `shape`, widened to `T`.
    ///
    /// # Errors
    /// `ModelFormat` where it is absent, has another shape, is not of a float type or cannot be read.
    pub fn read<T: Float>(&self, name: &str, shape: &[usize]) -> Result<Vec<T>> {
        let mut out = Vec::new();
        self.append(name, shape, &mut out)?;
        Ok(out)
    }

    /// As [`TensorFile::read`], at the end of a vector: stacked projections are read in place.
    ///
    /// # Errors
    /// As [`TensorFile::read`].
    pub fn append<T: Float>(&self, name: &str, shape: &[usize], out: &mut Vec<T>) -> Result<()> {
        let Some(info) = self.header.info(name) else {
            return Err(self.broken(name, format!("missing; expected with shape {shape:?}")));
        };
        if info.shape != shape {
            return Err(self.broken(name, format!("expected shape {shape:?}, got {:?}", info.shape)));
        }
        // The header was compared with the file's length, so this is no more than the file holds.
        let count: usize = shape.iter().product();
        let start = out.len();
        out.try_reserve_exact(count)
            .map_err(|e| Error::Memory(format!("{}: tensor {name} of shape {shape:?}: {e}", self.label)))?;
        out.resize(start + count, T::ZERO);
        self.fill(name, info, &mut out[start..])
    }

    fn fill<T: Float>(&self, name: &str, info: &TensorInfo, out: &mut [T]) -> Result<()> {
        // A poisoned lock means that another reader panicked between two reads; each read seeks first.
        let mut file = self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        file.seek(SeekFrom::Start(self.data_start + info.data_offsets.0 as u64))
            .map_err(|e| self.broken(name, e))?;
        let read = |bytes: &mut [u8]| file.read_exact(bytes).map_err(|e| self.broken(name, e));
        let same_type = matches!((info.dtype, T::NAME), (Dtype::F32, "float32") | (Dtype::F64, "float64"));
        if same_type && cfg!(target_endian = "little") {
            let mut read = read;
            return read(bytemuck::cast_slice_mut(out));
        }
        match info.dtype {
            Dtype::F32 => widen(out, read, |b: [u8; 4]| f64::from(f32::from_le_bytes(b))),
            Dtype::F64 => widen(out, read, f64::from_le_bytes),
            Dtype::F16 => widen(out, read, |b: [u8; 2]| f16::from_le_bytes(b).to_f64()),
            Dtype::BF16 => widen(out, read, |b: [u8; 2]| bf16::from_le_bytes(b).to_f64()),
            other => Err(self.broken(
                name,
                format!("dtype {other:?} is not supported; supported are F32, F16, BF16, F64"),
            )),
        }
    }

    fn broken(&self, name: &str, what: impl std::fmt::Display) -> Error {
        Error::ModelFormat(format!("{}: tensor {name}: {what}", self.label))
    }
}

/// Reads numbers of N bytes and converts them; through f64, which holds every type exactly and rounds once.
fn widen<T: Float, const N: usize>(
    out: &mut [T],
    mut read: impl FnMut(&mut [u8]) -> Result<()>,
    convert: impl Fn([u8; N]) -> f64,
) -> Result<()> {
    let mut bytes = [0; CHUNK_BYTES];
    for block in out.chunks_mut(CHUNK_BYTES / N) {
        let bytes = &mut bytes[..block.len() * N];
        read(bytes)?;
        for (x, raw) in block.iter_mut().zip(bytes.as_chunks::<N>().0) {
            *x = T::from_f64(convert(*raw));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::TensorView;
    use std::path::Path;

    fn write(dir: &Path, tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) {
        let views = tensors
            .iter()
            .map(|(name, dtype, shape, data)| (*name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
        safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
    }

    fn open(dir: &Path) -> Result<TensorFile> {
        TensorFile::open(&Folder::open(dir).unwrap(), "model.safetensors")
    }

    #[test]
    fn every_float_type_is_widened() {
        let dir = tempfile::tempdir().unwrap();
        let x = [1.0f32, -2.5, 0.125];
        write(
            dir.path(),
            &[
                ("f32", Dtype::F32, vec![3], x.iter().flat_map(|v| v.to_le_bytes()).collect()),
                ("f64", Dtype::F64, vec![3], x.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect()),
                (
                    "f16",
                    Dtype::F16,
                    vec![1, 3],
                    x.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
                ),
                (
                    "bf16",
                    Dtype::BF16,
                    vec![3, 1],
                    x.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
                ),
            ],
        );
        let file = open(dir.path()).unwrap();
        for (name, shape) in [("f32", vec![3]), ("f64", vec![3]), ("f16", vec![1, 3]), ("bf16", vec![3, 1])] {
            assert_eq!(file.read::<f32>(name, &shape).unwrap(), x, "{name}");
            assert_eq!(file.read::<f64>(name, &shape).unwrap(), x.map(f64::from), "{name}");
        }
    }

    #[test]
    fn more_numbers_than_one_chunk() {
        let dir = tempfile::tempdir().unwrap();
        let n = CHUNK_BYTES + 3;
        let data: Vec<u8> = (0..n).flat_map(|i| bf16::from_f32((i % 97) as f32).to_le_bytes()).collect();
        write(dir.path(), &[("x", Dtype::BF16, vec![n], data)]);
        let x = open(dir.path()).unwrap().read::<f32>("x", &[n]).unwrap();
        assert!(x.iter().enumerate().all(|(i, v)| v.to_bits() == ((i % 97) as f32).to_bits()));
    }

    #[test]
    fn errors_name_tensor_expected_and_found() {
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            &[("a.weight", Dtype::F32, vec![2, 3], vec![0; 24]), ("ids", Dtype::I64, vec![2], vec![0; 16])],
        );
        let file = open(dir.path()).unwrap();
        for (name, shape, parts) in [
            ("a.weight", vec![3, 2], vec!["a.weight", "[3, 2]", "[2, 3]"]),
            ("b.weight", vec![1], vec!["b.weight", "missing", "[1]"]),
            ("ids", vec![2], vec!["ids", "I64"]),
        ] {
            let Err(Error::ModelFormat(text)) = file.read::<f32>(name, &shape) else { panic!("{name}") };
            assert!(parts.iter().all(|p| text.contains(p)), "{text}");
        }
    }

    #[test]
    fn damaged_files() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(open(dir.path()), Err(Error::NotFound(_))));
        write(dir.path(), &[("a", Dtype::F32, vec![2, 3], vec![0; 24])]);
        let path = dir.path().join("model.safetensors");
        let whole = std::fs::read(&path).unwrap();
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(matches!(open(dir.path()), Err(Error::ModelFormat(_))), "{length} bytes");
        }
        let mut longer = whole.clone();
        longer.push(0);
        std::fs::write(&path, &longer).unwrap();
        assert!(matches!(open(dir.path()), Err(Error::ModelFormat(_))));
        let huge = br#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,4]}}"#;
        let mut lying = (huge.len() as u64).to_le_bytes().to_vec();
        lying.extend_from_slice(huge);
        lying.extend_from_slice(&[0; 4]);
        std::fs::write(&path, &lying).unwrap();
        assert!(matches!(open(dir.path()), Err(Error::ModelFormat(_))));
    }

    #[test]
    fn cut_after_opening() {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &[("a", Dtype::F32, vec![2, 3], vec![0; 24])]);
        let file = open(dir.path()).unwrap();
        let handle = File::options().write(true).open(dir.path().join("model.safetensors")).unwrap();
        handle.set_len(20).unwrap();
        assert!(matches!(file.read::<f32>("a", &[2, 3]), Err(Error::ModelFormat(_))));
    }
}
