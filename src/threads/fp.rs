//! The floating-point control word. Other libraries leave flush-to-zero switched on in a thread; results must not
//! depend on that, so whatever computes does so under the default word.

/// Runs `f` with the default control word (round to nearest, nothing flushed to zero, nothing trapped), and
/// restores what was there, after a panic too.
pub fn with_default_fp<R>(f: impl FnOnce() -> R) -> R {
    /// Restores the control word.
    struct Restore(word::Word);
    impl Drop for Restore {
        fn drop(&mut self) {
            word::set(self.0);
        }
    }
    let _restore = Restore(word::get());
    word::set(word::DEFAULT);
    f()
}

#[cfg(test)]
pub(super) use word::{DEFAULT, get, set};

#[cfg(target_arch = "x86_64")]
mod word {
    //! MXCSR, by the two instructions that exist for it: the intrinsics are deprecated.
    use std::arch::asm;

    pub(in crate::threads) type Word = u32;
    /// All exceptions masked, none pending, round to nearest, denormals kept.
    pub(in crate::threads) const DEFAULT: Word = 0x1f80;

    pub(in crate::threads) fn get() -> Word {
        let mut word: Word = 0;
        // SAFETY: stores four bytes to `word`, and changes nothing else.
        unsafe { asm!("stmxcsr [{}]", in(reg) &raw mut word, options(nostack, preserves_flags)) };
        word
    }

    pub(in crate::threads) fn set(word: Word) {
        // SAFETY: reads four bytes of `word`, which is the default or came from `get`: no reserved bit is set.
        unsafe { asm!("ldmxcsr [{}]", in(reg) &raw const word, options(nostack, preserves_flags)) };
    }
}

#[cfg(target_arch = "aarch64")]
mod word {
    //! FPCR.
    use std::arch::asm;

    pub(in crate::threads) type Word = u64;
    /// Round to nearest, denormals kept, nothing trapped.
    pub(in crate::threads) const DEFAULT: Word = 0;

    pub(in crate::threads) fn get() -> Word {
        let word: Word;
        // SAFETY: reads a register.
        unsafe { asm!("mrs {}, fpcr", out(reg) word, options(nomem, nostack, preserves_flags)) };
        word
    }

    pub(in crate::threads) fn set(word: Word) {
        // SAFETY: the word is the default or came from `get`.
        unsafe { asm!("msr fpcr, {}", in(reg) word, options(nostack, preserves_flags)) };
    }
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
mod word {
    //! Processors without a control word that headwise knows.
    pub(in crate::threads) type Word = ();
    pub(in crate::threads) const DEFAULT: Word = ();
    pub(in crate::threads) fn get() -> Word {}
    pub(in crate::threads) fn set((): Word) {}
}
