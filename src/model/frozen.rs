//! What of this network an experiment has frozen.

use std::collections::HashSet;

use crate::config::Experiment;
use crate::config::streams::{Stream, image_streams};
use crate::nn::{Blueprint, Frozen, Scope};

/// The parameters that `model.backbone.freeze` and the groups with `freeze` name, among those of `blueprint`; and of the
/// backbones the embedding and the blocks of which nothing is left to train.
#[must_use]
pub fn frozen(c: &Experiment, blueprint: &Blueprint) -> Frozen {
    let names = blueprint.parameters().iter().map(|parameter| parameter.name.as_str());
    let parameters: HashSet<String> = names.filter(|name| is_frozen(c, name)).map(str::to_owned).collect();
    let encoder = blueprint.root().pp("encoder");
    let backbones = image_streams().filter_map(Stream::backbone).map(|name| encoder.pp(name));
    let modules = backbones.flat_map(|backbone| frozen_modules(blueprint, &backbone, &parameters)).collect();
    Frozen::new(parameters, modules)
}

fn is_frozen(c: &Experiment, name: &str) -> bool {
    let of_backbone =
        |stream: &Stream| name.strip_prefix("encoder.")?.strip_prefix(stream.backbone()?)?.strip_prefix('.');
    if image_streams().find_map(of_backbone).is_some_and(|name| c.model.backbone.freeze.covers(name)) {
        return true;
    }
    let group = c.optimization.groups.iter().find(|group| group.pattern.matches(name));
    group.is_some_and(|group| group.freeze)
}

/// Of a backbone: the dropout behind its embedding, and its blocks.
fn frozen_modules(blueprint: &Blueprint, backbone: &Scope, frozen: &HashSet<String>) -> Vec<String> {
    let is_frozen =
        |at: usize| blueprint.parameters().get(at).is_none_or(|parameter| frozen.contains(&parameter.name));
    let blocks = backbone.pp("blocks");
    let blocks: Vec<Scope> = (0..blocks.children()).map(|i| blocks.pp(i)).collect();
    let own = ["cls_token", "pos_embed"].map(|name| backbone.parameter(name).ok().map(|id| id.position));
    let patch_embed = backbone.pp("patch_embed");
    let mut modules = Vec::new();
    if own.into_iter().flatten().chain(patch_embed.parameters()).all(is_frozen) {
        modules.push(backbone.pp("pos_drop").path().to_owned());
    }
    let whole = blocks.iter().filter(|block| block.parameters().all(is_frozen));
    modules.extend(whole.map(|block| block.path().to_owned()));
    modules
}
