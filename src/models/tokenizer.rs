//! Text to token ids, by the `tokenizers` crate, with fences around it.
//!
//! The file decides how text is cut, the model decides how long it may be: padding that `tokenizer.json` carries is
//! dropped (rows are packed, never padded) and its truncation replaced, as sentence-transformers does. The crate panics
//! on some crafted files and texts; every call into it is fenced, and what comes back is checked (ids and types within
//! their tables, one type, word and offset for each id, offsets within the text), since the model indexes tables with
//! it. What is slow or random on purpose is refused when the file is read.

mod guard;

use tokenizers::normalizers::Lowercase;
use tokenizers::{
    DecoderWrapper, EncodeInput, Model as _, ModelWrapper, NormalizerWrapper, OffsetType, PostProcessor,
    PostProcessorWrapper, PreTokenizer as _, TokenizerImpl, TruncationDirection, TruncationParams,
    TruncationStrategy,
};

use self::guard::{Normalizer, PreTokenizer, dropped_error, is_shallow};
use crate::error::{Error, Result};
use crate::threads::catching;

/// Letters of the longest word that `WordPiece` may look up piece by piece, in time that grows with their cube; it is 100
/// in every published file.
const MAX_WORD: usize = 256;

/// The crate's tokenizer with guarded steps.
type Inner = TokenizerImpl<ModelWrapper, Normalizer, PreTokenizer, PostProcessorWrapper, DecoderWrapper>;

/// What the model needs of one text: token ids and their types.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TokenIds {
    /// Rows of the word table.
    pub ids: Vec<u32>,
    /// Rows of the token type table: 0 for a text, 1 for the second of a pair.
    pub type_ids: Vec<u32>,
}

/// Everything that is known of the tokens of one text or pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokens {
    /// Ids and types.
    pub ids: TokenIds,
    /// The vocabulary's spelling of each token.
    pub tokens: Vec<String>,
    /// The word that each token belongs to, counted within its text; none for special tokens.
    pub words: Vec<Option<u32>>,
    /// Which of the two texts each token comes from; none for special tokens.
    pub texts: Vec<Option<usize>>,
    /// Where each token lies in its text, in characters, end excluded; (0, 0) for special tokens.
    pub offsets: Vec<(usize, usize)>,
}

/// How texts are cut and shortened.
#[derive(Debug, Clone, Copy)]
pub struct TokenizerOptions {
    /// Tokens that a text may have, special ones included.
    pub max_length: usize,
    /// Rows of the word table; ids from there on are refused.
    pub vocab_size: usize,
    /// Rows of the token type table; types from there on are refused.
    pub type_vocab_size: usize,
    /// Cut the front of a long text rather than its end.
    pub truncate_left: bool,
    /// Lower-case every text first, whatever the file says.
    pub lower_case: bool,
}

/// A tokenizer that gives no more than `max_length` tokens.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Inner,
    options: TokenizerOptions,
    /// What errors call the file.
    label: String,
    /// Special tokens around one text and around a pair.
    special: [usize; 2],
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads the bytes of a `tokenizer.json`; `label` is what errors call it.
    ///
    /// # Errors
    /// `Tokenizer` where the file is damaged or does not fit the model.
    pub fn from_bytes(bytes: &[u8], label: &str, options: TokenizerOptions) -> Result<Self> {
        let broken = |what: String| Error::Tokenizer(format!("{label}: {what}"));
        if !is_shallow(bytes) {
            return Err(broken("brackets are nested too deeply".to_string()));
        }
        let mut inner = fence(label, || Inner::from_bytes(bytes))?;
        inner.with_padding(None);
        if options.lower_case {
            lower_case_first(&mut inner, label)?;
        }
        check_model(inner.get_model()).map_err(broken)?;
        let special = fence(label, || {
            let added = |pair| inner.get_post_processor().map_or(0, |p| p.added_tokens(pair));
            Ok([added(false), added(true)])
        })?;
        let mut tokenizer = Self { inner, options, label: label.to_string(), special };
        tokenizer.set_max_length(options.max_length).map_err(|e| broken(e.to_string()))?;
        tokenizer.check_ids()?;
        Ok(tokenizer)
    }

    /// Compares the vocabulary and the special tokens with the model's tables.
    fn check_ids(&self) -> Result<()> {
        let vocabulary = fence(&self.label, || Ok(self.inner.get_vocab(true)))?;
        let rows = self.options.vocab_size;
        if let Some((token, id)) =
            vocabulary.iter().max_by_key(|(_, id)| **id).filter(|(_, id)| **id as usize >= rows)
        {
            return Err(Error::Tokenizer(format!(
                "{}: token {token:?} has id {id}, the model's vocabulary has {rows} tokens: the file belongs to another \
                 model",
                self.label
            )));
        }
        // Special tokens have ids of their own in the file.
        self.ids("a").map(|_| ())
    }

    /// Tokens that a text may have, special ones included.
    pub fn max_length(&self) -> usize {
        self.options.max_length
    }

    /// Changes how many tokens a text may have.
    ///
    /// # Errors
    /// `Value` where the special tokens alone are more than that.
    pub fn set_max_length(&mut self, max_length: usize) -> Result<()> {
        // The crate subtracts without a check.
        if max_length < self.special[0].max(1) {
            return Err(Error::Value(format!(
                "max_length: expected at least {} (the special tokens), got {max_length}",
                self.special[0].max(1)
            )));
        }
        self.options.max_length = max_length;
        let direction =
            if self.options.truncate_left { TruncationDirection::Left } else { TruncationDirection::Right };
        let truncation =
            TruncationParams { direction, max_length, strategy: TruncationStrategy::LongestFirst, stride: 0 };
        fence(&self.label, || self.inner.with_truncation(Some(truncation)).map(|_| ()))
    }

    /// Ids and types of one text: the quick way, which spells no tokens.
    ///
    /// # Errors
    /// `Tokenizer` where the text cannot be tokenized or the result does not fit the model.
    pub fn ids(&self, text: &str) -> Result<TokenIds> {
        let encoding = fence(&self.label, || self.inner.encode_fast(text, true))?;
        self.check(encoding.get_ids(), encoding.get_type_ids())
    }

    /// Ids and types of one text or pair, and whether it was cut.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn ids_and_cut(&self, text: &str, pair: Option<&str>) -> Result<(TokenIds, bool)> {
        let input = self.input(text, pair)?;
        let encoding = fence(&self.label, || self.inner.encode_fast(input, true))?;
        let tokens = self.check(encoding.get_ids(), encoding.get_type_ids())?;
        // The crate stops reading once it has `max_length` tokens. Special tokens want room, so that then something has
        // to be cut; without any, it cannot tell a text that is just long enough from one that goes on.
        let unsure = self.special_around(pair) == 0 && tokens.ids.len() == self.options.max_length;
        let cut = !encoding.get_overflowing().is_empty()
            || (unsure && self.length(text, pair)? > self.options.max_length);
        Ok((tokens, cut))
    }

    /// How many tokens one text or pair has before it is cut, special ones included.
    ///
    /// # Errors
    /// `Tokenizer` where the text cannot be tokenized.
    pub fn length(&self, text: &str, pair: Option<&str>) -> Result<usize> {
        // The steps of the crate's `encode` without its truncation, which would end the reading.
        let own = |text: &str| {
            fence(&self.label, || {
                let inner = &self.inner;
                let mut parts =
                    inner.get_added_vocabulary().extract_and_normalize(inner.get_normalizer(), text);
                if let Some(cutter) = inner.get_pre_tokenizer() {
                    cutter.pre_tokenize(&mut parts)?;
                }
                inner.get_model().tokenize_in_pretokenized(&mut parts, None)?;
                Ok(parts.into_encoding(None, 0, OffsetType::None)?.len())
            })
        };
        Ok(own(text)? + pair.map_or(Ok(0), own)? + self.special_around(pair))
    }

    fn special_around(&self, pair: Option<&str>) -> usize {
        self.special[usize::from(pair.is_some())]
    }

    /// Everything about the tokens of one text, or of a pair of texts.
    ///
    /// # Errors
    /// As [`Tokenizer::ids`]; `Value` where `max_length` leaves no room for a pair's special tokens.
    pub fn encode(&self, text: &str, pair: Option<&str>) -> Result<Tokens> {
        let input = self.input(text, pair)?;
        let (encoding, texts) = fence(&self.label, || {
            let encoding = self.inner.encode_char_offsets(input, true)?;
            let texts = encoding.get_sequence_ids();
            Ok((encoding, texts))
        })?;
        let tokens = Tokens {
            ids: self.check(encoding.get_ids(), encoding.get_type_ids())?,
            tokens: encoding.get_tokens().to_vec(),
            words: encoding.get_word_ids().to_vec(),
            texts,
            offsets: encoding.get_offsets().to_vec(),
        };
        let n = tokens.ids.ids.len();
        let lengths = [tokens.tokens.len(), tokens.words.len(), tokens.texts.len(), tokens.offsets.len()];
        if lengths != [n; 4] {
            return Err(self.odd(format!("{n} ids with {lengths:?} descriptions")));
        }
        let characters = [text, pair.unwrap_or_default()].map(|text| text.chars().count());
        for (&(start, end), text) in tokens.offsets.iter().zip(&tokens.texts) {
            let length = text.map_or(usize::MAX, |i| characters.get(i).copied().unwrap_or(0));
            if start > end || end > length {
                return Err(self.odd(format!("a token from {start} to {end} of a text of {length}")));
            }
        }
        Ok(tokens)
    }

    fn input<'a>(&self, text: &'a str, pair: Option<&'a str>) -> Result<EncodeInput<'a>> {
        match pair {
            None => Ok(text.into()),
            // The crate subtracts without a check.
            Some(_) if self.options.max_length < self.special[1] => Err(Error::Value(format!(
                "text_pair: a pair has {} special tokens, max_length is {}",
                self.special[1], self.options.max_length
            ))),
            Some(pair) => Ok((text, pair).into()),
        }
    }

    fn check(&self, ids: &[u32], type_ids: &[u32]) -> Result<TokenIds> {
        let TokenizerOptions { max_length, vocab_size, type_vocab_size, .. } = self.options;
        if ids.len() != type_ids.len() || ids.len() > max_length {
            return Err(self.odd(format!(
                "{} ids and {} types where at most {max_length} were asked for",
                ids.len(),
                type_ids.len(),
            )));
        }
        for (what, numbers, rows) in [("id", ids, vocab_size), ("type id", type_ids, type_vocab_size)] {
            if let Some(number) = numbers.iter().find(|&&number| number as usize >= rows) {
                return Err(self.odd(format!(
                    "{what} {number}, the model's table has {rows} rows: the file belongs to another model"
                )));
            }
        }
        Ok(TokenIds { ids: ids.to_vec(), type_ids: type_ids.to_vec() })
    }

    fn odd(&self, gave: String) -> Error {
        Error::Tokenizer(format!("{}: the tokenizer gave {gave}", self.label))
    }
}

/// Refuses models that are slow or random on purpose.
fn check_model(model: &ModelWrapper) -> std::result::Result<(), String> {
    match model {
        ModelWrapper::WordPiece(m) if m.max_input_chars_per_word > MAX_WORD => Err(format!(
            "max_input_chars_per_word should be at most {MAX_WORD}, got {}",
            m.max_input_chars_per_word
        )),
        ModelWrapper::BPE(m) if m.dropout.is_some_and(|p| p != 0.0) => {
            Err("dropout gives other tokens at each call, expected none".to_string())
        }
        _ => Ok(()),
    }
}

/// Puts lower-casing before the file's own normalizer.
fn lower_case_first(inner: &mut Inner, label: &str) -> Result<()> {
    let mut steps = vec![Normalizer::Other(NormalizerWrapper::Lowercase(Lowercase))];
    steps.extend(inner.get_normalizer().cloned());
    fence(label, || inner.with_normalizer(Some(Normalizer::Sequence(steps))).map(|_| ()))
}

/// Runs a call of the crate; an error or a panic becomes `Error::Tokenizer`.
fn fence<R>(label: &str, call: impl FnOnce() -> tokenizers::Result<R>) -> Result<R> {
    // A panic may leave the crate's values half changed, but each caller drops or rebuilds them.
    let result = catching(call);
    let dropped = dropped_error();
    match result {
        Ok(Ok(value)) => match dropped {
            None => Ok(value),
            Some(e) => Err(Error::Tokenizer(format!("{label}: {e}"))),
        },
        Ok(Err(e)) => match e.downcast::<Error>() {
            Ok(own) => Err(*own),
            Err(e) => Err(Error::Tokenizer(format!("{label}: {e}"))),
        },
        Err(Error::Internal(what)) => Err(Error::Tokenizer(format!("{label}: the tokenizer failed: {what}"))),
        Err(other) => Err(other),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// A tokenizer in BERT's manner, with fixed padding and a short truncation as many files on the hub have.
    pub(crate) fn small_file() -> Value {
        let words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "dog", "##s", "ate", "it", "play", "##ing"];
        let vocab: serde_json::Map<String, Value> =
            words.iter().enumerate().map(|(i, w)| ((*w).to_string(), json!(i))).collect();
        json!({
            "version": "1.0",
            "truncation": {"max_length": 3, "strategy": "LongestFirst", "stride": 0},
            "padding": {"strategy": {"Fixed": 12}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
                        "pad_type_id": 0, "pad_token": "[PAD]"},
            "added_tokens": [],
            "normalizer": {"type": "BertNormalizer", "clean_text": true, "handle_chinese_chars": true,
                           "strip_accents": null, "lowercase": true},
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": {"type": "TemplateProcessing",
                "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                           {"SpecialToken": {"id": "[SEP]", "type_id": 0}}],
                "pair": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}},
                         {"SpecialToken": {"id": "[SEP]", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}},
                         {"SpecialToken": {"id": "[SEP]", "type_id": 1}}],
                "special_tokens": {"[CLS]": {"id": "[CLS]", "ids": [2], "tokens": ["[CLS]"]},
                                   "[SEP]": {"id": "[SEP]", "ids": [3], "tokens": ["[SEP]"]}}},
            "decoder": null,
            "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                      "max_input_chars_per_word": 100, "vocab": vocab}
        })
    }

    fn options() -> TokenizerOptions {
        TokenizerOptions {
            max_length: 8,
            vocab_size: 11,
            type_vocab_size: 2,
            truncate_left: false,
            lower_case: false,
        }
    }

    fn open(file: &Value, options: TokenizerOptions) -> Result<Tokenizer> {
        Tokenizer::from_bytes(file.to_string().as_bytes(), "tokenizer.json", options)
    }

    #[test]
    fn no_padding_and_the_models_own_length() {
        let mut tokenizer = open(&small_file(), options()).unwrap();
        assert_eq!(tokenizer.ids("A dog").unwrap().ids, [2, 4, 5, 3]);
        assert_eq!(tokenizer.ids("").unwrap().ids, [2, 3]);
        assert_eq!(tokenizer.ids(&"a ".repeat(50)).unwrap().ids, [2, 4, 4, 4, 4, 4, 4, 3]);
        tokenizer.set_max_length(3).unwrap();
        assert_eq!(tokenizer.ids("dogs ate it").unwrap().ids, [2, 5, 3]);
        assert!(matches!(tokenizer.set_max_length(1), Err(Error::Value(_))));
        assert_eq!(tokenizer.max_length(), 3);
    }

    #[test]
    fn what_was_cut_and_how_long_it_was() {
        let mut bare = small_file();
        bare["post_processor"] = Value::Null;
        for (file, [single, double]) in [(small_file(), [2, 3]), (bare, [0, 0])] {
            let tokenizer = open(&file, options()).unwrap();
            for words in [0, 1, 5, 6, 7, 8, 9, 50] {
                let text = "dogs ".repeat(words / 2) + &"a".repeat(words % 2);
                let (ids, cut) = tokenizer.ids_and_cut(&text, None).unwrap();
                let length = words + single;
                assert_eq!((ids.ids.len(), cut), (length.min(8), length > 8), "{text}");
                assert_eq!(tokenizer.length(&text, None).unwrap(), length);
            }
            for (first, second) in [(2, 3), (20, 1), (3, 30), (1, 1), (4, 4), (4, 5)] {
                let (text, pair) = ("a ".repeat(first), "dog ".repeat(second));
                let (ids, cut) = tokenizer.ids_and_cut(&text, Some(&pair)).unwrap();
                let length = first + second + double;
                assert_eq!((ids.ids.len(), cut), (length.min(8), length > 8), "{first} {second}");
                assert_eq!(tokenizer.length(&text, Some(&pair)).unwrap(), length);
            }
        }
    }

    #[test]
    fn words_texts_and_offsets_of_a_pair() {
        let tokenizer = open(&small_file(), options()).unwrap();
        let got = tokenizer.encode("Dogs", Some("é ate")).unwrap();
        assert_eq!(got.ids.ids, [2, 5, 6, 3, 1, 7, 3]);
        assert_eq!(got.ids.type_ids, [0, 0, 0, 0, 1, 1, 1]);
        assert_eq!(got.tokens[1..3], ["dog", "##s"]);
        assert_eq!(got.words, [None, Some(0), Some(0), None, Some(0), Some(1), None]);
        assert_eq!(got.texts, [None, Some(0), Some(0), None, Some(1), Some(1), None]);
        assert_eq!(got.offsets[4..6], [(0, 1), (2, 5)]);
        let short = TokenizerOptions { max_length: 2, ..options() };
        assert!(matches!(open(&small_file(), short).unwrap().encode("a", Some("a")), Err(Error::Value(_))));
    }

    #[test]
    fn lower_case_and_left_truncation() {
        let mut file = small_file();
        file["normalizer"] = Value::Null;
        assert_eq!(open(&file, options()).unwrap().ids("DOG").unwrap().ids, [2, 1, 3]);
        let lower = TokenizerOptions { lower_case: true, ..options() };
        assert_eq!(open(&file, lower).unwrap().ids("DOG").unwrap().ids, [2, 5, 3]);
        let left = TokenizerOptions { max_length: 3, truncate_left: true, ..options() };
        assert_eq!(open(&file, left).unwrap().ids("dog ate it").unwrap().ids, [2, 8, 3]);
    }

    #[test]
    fn foreign_vocabularies_and_broken_files() {
        let small = TokenizerOptions { vocab_size: 10, ..options() };
        let Err(Error::Tokenizer(text)) = open(&small_file(), small) else { panic!() };
        assert!(text.contains("tokenizer.json") && text.contains("##ing") && text.contains("10"), "{text}");
        let small = TokenizerOptions { type_vocab_size: 1, ..options() };
        let one_type = open(&small_file(), small).unwrap();
        assert!(
            matches!(one_type.encode("a", Some("a")), Err(Error::Tokenizer(text)) if text.contains("type id 1"))
        );
        for bytes in [&b""[..], b"{", b"[]", b"{\"version\": \"1.0\"}", &[0xff; 40]] {
            assert!(matches!(
                Tokenizer::from_bytes(bytes, "tokenizer.json", options()),
                Err(Error::Tokenizer(_))
            ));
        }
        let mut file = small_file();
        file["model"]["type"] = json!("Mystery");
        assert!(matches!(open(&file, options()), Err(Error::Tokenizer(_))));
    }

    #[test]
    fn crafted_files() {
        for (path, value, part) in [
            ("/model/max_input_chars_per_word", json!(1_000_000_000), "max_input_chars_per_word"),
            ("/post_processor/special_tokens/[CLS]/ids", json!([999]), "id 999"),
            ("/post_processor/single/0/SpecialToken/type_id", json!(7), "type id 7"),
            (
                "/post_processor/single",
                json!(vec![json!({"Sequence": {"id": "A", "type_id": 0}}); 50]),
                "50 ids",
            ),
            ("/post_processor/special_tokens/[CLS]/ids", json!(vec![2; 50]), "max_length"),
            ("/normalizer", json!({"type": "Replace", "pattern": {"Regex": "("}, "content": "x"}), "Parsing"),
        ] {
            let mut file = small_file();
            *file.pointer_mut(path).unwrap() = value;
            let Err(Error::Tokenizer(text)) = open(&file, options()) else { panic!("{path}") };
            assert!(text.contains(part) && text.contains("tokenizer.json"), "{text}");
        }
        let mut deep = json!({"type": "BertPreTokenizer"});
        for _ in 0..40 {
            deep = json!({"type": "Sequence", "pretokenizers": [deep]});
        }
        let mut file = small_file();
        file["pre_tokenizer"] = deep;
        assert!(matches!(open(&file, options()), Err(Error::Tokenizer(text)) if text.contains("nested")));
    }

    #[test]
    fn a_panic_becomes_an_error() {
        let got: Result<()> = fence("text", || panic!("crafted"));
        assert!(matches!(got, Err(Error::Tokenizer(text)) if text.contains("crafted")));
    }
}
