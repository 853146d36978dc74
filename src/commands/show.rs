//! `slt-run config`: the resolved experiment, each value with its origin.

use super::{print, resolve};
use crate::Result;
use crate::config::Layers;
use crate::observe::reporter::Reporter;

pub fn show(layers: Layers, reporter: &Reporter) -> Result<()> {
    print(&resolve(layers, reporter)?.to_toml_with_origins())
}
