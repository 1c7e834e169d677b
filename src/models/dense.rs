//! A Dense module of sentence-transformers: y = f(x · wᵀ + b) on pooled rows.
//!
//! The product is the packed one of all layers, so a row's bits do not depend on its batch. relu, gelu and silu are part
//! of its epilogue; tanh and sigmoid, which no other layer needs there, pass over the result afterwards.

use serde_json::Value;

use crate::error::{Error, Result};
use crate::kernels::activation::Activation;
use crate::models::folder::Folder;
use crate::models::tensor_data::Access;
use crate::models::weights::Weights;
use crate::nn::linear::Linear;
use crate::nn::state::{Loader, Module, State};
use crate::ops::activation::activate_backward;
use crate::ops::buffer::zeros;
use crate::ops::linear::After;
use crate::ops::rows::over_rows;
use crate::simd::math::{sigmoid, tanh};
use crate::simd::{Float, Kernel, Simd, active};

const FILE: &str = "config.json";

/// Bound of both widths, as of every size in a config.
const MAX_SIZE: u64 = 1 << 31;

/// Nanoseconds of one tanh, roughly.
const COST: usize = 2;

/// The function behind the product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DenseActivation {
    /// In the epilogue of the product.
    Fused(Activation),
    /// tanh(x)
    Tanh,
    /// 1 / (1 + exp(-x))
    Sigmoid,
}

impl DenseActivation {
    /// By the path of torch's class.
    fn from_name(name: &str) -> Option<Self> {
        match name.strip_prefix("torch.nn.")?.rsplit('.').next()? {
            "Identity" => Some(Self::Fused(Activation::Identity)),
            "ReLU" => Some(Self::Fused(Activation::Relu)),
            "GELU" => Some(Self::Fused(Activation::Gelu)),
            "SiLU" => Some(Self::Fused(Activation::Silu)),
            "Tanh" => Some(Self::Tanh),
            "Sigmoid" => Some(Self::Sigmoid),
            _ => None,
        }
    }
}

/// The folder of a Dense module, checked; its weights still on disk.
#[derive(Debug)]
pub struct DenseFiles {
    /// K, the width of its input.
    pub in_features: usize,
    /// N, the width of its output.
    pub out_features: usize,
    bias: bool,
    activation: DenseActivation,
    weights: Weights,
}

impl DenseFiles {
    /// Opens the module in `folder`.
    ///
    /// # Errors
    /// `NotFound` for files that are not there, `ModelFormat` for damaged ones or weights that do not fit, `Unsupported` for
    /// what is not computed here.
    pub fn open(folder: &Folder, access: Access) -> Result<Self> {
        let Some(json) = folder.json(FILE)? else {
            return Err(folder.missing(FILE, "modules.json names it"));
        };
        let unsupported =
            |what: String| Error::Unsupported(format!("{}: {what}", folder.root().join(FILE).display()));
        let size = |key: &str| match json[key].as_u64() {
            Some(n @ 1..=MAX_SIZE) => Ok(n as usize),
            _ => Err(folder.broken(
                FILE,
                format!("{key} should be a whole number from 1 to {MAX_SIZE}, got {}", json[key]),
            )),
        };
        let bias = match &json["bias"] {
            Value::Null => true,
            Value::Bool(bias) => *bias,
            other => return Err(folder.broken(FILE, format!("bias should be true or false, got {other}"))),
        };
        // Absent, it is tanh, as in sentence-transformers.
        let activation = match json.get("activation_function") {
            None => DenseActivation::Tanh,
            Some(name) => name.as_str().and_then(DenseActivation::from_name).ok_or_else(|| {
                unsupported(format!(
                    "activation_function {name} is not supported; supported are Identity, ReLU, GELU, SiLU, Tanh and \
                     Sigmoid of torch.nn"
                ))
            })?,
        };
        for key in ["module_input_name", "module_output_name"] {
            if !matches!(json[key].as_str(), None | Some("sentence_embedding")) {
                return Err(unsupported(format!("{key} {} is not supported", json[key])));
            }
        }
        if json["use_residual"] == Value::Bool(true) {
            return Err(unsupported("use_residual is not supported".to_string()));
        }
        let (in_features, out_features) = (size("in_features")?, size("out_features")?);
        let weights = Weights::open(folder, access)?;
        weights.check("linear.weight", &[out_features, in_features])?;
        if bias {
            weights.check("linear.bias", &[out_features])?;
        }
        Ok(Self { in_features, out_features, bias, activation, weights })
    }

    /// Reads the weights.
    ///
    /// # Errors
    /// `ModelFormat` where they cannot be read, `Memory`.
    pub fn load<T: Float>(&self) -> Result<Dense<T>> {
        let (shape, bias) = ((self.out_features, self.in_features), self.bias.then_some("linear.bias"));
        Ok(Dense { linear: self.weights.linear("linear.weight", bias, shape)?, activation: self.activation })
    }
}

/// A Dense module in memory.
#[derive(Clone, Debug)]
pub struct Dense<T> {
    linear: Linear<T>,
    activation: DenseActivation,
}

impl<T: Float> Dense<T> {
    /// The width of its output.
    pub fn n(&self) -> usize {
        self.linear.n()
    }

    /// Its parameters.
    ///
    /// # Errors
    /// As [`Linear::weight`].
    pub fn state(&self) -> Result<State<T>> {
        self.linear.state()
    }

    /// The same with the parameters of a state; those missing stay.
    ///
    /// # Errors
    /// As [`Module::load`].
    pub fn with_state(&self, prefix: &str, loader: &mut Loader<T>) -> Result<Self> {
        Ok(Self { linear: self.linear.load(prefix, loader)?, activation: self.activation })
    }

    /// From the rows x (B, K), their result y and its gradient d (B, N): that of x, and those of the parameters.
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    pub fn backward(&self, x: &[T], y: &[T], d: &[T]) -> Result<(Vec<T>, State<T>)> {
        let (mut d, rows) = (d.to_vec(), d.len() / self.n().max(1));
        match self.activation {
            DenseActivation::Fused(activation) => {
                let mut before = zeros(y.len())?;
                self.linear.forward(x, rows, &mut before, After::default())?;
                activate_backward(activation, &before, &mut d)?;
            }
            DenseActivation::Tanh => {
                d.iter_mut().zip(y).for_each(|(d, &y)| *d = *d * (T::ONE - y * y));
            }
            DenseActivation::Sigmoid => {
                d.iter_mut().zip(y).for_each(|(d, &y)| *d = *d * (y * (T::ONE - y)));
            }
        }
        let mut dx = zeros(x.len())?;
        let grads = self.linear.backward(x, &d, rows, Some(&mut dx), None)?;
        Ok((dx, grads))
    }

    /// Maps x (B, K) to (B, N).
    ///
    /// # Errors
    /// `Memory`, `Interrupted`, `Internal`.
    pub fn forward(&self, x: &[T]) -> Result<Vec<T>> {
        let (k, n) = (self.linear.k(), self.linear.n());
        let mut out = zeros(x.len() / k * n)?;
        let fused = match self.activation {
            DenseActivation::Fused(activation) => activation,
            DenseActivation::Tanh | DenseActivation::Sigmoid => Activation::Identity,
        };
        self.linear.forward(x, x.len() / k, &mut out, After { activation: fused, ..After::default() })?;
        let (isa, activation) = (active()?, self.activation);
        if !matches!(activation, DenseActivation::Fused(_)) {
            over_rows(&mut out, n, COST * n, |_, x| T::dispatch(isa, Bounded { x, activation }))?;
        }
        Ok(out)
    }
}

/// tanh or sigmoid, in place.
struct Bounded<'a, T> {
    x: &'a mut [T],
    activation: DenseActivation,
}

impl<T: Float> Kernel<T> for Bounded<'_, T> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd<T>>(self, s: S) {
        for run in self.x.chunks_mut(S::LANES) {
            let x = s.load_partial(run);
            let y = if self.activation == DenseActivation::Tanh { tanh(s, x) } else { sigmoid(s, x) };
            s.store_partial(y, run);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::kernels::naive;
    use crate::simd;
    use safetensors::Dtype;
    use safetensors::tensor::TensorView;
    use serde_json::json;
    use std::path::Path;

    /// Writes a module with sixteenths for weights: weight (n, k), bias (n).
    pub(crate) fn write_dense(dir: &Path, (n, k): (usize, usize), activation: &str) {
        std::fs::create_dir_all(dir).unwrap();
        let numbers = |count: usize, step: usize| -> Vec<u8> {
            (0..count).flat_map(|i| (((i * step + 3) % 31) as f32 / 16.0 - 1.0).to_le_bytes()).collect()
        };
        let (weight, bias) = (numbers(n * k, 7), numbers(n, 11));
        let views = [
            ("linear.weight", TensorView::new(Dtype::F32, vec![n, k], &weight).unwrap()),
            ("linear.bias", TensorView::new(Dtype::F32, vec![n], &bias).unwrap()),
        ];
        safetensors::serialize_to_file(views, None, &dir.join("model.safetensors")).unwrap();
        let config =
            json!({"in_features": k, "out_features": n, "bias": true, "activation_function": activation});
        std::fs::write(dir.join(FILE), config.to_string()).unwrap();
    }

    fn open(dir: &Path) -> Result<DenseFiles> {
        DenseFiles::open(&Folder::open(dir).unwrap(), Access::Read)
    }

    #[test]
    fn every_activation_against_the_formula() {
        let (n, k, rows) = (19, 5, 3);
        let x: Vec<f64> = (0..rows * k).map(|i| (i as f64 * 0.37).sin()).collect();
        for (name, f) in [
            ("torch.nn.modules.linear.Identity", (|v| v) as fn(f64) -> f64),
            ("torch.nn.modules.activation.Tanh", f64::tanh),
            ("torch.nn.modules.activation.Sigmoid", |v| 1.0 / (1.0 + (-v).exp())),
            ("torch.nn.modules.activation.ReLU", |v| v.max(0.0)),
            ("torch.nn.modules.activation.GELU", |v| naive::activation(Activation::Gelu, v)),
            ("torch.nn.SiLU", |v| v / (1.0 + (-v).exp())),
        ] {
            let dir = tempfile::tempdir().unwrap();
            write_dense(dir.path(), (n, k), name);
            let files = open(dir.path()).unwrap();
            let got = files.load::<f64>().unwrap().forward(&x).unwrap();
            let weight: Vec<f64> = files.weights.read("linear.weight", &[n, k]).unwrap();
            let bias: Vec<f64> = files.weights.read("linear.bias", &[n]).unwrap();
            for (row, y) in x.chunks(k).zip(got.chunks(n)) {
                for i in 0..n {
                    let dot: f64 = row.iter().zip(&weight[i * k..]).map(|(a, b)| a * b).sum();
                    assert!((y[i] - f(dot + bias[i])).abs() < 1e-14, "{name}");
                }
            }
            let alone = files.load::<f64>().unwrap().forward(&x[k..2 * k]).unwrap();
            assert_eq!(alone, got[n..2 * n], "{name}");
        }
    }

    #[test]
    fn every_instruction_set_gives_the_same_bits() {
        let x: Vec<f32> = (0..37).map(|i| (i as f32 - 18.0) * 0.31).collect();
        for activation in [DenseActivation::Tanh, DenseActivation::Sigmoid] {
            let run = |isa| {
                let mut y = x.clone();
                f32::dispatch(isa, Bounded { x: &mut y, activation });
                y.into_iter().map(f32::to_bits).collect::<Vec<_>>()
            };
            for isa in simd::available() {
                assert_eq!(run(isa), run(simd::Isa::Scalar), "{isa} {activation:?}");
            }
        }
    }

    #[test]
    fn what_does_not_fit_is_named() {
        for (key, value, unsupported) in [
            ("in_features", json!(6), false),
            ("in_features", json!(-5), false),
            ("out_features", json!(1e12), false),
            ("bias", json!("yes"), false),
            ("activation_function", json!("evil.Tanh"), true),
            ("activation_function", json!("torch.nn.modules.activation.ELU"), true),
            ("activation_function", json!(null), true),
            ("module_input_name", json!("token_embeddings"), true),
            ("use_residual", json!(true), true),
        ] {
            let dir = tempfile::tempdir().unwrap();
            write_dense(dir.path(), (4, 5), "torch.nn.Tanh");
            let path = dir.path().join(FILE);
            let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
            config[key] = value;
            std::fs::write(&path, config.to_string()).unwrap();
            match (open(dir.path()), unsupported) {
                (Err(Error::Unsupported(text)), true) | (Err(Error::ModelFormat(text)), false) => {
                    assert!(text.contains(key) || text.contains("linear.weight"), "{text}");
                }
                (other, _) => panic!("{key}: {other:?}"),
            }
        }
        let dir = tempfile::tempdir().unwrap();
        write_dense(dir.path(), (4, 5), "torch.nn.Tanh");
        std::fs::rename(dir.path().join("model.safetensors"), dir.path().join("pytorch_model.bin")).unwrap();
        assert!(matches!(open(dir.path()), Err(Error::Unsupported(text)) if text.contains("pickled")));
    }
}
