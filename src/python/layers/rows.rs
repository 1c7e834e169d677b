//! What layers of single rows take, (..., D) of any rank from 1 on or a list of (L_i, D), and what they give back.

use std::borrow::Cow;

use numpy::Element;
use pyo3::prelude::*;
use pyo3::types::PyList;

use super::batch::is_ragged;
use super::held::{dict, shaped};
use crate::error::{Error, Result};
use crate::nn::state::State;
use crate::ops::buffer::{elements, zeros};
use crate::python::arrays::{Input, Operand};
use crate::python::boundary::compute;
use crate::python::outputs::array;
use crate::python::pullback::PyPullback;
use crate::simd::Float;

/// How rows were given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Form {
    /// An array of this shape, the last axis left out.
    Array(Vec<usize>),
    /// A list of arrays of so many rows.
    List(Vec<usize>),
}

impl Form {
    /// Number of rows.
    pub fn count(&self) -> usize {
        match self {
            Form::Array(shape) => shape.iter().product(),
            Form::List(lengths) => lengths.iter().sum(),
        }
    }

    /// With a last axis, for texts of errors.
    fn describe(&self, width: usize) -> String {
        match self {
            Form::Array(shape) => format!("shape {:?}", [shape.as_slice(), &[width]].concat()),
            Form::List(lengths) => format!("a list of (L, {width}) with L in {lengths:?}"),
        }
    }

    /// Hands rows of `width` numbers over in this form.
    ///
    /// # Errors
    /// `MemoryError`.
    pub fn give<'py, T: Float + Element>(
        &self,
        py: Python<'py>,
        rows: Vec<T>,
        width: usize,
    ) -> PyResult<Bound<'py, PyAny>> {
        let lengths = match self {
            Form::Array(shape) => return Ok(array(py, shaped(&[shape, &[width][..]].concat(), rows)?)),
            Form::List(lengths) => lengths,
        };
        let list = PyList::empty(py);
        let mut at = 0;
        for &n in lengths {
            list.append(array(py, shaped(&[n, width], rows[at..at + n * width].to_vec())?))?;
            at += n * width;
        }
        Ok(list.into_any())
    }
}

/// An argument that is rows.
pub struct Rows<'py, T: Send> {
    inputs: Vec<Input<'py, T>>,
    /// How they were given.
    pub form: Form,
}

impl<'py, T: Float + Element> Rows<'py, T> {
    /// Reads an argument whose rows have `width` numbers.
    ///
    /// # Errors
    /// `ShapeError`, `DTypeError`.
    pub fn read(name: &'static str, object: &Bound<'py, PyAny>, width: usize) -> PyResult<Self> {
        let check = |shape: &[usize], axes: &str| -> Result<()> {
            if shape.last() == Some(&width) {
                return Ok(());
            }
            Err(Error::Shape(format!("{name}: expected {axes} with D = {width}, got shape {shape:?}")))
        };
        if is_ragged(object)? {
            let list = object.cast_exact::<PyList>()?;
            let (mut inputs, mut lengths) = (Vec::with_capacity(list.len()), Vec::with_capacity(list.len()));
            for item in list {
                let operand = Operand::new(name, &item)?;
                check(operand.shape(), "a list of (L, D)")?;
                lengths.push(operand.shape()[0]);
                inputs.push(operand.read_dense()?);
            }
            return Ok(Self { inputs, form: Form::List(lengths) });
        }
        let operand = Operand::new(name, object)?;
        check(operand.shape(), "(..., D) or a list of (L, D)")?;
        let form = Form::Array(operand.shape()[..operand.shape().len() - 1].to_vec());
        Ok(Self { inputs: vec![operand.read_dense()?], form })
    }

    /// Reads the gradient of a result that was given in `form`.
    ///
    /// # Errors
    /// `ShapeError` for another form, `DTypeError`.
    pub fn gradient(object: &Bound<'py, PyAny>, form: &Form, width: usize) -> PyResult<Self> {
        let rows = Self::read("d_out", object, width)?;
        if rows.form == *form {
            return Ok(rows);
        }
        let (want, came) = (form.describe(width), rows.form.describe(width));
        Err(Error::Shape(format!("d_out: expected {want}, as the result has it, got {came}")).into())
    }

    /// The numbers; those of a list back to back.
    pub fn numbers(&self) -> Cow<'_, [T]> {
        match self.inputs.as_slice() {
            [one] => Cow::Borrowed(one.dense().0),
            many => Cow::Owned(many.iter().flat_map(|i| i.dense().0.iter().copied()).collect()),
        }
    }
}

/// A layer of rows: its name and widths, and what a row costs.
#[derive(Clone, Copy, Debug)]
pub struct RowLayer {
    /// For texts.
    pub name: &'static str,
    /// Numbers of a row of the input.
    pub k: usize,
    /// Numbers of a row of the output.
    pub n: usize,
    /// Multiply-adds of a row.
    pub work: usize,
}

impl RowLayer {
    /// Takes `x` through `f(rows, number of rows, out)`; also returns what `f` keeps, and the form.
    ///
    /// # Errors
    /// `ShapeError`, `DTypeError`, `MemoryError` and those of `f`.
    pub fn call<'py, T: Float + Element, R: Send>(
        self,
        x: &Bound<'py, PyAny>,
        f: impl FnOnce(&[T], usize, &mut [T]) -> Result<R> + Send,
    ) -> PyResult<(Bound<'py, PyAny>, R, Form)> {
        let (py, rows) = (x.py(), Rows::<T>::read("x", x, self.k)?);
        let (m, numbers) = (rows.form.count(), rows.numbers());
        let (out, kept) = compute(py, m.saturating_mul(self.work), || {
            let mut out = zeros(elements("x", &[m, self.n])?)?;
            let kept = f(&numbers, m, &mut out)?;
            Ok((out, kept))
        })?;
        drop(numbers);
        Ok((rows.form.give(py, out, self.n)?, kept, rows.form))
    }

    /// As [`Self::call`], with the pullback by `back(x, number of rows, kept, d_out, d_x)`, which gives the gradients of
    /// the parameters. The pullback holds `x` and reads it again.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn vjp<'py, T: Float + Element, R: Send + Sync + 'static>(
        self,
        x: &Bound<'py, PyAny>,
        f: impl FnOnce(&[T], usize, &mut [T]) -> Result<R> + Send,
        back: impl Fn((&[T], usize), &R, &[T], &mut [T]) -> Result<State<T>> + Send + Sync + 'static,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (py, (out, kept, form)) = (x.py(), self.call(x, f)?);
        let x = x.clone().unbind();
        let pullback = move |d_out: &Bound<'_, PyAny>| {
            let py = d_out.py();
            let rows = Rows::<T>::read("x", x.bind(py), self.k)?;
            if rows.form != form {
                let (was, is) = (form.describe(self.k), rows.form.describe(self.k));
                return Err(Error::Value(format!("x: was {was} in the forward pass, is now {is}")).into());
            }
            let d_rows = Rows::<T>::gradient(d_out, &form, self.n)?;
            let (m, numbers, d_numbers) = (form.count(), rows.numbers(), d_rows.numbers());
            let (dx, grads) = compute(py, m.saturating_mul(self.work), || {
                let mut dx = zeros(m * self.k)?;
                let grads = back((&numbers, m), &kept, &d_numbers, &mut dx)?;
                Ok((dx, grads))
            })?;
            let gradients = (form.give(py, dx, self.k)?, dict(py, grads)?);
            Ok(gradients.into_pyobject(py)?.into_any().unbind())
        };
        Ok((out, PyPullback::new(self.name, pullback)).into_pyobject(py)?.into_any())
    }
}
