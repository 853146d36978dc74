//! One process a run: a lock on a file in the run's folder, held for as long as the process lives.
//!
//! The system's lock (`flock`) decides, and the kernel gives it back when the process ends, however it ends: a file that
//! is left over blocks nobody, whichever machine its owner was on. What the file says, pid, host and start, is for the
//! message to whoever is refused.
//!
//! Some shared file systems have no such locks, or keep them within one machine. There the owner renews the file every
//! few seconds, and a newcomer watches whether that still happens before it takes over: neither clocks nor process
//! numbers of different machines are compared.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::files::{self, DiskFile};

/// The file, in the run's folder. It is removed when the run ends, unless the run is killed.
pub(super) const LOCK: &str = ".slt-run.lock";

/// Who holds a lock, as the file says it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// Its process, on `host`.
    pub pid: u32,
    /// Its machine.
    pub host: String,
    /// When it took the lock: UTC, to the second.
    pub started: String,
    /// How often it has renewed the file, where locks do not reach from machine to machine.
    beat: u64,
}

/// Why there is no lock.
#[derive(Debug)]
pub(super) enum Refused {
    /// Another process has it; `None` where the file does not say who.
    Held(Option<Owner>),
    /// The folder or the file cannot be used.
    Failed(io::Error),
}

impl From<io::Error> for Refused {
    fn from(error: io::Error) -> Self {
        Self::Failed(error)
    }
}

/// How far a granted lock reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reach {
    /// To everyone who sees the file.
    Everyone,
    /// To this machine's processes alone.
    Machine,
    /// To nobody: the file system has no locks.
    Nobody,
}

/// How to lock, and how long to wait for what.
struct Terms {
    lock: fn(&File) -> Result<Reach, TryLockError>,
    /// How often a held lock is tried, and the pause in between. Somebody who only looks holds it for a moment.
    tries: u32,
    pause: Duration,
    /// How often the owner renews the file.
    beat: Duration,
    /// How long it must stay as it is to count as left over.
    watch: Duration,
    /// How long a newcomer waits whether another one was quicker.
    settle: Duration,
}

const TERMS: Terms = Terms {
    lock: lock_file,
    tries: 10,
    pause: Duration::from_millis(20),
    beat: Duration::from_secs(5),
    watch: Duration::from_secs(30),
    settle: Duration::from_secs(2),
};

/// The lock. Dropping it gives it back.
#[derive(Debug)]
pub(super) struct RunLock {
    path: PathBuf,
    owner: Owner,
    heartbeat: Mutex<Option<Heartbeat>>,
    /// Its being open is what holds the lock.
    file: DiskFile,
}

impl RunLock {
    /// Takes the lock of `folder`, or finds out who has it. Where locks do not reach other machines this takes 2
    /// seconds, and 32 where an owner on another one did not end in order.
    pub fn acquire(folder: &Path) -> Result<Self, Refused> {
        let started = jiff::Timestamp::try_from(SystemTime::now()).map_err(io::Error::other)?;
        let owner = Owner {
            pid: std::process::id(),
            host: super::host_name().unwrap_or_default(),
            started: format!("{started:.0}"),
            beat: 0,
        };
        acquire(&folder.join(LOCK), owner, &TERMS)
    }

    /// Removes the file, if it is still this owner's. The lock itself goes with the value.
    ///
    /// Whoever has the old file open finds out that it is no longer the one in the folder.
    pub fn remove_file(&self) {
        // No beat may come after the file is gone.
        drop(self.heartbeat.lock().unwrap_or_else(PoisonError::into_inner).take());
        // Where the process may open no more files, the one that it has open tells.
        let here = || is_at(self.file.file(), &self.path).unwrap_or(false);
        if read(&self.path).map_or_else(here, |owner| self.owner.is(&owner)) {
            // Left over it harms nobody.
            let _ = files::remove_file(&self.path);
        }
    }
}

impl Drop for RunLock {
    fn drop(&mut self) {
        self.remove_file();
    }
}

impl Owner {
    fn is(&self, other: &Self) -> bool {
        (self.pid, &self.host, &self.started) == (other.pid, &other.host, &other.started)
    }

    /// Writes it over what `file` holds.
    fn write(&self, file: &mut DiskFile) -> io::Result<()> {
        let line = serde_json::to_string(self).map_err(io::Error::other)? + "\n";
        file.file().rewind()?;
        file.write_all(line.as_bytes())?;
        file.set_len(line.len() as u64)?;
        file.sync_data()
    }
}

/// Whether anyone holds the lock of `folder` at this moment. Writes nothing. An owner whom the system's locks do not
/// know is not seen.
pub(super) fn look(folder: &Path) -> Result<(), Refused> {
    let path = folder.join(LOCK);
    let locked = |file: File| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock));
    if File::open(&path).is_ok_and(locked) { Err(Refused::Held(read(&path))) } else { Ok(()) }
}

fn acquire(path: &Path, owner: Owner, terms: &Terms) -> Result<RunLock, Refused> {
    let mut tried = 0;
    loop {
        let mut file = DiskFile::update(path)?;
        let reach = match (terms.lock)(file.file()) {
            Ok(reach) => reach,
            Err(TryLockError::Error(error)) => return Err(error.into()),
            Err(TryLockError::WouldBlock) => {
                tried += 1;
                if tried >= terms.tries {
                    return Err(Refused::Held(read(path)));
                }
                std::thread::sleep(terms.pause);
                continue;
            }
        };
        // An owner that ended in between has removed the file: a lock on that one keeps nobody out.
        if reach != Reach::Nobody && !is_at(file.file(), path)? {
            continue;
        }
        let heartbeat = match reach {
            Reach::Everyone => {
                owner.write(&mut file).inspect_err(|_| _ = files::remove_file(path))?;
                None
            }
            _ => Some(take_over(path, &mut file, &owner, reach, terms)?),
        };
        let heartbeat = Mutex::new(heartbeat);
        return Ok(RunLock { path: path.to_owned(), owner, heartbeat, file });
    }
}

/// Becomes the owner where the system's locks do not tell whether there is another one.
fn take_over(
    path: &Path,
    file: &mut DiskFile,
    owner: &Owner,
    reach: Reach,
    terms: &Terms,
) -> Result<Heartbeat, Refused> {
    if let Some(before) = read(path) {
        // On this machine the lock that was granted says that it is gone.
        let known_dead = reach == Reach::Machine && before.host == owner.host;
        if !known_dead {
            wait_for_silence(path, &before, terms)?;
        }
    }
    owner.write(file)?;
    std::thread::sleep(terms.settle);
    // Of several who came at once, the last one to write stays.
    match read(path) {
        Some(found) if found.is(owner) => Ok(Heartbeat::start(file.try_clone()?, owner.clone(), terms.beat)?),
        other => Err(Refused::Held(other)),
    }
}

fn wait_for_silence(path: &Path, before: &Owner, terms: &Terms) -> Result<(), Refused> {
    let mut left = terms.watch;
    while !left.is_zero() {
        let pause = left.min(terms.beat);
        std::thread::sleep(pause);
        left -= pause;
        match read(path) {
            Some(now) if now == *before => {}
            // It ended in order, meanwhile.
            None if !path.exists() => return Ok(()),
            now => return Err(Refused::Held(now)),
        }
    }
    Ok(())
}

/// A thread that renews a lock's file.
#[derive(Debug)]
struct Heartbeat {
    /// Dropping it is the sign to stop.
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Heartbeat {
    fn start(mut file: DiskFile, mut owner: Owner, every: Duration) -> io::Result<Self> {
        let (stop, stopped) = mpsc::channel();
        let thread = std::thread::Builder::new().name("lock".to_owned()).spawn(move || {
            while stopped.recv_timeout(every) == Err(mpsc::RecvTimeoutError::Timeout) {
                owner.beat += 1;
                // A disk that fails for a while must not cost the run; the next beat may come through.
                let _ = owner.write(&mut file);
            }
        })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the file at `path` says. It is opened anew: a network file system looks for the newest content then.
fn read(path: &Path) -> Option<Owner> {
    let mut text = Vec::new();
    File::open(path).ok()?.take(4096).read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}

/// Locks `file` if nobody else has it.
fn lock_file(file: &File) -> Result<Reach, TryLockError> {
    /// No locks to be had, from a network file system whose lock service does not run.
    const ENOLCK: i32 = if cfg!(target_os = "linux") { 37 } else { 77 };
    match file.try_lock() {
        Ok(()) if stays_on_this_machine(file) => Ok(Reach::Machine),
        Ok(()) => Ok(Reach::Everyone),
        Err(TryLockError::Error(error))
            if error.kind() == io::ErrorKind::Unsupported || error.raw_os_error() == Some(ENOLCK) =>
        {
            Ok(Reach::Nobody)
        }
        Err(error) => Err(error),
    }
}

/// Whether `file` is the one that `path` names.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let held = file.metadata()?;
    match fs::metadata(path) {
        Ok(named) => Ok((held.dev(), held.ino()) == (named.dev(), named.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Elsewhere a file that is open is not removed.
#[cfg(not(unix))]
fn is_at(_file: &File, _path: &Path) -> io::Result<bool> {
    Ok(true)
}

#[cfg(target_os = "linux")]
fn stays_on_this_machine(file: &File) -> bool {
    use std::os::unix::fs::MetadataExt;
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    file.metadata().is_ok_and(|file| is_mounted_with_local_locks(&mounts, file.dev()))
}

#[cfg(not(target_os = "linux"))]
fn stays_on_this_machine(_file: &File) -> bool {
    false
}

/// Whether the file system of device `dev` is one that other machines see and that keeps locks to itself.
///
/// `mounts` is `/proc/self/mountinfo` (`proc_pid_mountinfo(5)`): the third word is the device, and behind a lone `-`
/// come type, source and options. The options are those of `nfs(5)` and of Lustre's `mount.lustre(8)`.
#[cfg(any(target_os = "linux", test))]
fn is_mounted_with_local_locks(mounts: &str, dev: u64) -> bool {
    // The kernel's `MKDEV`, as `stat` shows it (`makedev(3)`).
    let major = ((dev >> 8) & 0xfff) | ((dev >> 32) & !0xfff);
    let minor = (dev & 0xff) | ((dev >> 12) & !0xff);
    let device = format!("{major}:{minor}");
    let of_device = mounts.lines().filter(|line| line.split(' ').nth(2) == Some(device.as_str()));
    of_device.filter_map(|line| line.split_once(" - ")).any(|(_, rest)| {
        let mut words = rest.split(' ');
        let (kind, options) = (words.next().unwrap_or_default(), words.nth(1).unwrap_or_default());
        let has = |wanted: &[&str]| options.split(',').any(|option| wanted.contains(&option));
        match kind {
            "nfs" | "nfs4" => has(&["local_lock=all", "local_lock=flock", "nolock"]),
            "lustre" => has(&["localflock"]),
            // What a FUSE or 9P server does with locks does not show.
            _ => kind == "9p" || kind.starts_with("fuse."),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::OpenOptions;

    fn owner(pid: u32, host: &str) -> Owner {
        Owner { pid, host: host.to_owned(), started: "2026-01-01T00:00:00Z".to_owned(), beat: 0 }
    }

    /// A file system without locks, and little patience.
    const WITHOUT_LOCKS: Terms = Terms {
        lock: |_| Ok(Reach::Nobody),
        tries: 2,
        pause: Duration::from_millis(1),
        beat: Duration::from_millis(10),
        watch: Duration::from_millis(120),
        settle: Duration::from_millis(20),
    };
    const ONE_MACHINE: Terms = Terms {
        lock: |file| file.try_lock().map(|()| Reach::Machine),
        watch: Duration::from_mins(10),
        ..WITHOUT_LOCKS
    };

    fn held(result: Result<RunLock, Refused>) -> Option<Owner> {
        match result {
            Err(Refused::Held(owner)) => owner,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn one_has_it_until_it_is_dropped() {
        let folder = tempfile::tempdir().unwrap();
        let lock = RunLock::acquire(folder.path()).unwrap();
        let seen = match look(folder.path()) {
            Err(Refused::Held(owner)) => owner,
            other => panic!("{other:?}"),
        };
        for owner in [held(RunLock::acquire(folder.path())), seen] {
            let owner = owner.unwrap();
            assert_eq!((owner.pid, Some(owner.host)), (std::process::id(), super::super::host_name()));
            assert!(owner.started.ends_with('Z'));
        }
        drop(lock);
        look(folder.path()).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        RunLock::acquire(folder.path()).unwrap();
    }

    #[test]
    fn a_file_that_is_left_over_or_damaged_blocks_nobody() {
        let folder = tempfile::tempdir().unwrap();
        for left in ["", "{\"pid\":", &serde_json::to_string(&owner(1, "elsewhere")).unwrap().repeat(9)] {
            fs::write(folder.path().join(LOCK), left).unwrap();
            look(folder.path()).unwrap();
            let _lock = RunLock::acquire(folder.path()).unwrap();
            assert_eq!(read(&folder.path().join(LOCK)).unwrap().pid, std::process::id());
        }
    }

    #[test]
    fn a_lock_on_a_file_that_was_removed_is_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(LOCK);
        let old = OpenOptions::new().write(true).create_new(true).open(&path).unwrap();
        assert!(is_at(&old, &path).unwrap());
        fs::remove_file(&path).unwrap();
        assert!(!is_at(&old, &path).unwrap());
        fs::write(&path, "").unwrap();
        assert!(!is_at(&old, &path).unwrap());
        // Nor does an owner whose file was replaced remove the next one's.
        let first = RunLock::acquire(folder.path()).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, serde_json::to_string(&owner(7, "next")).unwrap()).unwrap();
        drop(first);
        assert_eq!(read(&path), Some(owner(7, "next")));
    }

    #[test]
    fn many_at_once_leave_one_owner_at_a_time() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let folder = tempfile::tempdir().unwrap();
        let (inside, taken) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        if let Ok(lock) = acquire(
                            &folder.path().join(LOCK),
                            owner(1, "x"),
                            &Terms { lock: lock_file, ..WITHOUT_LOCKS },
                        ) {
                            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                            taken.fetch_add(1, Ordering::SeqCst);
                            std::thread::yield_now();
                            inside.fetch_sub(1, Ordering::SeqCst);
                            drop(lock);
                        }
                    }
                });
            }
        });
        assert!(taken.load(Ordering::SeqCst) > 4);
    }

    #[test]
    fn without_locks_a_silent_owner_is_replaced_and_a_living_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(LOCK);
        fs::write(&path, serde_json::to_string(&owner(7, "dead")).unwrap()).unwrap();
        let first = acquire(&path, owner(1, "a"), &WITHOUT_LOCKS).unwrap();
        let patient = Terms { watch: Duration::from_mins(1), ..WITHOUT_LOCKS };
        assert_eq!(held(acquire(&path, owner(2, "b"), &patient)).unwrap().pid, 1);
        drop(first);
        assert!(!path.exists());
        drop(acquire(&path, owner(2, "b"), &WITHOUT_LOCKS).unwrap());
    }

    #[test]
    fn without_locks_the_last_of_several_newcomers_stays() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(LOCK);
        let terms = Terms { settle: Duration::from_millis(500), ..WITHOUT_LOCKS };
        std::thread::scope(|scope| {
            let newcomers: Vec<_> = (1..=4)
                .map(|pid| {
                    scope.spawn({
                        let path = &path;
                        let terms = &terms;
                        move || acquire(path, owner(pid, "h"), terms)
                    })
                })
                .collect();
            let results: Vec<_> = newcomers.into_iter().map(|newcomer| newcomer.join().unwrap()).collect();
            assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
        });
    }

    #[test]
    fn locks_of_one_machine_tell_its_own_dead_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(LOCK);
        fs::write(&path, serde_json::to_string(&owner(7, "here")).unwrap()).unwrap();
        let lock = acquire(&path, owner(1, "here"), &ONE_MACHINE).unwrap();
        assert_eq!(held(acquire(&path, owner(2, "here"), &ONE_MACHINE)).unwrap().pid, 1);
        drop(lock);
        let terms = Terms { watch: Duration::from_millis(60), ..ONE_MACHINE };
        fs::write(&path, serde_json::to_string(&owner(7, "there")).unwrap()).unwrap();
        assert!(acquire(&path, owner(1, "here"), &terms).is_ok());
    }

    #[test]
    fn mounts_that_keep_locks_to_themselves_are_known() {
        let mounts = "22 1 0:21 / / rw shared:1 - ext4 /dev/sda rw\n\
                      30 22 0:45 / /nfs rw shared:2 - nfs4 server:/x rw,vers=4.2,local_lock=none\n\
                      31 22 0:46 / /old rw - nfs server:/y rw,nolock,local_lock=all\n\
                      32 22 0:47 / /l rw shared:3 master:1 - lustre 10.0.0.1@tcp:/l rw,localflock\n\
                      33 22 0:48 / /l2 rw - lustre 10.0.0.1@tcp:/l rw,flock\n\
                      34 22 0:49 / /s rw - fuse.sshfs a:/ rw\n\
                      garbage";
        let local = (0..64).filter(|&minor| is_mounted_with_local_locks(mounts, minor));
        assert_eq!(local.collect::<Vec<_>>(), [46, 47, 49]);
    }
}
