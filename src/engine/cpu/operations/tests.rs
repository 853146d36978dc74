//! The fused operations against Candle's graph: results and gradients, at shapes that no block or vector divides.

use std::rc::Rc;

use candle_core::{Device, Var};

use super::super::precision::{Bf16, F32};
use super::*;
use crate::nn::attention::{causal_bias, key_bias};
use crate::nn::operations::{Graph, Projected};

/// Numbers of about -2 to 2, other ones for each `kind`.
fn variable(shape: &[usize], kind: usize) -> Var {
    let count: usize = shape.iter().product();
    let value =
        |i: usize| ((i * 7 + kind * 31) as f32 * 0.77).sin() * 1.3 + ((i + kind) as f32 * 0.1).cos() * 0.7;
    Var::from_vec((0..count).map(value).collect(), shape, &Device::Cpu).unwrap()
}

/// Number by number.
fn assert_close(found: &Tensor, expected: &Tensor, what: &str) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let numbers = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
    for (at, (found, expected)) in numbers(found).iter().zip(numbers(expected)).enumerate() {
        assert!(
            (found - expected).abs() <= 2e-5 * expected.abs().max(1.0),
            "{what}: {found} at {at} is not {expected}"
        );
    }
}

/// As a whole: operands of products are rounded to 8 bits.
fn assert_near(found: &Tensor, expected: &Tensor, what: &str) {
    let norm = |t: &Tensor| t.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap().sqrt();
    let error = norm(&(found - expected).unwrap()) / norm(expected).max(1e-6);
    assert!(error < 2e-2, "{what}: {error}");
}

/// Holds what `work` computes of `inputs`, and the gradients of those that are variables, to the graph's.
fn assert_same(inputs: &[&Var], what: &str, work: impl Fn(&dyn Operations, &[Tensor]) -> Result<Tensor>) {
    let run = |operations: &dyn Operations| {
        let tensors: Vec<Tensor> = inputs.iter().map(|var| var.as_tensor().clone()).collect();
        let y = work(operations, &tensors).unwrap();
        let pull = variable(y.dims(), 9).as_detached_tensor();
        let store = operations.backward(&y, &pull).unwrap();
        let gradients: Vec<Tensor> =
            inputs.iter().map(|var| store.get(var).expect("each input has a gradient").detach()).collect();
        (y.detach(), gradients)
    };
    let (expected, expected_gradients) = run(&Graph);
    let (y, gradients) = run(&FusedOperations::<Bf16>::default());
    assert_near(&y, &expected, &format!("{what} in bfloat16"));
    for (at, (found, expected)) in gradients.iter().zip(&expected_gradients).enumerate() {
        assert_near(found, expected, &format!("{what} in bfloat16, gradient {at}"));
    }
    let fused = FusedOperations::<F32>::default();
    for round in 0..2 {
        let (y, gradients) = run(&fused);
        assert_close(&y, &expected, &format!("{what}, round {round}"));
        for (at, (found, expected)) in gradients.iter().zip(&expected_gradients).enumerate() {
            assert_close(found, expected, &format!("{what}, round {round}, gradient {at}"));
        }
    }
}

/// Without dropout, and with it: the masks are drawn by the same streams.
const PASSES: [Pass; 2] =
    [Pass::EVALUATION, Pass { masks: Some(crate::nn::dropout::Masks { seed: 3, step: 5 }), first_row: 7 }];

#[test]
fn maps_are_the_graphs() {
    for (rows, inputs, outputs) in [(1, 1, 1), (3, 5, 2), (67, 33, 19)] {
        let (x, w, b) =
            (variable(&[rows, inputs], 0), variable(&[outputs, inputs], 1), variable(&[outputs], 2));
        assert_same(&[&x, &w, &b], "all", |operations, t| {
            operations.affine(&t[0], Affine { weight: &t[1], bias: Some(&t[2]), outputs: 0..outputs })
        });
        assert_same(&[&x, &w, &b], "some outputs, and the weight used again", |operations, t| {
            let first = Affine { weight: &t[1], bias: Some(&t[2]), outputs: outputs / 2..outputs };
            let second = Affine { weight: &t[1], bias: None, outputs: 0..outputs };
            let y = operations.affine(&t[0], first)?.sum_all()?;
            // By an operation of Candle's too.
            let again = t[0].matmul(&t[1].t()?)?;
            (operations.affine(&t[0], second)? + again)?.broadcast_add(&y)
        });
    }
}

#[test]
fn gradients_of_maps_without_a_graph_are_the_graphs() {
    let (x, w, dy) = (variable(&[67, 33], 0), variable(&[19, 33], 1), variable(&[67, 19], 2));
    let run = |operations: &dyn Operations| {
        let (d_x, d_w) = operations.affine_gradients(&x, &w, &dy).unwrap();
        [d_x, Tensor::from_vec(d_w, (19, 33), &Device::Cpu).unwrap()]
    };
    let store = (x.matmul(&w.t().unwrap()).unwrap() * dy.as_detached_tensor()).unwrap().backward().unwrap();
    for (at, expected) in [&x, &w].into_iter().enumerate() {
        let expected = store.get(expected).unwrap();
        assert_close(&run(&Graph)[at], expected, "graph");
        assert_close(&run(&FusedOperations::<F32>::default())[at], expected, "fused");
        assert_near(&run(&FusedOperations::<Bf16>::default())[at], expected, "bfloat16");
    }
}

#[test]
fn what_is_constant_gets_no_gradient() {
    let (x, w, b) = (variable(&[5, 4], 0), variable(&[3, 4], 1), variable(&[3], 2));
    let fused = FusedOperations::<F32>::default();
    let (constant, frozen) = (x.as_detached_tensor(), w.as_detached_tensor());
    let y = fused.affine(&constant, Affine { weight: &frozen, bias: Some(&b), outputs: 0..3 }).unwrap();
    let store = fused.backward(&y, &y.ones_like().unwrap()).unwrap();
    assert!(store.get(&constant).is_none() && store.get(&frozen).is_none());
    let sums = store.get(&b).unwrap().to_vec1::<f32>().unwrap();
    assert!(sums.iter().all(|sum| (sum - 5.0).abs() < 1e-6), "{sums:?}");
}

#[test]
fn norms_are_the_graphs() {
    for (rows, width) in [(1, 3), (5, 17), (70, 33)] {
        let (x, w, b) = (variable(&[rows, width], 0), variable(&[width], 1), variable(&[width], 2));
        assert_same(&[&x, &w, &b], "norm", |operations, t| operations.layer_norm(&t[0], &t[1], &t[2], 1e-5));
    }
}

#[test]
fn activations_and_sums_are_the_graphs() {
    let (x, y) = (variable(&[3, 41, 97], 0), variable(&[3, 41, 97], 1));
    let dropout = Dropout::new(0.3, 2);
    for pass in PASSES {
        for f in [Activation::Gelu, Activation::Relu] {
            assert_same(&[&x], "activation", |operations, t| operations.activate(&t[0], f, &dropout, &pass));
        }
        assert_same(&[&x, &y], "sum", |operations, t| operations.residual(&t[0], &t[1], &dropout, &pass));
    }
}

#[test]
fn attention_is_the_graphs() {
    let mask = Tensor::new(&[[1_u8, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 0, 1, 0, 1]], &Device::Cpu).unwrap();
    let keys = key_bias(&mask).unwrap();
    let both = causal_bias(5, &Device::Cpu).unwrap().broadcast_add(&keys).unwrap();
    let (qkv, queries, keys_values) =
        (variable(&[3, 5, 36], 0), variable(&[3, 4, 12], 1), variable(&[3, 5, 24], 2));
    let dropout = Dropout::new(0.3, 2);
    for pass in PASSES {
        for heads in [1, 4] {
            for bias in [None, Some(&keys), Some(&both)] {
                assert_same(&[&qkv], "to itself", |operations, t| {
                    let of = Projected::Own(&t[0]);
                    operations.attend(&Attention { of, heads, bias, dropout: &dropout }, &pass)
                });
            }
            assert_same(&[&queries, &keys_values], "to another", |operations, t| {
                let of = Projected::Other { queries: &t[0], keys_values: &t[1] };
                operations.attend(&Attention { of, heads, bias: Some(&keys), dropout: &dropout }, &pass)
            });
        }
    }
}

fn threads_decide_no_bit_of<P: Precision>() {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let operations: Rc<dyn Operations> = Rc::new(FusedOperations::<P>::default());
            let (x, w, b) = (variable(&[2, 67, 24], 0), variable(&[72, 24], 1), variable(&[72], 2));
            let (dropout, pass) = (Dropout::new(0.2, 1), PASSES[1]);
            let map = Affine { weight: &w, bias: Some(&b), outputs: 0..72 };
            let qkv = operations.affine(&x, map).unwrap();
            let attention = Attention { of: Projected::Own(&qkv), heads: 3, bias: None, dropout: &dropout };
            let y = operations.attend(&attention, &pass).unwrap();
            let y = operations.residual(&x, &y, &dropout, &pass).unwrap();
            let y = operations.activate(&y, Activation::Gelu, &dropout, &pass).unwrap();
            let store = operations.backward(&y, &variable(y.dims(), 4)).unwrap();
            let bits = |t: &Tensor| -> Vec<u32> {
                t.flatten_all().unwrap().to_vec1::<f32>().unwrap().iter().map(|x| x.to_bits()).collect()
            };
            [&x, &w, &b].map(|var| bits(store.get(var).unwrap()))
        })
    };
    let alone = run(1);
    for threads in [2, 3, 7] {
        assert!(run(threads) == alone, "{threads} threads");
    }
}

#[test]
fn threads_decide_no_bit() {
    threads_decide_no_bit_of::<F32>();
    threads_decide_no_bit_of::<Bf16>();
}
