//! A backbone's parameters from networks that others have trained: timm's, DINO's, `DINOv2`'s and our own.
//!
//! All of them are the same vision transformer under other names. What a backbone has not is left out and named; anything
//! else that does not fit is an error.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;

use super::vit::VisionTransformer;
use crate::checkpoint::safetensors::short;
use crate::checkpoint::{TensorData, Weights};
use crate::config::streams::image_streams;
use crate::config::{self, Backbone};
use crate::error::{Error, ErrorKind, Problem, Result};
use crate::nn::{Builder, ParameterSpec};

/// The eps of timm's and DINO's `LayerNorm`s.
const THEIR_EPS: f64 = 1e-6;

/// What such files have that no backbone has: a classifier, and what only their training needs.
const NOT_OURS: [&str; 6] = ["head", "head_dist", "fc_norm", "mask_token", "pre_logits", "prototypes"];

/// The numbers of a head in timm's and DINO's networks of the sizes tiny to large.
const THEIR_HEAD: usize = 64;

/// The parameters of one backbone.
#[derive(Debug)]
pub struct Pretrained {
    /// By the names that they have in a backbone, such as `blocks.0.attn.in_proj_weight`, in its order.
    pub parameters: Vec<(String, Vec<f32>)>,
    /// What the file has that a backbone has not.
    pub left_out: Vec<String>,
    /// What a person should know.
    pub warnings: Vec<String>,
}

/// The names of a file's tensors for one backbone, below its prefix.
type Named<'a> = BTreeMap<String, &'a TensorData<'static>>;

/// The parameters of a backbone of the configuration `c` for images of `image_size`, from the weights in the file `path`.
/// Where the file has a whole network of ours, `own` is the backbone to take.
///
/// # Errors
/// Kind `Data`, naming the file: it has no vision transformer, or one of another architecture, with every misfit once.
pub fn backbone(
    path: &Path,
    weights: &Weights,
    c: &Backbone,
    image_size: usize,
    own: &str,
) -> Result<Pretrained> {
    let prefix = prefix(path, weights, own)?;
    let mut named = Named::new();
    let mut left_out = Vec::new();
    for (name, tensor) in &weights.tensors {
        match name.strip_prefix(prefix.as_str()) {
            Some(rest) if !is_left_out(rest) => {
                named.insert(rest.to_owned(), tensor);
            }
            _ if is_of_another_stream(name, &prefix, own) => {}
            _ => left_out.push(name.clone()),
        }
    }
    let is_theirs =
        named.keys().any(|name| name.ends_with("attn.qkv.weight") || name.ends_with("attn.proj.weight"));
    let expected = expected(c, image_size)?;
    let file = File { path, named, depth: c.depth };
    file.refuse_other_kinds()?;
    file.refuse_misfits(c, &expected)?;
    let mut parameters = Vec::with_capacity(expected.len());
    for ParameterSpec { name, shape, .. } in &expected {
        parameters.push((name.clone(), file.parameter(name, shape, c)?));
    }
    let warnings = if is_theirs && (c.layer_norm_eps - THEIR_EPS).abs() > 1e-12 {
        let now = c.layer_norm_eps;
        vec![format!(
            "{}: timm's and DINO's LayerNorm has an eps of 1e-6, and model.backbone.layer_norm_eps is {now:?}: the features \
             are not quite theirs",
            path.display()
        )]
    } else {
        Vec::new()
    };
    Ok(Pretrained { parameters, left_out: grouped(&left_out, &prefix), warnings })
}

/// Whether a name, below the backbone's prefix, is of something that a backbone has not.
fn is_left_out(name: &str) -> bool {
    let first = name.split('.').next().unwrap_or_default();
    NOT_OURS.contains(&first)
}

/// Whether `name`, in a network of ours whose backbone `own` is below `prefix`, is of another stream's backbone: that one is
/// taken for its own stream.
fn is_of_another_stream(name: &str, prefix: &str, own: &str) -> bool {
    let Some(parent) = prefix.strip_suffix('.').and_then(|prefix| prefix.strip_suffix(own)) else {
        return false;
    };
    let Some(below) = name.strip_prefix(parent) else { return false };
    let is = |other: String| below.strip_prefix(&other).is_some_and(|rest| rest.starts_with('.'));
    image_streams().filter_map(own_name).any(|other| other != own && is(other))
}

/// What stands before a backbone's names: it is found by the class token.
fn prefix(path: &Path, weights: &Weights, own: &str) -> Result<String> {
    const TOKEN: &str = "cls_token";
    let names = weights.tensors.iter().map(|(name, _)| name.as_str());
    let before = |name: &str| {
        let prefix = name.strip_suffix(TOKEN)?;
        (prefix.is_empty() || prefix.ends_with('.')).then(|| prefix.to_owned())
    };
    let found: Vec<String> = names.filter_map(before).collect();
    let of_ours = format!("{own}.");
    let teacher = |prefix: &&String| prefix.starts_with("teacher.");
    match found.as_slice() {
        [one] => return Ok(one.clone()),
        [] => {
            let what = format!("{} has no vision transformer: no name in it ends in {TOKEN}", path.display());
            let hint = "model.backbone.init takes ViTs of timm and DINO, and networks of slt-run";
            return Err(Error::data(what).hint(hint));
        }
        _ => {}
    }
    let ours = found.iter().find(|prefix| **prefix == of_ours || prefix.ends_with(&format!(".{of_ours}")));
    if let Some(prefix) = ours.or_else(|| found.iter().find(teacher)) {
        return Ok(prefix.clone());
    }
    let shown: Vec<String> = found.iter().map(|prefix| short(prefix)).collect();
    let what = format!("{} has several vision transformers: {}", path.display(), shown.join(", "));
    Err(Error::data(what).hint("save the one to take in a file of its own"))
}

/// Names by the module where they part from the backbone `prefix`, so that a classifier of many tensors is one.
fn grouped(names: &[String], prefix: &str) -> Vec<String> {
    let (mut groups, mut seen) = (Vec::new(), HashSet::new());
    for name in names {
        let shared = name.split('.').zip(prefix.split('.')).take_while(|(a, b)| a == b).count();
        let mut parts: Vec<&str> = name.split('.').collect();
        if parts.len() > shared + 1 {
            parts.truncate(shared + 1);
            parts.push("*");
        }
        let group = short(&parts.join("."));
        if seen.insert(group.clone()) {
            groups.push(group);
        }
    }
    groups
}

/// What a backbone is made of.
fn expected(c: &Backbone, image_size: usize) -> Result<Vec<ParameterSpec>> {
    let builder = Builder::recording();
    VisionTransformer::new(&builder, c, image_size)?;
    Ok(builder.blueprint().parameters().to_vec())
}

/// A file's tensors by their names below the prefix.
struct File<'a> {
    path: &'a Path,
    named: Named<'a>,
    depth: usize,
}

impl File<'_> {
    fn wrong(&self, what: &str, hint: &str) -> Error {
        Error::data(format!("{}: {what}", self.path.display())).hint(hint)
    }

    fn shape(&self, names: [&str; 2]) -> Option<&[usize]> {
        let found = names.iter().find_map(|name| self.named.get(*name))?;
        Some(found.shape.as_slice())
    }

    /// Refuses what is another kind of network, whatever its sizes are.
    fn refuse_other_kinds(&self) -> Result<()> {
        const HINT: &str =
            "take a plain ViT with a class token, such as timm's vit_small_patch16_224 or DINO's ViT-S/16";
        let has = |names: &[&str]| names.iter().any(|name| self.named.contains_key(*name));
        let ends = |end: &str| self.named.keys().any(|name| name.ends_with(end));
        if has(&["reg_token", "register_tokens", "storage_tokens"]) {
            return Err(self.wrong("it has register tokens, which slt-run's backbone has not", HINT));
        }
        if has(&["dist_token"]) {
            return Err(self.wrong("it has a distillation token, which slt-run's backbone has not", HINT));
        }
        if ends("mlp.w12.weight") || ends("mlp.fc1_g.weight") {
            return Err(self.wrong("its MLPs are gated (SwiGLU), which slt-run's are not", HINT));
        }
        // Without it the features would be other ones.
        if self.named.keys().any(|name| name.starts_with("norm_pre.")) {
            return Err(
                self.wrong("it has a norm before its blocks (norm_pre), which slt-run's has not", HINT)
            );
        }
        if ends("attn.q_norm.weight") {
            return Err(
                self.wrong("its attention has norms of queries and keys, which slt-run's has not", HINT)
            );
        }
        Ok(())
    }

    /// Refuses another architecture: each misfit once, briefly, with the fields to set.
    fn refuse_misfits(&self, c: &Backbone, expected: &[ParameterSpec]) -> Result<()> {
        let mut misfits: Vec<(String, String)> = Vec::new();
        let mut compare = |what: &str, key: &str, found: Option<usize>, now: usize| {
            if let Some(found) = found.filter(|&found| found != now) {
                misfits
                    .push((format!("its {what} is {found}, and {key} is {now}"), format!("{key} = {found}")));
            }
        };
        let patch = self.shape(["patch_embed.proj.weight", ""]);
        let width = patch.and_then(|shape| shape.first().copied());
        compare("width", "model.backbone.embed_dim", width, c.embed_dim);
        compare(
            "patch size",
            "model.backbone.patch_size",
            patch.and_then(|shape| shape.get(2).copied()),
            c.patch_size,
        );
        let block = |name: &str| name.strip_prefix("blocks.")?.split('.').next()?.parse::<usize>().ok();
        let depth = self.named.keys().filter_map(|name| block(name)).max().map(|last| last.saturating_add(1));
        compare("depth", "model.backbone.depth", depth, c.depth);
        let hidden = self.shape(["blocks.0.mlp.fc1.weight", "blocks.0.mlp.0.weight"]);
        let hidden = hidden.and_then(|shape| shape.first().copied());
        // The same ratio is no misfit of its own where the width is one.
        let now = Backbone { embed_dim: width.unwrap_or(c.embed_dim), ..c.clone() }.mlp_width();
        if let Some((hidden, width)) = hidden.zip(width).filter(|&(hidden, width)| width > 0 && hidden != now)
        {
            misfits.push((
                format!(
                    "its MLPs are {hidden} wide, and model.backbone.mlp_ratio = {:?} makes {now}",
                    c.mlp_ratio
                ),
                format!("model.backbone.mlp_ratio = {:?}", mlp_ratio(hidden, width)),
            ));
        }
        if !misfits.is_empty() {
            let (whats, fields): (Vec<String>, Vec<String>) = misfits.into_iter().unzip();
            let problem = Problem::new(format!("{} is of another architecture", self.path.display()));
            let problem = whats.into_iter().fold(problem, Problem::cause);
            let heads = match width
                .filter(|&width| width != c.embed_dim && width > 0 && width % THEIR_HEAD == 0)
            {
                Some(width) => format!(
                    "; num_heads shows in no shape: in timm's and DINO's networks of this width it is mostly {}",
                    width / THEIR_HEAD
                ),
                None => String::new(),
            };
            let hint = format!("set {}{heads}", fields.join(", "));
            return Err(Error::new(ErrorKind::Data, problem.hint(hint)));
        }
        self.refuse_missing_and_more(expected)
    }

    /// Refuses tensors that are missing, and those that nothing is made of.
    fn refuse_missing_and_more(&self, expected: &[ParameterSpec]) -> Result<()> {
        let any = |ends: &[&str]| self.named.keys().any(|name| ends.iter().any(|end| name.ends_with(end)));
        let has_bias = any(&[".attn.qkv.bias", ".attn.in_proj_bias"]);
        let mut used: HashSet<String> = HashSet::new();
        let mut missing = Vec::new();
        for ParameterSpec { name, .. } in expected {
            let theirs = theirs(name);
            let there = [name, &theirs].into_iter().find(|name| self.named.contains_key(*name)).cloned();
            match there {
                Some(found) => {
                    used.insert(found);
                }
                // Attention without biases is attention with biases of zero. All blocks have them, or none.
                None if name.ends_with("in_proj_bias") && !has_bias => {}
                None => missing.push(theirs),
            }
        }
        for scale in [".ls1.gamma", ".ls2.gamma"].into_iter().filter(|scale| any(&[scale])) {
            for name in (0..self.depth).map(|block| format!("blocks.{block}{scale}")) {
                if self.named.contains_key(&name) {
                    used.insert(name);
                } else {
                    missing.push(name);
                }
            }
        }
        let more: Vec<String> =
            self.named.keys().filter(|name| !used.contains(*name)).map(|name| short(name)).collect();
        let mut problems = Vec::new();
        for (what, names) in [("lacks", &missing), ("has what a backbone has not", &more)] {
            if let Some(first) = names.first() {
                let rest =
                    if names.len() > 1 { format!(" and {} more", names.len() - 1) } else { String::new() };
                problems.push(Problem::new(format!("{} {what}: {first}{rest}", self.path.display())));
            }
        }
        if let Some(last) = problems.last_mut() {
            last.hint = Some(
                "take a plain ViT: a class token, positions, blocks with LayerNorm, a last norm".to_owned(),
            );
        }
        Error::all(ErrorKind::Data, problems)
    }

    fn numbers(&self, name: &str) -> Result<Option<(&[usize], Vec<f32>)>> {
        let Some(tensor) = self.named.get(name) else { return Ok(None) };
        let bad =
            |why: String| self.wrong(&format!("{} {why}", short(name)), "take a file of healthy weights");
        let values =
            tensor.to_f32().map_err(|_| bad(format!("is of {}; floats are needed", tensor.dtype)))?;
        match values.iter().find(|value| !value.is_finite()) {
            Some(value) => Err(bad(format!("holds {value}"))),
            None => Ok(Some((&tensor.shape, values))),
        }
    }

    /// The backbone's parameter `name`.
    fn parameter(&self, name: &str, shape: &[usize], c: &Backbone) -> Result<Vec<f32>> {
        let found = match self.numbers(name)? {
            None => self.numbers(&theirs(name))?,
            found => found,
        };
        let Some((found_shape, mut values)) = found else { return Ok(vec![0.0; shape.iter().product()]) };
        if name == "pos_embed" {
            return self.positions(found_shape, &values, shape);
        }
        if found_shape != shape {
            let what = format!("{} is {found_shape:?}, and the backbone's is {shape:?}", short(name));
            return Err(self.wrong(&what, "take a ViT of the same architecture"));
        }
        if let Some(gamma) = self.scale(name)? {
            // A layer's outputs times gamma: rows of its weight, and its bias.
            let each = values.len() / c.embed_dim.max(1);
            if gamma.len() * each != values.len() {
                return Err(self.wrong(
                    &format!("LayerScale of {name} has {} numbers", gamma.len()),
                    "take another file",
                ));
            }
            for (row, gamma) in values.chunks_exact_mut(each.max(1)).zip(&gamma) {
                for value in row {
                    *value *= gamma;
                }
            }
        }
        Ok(values)
    }

    /// The `LayerScale` of the layer whose weight or bias `name` is, where the file has one.
    fn scale(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let layer = name.strip_suffix(".weight").or_else(|| name.strip_suffix(".bias"));
        let Some((block, layer)) = layer.and_then(|layer| {
            let block = [(".attn.out_proj", 1), (".mlp.3", 2)];
            block.into_iter().find_map(|(end, at)| Some((layer.strip_suffix(end)?, at)))
        }) else {
            return Ok(None);
        };
        Ok(self.numbers(&format!("{block}.ls{layer}.gamma"))?.map(|(_, gamma)| gamma))
    }

    /// Positions (1, S, D), resampled where they are of another grid.
    fn positions(&self, found: &[usize], values: &[f32], shape: &[usize]) -> Result<Vec<f32>> {
        if found == shape {
            return Ok(values.to_vec());
        }
        let (&[1, tokens, width], &[1, wanted, of_width]) = (found, shape) else {
            return Err(
                self.wrong(&format!("pos_embed is {found:?}, and the backbone's is {shape:?}"), OTHER_GRID)
            );
        };
        let side = |tokens: usize| {
            let patches = tokens.checked_sub(1)?;
            let side = patches.isqrt();
            (side > 0 && side * side == patches).then_some(side)
        };
        let (Some(from), Some(to), true) = (side(tokens), side(wanted), width == of_width) else {
            let what = format!("pos_embed has {tokens} positions: no class token's and a square grid's");
            return Err(self.wrong(&what, OTHER_GRID));
        };
        let (class, grid) = values.split_at(width);
        Ok([class, &resample(grid, from, to, width)].concat())
    }
}

const OTHER_GRID: &str = "take a ViT with a class token whose images are square";

/// An `mlp_ratio` that makes the hidden width of a block `hidden`.
fn mlp_ratio(hidden: usize, width: usize) -> f64 {
    let of = |hidden: f64| hidden / width.max(1) as f64;
    let ratio = of(hidden as f64);
    // The product is rounded down, and may be just below.
    if (width as f64 * ratio) as usize == hidden { ratio } else { of(hidden as f64 + 0.5) }
}

/// timm's and DINO's name of a backbone's parameter.
fn theirs(name: &str) -> String {
    for (ours, theirs) in [
        ("attn.in_proj_weight", "attn.qkv.weight"),
        ("attn.in_proj_bias", "attn.qkv.bias"),
        ("attn.out_proj.", "attn.proj."),
        ("mlp.0.", "mlp.fc1."),
        ("mlp.3.", "mlp.fc2."),
    ] {
        if let Some((block, rest)) = name.split_once(ours) {
            return format!("{block}{theirs}{rest}");
        }
    }
    name.to_owned()
}

/// A grid (`from` x `from`, D) of vectors at `to` x `to` places, as `torch.nn.functional.interpolate` with mode `bicubic` and
/// `antialias` does it, which is timm's `resample_abs_pos_embed`.
fn resample(grid: &[f32], from: usize, to: usize, width: usize) -> Vec<f32> {
    let weights = bicubic(from, to);
    // Columns first, as PyTorch does; both passes in f32.
    let mut across = vec![0.0; from * to * width];
    for row in 0..from {
        for (column, (first, taps)) in weights.iter().enumerate() {
            let out = &mut across[(row * to + column) * width..][..width];
            for (i, tap) in taps.iter().enumerate() {
                let vector = &grid[(row * from + first + i) * width..][..width];
                out.iter_mut().zip(vector).for_each(|(out, value)| *out += tap * value);
            }
        }
    }
    let mut all = vec![0.0; to * to * width];
    for (row, (first, taps)) in weights.iter().enumerate() {
        let out = &mut all[row * to * width..][..to * width];
        for (i, tap) in taps.iter().enumerate() {
            let line = &across[(first + i) * to * width..][..to * width];
            out.iter_mut().zip(line).for_each(|(out, value)| *out += tap * value);
        }
    }
    all
}

/// Of each of `to` places, the first of the `from` places that it is made of, and their weights: PyTorch's
/// `_compute_weights_aa` for the cubic with a = -0.5, whose support grows with the scale where there are fewer places
/// (`aten/src/ATen/native/cpu/UpSampleKernel.cpp`).
fn bicubic(from: usize, to: usize) -> Vec<(usize, Vec<f32>)> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let support = 2.0 * stretch;
    let cubic = |x: f64| {
        const A: f64 = -0.5;
        let x = x.abs();
        if x < 1.0 {
            ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
        } else if x < 2.0 {
            (((x - 5.0) * x + 8.0) * x - 4.0) * A
        } else {
            0.0
        }
    };
    let place = |i: usize| {
        let center = scale * (i as f64 + 0.5);
        let first = ((center - support + 0.5).max(0.0)) as usize;
        let end = ((center + support + 0.5) as usize).min(from);
        let taps: Vec<f64> = (first..end).map(|at| cubic((at as f64 - center + 0.5) / stretch)).collect();
        let sum: f64 = taps.iter().sum();
        (first, taps.into_iter().map(|tap| (tap / sum) as f32).collect())
    };
    (0..to).map(place).collect()
}

/// The names of a backbone that a network of ours has, in a file of it: `encoder.face_backbone`.
#[must_use]
pub fn own_name(stream: &config::Stream) -> Option<String> {
    stream.backbone().map(|name| format!("encoder.{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Dtype;

    const OWN: &str = "encoder.face_backbone";

    fn c() -> Backbone {
        Backbone {
            patch_size: 4,
            embed_dim: 2,
            depth: 1,
            num_heads: 1,
            mlp_ratio: 2.0,
            ..Backbone::default()
        }
    }

    fn tensor(shape: &[usize], first: f32) -> TensorData<'static> {
        let count: usize = shape.iter().product();
        let data: Vec<u8> = (0..count).flat_map(|i| (first + i as f32).to_le_bytes()).collect();
        TensorData { dtype: Dtype::F32, shape: shape.to_vec(), data: data.into() }
    }

    /// timm's names of a network for images of 8 pixels.
    fn timm() -> Vec<(String, TensorData<'static>)> {
        let expected = expected(&c(), 8).unwrap();
        expected
            .iter()
            .enumerate()
            .map(|(at, spec)| (theirs(&spec.name), tensor(&spec.shape, at as f32)))
            .collect()
    }

    fn read(tensors: Vec<(String, TensorData<'static>)>) -> Result<Pretrained> {
        let weights = Weights { tensors, ..Weights::default() };
        backbone(Path::new("w.pth"), &weights, &c(), 8, OWN)
    }

    fn prefixed(prefix: &str) -> Vec<(String, TensorData<'static>)> {
        timm().into_iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor)).collect()
    }

    fn parameter(found: &Pretrained, name: &str) -> Vec<f32> {
        found.parameters.iter().find(|(other, _)| other == name).unwrap().1.clone()
    }

    #[test]
    fn names_are_found_behind_any_prefix_and_the_rest_is_named() {
        let plain = read(timm()).unwrap();
        assert!(plain.left_out.is_empty() && plain.warnings.len() == 1);
        for prefix in ["module.", "backbone.", "teacher.backbone.", "encoder.face_backbone.", "x.y."] {
            let mut tensors = prefixed(prefix);
            tensors.push((format!("{prefix}head.weight"), tensor(&[3], 0.0)));
            tensors.push((format!("{prefix}fc_norm.bias"), tensor(&[3], 0.0)));
            tensors.push(("other.thing".to_owned(), tensor(&[3], 0.0)));
            let found = read(tensors).unwrap();
            assert_eq!(found.parameters, plain.parameters, "{prefix}");
            assert!(found.left_out.contains(&"other.*".to_owned()), "{:?}", found.left_out);
        }
        let student = [prefixed("student."), prefixed("teacher.")].concat();
        assert_eq!(read(student).unwrap().parameters, plain.parameters);
        let ours = [prefixed("encoder.hand_backbone_left."), prefixed("encoder.face_backbone.")].concat();
        let rest = ["encoder.fusion.norm.weight", "encoder.fusion.norm.bias", "decoder.weight"];
        let rest = rest.map(|name| (name.to_owned(), tensor(&[1], 0.0)));
        assert_eq!(read([ours, rest.to_vec()].concat()).unwrap().left_out, ["encoder.fusion.*", "decoder.*"]);
        let error = read([prefixed("a."), prefixed("b.")].concat()).unwrap_err().to_string();
        assert!(error.contains("several vision transformers: a., b."), "{error}");
        let error = read(vec![("x".to_owned(), tensor(&[1], 0.0))]).unwrap_err().to_string();
        assert!(error.contains("no name in it ends in cls_token"), "{error}");
    }

    #[test]
    fn layer_scale_is_folded_into_the_layer_before_it() {
        let mut tensors = timm();
        tensors.push(("blocks.0.ls1.gamma".to_owned(), tensor(&[2], 2.0)));
        tensors.push(("blocks.0.ls2.gamma".to_owned(), tensor(&[2], 5.0)));
        let (plain, folded) = (read(timm()).unwrap(), read(tensors).unwrap());
        for (name, gamma) in [("attn.out_proj", [2.0, 3.0]), ("mlp.3", [5.0, 6.0])] {
            for part in ["weight", "bias"] {
                let name = format!("blocks.0.{name}.{part}");
                let before = parameter(&plain, &name);
                let each = before.len() / 2;
                let expected: Vec<f32> = before
                    .chunks_exact(each)
                    .zip(gamma)
                    .flat_map(|(row, gamma)| row.iter().map(move |x| x * gamma))
                    .collect();
                assert_eq!(parameter(&folded, &name), expected, "{name}");
            }
        }
        assert_eq!(
            parameter(&plain, "blocks.0.attn.in_proj_weight"),
            parameter(&folded, "blocks.0.attn.in_proj_weight")
        );
    }

    #[test]
    fn what_some_blocks_have_all_must_have() {
        let c = Backbone { depth: 2, ..c() };
        let named = |spec: &ParameterSpec| (theirs(&spec.name), tensor(&spec.shape, 1.0));
        let mut all: Vec<_> = expected(&c, 8).unwrap().iter().map(named).collect();
        for block in 0..2 {
            all.extend([1, 2].map(|at| (format!("blocks.{block}.ls{at}.gamma"), tensor(&[2], 1.0))));
        }
        let read = |gone: &[&str]| {
            let tensors = all.iter().filter(|(name, _)| gone.iter().all(|gone| !name.ends_with(gone)));
            let weights = Weights { tensors: tensors.cloned().collect(), ..Weights::default() };
            backbone(Path::new("w.pth"), &weights, &c, 8, OWN)
        };
        for gone in [&[][..], &["ls1.gamma"], &["ls1.gamma", "ls2.gamma"], &["qkv.bias"]] {
            assert!(read(gone).is_ok(), "{gone:?}");
        }
        for gone in ["blocks.1.ls1.gamma", "blocks.0.ls2.gamma", "blocks.1.attn.qkv.bias"] {
            let error = read(&[gone]).unwrap_err().to_string();
            assert!(error.contains(&format!("w.pth lacks: {gone}")), "{error}");
        }
    }

    #[test]
    fn other_sizes_are_told_once_with_what_to_set() {
        let other = Backbone { embed_dim: 128, depth: 3, ..c() };
        let named = |spec: &ParameterSpec| (theirs(&spec.name), tensor(&spec.shape, 1.0));
        let error = read(expected(&other, 8).unwrap().iter().map(named).collect()).unwrap_err().to_string();
        assert!(error.contains("its width is 128") && error.contains("its depth is 3"), "{error}");
        // The ratio is the same.
        assert!(!error.contains("MLPs") && error.contains("of this width it is mostly 2"), "{error}");
        for (hidden, width) in [(1, 3), (85, 49), (1365, 512), (7, 10)] {
            let c = Backbone { embed_dim: width, mlp_ratio: mlp_ratio(hidden, width), ..c() };
            assert_eq!(c.mlp_width(), hidden);
        }
    }

    #[test]
    fn other_kinds_are_told_for_what_they_are() {
        for (name, says) in [
            ("reg_token", "register tokens"),
            ("register_tokens", "register tokens"),
            ("storage_tokens", "register tokens"),
            ("dist_token", "distillation token"),
            ("norm_pre.weight", "norm before its blocks"),
            ("blocks.0.mlp.w12.weight", "SwiGLU"),
            ("blocks.0.attn.q_norm.weight", "norms of queries"),
            ("blocks.0.attn.relative", "has what a backbone has not: blocks.0.attn.relative"),
        ] {
            let mut tensors = timm();
            tensors.push((name.to_owned(), tensor(&[1, 2], 0.0)));
            let error = read(tensors).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Data);
            assert!(error.to_string().contains(says) && error.to_string().contains("hint: "), "{error}");
        }
        let without = |gone: &str| timm().into_iter().filter(|(name, _)| name != gone).collect::<Vec<_>>();
        let error = read(without("norm.weight")).unwrap_err().to_string();
        assert!(error.contains("w.pth lacks: norm.weight"), "{error}");
        assert_eq!(
            parameter(&read(without("blocks.0.attn.qkv.bias")).unwrap(), "blocks.0.attn.in_proj_bias"),
            [0.0; 6]
        );
        let bad = |change: &dyn Fn(&mut TensorData<'static>)| {
            let mut tensors = timm();
            change(&mut tensors.iter_mut().find(|(name, _)| name == "norm.bias").unwrap().1);
            read(tensors).unwrap_err().to_string()
        };
        assert!(
            bad(&|it| it.data = [f32::NAN, 0.0].map(f32::to_le_bytes).concat().into())
                .contains("norm.bias holds NaN")
        );
        assert!(bad(&|it| it.shape = vec![1, 2]).contains("norm.bias is [1, 2]"));
        assert!(bad(&|it| it.dtype = Dtype::I32).contains("floats are needed"));
        let positions = |shape: &[usize]| {
            let mut tensors = timm();
            tensors.iter_mut().find(|(name, _)| name == "pos_embed").unwrap().1 = tensor(shape, 0.0);
            read(tensors)
        };
        assert!(positions(&[1, 10, 2]).is_ok());
        assert!(positions(&[1, 9, 2]).unwrap_err().to_string().contains("9 positions"));
        assert!(positions(&[9, 2]).unwrap_err().to_string().contains("pos_embed is [9, 2]"));
    }

    /// The numbers of `scripts/torch_pretrained.py --positions`.
    #[test]
    fn grids_become_what_pytorch_makes_of_them() {
        let cases: serde_json::Value =
            serde_json::from_str(include_str!("../../tests/data/resampled_positions.json")).unwrap();
        let cases = cases.as_array().unwrap();
        assert!(cases.len() >= 10);
        for case in cases {
            let size = |key: &str| case[key].as_u64().unwrap() as usize;
            let floats = |key: &str| -> Vec<f32> {
                case[key].as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
            };
            let found = resample(&floats("values"), size("from"), size("to"), size("width"));
            let expected = floats("expected");
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(&expected) {
                // PyTorch's weights are f32: of a place at 37 that leaves some 1e-6.
                let name = format!("{} to {}", case["from"], case["to"]);
                assert!((found - expected).abs() <= 1e-5, "{name}: {found} is not {expected}");
            }
        }
    }

    #[test]
    fn a_grid_that_is_resampled_to_its_own_size_stays() {
        let grid: Vec<f32> = (0..32).map(|i| (i as f32 * 0.7).sin()).collect();
        for (a, b) in resample(&grid, 4, 4, 2).iter().zip(&grid) {
            assert!((a - b).abs() < 1e-6);
        }
        // Weights of a place add up to one, so that a constant stays, whatever the sizes.
        for (from, to) in [(37, 14), (14, 37), (1, 3), (5, 1)] {
            assert!(resample(&vec![2.5; from * from], from, to, 1).iter().all(|x| (x - 2.5).abs() < 1e-5));
        }
    }
}
