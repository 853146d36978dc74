//! Claiming a run's folder, refusing one, moving a run aside, and what is kept of a run's origin.

use std::process::Command;
use std::time::Duration;

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

/// What makes a folder a run's, with these TensorBoard files.
fn run_json(work_dir: &Path, event_files: &[&str]) -> Value {
    let files: Vec<PathBuf> = event_files.iter().map(|file| work_dir.join(file)).collect();
    json!({ "version": "0.1.0", "command_line": ["slt-run"], "work_dir": work_dir, "event_files": files })
}

/// A folder with a run, its TensorBoard files, another run's and a person's notes in it.
fn old_run(work_dir: &Path) {
    for folder in ["tb/a", "tb/other", "plots", "sub/run"] {
        fs::create_dir_all(work_dir.join(folder)).unwrap();
    }
    for name in ["last.pt", "best.pt", "notes.md", MINE, THEIRS, "plots/a.png", "sub/run/last.pt"] {
        fs::write(work_dir.join(name), name).unwrap();
    }
    let run = run_json(&fs::canonicalize(work_dir).unwrap(), &[MINE]);
    fs::write(work_dir.join("run.json"), run.to_string()).unwrap();
}

const MINE: &str = "tb/a/events.out.tfevents.1.h";
const THEIRS: &str = "tb/other/events.out.tfevents.2.h";

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
    assert_eq!(error.kind, ErrorKind::Config);
    assert!(text.contains("holds a run already: last.pt, best.pt, run.json of 20"), "{text}");
    assert!(text.contains("--overwrite") && text.contains("another run.work_dir"), "{text}");
    assert_eq!(names(root.path()), before);
}

#[test]
fn files_that_no_run_has_written_are_neither_replaced_nor_moved() {
    for name in RUN_FILES {
        for text in ["", "{}", "{\"version\": 1, \"command_line\": []}", "x = 1"] {
            let other = tempfile::tempdir().unwrap();
            fs::write(other.path().join(name), text).unwrap();
            let errors = [
                RunFolder::claim(other.path(), false, now()).unwrap_err(),
                RunFolder::claim(other.path(), true, now()).unwrap_err(),
                RunFolder::reopen(other.path()).unwrap_err(),
                RunFolder::look(other.path()).unwrap_err(),
            ];
            for error in errors {
                assert_eq!(error.kind, ErrorKind::Config);
                let said = format!("has a {name} that no run has written");
                assert!(error.to_string().contains(&said), "{error}");
                assert!(error.to_string().contains("choose another run.work_dir"), "{error}");
            }
            assert!(!RunFolder::holds_run(other.path()).unwrap());
            assert_eq!(names(other.path()), [name]);
            assert_eq!(fs::read_to_string(other.path().join(name)).unwrap(), text);
        }
    }
}

#[cfg(unix)]
#[test]
fn names_of_a_run_that_are_no_regular_files_are_refused() {
    use std::os::unix::fs::symlink;
    let root = tempfile::tempdir().unwrap();
    let work_dir = root.path().join("exp");
    let refusals = |overwrite: bool| {
        let mut errors = vec![RunFolder::claim(&work_dir, overwrite, now()).unwrap_err().to_string()];
        errors.push(RunFolder::reopen(&work_dir).unwrap_err().to_string());
        errors
    };
    for with_run in [false, true] {
        for name in RUN_FILES.into_iter().filter(|name| *name != RUN_JSON).chain([lock::LOCK]) {
            let path = work_dir.join(name);
            let make_pipe = || assert!(Command::new("mkfifo").arg(&path).status().unwrap().success());
            let make_folder = || fs::create_dir(&path).unwrap();
            let make_link = || symlink("pipes", &path).unwrap();
            let make: [(&dyn Fn(), &str); 3] = [
                (&make_pipe, "is a named pipe, not a regular file"),
                (&make_folder, "is a folder, not"),
                (&make_link, "is a link"),
            ];
            for (make, says) in make {
                fs::create_dir_all(work_dir.join("pipes")).unwrap();
                if with_run {
                    old_run(&work_dir);
                    let _ = fs::remove_file(&path);
                }
                make();
                for error in refusals(true).into_iter().chain(refusals(false)) {
                    assert!(error.contains(&format!("{name} {says}")), "{error}");
                }
                assert!(path.symlink_metadata().is_ok());
                fs::remove_dir_all(&work_dir).unwrap();
            }
        }
    }
    // A link to a file on another disk is as good as the file, until it leads nowhere.
    old_run(&work_dir);
    fs::rename(work_dir.join("last.pt"), root.path().join("elsewhere.pt")).unwrap();
    symlink(root.path().join("elsewhere.pt"), work_dir.join("last.pt")).unwrap();
    drop(RunFolder::reopen(&work_dir).unwrap());
    fs::remove_file(root.path().join("elsewhere.pt")).unwrap();
    let before = names(&work_dir);
    let error = RunFolder::reopen(&work_dir).unwrap_err().to_string();
    assert!(
        error.contains("last.pt is a link that leads nowhere") && error.contains("mount the disk"),
        "{error}"
    );
    assert_eq!(names(&work_dir), before);
    let aside = RunFolder::claim(&work_dir, true, now()).unwrap().1.unwrap();
    assert!(aside.join("last.pt").is_symlink());
}

#[test]
fn a_run_whose_checkpoints_are_gone_is_not_begun_anew() {
    let root = tempfile::tempdir().unwrap();
    let line = "{\"epoch\":1,\"train_loss\":2.5,\"val_loss\":2.5}\n";
    let refused = |saved: Option<bool>, metrics: &str| {
        let mut run = run_json(root.path(), &[]);
        if let Some(saved) = saved {
            run[SAVED] = saved.into();
        }
        fs::write(root.path().join(RUN_JSON), run.to_string()).unwrap();
        fs::write(root.path().join(METRICS), metrics).unwrap();
        let result = RunFolder::reopen(root.path());
        assert_eq!(fs::read_to_string(root.path().join(METRICS)).unwrap(), metrics);
        result.err().map(|error| error.to_string())
    };
    assert_eq!((refused(Some(false), ""), refused(Some(false), line), refused(None, "")), (None, None, None));
    for (saved, text) in [(Some(true), ""), (Some(true), line), (None, line)] {
        let error = refused(saved, text).unwrap();
        let epochs = text.lines().count();
        assert!(error.contains("holds a run whose checkpoints are gone"), "{error}");
        assert!(error.contains(&format!("metrics.jsonl tells of {epochs} epochs")), "{error}");
        assert!(error.contains("put last.pt back") && error.contains("--overwrite"), "{error}");
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
        assert_eq!(fs::read_to_string(aside.join(MINE)).unwrap(), MINE);
        assert_eq!(names(&aside.join("tb")), ["a"]);
        // What belongs to another run, or to a person, stays.
        assert_eq!(names(&work_dir), ["notes.md", "plots", "sub", "tb"]);
        assert_eq!(names(&work_dir.join("tb")), ["other"]);
        assert!(work_dir.join(THEIRS).exists() && work_dir.join("sub/run/last.pt").exists());
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
    assert_eq!(RunFolder::claim(&dangling, false, now()).unwrap_err().kind, ErrorKind::Config);
}

#[test]
fn moving_is_all_or_nothing() {
    let root = tempfile::tempdir().unwrap();
    let (from, to) = (root.path().join("from"), root.path().join("to"));
    fs::create_dir(&from).unwrap();
    fs::create_dir(&to).unwrap();
    fs::create_dir(from.join("b")).unwrap();
    fs::write(from.join("b/a"), "a").unwrap();
    assert!(aside::move_entries(&from, &to, &["b/a".into(), "missing".into()]).is_err());
    assert_eq!(names(root.path()), ["from"]);
    assert_eq!(names(&from.join("b")), ["a"]);
}

#[test]
fn a_work_dir_that_cannot_be_is_refused_without_a_trace() {
    let root = tempfile::tempdir().unwrap();
    let file = root.path().join("file");
    fs::write(&file, "x").unwrap();
    let message = |path: &Path| {
        let error = RunFolder::claim(path, true, now()).unwrap_err();
        assert_eq!((error.kind, error.problems.len()), (ErrorKind::Config, 1));
        assert!(error.problems[0].hint.is_some());
        error.to_string()
    };
    assert!(message(&file).contains("file is a file, not a folder"));
    assert!(message(&file.join("run")).contains("lies below a file"));
    assert!(message(Path::new("/proc/slt-run/x")).contains("/proc/slt-run/x cannot be written"));
    assert_eq!(names(root.path()), ["file"]);
    let full = unusable(&file, &io::ErrorKind::StorageFull.into());
    assert_eq!(full.kind, ErrorKind::Run);
    assert!(full.to_string().contains("make room"), "{full}");
    let read_only = unusable(Path::new("/x"), &io::ErrorKind::ReadOnlyFilesystem.into());
    assert_eq!(read_only.kind, ErrorKind::Config);
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
        experiment: Some(root.path().join("a.toml")),
        files: vec![],
        overrides: vec![Override { key: "optimization.lr", value: "0.5".into(), origin: "--lr .5".into() }],
        resumed: None,
    };
    folder.write_run_json(&info).unwrap();
    let run: Value = serde_json::from_slice(&fs::read(root.path().join("run.json")).unwrap()).unwrap();
    assert_eq!(run["started"], "2023-11-14T22:13:20Z");
    assert_eq!(run["command_line"], json!(["slt-run", "ñ.toml"]));
    assert_eq!((&run["device"], &run["threads"]), (&json!("cpu"), &json!(2)));
    assert_eq!(run["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(run["git"], Value::Null);
    assert_eq!(run["overrides"], json!([{"key": "optimization.lr", "value": "0.5", "origin": "--lr .5"}]));
    assert_eq!((&run["saved"], &run["ended"], &run["best"]), (&json!(false), &Value::Null, &Value::Null));
    assert!(run["host"].is_string());
    folder.note_event_file(&root.path().join("events.out.tfevents.1")).unwrap();
    folder.note_saved().unwrap();
    let best = Some(Best { epoch: 2, value: 31.5, val_loss: 0.5, val_accuracy: Some(0.75) });
    let how = "stopped by SIGTERM".to_owned();
    folder.note_end(&Ending { how, at: now(), epoch: 3, step: 9, best }).unwrap();
    let run: Value = serde_json::from_slice(&fs::read(root.path().join("run.json")).unwrap()).unwrap();
    assert_eq!((&run["saved"], run["event_files"].as_array().map(Vec::len)), (&json!(true), Some(1)));
    assert_eq!(
        run["ended"],
        json!({"how": "stopped by SIGTERM", "at": "2023-11-14T22:13:20Z", "epoch": 3, "step": 9})
    );
    assert_eq!(run["best"], json!({"epoch": 2, "value": 31.5, "val_loss": 0.5, "val_accuracy": 0.75}));
    assert_eq!(names(root.path()), [lock::LOCK, "config.json", "config.toml", "run.json"]);
    fs::remove_dir_all(root.path()).unwrap();
    assert_eq!(folder.write_config("", &Value::Null).unwrap_err().kind, ErrorKind::Run);
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
        files: vec![repository.join("a.toml"), repository.join("new.toml")],
        overrides: vec![],
        resumed: None,
    };
    let run_of = |info: &RunInfo| -> Value {
        folder.write_run_json(info).unwrap();
        serde_json::from_slice(&fs::read(folder.path().join("run.json")).unwrap()).unwrap()
    };
    let git_of_run = || run_of(&info)["git"].clone();
    let clean = git_of_run();
    assert_eq!((clean["commit"].as_str().map(str::len), &clean["dirty"]), (Some(40), &json!(false)));
    assert!(!folder.path().join("git.diff").exists());
    fs::write(repository.join("a.toml"), "x = 2\n").unwrap();
    assert_eq!(git_of_run()["dirty"], json!(true));
    let diff = fs::read_to_string(folder.path().join("git.diff")).unwrap();
    assert!(diff.contains("-x = 1\n+x = 2\n"), "{diff}");

    // What is new at a resume is kept beside it; what is not is named.
    let resumed = Some(Resumed { epoch: 1, step: 2, changes: vec![], moved: vec![] });
    let resumed = RunInfo { resumed, ..info.clone() };
    let whole = run_of(&resumed);
    assert_eq!(
        (&whole["git"]["diff"], &whole["resumed"][0]["git"]["diff"]),
        (&json!("git.diff"), &json!("git.diff"))
    );
    fs::write(repository.join("new.toml"), "y = 3\n").unwrap();
    fs::write(folder.path().join("git-2.diff"), "a person's").unwrap();
    let whole = run_of(&resumed);
    assert_eq!(whole["resumed"][1]["git"]["diff"], json!("git-3.diff"));
    assert_eq!(whole["resumed"][1]["git"]["dirty"], json!(true));
    assert_eq!(fs::read_to_string(folder.path().join("git.diff")).unwrap(), diff);
    let later = fs::read_to_string(folder.path().join("git-3.diff")).unwrap();
    assert!(later.starts_with(&diff) && later.contains("+y = 3\n"), "{later}");
    assert_eq!(fs::read_to_string(folder.path().join("git-2.diff")).unwrap(), "a person's");
    drop(folder);
    let aside = RunFolder::claim(&root.path().join("run"), true, now()).unwrap().1.unwrap();
    assert_eq!(names(&aside), ["git-3.diff", "git.diff", "run.json"]);
    assert_eq!(names(&root.path().join("run")), ["git-2.diff"]);
}

#[test]
fn a_run_never_writes_into_another_one_s_folder() {
    let root = tempfile::tempdir().unwrap();
    let (path, moved) = (root.path().join("run"), root.path().join("moved"));
    let first = claimed(&path);
    first.still_there().unwrap();
    fs::rename(&path, &moved).unwrap();
    assert!(first.still_there().is_err());
    let second = claimed(&path);
    second.write_config("second", &Value::Null).unwrap();
    // The first one's writes go where its folder is.
    first.still_held().unwrap();
    first.write_config("first", &Value::Null).unwrap();
    assert_eq!(fs::read_to_string(path.join("config.toml")).unwrap(), "second");
    assert_eq!(fs::read_to_string(moved.join("config.toml")).unwrap(), "first");
    let error = first.still_there().unwrap_err().to_string();
    assert!(error.contains("was renamed or replaced"), "{error}");
    if cfg!(target_os = "linux") {
        let here = fs::canonicalize(&moved).unwrap();
        assert!(error.contains(&format!("--work-dir {} --resume", here.display())), "{error}");
    }
    first.abandon();
    drop(first);
    assert_eq!(names(&path), [lock::LOCK, "config.json", "config.toml"]);

    // A lock that somebody has removed, and another process that came for it.
    fs::remove_file(path.join(lock::LOCK)).unwrap();
    let third = RunLock::acquire(&Folder::open(&path).unwrap()).unwrap();
    let other = "{\"pid\":7,\"host\":\"node\",\"started\":\"x\",\"beat\":0}";
    fs::write(path.join(lock::LOCK), other).unwrap();
    let error = second.still_held().unwrap_err().to_string();
    assert!(error.contains("is process 7 on node's now"), "{error}");
    second.abandon();
    assert!(path.join("config.toml").exists() && second.note_end(&ending()).is_err());
    drop(third);
}

fn ending() -> Ending {
    Ending { how: "finished".into(), at: now(), epoch: 1, step: 1, best: None }
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
            assert_eq!(error.kind, ErrorKind::Config);
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
    let leftovers = [".slt-run.last.pt.tmp", ".slt-run.config.toml.tmp", ".slt-run..slt-run.probe.tmp"];
    for name in leftovers.into_iter().chain(["last.pt.tmp", "config.toml.tmp", "mine.tmp"]) {
        fs::write(work_dir.join(name), "x").unwrap();
    }
    let folder = RunFolder::reopen(&work_dir).unwrap();
    let kept =
        ["best.pt", "config.toml.tmp", "last.pt", "mine.tmp", "notes.md", "plots", "run.json", "sub", "tb"];
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
    assert_eq!(names(&work_dir), ["config.toml.tmp", "mine.tmp", "notes.md", "plots", "sub", "tb"]);
    // And a new folder is made, and goes when it is given up.
    let new = root.path().join("a/b");
    RunFolder::reopen(&new).unwrap().abandon();
    assert_eq!(names(root.path()), ["exp"]);
}
