//! Features in the place of images: a clip's are the rows of one file, made by the backbones once or by other tools.

mod cache;
mod file;

use std::path::{Path, PathBuf};

pub use cache::{CacheKey, FeatureCache, Missing};
pub use file::{FeatureFile, encode};

use crate::config::streams::image_streams;
use crate::error::{Error, ErrorKind, Problem, Result};

/// Where a dataset's features are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FeatureSource {
    /// The folder of the clips' files, `<video_id>.safetensors`.
    pub folder: PathBuf,
    /// D: how wide a row is.
    pub width: usize,
    /// The field that the folder comes from.
    pub key: &'static str,
}

impl FeatureSource {
    /// The file of a clip.
    #[must_use]
    pub fn file(&self, id: &str) -> PathBuf {
        self.folder.join(file_name(id))
    }

    /// Opens the file of a clip, whose rows have the source's width.
    ///
    /// # Errors
    /// Kind `Data`, naming the file, where it is none of features, or of another width.
    pub fn open(&self, id: &str) -> Result<FeatureFile> {
        let path = self.file(id);
        let file = FeatureFile::open(&path)?;
        if file.width() != self.width {
            let problem = Problem::new(format!("cannot read the features {}", path.display()));
            let problem =
                problem.cause(format!("they are {} wide, those of other clips {}", file.width(), self.width));
            return Err(Error::new(ErrorKind::Data, problem.hint("make all of them with one network")));
        }
        Ok(file)
    }
}

/// The name of a clip's file.
pub(super) fn file_name(id: &str) -> String {
    format!("{id}.safetensors")
}

/// The id of the clip that a file of this name is of.
pub(super) fn id_of(name: &str) -> Option<&str> {
    name.strip_suffix(".safetensors").filter(|id| !id.is_empty())
}

/// The names of the tensors in a clip's file: the image streams'.
pub fn stream_names() -> impl Iterator<Item = &'static str> {
    image_streams().map(|stream| stream.name)
}

/// How wide the features in `folder` are: those of the first file by name.
///
/// # Errors
/// Kind `Data` where the folder cannot be listed, or has no file of features.
pub fn width_in(folder: &Path) -> Result<usize> {
    let failed = |error: &std::io::Error| {
        Error::io(crate::ErrorKind::Data, "cannot list the folder", folder, error)
            .hint("correct data.features_dir")
    };
    let mut first: Option<String> = None;
    for entry in std::fs::read_dir(folder).map_err(|error| failed(&error))? {
        let name = entry.map_err(|error| failed(&error))?.file_name();
        let Some(name) = name.to_str().filter(|name| id_of(name).is_some()) else { continue };
        if first.as_deref().is_none_or(|first| name < first) {
            first = Some(name.to_owned());
        }
    }
    let first = first.ok_or_else(|| {
        let what = format!("{} (data.features_dir) has no file <video_id>.safetensors", folder.display());
        Error::data(what).hint("configs/README.md has the Python that writes them")
    })?;
    Ok(FeatureFile::open(&folder.join(first))?.width())
}
