//! What git says about a folder: commit, branch and changes, or nothing, without fuss.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::files::folder_of;

/// The most bytes of changes that are kept.
pub(super) const DIFF_CAP: usize = 10 << 20;

/// How long git may take, in all. A huge or slow repository must not hold up a run.
const PATIENCE: Duration = Duration::from_secs(10);

/// The state of the repository that a folder is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct GitState {
    pub(super) commit: String,
    /// `None` where no branch is checked out.
    pub(super) branch: Option<String>,
    /// Changes of tracked files since the commit, and the experiment files that git does not know, as `git apply` takes
    /// them; `None` where git took too long.
    pub(super) diff: Option<Vec<u8>>,
    /// Whether `diff` was cut at [`DIFF_CAP`].
    pub(super) truncated: bool,
}

/// Asks git about `folder`, and about the experiment's `files`. `None` outside of a repository, before its first commit,
/// or without git.
pub(super) fn state(folder: &Path, files: &[PathBuf]) -> Option<GitState> {
    let git = Git { deadline: Instant::now() + PATIENCE };
    let commit = git.line(folder, &["rev-parse", "--verify", "--quiet", "HEAD"])?;
    let branch = git.line(folder, &["symbolic-ref", "--short", "--quiet", "HEAD"]);
    let diff = ["diff", "--binary", "--no-color", "--no-ext-diff", "--no-textconv", "--no-relative", "HEAD"];
    let diff = git.ask(folder, &diff).and_then(|diff| git.with_unknown_files(folder, files, diff));
    let truncated = diff.as_ref().is_some_and(|(_, truncated)| *truncated);
    Some(GitState { commit, branch, diff: diff.map(|(bytes, _)| bytes), truncated })
}

/// Asks until it takes too long.
struct Git {
    deadline: Instant,
}

impl Git {
    /// What git prints, at most [`DIFF_CAP`] of it, and whether there was more.
    fn ask(&self, folder: &Path, arguments: &[&str]) -> Option<(Vec<u8>, bool)> {
        output(git(folder, arguments), DIFF_CAP, self.deadline)
    }

    fn line(&self, folder: &Path, arguments: &[&str]) -> Option<String> {
        let (bytes, _) = self.ask(folder, arguments)?;
        let text = String::from_utf8_lossy(&bytes).trim_end_matches('\n').to_owned();
        (!text.is_empty()).then_some(text)
    }

    /// `diff` with those of `files` as new files that are in the repository's folder and that git does not know, because
    /// nobody has added them or because they are ignored. `None` where git took too long.
    fn with_unknown_files(
        &self,
        folder: &Path,
        files: &[PathBuf],
        (mut diff, mut truncated): (Vec<u8>, bool),
    ) -> Option<(Vec<u8>, bool)> {
        let top = self.line(folder, &["rev-parse", "--show-toplevel"])?;
        for file in files {
            let beside = folder_of(file);
            let Some(name) = file.file_name().and_then(|name| name.to_str()) else { continue };
            if self.line(beside, &["rev-parse", "--show-toplevel"]).as_deref() != Some(top.as_str()) {
                continue;
            }
            if self.line(beside, &["ls-files", "--", name]).is_some() {
                continue;
            }
            let prefix = self.line(beside, &["rev-parse", "--show-prefix"]).unwrap_or_default();
            let path = format!("{prefix}{name}");
            let new =
                ["diff", "--no-index", "--binary", "--no-color", "--no-ext-diff", "--no-textconv", "--"];
            let new = [&new[..], &["/dev/null", &path]].concat();
            let (new, more) = output_of(git(Path::new(&top), &new), &[0, 1], DIFF_CAP, self.deadline)?;
            diff.extend(new);
            truncated |= more || diff.len() > DIFF_CAP;
            diff.truncate(DIFF_CAP);
        }
        Some((diff, truncated))
    }
}

fn git(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("git");
    // No file-system monitor: it is a command of the repository's choosing, and may outlive this one.
    command
        .arg("-C")
        .arg(folder)
        .args(["--no-optional-locks", "--no-pager", "--literal-pathspecs", "-c", "core.fsmonitor=false"])
        // So that `git apply` takes what is kept, whatever a person likes to look at.
        .args(["-c", "diff.noprefix=false", "-c", "diff.mnemonicPrefix=false"])
        .args(arguments);
    // Inside a git hook these point at another repository than the folder's.
    for variable in ["GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX", "GIT_EXTERNAL_DIFF"] {
        command.env_remove(variable);
    }
    command.env("GIT_TERMINAL_PROMPT", "0");
    command
}

/// What `command` prints, at most `cap` bytes of it, and whether there was more.
/// `None` where it cannot be run, fails, or is not done by `deadline`; it is ended then.
pub(super) fn output(command: Command, cap: usize, deadline: Instant) -> Option<(Vec<u8>, bool)> {
    output_of(command, &[0], cap, deadline)
}

/// As [`output`], of a command that has not failed where its exit code is one of `good`.
fn output_of(mut command: Command, good: &[i32], cap: usize, deadline: Instant) -> Option<(Vec<u8>, bool)> {
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().ok()?;
    let (sender, receiver) = mpsc::channel();
    if let Some(stdout) = child.stdout.take() {
        // A thread of its own, left behind if need be: a grandchild could hold the pipe open for ever.
        let read = move || {
            let mut bytes = Vec::new();
            let read = stdout.take(cap as u64 + 1).read_to_end(&mut bytes);
            let _ = sender.send(read.map(|_| bytes));
        };
        // Where the system grants no thread, the sender is gone, and nothing is waited for.
        drop(std::thread::Builder::new().spawn(read));
    }
    let read = receiver.recv_timeout(deadline.saturating_duration_since(Instant::now()));
    let truncated = matches!(&read, Ok(Ok(bytes)) if bytes.len() > cap);
    let in_time = read.is_ok() && (truncated || ends_by(&mut child, deadline));
    if !in_time || truncated {
        let _ = child.kill();
    }
    let status = child.wait().ok()?;
    let mut bytes = read.ok()?.ok()?;
    bytes.truncate(cap);
    let is_good = status.code().is_some_and(|code| good.contains(&code));
    (in_time && (truncated || is_good)).then_some((bytes, truncated))
}

/// Waits for a child whose output has ended.
fn ends_by(child: &mut std::process::Child, deadline: Instant) -> bool {
    loop {
        match child.try_wait() {
            Ok(Some(_)) => return true,
            Ok(None) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(1)),
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn run(folder: &Path, arguments: &[&str]) {
        let mut command =
            git(folder, &["-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]);
        let status = command.args(arguments).stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap();
        assert!(status.success(), "git {arguments:?}");
    }

    #[test]
    fn a_repository_is_described() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        run(dir, &["init"]);
        assert_eq!(state(dir, &[]), None, "no commit yet");
        fs::create_dir(dir.join("configs")).unwrap();
        fs::write(dir.join("a.txt"), "one\n").unwrap();
        fs::write(dir.join("configs/b.bin"), [0u8, 159, 146, 150]).unwrap();
        run(dir, &["add", "."]);
        run(dir, &["commit", "-m", "x"]);
        let clean = state(&dir.join("configs"), &[]).unwrap();
        assert_eq!((clean.commit.len(), clean.branch.as_deref()), (40, Some("main")));
        assert_eq!((clean.diff.as_deref(), clean.truncated), (Some(&b""[..]), false));

        // Changes anywhere in the repository count; untracked files do not.
        fs::write(dir.join("a.txt"), "two\n").unwrap();
        fs::write(dir.join("configs/b.bin"), [0u8, 1, 2, 3, 255]).unwrap();
        fs::write(dir.join("untracked"), "x").unwrap();
        run(dir, &["checkout", "--detach"]);
        let dirty = state(&dir.join("configs"), &[]).unwrap();
        assert_eq!((dirty.commit, dirty.branch), (clean.commit, None));
        let diff = dirty.diff.unwrap();
        fs::write(dir.join("saved.diff"), &diff).unwrap();
        run(dir, &["checkout", "--force", "HEAD"]);
        run(dir, &["apply", "saved.diff"]);
        assert_eq!(fs::read(dir.join("configs/b.bin")).unwrap(), [0, 1, 2, 3, 255]);
        assert_eq!(fs::read(dir.join("a.txt")).unwrap(), b"two\n");
    }

    #[test]
    fn experiment_files_that_git_does_not_know_are_new_files() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        run(dir, &["init"]);
        fs::create_dir(dir.join("configs")).unwrap();
        fs::write(dir.join("known.toml"), "a = 1\n").unwrap();
        fs::write(dir.join(".gitignore"), "ignored.toml\n").unwrap();
        run(dir, &["add", "."]);
        run(dir, &["commit", "-m", "x"]);
        run(dir, &["config", "diff.noprefix", "true"]);
        let odd = "configs/-odd [a] *.toml";
        for name in ["ignored.toml", odd, "notes.txt"] {
            fs::write(dir.join(name), format!("# {name}\n")).unwrap();
        }
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("base.toml"), "b = 1\n").unwrap();
        let files = [dir.join("known.toml"), dir.join("ignored.toml"), dir.join(odd)];
        let clean = state(dir, &[files[0].clone(), outside.path().join("base.toml")]).unwrap();
        assert_eq!(clean.diff.as_deref(), Some(&b""[..]));
        let dirty = state(&dir.join("configs"), &files).unwrap().diff.unwrap();
        fs::write(dir.join("saved.diff"), &dirty).unwrap();
        fs::remove_file(dir.join("ignored.toml")).unwrap();
        fs::remove_file(dir.join(odd)).unwrap();
        run(dir, &["apply", "saved.diff"]);
        for name in ["ignored.toml", odd] {
            assert_eq!(fs::read_to_string(dir.join(name)).unwrap(), format!("# {name}\n"));
        }
        assert!(!String::from_utf8(dirty).unwrap().contains("notes.txt"));
    }

    #[test]
    fn outside_of_git_there_is_nothing() {
        assert_eq!(state(Path::new("/no/such/folder"), &[]), None);
        assert_eq!(state(Path::new("/proc"), &[]), None);
        let soon = Instant::now() + Duration::from_secs(5);
        assert_eq!(output(Command::new("no-such-program-anywhere"), 10, soon), None);
        assert_eq!(output(Command::new("false"), 10, soon), None);
    }

    #[test]
    fn slow_and_endless_programs_are_ended() {
        let shell = |script: &str| {
            let mut command = Command::new("sh");
            command.args(["-c", script]);
            command
        };
        let start = Instant::now();
        let soon = || Instant::now() + Duration::from_millis(200);
        assert_eq!(output(shell("sleep 20"), 10, soon()), None);
        assert_eq!(output(shell("echo x; exec >&-; sleep 20"), 10, soon()), None);
        assert_eq!(output(shell("sleep 20 & echo x"), 10, soon()), None);
        assert!(start.elapsed() < Duration::from_secs(5));
        let endless = output(shell("yes"), 5, start + Duration::from_secs(20));
        assert_eq!(endless, Some((b"y\ny\ny".to_vec(), true)));
        assert_eq!(
            output(shell("printf abc"), 3, start + Duration::from_secs(20)),
            Some((b"abc".to_vec(), false))
        );
    }
}
