//! One process a run: a lock on a file in the run's folder, held for as long as the process lives.
//!
//! The system's lock (`flock`) decides, and the kernel gives it back when the process ends, however it ends: a file that
//! is left over blocks nobody, whichever machine its owner was on. What the file says, pid, host and start, is for the
//! message to whoever is refused.
//!
//! Some shared file systems have no such locks, or keep them within one machine. There the owner renews the file every
//! few seconds, and a newcomer watches whether that still happens before it takes over: neither clocks nor process
//! numbers of different machines are compared.

use std::fs::{File, TryLockError};
use std::io::{self, Seek, Write};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::files::{DiskFile, Folder};

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
    folder: Folder,
    owner: Owner,
    held: Mutex<Held>,
}

/// What holds a lock.
#[derive(Debug)]
struct Held {
    heartbeat: Option<Heartbeat>,
    /// Its being open is what holds the lock.
    file: DiskFile,
}

impl RunLock {
    /// Takes the lock of `folder`, or finds out who has it. Where locks do not reach other machines this takes 2
    /// seconds, and 32 where an owner on another one did not end in order.
    pub fn acquire(folder: &Folder) -> Result<Self, Refused> {
        let started = jiff::Timestamp::try_from(SystemTime::now()).map_err(io::Error::other)?;
        let owner = Owner {
            pid: std::process::id(),
            host: super::host_name().unwrap_or_default(),
            started: format!("{started:.0}"),
            beat: 0,
        };
        acquire(folder, owner, &TERMS)
    }

    /// Makes sure that the lock in the folder is still this owner's. Where somebody has removed the file, it is taken
    /// again, unless another process was faster.
    ///
    /// # Errors
    /// [`Refused::Held`] where the folder is another process's now. A disk that does not answer is no error: it may be
    /// back for the next write.
    pub fn ensure(&self) -> Result<(), Refused> {
        match self.folder.read(LOCK, MOST_BYTES) {
            Ok(text) => match serde_json::from_slice::<Owner>(&text) {
                Ok(owner) if self.owner.is(&owner) => Ok(()),
                Ok(owner) => Err(Refused::Held(Some(owner))),
                Err(_) if self.folder.names(LOCK, self.held().file.file()) => Ok(()),
                Err(_) => Err(Refused::Held(None)),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                match take(&self.folder, &self.owner, &TERMS) {
                    Ok(held) => *self.held() = held,
                    Err(Refused::Held(owner)) => return Err(Refused::Held(owner)),
                    Err(Refused::Failed(_)) => {}
                }
                Ok(())
            }
            Err(_) => Ok(()),
        }
    }

    /// Removes the file, if it is still this owner's. The lock itself goes with the value.
    ///
    /// Whoever has the old file open finds out that it is no longer the one in the folder.
    pub fn remove_file(&self) {
        // No beat may come after the file is gone.
        let mut held = self.held();
        drop(held.heartbeat.take());
        // Where the process may open no more files, the one that it has open tells.
        let here = self.folder.names(LOCK, held.file.file());
        if read(&self.folder).map_or(here, |owner| self.owner.is(&owner)) {
            // Left over it harms nobody.
            let _ = self.folder.remove_file(LOCK);
        }
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
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
pub(super) fn look(folder: &Folder) -> Result<(), Refused> {
    let locked = |file: File| matches!(file.try_lock_shared(), Err(TryLockError::WouldBlock));
    if folder.open_file(LOCK).is_ok_and(locked) { Err(Refused::Held(read(folder))) } else { Ok(()) }
}

fn acquire(folder: &Folder, owner: Owner, terms: &Terms) -> Result<RunLock, Refused> {
    let held = Mutex::new(take(folder, &owner, terms)?);
    Ok(RunLock { folder: folder.clone(), owner, held })
}

fn take(folder: &Folder, owner: &Owner, terms: &Terms) -> Result<Held, Refused> {
    let mut tried = 0;
    loop {
        let mut file = folder.update(LOCK)?;
        let reach = match (terms.lock)(file.file()) {
            Ok(reach) => reach,
            Err(TryLockError::Error(error)) => return Err(error.into()),
            Err(TryLockError::WouldBlock) => {
                tried += 1;
                if tried >= terms.tries {
                    return Err(Refused::Held(read(folder)));
                }
                std::thread::sleep(terms.pause);
                continue;
            }
        };
        // An owner that ended in between has removed the file: a lock on that one keeps nobody out.
        if reach != Reach::Nobody && !folder.names(LOCK, file.file()) {
            continue;
        }
        let heartbeat = match reach {
            Reach::Everyone => {
                owner.write(&mut file).inspect_err(|_| _ = folder.remove_file(LOCK))?;
                None
            }
            _ => Some(take_over(folder, &mut file, owner, reach, terms)?),
        };
        return Ok(Held { heartbeat, file });
    }
}

/// Becomes the owner where the system's locks do not tell whether there is another one.
fn take_over(
    folder: &Folder,
    file: &mut DiskFile,
    owner: &Owner,
    reach: Reach,
    terms: &Terms,
) -> Result<Heartbeat, Refused> {
    if let Some(before) = read(folder) {
        // On this machine the lock that was granted says that it is gone.
        let known_dead = reach == Reach::Machine && before.host == owner.host;
        if !known_dead {
            wait_for_silence(folder, &before, terms)?;
        }
    }
    owner.write(file)?;
    std::thread::sleep(terms.settle);
    // Of several who came at once, the last one to write stays.
    match read(folder) {
        Some(found) if found.is(owner) => Ok(Heartbeat::start(file.try_clone()?, owner.clone(), terms.beat)?),
        other => Err(Refused::Held(other)),
    }
}

fn wait_for_silence(folder: &Folder, before: &Owner, terms: &Terms) -> Result<(), Refused> {
    let mut left = terms.watch;
    while !left.is_zero() {
        let pause = left.min(terms.beat);
        std::thread::sleep(pause);
        left -= pause;
        match read(folder) {
            Some(now) if now == *before => {}
            // It ended in order, meanwhile.
            None if !folder.has(LOCK) => return Ok(()),
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

/// More than any owner writes.
const MOST_BYTES: u64 = 4096;

/// What the folder's file says. It is opened anew: a network file system looks for the newest content then.
fn read(folder: &Folder) -> Option<Owner> {
    serde_json::from_slice(&folder.read(LOCK, MOST_BYTES).ok()?).ok()
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

#[cfg(target_os = "linux")]
fn stays_on_this_machine(file: &File) -> bool {
    use std::os::unix::fs::MetadataExt;
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
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
    use std::fs::{self, OpenOptions};
    use std::path::Path;

    fn open(folder: &Path) -> Folder {
        Folder::open(folder).unwrap()
    }

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
        let temporary = tempfile::tempdir().unwrap();
        let folder = open(temporary.path());
        let lock = RunLock::acquire(&folder).unwrap();
        lock.ensure().unwrap();
        let seen = match look(&folder) {
            Err(Refused::Held(owner)) => owner,
            other => panic!("{other:?}"),
        };
        for owner in [held(RunLock::acquire(&folder)), seen] {
            let owner = owner.unwrap();
            assert_eq!((owner.pid, Some(owner.host)), (std::process::id(), super::super::host_name()));
            assert!(owner.started.ends_with('Z'));
        }
        drop(lock);
        look(&folder).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        RunLock::acquire(&folder).unwrap();
    }

    #[test]
    fn a_file_that_is_left_over_or_damaged_blocks_nobody() {
        let folder = tempfile::tempdir().unwrap();
        for left in ["", "{\"pid\":", &serde_json::to_string(&owner(1, "elsewhere")).unwrap().repeat(9)] {
            fs::write(folder.path().join(LOCK), left).unwrap();
            look(&open(folder.path())).unwrap();
            let _lock = RunLock::acquire(&open(folder.path())).unwrap();
            assert_eq!(read(&open(folder.path())).unwrap().pid, std::process::id());
        }
    }

    #[test]
    fn a_lock_on_a_file_that_was_removed_is_none() {
        let temporary = tempfile::tempdir().unwrap();
        let (folder, path) = (open(temporary.path()), temporary.path().join(LOCK));
        let old = OpenOptions::new().write(true).create_new(true).open(&path).unwrap();
        assert!(folder.names(LOCK, &old));
        fs::remove_file(&path).unwrap();
        assert!(!folder.names(LOCK, &old));
        fs::write(&path, "").unwrap();
        assert!(!folder.names(LOCK, &old));
        // Nor does an owner whose file was replaced remove the next one's.
        let first = RunLock::acquire(&folder).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, serde_json::to_string(&owner(7, "next")).unwrap()).unwrap();
        assert!(matches!(first.ensure(), Err(Refused::Held(Some(now))) if now.pid == 7));
        drop(first);
        assert_eq!(read(&folder), Some(owner(7, "next")));
    }

    #[test]
    fn a_lock_whose_file_was_removed_is_taken_again() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = open(temporary.path());
        let lock = RunLock::acquire(&folder).unwrap();
        fs::remove_file(temporary.path().join(LOCK)).unwrap();
        lock.ensure().unwrap();
        assert_eq!(held(RunLock::acquire(&folder)).unwrap().pid, std::process::id());
        // A disk that fails is no other process.
        fs::remove_dir_all(temporary.path()).unwrap();
        lock.ensure().unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn a_lock_is_never_taken_through_a_link() {
        let temporary = tempfile::tempdir().unwrap();
        fs::write(temporary.path().join("theirs"), "theirs").unwrap();
        std::os::unix::fs::symlink("theirs", temporary.path().join(LOCK)).unwrap();
        assert!(matches!(RunLock::acquire(&open(temporary.path())), Err(Refused::Failed(_))));
        assert_eq!(fs::read(temporary.path().join("theirs")).unwrap(), b"theirs");
    }

    #[test]
    fn many_at_once_leave_one_owner_at_a_time() {
        use std::sync::atomic::{AtomicUsize, Ordering};
        let temporary = tempfile::tempdir().unwrap();
        let folder = open(temporary.path());
        let (inside, taken) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        if let Ok(lock) =
                            acquire(&folder, owner(1, "x"), &Terms { lock: lock_file, ..WITHOUT_LOCKS })
                        {
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
        let temporary = tempfile::tempdir().unwrap();
        let (folder, path) = (open(temporary.path()), temporary.path().join(LOCK));
        fs::write(&path, serde_json::to_string(&owner(7, "dead")).unwrap()).unwrap();
        let first = acquire(&folder, owner(1, "a"), &WITHOUT_LOCKS).unwrap();
        let patient = Terms { watch: Duration::from_mins(1), ..WITHOUT_LOCKS };
        assert_eq!(held(acquire(&folder, owner(2, "b"), &patient)).unwrap().pid, 1);
        drop(first);
        assert!(!path.exists());
        drop(acquire(&folder, owner(2, "b"), &WITHOUT_LOCKS).unwrap());
    }

    #[test]
    fn without_locks_the_last_of_several_newcomers_stays() {
        let temporary = tempfile::tempdir().unwrap();
        let folder = open(temporary.path());
        let terms = Terms { settle: Duration::from_millis(500), ..WITHOUT_LOCKS };
        std::thread::scope(|scope| {
            let newcomers: Vec<_> = (1..=4)
                .map(|pid| {
                    scope.spawn({
                        let folder = &folder;
                        let terms = &terms;
                        move || acquire(folder, owner(pid, "h"), terms)
                    })
                })
                .collect();
            let results: Vec<_> = newcomers.into_iter().map(|newcomer| newcomer.join().unwrap()).collect();
            assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
        });
    }

    #[test]
    fn locks_of_one_machine_tell_its_own_dead_at_once() {
        let temporary = tempfile::tempdir().unwrap();
        let (folder, path) = (open(temporary.path()), temporary.path().join(LOCK));
        fs::write(&path, serde_json::to_string(&owner(7, "here")).unwrap()).unwrap();
        let lock = acquire(&folder, owner(1, "here"), &ONE_MACHINE).unwrap();
        assert_eq!(held(acquire(&folder, owner(2, "here"), &ONE_MACHINE)).unwrap().pid, 1);
        drop(lock);
        let terms = Terms { watch: Duration::from_millis(60), ..ONE_MACHINE };
        fs::write(&path, serde_json::to_string(&owner(7, "there")).unwrap()).unwrap();
        assert!(acquire(&folder, owner(1, "here"), &terms).is_ok());
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
