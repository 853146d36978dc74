//! Which experiments can work: every field's own rule, and the conditions between fields.

use figment::value::Value;

use super::define::{Field, Preset, Rule};
use super::fields::FIELDS;
use super::merge::{DEFAULT, Merge, field};
use super::streams::{STREAMS, image_streams, is_image_folder};
use super::value::from_text;
use crate::error::Problem;

/// No machine addresses more memory than this (128 TiB), so nothing that is one tensor can be larger.
pub const MOST_BYTES: u128 = 1 << 47;

/// Notes everything in `merge` that cannot work, each with its origin and the cure.
pub(super) fn check(merge: &mut Merge) {
    if !merge.unreadable {
        without_images(merge);
        missing(merge);
    }
    for field in FIELDS {
        rule(field, merge);
    }
    multiple(merge, "model.d_model", "model.temporal_nhead");
    // Features have any width.
    if !has_features(merge) {
        multiple(merge, "model.image_size", "model.backbone.patch_size");
        multiple(merge, "model.backbone.embed_dim", "model.backbone.num_heads");
    }
    if word(merge, "model.decoder.kind").as_deref() == Some("transformer") {
        multiple(merge, "model.d_model", "model.decoder.nhead");
    }
    hypotheses(merge);
    best_metric(merge);
    early_stopping(merge);
    optimizer(merge);
    plateau(merge);
    frozen_blocks(merge);
    features(merge);
    starts(merge);
    hidden_width(merge);
    sizes(merge);
}

const FEATURES_DIR: &str = "data.features_dir";

/// Whether features that were made elsewhere come in the place of images.
fn has_features(merge: &Merge) -> bool {
    word(merge, FEATURES_DIR).is_some()
}

/// Folders of images need no value where none are read.
fn without_images(merge: &mut Merge) {
    if !has_features(merge) {
        return;
    }
    for field in FIELDS.iter().filter(|field| is_image_folder(field.key)) {
        if !merge.has(field) {
            merge.assign(field, Ok(Value::from("")), DEFAULT);
        }
    }
}

/// Required fields without a value, all in one problem.
fn missing(merge: &mut Merge) {
    let is_empty =
        |merge: &Merge, field: &Field| word(merge, field.key).is_some_and(|value| value.is_empty());
    let has_none = |field: &&Field| {
        !merge.has(field) || !has_features(merge) && is_image_folder(field.key) && is_empty(merge, field)
    };
    let missing: Vec<_> = FIELDS.iter().filter(|f| f.default == Preset::Required && has_none(f)).collect();
    let what = match missing.as_slice() {
        [] => return,
        [one] => format!("{} has no value", one.key),
        many => format!("{} required fields have no value", many.len()),
    };
    let width = |text: fn(&Field) -> String| missing.iter().map(|f| text(f).len()).max().unwrap_or(0);
    let (keys, variables) = (width(|f| f.key.to_owned()), width(Field::env));
    let mut hint = "set each in the experiment file, the environment or the command line:".to_owned();
    for field in missing {
        let flag = field.flag().unwrap_or_else(|| format!("--set {}", field.key));
        let line = format!("\n{:keys$}  {:variables$}  {flag}", field.key, field.env());
        hint.push_str(&line);
    }
    merge.problems.push(Problem::new(what).hint(hint));
}

/// A field's own rule.
fn rule(field: &Field, merge: &mut Merge) {
    let Some((value, origin)) = merge.get(field) else { return };
    let values = value.as_array().unwrap_or(std::slice::from_ref(&value));
    let judged = values.iter().filter_map(|value| judge(field.rule, value));
    let Some((found, _)) = judged.into_iter().find(|(_, works)| !works) else { return };
    let must = match (field.rule.text(), found.parse::<f64>().is_ok_and(f64::is_finite)) {
        (Some(rule), true) => rule,
        _ => "a finite number".to_owned(),
    };
    let mut problem = Problem::new(format!("{origin}: {}: must be {must}, not {found}", field.key));
    if let Some(hint) = cure(field, &found) {
        problem = problem.hint(hint);
    }
    merge.refuse(field, problem);
}

/// The number as shown and whether the rule holds for it; `None` for what is not a number.
fn judge(rule: Rule, value: &Value) -> Option<(String, bool)> {
    if let Some(number) = value.to_u128() {
        let works = match rule {
            Rule::Positive => number >= 1,
            Rule::AtMost(most) => number <= u128::from(most),
            Rule::UpTo(most) => (1..=u128::from(most)).contains(&number),
            _ => true,
        };
        return Some((number.to_string(), works));
    }
    let number = value.to_f64()?;
    let works = match rule {
        Rule::NotNegative => number >= 0.0,
        Rule::AboveZero => number > 0.0,
        Rule::Share => (0.0..=1.0).contains(&number),
        Rule::BelowOne => (0.0..1.0).contains(&number),
        Rule::Any | Rule::Positive | Rule::AtMost(_) | Rule::UpTo(_) => true,
    };
    Some((format!("{number:?}"), works && number.is_finite()))
}

fn cure(field: &Field, found: &str) -> Option<String> {
    match (field.rule, field.default) {
        (Rule::BelowOne, _) if found == "1.0" => {
            Some("at a rate of 1 everything is dropped and nothing can be learned".to_owned())
        }
        (_, Preset::Text(text)) => Some(format!("the default is {text}")),
        (_, Preset::Unset) => field.note.map(|note| format!("leave it out for the default: {note}")),
        (_, Preset::Required) => None,
    }
}

/// The whole number that `key` holds, where it holds one that was not refused.
fn whole(merge: &Merge, key: &str) -> Option<u64> {
    merge.get(field(key)?)?.0.to_u128().and_then(|number| u64::try_from(number).ok())
}

/// The word that `key` holds, where it holds one that was not refused.
fn word(merge: &Merge, key: &str) -> Option<String> {
    merge.get(field(key)?)?.0.as_str().map(str::to_owned)
}

/// No more hypotheses than are followed, and none that must be longer than it may.
fn hypotheses(merge: &mut Merge) {
    for (less, more, why) in [
        ("decoding.n_best", "decoding.beam_size", "a search has no more hypotheses than it follows"),
        ("decoding.min_length", "decoding.max_length", "a hypothesis cannot be longer than it may be"),
    ] {
        let (Some(low), Some(high)) = (whole(merge, less), whole(merge, more)) else { continue };
        if low > high {
            let what = format!("{} is more than {}", named(merge, less), named(merge, more));
            merge.problems.push(Problem::new(what).hint(format!("{why}: raise {more} or lower {less}")));
        }
    }
}

/// What `best.pt` is chosen by must be known.
fn best_metric(merge: &mut Merge) {
    const KEY: &str = "optimization.best_metric";
    const EVERY: &str = "run.evaluate_every";
    let Some(metric) = word(merge, KEY) else { return };
    let translated = ["val_bleu", "val_chrf", "val_wer"].contains(&metric.as_str());
    let is_refused = field(EVERY).is_none_or(|field| merge.get(field).is_none());
    if !translated || is_refused || whole(merge, EVERY).is_some() {
        return;
    }
    let origin = field(KEY).map(|field| merge.origin(field)).unwrap_or_default();
    let what = format!("{KEY} = {metric} ({origin}) is not computed: {EVERY} is unset");
    let hint =
        format!("set {EVERY} to the number of epochs between two translations of the validation split");
    merge.problems.push(Problem::new(what).hint(hint));
}

/// A metric that is not of every epoch must be waited for.
fn early_stopping(merge: &mut Merge) {
    const PATIENCE: &str = "optimization.early_stopping";
    const EVERY: &str = "run.evaluate_every";
    let metric = word(merge, "optimization.best_metric").unwrap_or_default();
    let (Some(patience), Some(every)) = (whole(merge, PATIENCE), whole(merge, EVERY)) else { return };
    if ["val_bleu", "val_chrf", "val_wer"].contains(&metric.as_str()) && patience < every {
        let what = format!("{} is less than {}", named(merge, PATIENCE), named(merge, EVERY));
        let hint = format!("{metric} is known every {every} epochs only: raise {PATIENCE} or lower {EVERY}");
        merge.problems.push(Problem::new(what).hint(hint));
    }
}

/// What an optimizer has no use for must not be asked of it.
fn optimizer(merge: &mut Merge) {
    let Some(kind) = word(merge, "optimization.optimizer") else { return };
    let others: &[(&str, &str)] = if kind == "sgd" {
        &[("optimization.betas", "Adam's and AdamW's"), ("optimization.eps", "Adam's and AdamW's")]
    } else {
        &[("optimization.momentum", "SGD's")]
    };
    for (key, whose) in others {
        let Some(field) = field(key) else { continue };
        let default = match field.default {
            Preset::Text(text) => from_text(field, text).ok(),
            _ => None,
        };
        if merge.get(field).is_some_and(|(value, _)| Some(value) != default) {
            let what = format!("{} is {whose}, and optimization.optimizer is {kind}", named(merge, key));
            let hint = format!("leave {} out, or take another optimizer", field.name);
            merge.problems.push(Problem::new(what).hint(hint));
        }
    }
}

/// `ReduceLROnPlateau` lowers the learning rate.
fn plateau(merge: &mut Merge) {
    const GAMMA: &str = "optimization.scheduler_gamma";
    const LR: &str = "optimization.lr";
    const LOWEST: &str = "optimization.min_lr";
    if word(merge, "optimization.scheduler").as_deref() != Some("plateau") {
        return;
    }
    if float(merge, GAMMA).is_some_and(|gamma| gamma >= 1.0) {
        let what = format!("{} does not lower the learning rate on a plateau", named(merge, GAMMA));
        merge.problems.push(Problem::new(what).hint("set it below 1"));
    }
    if float(merge, LR).zip(float(merge, LOWEST)).is_some_and(|(lr, lowest)| lowest > lr) {
        let what = format!("{} is above {}", named(merge, LOWEST), named(merge, LR));
        merge.problems.push(Problem::new(what).hint(format!("lower {LOWEST} or raise {LR}")));
    }
}

/// No more blocks can be frozen than there are.
fn frozen_blocks(merge: &mut Merge) {
    const FREEZE: &str = "model.backbone.freeze";
    const DEPTH: &str = "model.backbone.depth";
    let blocks = word(merge, FREEZE).and_then(|text| text.parse::<u64>().ok());
    let (Some(blocks), Some(depth)) = (blocks, whole(merge, DEPTH)) else { return };
    if blocks > depth {
        let what = format!("{} is more than {}", named(merge, FREEZE), named(merge, DEPTH));
        let hint = format!("freeze at most {depth} blocks, or \"all\" for the last norm, too");
        merge.problems.push(Problem::new(what).hint(hint));
    }
}

/// A backbone begins with one file.
fn starts(merge: &mut Merge) {
    const INIT: &str = "model.backbone.init";
    let others = ["run.init_from", FEATURES_DIR];
    if word(merge, INIT).is_none() {
        return;
    }
    for (other, why) in others.into_iter().zip(["has weights for the backbones, too", "leaves no backbone"]) {
        if word(merge, other).is_some() {
            let what = format!("{} {why}: {}", named(merge, other), named(merge, INIT));
            merge.problems.push(Problem::new(what).hint(format!("leave one of the two out: --set {INIT}=")));
        }
    }
}

/// Features are kept of what does not train, and come from one place.
fn features(merge: &mut Merge) {
    const CACHE: &str = "data.feature_cache";
    const MADE: &str = FEATURES_DIR;
    const FREEZE: &str = "model.backbone.freeze";
    let is_set = |merge: &Merge, key: &str| word(merge, key).is_some();
    let freeze = word(merge, FREEZE);
    if is_set(merge, CACHE) && freeze.as_deref().is_some_and(|freeze| freeze != "all") {
        let what = format!("{} keeps what changes: {}", named(merge, CACHE), named(merge, FREEZE));
        let hint = format!("set {FREEZE} = \"all\", or leave {CACHE} out");
        merge.problems.push(Problem::new(what).hint(hint));
    }
    if is_set(merge, MADE) {
        if is_set(merge, CACHE) {
            let what =
                format!("{} and {} are two places for features", named(merge, MADE), named(merge, CACHE));
            merge.problems.push(Problem::new(what).hint("leave one of the two out"));
        }
        if freeze.is_some_and(|freeze| freeze != "all" && freeze != "none") {
            let what = format!(
                "{} leaves no backbone to train a part of: {}",
                named(merge, MADE),
                named(merge, FREEZE)
            );
            merge.problems.push(Problem::new(what).hint(format!("leave {FREEZE} out")));
        }
    }
}

/// The number that `key` holds, where it holds one that was not refused.
fn float(merge: &Merge, key: &str) -> Option<f64> {
    merge.get(field(key)?)?.0.to_f64()
}

/// `key = value (origin)`, for conditions between fields.
fn named(merge: &Merge, key: &str) -> String {
    let Some((value, origin)) = field(key).and_then(|field| merge.get(field)) else { return key.to_owned() };
    let shown = match (value.to_u128(), value.as_str(), value.as_array()) {
        (Some(number), ..) => number.to_string(),
        (_, Some(word), _) => word.to_owned(),
        (.., Some(values)) => format!("{:?}", values.iter().filter_map(Value::to_f64).collect::<Vec<_>>()),
        _ => format!("{:?}", value.to_f64().unwrap_or_default()),
    };
    format!("{key} = {shown} ({origin})")
}

/// `whole_key` must be a multiple of `part_key`.
fn multiple(merge: &mut Merge, whole_key: &str, part_key: &str) {
    let (Some(total), Some(part)) = (whole(merge, whole_key), whole(merge, part_key)) else { return };
    if part == 0 || total % part == 0 {
        return;
    }
    let below = total / part * part;
    let near = match (below, below.checked_add(part)) {
        (0, _) | (_, None) => part.max(below).to_string(),
        (below, Some(above)) => format!("{below} or {above}"),
    };
    let what = format!("{} is not a multiple of {}", named(merge, whole_key), named(merge, part_key));
    let hint = format!("set {whole_key} to {near}, or {part_key} to a divisor of {total}");
    merge.problems.push(Problem::new(what).hint(hint));
}

const EMBED_DIM: &str = "model.backbone.embed_dim";
const MLP_RATIO: &str = "model.backbone.mlp_ratio";

fn hidden_width(merge: &mut Merge) {
    // `int(embed_dim * mlp_ratio)`, as in the script.
    let ratio = float(merge, MLP_RATIO);
    if whole(merge, EMBED_DIM).zip(ratio).is_some_and(|(width, ratio)| width as f64 * ratio < 1.0) {
        let what = format!(
            "{} times {} leaves the backbone's hidden layer without a unit",
            named(merge, EMBED_DIM),
            named(merge, MLP_RATIO)
        );
        merge.problems.push(Problem::new(what).hint(format!("raise {MLP_RATIO}; the usual value is 4.0")));
    }
}

/// Sizes that no machine can hold. What is left keeps the products of later counts within 64 bits; of the parameters,
/// which are refused where the network is known, each saturates.
fn sizes(merge: &mut Merge) {
    for (what, keys, numbers) in tensors(merge).into_iter().flatten() {
        let bytes = numbers.iter().fold(4_u128, |product, n| product.saturating_mul(*n));
        if bytes > MOST_BYTES {
            let keys: Vec<_> = keys.iter().map(|key| named(merge, key)).collect();
            let size = bytes as f64 / f64::from(1_u32 << 30);
            let what = format!("{what} would take {size:.1e} GiB: {}", keys.join(", "));
            merge.problems.push(Problem::new(what).hint("lower one of these; no machine can hold that much"));
        }
    }
}

/// A tensor's name, the fields that size it, and the numbers of which its element count is the product.
type Size = (&'static str, Vec<&'static str>, Vec<u128>);

/// Batches and activations, which grow with the configuration; `None` where a size was refused already. Of the
/// parameters, the network itself knows.
fn tensors(merge: &Merge) -> Vec<Option<Size>> {
    let images = ["data.batch_size", "model.sequence_length", "model.image_size", "model.image_size"];
    let validation = ["data.val_batch_size", "model.sequence_length", "model.image_size", "model.image_size"];
    let poses = ["data.batch_size", "model.sequence_length", "model.pose_landmarks"];
    let streams = ["data.batch_size", "model.sequence_length", "model.projector_dim"];
    let frames = ["data.batch_size", "model.sequence_length", "model.d_model"];
    let feed = ["data.batch_size", "model.sequence_length", "model.temporal_dim_feedforward"];
    let logits = ["data.batch_size", "model.vocab_size"];
    // Red, green and blue of each stream.
    let channels = 3 * image_streams().count() as u128;
    let product = |what, constant, keys: &[&'static str]| -> Option<Size> {
        let mut numbers = vec![constant];
        for key in keys {
            numbers.push(u128::from(whole(merge, key)?));
        }
        let mut named = keys.to_vec();
        named.dedup();
        Some((what, named, numbers))
    };
    vec![
        product("a training batch's images", channels, &images),
        product("a validation batch's images", channels, &validation),
        product("a training batch's poses", 3, &poses),
        product("a training batch's projected features", STREAMS.len() as u128, &streams),
        product("a training batch's fused features", 1, &frames),
        product("the temporal transformer's hidden layer", 1, &feed),
        product("a training batch's logits", 1, &logits),
        temporal_attention(merge),
        patch_attention(merge),
        tokens(merge),
    ]
}

/// The temporal transformer's attention probabilities: heads x T x T a clip.
fn temporal_attention(merge: &Merge) -> Option<Size> {
    let keys = ["model.temporal_nhead", "model.sequence_length"];
    let [heads, frames] = keys.map(|key| whole(merge, key).map(u128::from));
    Some(("a clip's temporal attention", keys.to_vec(), vec![heads?, frames?, frames?]))
}

/// One image's tokens in a backbone.
fn tokens(merge: &Merge) -> Option<Size> {
    let (_, _, tokens) = patch_attention(merge)?;
    let keys = vec!["model.image_size", "model.backbone.patch_size", EMBED_DIM];
    Some(("an image's tokens", keys, vec![4, *tokens.last()?, u128::from(whole(merge, EMBED_DIM)?)]))
}

/// One image's attention probabilities in a backbone: heads x tokens x tokens.
fn patch_attention(merge: &Merge) -> Option<Size> {
    let keys = ["model.backbone.num_heads", "model.image_size", "model.backbone.patch_size"];
    let [heads, image, patch] = keys.map(|key| whole(merge, key).map(u128::from));
    let side = image?.checked_div(patch?)?;
    let tokens = side.saturating_mul(side).saturating_add(1);
    Some(("an image's attention", keys.to_vec(), vec![heads?, tokens, tokens]))
}
