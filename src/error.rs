//! One error type for the whole crate. The text names the argument, what was expected and what came;
//! `src/python/errors.rs` maps each kind to the Python exception that users catch.

/// What went wrong, by the kind of exception a user sees.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Shapes that do not fit each other (`ShapeError`, a `ValueError`).
    #[error("{0}")]
    Shape(String),
    /// A value out of its range (`ValueError`).
    #[error("{0}")]
    Value(String),
    /// An argument of the wrong kind (`TypeError`).
    #[error("{0}")]
    Type(String),
    /// An array of a dtype that is not computed with (`DTypeError`, a `TypeError`).
    #[error("{0}")]
    DType(String),
    /// A checkpoint that is damaged or does not fit its config (`ModelFormatError`, a `ValueError`).
    #[error("{0}")]
    ModelFormat(String),
    /// A tokenizer file or text that cannot be tokenized (`TokenizerError`, a `ValueError`).
    #[error("{0}")]
    Tokenizer(String),
    /// A sound checkpoint of a family that headwise does not run (`UnsupportedModelError`).
    #[error("{0}")]
    Unsupported(String),
    /// A file that is not there (`FileNotFoundError`).
    #[error("{0}")]
    NotFound(String),
    /// Memory that cannot be had (`MemoryError`).
    #[error("{0}")]
    Memory(String),
    /// The user pressed Ctrl-C (`KeyboardInterrupt`).
    #[error("interrupted")]
    Interrupted,
    /// A fault of headwise itself (`InternalError`, a `RuntimeError`).
    #[error("internal error: {0}; please report this with the call that caused it")]
    Internal(String),
}

/// The crate's result.
pub type Result<T> = std::result::Result<T, Error>;
