//! Which instruction sets this CPU has, and which one is used.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

use crate::error::{Error, Result};

/// An instruction set, by the name users know.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// One number at a time; fused multiply-adds where the CPU has them, else the library's.
    Scalar,
    /// Arm's 128-bit vectors.
    Neon,
    /// x86-64 with AVX2, FMA and F16C: vectors of 256 bits.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL: vectors of 512 bits.
    Avx512,
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Isa::Scalar => "scalar",
            Isa::Neon => "neon",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
        })
    }
}

impl FromStr for Isa {
    type Err = Error;
    fn from_str(name: &str) -> Result<Self> {
        match name {
            "scalar" => Ok(Isa::Scalar),
            "neon" => Ok(Isa::Neon),
            "avx2" => Ok(Isa::Avx2),
            "avx512" => Ok(Isa::Avx512),
            _ => Err(Error::Value(format!(
                "HEADWISE_ISA: expected one of scalar, avx2, avx512, neon, got {name:?}"
            ))),
        }
    }
}

/// The instruction sets that this build has kernels for and this CPU can run, the widest last.
pub fn available() -> Vec<Isa> {
    #[allow(unused_mut, reason = "only x86-64 adds to it")]
    let mut found = vec![Isa::Scalar];
    #[cfg(target_arch = "x86_64")]
    {
        if super::x86::has_avx2() {
            found.push(Isa::Avx2);
        }
        if super::x86::has_avx512() {
            found.push(Isa::Avx512);
        }
    }
    found
}

/// The instruction set in use: what `HEADWISE_ISA` names, else the widest available. Read once.
///
/// # Errors
/// `HEADWISE_ISA` names no instruction set, or one that this CPU or build does not have.
pub fn active() -> Result<Isa> {
    static ACTIVE: OnceLock<std::result::Result<Isa, String>> = OnceLock::new();
    ACTIVE.get_or_init(|| choose().map_err(|e| e.to_string())).clone().map_err(Error::Value)
}

fn choose() -> Result<Isa> {
    let found = available();
    #[allow(clippy::disallowed_methods, reason = "one of the two places that read the environment")]
    let Some(forced) = std::env::var_os("HEADWISE_ISA").filter(|v| !v.is_empty()) else {
        return Ok(found[found.len() - 1]);
    };
    let isa: Isa = forced.to_string_lossy().parse()?;
    if found.contains(&isa) {
        return Ok(isa);
    }
    let names: Vec<String> = found.iter().map(ToString::to_string).collect();
    Err(Error::Value(format!("HEADWISE_ISA: this CPU or build has no {isa}; it has {}", names.join(", "))))
}
