//! The only door to the disk: files of one folder, by names that cannot lead out of it.
//!
//! Names come from the folder's own files (`modules.json` names sub-folders), so they are data of a stranger: only
//! plain components are followed, never `..`, a root or a drive. Symbolic links that the owner of the folder made are
//! followed, as the cache of `huggingface_hub` consists of them. Only regular files are opened: a pipe would block.
//! Files are read, not mapped: a mapped file that somebody cuts kills the process.

use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, Result};

/// Bytes of the longest JSON file that is read; the largest tokenizers of today have 35 MB.
const MAX_JSON_BYTES: u64 = 256 << 20;

/// A folder that holds a model.
#[derive(Debug, Clone)]
pub struct Folder {
    root: PathBuf,
}

impl Folder {
    /// The folder at `path`.
    ///
    /// # Errors
    /// `NotFound` where there is no folder.
    pub fn open(path: &Path) -> Result<Self> {
        if path.is_dir() {
            Ok(Self { root: path.to_path_buf() })
        } else {
            Err(Error::NotFound(format!("no folder {}", path.display())))
        }
    }

    /// A folder inside this one; an empty name is the folder itself.
    ///
    /// # Errors
    /// `ModelFormat` where the name leads out, `NotFound` where there is no such folder.
    pub fn sub(&self, name: &str) -> Result<Self> {
        Self::open(&self.path(name)?)
    }

    /// The path of `name`.
    ///
    /// # Errors
    /// `ModelFormat` where the name leads out of the folder.
    pub fn path(&self, name: &str) -> Result<PathBuf> {
        // Backslashes and colons are separators and drives on Windows only, but a folder should mean the same everywhere.
        let plain = !name.contains(['\\', ':', '\0'])
            && Path::new(name).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
        if plain {
            Ok(self.root.join(name))
        } else {
            Err(Error::ModelFormat(format!(
                "{}: the name {name:?} leads out of the folder",
                self.root.display()
            )))
        }
    }

    /// Opens a file; `None` where there is none.
    ///
    /// # Errors
    /// `ModelFormat` where it cannot be opened or is no regular file.
    pub fn file(&self, name: &str) -> Result<Option<File>> {
        let path = self.path(name)?;
        let broken = |what: &dyn std::fmt::Display| Error::ModelFormat(format!("{}: {what}", path.display()));
        match std::fs::metadata(&path) {
            Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
            Err(e) => Err(broken(&e)),
            Ok(meta) if !meta.is_file() => Err(broken(&"not a regular file")),
            Ok(_) => File::open(&path).map(Some).map_err(|e| broken(&e)),
        }
    }

    /// The bytes of a file; `None` where there is none.
    ///
    /// # Errors
    /// `ModelFormat` where it cannot be read or has more than 256 MB.
    pub fn bytes(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let Some(file) = self.file(name)? else { return Ok(None) };
        let mut bytes = Vec::new();
        file.take(MAX_JSON_BYTES + 1).read_to_end(&mut bytes).map_err(|e| self.broken(name, e))?;
        if bytes.len() as u64 > MAX_JSON_BYTES {
            return Err(self.broken(name, "longer than 256 MB"));
        }
        Ok(Some(bytes))
    }

    /// A JSON file; `None` where there is none.
    ///
    /// # Errors
    /// `ModelFormat` where it is no JSON.
    pub fn json(&self, name: &str) -> Result<Option<Value>> {
        let Some(bytes) = self.bytes(name)? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).map_err(|e| self.broken(name, e))
    }

    /// The error for a damaged file of this folder.
    pub fn broken(&self, name: &str, what: impl std::fmt::Display) -> Error {
        Error::ModelFormat(format!("{}: {what}", self.root.join(name).display()))
    }

    /// The error for a file that should be here.
    pub fn missing(&self, name: &str, hint: &str) -> Error {
        let gap = if hint.is_empty() { "" } else { "; " };
        Error::NotFound(format!("no {name} in {}{gap}{hint}", self.root.display()))
    }

    /// The path of the folder itself.
    pub fn root(&self) -> &Path {
        &self.root
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_inside() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        for name in ["../x", "/etc/passwd", "a/../../x", "..\\x", "C:x", "a\0b"] {
            assert!(matches!(folder.path(name), Err(Error::ModelFormat(_))), "{name}");
        }
        assert_eq!(folder.path("1_Pooling/config.json").unwrap(), dir.path().join("1_Pooling/config.json"));
        assert_eq!(folder.sub("").unwrap().root(), dir.path());
    }

    #[test]
    fn absent_broken_and_odd_files() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        assert!(folder.json("config.json").unwrap().is_none());
        std::fs::write(dir.path().join("config.json"), "{").unwrap();
        assert!(matches!(folder.json("config.json"), Err(Error::ModelFormat(_))));
        std::fs::write(dir.path().join("deep.json"), "[".repeat(100_000)).unwrap();
        assert!(matches!(folder.json("deep.json"), Err(Error::ModelFormat(_))));
        std::fs::create_dir(dir.path().join("tokenizer.json")).unwrap();
        assert!(matches!(folder.json("tokenizer.json"), Err(Error::ModelFormat(_))));
        assert!(matches!(Folder::open(&dir.path().join("absent")), Err(Error::NotFound(_))));
    }
}
