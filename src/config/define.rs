//! The form of a definition: what is said about a field, once, and the macros that make everything else of it.

use std::path::PathBuf;

use serde_json::Value as Json;

/// Everything that is said about one field of the experiment.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// The section's path in the file, such as `model.backbone`.
    pub section: &'static str,
    /// The field's name in its section.
    pub name: &'static str,
    /// Section and name, such as `model.backbone.depth`.
    pub key: &'static str,
    /// What the field is, in a sentence or two of markdown.
    pub doc: &'static str,
    /// How its values are written.
    pub kind: Kind,
    /// Whether it may be unset.
    pub optional: bool,
    /// Its value where no layer gives one.
    pub default: Preset,
    /// A remark on the default, such as what an unset field means.
    pub note: Option<&'static str>,
    /// Which values can work, looking at this field alone.
    pub rule: Rule,
    /// What another value changes.
    pub role: Role,
}

/// What another value of a field changes: whether a run may go on with it, and whether a checkpoint has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Where the data are. What they are is known from their ids, texts and files.
    Data,
    /// The network: another function of the frames, even where the parameters' shapes are the same.
    Network,
    /// How the network is trained: the run becomes another experiment.
    Training,
    /// What computes it: the last digits at most.
    Computing,
    /// How the network is evaluated: no number of its training.
    Evaluation,
    /// No number: where the run goes, how it loads, when it saves. A checkpoint leaves it out.
    Place,
}

/// A section of the experiment file.
#[derive(Clone, Copy, Debug)]
pub struct Section {
    /// Its path in the file, such as `model.backbone`.
    pub name: &'static str,
    /// What it holds, in a sentence.
    pub doc: &'static str,
}

/// A field's value where no layer gives one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preset {
    /// There is none: a layer must give it.
    Required,
    /// The field is unset.
    Unset,
    /// This value, as one would write it on the command line.
    Text(&'static str),
}

/// How a field's values are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A path, as given; relative ones are relative to the working directory.
    Path,
    /// `auto` or a path.
    AutoOrPath,
    /// A whole number of at least 0 that TOML can hold (at most 2^63 - 1).
    Whole,
    /// A 64-bit floating point number; whole numbers are taken too.
    Number,
    /// `true` or `false`.
    Switch,
    /// One of some words, in any case.
    Choice(&'static [&'static str]),
    /// `cpu`, `cuda` or `cuda:N`.
    Device,
    /// `auto` or a whole number of at least 1.
    AutoOrCount,
    /// `auto` or a size in memory, such as `8GiB`.
    AutoOrBytes,
    /// `epoch`, a number of steps or a time, such as `30 minutes`.
    Interval,
    /// `none`, `all` or a number of blocks.
    Freeze,
    /// Two numbers, such as `[0.9, 0.999]`.
    Pair,
    /// A list of groups of parameters: an array of tables.
    Groups,
}

impl Kind {
    /// Whether its values name a file or folder.
    #[must_use]
    pub fn is_path(self) -> bool {
        matches!(self, Self::Path | Self::AutoOrPath)
    }
}

/// Which values of a field can work, looking at the field alone. Numbers must be finite under every rule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rule {
    /// Whatever the kind allows.
    Any,
    /// A whole number of at least 1.
    Positive,
    /// A whole number of at most this.
    AtMost(u64),
    /// A whole number from 1 to this.
    UpTo(u64),
    /// A number of at least 0.
    NotNegative,
    /// A number above 0.
    AboveZero,
    /// A number from 0 to 1.
    Share,
    /// A number from 0 to 1, 1 left out.
    BelowOne,
}

/// A type that a field can have.
pub trait FieldType {
    /// How its values are written.
    const KIND: Kind;
    /// Whether it has an unset state.
    const OPTIONAL: bool = false;
    /// The value as the snapshots hold it; `null` where it is unset.
    fn json(&self) -> Json;
}

impl FieldType for PathBuf {
    const KIND: Kind = Kind::Path;
    fn json(&self) -> Json {
        self.to_string_lossy().into()
    }
}

impl FieldType for usize {
    const KIND: Kind = Kind::Whole;
    fn json(&self) -> Json {
        (*self).into()
    }
}

impl FieldType for u64 {
    const KIND: Kind = Kind::Whole;
    fn json(&self) -> Json {
        (*self).into()
    }
}

impl FieldType for bool {
    const KIND: Kind = Kind::Switch;
    fn json(&self) -> Json {
        (*self).into()
    }
}

impl FieldType for f64 {
    const KIND: Kind = Kind::Number;
    fn json(&self) -> Json {
        (*self).into()
    }
}

impl FieldType for [f64; 2] {
    const KIND: Kind = Kind::Pair;
    fn json(&self) -> Json {
        self.to_vec().into()
    }
}

impl<T: FieldType> FieldType for Option<T> {
    const KIND: Kind = T::KIND;
    const OPTIONAL: bool = true;
    fn json(&self) -> Json {
        self.as_ref().map_or(Json::Null, FieldType::json)
    }
}

impl Field {
    /// The field's environment variable, such as `SLT_MODEL__BACKBONE__DEPTH`.
    #[must_use]
    pub fn env(&self) -> String {
        format!("SLT_{}", self.key.replace('.', "__").to_ascii_uppercase())
    }

    /// The field's own flag, such as `--hand-left-dir`. Fields of nested sections and of the tokenizer have none, because
    /// their names are others' too: `--set` reaches them.
    #[must_use]
    pub fn flag(&self) -> Option<String> {
        let has_one = !self.section.contains('.') && self.section != "tokenizer";
        has_one.then(|| format!("--{}", self.name.replace('_', "-")))
    }

    /// Whether the numbers of a run depend on it; the others say where it runs, how it loads and when it saves.
    #[must_use]
    pub fn decides_numbers(&self) -> bool {
        self.role != Role::Place
    }

    /// What a person writes for it, with the rule that it must keep: `whole number, at least 1`.
    #[must_use]
    pub fn type_name(&self) -> String {
        let kind = match self.kind {
            Kind::Path => "path".to_owned(),
            Kind::AutoOrPath => "`auto` or a path".to_owned(),
            Kind::Whole => "whole number".to_owned(),
            Kind::Number => "number".to_owned(),
            Kind::Switch => "`true`, `false`".to_owned(),
            Kind::Choice(names) => names.iter().map(|n| format!("`{n}`")).collect::<Vec<_>>().join(", "),
            Kind::Device => "`cpu`, `cuda`, `cuda:N`".to_owned(),
            Kind::AutoOrCount => "`auto` or a whole number, at least 1".to_owned(),
            Kind::AutoOrBytes => "`auto` or a size such as `8GiB`".to_owned(),
            Kind::Interval => "`epoch`, steps such as `500` or a time such as `30 minutes`".to_owned(),
            Kind::Freeze => "`none`, `all` or a number of blocks".to_owned(),
            Kind::Pair => "two numbers".to_owned(),
            Kind::Groups => "tables `[[optimization.groups]]`".to_owned(),
        };
        match self.rule.text() {
            Some(rule) => format!("{kind}, {rule}"),
            None => kind,
        }
    }

    /// The default as the reference shows it, in markdown: a value, `required`, or what unset means.
    #[must_use]
    pub fn default_text(&self) -> String {
        let text = match self.default {
            Preset::Required => "required".to_owned(),
            Preset::Unset => "unset".to_owned(),
            Preset::Text(text) => format!("`{text}`"),
        };
        match self.note {
            Some(note) => format!("{text}: {note}"),
            None => text,
        }
    }
}

impl Rule {
    /// The rule in words that follow "must be", or `None` where there is none.
    #[must_use]
    pub fn text(self) -> Option<String> {
        match self {
            Self::Any => None,
            Self::Positive => Some("at least 1".into()),
            Self::AtMost(most) => Some(format!("at most {most}")),
            Self::UpTo(most) => Some(format!("from 1 to {most}")),
            Self::NotNegative => Some("at least 0".into()),
            Self::AboveZero => Some("above 0".into()),
            Self::Share => Some("from 0 to 1".into()),
            Self::BelowOne => Some("at least 0 and below 1".into()),
        }
    }
}

/// A field's default value, from the text of its definition.
#[expect(clippy::expect_used, reason = "the texts are constants, and a test reads each")]
pub(super) fn preset<T: serde::de::DeserializeOwned>(text: &str) -> T {
    let value = serde_json::from_str(text).unwrap_or_else(|_| Json::from(text));
    serde_json::from_value(value).expect("a default is a value of its field")
}

/// Defines the sections: for each a struct, and for all of them [`FIELDS`](super::FIELDS) and
/// [`SECTIONS`](super::SECTIONS), from which the layers, the flags, the snapshots and the reference come.
///
/// A field reads `name: type = default => rule; role`, with its documentation above. The default is `required`, `unset` or a
/// value as one would write it on the command line, a remark on it in brackets; the rule may be left out, and so may the
/// [`Role`] behind it, `; Network`, where it is `Training`.
macro_rules! sections {
    ($(
        $(#[doc = $about:literal])+
        $Section:ident in $section:literal $(with $($nested:ident: $Nested:ident),+)? {
            $(
                $(#[doc = $doc:literal])+
                $name:ident: $type:ty = $default:tt $(($note:literal))? $(=> $rule:expr)? $(; $role:ident)?,
            )+
        }
    )+) => {
        $(
            $(#[doc = $about])+
            #[derive(Clone, Debug, PartialEq, serde::Deserialize)]
            #[serde(deny_unknown_fields)]
            pub struct $Section {
                $($(#[doc = $doc])+ pub $name: $type,)+
                $($(#[doc = concat!("The section `[", $section, ".", stringify!($nested), "]`.")] pub $nested: $Nested,)+)?
            }

            /// The documented defaults; paths that an experiment has to name are empty.
            impl Default for $Section {
                fn default() -> Self {
                    Self {
                        $($name: sections!(@value $default),)+
                        $($($nested: $Nested::default(),)+)?
                    }
                }
            }

            impl $Section {
                /// The section's values by name, in the order of their definition.
                pub(super) fn json(&self) -> serde_json::Value {
                    let mut values = serde_json::Map::new();
                    $(values.insert(stringify!($name).to_owned(), FieldType::json(&self.$name));)+
                    $($(values.insert(stringify!($nested).to_owned(), self.$nested.json());)+)?
                    serde_json::Value::Object(values)
                }
            }
        )+

        /// Every section of the experiment file, in its order.
        pub static SECTIONS: &[Section] =
            &[$(Section { name: $section, doc: concat!($($about),+).trim_ascii_start() }),+];

        /// Every field of the experiment, in the order of the file.
        pub static FIELDS: &[Field] = &[$($(Field {
            section: $section,
            name: stringify!($name),
            key: concat!($section, ".", stringify!($name)),
            doc: concat!($($doc),+).trim_ascii_start(),
            kind: <$type as FieldType>::KIND,
            optional: <$type as FieldType>::OPTIONAL,
            default: sections!(@default $default),
            note: sections!(@note $($note)?),
            rule: sections!(@rule $($rule)?),
            role: sections!(@role $($role)?),
        },)+)+];
    };
    (@value required) => { Default::default() };
    (@value unset) => { Default::default() };
    (@value $value:tt) => { super::define::preset(stringify!($value)) };
    (@default required) => { Preset::Required };
    (@default unset) => { Preset::Unset };
    (@default $value:tt) => { Preset::Text(stringify!($value)) };
    (@note) => { None };
    (@note $note:literal) => { Some($note) };
    (@rule) => { Rule::Any };
    (@rule $rule:expr) => { $rule };
    (@role) => { Role::Training };
    (@role $role:ident) => { Role::$role };
}

/// Defines a field type of which the values are words.
macro_rules! choices {
    ($(#[doc = $about:literal])+ $Choice:ident { $($(#[doc = $doc:literal])+ $Value:ident = $word:literal,)+ }) => {
        $(#[doc = $about])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Deserialize)]
        pub enum $Choice {
            $($(#[doc = $doc])+ #[serde(rename = $word)] $Value,)+
        }

        impl std::fmt::Display for $Choice {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(match self { $(Self::$Value => $word,)+ })
            }
        }

        impl FieldType for $Choice {
            const KIND: Kind = Kind::Choice(&[$($word),+]);
            fn json(&self) -> serde_json::Value {
                self.to_string().into()
            }
        }
    };
}

pub(super) use {choices, sections};
