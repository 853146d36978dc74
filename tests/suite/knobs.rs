//! What trains, how fast and for how long: groups, frozen parts, warm-up, plateau, early stopping, kept checkpoints.

use std::collections::BTreeMap;

use slt_run::checkpoint::{Checkpoint, Value};

use crate::support::World;

/// Every parameter's numbers, by name.
fn model(checkpoint: Checkpoint<'static>) -> BTreeMap<String, Vec<f32>> {
    checkpoint.model.into_iter().map(|(name, tensor)| (name, tensor.to_f32().unwrap())).collect()
}

fn lines(world: &World, folder: &str) -> Vec<serde_json::Value> {
    let text = world.read(&format!("{folder}/metrics.jsonl"));
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn param_groups(checkpoint: &Checkpoint<'static>) -> Vec<Value<'static>> {
    let Some(Value::List(groups)) = checkpoint.optimizer_state.get("param_groups") else {
        panic!("no groups")
    };
    groups.clone()
}

/// The numbers under which a state is kept.
fn states(checkpoint: &Checkpoint<'static>) -> Vec<i64> {
    let Some(Value::Dict(states)) = checkpoint.optimizer_state.get("state") else { panic!("no state") };
    states.iter().filter_map(|(number, _)| number.as_int()).collect()
}

const FROZEN: &str = "--set=optimization.groups=[{ match = \"*pose_projector*\", freeze = true }, \
                      { match = \"decoder.*\", lr_factor = 10, weight_decay = 0 }]";

#[test]
fn what_is_frozen_does_not_move_by_a_bit_and_has_no_state() {
    for (optimizer, momentum) in [("adamw", "0"), ("adam", "0"), ("sgd", "0.9")] {
        let world = World::new();
        let optimizer = format!("--optimizer={optimizer}");
        let knobs = [
            "tiny.toml",
            &optimizer,
            "--momentum",
            momentum,
            "--weight-decay=0.1",
            "--set=model.backbone.depth=2",
            "--set=model.backbone.freeze=1",
            FROZEN,
        ];
        // A rate of 0 leaves the initial weights.
        world.ok(&[&knobs, &["--epochs=1", "--lr=0", "--work-dir=start"][..]].concat());
        world.ok(&knobs);
        let last = world.checkpoint("run/last.pt");
        let (groups, states) = (param_groups(&last), states(&last));
        let of_group = |group: &Value| match group.get("params") {
            Some(Value::List(numbers)) => numbers.len(),
            _ => panic!("no params"),
        };
        let (before, after) = (model(world.checkpoint("start/last.pt")), model(last));
        let is_frozen = |name: &str| {
            let (_, part) = name.split_once("backbone").unwrap_or_default();
            let (_, part) = part.split_once('.').unwrap_or_default();
            let first = ["cls_token", "pos_embed", "patch_embed", "blocks.0."];
            name.contains("pose_projector") || first.iter().any(|frozen| part.starts_with(frozen))
        };
        let frozen = after.keys().filter(|name| is_frozen(name)).count();
        for (name, values) in &after {
            assert_eq!(*values == before[name], is_frozen(name), "{optimizer}: {name}");
        }
        assert_eq!(groups.iter().map(of_group).sum::<usize>(), after.len());
        assert_eq!(groups.len(), 3);
        assert_eq!(states.len(), after.len() - frozen);
        let rate = |at: usize| groups[at].get("lr").and_then(Value::as_number).unwrap();
        assert!((rate(2) / rate(0) - 10.0).abs() < 1e-9);
    }
}

#[test]
fn the_rate_warms_up_falls_on_a_plateau_and_the_run_ends_early() {
    let world = World::new();
    // No improvement is large enough, so that each epoch is a plateau; and none is better by far.
    let args = [
        "tiny.toml",
        "--epochs=30",
        "--warmup-steps=4",
        "--scheduler=plateau",
        "--scheduler-patience=0",
        "--scheduler-threshold=0.9",
        "--scheduler-gamma=0.5",
        "--lr=0.05",
        "--min-lr=0.01",
        "--early-stopping=3",
        "--keep-checkpoints=2",
    ];
    let said = world.ok(&args);
    let lines = lines(&world, "run");
    let rates: Vec<f64> = lines.iter().map(|line| line["lr"].as_f64().unwrap()).collect();
    // Two steps an epoch: the second one's rate is the epoch's.
    assert!((rates[0] - 0.0125).abs() < 1e-12 && (rates[1] - 0.0375).abs() < 1e-12, "{rates:?}");
    assert!((rates[2] - 0.05).abs() < 1e-12 && (rates[3] - 0.025).abs() < 1e-12, "{rates:?}");
    assert!(rates.iter().skip(3).all(|rate| (0.01..0.026).contains(rate)), "{rates:?}");
    let losses: Vec<f64> = lines.iter().map(|line| line["val_loss"].as_f64().unwrap()).collect();
    let best = (0..losses.len()).min_by(|&a, &b| losses[a].total_cmp(&losses[b])).unwrap();
    assert!(lines.len() < 30 && lines.len() == best + 1 + 3, "{losses:?}");
    said.says(&["stopped early: 3 epochs without a better val_loss"]);
    let kept = world.files().into_keys().filter(|name| name.contains("epoch_")).collect::<Vec<_>>();
    let last = lines.len();
    assert_eq!(kept, [format!("run/epoch_{:04}.pt", last - 1), format!("run/epoch_{last:04}.pt")]);
    assert!(world.read_bytes(&kept[1]) == world.read_bytes("run/last.pt"));

    // It is over for a resume, too, and goes on where it may be patient.
    let before = world.files();
    world.ok(&[&args[..], &["--resume"]].concat()).says(&["stopped early", "nothing to go on with"]);
    assert!(world.files() == before);
    let patient = [&args[..], &["--resume", "--early-stopping=4"]].concat();
    world.ok(&patient).says(&["stopped early: 4 epochs"]);
    assert!(self::lines(&world, "run").len() > last);
}

#[test]
fn what_thaws_at_a_resume_begins_with_a_new_optimizer() {
    let world = World::new();
    world.ok(&["tiny.toml", "--set=model.backbone.freeze=all", "--epochs=1"]);
    let thawed = ["tiny.toml", "--epochs=2", "--resume"];
    let refused = world.run(&thawed);
    assert_eq!(refused.code, 2, "{}", refused.stderr);
    refused.says(&["model.backbone.freeze was \"all\" in run/last.pt and is \"none\"", "--allow-changes"]);
    world.ok(&[&thawed[..], &["--allow-changes"]].concat()).says(&["the optimizer begins anew"]);
    let last = world.checkpoint("run/last.pt");
    assert_eq!(states(&last).len(), last.model.len());
}

#[test]
fn groups_that_cannot_work_are_refused_by_a_run_and_by_check() {
    let world = World::new();
    for (groups, says) in [
        ("[{ match = \"nothing*\", lr = 1 }]", "group 1 (nothing*) matches no parameter"),
        (
            "[{ match = \"*\", lr = 1 }, { match = \"decoder.*\", lr = 1 }]",
            "group 2 (decoder.*) is left without",
        ),
        ("[{ match = \"*\", freeze = true }]", "every parameter is frozen"),
    ] {
        let setting = format!("optimization.groups={groups}");
        for command in [&["tiny.toml", "--set", &setting][..], &["check", "tiny.toml", "--set", &setting]] {
            let outcome = world.run(command);
            assert_eq!(outcome.code, 2, "{}", outcome.stderr);
            outcome.says(&[says, "hint: "]);
            assert!(!world.path("run").exists());
        }
    }
    let check = world.ok(&["check", "tiny.toml", FROZEN, "--set=model.backbone.freeze=all"]);
    for part in ["2: decoder.*", "0.01", "the rest", "1: *pose_projector*, frozen: encoder.pose_projector.*"]
    {
        assert!(check.stdout.contains(part), "{part}\n{}", check.stdout);
    }
}
