//! The only door to the disk: files of one folder, by names that cannot lead out of it.
//!
//! Names come from the folder's own files (`modules.json` names sub-folders), so they are data of a stranger: only
//! plain components are followed, never `..`, a root or a drive. Symbolic links that the owner of the folder made are
//! followed, as the cache of `huggingface_hub` consists of them. Only regular files are opened: a pipe would block.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use crate::error::{Error, Result};

/// Bytes of the longest file that is read whole; the largest tokenizers of today have 35 MB.
const MAX_BYTES: u64 = 64 << 20;

/// Bytes of the longest JSON file that is read into a tree: those of the families computed here, an index of shards
/// included, stay below 300 kB, and a tree of this size is built in less than a tenth of a second.
const MAX_JSON_BYTES: u64 = 1 << 20;

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
            Ok(_) => {
                // Should a pipe take the file's place meanwhile, opening it must not wait for a writer.
                let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(&path);
                let file = file.map_err(|e| broken(&e))?;
                if file.metadata().is_ok_and(|meta| meta.is_file()) {
                    Ok(Some(file))
                } else {
                    Err(broken(&"not a regular file"))
                }
            }
        }
    }

    /// The bytes of a file; `None` where there is none.
    ///
    /// # Errors
    /// `ModelFormat` where it cannot be read or has more than 64 MB.
    pub fn bytes(&self, name: &str) -> Result<Option<Vec<u8>>> {
        self.bytes_up_to(name, MAX_BYTES)
    }

    fn bytes_up_to(&self, name: &str, most: u64) -> Result<Option<Vec<u8>>> {
        let Some(file) = self.file(name)? else { return Ok(None) };
        // Asked first, so that a file of any length costs nothing; `take`, since it may grow.
        let length = file.metadata().map_err(|e| self.broken(name, e))?.len();
        let mut bytes = Vec::new();
        if length <= most {
            file.take(most + 1).read_to_end(&mut bytes).map_err(|e| self.broken(name, e))?;
        }
        if length.max(bytes.len() as u64) > most {
            return Err(self.broken(name, format!("longer than {} MB", most >> 20)));
        }
        Ok(Some(bytes))
    }

    /// A JSON file; `None` where there is none.
    ///
    /// # Errors
    /// `ModelFormat` where it is no JSON or has more than 1 MB.
    pub fn json(&self, name: &str) -> Result<Option<Value>> {
        let Some(bytes) = self.bytes_up_to(name, MAX_JSON_BYTES)? else { return Ok(None) };
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
