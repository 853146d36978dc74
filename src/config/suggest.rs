//! "Did you mean": the nearest section, field or word to a misspelt one.

use super::define::Field;
use super::fields::{FIELDS, SECTIONS};

/// A longer word is nobody's misspelling, and comparing costs its length times each candidate's.
const LONGEST: usize = 100;

/// The candidate that `word` is probably a misspelling of: at most 2 edits away, or a third of its length.
pub(super) fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    if word.len() > LONGEST {
        return None;
    }
    let word = normal(word);
    let most = 2.max(word.chars().count() / 3);
    candidates
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(&word, name), name))
        // As many edits as there are letters turn anything into anything.
        .filter(|(edits, name)| *edits <= most && *edits < name.len().min(word.len()))
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, name)| name)
}

/// What other programs call some fields.
const ELSEWHERE: [(&str, &str); 55] = [
    ("learning_rate", "optimization.lr"),
    ("base_lr", "optimization.lr"),
    ("max_epochs", "optimization.epochs"),
    ("num_epochs", "optimization.epochs"),
    ("num_train_epochs", "optimization.epochs"),
    ("optim", "optimization.optimizer"),
    ("wd", "optimization.weight_decay"),
    ("lr_scheduler", "optimization.scheduler"),
    ("lr_scheduler_type", "optimization.scheduler"),
    ("sched", "optimization.scheduler"),
    ("step_size", "optimization.scheduler_step_size"),
    ("gamma", "optimization.scheduler_gamma"),
    ("t_max", "optimization.scheduler_tmax"),
    ("tmax", "optimization.scheduler_tmax"),
    ("clip_grad_norm", "optimization.grad_clip"),
    ("max_grad_norm", "optimization.grad_clip"),
    ("max_norm", "optimization.grad_clip"),
    ("gradient_clip", "optimization.grad_clip"),
    ("gradient_clip_val", "optimization.grad_clip"),
    ("gradient_clipping", "optimization.grad_clip"),
    ("gradient_accumulation_steps", "optimization.accumulate"),
    ("accumulate_grad_batches", "optimization.accumulate"),
    ("accumulation_steps", "optimization.accumulate"),
    ("grad_accum", "optimization.accumulate"),
    ("patience", "optimization.early_stopping"),
    ("early_stop", "optimization.early_stopping"),
    ("early_stopping_patience", "optimization.early_stopping"),
    ("warmup", "optimization.warmup_steps"),
    ("num_warmup_steps", "optimization.warmup_steps"),
    ("adam_epsilon", "optimization.eps"),
    ("param_groups", "optimization.groups"),
    ("plateau_patience", "optimization.scheduler_patience"),
    ("save_total_limit", "optimization.keep_checkpoints"),
    ("save_top_k", "optimization.keep_checkpoints"),
    ("frozen", "model.backbone.freeze"),
    ("bs", "data.batch_size"),
    ("train_batch_size", "data.batch_size"),
    ("per_device_train_batch_size", "data.batch_size"),
    ("eval_batch_size", "data.val_batch_size"),
    ("per_device_eval_batch_size", "data.val_batch_size"),
    ("workers", "data.num_workers"),
    ("log_dir", "data.tensorboard"),
    ("logdir", "data.tensorboard"),
    ("seq_len", "model.sequence_length"),
    ("num_frames", "model.sequence_length"),
    ("max_frames", "model.sequence_length"),
    ("num_classes", "model.vocab_size"),
    ("drop_path", "model.backbone.stochastic_depth"),
    ("drop_path_rate", "model.backbone.stochastic_depth"),
    ("output_dir", "run.work_dir"),
    ("out_dir", "run.work_dir"),
    ("save_dir", "run.work_dir"),
    ("gpu", "run.device"),
    ("amp", "run.precision"),
    ("resume_from_checkpoint", "run.resume"),
];

/// Switches of other programs, and the values that stand for them here.
const SWITCHES: [(&str, &[(&str, &str)]); 12] = [
    ("fp16", &[("run.precision", "amp"), ("optimization.amp_dtype", "float16")]),
    ("half", &[("run.precision", "amp"), ("optimization.amp_dtype", "float16")]),
    ("bf16", &[("run.precision", "amp"), ("optimization.amp_dtype", "bfloat16")]),
    ("bfloat16", &[("run.precision", "amp"), ("optimization.amp_dtype", "bfloat16")]),
    ("float16", &[("run.precision", "amp"), ("optimization.amp_dtype", "float16")]),
    ("use_amp", &[("run.precision", "amp")]),
    ("mixed_precision", &[("run.precision", "amp")]),
    ("fp32", &[("run.precision", "fp32")]),
    ("no_amp", &[("run.precision", "fp32")]),
    ("cuda", &[("run.device", "cuda")]),
    ("cpu", &[("run.device", "cpu")]),
    ("no_cuda", &[("run.device", "cpu")]),
];

/// What other programs have and this one has not. A field that is made for one of these comes before.
const NOT_THERE: [(&str, &str); 4] = [
    ("warmup_epochs", "warmup in epochs: optimization.warmup_steps counts steps"),
    ("warmup_ratio", "warmup as a share: optimization.warmup_steps counts steps"),
    ("nesterov", "Nesterov momentum"),
    ("ema", "average of the weights"),
];

/// What other programs call some sections.
const SECTIONS_ELSEWHERE: [(&str, &str); 12] = [
    ("solver", "optimization"),
    ("train", "optimization"),
    ("training", "optimization"),
    ("scheduler", "optimization"),
    ("lr_scheduler", "optimization"),
    ("optimizer", "optimization"),
    ("dataset", "data"),
    ("dataloader", "data"),
    ("network", "model"),
    ("vit", "model.backbone"),
    ("trainer", "run"),
    ("experiment", "run"),
];

/// The field that an unknown key, such as `optimization.learning_rate` or `lr`, was probably meant to be.
pub(super) fn meant(key: &str) -> Option<&'static Field> {
    if key.len() > LONGEST {
        return None;
    }
    let key = normal(key);
    let (section, name) = key.rsplit_once('.').unwrap_or(("", &key));
    let find = |is: &dyn Fn(&Field) -> bool| FIELDS.iter().find(|field| is(field));
    let of_key = |key: &str| find(&|field| field.key == key);
    let elsewhere = || of_key(ELSEWHERE.iter().find(|(other, _)| *other == name)?.1);
    let near = |is: &dyn Fn(&Field) -> bool| {
        let name = nearest(name, FIELDS.iter().filter(|field| is(field)).map(|field| field.name))?;
        find(&|field| field.name == name && is(field))
    };
    let alike = || {
        let looks_like = || near(&|field| field.section == section).or_else(|| near(&|_| true));
        if not_there(name).is_some() { None } else { looks_like().or_else(|| part(name)) }
    };
    of_key(&key)
        .or_else(|| find(&|field| field.name == name && field.section != section))
        .or_else(|| find(&|field| is_joined(field, name)))
        .or_else(|| find(&|field| has_same_words(field, name)))
        .or_else(elsewhere)
        .or_else(alike)
}

/// Whether `name` is the field's key, or the end of it, without its dots: `backbone_depth`, `model_backbone_depth`.
fn is_joined(field: &Field, name: &str) -> bool {
    let ends = field.key.match_indices('.').map(|(at, _)| &field.key[at + 1..]);
    std::iter::once(field.key).chain(ends).any(|end| end.contains('.') && end.replace('.', "_") == name)
}

/// Whether `name` has the words of the field's name in another order: `clip_grad`.
fn has_same_words(field: &Field, name: &str) -> bool {
    let words = |text: &str| {
        let mut words: Vec<String> = text.split('_').map(str::to_owned).collect();
        words.sort_unstable();
        words
    };
    words(field.name) == words(name)
}

/// The one field of which `name` is the beginning or the end, and not the lesser part: `batch`, `smoothing`.
fn part(name: &str) -> Option<&'static Field> {
    let is_part = |field: &&Field| {
        let rest = field.name.strip_prefix(name).is_some_and(|rest| rest.starts_with('_'))
            || field.name.strip_suffix(name).is_some_and(|rest| rest.ends_with('_'));
        rest && name.len() >= 4 && 2 * name.len() >= field.name.len()
    };
    let mut found = FIELDS.iter().filter(is_part);
    found.next().filter(|_| found.next().is_none())
}

/// What is missing here that `name` asks for, as in "there is no early stopping".
pub(super) fn not_there(name: &str) -> Option<String> {
    let (_, what) = NOT_THERE.iter().find(|(other, _)| *other == name)?;
    Some(format!("there is no {what}"))
}

/// The fields and values that the switch `name` of another program stands for.
pub(super) fn switch(name: &str) -> Option<impl Iterator<Item = (&'static Field, &'static str)>> {
    let (_, values) = SWITCHES.iter().find(|(other, _)| *other == name)?;
    Some(values.iter().filter_map(|(key, value)| Some((FIELDS.iter().find(|f| f.key == *key)?, *value))))
}

/// What to write where `word`, in the place of `field`'s value, is a switch of another program that sets this field.
pub(super) fn switched(field: &Field, word: &str) -> Option<String> {
    let word = normal(word.get(..LONGEST).unwrap_or(word));
    let sets = switch(&word)?.any(|(other, _)| other.key == field.key);
    sets.then(|| switch(&word).map(in_file))?
}

/// How to give fields their values in an experiment file.
fn in_file(values: impl Iterator<Item = (&'static Field, &'static str)>) -> String {
    let values: Vec<_> = values.map(|(field, value)| format!("{} = \"{value}\"", field.key)).collect();
    format!("write {}", values.join(" and "))
}

/// What to say about an unknown key.
pub(super) fn for_key(key: &str) -> String {
    let word = normal(key.get(..LONGEST).unwrap_or(key));
    let (section, name) = word.rsplit_once('.').unwrap_or(("", &word));
    if let Some(values) = switch(name) {
        return in_file(values);
    }
    if let Some(field) = meant(key) {
        return did_you_mean(field.key);
    }
    let fields: Vec<_> = FIELDS.iter().filter(|f| f.section == section).map(|f| f.name).collect();
    let there = if fields.is_empty() { sections() } else { format!("[{section}] has {}", fields.join(", ")) };
    match not_there(name) {
        Some(none) => format!("{none}; {there}"),
        None => there,
    }
}

/// What to say about an unknown section, such as `optimisation` or `backbone`.
pub(super) fn for_section(name: &str) -> String {
    let name = normal(name);
    let last = |section: &'static str| section.rsplit('.').next().unwrap_or(section);
    let names = || SECTIONS.iter().map(|section| section.name);
    let own_name = name.rsplit('.').next().unwrap_or(&name);
    names()
        .find(|section| last(section) == name)
        .or_else(|| nearest(&name, names()))
        .or_else(|| Some(SECTIONS_ELSEWHERE.iter().find(|(other, _)| *other == own_name)?.1))
        .or_else(|| names().find(|section| own_name.len() >= 3 && last(section).starts_with(own_name)))
        .map_or_else(sections, |section| format!("did you mean [{section}]?"))
}

/// The field that `variable` is meant for, or else that of which the variable is nearest to it, however far; none for a
/// very long name.
pub(super) fn for_variable(variable: &str) -> Option<&'static Field> {
    if variable.len() > LONGEST {
        return None;
    }
    let variable = variable.to_ascii_uppercase();
    let key = variable.strip_prefix("SLT_").unwrap_or(&variable).replace("__", ".");
    if let Some(field) = meant(key.trim_matches('.')) {
        return Some(field);
    }
    // Jaro-Winkler favours a common beginning, that is the section.
    let likeness = |field: &Field| strsim::jaro_winkler(&variable, &field.env());
    FIELDS.iter().min_by(|a, b| likeness(b).total_cmp(&likeness(a)))
}

fn did_you_mean(key: &str) -> String {
    format!("did you mean {key}?")
}

fn sections() -> String {
    let names: Vec<_> = SECTIONS.iter().map(|section| format!("[{}]", section.name)).collect();
    format!("the sections are {}", names.join(", "))
}

pub(super) fn normal(word: &str) -> String {
    word.to_ascii_lowercase().replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_was_meant() {
        assert_eq!(nearest("adamx", ["adamw", "adam", "sgd"]), Some("adamw"));
        assert_eq!(nearest("gpu", ["cpu", "cuda"]), Some("cpu"));
        assert_eq!(nearest("lion", ["adamw", "adam", "sgd"]), None);
        for (key, hint) in [
            ("data.batchsize", "did you mean data.batch_size?"),
            ("data.batch-size", "did you mean data.batch_size?"),
            ("optimization.batch_size", "did you mean data.batch_size?"),
            ("lr", "did you mean optimization.lr?"),
            ("model.depth", "did you mean model.backbone.depth?"),
            ("model.backbone.dephts", "did you mean model.backbone.depth?"),
            (
                "run.what",
                "[run] has work_dir, device, engine, precision, seed, threads, memory_budget, resume, \
             init_from, checkpoint_every, evaluate_every",
            ),
            (
                "zzzzzzz",
                "the sections are [data], [model], [model.backbone], [model.decoder], [tokenizer], [decoding], \
             [optimization], [run]",
            ),
        ] {
            assert_eq!(for_key(key), hint, "{key}");
        }
        for (name, section) in [
            ("optimisation", "optimization"),
            ("backbone", "model.backbone"),
            ("optim", "optimization"),
            ("opt", "optimization"),
            ("training", "optimization"),
            ("dataset", "data"),
            ("model.vit", "model.backbone"),
        ] {
            assert_eq!(for_section(name), format!("did you mean [{section}]?"), "{name}");
        }
        for (variable, key) in [
            ("SLT_OPTIMIZATION_LR", "optimization.lr"),
            ("SLT_LR", "optimization.lr"),
            ("SLT_BATCH_SIZE", "data.batch_size"),
            ("SLT_BACKBONE_DEPTH", "model.backbone.depth"),
            ("SLT_OPTIM__LR", "optimization.lr"),
            ("SLT_GRAD_CLIP", "optimization.grad_clip"),
        ] {
            assert_eq!(for_variable(variable).unwrap().key, key, "{variable}");
        }
    }

    #[test]
    fn tables_name_fields_that_are_there() {
        let is_field = |key: &str| FIELDS.iter().any(|field| field.key == key);
        for (name, key) in ELSEWHERE {
            assert!(is_field(key) && meant(name).is_some(), "{name}");
        }
        for (name, values) in SWITCHES {
            for (key, value) in values {
                let field = FIELDS.iter().find(|field| field.key == *key).unwrap();
                assert!(crate::config::value::from_text(field, value).is_ok(), "{name}");
            }
        }
        for (name, _) in NOT_THERE {
            assert!(meant(name).is_none(), "{name} is there, or is taken for another field");
        }
        for (_, section) in SECTIONS_ELSEWHERE {
            assert!(SECTIONS.iter().any(|s| s.name == section));
        }
    }
}
