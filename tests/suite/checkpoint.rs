//! PyTorch files: its own read right, ours read back equal, failed writes without harm.

#![allow(clippy::unwrap_used, clippy::float_cmp, clippy::cast_possible_wrap)]

use std::borrow::Cow;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use slt_run::checkpoint::{
    AdamState, Checkpoint, Dtype, Expected, SgdState, TensorData, Value, link_or_copy, load,
    match_parameters, model_state, save, write,
};
use slt_run::files::Folder;

fn data(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(path)
}

/// A case of `tests/data/cases`, as PyTorch reads it.
struct Case {
    name: &'static str,
    tensors: usize,
    /// The shape of the class token, which comes first.
    first_shape: [usize; 3],
    /// Its first element at the start and the end.
    first: [f32; 2],
    /// The last element of the last tensor, `decoder.lm_head.bias`.
    last: [f32; 2],
    val_loss: f64,
}

const CASES: [Case; 4] = [
    Case {
        name: "0_adamw_none",
        tensors: 145,
        first_shape: [1, 1, 20],
        first: [0.019_190_965, 0.012_010_673],
        last: [-0.082_909_49, -0.097_830_35],
        val_loss: 3.851_157_426_834_106_4,
    },
    Case {
        name: "1_adam_steplr",
        tensors: 133,
        first_shape: [1, 1, 15],
        first: [0.016_171_558, 0.019_378_658],
        last: [-0.155_349_8, -0.164_989_59],
        val_loss: 4.026_920_318_603_516,
    },
    Case {
        name: "2_sgd_cosine",
        tensors: 109,
        first_shape: [1, 1, 10],
        first: [0.009_436_704, 0.067_620_29],
        last: [0.003_023_488_4, 0.000_973_917_25],
        val_loss: 4.531_115_531_921_387,
    },
    Case {
        name: "3_adamw_cosine",
        tensors: 109,
        first_shape: [1, 1, 24],
        first: [-0.011_316_944, -0.017_926_382],
        last: [0.077_870_31, 0.070_381_686],
        val_loss: 3.966_543_436_050_415,
    },
];

fn case(name: &str, file: &str) -> (PathBuf, Value<'static>) {
    let path = data(&format!("cases/{name}/{file}.pt"));
    let value = load(&path).unwrap();
    (path, value)
}

fn shapes(model: &[(String, TensorData)]) -> Vec<(String, Vec<usize>)> {
    model.iter().map(|(name, tensor)| (name.clone(), tensor.shape.clone())).collect()
}

#[test]
fn files_of_pytorch_are_read() {
    for case in &CASES {
        for (i, file) in ["init", "final"].into_iter().enumerate() {
            let path = data(&format!("cases/{}/{file}.pt", case.name));
            let checkpoint = Checkpoint::from_value(&path, load(&path).unwrap()).unwrap();
            assert_eq!(checkpoint.epoch, [0, 5][i]);
            assert_eq!(checkpoint.val_loss, [f64::INFINITY, case.val_loss][i]);
            assert_eq!(checkpoint.model.len(), case.tensors);
            assert_eq!(checkpoint.extra, []);

            let (name, tensor) = checkpoint.model.first().unwrap();
            assert_eq!((name.as_str(), tensor.dtype), ("encoder.face_backbone.cls_token", Dtype::F32));
            assert_eq!(tensor.shape, case.first_shape);
            assert_eq!(tensor.to_f32().unwrap()[0], case.first[i]);
            let (name, tensor) = checkpoint.model.last().unwrap();
            assert_eq!(name, "decoder.lm_head.bias");
            assert_eq!(tensor.to_f32().unwrap().last(), Some(&case.last[i]));
        }
    }
}

#[test]
fn what_is_read_is_written_and_read_again() {
    let folder = tempfile::tempdir().unwrap();
    for case_ in &CASES {
        for file in ["init", "final"] {
            let (_, value) = case(case_.name, file);
            let copy = folder.path().join("copy.pt");
            save(&copy, &value).unwrap();
            assert_eq!(load(&copy).unwrap(), value);
            let again = folder.path().join("again.pt");
            save(&again, &load(&copy).unwrap()).unwrap();
            assert!(fs::read(&copy).unwrap() == fs::read(&again).unwrap(), "equal values, different bytes");
        }
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}

/// The hyper-parameters of a group, without the learning rate's type: PyTorch writes some zeros as ints.
fn group(state: &Value) -> Vec<(String, Value<'static>)> {
    let Some(Value::List(groups)) = state.get("param_groups") else { panic!("no groups") };
    let [Value::Dict(group)] = groups.as_slice() else { panic!("not one group") };
    let plain = |value: &Value| match value {
        Value::Int(n) => Value::Float(*n as f64),
        Value::Tuple(parts) => {
            Value::Tuple(parts.iter().map(|p| Value::Float(p.as_number().unwrap())).collect())
        }
        Value::List(parts) => Value::Int(parts.len() as i64),
        Value::None => Value::None,
        Value::Bool(b) => Value::Bool(*b),
        other => Value::Float(other.as_number().unwrap()),
    };
    group.iter().map(|(key, value)| (key.as_str().unwrap().to_owned(), plain(value))).collect()
}

/// One group of parameters that all train.
fn expected(model: &[(String, TensorData)]) -> Vec<Expected> {
    shapes(model).into_iter().map(|(name, shape)| Expected { name, shape, trains: true }).collect()
}

#[test]
fn optimizer_states_keep_pytorch_s_layout() {
    for (name, decoupled, initial_lr) in [
        ("0_adamw_none", true, None),
        ("1_adam_steplr", false, Some(3e-3)),
        ("3_adamw_cosine", true, Some(3e-3)),
    ] {
        for (file, step) in [("init", None), ("final", Some(5))] {
            let (path, value) = case(name, file);
            let checkpoint = Checkpoint::from_value(&path, value).unwrap();
            let expected = [expected(&checkpoint.model)];
            let state =
                AdamState::from_value(&path, &checkpoint.optimizer_state, &expected, decoupled).unwrap();
            assert_eq!(state.groups[0].initial_lr, initial_lr);
            assert!(state.moments.iter().all(|m| m.as_ref().map(|m| m.step) == step));
            let written = state.into_value();
            assert_eq!(written.get("state"), checkpoint.optimizer_state.get("state"));
            assert_eq!(group(&written), group(&checkpoint.optimizer_state));
        }
    }
    let (path, value) = case("2_sgd_cosine", "final");
    let checkpoint = Checkpoint::from_value(&path, value).unwrap();
    let expected = [expected(&checkpoint.model)];
    let state = SgdState::from_value(&path, &checkpoint.optimizer_state, &expected).unwrap();
    let group_state = &state.groups[0];
    let rates = (state.momentum, group_state.weight_decay, group_state.initial_lr);
    assert_eq!(rates, (0.0, 0.005, Some(0.05)));
    assert!(state.momentum_buffers.iter().all(Option::is_none));
    let written = state.into_value();
    assert_eq!(written.get("state"), Some(&Value::Dict(vec![])));
    assert_eq!(group(&written), group(&checkpoint.optimizer_state));
    assert!(AdamState::from_value(&path, &checkpoint.optimizer_state, &expected, true).is_err());
}

#[test]
fn weights_of_another_model_are_refused() {
    let (path, value) = case("0_adamw_none", "init");
    let found = model_state(&path, value).unwrap();
    let expected = shapes(&found);
    let matched = match_parameters(&path, &expected, &found).unwrap();
    assert!(matched.iter().zip(&found).all(|(a, (_, b))| *a == b));

    let other = model_state(&path, case("1_adam_steplr", "init").1).unwrap();
    let error = match_parameters(&path, &expected, &other).unwrap_err();
    assert_eq!(error.exit_code(), 3);
    let text = error.to_string();
    assert!(text.contains("cls_token: [1, 1, 15] in the file, [1, 1, 20] in the model"), "{text}");
    assert!(text.contains("lacks parameters of the model (12)") && text.contains("and 2 more"), "{text}");
}

#[test]
fn every_type_and_value_round_trips() {
    let all = [
        Dtype::F32,
        Dtype::F64,
        Dtype::F16,
        Dtype::BF16,
        Dtype::I64,
        Dtype::I32,
        Dtype::I16,
        Dtype::I8,
        Dtype::U8,
    ];
    let tensor = |dtype: Dtype, shape: &[usize]| {
        let bytes = shape.iter().product::<usize>() * dtype.size();
        Value::Tensor(TensorData {
            dtype,
            shape: shape.to_vec(),
            data: (0..bytes).map(|i| i as u8).collect(),
        })
    };
    let mut tensors: Vec<_> = all.into_iter().map(|d| (Value::from(d.name()), tensor(d, &[2, 3]))).collect();
    tensors.push(("bool".into(), tensor(Dtype::Bool, &[2, 1, 1])));
    tensors.push(("scalar".into(), tensor(Dtype::F64, &[])));
    tensors.push(("empty".into(), tensor(Dtype::F32, &[3, 0, 2])));
    let ints = [0, 1, 255, 256, 65535, 65536, -1, i64::from(i32::MIN), 1 << 31, i64::MAX, i64::MIN];
    let floats = [0.0, -0.5, f64::MAX, f64::MIN_POSITIVE, f64::INFINITY];
    let value = Value::dict([
        ("tensors", Value::Dict(tensors)),
        ("ints", Value::List(ints.into_iter().map(Value::Int).collect())),
        ("floats", Value::Tuple(floats.into_iter().map(Value::Float).collect())),
        ("text", Value::from("ñandú \u{1F9A4}\n")),
        ("none", Value::None),
        ("bools", Value::Tuple(vec![true.into(), false.into()])),
        ("nested", Value::List(vec![Value::List(vec![]), Value::Tuple(vec![]), Value::Dict(vec![])])),
        ("keys", Value::Dict(vec![(Value::Int(3), Value::None), (Value::Bool(true), Value::None)])),
    ]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all.pt");
    save(&path, &value).unwrap();
    assert_eq!(load(&path).unwrap(), value);
}

#[test]
fn odd_files_of_every_protocol_are_read() {
    for protocol in 2..=5 {
        let value = load(&data(&format!("checkpoints/odd_protocol_{protocol}.pt"))).unwrap();
        let get = |key: &str| value.get(key).unwrap_or_else(|| panic!("{key} in {protocol}"));
        let floats = |key: &str| match get(key) {
            Value::Tensor(tensor) => (tensor.shape.clone(), tensor.to_f32().unwrap()),
            other => panic!("{key} is {other:?}"),
        };
        let grid = |i: usize, j: usize, k: usize| (12 * i + 4 * j + k) as f32;
        let transposed: Vec<_> =
            (0..4).flat_map(|k| (0..2).flat_map(move |i| (0..3).map(move |j| grid(i, j, k)))).collect();
        assert_eq!(floats("transposed"), (vec![4, 2, 3], transposed));
        assert_eq!(
            floats("slice"),
            (vec![2, 2, 2], [4, 6, 8, 10, 16, 18, 20, 22].map(|n| n as f32).to_vec())
        );
        assert_eq!(floats("expanded"), (vec![3, 2], vec![7.0; 6]));
        assert_eq!(floats("tied_a"), (vec![6], vec![0.0, 1.0, 2.0, 3.0, 4.0, 5.0]));
        assert_eq!(floats("tied_b"), (vec![3], vec![2.0, 3.0, 4.0]));
        assert_eq!(floats("scalar"), (vec![], vec![2.5]));
        assert_eq!(floats("empty"), (vec![0, 3], vec![]));
        assert_eq!(floats("parameter"), (vec![2], vec![1.0, 1.0]));

        let Value::Dict(types) = get("types") else { panic!() };
        assert_eq!(types.len(), 10);
        for (name, tensor) in types {
            let Value::Tensor(tensor) = tensor else { panic!("{name:?}") };
            let last = if tensor.dtype == Dtype::Bool { 1.0 } else { 2.0 };
            let single = TensorData {
                shape: vec![],
                data: Cow::Borrowed(&tensor.data[2 * tensor.dtype.size()..]),
                dtype: tensor.dtype,
            };
            let number = match tensor.dtype {
                Dtype::I16 | Dtype::I8 | Dtype::U8 | Dtype::Bool => f64::from(single.data[0]),
                _ => Value::Tensor(single).as_number().unwrap(),
            };
            assert_eq!(number, last, "{name:?}");
        }

        let layer = get("layer");
        assert!(matches!(layer.get("weight"), Some(Value::Tensor(t)) if t.to_f32().unwrap()[5] == 5.0));
        assert_eq!(*get("size"), Value::Tuple(vec![Value::Int(2), Value::Int(3)]));
        let numpy = get("numpy");
        assert_eq!(numpy.get("f8"), Some(&Value::Float(0.25)));
        assert_eq!(numpy.get("f4"), Some(&Value::Float(0.5)));
        assert_eq!(numpy.get("i8"), Some(&Value::Int(-7)));
        assert_eq!(numpy.get("b1"), Some(&Value::Bool(true)));
        for key in ["array", "device", "dtype", "path", "args", "set", "bytes", "no_bytes", "counter"] {
            assert!(matches!(get(key), Value::Opaque(_)), "{key}: {:?}", get(key));
        }
        assert_eq!(get("text").as_str(), Some("ñandú 🦤"));
        let one = Value::dict([("a", Value::Tuple(vec![Value::Int(1)]))]);
        let inner = Value::List(vec![one, Value::List(vec![])]);
        assert_eq!(*get("nested"), Value::Tuple(vec![inner, Value::Tuple(vec![])]));
        let Value::List(numbers) = get("numbers") else { panic!() };
        let numbers: Vec<_> = numbers.iter().map(Value::as_number).collect();
        let wide = [0.0, 255.0, 256.0, 65535.0, 65536.0, -1.0, 2_147_483_648.0, -2_147_483_648.0];
        assert_eq!(numbers[..8], wide.map(Some));
        assert_eq!(numbers[8..], [Some(2_f64.powi(62)), None, Some(0.1), Some(f64::INFINITY), None, None]);
        let Value::Dict(items) = &value else { panic!() };
        assert_eq!(items.last(), Some(&(Value::Int(5), Value::from("five"))));
    }
}

#[test]
fn a_failed_save_leaves_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("last.pt");
    save(&path, &Value::Int(1)).unwrap();
    let lying = TensorData { dtype: Dtype::F32, shape: vec![5], data: Cow::Owned(vec![0; 4]) };
    let error = save(&path, &lying.into()).unwrap_err();
    assert!(error.to_string().contains("last.pt"), "{error}");
    assert_eq!(load(&path).unwrap(), Value::Int(1));

    // A folder in the way of the new file, and no folder at all.
    let taken = folder.path().join("taken.pt");
    fs::create_dir_all(taken.join("inside")).unwrap();
    assert!(save(&taken, &Value::Int(2)).is_err());
    assert!(save(&folder.path().join("gone/last.pt"), &Value::Int(2)).is_err());
    let best = folder.path().join("best.pt");
    link_or_copy(&Folder::open(folder.path()).unwrap(), "last.pt", "best.pt").unwrap();
    save(&path, &Value::Int(3)).unwrap();
    assert_eq!((load(&path).unwrap(), load(&best).unwrap()), (Value::Int(3), Value::Int(1)));
    let mut names: Vec<_> = fs::read_dir(folder.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["best.pt", "last.pt", "taken.pt"]);
}

/// A disk that is full after some bytes.
struct Full(usize);

impl Write for Full {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        match self.0.min(bytes.len()) {
            0 => Err(std::io::ErrorKind::StorageFull.into()),
            n => {
                self.0 -= n;
                Ok(n)
            }
        }
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn a_full_disk_is_an_error_at_every_byte() {
    let value = Value::from(TensorData::f32([2], &[1.0, 2.0]));
    let mut bytes = Vec::new();
    write(&mut bytes, &value).unwrap();
    for room in 0..bytes.len() {
        let error = write(Full(room), &value).unwrap_err();
        assert_eq!(error.exit_code(), 1, "{error}");
    }
    write(Full(bytes.len()), &value).unwrap();
}
