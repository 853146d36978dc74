//! All between the backbones and the decoder, forward and backward: projectors, fusion, positions, temporal encoder. With the
//! backbones, the same network as the encoder of [`crate::model::Network`].

use super::layers::{
    Context, FrameBuffers, FrameScratch, Fusion, JoinedColumns, NormSaved, Positional, Projector,
    ProjectorSaved, ProjectorScratch, TemporalLayer, TemporalSaved,
};
use super::memory::{Activation, Buffer, Matrix, Slice};
use super::parameters::Module;
use crate::config;
use crate::{Error, Result};

/// Each stream's features of a frame to one vector a frame, which knows of the clip's others.
pub struct FrameEncoder {
    projectors: Vec<Projector>,
    fusion: Fusion,
    positional: Positional,
    layers: Vec<TemporalLayer>,
}

/// What both passes need, and the result. R = B T.
#[derive(Default)]
pub struct FrameEncoderBuffers {
    projectors: Vec<ProjectorSaved>,
    fusion: NormSaved,
    layers: Vec<TemporalSaved>,
    scratch: FrameScratch,
    /// (R, all projectors' outputs): the projected streams side by side, or their gradient.
    joined: Buffer<Activation>,
    /// (R, D): the residual sum, at last the encoded frames; or its gradient.
    x: Buffer<f32>,
    /// (R, the widest row of all).
    y: Buffer<Activation>,
    /// The same for gradients.
    d_y: Buffer<Activation>,
    /// (R, D).
    branch: Buffer<Activation>,
}

impl FrameEncoder {
    /// The module's parts with these projectors, in the order in which they are joined; sizes that are in no shape are from
    /// `c`.
    ///
    /// # Errors
    /// Where it has none.
    pub fn new<'n>(
        module: &Module,
        projectors: impl Iterator<Item = &'n str>,
        c: &config::Model,
    ) -> Result<Self> {
        let projectors: Result<Vec<_>> = projectors.map(|name| Projector::new(&module.pp(name))).collect();
        let projectors = projectors?;
        let fusion = Fusion::new(&module.pp("fusion"))?;
        let layers = module.pp("temporal").pp("encoder").pp("layers");
        let new = |i| TemporalLayer::new(&layers.pp(i), c.temporal_nhead);
        let encoder = Self {
            positional: Positional::new(&module.pp("positional"), fusion.last())?,
            fusion,
            projectors,
            layers: (0..layers.children()).map(new).collect::<Result<_>>()?,
        };
        let joined: usize = encoder.projectors.iter().map(Projector::outputs).sum();
        if joined != encoder.fusion.inputs() {
            return Err(Error::run(format!("fusion takes {}, not {joined}", encoder.fusion.inputs())));
        }
        Ok(encoder)
    }

    /// D.
    #[must_use]
    pub fn width(&self) -> usize {
        self.fusion.last().outputs()
    }

    /// How wide each stream's features are.
    pub fn inputs(&self) -> impl Iterator<Item = usize> {
        self.projectors.iter().map(Projector::inputs)
    }

    /// The numbers of a head, in each layer.
    pub fn head_widths(&self) -> impl Iterator<Item = usize> {
        self.layers.iter().map(TemporalLayer::head_width)
    }

    /// The widest row that goes through a norm.
    fn widest(&self) -> usize {
        self.inputs().chain([self.fusion.inputs(), self.width()]).max().unwrap_or(0)
    }

    /// The widest hidden row of an MLP.
    fn hidden(&self) -> usize {
        let layers = self.layers.iter().map(TemporalLayer::hidden);
        self.projectors.iter().map(Projector::hidden).chain(layers).max().unwrap_or(0)
    }

    /// Each stream's columns of the joined ones.
    fn columns(&self, joined: &Matrix<Activation>) -> Result<Vec<JoinedColumns>> {
        let mut start = 0;
        let mut all = Vec::new();
        for projector in &self.projectors {
            let range = start..start + projector.outputs();
            start = range.end;
            let bias = self.fusion.bias().slice(range.clone())?;
            all.push(JoinedColumns { columns: joined.columns(range)?, bias });
        }
        Ok(all)
    }

    /// Each stream's features (B T, …), in the projectors' order, to the encoded frames (B T, D), which stay in `b`. The clips
    /// are `cx`'s samples; `valid` (B, T) says which frames are not padding.
    ///
    /// # Errors
    /// Where the GPU fails or its memory is full.
    pub fn forward(
        &self,
        cx: &Context,
        features: &[Matrix<f32>],
        valid: &Slice<u8>,
        b: &mut FrameEncoderBuffers,
    ) -> Result<Matrix<f32>> {
        let rows = features.first().map_or(0, Matrix::rows);
        if features.len() != self.projectors.len() {
            return Err(Error::run(format!("{} streams, not {}", features.len(), self.projectors.len())));
        }
        let (allocator, width) = (cx.ops.allocator(), self.width());
        let y = b.y.resize(allocator, rows, self.widest())?.flat()?;
        b.scratch.hidden.resize(allocator, rows, self.hidden())?;
        let branch = b.branch.resize(allocator, rows, width)?;
        let x = b.x.resize(allocator, rows, width)?;
        let joined = b.joined.resize(allocator, rows, self.fusion.inputs())?;

        b.projectors.resize_with(self.projectors.len(), ProjectorSaved::default);
        for (((projector, out), features), saved) in
            self.projectors.iter().zip(self.columns(&joined)?).zip(features).zip(&mut b.projectors)
        {
            let y = Matrix::new(&y, rows, projector.inputs())?;
            let scratch = ProjectorScratch { y, hidden: &mut b.scratch.hidden };
            projector.forward(cx, features, &out, scratch, saved)?;
        }
        self.fusion.forward(cx, &joined, &Matrix::new(&y, rows, joined.cols())?, &branch, &mut b.fusion)?;
        b.layers.resize_with(self.layers.len(), TemporalSaved::default);
        let inputs = b.layers.iter_mut().map(|saved| saved.input.resize(allocator, rows, width));
        let inputs = inputs.collect::<Result<Vec<_>>>()?;
        self.positional.forward(cx, &branch, &x, inputs.first())?;

        let valid = valid.clone();
        let buffers = FrameBuffers { y: Matrix::new(&y, rows, width)?, x, branch, valid };
        for (i, (layer, saved)) in self.layers.iter().zip(&mut b.layers).enumerate() {
            layer.forward(cx, &buffers, inputs.get(i + 1), &mut b.scratch, saved)?;
        }
        Ok(buffers.x)
    }

    /// Adds the parameters' gradients, from that of the encoded frames, which is where those were. That of
    /// each stream's features goes to `d_features`, where it is wanted.
    ///
    /// # Errors
    /// Where the GPU fails or its memory is full.
    pub fn backward(
        &self,
        cx: &Context,
        valid: &Slice<u8>,
        d_features: &[Option<Matrix<f32>>],
        b: &mut FrameEncoderBuffers,
    ) -> Result<()> {
        let (allocator, d_x) = (cx.ops.allocator(), b.x.matrix()?);
        let (rows, width) = (d_x.rows(), d_x.cols());
        let d_y = b.d_y.resize(allocator, rows, self.widest())?.flat()?;
        let (branch, valid) = (b.branch.matrix()?, valid.clone());
        let buffers = FrameBuffers { x: d_x, y: Matrix::new(&d_y, rows, width)?, branch, valid };
        for (i, (layer, saved)) in self.layers.iter().zip(&b.layers).enumerate().rev() {
            let above = (i + 1 < self.layers.len()).then_some(&buffers.y);
            layer.backward(cx, &buffers, above, &mut b.scratch, saved)?;
        }
        let FrameBuffers { x: d_x, y, branch: d_branch, .. } = &buffers;
        let above = (!self.layers.is_empty()).then_some(y);
        self.positional.backward(cx, d_x, above, d_branch)?;

        let joined = b.joined.matrix()?;
        let y = Matrix::new(&d_y, rows, joined.cols())?;
        self.fusion.backward(cx, d_branch, &y, &joined, &b.fusion)?;
        for (((projector, d_out), d_x), saved) in
            self.projectors.iter().zip(self.columns(&joined)?).zip(d_features).zip(&b.projectors)
        {
            let y = Matrix::new(&d_y, rows, projector.inputs())?;
            let scratch = ProjectorScratch { y, hidden: &mut b.scratch.hidden };
            projector.backward(cx, &d_out, d_x.as_ref(), scratch, saved)?;
        }
        Ok(())
    }
}

impl FrameEncoderBuffers {
    /// The encoded frames (B T, D) of the last forward pass, until their gradient takes their place.
    ///
    /// # Errors
    /// Where there was none.
    pub fn encoded(&self) -> Result<Matrix<f32>> {
        self.x.matrix()
    }
}
