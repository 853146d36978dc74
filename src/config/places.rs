//! Field types that are more than a path: a folder or `auto`, and a file that a run begins from.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value as Json;

use super::define::{FieldType, Kind};

/// Where a run's TensorBoard files go.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub enum EventFolder {
    /// The folder `tensorboard` in the run's own.
    Auto,
    /// This folder.
    Folder(PathBuf),
}

impl EventFolder {
    /// The folder, for a run in `work_dir`.
    #[must_use]
    pub fn path(&self, work_dir: &Path) -> PathBuf {
        match self {
            Self::Auto => work_dir.join("tensorboard"),
            Self::Folder(folder) => folder.clone(),
        }
    }
}

impl From<String> for EventFolder {
    fn from(text: String) -> Self {
        if text.eq_ignore_ascii_case("auto") { Self::Auto } else { Self::Folder(text.into()) }
    }
}

impl FieldType for EventFolder {
    const KIND: Kind = Kind::AutoOrPath;
    fn json(&self) -> Json {
        match self {
            Self::Auto => "auto".into(),
            Self::Folder(folder) => folder.json(),
        }
    }
}

/// A checkpoint whose weights a run begins with, written `path` or, as snapshots have it, `path@sha1:digest`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "String")]
pub struct InitFrom {
    /// The file.
    pub path: PathBuf,
    /// The SHA-1 of what it must hold, in 40 hexadecimal digits; `None` where anything goes.
    pub sha1: Option<String>,
}

/// What stands between path and digest.
const DIGEST: &str = "@sha1:";

impl From<String> for InitFrom {
    fn from(text: String) -> Self {
        let is_digest = |digest: &str| digest.len() == 40 && digest.bytes().all(|b| b.is_ascii_hexdigit());
        match text.rsplit_once(DIGEST) {
            Some((path, digest)) if !path.is_empty() && is_digest(digest) => {
                Self { path: path.into(), sha1: Some(digest.to_ascii_lowercase()) }
            }
            _ => Self { path: text.into(), sha1: None },
        }
    }
}

impl fmt::Display for InitFrom {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        self.sha1.as_ref().map_or(Ok(()), |digest| write!(f, "{DIGEST}{digest}"))
    }
}

impl FieldType for InitFrom {
    const KIND: Kind = Kind::Path;
    fn json(&self) -> Json {
        self.to_string().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_or_auto() {
        let folder = |text: &str| EventFolder::from(text.to_owned()).path(Path::new("run"));
        assert_eq!(folder("auto"), Path::new("run/tensorboard"));
        assert_eq!(folder("Auto"), Path::new("run/tensorboard"));
        assert_eq!(folder("./auto"), Path::new("./auto"));
        assert_eq!(folder("logs"), Path::new("logs"));
    }

    #[test]
    fn a_file_with_and_without_its_digest() {
        let digest = "0123456789abcdef0123456789abcdef01234567";
        let pinned = InitFrom::from(format!("a@b/w.pt@sha1:{}", digest.to_uppercase()));
        assert_eq!((pinned.path.as_path(), pinned.sha1.as_deref()), (Path::new("a@b/w.pt"), Some(digest)));
        assert_eq!(pinned.to_string(), format!("a@b/w.pt@sha1:{digest}"));
        for text in ["w.pt", "w.pt@sha1:", "w.pt@sha1:12", &format!("@sha1:{digest}")] {
            let plain = InitFrom::from(text.to_owned());
            assert_eq!((plain.path.as_path(), plain.sha1.as_deref()), (Path::new(text), None));
        }
    }
}
