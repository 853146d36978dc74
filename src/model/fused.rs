//! The image backbone on the CPU: the same network as [`VisionTransformer::forward`], by the fused blocks of
//! [`crate::nn::cpu::vit`], with a backward pass of its own instead of a graph.

use candle_core::{CpuStorage, Device, Error, Result, Storage, Tensor};

use super::vit::VisionTransformer;
use crate::nn::cpu::vit::{self, BlockDrops, Drops, Pixels, Tape, Weights, Workspace};
use crate::nn::parameters::{floats, with_slices};
use crate::nn::{Images, Pass};

impl VisionTransformer {
    /// N images to features (N, D), keeping no graph; with a `tape`, also what
    /// [`Self::fused_backward`] needs.
    pub fn fused_forward(&self, images: &Images, pass: &Pass, tape: Option<&mut Tape>) -> Result<Tensor> {
        let shape = self.shape();
        let (count, drops) = (images.count()?, self.drops(pass));
        let features = self.with_weights(|weights| {
            with_pixels(images, |pixels| {
                Ok(vit::forward(&shape, weights, pixels, count, drops.as_ref(), tape))
            })
        })?;
        Tensor::from_vec(features, (count, shape.width), &Device::Cpu)
    }

    /// Adds the loss's gradients for the backbone's parameters, in their order, to `gradients`; `d_features` (N, D) is
    /// the gradient of what [`Self::fused_forward`] gave for the same images and pass. The tape is used up; with
    /// `free`, its memory goes as the gradients', empty before, comes.
    #[allow(clippy::too_many_arguments)]
    pub fn fused_backward(
        &self,
        images: &Images,
        pass: &Pass,
        tape: &mut Tape,
        free: bool,
        workspace: &mut Workspace,
        d_features: &Tensor,
        gradients: &mut [Vec<f32>],
    ) -> Result<()> {
        let (shape, drops) = (self.shape(), self.drops(pass));
        let d_features = d_features.flatten_all()?.to_vec1::<f32>()?;
        self.with_weights(|weights| {
            with_pixels(images, |pixels| {
                vit::backward(
                    &shape,
                    weights,
                    pixels,
                    drops.as_ref(),
                    tape,
                    free,
                    workspace,
                    &d_features,
                    gradients,
                );
                Ok(())
            })
        })
    }

    fn drops(&self, pass: &Pass) -> Option<Drops> {
        let blocks = self.block_drops();
        let any = |drops: &BlockDrops| {
            drops.attention.is_active() || drops.mlp[0].is_active() || drops.path[0].is_active()
        };
        let active = self.position_dropout().is_active() || blocks.iter().any(any);
        let masks = pass.masks.filter(|_| active)?;
        Some(Drops { masks, first_row: pass.first_row, positions: self.position_dropout(), blocks })
    }

    fn with_weights<R>(&self, work: impl FnOnce(&Weights) -> Result<R>) -> Result<R> {
        let shape = self.shape();
        with_slices(&self.tensors(), |slices| match Weights::new(&shape, slices.to_vec()) {
            Some(weights) => work(&weights),
            None => Err(Error::Msg("the backbone's parameters are not those of its shape".into())),
        })?
    }
}

fn with_pixels<R>(images: &Images, work: impl FnOnce(Pixels) -> Result<R>) -> Result<R> {
    let (Images::Normalised(tensor) | Images::Bytes(tensor)) = images;
    let tensor = tensor.contiguous()?;
    let (storage, layout) = tensor.storage_and_layout();
    match (&*storage, layout.contiguous_offsets()) {
        (Storage::Cpu(CpuStorage::U8(data)), Some((start, end))) => work(Pixels::Bytes(&data[start..end])),
        _ => work(Pixels::Normalised(floats(&storage, layout)?)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::nn::Builder;
    use candle_core::{DType, Var};

    fn config(patch: usize, heads: usize, head: usize, depth: usize, drop: f64) -> config::Backbone {
        config::Backbone {
            patch_size: patch,
            embed_dim: heads * head,
            depth,
            num_heads: heads,
            mlp_ratio: 2.5,
            dropout: drop,
            attention_dropout: drop,
            stochastic_depth: drop,
        }
    }

    fn distance(a: &Tensor, b: &Tensor) -> Result<f32> {
        let norm = b.sqr()?.sum_all()?.to_scalar::<f32>()?.sqrt();
        Ok((a - b)?.sqr()?.sum_all()?.to_scalar::<f32>()?.sqrt() / norm.max(1e-12))
    }

    /// Features and every gradient against the same network as plain Candle operations.
    fn check(c: &config::Backbone, size: usize, images: usize, bytes: bool) -> Result<()> {
        let b = Builder::new(&Device::Cpu, 5);
        let net = VisionTransformer::new(&b, c, size)?;
        for (_, var) in b.parameters().iter() {
            // Biases and norms away from 0 and 1, so that each matters.
            var.set(&(var.as_tensor() + Tensor::randn(0f32, 0.1, var.dims(), &Device::Cpu)?)?)?;
        }
        let floats = Tensor::rand(0f32, 255.0, (images, size, size, 3), &Device::Cpu)?;
        let images = if bytes {
            Images::Bytes(floats.to_dtype(DType::U8)?)
        } else {
            Images::Normalised((floats.permute((0, 3, 1, 2))?.contiguous()? / 64.0)?)
        };
        let pass = Pass { first_row: 3, ..Pass::training(1, 2) };
        let pull = Tensor::randn(0f32, 1.0, (images.count()?, c.embed_dim), &Device::Cpu)?;

        let expected = net.forward(&images, &pass)?;
        let store = (&expected * &pull)?.sum_all()?.backward()?;

        let mut tape = Tape::default();
        let found = net.fused_forward(&images, &pass, Some(&mut tape))?;
        assert!(distance(&found, &expected)? < 1e-5, "features");
        let without = net.fused_forward(&images, &pass, None)?;
        assert_eq!(without.to_vec2::<f32>()?, found.to_vec2::<f32>()?);

        let vars: Vec<(String, Var)> =
            b.parameters().iter().map(|(name, var)| (name.to_owned(), var.clone())).collect();
        let mut gradients = vec![Vec::new(); vars.len()];
        let mut workspace = Workspace::default();
        net.fused_backward(&images, &pass, &mut tape, true, &mut workspace, &pull, &mut gradients)?;
        for ((name, var), found) in vars.iter().zip(gradients) {
            let mut found = Tensor::from_vec(found, var.dims(), &Device::Cpu)?;
            let mut expected = store.get(var).expect("a gradient").clone();
            if name.ends_with("in_proj_bias") {
                // The key third's gradient is zero but for rounding.
                let d = c.embed_dim;
                let without_key =
                    |t: &Tensor| Tensor::cat(&[&t.narrow(0, 0, d)?, &t.narrow(0, 2 * d, d)?], 0);
                (found, expected) = (without_key(&found)?, without_key(&expected)?);
            }
            let error = distance(&found, &expected)?;
            assert!(error < 3e-5, "{name}: {error}");
        }
        Ok(())
    }

    #[test]
    fn gradients_are_those_of_plain_operations() -> Result<()> {
        check(&config(4, 2, 16, 3, 0.0), 12, 5, true)?; // a last group of one image
        check(&config(8, 3, 5, 2, 0.0), 16, 2, false)?; // widths that no vector divides
        check(&config(8, 1, 7, 1, 0.0), 8, 1, true)?; // one patch, one image, one block
        check(&config(16, 4, 24, 2, 0.0), 32, 3, false)
    }

    #[test]
    fn dropout_falls_on_the_same_places() -> Result<()> {
        check(&config(4, 2, 16, 3, 0.3), 12, 5, true)?;
        check(&config(8, 1, 7, 1, 0.5), 8, 1, false)
    }
}
