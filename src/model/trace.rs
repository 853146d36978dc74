//! Looking at what the modules give on the way: for the message that tells where numbers went wrong.

use candle_core::{Result, Tensor};

/// Is shown each module's output under the module's name in PyTorch.
pub(super) type Trace<'t> = &'t mut dyn FnMut(&str, &Tensor) -> Result<()>;

/// For a forward pass that nobody looks at.
#[allow(clippy::unnecessary_wraps, reason = "it stands where one that looks may fail")]
pub(super) fn unseen(_: &str, _: &Tensor) -> Result<()> {
    Ok(())
}

/// How large a module's output is.
#[derive(Clone, Debug, PartialEq)]
pub struct ModuleOutput {
    /// The module's name, such as `encoder.face_backbone.blocks.3`.
    pub module: String,
    /// The largest magnitude in its output; NaN where any of it is NaN.
    pub largest: f32,
}

/// Collects the modules' outputs, the parts of a batch one after another.
#[derive(Default)]
pub(super) struct ModuleOutputs(Vec<ModuleOutput>);

impl ModuleOutputs {
    /// Notes what `module` gave.
    pub fn see(&mut self, module: &str, output: &Tensor) -> Result<()> {
        let largest = largest(&output.flatten_all()?.to_vec1::<f32>()?);
        match self.0.iter_mut().find(|known| known.module == module) {
            Some(known) => known.largest = larger(known.largest, largest),
            None => self.0.push(ModuleOutput { module: module.to_owned(), largest }),
        }
        Ok(())
    }

    /// All of them, in the order in which they came.
    pub fn into_inner(self) -> Vec<ModuleOutput> {
        self.0
    }
}

fn largest(values: &[f32]) -> f32 {
    values.iter().fold(0.0, |largest, value| larger(largest, value.abs()))
}

/// `f32::max` would forget a NaN.
fn larger(a: f32, b: f32) -> f32 {
    if a.is_nan() || b.is_nan() { f32::NAN } else { a.max(b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn parts_of_a_batch_are_one_output() -> Result<()> {
        let mut all = ModuleOutputs::default();
        let tensor = |values: &[f32]| Tensor::new(values, &Device::Cpu);
        all.see("a", &tensor(&[1.0, -3.0])?)?;
        all.see("b", &tensor(&[f32::NEG_INFINITY])?)?;
        all.see("a", &tensor(&[2.0])?)?;
        let found = all.into_inner();
        assert_eq!((found[0].largest, found[1].largest), (3.0, f32::INFINITY));
        let mut all = ModuleOutputs::default();
        all.see("a", &tensor(&[f32::NAN, 1.0])?)?;
        all.see("a", &tensor(&[2.0])?)?;
        assert!(all.into_inner()[0].largest.is_nan());
        Ok(())
    }
}
