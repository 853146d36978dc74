//! A drawn dataset's folder: whose it is, whether it is whole, and the experiment file in it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Options;
use super::clip::Crop;
use super::write::failed;
use crate::error::{Error, ErrorKind, Result};
use crate::files::write_atomically;
use crate::input;

/// The file by which a drawn dataset's folder is known.
const MARKER: &str = ".slt-run-demo";

/// Both of the files that are read back are a page at most; anything much larger is somebody else's.
const MOST_BYTES: u64 = 256 << 10;

/// The experiment file.
const EXPERIMENT: &str = "demo.toml";

/// Changes when the same options give other files, so that an older dataset is not taken for a new one.
const FORMAT: u32 = 2;

/// What the marker file says, as JSON.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Marker {
    format: u32,
    options: Options,
    /// The folder as it was given, which the experiment file's paths begin with.
    dir: String,
    /// False while drawing, and after a drawing that broke off.
    complete: bool,
}

/// A folder that a dataset may be drawn into, or that holds the one asked for.
#[derive(Debug)]
pub(super) struct Folder<'a> {
    dir: &'a Path,
    /// `dir` as text, for the experiment file.
    name: &'a str,
    found: Option<Marker>,
}

/// Looks at `dir` and changes nothing. Refuses a folder that holds anything but a dataset of these options.
pub(super) fn open<'a>(dir: &'a Path, options: &Options) -> Result<Folder<'a>> {
    let name = dir.to_str().ok_or_else(|| {
        Error::config(format!("the folder's name is not valid UTF-8: {}", dir.display()))
            .hint("choose another name")
    })?;
    let found = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Err(Error::config(format!("{name} is a file, so no dataset can be drawn into it"))
                .hint("choose another folder"));
        }
        Err(error) => return Err(Error::io(ErrorKind::Config, "cannot list", dir, &error)),
        Ok(mut entries) => match (read_marker(dir), entries.next()) {
            (Some(marker), _) => Some(marker.and_then(|marker| marker.matching(dir, options))?),
            (None, None) => None,
            (None, Some(_)) => {
                return Err(Error::config(format!("{name} is not empty and holds no drawn dataset"))
                    .hint("choose another folder, or an empty one"));
            }
        },
    };
    Ok(Folder { dir, name, found })
}

/// The options of the dataset in `dir`, where this version drew one.
pub(super) fn drawn_with(dir: &Path) -> Option<Options> {
    let marker = read_marker(dir)?.ok()?;
    (marker.format == FORMAT).then_some(marker.options)
}

/// The marker in `dir`, if there is one.
fn read_marker(dir: &Path) -> Option<Result<Marker>> {
    let path = dir.join(MARKER);
    let bytes = match input::read(&path, MOST_BYTES) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
        Err(error) => return Some(Err(Error::io(ErrorKind::Config, "cannot read", &path, &error))),
        Ok(bytes) => bytes,
    };
    Some(serde_json::from_slice(&bytes).map_err(|error| {
        Error::config(format!("{} is damaged", path.display())).cause(error).hint(other_folder(dir))
    }))
}

fn other_folder(dir: &Path) -> String {
    format!("draw into another folder, or delete {} first", dir.display())
}

impl Marker {
    /// This marker, if it stands for what `options` would give.
    fn matching(self, dir: &Path, options: &Options) -> Result<Self> {
        if self.format != FORMAT {
            return Err(Error::config(format!("{} holds a dataset drawn by another version", dir.display()))
                .hint(other_folder(dir)));
        }
        let (was, is) = (&self.options, options);
        let differences: Vec<String> = [
            ("clips", was.clips as u64, is.clips as u64),
            ("frames", was.frames as u64, is.frames as u64),
            ("size", was.size as u64, is.size as u64),
            ("signs", was.signs as u64, is.signs as u64),
            ("seed", was.seed, is.seed),
        ]
        .into_iter()
        .filter(|(_, was, is)| was != is)
        .map(|(name, was, is)| format!("{name} {was} there, {is} now"))
        .chain((was.translate != is.translate).then(|| {
            let what = |translate| if translate { "sentences" } else { "single signs" };
            format!("{} there, {} now", what(was.translate), what(is.translate))
        }))
        .collect();
        if differences.is_empty() {
            return Ok(self);
        }
        let what = format!("{} holds a dataset drawn with other options", dir.display());
        let hint = format!("leave these options out to take what is there, {}", other_folder(dir));
        Err(Error::config(what).cause(differences.join("; ")).hint(hint))
    }
}

impl Folder<'_> {
    /// The experiment file's path.
    pub(super) fn experiment(&self) -> PathBuf {
        self.dir.join(EXPERIMENT)
    }

    /// Whether the whole dataset is there.
    pub(super) fn is_complete(&self) -> bool {
        let tables = ["subs.csv", "index/train.csv", "index/val.csv"];
        self.found.as_ref().is_some_and(|marker| marker.complete)
            && tables.iter().all(|table| self.dir.join(table).is_file())
            && folders().all(|folder| self.dir.join(folder).is_dir())
    }

    /// Makes the folders and leaves the mark that what is in them is ours and not yet whole.
    pub(super) fn begin(&self, options: &Options) -> Result<()> {
        for folder in folders() {
            let path = self.dir.join(folder);
            fs::create_dir_all(&path).map_err(|error| failed(&path, &error))?;
        }
        self.mark(options, false)
    }

    /// Writes the experiment file, unless a person has changed it, and marks the dataset as whole.
    pub(super) fn finish(&self, options: &Options) -> Result<()> {
        if !self.is_a_person_s(options)? {
            self.write_experiment(options)?;
        }
        self.mark(options, true)
    }

    /// Whether the experiment file is there and another than the one that was drawn.
    fn is_a_person_s(&self, options: &Options) -> Result<bool> {
        let path = self.experiment();
        let before = self.found.as_ref().map(|marker| marker.dir.as_str());
        match input::read(&path, MOST_BYTES) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(Error::io(ErrorKind::Config, "cannot read", &path, &error)),
            Ok(text) => Ok(before.is_none_or(|dir| text != experiment_file(dir, options).as_bytes())),
        }
    }

    /// Writes the experiment file anew where it is gone, or where it is as it was drawn but its paths were given
    /// from another place. A file that a person has changed stays.
    pub(super) fn keep_experiment_current(&self, options: &Options) -> Result<()> {
        let before = self.found.as_ref().map(|marker| marker.dir.as_str());
        let is_current = before == Some(self.name) && self.experiment().exists();
        if is_current || self.is_a_person_s(options)? { Ok(()) } else { self.finish(options) }
    }

    fn write_experiment(&self, options: &Options) -> Result<()> {
        let path = self.experiment();
        write_atomically(&path, experiment_file(self.name, options).as_bytes())
            .map_err(|error| failed(&path, &error))
    }

    fn mark(&self, options: &Options, complete: bool) -> Result<()> {
        let marker = Marker { format: FORMAT, options: *options, dir: self.name.to_owned(), complete };
        let path = self.dir.join(MARKER);
        let text = serde_json::to_string_pretty(&marker).map_err(io::Error::other);
        text.and_then(|text| write_atomically(&path, text.as_bytes())).map_err(|error| failed(&path, &error))
    }
}

/// The folders of a dataset.
fn folders() -> impl Iterator<Item = &'static str> {
    Crop::ALL.into_iter().map(Crop::folder).chain(["pose", "index"])
}

/// The experiment that trains on the dataset in `dir`: small enough for two cores and a minute.
fn experiment_file(dir: &str, options: &Options) -> String {
    let path = |name: &str| {
        let joined = Path::new(dir).join(name);
        toml::Value::String(joined.to_string_lossy().into_owned()).to_string()
    };
    // Texts are hashed into classes: a few signs hardly meet in 1000, many need more room.
    let vocabulary = if options.signs <= 12 { 1000 } else { 32000 };
    let paths: Vec<String> = [
        ("face_dir", "face"),
        ("hand_left_dir", "hand_l"),
        ("hand_right_dir", "hand_r"),
        ("pose_dir", "pose"),
        ("metadata_csv", "subs.csv"),
        ("train_index", "index/train.csv"),
        ("val_index", "index/val.csv"),
    ]
    .into_iter()
    .map(|(key, name)| format!("{key} = {}", path(name)))
    .collect();
    let paths = paths.join("\n");
    if options.translate {
        return sentences_file(&paths, &path("run"), options);
    }
    format!(
        "# A small network for the drawn dataset beside this file. Paths are relative to the working directory.\n\
         \n[data]\n{paths}\ntensorboard = \"auto\"\nbatch_size = 8\n\
         \n[model]\nimage_size = 64\nsequence_length = 8\nprojector_dim = 64\nd_model = 128\nprojector_dropout = 0.1\n\
         fusion_dropout = 0.1\ntemporal_nhead = 4\n\
         temporal_layers = 1\ntemporal_dim_feedforward = 256\nvocab_size = {vocabulary}\n\
         \n[model.backbone]\npatch_size = 16\nembed_dim = 96\ndepth = 2\nnum_heads = 3\n\
         \n[optimization]\nepochs = 20\nlr = 5e-4\nscheduler = \"cosine\"\nscheduler_tmax = 20\nlabel_smoothing = 0.0\n\
         \n[run]\nwork_dir = {}\ndevice = \"cpu\"\nprecision = \"fp32\"\n",
        path("run")
    )
}

/// The experiment that translates drawn sentences: small enough for two cores and three minutes.
fn sentences_file(paths: &str, run: &str, options: &Options) -> String {
    let (size, frames) = (options.size.next_multiple_of(8), options.frames);
    format!(
        "# A small network that translates the drawn sentences beside this file. Paths are relative to the working directory.\n\
         \n[data]\n{paths}\ntensorboard = \"auto\"\nbatch_size = 8\n\
         \n[model]\nimage_size = {size}\nsequence_length = {frames}\nprojector_dim = 32\nd_model = 96\n\
         temporal_nhead = 4\ntemporal_layers = 1\ntemporal_dim_feedforward = 192\ntemporal_dropout = 0.0\n\
         \n[model.backbone]\npatch_size = 8\nembed_dim = 48\ndepth = 1\nnum_heads = 3\n\
         \n[model.decoder]\nkind = \"transformer\"\nlayers = 1\nnhead = 4\ndim_feedforward = 192\ndropout = 0.1\n\
         \n[tokenizer]\nkind = \"word\"\n\
         \n[decoding]\nmax_length = 16\n\
         \n[optimization]\nepochs = 32\nlr = 1e-3\nscheduler = \"cosine\"\nscheduler_tmax = 32\nlabel_smoothing = 0.0\n\
         \n[run]\nwork_dir = {run}\ndevice = \"cpu\"\nprecision = \"fp32\"\nevaluate_every = 8\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_experiment_file_is_toml_with_the_folder_as_given() {
        let name = "odd \"names\"\\ñ/x";
        let table: toml::Table = experiment_file(name, &Options::default()).parse().unwrap();
        assert_eq!(table["data"]["val_index"].as_str(), Some("odd \"names\"\\ñ/x/index/val.csv"));
        assert_eq!(table["run"]["work_dir"].as_str(), Some("odd \"names\"\\ñ/x/run"));
        assert_eq!(table["model"]["vocab_size"].as_integer(), Some(1000));
        assert_eq!(table["optimization"]["lr"].as_float(), Some(5e-4));
    }

    #[test]
    fn an_experiment_file_that_a_person_changed_stays_when_the_dataset_is_drawn_again() {
        let root = tempfile::tempdir().unwrap();
        let (dir, options) = (root.path(), Options::default());
        let drawn = |text: &str| {
            let folder = open(dir, &options).unwrap();
            folder.begin(&options).unwrap();
            fs::write(folder.experiment(), text).unwrap();
            open(dir, &options).unwrap().finish(&options).unwrap();
            fs::read_to_string(folder.experiment()).unwrap()
        };
        assert_eq!(drawn("# mine\n"), "# mine\n");
        let ours = experiment_file(dir.to_str().unwrap(), &options);
        assert_eq!(drawn(&ours), ours);
        fs::remove_file(dir.join(EXPERIMENT)).unwrap();
        open(dir, &options).unwrap().finish(&options).unwrap();
        assert_eq!(fs::read_to_string(dir.join(EXPERIMENT)).unwrap(), ours);
    }

    #[test]
    fn a_damaged_marker_or_another_version_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let dir = folder.path();
        fs::write(dir.join(MARKER), "{").unwrap();
        let error = open(dir, &Options::default()).unwrap_err();
        assert!(error.to_string().contains("is damaged"), "{error}");
        let marker =
            Marker { format: FORMAT + 1, options: Options::default(), dir: "x".into(), complete: true };
        fs::write(dir.join(MARKER), serde_json::to_vec(&marker).unwrap()).unwrap();
        let error = open(dir, &Options::default()).unwrap_err();
        assert!(error.to_string().contains("another version"), "{error}");
    }
}
