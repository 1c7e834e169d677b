//! Gradients of norms, of dense rows and of arrays. Tasks are blocks of 256 rows: each leaves the sums of its rows for weight and bias,
//! which are then added in the order of the blocks.

use ndarray::{ArrayD, ArrayViewD};

use super::{check_eps, check_parameter, last_width};
use crate::error::{Error, Result};
use crate::kernels::columns::ROW_BLOCK;
use crate::kernels::gemm::OutRows;
use crate::kernels::norm_backward::NormBackward;
use crate::ops::buffer::zeros;
use crate::ops::rows::{dense, shaped};
use crate::simd::{Float, active};
use crate::threads::parallel;

/// Rows of a task that leaves no sums: some ten microseconds.
const TASK_NUMBERS: usize = 1 << 15;

/// Gradients of [`layer_norm_rows`](super::layer_norm_rows): dx (m, width), dweight and dbias (width), each a sum over the
/// rows.
///
/// # Errors
/// `Memory`, `Interrupted`, `Internal`.
///
/// # Panics
/// If slices are too short.
#[allow(clippy::too_many_arguments, reason = "those of the forward pass, and a gradient for each")]
pub fn layer_norm_rows_backward<T: Float>(
    x: &[T],
    dy: &[T],
    width: usize,
    weight: Option<&[T]>,
    eps: T,
    dx: &mut [T],
    dweight: Option<&mut [T]>,
    dbias: Option<&mut [T]>,
) -> Result<()> {
    backward(&Rows { x, dy, width, weight, eps, centered: true }, dx, dweight, dbias)
}

/// Gradients of [`rms_norm_rows`](super::rms_norm_rows).
///
/// # Errors
/// As [`layer_norm_rows_backward`].
///
/// # Panics
/// If slices are too short.
pub fn rms_norm_rows_backward<T: Float>(
    x: &[T],
    dy: &[T],
    width: usize,
    weight: Option<&[T]>,
    eps: T,
    dx: &mut [T],
    dweight: Option<&mut [T]>,
) -> Result<()> {
    backward(&Rows { x, dy, width, weight, eps, centered: false }, dx, dweight, None)
}

/// Gradients of a norm of an array.
pub struct NormGradients<T> {
    /// Of x, of its shape.
    pub x: ArrayD<T>,
    /// Of the weight (D,).
    pub weight: Option<ArrayD<T>>,
    /// Of the bias (D,).
    pub bias: Option<ArrayD<T>>,
}

/// Gradients of [`layer_norm`](super::layer_norm) from `d`, that of its result: of x, of a weight that is there, and of a
/// bias if it is asked for.
///
/// # Errors
/// `Shape` and `Value` as the forward pass has them; `Memory`, `Interrupted`, `Internal`.
pub fn layer_norm_backward<T: Float>(
    x: &ArrayViewD<'_, T>,
    d: &ArrayViewD<'_, T>,
    weight: Option<&ArrayViewD<'_, T>>,
    bias: bool,
    eps: f64,
) -> Result<NormGradients<T>> {
    of_array(x, d, weight, (true, bias), eps)
}

/// Gradients of [`rms_norm`](super::rms_norm) with its eps.
///
/// # Errors
/// As [`layer_norm_backward`].
pub fn rms_norm_backward<T: Float>(
    x: &ArrayViewD<'_, T>,
    d: &ArrayViewD<'_, T>,
    weight: Option<&ArrayViewD<'_, T>>,
    eps: f64,
) -> Result<NormGradients<T>> {
    of_array(x, d, weight, (false, false), eps)
}

fn of_array<T: Float>(
    x: &ArrayViewD<'_, T>,
    d: &ArrayViewD<'_, T>,
    weight: Option<&ArrayViewD<'_, T>>,
    (centered, bias): (bool, bool),
    eps: f64,
) -> Result<NormGradients<T>> {
    let width = last_width(x)?;
    check_parameter("weight", weight, width)?;
    if d.shape() != x.shape() {
        return Err(Error::Shape(format!("d_out: expected {:?}, got {:?}", x.shape(), d.shape())));
    }
    let eps = check_eps(eps)?;
    let (numbers, d, weight) = (dense(x)?, dense(d)?, weight.map(dense).transpose()?);
    let rows = Rows { x: &numbers, dy: &d, width, weight: weight.as_deref(), eps, centered };
    let mut dx = zeros(numbers.len())?;
    let mut dweight = weight.is_some().then(|| zeros(width)).transpose()?;
    let mut dbias = bias.then(|| zeros(width)).transpose()?;
    backward(&rows, &mut dx, dweight.as_deref_mut(), dbias.as_deref_mut())?;
    let parameter = |d: Option<Vec<T>>| d.map(|d| shaped(&[width], d)).transpose();
    Ok(NormGradients { x: shaped(x.shape(), dx)?, weight: parameter(dweight)?, bias: parameter(dbias)? })
}

/// What both norms read.
struct Rows<'a, T> {
    x: &'a [T],
    dy: &'a [T],
    width: usize,
    weight: Option<&'a [T]>,
    eps: T,
    centered: bool,
}

fn backward<T: Float>(
    rows: &Rows<'_, T>,
    dx: &mut [T],
    dweight: Option<&mut [T]>,
    dbias: Option<&mut [T]>,
) -> Result<()> {
    let &Rows { x, dy, width, weight, eps, centered } = rows;
    assert!(dy.len() >= x.len() && dx.len() >= x.len(), "rows of a gradient");
    if width == 0 {
        return Ok(());
    }
    let isa = active()?;
    let m = x.len() / width;
    let sums = dweight.is_some() || dbias.is_some();
    let task_rows = if sums { ROW_BLOCK } else { (TASK_NUMBERS / width).max(1) };
    let tasks = m.div_ceil(task_rows);
    let mut parts = zeros::<T>(if sums { 2 * tasks * width } else { 0 })?;
    let (shared_dx, shared_parts) = (OutRows::new(dx), OutRows::new(&mut parts));
    let small = x.len() < TASK_NUMBERS;
    let task = |i: usize| {
        let at = i * task_rows * width..x.len().min((i + 1) * task_rows * width);
        // SAFETY: each task writes the gradients of its own rows, and its own sums.
        let dx = unsafe { shared_dx.slice(at.start, at.len()) };
        // SAFETY: as above.
        let part = |which: usize| unsafe { shared_parts.slice((2 * i + which) * width, width) };
        T::dispatch(
            isa,
            NormBackward {
                x: &x[at.clone()],
                dy: &dy[at],
                dx,
                width,
                weight,
                eps,
                centered,
                dweight: dweight.is_some().then(|| part(0)),
                dbias: dbias.is_some().then(|| part(1)),
            },
        );
    };
    if small {
        parallel(1, |_| (0..tasks).for_each(task))?;
    } else {
        parallel(tasks, task)?;
    }
    for (which, out) in [dweight, dbias].into_iter().enumerate() {
        let Some(out) = out else { continue };
        out.fill(T::ZERO);
        for (i, part) in parts.chunks_exact(2 * width).enumerate() {
            let part = &part[which * width..][..width];
            for (sum, &x) in out.iter_mut().zip(part) {
                *sum = if i == 0 { x } else { *sum + x };
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{assert_same_bits, normals};

    #[test]
    fn blocks_of_rows_are_added_in_order() {
        let (m, width) = (2 * ROW_BLOCK + 77, 70);
        let (x, dy) = (normals::<f32>(m * width, 1, 1.0), normals::<f32>(m * width, 2, 1.0));
        let weight = normals::<f32>(width, 3, 1.0);
        let run = |rows: std::ops::Range<usize>| {
            let at = rows.start * width..rows.end * width;
            let (mut dx, mut dw, mut db) = (vec![f32::NAN; at.len()], vec![7.0; width], vec![7.0; width]);
            let (x, dy) = (&x[at.clone()], &dy[at]);
            let sums = (Some(&mut dw[..]), Some(&mut db[..]));
            layer_norm_rows_backward(x, dy, width, Some(&weight), 1e-5, &mut dx, sums.0, sums.1).unwrap();
            let mut alone = vec![f32::NAN; dx.len()];
            layer_norm_rows_backward(x, dy, width, Some(&weight), 1e-5, &mut alone, None, None).unwrap();
            assert_same_bits(&dx, &alone);
            (dx, dw, db)
        };
        let (dx, dw, db) = run(0..m);
        let (mut rows, mut weights, mut biases) = (Vec::new(), vec![0.0; width], vec![0.0; width]);
        for start in (0..m).step_by(ROW_BLOCK) {
            let (part, part_weight, part_bias) = run(start..m.min(start + ROW_BLOCK));
            rows.extend(part);
            for j in 0..width {
                weights[j] += part_weight[j];
                biases[j] += part_bias[j];
            }
        }
        assert_same_bits(&dx, &rows);
        assert_same_bits(&dw, &weights);
        assert_same_bits(&db, &biases);
        let mut columns = vec![0.0; width];
        crate::ops::columns::column_sums(&dy, m, width, &mut columns).unwrap();
        assert_same_bits(&db, &columns);
    }

    #[test]
    fn no_rows_leave_zeros() {
        let (mut dw, mut db) = ([7.0_f64; 3], [7.0; 3]);
        layer_norm_rows_backward(&[], &[], 3, None, 1e-5, &mut [], Some(&mut dw), Some(&mut db)).unwrap();
        rms_norm_rows_backward::<f64>(&[], &[], 0, None, 1e-5, &mut [], Some(&mut [])).unwrap();
        assert_same_bits(&dw, &[0.0; 3]);
        assert_same_bits(&db, &[0.0; 3]);
    }
}
