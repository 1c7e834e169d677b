//! Texts as Python has them: `str`, or two of them as a pair that the model reads as one.

use pyo3::prelude::*;
use pyo3::types::{PyList, PyString, PyTuple};

use crate::error::Error;
use crate::models::text_encoder::Text;
use crate::python::arrays::type_name;

/// A text or pair, copied out of Python: the interpreter's lock is not held while it is read.
pub struct OwnedText {
    text: String,
    pair: Option<String>,
}

impl OwnedText {
    fn view(&self) -> Text<'_> {
        Text { text: &self.text, pair: self.pair.as_deref() }
    }
}

/// The texts as the crate takes them.
pub fn views(texts: &[OwnedText]) -> Vec<Text<'_>> {
    texts.iter().map(OwnedText::view).collect()
}

/// A text's characters; a lone surrogate has none.
pub fn text_of(name: &str, object: &Bound<'_, PyAny>) -> PyResult<String> {
    let Ok(text) = object.cast::<PyString>() else {
        return Err(Error::Type(format!("{name}: expected texts (str), got {}", type_name(object))).into());
    };
    match text.to_cow() {
        Ok(text) => Ok(text.into_owned()),
        Err(e) => Err(Error::Value(format!("{name}: a text that is no Unicode: {e}")).into()),
    }
}

/// The texts of a list.
pub fn texts_of(name: &str, list: &Bound<'_, PyList>) -> PyResult<Vec<OwnedText>> {
    list.iter()
        .map(|item| {
            let pair = item.is_instance_of::<PyList>() || item.is_instance_of::<PyTuple>();
            if !pair {
                return Ok(OwnedText { text: text_of(name, &item)?, pair: None });
            }
            if item.len()? != 2 {
                let came = item.len()?;
                return Err(Error::Type(format!("{name}: expected two texts in a pair, got {came}")).into());
            }
            let part = |i: usize| text_of(name, &item.get_item(i)?);
            Ok(OwnedText { text: part(0)?, pair: Some(part(1)?) })
        })
        .collect()
}
