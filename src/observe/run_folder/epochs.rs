//! The checkpoints of the last epochs, `epoch_N.pt`, where an experiment keeps more than the last one.

use std::fs;
use std::io;

use super::{LAST, RunFolder};
use crate::checkpoint::{link_or_copy, separate};
use crate::error::{Error, ErrorKind, Result};

/// The name of an epoch's checkpoint.
#[must_use]
pub fn epoch_checkpoint(epoch: usize) -> String {
    format!("epoch_{epoch:04}.pt")
}

/// The epoch that a file of this name is the checkpoint of.
pub(super) fn epoch_of(name: &str) -> Option<usize> {
    let epoch = name.strip_prefix("epoch_")?.strip_suffix(".pt")?.parse().ok()?;
    (epoch_checkpoint(epoch) == name).then_some(epoch)
}

impl RunFolder {
    /// Keeps `last.pt` as the checkpoint of `epoch`, without writing it again, and removes those of the epochs before
    /// the last `count`.
    ///
    /// # Errors
    /// Kind `Run` where the disk fails.
    pub fn keep_epoch(&self, epoch: usize, count: usize) -> Result<()> {
        self.still_held()?;
        link_or_copy(self.handle(), LAST, &epoch_checkpoint(epoch))?;
        let failed = |error: io::Error| {
            Error::io(ErrorKind::Run, "cannot remove an earlier epoch's checkpoint in", self.path(), &error)
        };
        for kept in self.kept_epochs().map_err(failed)? {
            if kept + count <= epoch {
                self.handle().remove_file(epoch_checkpoint(kept)).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Makes a file of its own of the last epoch's checkpoint, where it is one with `last.pt`.
    ///
    /// # Errors
    /// Kind `Run` where the disk fails: they are one file still.
    pub fn separate_epochs(&self) -> Result<()> {
        for epoch in self.kept_epochs().unwrap_or_default() {
            let name = epoch_checkpoint(epoch);
            if self.handle().is_one_file(LAST, &name) {
                separate(self.handle(), LAST, &name)?;
            }
        }
        Ok(())
    }

    fn kept_epochs(&self) -> io::Result<Vec<usize>> {
        let mut epochs = Vec::new();
        for entry in fs::read_dir(self.handle().here())? {
            epochs.extend(entry?.file_name().to_str().and_then(epoch_of));
        }
        Ok(epochs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_epochs() {
        for (name, epoch) in [
            ("epoch_0001.pt", Some(1)),
            ("epoch_12345.pt", Some(12345)),
            ("epoch_1.pt", None),
            ("epoch_00001.pt", None),
            ("epoch_0001.pt.bak", None),
            ("epoch_-001.pt", None),
        ] {
            assert_eq!(epoch_of(name), epoch, "{name}");
        }
    }
}
