//! Tensors by name from a `.safetensors` file: header checked, then each tensor read straight to its place.
//!
//! The file is 8 bytes of length n, n bytes of JSON (name -> dtype, shape, byte range), then the data. The `safetensors`
//! crate parses and checks the header (ranges without gap or overlap, each as long as its shape says); here names are
//! checked to be told once, and the ranges compared with the length of the file before anything is allocated, so a
//! header that lies costs nothing. Tensors, or some rows of one, are read straight to where they are wanted: the file is
//! never held whole.

use std::collections::HashSet;
use std::fmt;
use std::io::Read;
use std::ops::Range;

use safetensors::tensor::{Metadata, TensorInfo};
use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};

use crate::error::{Error, Result};
use crate::models::folder::Folder;
use crate::models::tensor_data::{Access, Source, Table, is_float};
use crate::ops::buffer::zeros;
use crate::simd::Float;

/// Bytes of the longest header that is read: 60,000 tensors. Real ones stay below 1 MB, and one of this length is
/// parsed in less than a tenth of a second.
const MAX_HEADER_BYTES: u64 = 4 << 20;

/// Beginnings of files that are often found under this name, and what they are.
const OTHER_FILES: [(&[u8], &str); 4] = [
    (b"version ", "a pointer of Git LFS, not the file itself: run `git lfs pull`"),
    (b"PK\x03\x04", "a zip archive, perhaps a pickled checkpoint, which is never read: it can run code"),
    (b"\x80\x02", "a pickled checkpoint, which is never read: it can run code"),
    (b"<", "HTML or XML, perhaps the error page of a download"),
];

/// An open `.safetensors` file whose header has been checked.
#[derive(Debug)]
pub struct TensorFile {
    source: Source,
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
    pub fn open(folder: &Folder, name: &str, access: Access) -> Result<Self> {
        let Some(mut file) = folder.file(name)? else {
            return Err(folder.missing(name, ""));
        };
        let broken = |what: &dyn fmt::Display| folder.broken(name, what);
        let length = file.metadata().map_err(|e| broken(&e))?.len();
        let mut word = [0; 8];
        file.read_exact(&mut word).map_err(|_| broken(&"shorter than the 8 bytes of the header's length"))?;
        let header_length = u64::from_le_bytes(word);
        if header_length > MAX_HEADER_BYTES || header_length > length.saturating_sub(8) {
            let other = OTHER_FILES.iter().find(|(start, _)| word.starts_with(start));
            return Err(match other {
                Some((_, what)) => broken(&format!("not a safetensors file but {what}")),
                None => broken(&format!("header of {header_length} bytes in a file of {length}")),
            });
        }
        let mut bytes = vec![0; header_length as usize];
        file.read_exact(&mut bytes).map_err(|e| broken(&format!("header: {e}")))?;
        let in_header = |e: serde_json::Error| broken(&format!("header: {e}"));
        serde_json::from_slice::<NamesOnce>(&bytes).map_err(in_header)?;
        let header: Metadata = serde_json::from_slice(&bytes).map_err(in_header)?;
        let data_start = 8 + header_length;
        let promised = header.data_len() as u64;
        if promised != length - data_start {
            return Err(broken(&format!(
                "the header tells of {promised} bytes of tensors, the file has {}",
                length - data_start
            )));
        }
        let source = Source::new(file, length, access).map_err(|e| broken(&e))?;
        Ok(Self { source, label: folder.root().join(name).display().to_string(), header, data_start })
    }

    /// Whether the file has a tensor of this name.
    pub fn contains(&self, name: &str) -> bool {
        self.header.info(name).is_some()
    }

    /// The names of all tensors, in the order of the file.
    pub fn names(&self) -> Vec<String> {
        self.header.offset_keys()
    }

    /// What the header says beside the tensors.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, &str)> {
        self.header.metadata().iter().flatten().map(|(key, value)| (key.as_str(), value.as_str()))
    }

    /// Name, dtype (as the format spells it), shape and bytes of the file, of each tensor in the order of the file.
    pub fn entries(&self) -> impl Iterator<Item = (String, String, &[usize], Range<u64>)> {
        self.names().into_iter().filter_map(|name| {
            let info = self.header.info(&name)?;
            let (start, end) = info.data_offsets;
            let bytes = self.data_start + start as u64..self.data_start + end as u64;
            Some((name, info.dtype.to_string(), info.shape.as_slice(), bytes))
        })
    }

    /// The shape of a tensor, if it is there.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.header.info(name).map(|info| info.shape.as_slice())
    }

    /// Whether `name` can be read with `shape`; costs nothing.
    ///
    /// # Errors
    /// `ModelFormat` where it is absent, has another shape or is not of a float type.
    pub fn check(&self, name: &str, shape: &[usize]) -> Result<()> {
        self.info(name, shape).map(|_| ())
    }

    /// A tensor that must have `shape`, widened to `T`.
    ///
    /// # Errors
    /// As [`TensorFile::check`]; `ModelFormat` where it cannot be read, `Memory`.
    pub fn read<T: Float>(&self, name: &str, shape: &[usize]) -> Result<Vec<T>> {
        let info = self.info(name, shape)?;
        // The header was compared with the file's length, so this is no more than the file holds.
        let mut out = zeros(shape.iter().product()).map_err(|e| match e {
            Error::Memory(what) => Error::Memory(format!("{}: tensor {name}: {what}", self.label)),
            other => other,
        })?;
        self.fill(name, info, 0, &mut out)?;
        Ok(out)
    }

    /// Rows `rows` of a tensor that must have `shape` (rows, columns), widened to `T`.
    ///
    /// # Errors
    /// As [`TensorFile::read`].
    ///
    /// # Panics
    /// If `out` is not as long as the rows, or the tensor has fewer.
    pub fn rows<T: Float>(
        &self,
        name: &str,
        shape: [usize; 2],
        rows: Range<usize>,
        out: &mut [T],
    ) -> Result<()> {
        assert!(rows.end <= shape[0] && out.len() == rows.len() * shape[1], "rows of a tensor");
        let info = self.info(name, &shape)?;
        let (start, end) = info.data_offsets;
        self.fill(name, info, (end - start) / shape[0].max(1) * rows.start, out)
    }

    /// As [`TensorFile::read`], but left in the file where that is mapped and holds numbers of T.
    ///
    /// # Errors
    /// As [`TensorFile::read`].
    pub fn table<T: Float>(&self, name: &str, shape: &[usize]) -> Result<Table<T>> {
        let info = self.info(name, shape)?;
        let at = |offset| self.data_start as usize + offset;
        match self.source.table(info.dtype, at(info.data_offsets.0)..at(info.data_offsets.1)) {
            Some(table) => Ok(table),
            None => self.read(name, shape).map(Table::Owned),
        }
    }

    /// Reads from `skip` bytes behind the start of a tensor.
    fn fill<T: Float>(&self, name: &str, info: &TensorInfo, skip: usize, out: &mut [T]) -> Result<()> {
        let at = self.data_start + (info.data_offsets.0 + skip) as u64;
        match self.source.fill(info.dtype, at, out) {
            Some(done) => done.map_err(|e| self.broken(name, e)),
            None => Err(Error::Internal(format!("tensor {name}: a dtype that was checked"))),
        }
    }

    fn info(&self, name: &str, shape: &[usize]) -> Result<&TensorInfo> {
        let Some(info) = self.header.info(name) else {
            return Err(self.broken(name, format!("missing; expected with shape {shape:?}")));
        };
        if info.shape != shape {
            return Err(self.broken(name, format!("expected shape {shape:?}, got {:?}", info.shape)));
        }
        if !is_float(info.dtype) {
            return Err(self.broken(
                name,
                format!("dtype {:?} is not supported; supported are F32, F16, BF16, F64", info.dtype),
            ));
        }
        Ok(info)
    }

    fn broken(&self, name: &str, what: impl fmt::Display) -> Error {
        Error::ModelFormat(format!("{}: tensor {name}: {what}", self.label))
    }
}

/// A JSON object that names each key once: parsers keep one of two, and not all of them the same.
struct NamesOnce;

impl<'de> Deserialize<'de> for NamesOnce {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(Self)
    }
}

impl<'de> Visitor<'de> for NamesOnce {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Self, A::Error> {
        let mut seen = HashSet::new();
        while let Some((name, IgnoredAny)) = map.next_entry::<String, _>()? {
            if let Some(twice) = seen.replace(name) {
                return Err(A::Error::custom(format!("tensor {twice} is told of twice")));
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::tensor_data::CHUNK_BYTES;
    use half::{bf16, f16};
    use safetensors::Dtype;
    use safetensors::tensor::TensorView;
    use std::fs::File;
    use std::path::Path;

    fn write(dir: &Path, tensors: &[(&str, Dtype, Vec<usize>, Vec<u8>)]) {
        let views = tensors
            .iter()
            .map(|(name, dtype, shape, data)| (*name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
        safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
    }

    fn open(dir: &Path) -> Result<TensorFile> {
        TensorFile::open(&Folder::open(dir).unwrap(), "model.safetensors", Access::Read)
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
        for access in [Access::Read, Access::Mapped] {
            let folder = Folder::open(dir.path()).unwrap();
            let file = TensorFile::open(&folder, "model.safetensors", access).unwrap();
            for (name, shape) in
                [("f32", vec![3]), ("f64", vec![3]), ("f16", vec![1, 3]), ("bf16", vec![3, 1])]
            {
                assert_eq!(file.read::<f32>(name, &shape).unwrap(), x, "{name}");
                assert_eq!(file.read::<f64>(name, &shape).unwrap(), x.map(f64::from), "{name}");
                let table = file.table::<f32>(name, &shape).unwrap();
                assert_eq!(table[..], x, "{name}");
                let stays = matches!(table, Table::Mapped { .. });
                assert_eq!(stays, access == Access::Mapped && name == "f32", "{name}");
            }
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
    }

    #[test]
    fn headers_that_lie() {
        let dir = tempfile::tempdir().unwrap();
        let one = |range: &str| format!(r#"{{"dtype":"F32","shape":[1],"data_offsets":{range}}}"#);
        for (header, part) in [
            (
                r#"{"a":{"dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,8]}}"#.to_string(),
                "header",
            ),
            (format!(r#"{{"a":{},"a":{}}}"#, one("[0,4]"), one("[0,4]")), "a is told of twice"),
            (format!(r#"{{"a":{},"b":{}}}"#, one("[0,4]"), one("[0,4]")), "header"),
            (format!(r#"{{"a":{},"b":{}}}"#, one("[0,4]"), one("[8,12]")), "header"),
            (format!(r#"{{"a":{}}}"#, one("[8,4]")), "header"),
            (format!(r#"{{"a":{}}}"#, one("[0,4]")), "tells of 4 bytes"),
        ] {
            let mut file = (header.len() as u64).to_le_bytes().to_vec();
            file.extend_from_slice(header.as_bytes());
            file.extend_from_slice(&[0; 8]);
            std::fs::write(dir.path().join("model.safetensors"), &file).unwrap();
            let Err(Error::ModelFormat(text)) = open(dir.path()) else { panic!("{header}") };
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn other_files_under_this_name() {
        let dir = tempfile::tempdir().unwrap();
        for (start, part) in
            [(&b"version https://git-lfs"[..], "git lfs pull"), (b"PK\x03\x04 zip ..", "zip")]
        {
            std::fs::write(dir.path().join("model.safetensors"), start).unwrap();
            let Err(Error::ModelFormat(text)) = open(dir.path()) else { panic!("{part}") };
            assert!(text.contains(part), "{text}");
        }
    }

    #[test]
    fn some_rows_of_a_tensor() {
        let dir = tempfile::tempdir().unwrap();
        let x: Vec<f32> = (0..12).map(|i| i as f32 - 6.5).collect();
        let wide = x.iter().flat_map(|v| f64::from(*v).to_le_bytes()).collect();
        let half = x.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect();
        let own = x.iter().flat_map(|v| v.to_le_bytes()).collect();
        let shape = vec![4, 3];
        let all = [
            ("bf16", Dtype::BF16, shape.clone(), half),
            ("f32", Dtype::F32, shape.clone(), own),
            ("f64", Dtype::F64, shape, wide),
        ];
        write(dir.path(), &all);
        let file = open(dir.path()).unwrap();
        for (name, ..) in &all {
            for rows in [0..4, 0..1, 1..3, 3..4, 4..4] {
                let mut out = vec![0.0f32; 3 * rows.len()];
                file.rows(name, [4, 3], rows.clone(), &mut out).unwrap();
                assert_eq!(out, x[3 * rows.start..3 * rows.end], "{name}");
            }
        }
        assert!(matches!(file.rows("f32", [3, 4], 0..1, &mut [0.0; 4]), Err(Error::ModelFormat(_))));
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
