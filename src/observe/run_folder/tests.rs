//! Claiming a run's folder, refusing one, moving a run aside, and what is kept of a run's origin.

use super::*;

/// 2023-11-14 22:13:20 UTC.
fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn claimed(work_dir: &Path) -> RunFolder {
    RunFolder::claim(work_dir, false, now()).unwrap().0
}

/// A folder with a run, TensorBoard's files and a person's notes in it.
fn old_run(work_dir: &Path) {
    fs::create_dir_all(work_dir.join("tb")).unwrap();
    fs::create_dir_all(work_dir.join("plots")).unwrap();
    for name in ["last.pt", "best.pt", "run.json", "notes.md", "tb/events.out.tfevents.1.h", "plots/a.png"] {
        fs::write(work_dir.join(name), name).unwrap();
    }
}

#[test]
fn a_new_folder_and_one_with_other_files_are_claimed() {
    let root = tempfile::tempdir().unwrap();
    let work_dir = root.path().join("a/b/c");
    let folder = claimed(&work_dir);
    assert_eq!(names(&work_dir), [lock::LOCK]);
    assert_eq!(folder.last(), work_dir.join("last.pt"));
    assert_eq!(folder.best(), work_dir.join("best.pt"));
    assert_eq!(folder.metrics(), work_dir.join("metrics.jsonl"));
    fs::write(work_dir.join("notes.md"), "x").unwrap();
    drop(folder);
    assert_eq!(RunFolder::claim(&work_dir, true, now()).unwrap().1, None);
    assert_eq!(names(&work_dir), ["notes.md"]);
}

#[test]
fn a_folder_with_a_run_is_refused() {
    let root = tempfile::tempdir().unwrap();
    old_run(root.path());
    let before = names(root.path());
    let error = RunFolder::claim(root.path(), false, now()).unwrap_err();
    let text = error.to_string();
    assert_eq!(error.kind, Kind::Config);
    assert!(text.contains("holds a run already: last.pt, best.pt, run.json of 20"), "{text}");
    assert!(text.contains("--overwrite") && text.contains("another run.work_dir"), "{text}");
    assert_eq!(names(root.path()), before);
    for name in RUN_FILES {
        let other = tempfile::tempdir().unwrap();
        fs::write(other.path().join(name), "").unwrap();
        assert!(RunFolder::claim(other.path(), false, now()).is_err(), "{name}");
    }
}

#[test]
fn overwriting_moves_the_old_run_aside() {
    let root = tempfile::tempdir().unwrap();
    let work_dir = root.path().join("exp");
    for expected in ["exp.20231114-221320", "exp.20231114-221320-2"] {
        old_run(&work_dir);
        let aside = RunFolder::claim(&work_dir, true, now()).unwrap().1.unwrap();
        assert_eq!(aside, fs::canonicalize(root.path()).unwrap().join(expected));
        assert_eq!(names(&aside), ["best.pt", "last.pt", "run.json", "tb"]);
        assert_eq!(
            fs::read(aside.join("tb/events.out.tfevents.1.h")).unwrap(),
            b"tb/events.out.tfevents.1.h"
        );
        assert_eq!(names(&work_dir), ["notes.md", "plots"]);
    }
    assert_eq!(names(root.path()).len(), 3);
}

#[cfg(unix)]
#[test]
fn a_link_stays_a_link_and_its_run_stays_on_its_disk() {
    let root = tempfile::tempdir().unwrap();
    let (disk, link) = (root.path().join("disk/exp"), root.path().join("link"));
    old_run(&disk);
    std::os::unix::fs::symlink(&disk, &link).unwrap();
    let aside = RunFolder::claim(&link, true, now()).unwrap().1.unwrap();
    assert_eq!(aside.parent(), fs::canonicalize(root.path().join("disk")).ok().as_deref());
    assert!(link.is_symlink());
    let dangling = root.path().join("dangling");
    std::os::unix::fs::symlink(root.path().join("nowhere"), &dangling).unwrap();
    assert_eq!(RunFolder::claim(&dangling, false, now()).unwrap_err().kind, Kind::Config);
}

#[test]
fn moving_is_all_or_nothing() {
    let root = tempfile::tempdir().unwrap();
    let (from, to) = (root.path().join("from"), root.path().join("to"));
    fs::create_dir(&from).unwrap();
    fs::create_dir(&to).unwrap();
    fs::write(from.join("a"), "a").unwrap();
    assert!(move_entries(&from, &to, &[&"a".to_owned(), &"missing".to_owned()]).is_err());
    assert_eq!(names(root.path()), ["from"]);
    assert_eq!(names(&from), ["a"]);
}

#[test]
fn a_work_dir_that_cannot_be_is_refused_without_a_trace() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("file");
    fs::write(&file, "x").unwrap();
    let message = |path: &Path| {
        let error = RunFolder::claim(path, true, now()).unwrap_err();
        assert_eq!((error.kind, error.problems.len()), (Kind::Config, 1));
        assert!(error.problems[0].hint.is_some());
        error.to_string()
    };
    assert!(message(&file).contains("file is a file, not a folder"));
    assert!(message(&file.join("run")).contains("lies below a file"));
    assert!(message(Path::new("/proc/slt-run/x")).contains("/proc/slt-run/x cannot be written"));
    assert_eq!(names(root.path()), ["file"]);
    let full = unusable(&file, &io::ErrorKind::StorageFull.into());
    assert_eq!(full.kind, Kind::Run);
    assert!(full.to_string().contains("make room"), "{full}");
    let read_only = unusable(Path::new("/x"), &io::ErrorKind::ReadOnlyFilesystem.into());
    assert_eq!(read_only.kind, Kind::Config);
}

#[test]
fn folders_made_for_nothing_are_removed() {
    let root = tempfile::tempdir().unwrap();
    let made = make_folder(&root.path().join("a/b")).unwrap();
    assert_eq!(made, [root.path().join("a"), root.path().join("a/b")]);
    remove_folders(&made);
    assert!(names(root.path()).is_empty());
    assert!(make_folder(&root.path().join("c").join("x\0y")).is_err());
    assert!(names(root.path()).is_empty());
}

#[test]
fn configuration_and_origin_are_kept() {
    let root = tempfile::tempdir().unwrap();
    let folder = claimed(root.path());
    assert_eq!(names(root.path()), [lock::LOCK]);
    folder.write_config("a = 1\n", &json!({"b": {"x": 1}, "a": 2})).unwrap();
    assert_eq!(fs::read_to_string(root.path().join("config.toml")).unwrap(), "a = 1\n");
    let text = fs::read_to_string(root.path().join("config.json")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), json!({"b": {"x": 1}, "a": 2}));

    let info = RunInfo {
        command_line: vec!["slt-run".into(), "ñ.toml".into()],
        started: now(),
        device: "cpu".into(),
        threads: 2,
        experiment: None,
        event_file: None,
        resumed: None,
    };
    folder.write_run_json(&info).unwrap();
    let run: Value = serde_json::from_slice(&fs::read(root.path().join("run.json")).unwrap()).unwrap();
    assert_eq!(run["started"], "2023-11-14T22:13:20Z");
    assert_eq!(run["command_line"], json!(["slt-run", "ñ.toml"]));
    assert_eq!((&run["device"], &run["threads"]), (&json!("cpu"), &json!(2)));
    assert_eq!(run["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(run["git"], Value::Null);
    assert!(run["host"].is_string());
    assert_eq!(names(root.path()), [lock::LOCK, "config.json", "config.toml", "run.json"]);
    fs::remove_dir_all(root.path()).unwrap();
    assert_eq!(folder.write_config("", &Value::Null).unwrap_err().kind, Kind::Run);
}

#[test]
fn the_repository_of_the_experiment_file_is_recorded() {
    let root = tempfile::tempdir().unwrap();
    let repository = root.path().join("repository");
    fs::create_dir(&repository).unwrap();
    fs::write(repository.join("a.toml"), "x = 1\n").unwrap();
    let git = |arguments: &[&str]| {
        let mut command = Command::new("git");
        command
            .arg("-C")
            .arg(&repository)
            .args(["-c", "user.name=a", "-c", "user.email=a@b"])
            .args(arguments);
        assert!(command.output().unwrap().status.success(), "{arguments:?}");
    };
    git(&["init"]);
    git(&["add", "."]);
    git(&["commit", "-m", "x"]);
    let folder = claimed(&root.path().join("run"));
    let experiment = Some(repository.join("a.toml"));
    let info = RunInfo {
        command_line: vec![],
        started: now(),
        device: "cpu".into(),
        threads: 1,
        experiment,
        event_file: None,
        resumed: None,
    };
    let git_of_run = || {
        folder.write_run_json(&info).unwrap();
        let run: Value = serde_json::from_slice(&fs::read(folder.path().join("run.json")).unwrap()).unwrap();
        run["git"].clone()
    };
    let clean = git_of_run();
    assert_eq!((clean["commit"].as_str().map(str::len), &clean["dirty"]), (Some(40), &json!(false)));
    assert!(!folder.path().join("git.diff").exists());
    fs::write(repository.join("a.toml"), "x = 2\n").unwrap();
    assert_eq!(git_of_run()["dirty"], json!(true));
    let diff = fs::read_to_string(folder.path().join("git.diff")).unwrap();
    assert!(diff.contains("-x = 1\n+x = 2\n"), "{diff}");
}

#[test]
fn a_folder_in_use_is_refused_untouched() {
    let root = tempfile::tempdir().unwrap();
    let folder = claimed(root.path());
    for with_files in [false, true] {
        if with_files {
            old_run(root.path());
        }
        let before = names(root.path());
        let refusals =
            [true, false].map(|overwrite| RunFolder::claim(root.path(), overwrite, now()).unwrap_err());
        for error in refusals.into_iter().chain([RunFolder::reopen(root.path()).unwrap_err()]) {
            let text = error.to_string();
            let pid = std::process::id();
            assert_eq!(error.kind, Kind::Config);
            assert!(text.contains(&format!("is in use: process {pid} on ")), "{text}");
            assert!(
                text.contains(&format!("(kill {pid} on ")) && text.contains("another run.work_dir"),
                "{text}"
            );
        }
        assert_eq!(names(root.path()), before);
    }
    drop(folder);
    let error = RunFolder::claim(root.path(), false, now()).unwrap_err();
    assert!(error.to_string().contains("holds a run already"), "{error}");
}

#[test]
fn a_run_is_reopened_without_the_leftovers_of_a_killed_process() {
    let root = tempfile::tempdir().unwrap();
    let work_dir = root.path().join("exp");
    old_run(&work_dir);
    fs::write(work_dir.join(lock::LOCK), "{\"pid\":1,\"host\":\"gone\",\"started\":\"x\",\"beat\":0}\n")
        .unwrap();
    for name in ["last.pt.tmp", "best.pt.tmp", "config.toml.tmp", ".slt-run.probe.tmp", "mine.tmp"] {
        fs::write(work_dir.join(name), "x").unwrap();
    }
    let folder = RunFolder::reopen(&work_dir).unwrap();
    let kept = ["best.pt", "last.pt", "mine.tmp", "notes.md", "plots", "run.json", "tb"];
    assert_eq!(names(&work_dir)[1..], kept);
    folder.abandon();
    assert_eq!(names(&work_dir)[1..], kept);
    drop(folder);
    assert_eq!(names(&work_dir), kept);

    fs::remove_file(work_dir.join("last.pt")).unwrap();
    let error = RunFolder::reopen(&work_dir).unwrap_err();
    assert!(error.to_string().contains("has a best.pt but no last.pt"), "{error}");
    // A run that never saved anything is begun again, and given up with what it has.
    fs::remove_file(work_dir.join("best.pt")).unwrap();
    RunFolder::reopen(&work_dir).unwrap().abandon();
    assert_eq!(names(&work_dir), ["mine.tmp", "notes.md", "plots", "tb"]);
    // And a new folder is made, and goes when it is given up.
    let new = root.path().join("a/b");
    RunFolder::reopen(&new).unwrap().abandon();
    assert_eq!(names(root.path()), ["exp"]);
}
