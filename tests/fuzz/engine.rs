//! The loop: takes a file that has shown something new, damages it, reads it, and judges what happened.
//!
//! There is no coverage to guide it: what a reader says, numbers left out, stands for where it went. A file that made
//! it say something new is kept and damaged further.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use slt_run::{Error, ErrorKind};

use crate::memory::peak_of;
use crate::random::Random;

/// Damages a file; the last are others to take pieces from.
type Mutate = fn(&mut Random, &[u8], &[Vec<u8>]) -> Vec<u8>;

/// One reader under test.
pub struct Target {
    /// Its test's name.
    pub name: &'static str,
    /// The name of the file that it reads.
    pub file: &'static str,
    /// Good files to start from.
    pub seeds: Vec<Vec<u8>>,
    /// Damages a file with its format in mind.
    pub mutate: Mutate,
    /// Reads a file, checks what was read, and says what it was in a few words.
    pub read: fn(&Path) -> Result<String, Error>,
    /// The most memory that reading may take: so many bytes for each of the file's, and so many more.
    pub memory: (usize, usize),
    /// Whether every refusal says what to do.
    pub cures: bool,
}

/// Reading any file that is made here takes milliseconds; a machine may be busy.
const SLOW: Duration = Duration::from_secs(10);
const HANGS: Duration = Duration::from_mins(1);
/// Files that showed something new.
const MOST_KEPT: usize = 1000;
const MOST_KEPT_BYTES: usize = 20_000;

/// The input that is being read.
struct Current {
    since: Instant,
    number: u64,
}

/// Fuzzes for `SLT_FUZZ_SECONDS` (1 by default) from `SLT_FUZZ_SEED` (0 by default), or reads `SLT_FUZZ_FILE` alone.
pub fn fuzz(target: &Target) {
    slt_run::guard::silence_guarded_panics();
    let number = |name: &str| std::env::var(name).ok().map(|text| text.parse::<u64>().expect("a number"));
    let folder = if Path::new("/dev/shm").is_dir() {
        tempfile::tempdir_in("/dev/shm").unwrap()
    } else {
        tempfile::tempdir().unwrap()
    };
    let path = folder.path().join(target.file);
    if let Some(file) = std::env::var_os("SLT_FUZZ_FILE") {
        let said = judge(target, &path, &std::fs::read(file).unwrap()).unwrap();
        eprintln!("{said}");
        return;
    }
    let seed = number("SLT_FUZZ_SEED").unwrap_or(0);
    let time = Duration::from_secs(number("SLT_FUZZ_SECONDS").unwrap_or(1));
    let current = Arc::new(Mutex::new(Current { since: Instant::now(), number: 0 }));
    let done = watch(target.name, seed, &path, &current);

    let begun = Instant::now();
    let (mut kept, mut seen) = (target.seeds.clone(), HashSet::new());
    for bytes in &target.seeds {
        let said = judge(target, &path, bytes).unwrap_or_else(|problem| panic!("a good file: {problem}"));
        seen.insert(said);
    }
    let mut inputs = 0;
    while begun.elapsed() < time {
        let mut random = Random::new(seed, inputs);
        // Half of the time one of those that came last.
        let late = kept.len().saturating_sub(20) * random.below(2);
        let mut bytes = kept[late + random.below(kept.len() - late)].clone();
        for _ in 0..=random.count(6) {
            bytes = (target.mutate)(&mut random, &bytes, &kept);
        }
        *current.lock().unwrap() = Current { since: Instant::now(), number: inputs };
        match judge(target, &path, &bytes) {
            Ok(said) => {
                if seen.insert(said) && kept.len() < MOST_KEPT && bytes.len() < MOST_KEPT_BYTES {
                    kept.push(bytes);
                }
            }
            Err(problem) => {
                let saved = save(target.name, seed, inputs, &bytes);
                let problem: String = problem.chars().take(1500).collect();
                panic!("{problem}\nseed {seed}, input {inputs}, kept in {}", saved.display());
            }
        }
        inputs += 1;
    }
    drop(done);
    let rate = inputs as f64 / begun.elapsed().as_secs_f64();
    eprintln!(
        "fuzz {}: seed {seed}, {inputs} inputs, {rate:.0} a second, {} things said",
        target.name,
        seen.len()
    );
}

/// Keeps an input for `SLT_FUZZ_FILE`.
fn save(name: &str, seed: u64, number: u64, bytes: &[u8]) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{name}-{seed}-{number}"));
    std::fs::write(&path, bytes).unwrap();
    path
}

/// Ends the process if one input takes for ever. The watch ends when what it returns is dropped.
fn watch(name: &'static str, seed: u64, path: &Path, current: &Arc<Mutex<Current>>) -> Arc<()> {
    let done = Arc::new(());
    let (alive, current, path) = (Arc::downgrade(&done), current.clone(), path.to_owned());
    std::thread::spawn(move || {
        while alive.upgrade().is_some() {
            std::thread::sleep(Duration::from_millis(200));
            let (since, number) = {
                let current = current.lock().unwrap();
                (current.since, current.number)
            };
            if alive.upgrade().is_some() && since.elapsed() > HANGS {
                let saved = save(name, seed, number, &std::fs::read(&path).unwrap_or_default());
                eprintln!("fuzz {name}: reading takes for ever: {}", saved.display());
                std::process::abort();
            }
        }
    });
    done
}

/// Reads one file; what the reader said, in words that stand for the way it took, or what is wrong with the reader.
fn judge(target: &Target, path: &Path, bytes: &[u8]) -> Result<String, String> {
    // A new file: writing over one waits for the disk on some file systems.
    let _ = std::fs::remove_file(path);
    std::fs::write(path, bytes).unwrap();
    let begun = Instant::now();
    let read = || catch_unwind(AssertUnwindSafe(|| (target.read)(path)));
    let (outcome, peak) = peak_of(read);
    let took = begun.elapsed();
    let outcome = outcome.map_err(|panic| format!("it panicked: {:?}", panic.downcast_ref::<String>()))?;
    let most = bytes.len() * target.memory.0 + target.memory.1;
    if peak > most {
        return Err(format!("it took {peak} bytes for a file of {}, more than {most}", bytes.len()));
    }
    if took > SLOW {
        return Err(format!("it took {took:?} for a file of {} bytes", bytes.len()));
    }
    match outcome {
        Ok(said) => Ok(shape(&said)),
        Err(error) => {
            let text = error.to_string();
            let cured = error.problems.iter().all(|problem| problem.hint.is_some());
            if !matches!(error.kind, ErrorKind::Data | ErrorKind::Config) {
                return Err(format!("not the file's fault: {text}"));
            }
            let named = error.problems.iter().all(|problem| problem.what.contains(target.file));
            if !named || text.len() > 4000 * error.problems.len() || (target.cures && !cured) {
                return Err(format!("a message without the file's name or a cure, or a long one: {text}"));
            }
            Ok(shape(&text))
        }
    }
}

/// The text without what differs from file to file: numbers, quotes, and lines that show a piece of the file.
fn shape(text: &str) -> String {
    let mut shape = String::new();
    for line in text.lines().filter(|line| !line.contains(['{', '[', '|', '^'])).take(12) {
        let plain = line.split(['`', '"']).step_by(2).flat_map(str::chars);
        shape.extend(plain.filter(|c| c.is_ascii_alphabetic() || *c == ' ').take(100));
        shape.push('\n');
    }
    shape
}
