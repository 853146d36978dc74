//! Vectors for the members of a vocabulary, and sinusoids for their places.

use candle_core::{Device, Result, Tensor};

use super::{Builder, Init};

/// `nn.Embedding` with `padding_idx=0`: `weight` (V, D).
pub struct Embedding {
    weight: Tensor,
}

impl Embedding {
    /// N(0, 1 / D) at first, and zeros in row 0.
    pub fn new(b: &Builder, vocabulary: usize, width: usize) -> Result<Self> {
        let weight = b.parameter("weight", &[vocabulary, width], Init::Embedding { width })?;
        Ok(Self { weight })
    }

    /// (V, D).
    #[must_use]
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// [`Self::forward`] without a graph.
    pub fn look_up(&self, tokens: &Tensor) -> Result<Tensor> {
        let (batch, length) = tokens.dims2()?;
        self.weight.detach().index_select(&tokens.flatten_all()?, 0)?.reshape((batch, length, ()))
    }

    /// Adds the gradient (B, L, D) of the vectors of `tokens` (B, L) to that of the weight (V, D), row by row.
    pub fn add_gradient(tokens: &Tensor, of_vectors: &Tensor, to: &mut [f32]) -> Result<()> {
        let (tokens, width) = (tokens.flatten_all()?.to_vec1::<u32>()?, of_vectors.dim(2)?);
        let of_vectors = of_vectors.flatten_all()?.to_vec1::<f32>()?;
        for (token, gradient) in
            tokens.iter().zip(of_vectors.chunks_exact(width)).filter(|(token, _)| **token != 0)
        {
            let row = *token as usize * width;
            for (sum, gradient) in to.get_mut(row..row + width).into_iter().flatten().zip(gradient) {
                *sum += gradient;
            }
        }
        Ok(())
    }

    /// The vectors (B, L, D) of `tokens` (B, L), u32. Looking row 0 up gives it no gradient.
    pub fn forward(&self, tokens: &Tensor) -> Result<Tensor> {
        let (batch, length) = tokens.dims2()?;
        let flat = tokens.flatten_all()?;
        let padding = flat.eq(0_u32)?;
        let vectors = self.weight.index_select(&flat, 0)?;
        let padding = padding.unsqueeze(1)?.broadcast_as(vectors.shape())?;
        padding.where_cond(&vectors.detach(), &vectors)?.reshape((batch, length, ()))
    }
}

/// Sinusoids (`length`, `width`) for the places from `first` on: sin at even columns and cos at odd ones of
/// `place / 10000^(2i / width)` (Vaswani et al. 2017).
pub fn sinusoid(first: usize, length: usize, width: usize, device: &Device) -> Result<Tensor> {
    let values = (first..first + length).flat_map(|place| sinusoids(place, width));
    Tensor::from_iter(values, device)?.reshape((length, width))
}

/// The `width` sinusoids of one place.
#[must_use]
pub fn sinusoids(place: usize, width: usize) -> Vec<f32> {
    // In f32 throughout, as PyTorch users write it.
    let step = (-(10_000_f64.ln()) / width as f64) as f32;
    let value = |column: usize| {
        let rate = ((column / 2 * 2) as f32 * step).exp();
        let angle = place as f32 * rate;
        if column.is_multiple_of(2) { angle.sin() } else { angle.cos() }
    };
    (0..width).map(value).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Var;

    #[test]
    fn padding_is_looked_up_and_gets_no_gradient() -> Result<()> {
        let weight = Var::from_vec(vec![5_f32, 6.0, 1.0, 2.0, 3.0, 4.0], (3, 2), &Device::Cpu)?;
        let embedding = Embedding { weight: weight.as_tensor().clone() };
        let x = embedding.forward(&Tensor::new(&[[2_u32, 1, 0, 2]], &Device::Cpu)?)?;
        assert_eq!(x.to_vec3::<f32>()?, [[[3.0, 4.0], [1.0, 2.0], [5.0, 6.0], [3.0, 4.0]]]);
        let store = x.sum_all()?.backward()?;
        let gradient = store.get(&weight).expect("a gradient").to_vec2::<f32>()?;
        assert_eq!(gradient, [[0.0, 0.0], [1.0, 1.0], [2.0, 2.0]]);
        let mut sums = vec![0.0; 6];
        let tokens = Tensor::new(&[[2_u32, 1, 0, 2]], &Device::Cpu)?;
        Embedding::add_gradient(&tokens, &x.ones_like()?, &mut sums)?;
        assert_eq!(sums, [0.0, 0.0, 1.0, 1.0, 2.0, 2.0]);
        assert_eq!(embedding.look_up(&tokens)?.to_vec3::<f32>()?, x.to_vec3::<f32>()?);
        Ok(())
    }

    #[test]
    fn places_are_sines_and_cosines() -> Result<()> {
        let all = sinusoid(0, 4, 5, &Device::Cpu)?.to_vec2::<f32>()?;
        assert_eq!(all[0], [0.0, 1.0, 0.0, 1.0, 0.0]);
        let second = 10_000_f32.powf(-2.0 / 5.0);
        assert!(
            (all[3][2] - (3.0 * second).sin()).abs() < 1e-6
                && (all[3][3] - (3.0 * second).cos()).abs() < 1e-6
        );
        assert_eq!(sinusoid(2, 2, 5, &Device::Cpu)?.to_vec2::<f32>()?, all[2..]);
        Ok(())
    }
}
