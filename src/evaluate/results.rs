//! What an evaluation leaves: a table for a person, `predictions.csv` and `metrics.json`.

use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde_json::{Value, json};
use sha1::{Digest, Sha1};

use super::{Trained, Translated, Translation};
use crate::config::Experiment;
use crate::error::{Error, ErrorKind, Result};
use crate::files::{Folder, create_dir};
use crate::input::hexadecimal;
use crate::model::DecoderKind;
use crate::observe::run_folder::EVALUATION;
use crate::text::metrics::{self, Chrf, Figures};

/// Predictions of a split, and how good they are.
pub struct Results<'r> {
    /// The split's name.
    pub split: &'r str,
    /// Its index, as a message names it.
    pub index: String,
    /// The network.
    pub trained: &'r Trained,
    /// What texts are to it.
    pub decoder: &'r dyn DecoderKind,
    /// The experiment, with the settings of the search.
    pub experiment: &'r Experiment,
    /// What it gave.
    pub translated: &'r Translated,
    figures: Figures,
}

impl<'r> Results<'r> {
    /// Measures the best hypotheses against the references.
    #[must_use]
    pub fn new(
        (split, index): (&'r str, String),
        trained: &'r Trained,
        decoder: &'r dyn DecoderKind,
        experiment: &'r Experiment,
        translated: &'r Translated,
    ) -> Self {
        let all = &translated.translations;
        let hypotheses: Vec<&str> = all.iter().map(Translation::hypothesis).collect();
        let references: Vec<&str> = all.iter().map(|translation| translation.reference.as_str()).collect();
        let figures = metrics::figures(&hypotheses, &references);
        Self { split, index, trained, decoder, experiment, translated, figures }
    }

    /// BLEU-4 (`13a`), 0 to 100.
    #[must_use]
    pub fn bleu(&self) -> f64 {
        self.figures.get("bleu_4_13a").unwrap_or_default()
    }

    /// The figures that are not of the texts: loss and accuracies, 0 to 1, by name.
    fn of_predictions(&self) -> Vec<(&'static str, f64)> {
        let Some(score) = &self.translated.score else { return Vec::new() };
        let mut all = vec![("loss", score.loss.get()), ("accuracy", score.accuracy())];
        let ranked = [("top_1_accuracy", 1), ("top_5_accuracy", 5)];
        all.extend(ranked.into_iter().filter_map(|(name, most)| Some((name, score.among(most)?))));
        all
    }

    /// For a person: a line a figure, those of the texts in percent, with what they are computed by.
    #[must_use]
    pub fn table(&self) -> String {
        let mut rows = Vec::new();
        let signature = |key: &str| self.figures.signature(key).unwrap_or_default().to_owned();
        for tokenizer in ["13a", "intl", "none", "char"] {
            let all = [1, 2, 3, 4].map(|n| self.figures.get(&format!("bleu_{n}_{tokenizer}")));
            let all: Vec<String> = all.into_iter().flatten().map(|value| format!("{value:6.2}")).collect();
            rows.push([
                format!("BLEU-1…4 {tokenizer}"),
                all.join(" "),
                signature(&format!("bleu_{tokenizer}_signature")),
            ]);
        }
        for (title, key) in [
            ("chrF2", "chrf2"),
            ("chrF2++", "chrf2++"),
            ("ROUGE-L", "rouge_l"),
            ("WER", "wer"),
            ("CER", "cer"),
        ] {
            let value = self.figures.get(key).map_or_else(|| "-".to_owned(), |value| format!("{value:6.2}"));
            rows.push([title.to_owned(), value, signature(&format!("{key}_signature"))]);
        }
        for (name, value) in self.of_predictions() {
            rows.push([name.replace('_', " "), format!("{value:8.4}"), String::new()]);
        }
        let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let (first, second) = (width(0), width(1));
        let line = |row: &[String; 3]| {
            let [title, value, note] = row;
            let fill = " ".repeat(first - title.chars().count());
            format!("{title}{fill}  {value:second$}  {note}").trim_end().to_owned() + "\n"
        };
        rows.iter().map(line).collect()
    }

    /// `metrics.json`: figures, signatures, and what they are of. JSON has no NaN or infinity: such a number is `null`.
    #[must_use]
    pub fn json(&self) -> Value {
        let mut figures = serde_json::Map::new();
        for (name, value) in self.figures.iter() {
            figures.insert(name.to_owned(), value.into());
        }
        for (name, value) in self.of_predictions() {
            figures.insert(name.to_owned(), value.into());
        }
        let signatures: serde_json::Map<_, _> =
            self.figures.signatures().map(|(name, text)| (name.to_owned(), Value::from(text))).collect();
        let skipped: Vec<&str> = self.translated.skipped.iter().map(|clip| clip.id.as_str()).collect();
        json!({
            "figures": figures,
            "signatures": signatures,
            "split": {
                "name": self.split,
                "index": self.index,
                "clips": self.translated.translations.len(),
                "skipped_clips": skipped,
                "sha1": self.split_digest(),
            },
            "decoder": self.decoder.name(),
            "decoding": self.experiment.to_json()["decoding"],
            "checkpoint": {
                "path": self.trained.checkpoint.display().to_string(),
                "sha1": self.trained.sha1,
                "epoch": self.trained.epoch,
            },
            "tokenizer_sha1": self.decoder.tokenizer().map(crate::text::Tokenizer::sha1),
            "version": env!("CARGO_PKG_VERSION"),
        })
    }

    /// What tells these clips and texts from others, in order.
    fn split_digest(&self) -> String {
        let mut digest = Sha1::new();
        for Translation { id, reference, .. } in &self.translated.translations {
            for text in [id, reference] {
                digest.update((text.len() as u64).to_le_bytes());
                digest.update(text);
            }
        }
        hexadecimal(&digest.finalize())
    }

    /// `predictions.csv`: a row a hypothesis, the best of each clip first; `rank` where there is more than one of a clip.
    ///
    /// # Errors
    /// Where the CSV cannot be made.
    pub fn csv(&self) -> Result<Vec<u8>> {
        let chrf = Chrf::default();
        predictions_csv(
            &self.translated.translations,
            &["reference", "hypothesis", "score", "chrf"],
            |it, at| {
                let (text, score) = &it.hypotheses[at];
                let chrf = chrf.sentence(text, &it.reference);
                vec![it.reference.clone(), text.clone(), score.to_string(), chrf.to_string()]
            },
        )
    }

    /// Writes both files into the folder `evaluation/<split>` of `folder`; gives that folder.
    ///
    /// # Errors
    /// Of kind `Run` where a file cannot be written; what was there is whole then.
    pub fn write(&self, folder: &Path, now: SystemTime) -> Result<PathBuf> {
        let evaluation = folder.join(EVALUATION);
        let of_split = evaluation.join(self.split);
        for folder in [&evaluation, &of_split] {
            match create_dir(folder) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(Error::io(ErrorKind::Run, "cannot make the folder", folder, &error)
                        .hint("make room, or copy the checkpoint to a folder that can be written"));
                }
                _ => {}
            }
        }
        let metrics = format!("{:#}\n", self.json()).into_bytes();
        write_beside(&of_split, &[("predictions.csv", &self.csv()?), ("metrics.json", &metrics)], now)?;
        Ok(of_split)
    }
}

/// A CSV of translations, with the columns `video_id` and `columns`, whose values `values` gives for each hypothesis.
///
/// # Errors
/// Where the CSV cannot be made.
pub fn predictions_csv(
    translations: &[Translation],
    columns: &[&str],
    values: impl Fn(&Translation, usize) -> Vec<String>,
) -> Result<Vec<u8>> {
    let failed = |error: &dyn std::fmt::Display| Error::run("the predictions cannot be written").cause(error);
    let ranked = translations.iter().any(|translation| translation.hypotheses.len() > 1);
    let rank = |at: usize| ranked.then(|| if at == 0 { "rank".to_owned() } else { at.to_string() });
    let mut csv = csv::Writer::from_writer(Vec::new());
    let header = ["video_id"].iter().chain(columns).map(ToString::to_string);
    csv.write_record(header.chain(rank(0))).map_err(|error| failed(&error))?;
    for translation in translations {
        for at in 0..translation.hypotheses.len() {
            let row = std::iter::once(translation.id.clone()).chain(values(translation, at));
            csv.write_record(row.chain(rank(at + 1))).map_err(|error| failed(&error))?;
        }
    }
    csv.into_inner().map_err(|error| failed(&error))
}

/// Writes `files` into the folder `path`. Those that are there and hold something else stay, each under a dated name
/// (`predictions.20261231-235959.csv`), and are whole at every moment.
///
/// # Errors
/// Of kind `Run` where a file cannot be written: what was there is whole then, under its own name or the dated one.
pub fn write_beside(path: &Path, files: &[(&str, &[u8])], now: SystemTime) -> Result<()> {
    let failed = |name: &str, error: &io::Error| {
        Error::io(ErrorKind::Run, "cannot write", &path.join(name), error)
            .hint("make room on that disk and run the same command again; what was there before is whole")
    };
    let folder = Folder::open(path).map_err(|error| failed("", &error))?;
    let is_same = |(name, bytes): &(&str, &[u8])| {
        folder.read(name, bytes.len() as u64).is_ok_and(|there| there == *bytes)
    };
    if files.iter().all(is_same) {
        return Ok(());
    }
    // All that takes room comes first; what follows are names alone.
    let mut names: Vec<String> = Vec::new();
    let made = (|| {
        for (name, bytes) in files {
            names.push(new_name(name));
            folder.write_atomically(new_name(name), bytes).map_err(|error| failed(name, &error))?;
        }
        for (name, _) in files.iter().filter(|(name, _)| folder.has(name)) {
            let dated = free_name(&folder, name, now);
            names.push(dated.clone());
            folder.link_or_copy(name, &dated).map_err(|error| failed(name, &error))?;
        }
        let (first, _) = files.first().copied().unwrap_or_default();
        folder.rename(new_name(first), first).map_err(|error| failed(first, &error))
    })();
    if made.is_err() {
        for name in &names {
            let _ = folder.remove_file(name);
        }
        return made;
    }
    let rest = files
        .iter()
        .skip(1)
        .try_for_each(|(name, _)| folder.rename(new_name(name), name).map_err(|error| failed(name, &error)));
    rest.and_then(|()| folder.sync().map_err(|error| failed("", &error)))
}

/// What a file is called until all of them are written.
fn new_name(name: &str) -> String {
    format!(".slt-run.new.{name}")
}

/// `name` with a date before its ending, numbered where that is taken.
fn free_name(folder: &Folder, name: &str, now: SystemTime) -> String {
    let now = jiff::Timestamp::try_from(now)
        .map_or_else(|_| "earlier".to_owned(), |now| now.strftime("%Y%m%d-%H%M%S").to_string());
    let (stem, ending) = name.rsplit_once('.').unwrap_or((name, "old"));
    let numbered = (2_u64..).map(|number| format!("{stem}.{now}-{number}.{ending}"));
    let mut names = std::iter::once(format!("{stem}.{now}.{ending}")).chain(numbered);
    names.find(|name| !folder.has(name)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::time::Duration;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> = entries.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn what_was_there_stays_under_a_dated_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        write_beside(path, &[("a.csv", b"one"), ("b.json", b"1")], at(0)).unwrap();
        write_beside(path, &[("a.csv", b"one"), ("b.json", b"1")], at(1)).unwrap();
        assert_eq!(names(path), ["a.csv", "b.json"]);
        write_beside(path, &[("a.csv", b"two"), ("b.json", b"2")], at(2)).unwrap();
        write_beside(path, &[("a.csv", b"three"), ("b.json", b"3")], at(2)).unwrap();
        let first = ["a.19700101-000002-2.csv", "a.19700101-000002.csv", "a.csv"];
        let second = ["b.19700101-000002-2.json", "b.19700101-000002.json", "b.json"];
        assert_eq!(names(path), [first, second].concat());
        let read = |name: &str| fs::read_to_string(path.join(name)).unwrap();
        assert_eq!(
            ["a.19700101-000002.csv", "a.19700101-000002-2.csv", "a.csv"].map(read),
            ["one", "two", "three"]
        );
    }

    #[test]
    fn a_failed_write_leaves_all_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        fs::write(path.join("a.csv"), "old").unwrap();
        // The second file cannot be kept: a folder has its name.
        fs::create_dir_all(path.join("b.json/inside")).unwrap();
        let error =
            write_beside(path, &[("a.csv", b"new"), ("b.json", b"2")], SystemTime::UNIX_EPOCH).unwrap_err();
        assert!(error.to_string().contains("b.json"), "{error}");
        assert_eq!(fs::read(path.join("a.csv")).unwrap(), b"old");
        assert_eq!(names(path), ["a.csv", "b.json"]);
    }

    #[test]
    fn rows_are_ranked_where_there_are_several_a_clip() {
        let translation = |id: &str, texts: &[&str]| Translation {
            id: id.to_owned(),
            reference: "r".to_owned(),
            hypotheses: texts.iter().map(|text| ((*text).to_owned(), -0.5)).collect(),
        };
        let csv = |all: &[Translation]| {
            let csv = predictions_csv(all, &["hypothesis"], |it, at| vec![it.hypotheses[at].0.clone()]);
            String::from_utf8(csv.unwrap()).unwrap()
        };
        assert_eq!(csv(&[translation("a", &["x, y"])]), "video_id,hypothesis\na,\"x, y\"\n");
        let two = csv(&[translation("a", &["x", "y"]), translation("b", &["z"])]);
        assert_eq!(two, "video_id,hypothesis,rank\na,x,1\na,y,2\nb,z,1\n");
    }
}
