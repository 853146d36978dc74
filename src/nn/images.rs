//! Images on the device: bytes until there, then normalised and cut into patches.

use candle_core::{DType, Device, Result, Tensor};

/// The mean of `ImageNet`'s red, green and blue, of values scaled to 0..1.
pub const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
/// Their standard deviation.
pub const STD: [f32; 3] = [0.229, 0.224, 0.225];

/// One stream's images of a batch, on the device that computes.
#[derive(Clone, Debug)]
pub enum Images {
    /// RGB bytes (N, H, W, 3), to be scaled to 0..1 and normalised with [`MEAN`] and [`STD`].
    Bytes(Tensor),
    /// Normalised f32 (N, 3, H, W).
    Normalised(Tensor),
}

impl Images {
    /// `count` square images of `size`, RGB bytes (N, H, W, 3), on `device`.
    pub fn of_bytes(bytes: &[u8], count: usize, size: usize, device: &Device) -> Result<Self> {
        Ok(Self::Bytes(Tensor::from_slice(bytes, (count, size, size, 3), device)?))
    }

    /// `count` square images of `size`, normalised (N, 3, H, W), on `device`.
    pub fn normalised(floats: &[f32], count: usize, size: usize, device: &Device) -> Result<Self> {
        Ok(Self::Normalised(Tensor::from_slice(floats, (count, 3, size, size), device)?))
    }

    /// How many images there are.
    pub fn count(&self) -> Result<usize> {
        match self {
            Self::Bytes(images) | Self::Normalised(images) => images.dim(0),
        }
    }

    /// Images `start..start + count`.
    pub fn narrow(&self, start: usize, count: usize) -> Result<Self> {
        Ok(match self {
            Self::Bytes(images) => Self::Bytes(images.narrow(0, start, count)?),
            Self::Normalised(images) => Self::Normalised(images.narrow(0, start, count)?),
        })
    }

    /// Normalised patches (N, (H/P)(W/P), 3 P P), each laid out as a convolution's weight: channel, row, column.
    pub fn patches(&self, patch: usize) -> Result<Tensor> {
        // N, H/P, P, W/P, P with the channels last or first, to N, H/P, W/P, C, P, P.
        let (split, order, n, h, w) = match self {
            Self::Bytes(images) => {
                let (n, h, w, _) = images.dims4()?;
                let x = normalise(images)?.reshape(&[n, h / patch, patch, w / patch, patch, 3])?;
                (x, [0, 1, 3, 5, 2, 4], n, h, w)
            }
            Self::Normalised(images) => {
                let (n, _, h, w) = images.dims4()?;
                let x = images.reshape(&[n, 3, h / patch, patch, w / patch, patch])?;
                (x, [0, 2, 4, 1, 3, 5], n, h, w)
            }
        };
        split.permute(order.as_slice())?.reshape((n, (h / patch) * (w / patch), 3 * patch * patch))
    }
}

/// (N, H, W, 3) bytes to normalised f32 of the same layout.
fn normalise(images: &Tensor) -> Result<Tensor> {
    let scale: Vec<f32> = STD.iter().map(|std| 1.0 / (255.0 * std)).collect();
    let shift: Vec<f32> = MEAN.iter().zip(STD).map(|(mean, std)| -mean / std).collect();
    images
        .to_dtype(DType::F32)?
        .broadcast_mul(&Tensor::new(scale, images.device())?)?
        .broadcast_add(&Tensor::new(shift, images.device())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two images of 4 x 6, bytes and their normalised floats, give the same patches, in the layout that a
    /// convolution of stride P sees.
    #[test]
    fn patches_are_a_convolutions_windows() -> Result<()> {
        let bytes: Vec<u8> = (0..2 * 4 * 6 * 3).map(|i| (i * 7 % 251) as u8).collect();
        let images = Images::Bytes(Tensor::from_vec(bytes.clone(), (2, 4, 6, 3), &Device::Cpu)?);
        let value = |n: usize, c: usize, y: usize, x: usize| {
            (f32::from(bytes[((n * 4 + y) * 6 + x) * 3 + c]) / 255.0 - MEAN[c]) / STD[c]
        };
        let mut floats = Vec::new();
        for (n, c, y, x) in itertools(2, 3, 4, 6) {
            floats.push(value(n, c, y, x));
        }
        let normalised = Images::Normalised(Tensor::from_vec(floats, (2, 3, 4, 6), &Device::Cpu)?);
        let (a, b) = (images.patches(2)?.to_vec3::<f32>()?, normalised.patches(2)?.to_vec3::<f32>()?);
        for (n, c, y, x) in itertools(2, 3, 4, 6) {
            let (token, place) = ((y / 2) * 3 + x / 2, c * 4 + (y % 2) * 2 + x % 2);
            assert!((a[n][token][place] - value(n, c, y, x)).abs() < 1e-6);
            assert!((b[n][token][place] - value(n, c, y, x)).abs() < 1e-6);
        }
        Ok(())
    }

    fn itertools(n: usize, c: usize, h: usize, w: usize) -> Vec<(usize, usize, usize, usize)> {
        let mut all = Vec::new();
        for i in 0..n * c * h * w {
            all.push((i / (c * h * w), i / (h * w) % c, i / w % h, i % w));
        }
        all
    }
}
