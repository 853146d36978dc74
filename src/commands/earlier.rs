//! A run that is there already: whether it is gone on with, and what it must not be gone on with.

use super::prepare::Call;
use crate::config::{Change, FIELDS, OnBadClip, Resolved, Resume};
use crate::data::{Contents, Dataset};
use crate::error::ErrorKind;
use crate::input;
use crate::model::DecoderKind;
use crate::model::decoder::read_tokenizer;
use crate::observe::reporter::Reporter;
use crate::observe::run_folder::{RunFolder, TOKENIZER};
use crate::train::TrainingState;
use crate::train::resume::{Changes, Saved, is_of_files};
use crate::{Error, Result};

/// A run in the work folder that is to be gone on with.
pub(super) struct Earlier {
    pub(super) folder: RunFolder,
    /// Its checkpoint; without one it begins at its start.
    pub(super) saved: Option<Saved>,
    pub(super) changes: Changes,
}

impl Earlier {
    /// Looks for one, where the experiment asks for it, and refuses another experiment's.
    pub(super) fn find(resolved: &mut Resolved, call: &Call) -> Result<Option<Self>> {
        let c = &mut resolved.experiment;
        if c.run.resume == Resume::Never || call.overwrite || !RunFolder::holds_run(&c.run.work_dir)? {
            return Ok(None);
        }
        let folder = RunFolder::reopen(&c.run.work_dir)?;
        let mut earlier = Self { folder, saved: None, changes: Changes::default() };
        if earlier.folder.has_last() {
            let saved = Saved::load(&earlier.folder.last())?;
            saved.settle_starts(c);
            earlier.changes = saved.changes(c)?;
            earlier.saved = Some(saved);
        }
        earlier.refuse(resolved, call)?;
        Ok(Some(earlier))
    }

    fn refuse(&self, resolved: &Resolved, call: &Call) -> Result<()> {
        if call.allow_changes {
            return Ok(());
        }
        let is_field = |key: &str| FIELDS.iter().any(|field| field.key == key);
        self.changes.refuse(&self.folder.last(), |key| is_field(key).then(|| resolved.origin(key).to_owned()))
    }

    /// Refuses data that are not the run's: other ids or texts, or another set of files.
    pub(super) fn refuse_other_data(
        &mut self,
        dataset: &Dataset,
        resolved: &Resolved,
        call: &Call,
        reporter: &Reporter,
    ) -> Result<()> {
        let Some(saved) = &self.saved else { return Ok(()) };
        match (saved.dataset_change(dataset), saved.files_change(dataset)) {
            (Some(change), _) => self.other_data(change),
            (None, Some(change)) => self.other_files(change, resolved, reporter),
            (None, None) => {}
        }
        self.refuse(resolved, call)
    }

    /// Refuses a checkpoint of another tokenizer than the run's own or the experiment's: its weights stand for other tokens.
    pub(super) fn refuse_other_tokenizer(
        &self,
        resolved: &Resolved,
        decoder: &dyn DecoderKind,
    ) -> Result<()> {
        let (Some(saved), Some(tokenizer)) = (&self.saved, decoder.tokenizer()) else { return Ok(()) };
        let of_experiment = resolved.experiment.tokenizer.file.clone();
        let own = Some(self.folder.path().join(TOKENIZER)).filter(|path| path.exists());
        for (path, hint) in [
            (own, "put back the last.pt or the tokenizer.json that belongs to the other"),
            (
                of_experiment,
                "a run goes on with the tokenizer that it began with: take the file back, or leave it out",
            ),
        ] {
            let Some(path) = path else { continue };
            let there = input::sha1(&path).map(|(digest, _)| input::hexadecimal(&digest));
            let there = there.map_err(|error| Error::io(ErrorKind::Data, "cannot read", &path, &error))?;
            // What is in the checkpoint may be written in another way.
            let same = || read_tokenizer(&path).is_ok_and(|other| other.sha1() == tokenizer.sha1());
            if there != tokenizer.sha1() && !same() {
                let what = format!(
                    "{} is of another tokenizer (SHA-1 {}) than {} (SHA-1 {there})",
                    saved.path().display(),
                    tokenizer.sha1(),
                    path.display()
                );
                return Err(Error::data(what).hint(hint));
            }
        }
        Ok(())
    }

    /// Refuses the same files with something else in them, and says where the run's own data are now.
    pub(super) fn refuse_other_contents(
        &mut self,
        dataset: &Dataset,
        contents: &Contents,
        resolved: &Resolved,
        call: &Call,
        reporter: &Reporter,
    ) -> Result<()> {
        let Some(saved) = &self.saved else { return Ok(()) };
        if let Some((clips, change)) = saved.contents_change(dataset, contents) {
            // A file that has broken is told from another one.
            if resolved.experiment.data.on_bad_clip == OnBadClip::Error {
                Error::all(ErrorKind::Data, dataset.broken(&clips))?;
            }
            self.other_files(change, resolved, reporter);
            self.refuse(resolved, call)?;
        }
        if !self.changes.moved.is_empty() {
            let keys: Vec<&str> = self.changes.moved.iter().map(|change| change.key.as_str()).collect();
            reporter.info(&format!("the data have moved and are the same ({})", keys.join(", ")));
        }
        Ok(())
    }

    /// A run that goes on without what breaks goes on without what has gone. Files in other folders than before are not
    /// broken: they are others.
    fn other_files(&mut self, change: Change, resolved: &Resolved, reporter: &Reporter) {
        if resolved.experiment.data.on_bad_clip == OnBadClip::Skip && self.changes.moved.is_empty() {
            // One warning is enough for a file that has gone: it is missed among the names and in the contents.
            if !self.changes.harmless.iter().any(|other| is_of_files(&other.key)) {
                let Change { key, from, to } = &change;
                reporter.warn(&format!("{key} was {from} and is {to} now; the run goes on with it"));
            }
            self.changes.harmless.push(change);
        } else {
            self.other_data(change);
        }
    }

    /// Other data, and with them the paths that lead to them.
    fn other_data(&mut self, change: Change) {
        self.changes.others.push(change);
        self.changes.others.append(&mut self.changes.moved);
    }
}

/// Puts the state where the run stood, and says what is not as the command or the checkpoint has it.
pub(super) fn go_on(
    saved: Saved,
    state: &mut TrainingState,
    steps: usize,
    changes: &Changes,
    resolved: &Resolved,
    reporter: &Reporter,
) -> Result<()> {
    let was_inside = saved.progress().partial.batches > 0;
    if let Some(notice) = saved.restore(&resolved.experiment, state, steps, changes)? {
        reporter.warn(&notice);
    }
    if was_inside && state.progress.partial.batches == 0 {
        let epoch = state.progress.epoch + 1;
        reporter.info(&format!("epoch {epoch} begins anew: its batches have other clips now"));
    }
    if let Some(init_from) = &resolved.experiment.run.init_from {
        let path = init_from.path.display();
        reporter.info(&format!(
            "--init-from {path} is not looked at for weights: the run has its own to go on with"
        ));
    }
    Ok(())
}
