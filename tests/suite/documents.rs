//! The documents: samples are what the program prints now, commands are taken, names and links lead somewhere.
//!
//! `SLT_UPDATE_SAMPLES=1 cargo test --release --test suite -- documents` writes what is out of date anew.

use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use slt_run::config;

use crate::support::{Outcome, program};

/// Tests that may write to one document take turns.
static WRITING: Mutex<()> = Mutex::new(());

fn one_at_a_time() -> MutexGuard<'static, ()> {
    WRITING.lock().unwrap_or_else(PoisonError::into_inner)
}

fn updating() -> bool {
    std::env::var_os("SLT_UPDATE_SAMPLES").is_some()
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn read(name: &str) -> String {
    fs::read_to_string(root().join(name)).unwrap()
}

/// The names of all documents, from the repository's root.
fn documents() -> Vec<String> {
    let mut names = Vec::new();
    for folder in ["", "configs/", "tests/", "scripts/"] {
        let entries = fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().file_name());
        let files = entries.map(|name| format!("{folder}{}", name.to_str().unwrap()));
        names.extend(files.filter(|name| Path::new(name).extension().is_some_and(|end| end == "md")));
    }
    names.sort();
    names
}

/// What stands between two fences.
struct Block {
    /// What the opening fence says it is: `text`, `sh`, `toml`, `python`.
    language: String,
    /// The line after the opening fence, counted from 0.
    start: usize,
    lines: Vec<String>,
}

fn blocks(text: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut open: Option<Block> = None;
    for (at, line) in text.lines().enumerate() {
        match (line.strip_prefix("```"), open.take()) {
            (Some(_), Some(block)) => found.push(block),
            (Some(language), None) => {
                open = Some(Block { language: language.to_owned(), start: at + 1, lines: Vec::new() });
            }
            (None, Some(mut block)) => {
                block.lines.push(line.to_owned());
                open = Some(block);
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block has no end");
    found
}

/// A command that a document shows after `$ `, and what it says that this prints.
struct Sample {
    command: String,
    /// The first line of the output in the document, counted from 0.
    start: usize,
    output: Vec<String>,
}

/// The samples of a block, all of which run in one folder.
fn samples(block: &Block) -> Vec<Sample> {
    let mut found: Vec<Sample> = Vec::new();
    for (at, line) in (block.start..).zip(&block.lines) {
        match (line.strip_prefix("$ "), found.last_mut()) {
            (Some(command), _) => {
                found.push(Sample { command: command.to_owned(), start: at + 1, output: Vec::new() });
            }
            (None, Some(sample)) => sample.output.push(line.clone()),
            (None, None) => panic!("output without a command: a block of text starts with `$ `: {line}"),
        }
    }
    found
}

/// A command line's words; double quotes keep what they hold together.
fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (at, part) in line.split('"').enumerate() {
        if at % 2 == 1 {
            words.push(part.to_owned());
        } else {
            words.extend(part.split_whitespace().map(str::to_owned));
        }
    }
    words
}

/// A line that runs slt-run.
struct Call {
    /// What it sets in the environment.
    variables: Vec<(String, String)>,
    arguments: Vec<String>,
}

/// `None` where the line runs something else.
fn call(line: &str) -> Option<Call> {
    let mut words = words(line);
    let variable = |word: &String| word.split_once('=').filter(|_| word.starts_with("SLT_")).map(owned);
    let variables: Vec<_> = words.iter().map_while(variable).collect();
    words.drain(..variables.len());
    let names = [&["slt-run"][..], &["srun", "slt-run"], &["cargo", "run", "--release", "--"]];
    let name = names.into_iter().find(|name| words.get(..name.len()).is_some_and(|words| words == *name))?;
    Some(Call { variables, arguments: words.split_off(name.len()) })
}

fn owned((name, value): (&str, &str)) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

/// A working directory that looks like the repository's: `configs/`, the README's `configs/small.toml`, `../shared`.
struct Place {
    around: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let around = tempfile::tempdir().unwrap();
        let inside = around.path().join("slt-run");
        fs::create_dir_all(inside.join("configs")).unwrap();
        for entry in fs::read_dir(root().join("configs")).unwrap() {
            let path = entry.unwrap().path();
            fs::copy(&path, inside.join("configs").join(path.file_name().unwrap())).unwrap();
        }
        let readme = read("README.md");
        let small = blocks(&readme).into_iter().find(|block| block.language == "toml").unwrap();
        fs::write(inside.join("configs/small.toml"), small.lines.join("\n")).unwrap();
        if let Ok(shared) = root().join("../shared").canonicalize() {
            std::os::unix::fs::symlink(shared, around.path().join("shared")).unwrap();
        }
        Self { around }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.around.path().join("slt-run").join(name)
    }

    /// What a person sees of a command, and its exit code.
    fn run(&self, line: &str) -> (String, i32) {
        let Call { variables, arguments } =
            call(line).unwrap_or_else(|| panic!("not a call of slt-run: {line}"));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let (mut output, input) = std::io::pipe().unwrap();
        let mut command = program(&self.path(""), &arguments);
        command.envs(variables).stdout(input.try_clone().unwrap()).stderr(input);
        let mut child = command.spawn().unwrap();
        // The command holds the other end of the pipe, too.
        drop(command);
        let mut text = String::new();
        output.read_to_string(&mut text).unwrap();
        (text, child.wait().unwrap().code().unwrap_or(-1))
    }
}

/// A line without what truly varies: times, rates, threads, the memory at hand, and which epoch of equals was best.
fn without_what_varies(line: &str) -> Vec<&str> {
    let units = ["ms", "s", "min", "h", "days", "images/s"];
    let plain = |word: &str| word.trim_matches(['(', ')', ',', ';', '.', ':']).to_owned();
    let is_number = |word: &str| plain(word).parse::<f64>().is_ok();
    let is_duration = |word: &str| word.strip_suffix('s').is_some_and(is_number);
    let line = if line.starts_with("Epoch ") { line.trim_end_matches(" *") } else { line };
    let mut kept: Vec<&str> = Vec::new();
    let mut rest = line.split(' ').peekable();
    while let Some(word) = rest.next() {
        let next = rest.peek().map(|next| plain(next)).unwrap_or_default();
        let previous = kept.last().copied().unwrap_or_default();
        let varies = is_number(word)
            && (units.contains(&next.as_str())
                || next.starts_with("thread")
                || (previous == "is" && next.ends_with("iB"))
                || previous == "epoch");
        if !varies {
            kept.push(if is_duration(word) { "_" } else { word });
            continue;
        }
        if previous != "_" {
            kept.push("_");
        }
        if previous != "epoch" {
            rest.next();
        }
    }
    kept
}

/// Whether two words are the same, or two figures of training that are as close as those of two processors, which round
/// differently.
fn close(a: &str, b: &str) -> bool {
    let figure = |word: &str| -> Option<(String, f64)> {
        let (name, number) = word.rsplit_once('=').unwrap_or(("", word));
        let number = number.trim_end_matches([',', ';']);
        let value = number.contains('.').then(|| number.parse().ok())??;
        Some((name.to_owned(), value))
    };
    match (figure(a), figure(b)) {
        _ if a == b => true,
        (Some((one, a)), Some((other, b))) => {
            one == other && (a - b).abs() <= 0.02 + 0.1 * a.abs().max(b.abs())
        }
        _ => false,
    }
}

/// Whether a printed line is the documented one.
fn same_line(documented: &str, printed: &str) -> bool {
    let trains =
        ["Epoch ", "trained ", "Result: ", "one step "].iter().any(|start| documented.starts_with(start));
    let (documented, printed) = (without_what_varies(documented), without_what_varies(printed));
    documented.len() == printed.len()
        && documented.iter().zip(&printed).all(|(a, b)| if trains { close(a, b) } else { a == b })
}

/// Stands in a document for any number of lines.
const LEFT_OUT: &str = "…";

/// The printed lines with as many left out as the document leaves out, and whether they are the documented ones.
fn compare(documented: &[String], printed: &str) -> (Vec<String>, bool) {
    let printed: Vec<String> = printed.lines().map(|line| line.trim_end().to_owned()).collect();
    let shown = match documented.iter().position(|line| line == LEFT_OUT) {
        Some(head) if printed.len() >= documented.len() - 1 => {
            let tail = documented.len() - head - 1;
            [&printed[..head], &[LEFT_OUT.to_owned()], &printed[printed.len() - tail..]].concat()
        }
        _ => printed,
    };
    let (whole, other) = (unwrapped(documented), unwrapped(&shown));
    let same = whole.len() == other.len() && whole.iter().zip(&other).all(|(a, b)| same_line(a, b));
    (shown, same)
}

/// Lines with those that go on below, behind spaces, in one: where they are broken depends on what varies.
fn unwrapped(lines: &[String]) -> Vec<String> {
    let mut whole: Vec<String> = Vec::new();
    for line in lines {
        match (line.strip_prefix("             "), whole.last_mut()) {
            (Some(rest), Some(last)) if rest.starts_with(|first| first != ' ') => {
                *last += &format!(" {rest}");
            }
            _ => whole.push(line.clone()),
        }
    }
    whole
}

#[test]
fn every_sample_in_the_documents_is_what_the_program_prints() {
    let _turn = one_at_a_time();
    let has_shared = root().join("../shared/data").is_dir();
    let (mut checked, mut wrong) = (0, String::new());
    for name in documents() {
        let text = read(&name);
        let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
        // Backwards, so that a sample that gets longer moves none that is still to come.
        for block in blocks(&text).iter().rev().filter(|block| block.language == "text") {
            let place = Place::new();
            let mut found = Vec::new();
            for sample in samples(block) {
                if sample.command.contains("../shared") && !has_shared {
                    // The test's own standard error, which shows in any run of the tests.
                    let note = "note: no ../shared/data, so this sample is not checked";
                    writeln!(std::io::stderr(), "{note}: {name}: {}", sample.command).unwrap();
                    continue;
                }
                let (printed, code) = place.run(&sample.command);
                assert_eq!(code, 0, "{name}: {}\n{printed}", sample.command);
                let (shown, same) = compare(&sample.output, &printed);
                checked += 1;
                if !same {
                    let command = &sample.command;
                    let (old, new) = (sample.output.join("\n"), shown.join("\n"));
                    writeln!(wrong, "{name} says of `{command}`:\n{old}\n\nit prints:\n{new}\n").unwrap();
                    found.push((sample, shown));
                }
            }
            for (sample, shown) in found.into_iter().rev() {
                lines.splice(sample.start..sample.start + sample.output.len(), shown);
            }
        }
        if updating() {
            fs::write(root().join(&name), lines.join("\n") + "\n").unwrap();
        }
    }
    assert!(checked >= 3);
    assert!(wrong.is_empty() || updating(), "{wrong}SLT_UPDATE_SAMPLES=1 writes the samples anew");
}

#[test]
fn samples_are_compared_strictly_but_for_what_varies() {
    let same = |a: &str, b: &str| same_line(a, b) && same_line(b, a);
    for (a, b) in [
        ("Epoch 1/2 - val_loss=1.6132 - acc=0.5 3.7s *", "Epoch 1/2 - val_loss=1.6140 - acc=0.5 12s"),
        ("trained 20 epochs in 40 s: the lowest", "trained 20 epochs in 1 h 20 min: the lowest"),
        (
            "one step     loss 6.6; 33 ms for 96 images (2872 images/s), 20 ms",
            "one step     loss 6.6; 1.0 s for 96 images (8 images/s), 2 s",
        ),
        ("batches 3.4 MiB; the budget is 17.2 GiB", "batches 3.4 MiB; the budget is 900.0 MiB"),
        (
            "device       cpu, 2 threads; 2 threads for the data",
            "device       cpu, 1 thread; 16 threads for the data",
        ),
    ] {
        assert!(same(a, b), "{a}\n{b}");
    }
    for (a, b) in [
        ("Epoch 1/2 - val_loss=1.6132 - 3.7s", "Epoch 1/2 - val_loss=1.9132 - 3.7s"),
        ("Epoch 1/2 - val_loss=1.6132 - 3.7s", "Epoch 1/2 - loss=1.6132 - 3.7s"),
        ("Epoch 1/2 - val_loss=1.6132 - 3.7s", "Epoch 1/3 - val_loss=1.6132 - 3.7s"),
        ("batches 3.4 MiB; the budget is 17.2 GiB", "batches 3.5 MiB; the budget is 17.2 GiB"),
        ("lr = 0.0003  # default", "lr = 0.0004  # default"),
        ("lr = 0.0003  # default", "lr = 0.0003   # default"),
        ("train  17", "train  18"),
    ] {
        assert!(!same(a, b), "{a}\n{b}");
    }
    let documented = ["a", LEFT_OUT, "d"].map(str::to_owned);
    assert_eq!(compare(&documented, "a\nb\nc\nd\n"), (documented.to_vec(), true));
    assert_eq!(
        compare(&documented, "a\nb\nc\ne\n"),
        (["a", LEFT_OUT, "e"].map(str::to_owned).to_vec(), false)
    );
    assert!(!compare(&documented, "a\n").1);
    let documented = ["a run        about 1 s,", "             or 2 s"].map(str::to_owned);
    assert!(compare(&documented, "a run        about 1 min, or 2 min\n").1);
    assert!(!compare(&documented, "a run        about 1 min, nor 2 min\n").1);
}

#[test]
fn every_command_in_the_documents_is_taken() {
    let place = Place::new();
    let mut taken = 0;
    for name in documents() {
        for block in blocks(&read(&name)).iter().filter(|block| block.language == "sh") {
            for line in &block.lines {
                let line = line.split(" # ").next().unwrap();
                let Some(Call { mut arguments, .. }) = call(line) else { continue };
                taken += 1;
                for file in arguments.iter().filter(|word| word.starts_with("configs/")) {
                    assert!(place.path(file).exists(), "{name}: {line}: no {file}");
                }
                // After all of it has been read, help is given instead of doing it.
                arguments.push("--help".to_owned());
                let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
                let help = Outcome::of(&program(&place.path(""), &arguments).output().unwrap());
                assert_eq!(help.code, 0, "{name}: {line}\n{}", help.stderr);
            }
        }
    }
    assert!(taken >= 5);
    let small = program(&place.path(""), &["config", "configs/small.toml"]).output().unwrap();
    assert_eq!(Outcome::of(&small).code, 0, "{small:?}");
}

#[test]
fn the_readme_is_short_and_names_the_documents() {
    let readme = read("README.md");
    assert!(readme.lines().count() <= 200, "{} lines", readme.lines().count());
    for name in documents().iter().filter(|name| *name != "README.md") {
        assert!(readme.contains(&format!("]({name})")), "the README does not lead to {name}");
    }
}

/// The anchor that a heading gets on the web.
fn anchor(heading: &str) -> String {
    let kept = heading.trim_start_matches(['#', ' ']).to_lowercase();
    kept.chars().filter(|c| c.is_alphanumeric() || "-_ ".contains(*c)).collect::<String>().replace(' ', "-")
}

#[test]
fn links_in_the_documents_lead_somewhere() {
    for name in documents() {
        let text = read(&name);
        let folder = root().join(&name).parent().unwrap().to_owned();
        for link in text.split("](").skip(1).map(|rest| rest.split(')').next().unwrap()) {
            if link.starts_with("https://") {
                continue;
            }
            let (path, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if path.is_empty() { root().join(&name) } else { folder.join(path) };
            assert!(target.exists(), "{name}: {link}");
            if !heading.is_empty() {
                let there = fs::read_to_string(&target).unwrap();
                let mut headings = there.lines().filter(|line| line.starts_with('#'));
                assert!(headings.any(|line| anchor(line) == heading), "{name}: {link}");
            }
        }
    }
}

/// `configs/README.md` holds the reference between two marks.
#[test]
fn the_configs_readme_has_the_reference() {
    let _turn = one_at_a_time();
    let path = root().join("configs/README.md");
    let readme = fs::read_to_string(&path).unwrap();
    let (before, rest) = readme.split_once("<!-- fields -->\n").expect("no <!-- fields -->");
    let (found, after) = rest.split_once("<!-- /fields -->").expect("no <!-- /fields -->");
    let expected = config::reference_table();
    if updating() {
        let readme = format!("{before}<!-- fields -->\n{expected}<!-- /fields -->{after}");
        return fs::write(&path, readme).unwrap();
    }
    assert!(found == expected, "configs/README.md is out of date: SLT_UPDATE_SAMPLES=1 writes it anew");
}

#[test]
fn the_tests_readme_s_faults_name_tests_that_are_there() {
    let readme = read("tests/README.md");
    let (_, after) = readme.split_once("## What survives what").unwrap();
    let section = after.split("\n## ").next().unwrap();
    let table: Vec<&str> = section.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    assert!(table.len() > 15);
    let mut sources = String::new();
    for folder in ["tests/suite", "tests/suite/gpu", "tests/fuzz"] {
        let paths = fs::read_dir(root().join(folder)).unwrap().map(|entry| entry.unwrap().path());
        for path in paths.filter(|path| path.is_file()) {
            sources.push_str(&fs::read_to_string(path).unwrap());
        }
    }
    for row in table {
        let named = row.trim_end_matches([' ', '|']).rsplit('|').next().unwrap();
        let names: Vec<&str> = named.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "{row}");
        for name in names {
            assert!(sources.contains(&format!("fn {name}()")), "no test {name} of {row}");
        }
    }
}
