//! TensorBoard's event files: a new file at every start, one write a record.
//!
//! The messages and the framing (length, masked CRC-32C, data, masked CRC-32C) come from tensorboard-rs. Its own
//! writer is not used: it ends the process's training on a full disk. Here an error is a value, and training goes on.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use protobuf::Message;
use tensorboard_proto::event::{Event, TaggedRunMetadata};
use tensorboard_proto::summary::{Summary, Summary_Value, SummaryMetadata, SummaryMetadata_PluginData};
use tensorboard_proto::tensor::TensorProto;
use tensorboard_proto::types::DataType;
use tensorboard_rs::record_writer::RecordWriter;
use tensorboard_rs::summary;

use super::append::AppendFile;
use crate::error::{Error, ErrorKind, Result};
use crate::files::Folder;
use crate::input;

/// A file of scalars that TensorBoard shows.
#[derive(Debug)]
pub struct TensorBoard {
    file: AppendFile,
    path: PathBuf,
    /// The file's folder and those above it that were not there before, the innermost first.
    made: Vec<PathBuf>,
}

impl TensorBoard {
    /// Makes `folder` where it is missing and starts a new event file in it,
    /// `events.out.tfevents.<unix seconds>.<host>.<pid>.<n>`, which says that it is of the run in `run`.
    ///
    /// # Errors
    ///
    /// A run error that names the path. It should cost a warning, not the run.
    pub fn create(folder: &Path, run: &Path) -> Result<Self> {
        let missing = folder.ancestors().take_while(|f| !f.as_os_str().is_empty() && !f.exists());
        let made = missing.map(Path::to_owned).collect();
        std::fs::create_dir_all(folder)
            .map_err(|e| Error::io(ErrorKind::Run, "cannot make the folder", folder, &e))?;
        let (file, path) = new_file(folder)
            .map_err(|e| Error::io(ErrorKind::Run, "cannot write TensorBoard events to", folder, &e))?;
        let mut writer = Self { file, path, made };
        let mut event = Event::new();
        event.set_file_version("brain.Event:2".to_owned());
        set_source(&mut event, &format!("{WRITER}{}", run.display()));
        writer.add(event)?;
        Ok(writer)
    }

    /// Removes the file, and the folders that were made for it.
    pub fn discard(self) {
        self.discarding()();
    }

    /// What [`Self::discard`] does, for whoever has to do it without this value.
    pub fn discarding(&self) -> impl FnOnce() + Send + 'static {
        let (path, made) = (self.path.clone(), self.made.clone());
        move || {
            // Leftovers harm nobody: the next start takes a new file.
            let _ = std::fs::remove_file(path);
            for folder in made {
                let _ = std::fs::remove_dir(folder);
            }
        }
    }

    /// Where the events go.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds the point (`step`, `value`) to the curve `tag`.
    ///
    /// # Errors
    ///
    /// A run error that names the file. The file stays readable, and a later call may succeed.
    pub fn add_scalar(&mut self, tag: &str, value: f32, step: i64) -> Result<()> {
        let mut event = Event::new();
        event.set_step(step);
        event.set_summary(summary::scalar(tag, value));
        self.add(event)
    }

    /// Adds `text`, markdown, to the texts of `tag`, at `step`.
    ///
    /// # Errors
    ///
    /// As [`Self::add_scalar`].
    pub fn add_text(&mut self, tag: &str, text: &str, step: i64) -> Result<()> {
        let mut plugin = SummaryMetadata_PluginData::new();
        plugin.set_plugin_name("text".to_owned());
        let mut metadata = SummaryMetadata::new();
        metadata.set_plugin_data(plugin);
        let mut tensor = TensorProto::new();
        tensor.set_dtype(DataType::DT_STRING);
        tensor.mut_string_val().push(text.as_bytes().to_vec());
        let mut value = Summary_Value::new();
        value.set_tag(tag.to_owned());
        value.set_metadata(metadata);
        value.set_tensor(tensor);
        let mut summary = Summary::new();
        summary.mut_value().push(value);
        let mut event = Event::new();
        event.set_step(step);
        event.set_summary(summary);
        self.add(event)
    }

    /// Hands everything to the disk. TensorBoard sees each record without it.
    ///
    /// # Errors
    ///
    /// A run error that names the file.
    pub fn flush(&mut self) -> Result<()> {
        self.file.sync().map_err(|e| self.failed(&e))
    }

    fn add(&mut self, mut event: Event) -> Result<()> {
        event.set_wall_time(now());
        record(&event).and_then(|record| self.file.add(&record)).map_err(|e| self.failed(&e))
    }

    fn failed(&self, error: &io::Error) -> Error {
        Error::io(ErrorKind::Run, "cannot write TensorBoard events to", &self.path, error)
    }
}

/// What the source of our event files begins with; the run's folder follows.
const WRITER: &str = "slt-run ";

/// The number of `Event.source_metadata` in TensorFlow's `event.proto`, which is younger than tensorboard-proto.
const SOURCE_METADATA: u32 = 10;

/// Notes who writes, in a file's first event.
fn set_source(event: &mut Event, writer: &str) {
    // `SourceMetadata` has one field, a string of number 1, and so has this.
    let mut source = TaggedRunMetadata::new();
    source.set_tag(writer.to_owned());
    if let Ok(bytes) = source.write_to_bytes() {
        event.mut_unknown_fields().add_length_delimited(SOURCE_METADATA, bytes);
    }
}

/// The run that an event file says it is of.
fn source(path: &Path) -> Option<String> {
    let mut bytes = Vec::new();
    // The first event is a line's worth, and a path has at most 4096 bytes.
    input::open(path).ok()?.0.take(16 << 10).read_to_end(&mut bytes).ok()?;
    let (data, _) = first_record(&bytes)?;
    let event = Event::parse_from_bytes(data).ok()?;
    let source = event.get_unknown_fields().get(SOURCE_METADATA)?.length_delimited.first()?.clone();
    let source = TaggedRunMetadata::parse_from_bytes(&source).ok()?;
    source.get_tag().strip_prefix(WRITER).map(str::to_owned)
}

/// The runs whose curves are in `folder` beside those of `ours`, the event files of the run in `run`: its folder each,
/// or the file's name where that does not say whose it is. TensorBoard shows all files of a folder as one run.
#[must_use]
pub fn others_in(folder: &Path, ours: &[PathBuf], run: &Path) -> BTreeSet<String> {
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let entries = std::fs::read_dir(&folder).into_iter().flatten().filter_map(std::result::Result::ok);
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let events = names.filter(|name| name.contains("tfevents"));
    let others = events.filter(|name| !ours.contains(&folder.join(name)));
    others
        .map(|name| match source(&folder.join(&name)) {
            Some(other) if Path::new(&other) == run => format!("an earlier run in {other}"),
            Some(other) => format!("the run in {other}"),
            None => format!("a run that {name} does not name"),
        })
        .collect()
}

/// Cuts the event file at `path` off where it has points after `epoch` epochs and `step` steps, or half a record.
///
/// Tags that end with `/step` count steps, the others epochs; points come in the order of time, so that all that
/// follows the first one that is too late is too late as well.
///
/// # Errors
///
/// A run error that names the path.
pub fn rewind(path: &Path, epoch: usize, step: u64) -> Result<()> {
    let failed = |error: &io::Error| Error::io(ErrorKind::Run, "cannot take back events of", path, error);
    let bytes = match input::read(path, u64::MAX) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        read => read.map_err(|error| failed(&error))?,
    };
    let mut kept = 0;
    while let Some((data, length)) = first_record(&bytes[kept..]) {
        let Ok(event) = Event::parse_from_bytes(data) else { break };
        let at = u64::try_from(event.get_step()).unwrap_or(0);
        let is_late = |tag: &str| if tag.ends_with("/step") { at > step } else { at > epoch as u64 };
        if event.get_summary().get_value().iter().any(|value| is_late(value.get_tag())) {
            break;
        }
        kept += length;
    }
    if kept == bytes.len() {
        return Ok(());
    }
    let file = Folder::of(path).and_then(|(folder, name)| folder.update(name));
    file.and_then(|file| file.set_len(kept as u64).and_then(|()| file.sync_all()))
        .map_err(|error| failed(&error))
}

/// The data of the first record and the record's length, where it is whole.
fn first_record(bytes: &[u8]) -> Option<(&[u8], usize)> {
    let (length, _) = bytes.split_first_chunk::<8>()?;
    let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
    let end = length.checked_add(16)?;
    (bytes.len() >= end).then(|| (&bytes[12..end - 4], end))
}

/// The bytes of one record.
fn record(event: &Event) -> io::Result<Vec<u8>> {
    let data = event.write_to_bytes().map_err(io::Error::other)?;
    let mut record = Vec::with_capacity(data.len() + 16);
    RecordWriter::new(&mut record).write(&data)?;
    Ok(record)
}

/// A file that was not there before: `n` counts the starts of one process within a second.
fn new_file(folder: &Path) -> io::Result<(AppendFile, PathBuf)> {
    let host = gethostname::gethostname().to_string_lossy().replace(['/', '\\'], "_");
    let start = format!("events.out.tfevents.{:010}.{host}.{}", now() as u64, std::process::id());
    let open = Folder::open(folder)?;
    let mut n = 0;
    loop {
        let name = format!("{start}.{n}");
        match AppendFile::open(&open, &name, true) {
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists && n < 1000 => n += 1,
            other => return other.map(|file| (file, folder.join(name))),
        }
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CRC-32C bit by bit (RFC 3720, appendix B.4), masked as TensorFlow does.
    fn masked_crc(data: &[u8]) -> u32 {
        let mut crc = !0_u32;
        for &byte in data {
            crc ^= u32::from(byte);
            for _ in 0..8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
            }
        }
        (!crc).rotate_right(15).wrapping_add(0xa282_ead8)
    }

    /// The data of each record, checksums verified.
    fn records(mut bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        while !bytes.is_empty() {
            let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
            let crc = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
            let data = &bytes[12..12 + length];
            assert_eq!(crc(8), masked_crc(&bytes[..8]));
            assert_eq!(crc(12 + length), masked_crc(data));
            events.push(Event::parse_from_bytes(data).unwrap());
            bytes = &bytes[16 + length..];
        }
        events
    }

    #[test]
    fn scalars_come_back_at_their_steps() {
        let folder = tempfile::tempdir().unwrap();
        let mut board = TensorBoard::create(&folder.path().join("deep/logs"), Path::new("/runs/a")).unwrap();
        board.add_scalar("loss/train", 1.5, 1).unwrap();
        board.add_scalar("loss/train", f32::NAN, 2).unwrap();
        board.flush().unwrap();
        let events = records(&std::fs::read(board.path()).unwrap());
        assert_eq!(events.len(), 3);
        assert_eq!(events[0].get_file_version(), "brain.Event:2");
        assert!(events[0].get_wall_time() > 1.6e9);
        let value = &events[1].get_summary().get_value()[0];
        assert_eq!((events[1].get_step(), value.get_tag(), value.get_simple_value()), (1, "loss/train", 1.5));
        assert!(events[2].get_summary().get_value()[0].get_simple_value().is_nan());
    }

    #[test]
    fn texts_come_back_as_tensorboard_wants_them() {
        let folder = tempfile::tempdir().unwrap();
        let mut board = TensorBoard::create(folder.path(), Path::new("/runs/a")).unwrap();
        board.add_text("translations/val", "| año |", 3).unwrap();
        let events = records(&std::fs::read(board.path()).unwrap());
        let value = &events[1].get_summary().get_value()[0];
        assert_eq!((events[1].get_step(), value.get_tag()), (3, "translations/val"));
        assert_eq!(value.get_metadata().get_plugin_data().get_plugin_name(), "text");
        assert_eq!(value.get_tensor().get_string_val(), ["| año |".as_bytes().to_vec()]);
        assert_eq!(value.get_tensor().get_dtype(), DataType::DT_STRING);
    }

    #[test]
    fn late_points_and_torn_records_are_taken_back() {
        let folder = tempfile::tempdir().unwrap();
        let mut board = TensorBoard::create(folder.path(), Path::new("/runs/a")).unwrap();
        for (tag, step) in
            [("loss/step", 1), ("loss/step", 2), ("loss/val", 1), ("loss/step", 3), ("loss/val", 2)]
        {
            board.add_scalar(tag, 0.5, step).unwrap();
        }
        let path = board.path().to_owned();
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, [whole.as_slice(), &whole[..20]].concat()).unwrap();
        let points = || {
            let events = records(&std::fs::read(&path).unwrap());
            let last = events.last().unwrap();
            (events.len() - 1, last.get_step())
        };
        for (epoch, step, expected) in
            [(2, 3, (5, 2)), (1, 3, (4, 3)), (1, 2, (3, 1)), (0, 2, (2, 2)), (0, 0, (0, 0))]
        {
            rewind(&path, epoch, step).unwrap();
            assert_eq!(points(), expected, "{epoch} {step}");
        }
        rewind(&folder.path().join("none"), 0, 0).unwrap();
    }

    #[test]
    fn the_curves_of_other_runs_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let create = |run: &str| {
            let path = TensorBoard::create(folder.path(), Path::new(run)).unwrap().path().to_owned();
            path.canonicalize().unwrap()
        };
        let found = |ours: &[PathBuf], run: &str| {
            let others = others_in(folder.path(), ours, Path::new(run));
            others.into_iter().collect::<Vec<_>>()
        };
        assert!(found(&[], "/runs/a").is_empty());
        let a = create("/runs/a ñ");
        let b = create("/runs/b");
        assert_eq!(found(&[a.clone(), b.clone()], "/runs/b"), [""; 0]);
        assert_eq!(found(std::slice::from_ref(&b), "/runs/b"), ["the run in /runs/a ñ"]);
        assert_eq!(found(&[a], "/runs/b"), ["an earlier run in /runs/b"]);
        std::fs::write(folder.path().join("events.out.tfevents.1.h"), "x").unwrap();
        std::fs::write(folder.path().join("notes"), "x").unwrap();
        let third = "a run that events.out.tfevents.1.h does not name";
        assert_eq!(found(&[b], "/runs/b"), [third, "the run in /runs/a ñ"]);
    }

    #[test]
    fn every_start_has_its_own_file() {
        let folder = tempfile::tempdir().unwrap();
        let first = TensorBoard::create(folder.path(), Path::new("/runs/a")).unwrap();
        let second = TensorBoard::create(folder.path(), Path::new("/runs/a")).unwrap();
        assert_ne!(first.path(), second.path());
        let name = first.path().file_name().unwrap().to_str().unwrap().to_owned();
        assert!(name.starts_with("events.out.tfevents.1") && name.ends_with(".0"), "{name}");
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("taken");
        std::fs::write(&file, "x").unwrap();
        let error = TensorBoard::create(&file.join("logs"), Path::new("/runs/a")).unwrap_err();
        assert_eq!(error.exit_code(), 1);
        assert!(error.to_string().contains("taken/logs"), "{error}");
    }
}
