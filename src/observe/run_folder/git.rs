//! What git says about a folder: commit, branch and changes, or nothing, without fuss.

use std::io::Read;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

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
    /// Changes of tracked files since the commit, as `git apply` takes them; `None` where git took too long.
    pub(super) diff: Option<Vec<u8>>,
    /// Whether `diff` was cut at [`DIFF_CAP`].
    pub(super) truncated: bool,
}

/// Asks git about `folder`. `None` outside of a repository, before its first commit, or without git.
pub(super) fn state(folder: &Path) -> Option<GitState> {
    let deadline = Instant::now() + PATIENCE;
    let ask = |arguments: &[&str]| output(git(folder, arguments), DIFF_CAP, deadline);
    let line = |arguments: &[&str]| {
        let (bytes, _) = ask(arguments)?;
        let text = String::from_utf8_lossy(&bytes).trim().to_owned();
        (!text.is_empty()).then_some(text)
    };
    let commit = line(&["rev-parse", "--verify", "--quiet", "HEAD"])?;
    let branch = line(&["symbolic-ref", "--short", "--quiet", "HEAD"]);
    let diff = ["diff", "--binary", "--no-color", "--no-ext-diff", "--no-textconv", "--no-relative", "HEAD"];
    let diff = ask(&diff);
    let truncated = diff.as_ref().is_some_and(|(_, truncated)| *truncated);
    Some(GitState { commit, branch, diff: diff.map(|(bytes, _)| bytes), truncated })
}

fn git(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new("git");
    // No file-system monitor: it is a command of the repository's choosing, and may outlive this one.
    command
        .arg("-C")
        .arg(folder)
        .args(["--no-optional-locks", "--no-pager", "-c", "core.fsmonitor=false"])
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
pub(super) fn output(mut command: Command, cap: usize, deadline: Instant) -> Option<(Vec<u8>, bool)> {
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
    (in_time && (truncated || status.success())).then_some((bytes, truncated))
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
        assert_eq!(state(dir), None, "no commit yet");
        fs::create_dir(dir.join("configs")).unwrap();
        fs::write(dir.join("a.txt"), "one\n").unwrap();
        fs::write(dir.join("configs/b.bin"), [0u8, 159, 146, 150]).unwrap();
        run(dir, &["add", "."]);
        run(dir, &["commit", "-m", "x"]);
        let clean = state(&dir.join("configs")).unwrap();
        assert_eq!((clean.commit.len(), clean.branch.as_deref()), (40, Some("main")));
        assert_eq!((clean.diff.as_deref(), clean.truncated), (Some(&b""[..]), false));

        // Changes anywhere in the repository count; untracked files do not.
        fs::write(dir.join("a.txt"), "two\n").unwrap();
        fs::write(dir.join("configs/b.bin"), [0u8, 1, 2, 3, 255]).unwrap();
        fs::write(dir.join("untracked"), "x").unwrap();
        run(dir, &["checkout", "--detach"]);
        let dirty = state(&dir.join("configs")).unwrap();
        assert_eq!((dirty.commit, dirty.branch), (clean.commit, None));
        let diff = dirty.diff.unwrap();
        fs::write(dir.join("saved.diff"), &diff).unwrap();
        run(dir, &["checkout", "--force", "HEAD"]);
        run(dir, &["apply", "saved.diff"]);
        assert_eq!(fs::read(dir.join("configs/b.bin")).unwrap(), [0, 1, 2, 3, 255]);
        assert_eq!(fs::read(dir.join("a.txt")).unwrap(), b"two\n");
    }

    #[test]
    fn outside_of_git_there_is_nothing() {
        assert_eq!(state(Path::new("/no/such/folder")), None);
        assert_eq!(state(Path::new("/proc")), None);
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
