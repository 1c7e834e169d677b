//! The bytes behind a checkpoint's tensors, read or mapped, and their widening to the model's numbers.
//!
//! Read by default: a file that is cut while it is read gives an error. A mapped file that is cut kills the process
//! (SIGBUS), so mapping is for files that nobody changes; there, tables of the model's own dtype stay where they are and
//! share the memory of the page cache with other processes.
//!
//! Half precision is widened exactly; f64 to f32 rounds to nearest even.

use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use half::{bf16, f16};
use memmap2::Mmap;
use safetensors::Dtype;

use crate::simd::Float;

/// Bytes that are widened at a time.
pub(super) const CHUNK_BYTES: usize = 1 << 13;

/// How the files of weights are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Access {
    /// Copied into the model.
    #[default]
    Read,
    /// Mapped into memory. The caller promises that nobody cuts the files while the model lives.
    Mapped,
}

/// An open file of tensors.
#[derive(Debug)]
pub(super) struct Source {
    file: File,
    map: Option<Arc<Mmap>>,
}

impl Source {
    /// Takes a file of `length` bytes.
    pub(super) fn new(file: File, length: u64, access: Access) -> io::Result<Self> {
        if access == Access::Read {
            return Ok(Self { file, map: None });
        }
        // SAFETY: the caller of `Access::Mapped` promises that the file keeps its length and contents.
        let map = unsafe { Mmap::map(&file) }?;
        if map.len() as u64 == length {
            Ok(Self { file, map: Some(Arc::new(map)) })
        } else {
            Err(io::Error::other("the file changed its length while it was opened"))
        }
    }

    /// Fills `bytes` from position `at`. What is copied is read even where the file is mapped: pages that were looked at
    /// through the map would count as this process's memory from then on.
    pub(super) fn read_at(&self, bytes: &mut [u8], at: u64) -> io::Result<()> {
        self.file.read_exact_at(bytes, at)
    }

    /// The numbers in a range of bytes where they lie, if the file is mapped and they are numbers of T in place.
    pub(super) fn table<T: Float>(&self, dtype: Dtype, range: Range<usize>) -> Option<Table<T>> {
        let map = self.map.as_ref()?;
        let here =
            is_own(dtype, T::NAME) && bytemuck::try_cast_slice::<u8, T>(map.get(range.clone())?).is_ok();
        here.then(|| Table::Mapped { map: Arc::clone(map), range })
    }

    /// Reads `out.len()` numbers of `dtype` from position `at`; `None` for a dtype that holds no floats.
    pub(super) fn fill<T: Float>(&self, dtype: Dtype, at: u64, out: &mut [T]) -> Option<io::Result<()>> {
        if is_own(dtype, T::NAME) {
            return Some(self.read_at(bytemuck::cast_slice_mut(out), at));
        }
        Some(match dtype {
            Dtype::F32 => self.widen(at, out, |b: [u8; 4]| f64::from(f32::from_le_bytes(b))),
            Dtype::F64 => self.widen(at, out, f64::from_le_bytes),
            Dtype::F16 => self.widen(at, out, |b: [u8; 2]| f16::from_le_bytes(b).to_f64()),
            Dtype::BF16 => self.widen(at, out, |b: [u8; 2]| bf16::from_le_bytes(b).to_f64()),
            _ => return None,
        })
    }

    /// Reads numbers of N bytes and converts them; through f64, which holds every type exactly and rounds once.
    fn widen<T: Float, const N: usize>(
        &self,
        mut at: u64,
        out: &mut [T],
        convert: impl Fn([u8; N]) -> f64,
    ) -> io::Result<()> {
        let mut bytes = [0; CHUNK_BYTES];
        for block in out.chunks_mut(CHUNK_BYTES / N) {
            let bytes = &mut bytes[..block.len() * N];
            self.read_at(bytes, at)?;
            at += bytes.len() as u64;
            for (x, raw) in block.iter_mut().zip(bytes.as_chunks::<N>().0) {
                *x = T::from_f64(convert(*raw));
            }
        }
        Ok(())
    }
}

/// Whether the file's numbers are those of the model, bytes in this machine's order included.
fn is_own(dtype: Dtype, name: &str) -> bool {
    cfg!(target_endian = "little")
        && matches!((dtype, name), (Dtype::F32, "float32") | (Dtype::F64, "float64"))
}

/// A float type that a checkpoint's weights may have.
pub(super) fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F32 | Dtype::F64 | Dtype::F16 | Dtype::BF16)
}

/// Numbers of a model: its own, or those of a mapped file.
#[derive(Debug, Clone)]
pub enum Table<T> {
    /// Copied from the file.
    Owned(Vec<T>),
    /// In a mapped file.
    Mapped {
        /// The file.
        map: Arc<Mmap>,
        /// Its bytes that are the numbers, aligned for T.
        range: Range<usize>,
    },
}

impl<T: Float> Deref for Table<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::Owned(numbers) => numbers,
            Self::Mapped { map, range } => bytemuck::cast_slice(&map[range.clone()]),
        }
    }
}
