//! Reading a field's value from TOML or from plain text (environment, command line), by the field's kind.

use std::path::Path;

use figment::value::{Empty, Num, Tag, Value};
use toml_edit::{Item, TableLike, Value as Toml};

use super::auto::{Chunk, MemoryBudget};
use super::define::{Field, Kind, Preset};
use super::fields::Device;
use super::groups::{Freeze, Glob, ParameterGroup};
use super::interval::CheckpointEvery;
use super::streams::is_image_folder;
use super::suggest::{nearest, switched};
use crate::input;

/// Why a value was refused: what follows the field's key in the message, and the cure.
#[derive(Debug, PartialEq)]
pub(super) struct Mismatch {
    pub(super) what: String,
    pub(super) hint: Option<String>,
}

impl Mismatch {
    fn new(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { what: what.into(), hint: Some(hint.into()) }
    }

    fn found(field: &Field, found: &str, hint: impl Into<String>) -> Self {
        Self::new(format!("expected {}, found {found}", expected(field)), hint)
    }
}

/// Reads the text that an environment variable or the command line gives for `field`.
pub(super) fn from_text(field: &Field, text: &str) -> Result<Value, Mismatch> {
    if text.is_empty() {
        return empty(field);
    }
    let word = text.trim();
    match field.kind {
        Kind::Path | Kind::AutoOrPath => path(text),
        Kind::Whole => match word.parse::<i128>() {
            Ok(number) => whole(field, number, word),
            Err(_) if digits(word) => Err(too_large(field, word)),
            Err(_) => Err(Mismatch::found(field, &quoted(text), instead_of(field, word))),
        },
        Kind::Number => match word.parse::<f64>() {
            Ok(number) => Ok(Value::from(number)),
            Err(_) => Err(Mismatch::found(field, &quoted(text), instead_of(field, word))),
        },
        Kind::Switch => match word.to_ascii_lowercase().parse::<bool>() {
            Ok(on) => Ok(Value::from(on)),
            Err(_) => Err(Mismatch::found(field, &quoted(text), such_as(field))),
        },
        Kind::Choice(names) => choice(field, names, word),
        Kind::Device => device(field, word),
        Kind::AutoOrCount | Kind::AutoOrBytes | Kind::Interval | Kind::Freeze => own_type(field, word),
        Kind::Pair => {
            let list = if word.starts_with('[') { word.to_owned() } else { format!("[{word}]") };
            literal(&list).map_or_else(
                || Err(Mismatch::found(field, &quoted(text), such_as(field))),
                |value| pair(field, &value),
            )
        }
        Kind::Groups => match literal(word) {
            Some(value) => groups(field, &Item::Value(value)),
            None => Err(Mismatch::found(field, &quoted(text), such_as(field))),
        },
    }
}

/// A value as TOML writes it.
fn literal(text: &str) -> Option<Toml> {
    text.parse().ok()
}

/// Reads what an experiment file gives for `field`.
pub(super) fn from_toml(field: &Field, item: &Item) -> Result<Value, Mismatch> {
    if field.kind == Kind::Groups {
        return groups(field, item);
    }
    let Some(value) = item.as_value() else {
        return Err(Mismatch::found(field, "a table", such_as(field)));
    };
    match (value, field.kind) {
        (value, Kind::Pair) => pair(field, value),
        (Toml::String(text), kind) => {
            let text = text.value();
            if text.is_empty() {
                return empty(field);
            }
            match kind {
                Kind::Path | Kind::AutoOrPath => path(text),
                Kind::Choice(names) => choice(field, names, text.trim()),
                Kind::Device => device(field, text.trim()),
                Kind::AutoOrCount | Kind::AutoOrBytes | Kind::Interval | Kind::Freeze => {
                    own_type(field, text.trim())
                }
                Kind::Whole | Kind::Number | Kind::Switch | Kind::Pair | Kind::Groups => {
                    let hint = match from_text(field, text) {
                        Ok(_) => format!("write it without quotes: {} = {}", field.name, text.trim()),
                        Err(_) => instead_of(field, text.trim()),
                    };
                    Err(Mismatch::found(field, &format!("the string {}", quoted(text)), hint))
                }
            }
        }
        (Toml::Integer(number), Kind::Whole) => {
            whole(field, i128::from(*number.value()), &number.value().to_string())
        }
        (Toml::Integer(number), Kind::AutoOrCount | Kind::AutoOrBytes | Kind::Interval | Kind::Freeze) => {
            own_type(field, &number.value().to_string())
        }
        (Toml::Boolean(on), Kind::Switch) => Ok(Value::from(*on.value())),
        (Toml::Integer(number), Kind::Number) => Ok(Value::from(*number.value() as f64)),
        (Toml::Float(number), Kind::Number) => Ok(Value::from(*number.value())),
        (Toml::Integer(_) | Toml::Float(_) | Toml::Boolean(_) | Toml::Datetime(_), kind) => {
            let text = shorten(value.clone().decorated("", "").to_string().trim());
            let hint = match kind {
                _ if value.as_bool().is_some() => instead_of(field, &text),
                kind if kind.is_path() => format!("put it in quotes: {} = \"{text}\"", field.name),
                _ => such_as(field),
            };
            Err(Mismatch::found(field, &format!("the {} {text}", value.type_name()), hint))
        }
        (Toml::Array(_), _) => Err(Mismatch::found(field, "an array", such_as(field))),
        (Toml::InlineTable(_), _) => Err(Mismatch::found(field, "a table", such_as(field))),
    }
}

/// An empty string: unsets an optional field and is an error for any other.
fn empty(field: &Field) -> Result<Value, Mismatch> {
    if field.optional {
        return Ok(Value::Empty(Tag::Default, Empty::Unit));
    }
    // A snapshot of an experiment without images has it so; whether there must be one is for `check`.
    if is_image_folder(field.key) {
        return Ok(Value::from(""));
    }
    let hint = match field.default {
        Preset::Text(text) => {
            format!("leave it out for the default, {text}; only optional fields can be unset")
        }
        _ => "only optional fields can be unset".to_owned(),
    };
    Err(Mismatch::found(field, "an empty string", hint))
}

fn path(text: &str) -> Result<Value, Mismatch> {
    if text.contains('\0') {
        return Err(Mismatch::new("a path cannot hold a NUL character", "write the path without it"));
    }
    let path = input::expand_home(Path::new(text)).map_err(|why| Mismatch::new(why.what, why.hint))?;
    match path.to_str() {
        Some(path) => Ok(Value::from(path)),
        None => Err(Mismatch::new("the home folder's name is not UTF-8 text", "write a path without ~")),
    }
}

fn whole(field: &Field, number: i128, text: &str) -> Result<Value, Mismatch> {
    if number < 0 {
        let found = format!("the negative number {}", shorten(text));
        return Err(Mismatch::found(field, &found, such_as(field)));
    }
    // TOML's integers are 64 bits with a sign, and every value must survive the snapshot.
    match i64::try_from(number).ok().and_then(|n| u64::try_from(n).ok()) {
        Some(number) => Ok(Value::Num(Tag::Default, Num::U64(number))),
        None => Err(too_large(field, text)),
    }
}

fn too_large(field: &Field, text: &str) -> Mismatch {
    let sign = if text.starts_with('-') { "negative number" } else { "number" };
    Mismatch::found(
        field,
        &format!("the {sign} {}", shorten(text)),
        format!("the largest whole number that an experiment file can hold is {}", i64::MAX),
    )
}

fn digits(word: &str) -> bool {
    let digits = word.strip_prefix(['-', '+']).unwrap_or(word);
    !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit())
}

fn choice(field: &Field, names: &[&'static str], word: &str) -> Result<Value, Mismatch> {
    if let Some(name) = names.iter().find(|name| name.eq_ignore_ascii_case(word)) {
        return Ok(Value::from(*name));
    }
    Err(match switched(field, word) {
        Some(instead) => Mismatch::new(format!("unknown {} {}", field.name, quoted(word)), instead),
        None => unknown(field, word, nearest(word, names.iter().copied()), &list(names)),
    })
}

fn device(field: &Field, word: &str) -> Result<Value, Mismatch> {
    if let Some(device) = Device::from_text(word) {
        return Ok(Value::from(device.to_string()));
    }
    let gpu = word.eq_ignore_ascii_case("gpu").then_some("cuda");
    let near = gpu.or_else(|| nearest(word, ["cpu", "cuda"]));
    Err(unknown(field, word, near, "cpu, cuda and cuda:N, where N is a device's number"))
}

/// A value of a type that reads and writes itself.
fn own_type(field: &Field, word: &str) -> Result<Value, Mismatch> {
    let canonical = match field.kind {
        Kind::AutoOrCount => Chunk::from_text(word).map(|chunk| chunk.to_string()),
        Kind::Interval => CheckpointEvery::from_text(word).map(|every| every.to_string()),
        Kind::Freeze => Freeze::from_text(word).map(|freeze| freeze.to_string()),
        _ => MemoryBudget::from_text(word).map(|budget| budget.to_string()),
    };
    match canonical {
        Some(text) => Ok(Value::from(text)),
        None => Err(Mismatch::found(field, &quoted(word), instead_of(field, word))),
    }
}

/// Two numbers.
fn pair(field: &Field, value: &Toml) -> Result<Value, Mismatch> {
    let number = |value: &Toml| value.as_float().or_else(|| value.as_integer().map(|number| number as f64));
    let numbers: Option<Vec<f64>> = value.as_array().and_then(|all| all.iter().map(number).collect());
    if let Some([first, second]) = numbers.as_deref() {
        return Ok(Value::from(vec![*first, *second]));
    }
    let found = shorten(value.clone().decorated("", "").to_string().trim());
    Err(Mismatch::found(field, &found, such_as(field)))
}

/// Groups of parameters: an array of tables, or of inline ones.
fn groups(field: &Field, item: &Item) -> Result<Value, Mismatch> {
    let tables: Option<Vec<&dyn TableLike>> = match item {
        Item::ArrayOfTables(tables) => Some(tables.iter().map(|table| table as &dyn TableLike).collect()),
        Item::Value(Toml::Array(tables)) => {
            tables.iter().map(|table| table.as_inline_table().map(|table| table as &dyn TableLike)).collect()
        }
        _ => None,
    };
    let Some(tables) = tables else {
        return Err(Mismatch::found(field, &format!("a {}", item.type_name()), such_as(field)));
    };
    let all: Result<Vec<ParameterGroup>, Mismatch> =
        tables.into_iter().enumerate().map(|(at, table)| group(1 + at, table)).collect();
    Value::serialize(all?).map_err(|error| Mismatch::new(error.to_string(), such_as(field)))
}

/// The group of parameters that `table` describes, the `number`th.
fn group(number: usize, table: &dyn TableLike) -> Result<ParameterGroup, Mismatch> {
    const KEYS: [&str; 5] = ["match", "lr", "lr_factor", "weight_decay", "freeze"];
    let fault = |what: String, hint: &str| Mismatch::new(format!("group {number}: {what}"), hint);
    let needs = |key: &str, what: &str, hint: &str| fault(format!("{key} must be {what}"), hint);
    let example = "say which parameters: match = \"encoder.backbone*\"";
    let pattern = table.get("match").ok_or_else(|| fault("it has no match".to_owned(), example))?;
    let pattern = pattern.as_str().ok_or_else(|| needs("match", "a string", example))?;
    let pattern = Glob::new(pattern).map_err(|why| {
        let hint = "* stands for any characters, ? for one, [ab] for one of these";
        fault(format!("match: {}", shorten(&why)), hint)
    })?;
    let mut group = ParameterGroup { pattern, lr: None, lr_factor: None, weight_decay: None, freeze: false };
    for (key, item) in table.iter().filter(|(key, _)| *key != "match") {
        let slot = match key {
            "freeze" => {
                let on = item
                    .as_bool()
                    .ok_or_else(|| needs("freeze", "true or false", "write it without quotes"))?;
                group.freeze = on;
                continue;
            }
            "lr" => &mut group.lr,
            "lr_factor" => &mut group.lr_factor,
            "weight_decay" => &mut group.weight_decay,
            key => {
                let near = nearest(key, KEYS).map(|key| format!("did you mean {key}? ")).unwrap_or_default();
                let what = format!("unknown key {}", one_line(&shorten(key)));
                return Err(fault(what, &format!("{near}a group has {}", list(&KEYS))));
            }
        };
        let number = item.as_float().or_else(|| item.as_integer().map(|number| number as f64));
        *slot = Some(number.ok_or_else(|| needs(key, "a number", "write it without quotes"))?);
    }
    match group.fault() {
        Some((what, hint)) => Err(fault(what, hint)),
        None => Ok(group),
    }
}

fn unknown(field: &Field, word: &str, near: Option<&str>, choices: &str) -> Mismatch {
    let meant = near.map(|name| format!("did you mean {name}? ")).unwrap_or_default();
    Mismatch::new(
        format!("unknown {} {}", field.name, quoted(word)),
        format!("{meant}the choices are {choices}"),
    )
}

/// What a field's kind is called in an error.
pub(super) fn expected(field: &Field) -> String {
    match field.kind {
        Kind::Path => "a path".into(),
        Kind::AutoOrPath => "auto or a path".into(),
        Kind::Whole => "a whole number".into(),
        Kind::Number => "a number".into(),
        Kind::Switch => "true or false".into(),
        Kind::Choice(names) => format!("one of {}", list(names)),
        Kind::Device => "cpu, cuda or cuda:N".into(),
        Kind::AutoOrCount => "auto or a whole number of at least 1".into(),
        Kind::AutoOrBytes => "auto or a size in memory, such as 8GiB".into(),
        Kind::Interval => "epoch, a number of steps or a time such as 30 minutes".into(),
        Kind::Freeze => "none, all or a number of blocks".into(),
        Kind::Pair => "two numbers".into(),
        Kind::Groups => "a list of groups".into(),
    }
}

/// The hint for a word in the place of a value: what is meant by one that other languages and programs have, and by a size
/// without its unit.
pub(super) fn instead_of(field: &Field, word: &str) -> String {
    let name = field.name;
    match word.to_ascii_lowercase().as_str() {
        "none" | "null" | "nil" | "off" | "no" | "false" if field.optional => {
            let note = field.note.map(|note| format!(" ({note})")).unwrap_or_default();
            format!("leave it out, or write {name} = \"\", to leave it unset{note}")
        }
        "none" | "null" | "nil" => match (field.kind, field.default) {
            (Kind::Choice(names), _) if names.contains(&"none") => format!("write {name} = \"none\""),
            (_, Preset::Text(text)) => format!("leave it out for the default, {text}"),
            _ => such_as(field),
        },
        "true" | "false" | "on" | "off" | "yes" | "no" => match field.kind {
            Kind::AutoOrPath => format!("write {name} = \"auto\", or a folder of your own"),
            Kind::Path => format!("give a path, such as {name} = \"folder/name\""),
            Kind::Choice(names) => format!("the choices are {}", list(names)),
            _ => such_as(field),
        },
        word if field.kind == Kind::AutoOrBytes && word.parse().is_ok_and(is_amount) => {
            // Nobody has a million gibibytes, or less than a mebibyte.
            let unit = if digits(word) && word.len() > 6 { "B" } else { "GiB" };
            format!("write the unit: {name} = \"{}{unit}\"", shorten(word))
        }
        _ => such_as(field),
    }
}

/// A number that can count something.
fn is_amount(number: f64) -> bool {
    number >= 1.0 && number.is_finite()
}

/// The hint where nothing better can be said: an example, the default where there is one.
fn such_as(field: &Field) -> String {
    let quote = |text: &str| match field.kind {
        Kind::Whole | Kind::Number | Kind::Switch | Kind::Pair => text.to_owned(),
        _ => format!("\"{text}\""),
    };
    match (field.default, field.kind) {
        (_, Kind::Groups) => {
            "for example [[optimization.groups]] with match = \"encoder.backbone*\" and lr_factor = 0.1 \
                              on the lines below it"
                .to_owned()
        }
        (Preset::Text(text), _) => format!("for example the default, {} = {}", field.name, quote(text)),
        (_, Kind::Whole) => format!("for example {} = 4", field.name),
        _ => format!("for example {} = {}", field.name, quote("folder/name")),
    }
}

fn list(names: &[&str]) -> String {
    names.join(", ")
}

/// `text` in quotes, on one line and not too long, so that no input can garble a message.
pub(super) fn quoted(text: &str) -> String {
    format!("{:?}", shorten(text))
}

/// `text` cut to what fits a message.
pub(super) fn shorten(text: &str) -> String {
    const MOST: usize = 80;
    match text.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// `text` with control characters escaped, for places where it stands without quotes.
pub(super) fn one_line(text: &str) -> String {
    text.chars().flat_map(|c| if c.is_control() { c.escape_default().collect() } else { vec![c] }).collect()
}
