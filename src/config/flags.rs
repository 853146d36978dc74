//! What to say about a flag that a command does not have.

use super::define::Field;
use super::suggest::{meant, nearest, normal, not_there, switch};
use super::value;

/// What to say about an unknown flag, such as `--clip-grad`, of a command that has the flags `own`, without their dashes.
/// `value` is what follows it on the command line, and `of_fields` whether the command takes the fields' flags.
#[must_use]
pub fn for_flag(flag: &str, value: Option<&str>, own: &[&str], of_fields: bool) -> String {
    let name = normal(flag.trim_start_matches('-'));
    let did_you_mean = |flag: &str| format!("did you mean '{flag}'?");
    let is_own = own.iter().find(|own| normal(own) == name);
    if let Some(own) = is_own {
        return did_you_mean(&format!("--{own}"));
    }
    if of_fields {
        if let Some(values) = switch(&name) {
            let flags: Vec<_> = values.map(|(field, value)| as_flag(field, Some(value))).collect();
            return did_you_mean(&flags.join(" "));
        }
        // What the command has itself is nearer than a field that only looks like it.
        let exact =
            meant(&name).filter(|field| nearest(&name, own.iter().copied()).is_none() || field.name == name);
        if let Some(field) = exact {
            let value = value.filter(|value| value::from_text(field, value).is_ok());
            return did_you_mean(&as_flag(field, value.filter(|_| field.flag().is_none())));
        }
    }
    if let Some(own) = nearest(&name, own.iter().copied()) {
        return did_you_mean(&format!("--{own}"));
    }
    let none = not_there(&name).unwrap_or_else(|| "there is none, and no field is like it".to_owned());
    format!("{none}; --help lists the flags")
}

/// How to give a field a value on the command line.
fn as_flag(field: &Field, value: Option<&str>) -> String {
    match (field.flag(), value) {
        (Some(flag), Some(value)) => format!("{flag} {value}"),
        (Some(flag), None) => flag,
        (None, value) => format!("--set {}={}", field.key, value.unwrap_or("VALUE")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_answered_as_fields_are() {
        let own = ["lr", "grad-clip", "epochs", "init-from", "quiet", "set"];
        let all = |flag: &str, value| for_flag(flag, value, &own, true);
        for (flag, meant) in [
            ("--clip-grad", "--grad-clip"),
            ("--max_grad_norm", "--grad-clip"),
            ("--init_from", "--init-from"),
            ("--quit", "--quiet"),
            ("--epoch", "--epochs"),
            ("--backbone-depth", "--set model.backbone.depth=VALUE"),
            ("--model.backbone.depth", "--set model.backbone.depth=VALUE"),
            ("--drop-path", "--set model.backbone.stochastic_depth=VALUE"),
            ("--optimization.lr", "--lr"),
            ("--fp16", "--precision amp --amp-dtype float16"),
            ("--no-cuda", "--device cpu"),
            ("--batch", "--batch-size"),
        ] {
            assert_eq!(all(flag, None), format!("did you mean '{meant}'?"), "{flag}");
        }
        assert_eq!(all("--depth", Some("6")), "did you mean '--set model.backbone.depth=6'?");
        assert_eq!(all("--depth", Some("a.toml")), "did you mean '--set model.backbone.depth=VALUE'?");
        assert_eq!(all("--patience", Some("3")), "did you mean '--early-stopping'?");
        assert_eq!(all("--ema", None), "there is no average of the weights; --help lists the flags");
        assert!(all("--frobnicate", None).starts_with("there is none, and no field is like it"));
        assert!(for_flag("--lr", None, &["json"], false).starts_with("there is none"));
    }
}
