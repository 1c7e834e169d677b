//! Each cell against its formula in f64, forward and back, and against the scalar instructions to the bit.

use super::*;
use crate::kernels::testing::{assert_same_bits, for_each_isa, lengths, normals};
use crate::simd::Isa;

/// Rows of a step.
const ROWS: usize = 3;

fn wide<T: Float>(x: &[T]) -> Vec<f64> {
    x.iter().map(|x| x.to_f64()).collect()
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + libm::exp(-x))
}

/// Numbers of a step by name; `width` is H.
struct Numbers<T> {
    width: usize,
    gates: Vec<T>,
    hidden: Vec<T>,
    bias: Vec<T>,
    h: Vec<T>,
    c: Vec<T>,
    d_out: Vec<T>,
    d_h: Vec<T>,
    d_c: Vec<T>,
}

impl<T: Float> Numbers<T> {
    fn new(width: usize) -> Self {
        let (one, four) = (ROWS * width, 4 * ROWS * width);
        Self {
            width,
            gates: normals(four, 1, 1.5),
            hidden: normals(four, 2, 1.5),
            bias: normals(4 * width, 3, 0.5),
            h: normals(one, 4, 0.7),
            c: normals(one, 5, 1.0),
            d_out: normals(2 * one, 6, 1.0),
            d_h: normals(one, 7, 1.0),
            d_c: normals(one, 8, 1.0),
        }
    }

    /// The place of gate `gate` of number `i` among `gates` of them.
    fn at(&self, i: usize, gate: usize, gates: usize) -> usize {
        i / self.width * gates * self.width + gate * self.width + i % self.width
    }
}

/// All that a step forward and back writes, one after the other.
type Written<T> = Vec<Vec<T>>;

fn rnn<T: Float>(isa: Isa, cell: Cell, x: &Numbers<T>, biased: bool) -> Written<T> {
    let len = ROWS * x.width;
    let (mut gates, mut h) = (x.gates[..len].to_vec(), x.h.clone());
    let (mut out, mut before, mut d_gates) = (vec![T::NAN; 2 * len], vec![T::NAN; len], vec![T::NAN; len]);
    let bias = biased.then_some(&x.bias[..x.width]);
    let rows = StepRows { all: OutRows::new(&mut out), first: x.width, stride: 2 * x.width };
    let width = x.width;
    T::dispatch(
        isa,
        RnnStep { cell, width, gates: &mut gates, bias, h: &mut h, out: rows, before: Some(&mut before) },
    );
    let d_out = FromOutput { rows: &x.d_out, stride: 2 * width };
    T::dispatch(isa, RnnBack { cell, width, gates: &gates, d_out, d_h: &x.d_h, d_gates: &mut d_gates });
    assert_same_bits(&before, &x.h);
    assert_out(&out, &h, width);
    vec![h, d_gates]
}

/// The state stands in every second row of the output, and nothing else is touched.
fn assert_out<T: Float>(out: &[T], h: &[T], width: usize) {
    for (row, h) in out.chunks_exact((2 * width).max(1)).zip(h.chunks_exact(width.max(1))) {
        assert!(row[..width].iter().all(|x| x.is_nan()));
        assert_same_bits(&row[width..], h);
    }
}

fn rnn_twin<T: Float>(cell: Cell, x: &Numbers<T>, biased: bool) -> Written<f64> {
    let (gates, bias) = (wide(&x.gates), wide(&x.bias));
    let (d_out, d_h) = (wide(&x.d_out), wide(&x.d_h));
    let mut all = vec![Vec::new(); 2];
    for i in 0..ROWS * x.width {
        let z = gates[i] + if biased { bias[i % x.width] } else { 0.0 };
        let h = if cell == Cell::Relu { z.max(0.0) } else { libm::tanh(z) };
        let d = d_out[i / x.width * 2 * x.width + i % x.width] + d_h[i];
        let slope = if cell == Cell::Relu { f64::from(u8::from(h > 0.0)) } else { 1.0 - h * h };
        all[0].push(h);
        all[1].push(d * slope);
    }
    all
}

fn lstm<T: Float>(isa: Isa, x: &Numbers<T>, biased: bool) -> Written<T> {
    let (width, len) = (x.width, ROWS * x.width);
    let (mut gates, mut h, mut c, mut d_c) = (x.gates.clone(), x.h.clone(), x.c.clone(), x.d_c.clone());
    let [mut before, mut cell, mut tanh_c] = [(); 3].map(|()| vec![T::NAN; len]);
    let (mut out, mut d_gates) = (vec![T::NAN; 2 * len], vec![T::NAN; 4 * len]);
    for keep in [false, true] {
        gates.copy_from_slice(&x.gates);
        h.copy_from_slice(&x.h);
        c.copy_from_slice(&x.c);
        let step = LstmStep {
            width,
            gates: &mut gates,
            bias: biased.then_some(&x.bias),
            h: &mut h,
            c: &mut c,
            out: StepRows { all: OutRows::new(&mut out), first: width, stride: 2 * width },
            saved: keep.then_some([&mut before[..], &mut cell, &mut tanh_c]),
        };
        T::dispatch(isa, step);
        assert_out(&out, &h, width);
    }
    let back = LstmBack {
        width,
        gates: &gates,
        c: &cell,
        tanh_c: &tanh_c,
        d_out: FromOutput { rows: &x.d_out, stride: 2 * width },
        d_h: &x.d_h,
        d_c: &mut d_c,
        d_gates: &mut d_gates,
    };
    T::dispatch(isa, back);
    assert_same_bits(&before, &x.h);
    assert_same_bits(&cell, &x.c);
    vec![h, c, d_c, d_gates]
}

fn lstm_twin<T: Float>(x: &Numbers<T>, biased: bool) -> Written<f64> {
    let (gates, bias, c) = (wide(&x.gates), wide(&x.bias), wide(&x.c));
    let (d_out, d_h, d_c) = (wide(&x.d_out), wide(&x.d_h), wide(&x.d_c));
    let mut all = vec![Vec::new(), Vec::new(), Vec::new(), vec![0.0; gates.len()]];
    for i in 0..ROWS * x.width {
        let z = [0, 1, 2, 3].map(|gate| {
            gates[x.at(i, gate, 4)] + if biased { bias[gate * x.width + i % x.width] } else { 0.0 }
        });
        let [input, forget, new, output] = [sigmoid(z[0]), sigmoid(z[1]), libm::tanh(z[2]), sigmoid(z[3])];
        let now = forget * c[i] + input * new;
        let t = libm::tanh(now);
        let dh = d_out[i / x.width * 2 * x.width + i % x.width] + d_h[i];
        let dc = d_c[i] + dh * output * (1.0 - t * t);
        all[0].push(output * t);
        all[1].push(now);
        all[2].push(dc * forget);
        all[3][x.at(i, 0, 4)] = dc * new * input * (1.0 - input);
        all[3][x.at(i, 1, 4)] = dc * c[i] * forget * (1.0 - forget);
        all[3][x.at(i, 2, 4)] = dc * input * (1.0 - new * new);
        all[3][x.at(i, 3, 4)] = dh * t * output * (1.0 - output);
    }
    all
}

fn gru<T: Float>(isa: Isa, x: &Numbers<T>, biased: bool) -> Written<T> {
    let (width, len) = (x.width, ROWS * x.width);
    let (mut gates, mut h, mut d_h) = (x.gates[..3 * len].to_vec(), x.h.clone(), x.d_h.clone());
    let [mut before, mut inner] = [(); 2].map(|()| vec![T::NAN; len]);
    let (mut out, mut d_gates, mut d_hidden) =
        (vec![T::NAN; 2 * len], vec![T::NAN; 3 * len], vec![T::NAN; 3 * len]);
    for keep in [false, true] {
        gates.copy_from_slice(&x.gates[..3 * len]);
        h.copy_from_slice(&x.h);
        let step = GruStep {
            width,
            gates: &mut gates,
            hidden: &x.hidden[..3 * len],
            bias: biased.then_some(&x.bias[..3 * width]),
            h: &mut h,
            out: StepRows { all: OutRows::new(&mut out), first: width, stride: 2 * width },
            saved: keep.then_some([&mut before[..], &mut inner]),
        };
        T::dispatch(isa, step);
        assert_out(&out, &h, width);
    }
    let back = GruBack {
        width,
        gates: &gates,
        inner: &inner,
        h: &before,
        d_out: FromOutput { rows: &x.d_out, stride: 2 * width },
        d_h: &mut d_h,
        d_gates: &mut d_gates,
        d_hidden: &mut d_hidden,
    };
    T::dispatch(isa, back);
    assert_same_bits(&before, &x.h);
    vec![h, d_h, d_gates, d_hidden]
}

fn gru_twin<T: Float>(x: &Numbers<T>, biased: bool) -> Written<f64> {
    let (gates, hidden, bias, h) = (wide(&x.gates), wide(&x.hidden), wide(&x.bias), wide(&x.h));
    let (d_out, d_h) = (wide(&x.d_out), wide(&x.d_h));
    let three = 3 * ROWS * x.width;
    let mut all = vec![Vec::new(), Vec::new(), vec![0.0; three], vec![0.0; three]];
    for i in 0..ROWS * x.width {
        let at = [0, 1, 2].map(|gate| x.at(i, gate, 3));
        let k = [0, 1, 2]
            .map(|gate| hidden[at[gate]] + if biased { bias[gate * x.width + i % x.width] } else { 0.0 });
        let (reset, update) = (sigmoid(gates[at[0]] + k[0]), sigmoid(gates[at[1]] + k[1]));
        let new = libm::tanh(gates[at[2]] + reset * k[2]);
        let dh = d_out[i / x.width * 2 * x.width + i % x.width] + d_h[i];
        let d_new = dh * (1.0 - update) * (1.0 - new * new);
        all[0].push((1.0 - update) * new + update * h[i]);
        all[1].push(dh * update);
        for d in &mut all[2..] {
            d[at[0]] = d_new * k[2] * reset * (1.0 - reset);
            d[at[1]] = dh * (h[i] - new) * update * (1.0 - update);
            d[at[2]] = d_new;
        }
        all[3][at[2]] *= reset;
    }
    all
}

/// Each number within `bound` of the formula's, or of 1: some twenty roundings, of products whose factors reach 6.
fn agrees<T: Float>(isa: Isa, bound: f64) {
    for width in lengths().into_iter().filter(|&n| n > 0) {
        let x = Numbers::<T>::new(width);
        for biased in [false, true] {
            for (cell, twin) in [
                (Cell::Tanh, rnn_twin(Cell::Tanh, &x, biased)),
                (Cell::Relu, rnn_twin(Cell::Relu, &x, biased)),
                (Cell::Lstm, lstm_twin(&x, biased)),
                (Cell::Gru, gru_twin(&x, biased)),
            ] {
                let run = |isa| match cell {
                    Cell::Tanh | Cell::Relu => rnn(isa, cell, &x, biased),
                    Cell::Lstm => lstm(isa, &x, biased),
                    Cell::Gru => gru(isa, &x, biased),
                };
                for ((got, scalar), want) in run(isa).iter().zip(&run(Isa::Scalar)).zip(&twin) {
                    assert_same_bits(got, scalar);
                    assert_eq!(got.len(), want.len());
                    for (got, want) in got.iter().zip(want) {
                        let error = (got.to_f64() - want).abs();
                        assert!(error <= bound * want.abs().max(1.0), "{cell:?}: {got}, {want}");
                    }
                }
            }
        }
    }
}

fn relu_drops_what_is_flat<T: Float>(isa: Isa, (): ()) {
    let (gates, d_h) = ([T::ZERO, T::ONE, T::ZERO], [T::NAN, T::ONE, T::INFINITY]);
    let d_out = FromOutput { rows: &[T::ZERO; 3][..], stride: 3 };
    let mut d_gates = [T::NAN; 3];
    T::dispatch(
        isa,
        RnnBack { cell: Cell::Relu, width: 3, gates: &gates, d_out, d_h: &d_h, d_gates: &mut d_gates },
    );
    assert_same_bits(&d_gates, &[T::ZERO, T::ONE, T::ZERO]);
}

for_each_isa! {
    cells_agree_with_their_formulas: agrees, 2.4e-6, 6e-15;
    relu_drops_a_gradient_where_it_is_flat: relu_drops_what_is_flat, (), ();
}
