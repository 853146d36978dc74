//! What the system lets this process have: memory, threads, files and their size; and what is said where that ends.

pub mod allocator;

use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use rustix::io::Errno;

/// Memory that can be had still, and who keeps more from being had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Left {
    /// In bytes.
    pub bytes: usize,
    /// Whose bytes they are.
    pub by: By,
}

/// Who decides how much memory there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The machine, with what others use of it.
    Machine,
    /// The control group that the process is in: a container's or a job's.
    Group,
    /// `ulimit -v` (`RLIMIT_AS`), in bytes.
    Addresses(usize),
    /// `ulimit -d` (`RLIMIT_DATA`), in bytes.
    Data(usize),
}

impl By {
    /// Whether it refuses memory instead of ending processes when it is full.
    #[must_use]
    pub fn refuses(self) -> bool {
        matches!(self, Self::Addresses(_) | Self::Data(_))
    }
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Machine => f.write_str("this machine"),
            Self::Group => f.write_str("the control group of this container or job"),
            Self::Addresses(most) => write!(f, "the limit on memory (ulimit -v) of {}", size(*most as u64)),
            Self::Data(most) => write!(f, "the limit on data (ulimit -d) of {}", size(*most as u64)),
        }
    }
}

/// The memory that the system could give this process now, by whoever gives least. `None` where the system does not
/// tell.
#[must_use]
pub fn memory_left() -> Option<Left> {
    let machine = field("/proc/meminfo", "MemAvailable:").map(|bytes| Left { bytes, by: By::Machine });
    let group = group_left().map(|bytes| Left { bytes, by: By::Group });
    [machine, group, addresses_left(), data_left()].into_iter().flatten().min_by_key(|left| left.bytes)
}

/// What a control group has left; files that it has read and could forget are no use of it.
fn group_left() -> Option<usize> {
    let left = |folder: &str, limit: &str, used: &str, cached: &str| {
        let file = |name: &str| Path::new(folder).join(name);
        let cached = line(&fs::read_to_string(file("memory.stat")).unwrap_or_default(), cached).unwrap_or(0);
        Some(number(&file(limit))?.saturating_sub(number(&file(used))?.saturating_sub(cached)))
    };
    left("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file ").or_else(|| {
        let folder = "/sys/fs/cgroup/memory";
        left(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file ")
    })
}

#[cfg(target_os = "linux")]
fn addresses_left() -> Option<Left> {
    let most = most(rustix::process::Resource::As)?;
    let used = field("/proc/self/status", "VmSize:")?.saturating_sub(reserved()?);
    Some(Left { bytes: most.saturating_sub(used), by: By::Addresses(most) })
}

#[cfg(target_os = "linux")]
fn data_left() -> Option<Left> {
    let most = most(rustix::process::Resource::Data)?;
    let used = field("/proc/self/status", "VmData:")?.saturating_sub(reserved()?);
    Some(Left { bytes: most.saturating_sub(used), by: By::Data(most) })
}

/// What the allocator has taken from the system and not used yet: it counts as taken and can be had all the same. The
/// threads' stacks look alike and cannot.
#[cfg(target_os = "linux")]
fn reserved() -> Option<usize> {
    const STACK: usize = 2 << 20;
    let status = |name| field("/proc/self/status", name);
    let threads = fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    Some(status("VmData:")?.saturating_sub(status("RssAnon:")?).saturating_sub(threads * STACK))
}

/// A soft limit, where there is one.
#[cfg(target_os = "linux")]
fn most(of: rustix::process::Resource) -> Option<usize> {
    usize::try_from(rustix::process::getrlimit(of).current?).ok()
}

#[cfg(not(target_os = "linux"))]
fn addresses_left() -> Option<Left> {
    None
}

#[cfg(not(target_os = "linux"))]
fn data_left() -> Option<Left> {
    None
}

/// A file that holds one number; cgroups write `max` where there is no limit.
fn number(path: &Path) -> Option<usize> {
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// A line of a file under `/proc` that counts kilobytes, in bytes.
#[must_use]
pub fn field(path: &str, name: &str) -> Option<usize> {
    line(&fs::read_to_string(path).ok()?, name)
}

/// The number in `text` behind `name` at the start of a line, in bytes.
fn line(text: &str, name: &str) -> Option<usize> {
    let value = text.lines().find_map(|line| line.strip_prefix(name))?.trim();
    match value.strip_suffix("kB") {
        Some(kilobytes) => kilobytes.trim().parse::<usize>().ok()?.checked_mul(1024),
        None => value.parse().ok(),
    }
}

/// Lets a file that grows past its limit (`ulimit -f`) fail to be written. Otherwise the system ends the process there.
/// For a program to call once, at its start.
pub fn let_writes_fail() {
    #[cfg(unix)]
    // A handler, not "ignore": programs that are started from here have the system's default again. Where it is refused,
    // it is as before.
    drop(signal_hook::flag::register(libc::SIGXFSZ, std::sync::Arc::default()));
}

/// A limit of this process that kept the system from doing something: no file's or clip's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// `ulimit -n`: files open at a time.
    OpenFiles,
    /// The system's limit on files that all processes have open.
    OpenFilesOfAll,
    /// `ulimit -f`: a file's size.
    FileSize,
    /// Memory, whoever refuses it.
    Memory,
}

impl Limit {
    /// The limit that `error` is about, if it is about one.
    #[must_use]
    pub fn of(error: &io::Error) -> Option<Self> {
        match Errno::from_io_error(error) {
            Some(Errno::MFILE) => Some(Self::OpenFiles),
            Some(Errno::NFILE) => Some(Self::OpenFilesOfAll),
            // A file system may have a limit of its own, which no ulimit changes.
            Some(Errno::FBIG) => file_size().map(|_| Self::FileSize),
            Some(Errno::NOMEM) => Some(Self::Memory),
            _ => (error.kind() == io::ErrorKind::OutOfMemory).then_some(Self::Memory),
        }
    }

    /// What is said of it.
    #[must_use]
    pub fn what(self) -> String {
        match self {
            Self::OpenFiles => match open_files() {
                Some(most) => format!("the limit on open files (ulimit -n) is reached: {most} at a time"),
                None => "the limit on open files (ulimit -n) is reached".to_owned(),
            },
            Self::OpenFilesOfAll => "the system's limit on open files (fs.file-max) is reached".to_owned(),
            Self::FileSize => format!(
                "the limit on a file's size (ulimit -f) is reached: {}",
                file_size().map_or_else(|| "unknown".to_owned(), size)
            ),
            Self::Memory => match memory_left() {
                Some(left) => format!("memory ran out: {} has {} left", left.by, size(left.bytes as u64)),
                None => "memory ran out".to_owned(),
            },
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn hint(self) -> &'static str {
        match self {
            Self::OpenFiles => "raise it before the command (ulimit -n 1024), or lower data.num_workers",
            Self::OpenFilesOfAll => "end other programs, or ask who runs the machine to raise it",
            Self::FileSize => "raise it before the command (ulimit -f unlimited), or ask who set it",
            Self::Memory => MEMORY_HINT,
        }
    }
}

/// What takes memory in a run, where nothing is known of which of it is the most.
pub(crate) const MEMORY_HINT: &str = "lower data.batch_size, data.num_workers, model.sequence_length, model.image_size \
    or the network's widths, or raise the limit";

#[cfg(unix)]
fn open_files() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current
}

#[cfg(unix)]
fn file_size() -> Option<u64> {
    rustix::process::getrlimit(rustix::process::Resource::Fsize).current
}

#[cfg(not(unix))]
fn open_files() -> Option<u64> {
    None
}

#[cfg(not(unix))]
fn file_size() -> Option<u64> {
    None
}

/// Bytes as a person reads them: `64.0 KiB`, `3.0 GiB`.
#[must_use]
pub fn size(bytes: u64) -> String {
    bytesize::ByteSize(bytes).display().iec().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_proc_are_read() {
        let text = "VmPeak:\t  20 kB\nVmSize:\t   12 kB\ninactive_file 4096\n";
        assert_eq!(line(text, "VmSize:"), Some(12 << 10));
        assert_eq!(line(text, "inactive_file "), Some(4096));
        assert_eq!(line(text, "RssAnon:"), None);
        assert_eq!(line("VmSize: 18446744073709551615 kB", "VmSize:"), None);
    }

    #[test]
    fn errors_are_told_apart() {
        let limit = |number| Limit::of(&io::Error::from_raw_os_error(number));
        assert_eq!(
            [24, 23, 12].map(limit),
            [Some(Limit::OpenFiles), Some(Limit::OpenFilesOfAll), Some(Limit::Memory)]
        );
        assert_eq!([2, 13, 28].map(limit), [None; 3]);
        assert_eq!(Limit::of(&io::ErrorKind::OutOfMemory.into()), Some(Limit::Memory));
        assert_eq!(Limit::of(&io::Error::new(io::ErrorKind::FileTooLarge, "larger than 3 bytes")), None);
        assert!(Limit::OpenFiles.what().contains("ulimit -n"));
    }

    #[test]
    fn sizes_are_short() {
        assert_eq!([512, 65_536, 1 << 20, 3 << 30].map(size), ["512 B", "64.0 KiB", "1.0 MiB", "3.0 GiB"]);
    }
}
