//! What to say when a loss or a gradient is not a finite number.

use crate::error::{Error, ErrorKind, Problem};
use crate::model::ModuleOutput;

/// How many modules, and how many clips, the message names.
const NAMED: usize = 8;

/// Where numbers went wrong.
#[derive(Clone, Debug)]
pub struct Nonfinite {
    /// What is not a finite number, and which it is: `the loss is NaN`.
    pub what: String,
    /// The epoch, from 1.
    pub epoch: usize,
    /// The training step of the whole run, from 1.
    pub step: u64,
    /// The learning rate.
    pub lr: f64,
    /// The ids of the clips in the batch.
    pub clips: Vec<String>,
    /// How many steps in a row before it were left out.
    pub skipped: usize,
    /// Whether it was found in validation, where nothing is updated or left out.
    pub in_validation: bool,
    /// How large the modules' outputs are for the batch, in the order of the forward pass, or why that is not known.
    pub activations: Result<Vec<ModuleOutput>, String>,
}

impl Nonfinite {
    /// One line, for a step that is left out.
    #[must_use]
    pub fn line(&self) -> String {
        format!("{} at step {} (epoch {})", self.what, self.step, self.epoch)
    }

    /// Everything, for a run that stops.
    #[must_use]
    pub fn into_error(self) -> Error {
        let mut problem = Problem::new(self.line());
        if self.skipped > 0 {
            problem = problem.cause(format!("{} steps before it were left out already", self.skipped));
        }
        problem = problem
            .cause(format!("the clips of the batch: {}", some(&self.clips)))
            .cause(format!("learning rate: {:e}", self.lr))
            .cause(match &self.activations {
                Ok(activations) => {
                    format!("the largest activations, without dropout: {}", worst(activations))
                }
                Err(why) => format!("the activations cannot be computed: {why}"),
            });
        let hint = if self.in_validation {
            "look at these clips; where there is nothing wrong with them, lower optimization.lr or set \
             optimization.grad_clip"
        } else {
            "lower optimization.lr, set optimization.grad_clip, or look at these clips; \
             optimization.skip_nonfinite_steps leaves single steps out. The update was not made"
        };
        Error::new(ErrorKind::Numbers, problem.hint(hint))
    }
}

fn some(clips: &[String]) -> String {
    let mut text = clips.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
    if clips.len() > NAMED {
        text.extend([" and ", &(clips.len() - NAMED).to_string(), " more"]);
    }
    text
}

/// The modules with the largest outputs; those that are not finite first, in the order of the forward pass, because the
/// first of them is the cause.
fn worst(activations: &[ModuleOutput]) -> String {
    let mut order: Vec<&ModuleOutput> = activations.iter().collect();
    let rank = |a: &ModuleOutput| if a.largest.is_finite() { a.largest } else { f32::INFINITY };
    order.sort_by(|a, b| rank(b).total_cmp(&rank(a)));
    let named = order.iter().take(NAMED).map(|a| format!("\n{} {:e}", a.module, a.largest));
    named.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_has_all_that_a_person_needs() {
        let activation = |module: &str, largest| ModuleOutput { module: module.into(), largest };
        let error = Nonfinite {
            what: "the loss is NaN".into(),
            epoch: 2,
            step: 37,
            lr: 0.5,
            clips: vec!["a".into(), "b".into()],
            skipped: 0,
            in_validation: false,
            activations: Ok(vec![
                activation("small", 1.0),
                activation("first", f32::INFINITY),
                activation("large", 1e30),
                activation("second", f32::NAN),
            ]),
        }
        .into_error();
        assert_eq!(error.exit_code(), 4);
        let text = error.to_string();
        for part in
            ["the loss is NaN at step 37 (epoch 2)", "batch: a, b\n", "learning rate: 5e-1", "grad_clip"]
        {
            assert!(text.contains(part), "{part} in {text}");
        }
        let places: Vec<_> = ["first inf", "second NaN", "large 1e30", "small 1e0"]
            .iter()
            .map(|p| text.find(p).unwrap())
            .collect();
        assert!(places.is_sorted(), "{text}");
    }
}
