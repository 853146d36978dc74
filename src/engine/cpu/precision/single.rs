//! All in f32.

use std::borrow::Cow;
use std::cell::RefCell;

use super::super::gemm::{Into, Matrix, parallel_product, product};
use super::super::rows;
use super::{Finish, Head, HeadGradients, Precision, Rows, room};
use crate::nn::ActivationDtype;

/// f32 throughout.
#[derive(Clone, Copy, Debug, Default)]
pub struct F32;

/// A right operand where it stands.
pub struct Right<'w> {
    matrix: Matrix<'w>,
    size: (usize, usize),
}

/// A thread's attention weights and their gradients.
#[derive(Default)]
struct Scratch {
    p: Vec<f32>,
    dp: Vec<f32>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
}

impl<'a> Rows<'a, f32> {
    fn matrix(self) -> Matrix<'a> {
        Matrix::rows(self.data, self.stride)
    }
}

/// `a b`, finished.
fn finished(size: (usize, usize, usize), a: Matrix, b: Matrix, finish: Finish<f32>) {
    let (m, _, n) = size;
    match finish {
        Finish::Floats { out, stride, bias, into } => {
            product(size, a, b, out, stride, into);
            add_bias(out, stride, (m, n), bias);
        }
        Finish::Operands { out, stride, bias } => {
            product(size, a, b, out, stride, Into::Set);
            add_bias(out, stride, (m, n), bias);
        }
        Finish::Gelu { bias, hidden, activated } => {
            product(size, a, b, hidden, n, Into::Set);
            rows::bias_gelu(activated, hidden, bias);
        }
        Finish::GeluBackward { mask, hidden, d_hidden } => {
            product(size, a, b, d_hidden, n, Into::Set);
            if let Some(mask) = mask {
                rows::multiply(d_hidden, mask);
            }
            rows::gelu_backward(d_hidden, hidden);
            if let Some(mask) = mask {
                rows::multiply(hidden, mask);
            }
        }
    }
}

fn add_bias(out: &mut [f32], stride: usize, (rows, width): (usize, usize), bias: Option<&[f32]>) {
    let Some(bias) = bias else { return };
    if stride == width {
        return rows::add_bias(&mut out[..rows * width], bias);
    }
    out.chunks_mut(stride).take(rows).for_each(|row| rows::add_bias(&mut row[..width], bias));
}

impl Precision for F32 {
    type Number = f32;
    const DTYPE: ActivationDtype = ActivationDtype::F32;
    type Prepared<'w> = Right<'w>;

    fn operand(self, x: &[f32]) -> Cow<'_, [f32]> {
        Cow::Borrowed(x)
    }

    fn prepare(self, w: &[f32], size: (usize, usize)) -> Right<'_> {
        Right { matrix: Matrix::rows(w, size.1), size }
    }

    fn prepare_transposed(self, w: &[f32], (n, k): (usize, usize)) -> Right<'_> {
        Right { matrix: Matrix::rows(w, k).t(), size: (k, n) }
    }

    fn product(self, rows: usize, x: Rows<f32>, right: &Right, finish: Finish<f32>) {
        let (k, n) = right.size;
        finished((rows, k, n), x.matrix(), right.matrix, finish);
    }

    fn parallel_product(self, rows: usize, x: Rows<f32>, right: &Right, out: &mut [f32], into: Into) {
        let (k, n) = right.size;
        parallel_product((rows, k, n), x.matrix(), right.matrix, out, n, into);
    }

    fn weight_gradient(
        self,
        (outputs, count, inputs): (usize, usize, usize),
        dy: Rows<f32>,
        x: Rows<f32>,
        out: &mut [f32],
        into: Into,
    ) {
        parallel_product((outputs, count, inputs), dy.matrix().t(), x.matrix(), out, inputs, into);
    }

    fn attend(self, head: &Head<f32>, out: Finish<f32>) {
        let [q, k, v] = head.of.map(Rows::matrix);
        let (s, m, width) = (head.queries, head.keys, head.width);
        SCRATCH.with_borrow_mut(|scratch| {
            let p = room(&mut scratch.p, s * m);
            product((s, width, m), q, k.t(), p, m, Into::Set);
            head.softmax(p, 0);
            head.drop(p, 0);
            finished((s, m, width), Matrix::rows(p, m), v, out);
        });
    }

    /// The attention weights are computed again, which costs less than keeping them.
    fn attend_backward(
        self,
        head: &Head<f32>,
        d_out: Rows<f32>,
        out: Option<Finish<f32>>,
        mut gradients: HeadGradients<f32>,
    ) {
        let [q, k, v] = head.of.map(Rows::matrix);
        let (s, m, width) = (head.queries, head.keys, head.width);
        let d_out = d_out.matrix();
        SCRATCH.with_borrow_mut(|scratch| {
            let (p, dp) = (room(&mut scratch.p, s * m), room(&mut scratch.dp, s * m));
            product((s, width, m), q, k.t(), p, m, Into::Set);
            head.softmax(p, 0);
            product((s, width, m), d_out, v.t(), dp, m, Into::Set);
            head.drop(dp, 0);
            rows::softmax_backward(dp, p, m, head.factor());
            head.drop(p, 0);
            let (p, dp) = (Matrix::rows(p, m), Matrix::rows(dp, m));
            if let Some(out) = out {
                finished((s, m, width), p, v, out);
            }
            finished((m, s, width), p.t(), d_out, gradients.finish(2, width, 0));
            finished((s, m, width), dp, k, gradients.finish(0, width, 0));
            finished((m, s, width), dp.t(), q, gradients.finish(1, width, 0));
        });
    }
}
