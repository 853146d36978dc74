//! Messages about the experiment's values say where the values came from: file and line, variable or argument.

use crate::config::{FIELDS, Field, Resolved};
use crate::error::{Error, Problem};
use crate::input;

/// Adds the origin of each value that the error speaks of.
pub fn in_error(mut error: Error, resolved: &Resolved) -> Error {
    for problem in &mut error.problems {
        in_problem(problem, resolved);
    }
    error
}

/// Adds the origin of each value that a warning speaks of as `(section.field)`.
pub fn in_line(line: &str, resolved: &Resolved) -> String {
    let mut line = line.to_owned();
    for field in FIELDS {
        note_parenthesised(&mut line, field, resolved);
    }
    line
}

fn in_problem(problem: &mut Problem, resolved: &Resolved) {
    let mut named = false;
    for field in FIELDS {
        let texts = std::iter::once(&mut problem.what).chain(&mut problem.causes);
        // Every text is looked at, so this must not stop at the first.
        let here = texts.map(|text| note_parenthesised(text, field, resolved)).filter(|&found| found).count();
        named |= here > 0 || note_plain(problem, field, resolved);
    }
    if !named {
        note_path(problem, resolved);
    }
    let missing = problem.missing.as_deref();
    if let Some(said) = missing.and_then(|path| input::whereabouts(path, resolved.folders())) {
        match &mut problem.hint {
            Some(hint) => hint.extend(["; ", &said]),
            None => problem.hint = Some(said),
        }
    }
}

/// `(data.face_dir)` becomes `(data.face_dir, from a.toml:3)`.
fn note_parenthesised(text: &mut String, field: &Field, resolved: &Resolved) -> bool {
    let plain = format!("({})", field.key);
    let found = text.contains(&plain);
    if found {
        *text = text.replace(&plain, &format!("({}, {})", field.key, from(field, resolved)));
    }
    found
}

/// A field that the problem names without brackets: the origin goes into the hint.
fn note_plain(problem: &mut Problem, field: &Field, resolved: &Resolved) -> bool {
    let said = problem.chain().any(|text| find(text, field).is_some());
    let hint = problem.hint.get_or_insert_default();
    let from = from(field, resolved);
    match find(hint, field) {
        // `set model.pose_landmarks = 2`: the origin is that of the value before.
        Some(end) if hint.get(end..).is_some_and(|rest| rest.starts_with(" =")) => {
            hint.extend(["; the value now is ", &from]);
        }
        Some(end) if said => hint.insert_str(end, &format!(" ({from})")),
        None if said && hint.is_empty() => *hint = format!("{} is {from}", field.key),
        None if said => hint.extend(["; ", field.key, " is ", &from]),
        _ => {}
    }
    if hint.is_empty() {
        problem.hint = None;
    }
    said
}

/// A file in a folder of the experiment: the folder's field goes behind the path.
fn note_path(problem: &mut Problem, resolved: &Resolved) {
    let json = resolved.to_json();
    let folder = |field: &Field| json.get(field.section)?.get(field.name)?.as_str();
    for text in std::iter::once(&mut problem.what).chain(&mut problem.causes) {
        let inside = |field: &&Field| {
            let start = |path: &str| format!("{}/", path.trim_end_matches('/'));
            field.kind.is_path() && folder(field).is_some_and(|path| text.contains(&start(path)))
        };
        // Of folders inside one another the innermost one counts.
        let field = FIELDS.iter().filter(inside).max_by_key(|field| folder(field).map_or(0, str::len));
        if let (Some(field), false) = (field, text.contains('\n')) {
            text.extend([" (", field.key, ", ", &from(field, resolved), ")"]);
            return;
        }
    }
}

/// Where the first mention of the field's key, as a whole word, ends.
fn find(text: &str, field: &Field) -> Option<usize> {
    let word = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(field.key).find_map(|(start, key)| {
        let end = start + key.len();
        let before = text.get(..start).and_then(|text| text.chars().next_back());
        let after = text.get(end..).and_then(|text| text.chars().next());
        (!before.is_some_and(|c| word(c) || c == '(') && !after.is_some_and(word)).then_some(end)
    })
}

fn from(field: &Field, resolved: &Resolved) -> String {
    match resolved.origin(field.key) {
        "default" => "the default".to_owned(),
        origin => format!("from {origin}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Layers, Preset, Setting, resolve};

    fn resolved() -> Resolved {
        let settings = FIELDS
            .iter()
            .filter(|field| field.default == Preset::Required)
            .map(|field| Setting {
                key: field.key.into(),
                value: field.name.into(),
                origin: format!("--set {}", field.name),
            })
            .collect();
        resolve(&Layers { settings, ..Layers::default() }).unwrap()
    }

    fn noted(problem: Problem) -> String {
        in_error(Error::new(crate::error::ErrorKind::Data, problem), &resolved()).to_string()
    }

    #[test]
    fn keys_in_brackets_get_their_origin_once() {
        let problem = Problem::new("cannot list the folder x (data.face_dir)").hint("correct data.face_dir");
        assert_eq!(
            noted(problem),
            "error: cannot list the folder x (data.face_dir, from --set face_dir)\n  hint: correct data.face_dir"
        );
        assert_eq!(in_line("a (data.batch_size)", &resolved()), "a (data.batch_size, the default)");
    }

    #[test]
    fn keys_without_brackets_get_theirs_in_the_hint() {
        let problem = Problem::new("run.work_dir x holds a run").hint("choose another run.work_dir, or …");
        assert!(noted(problem).ends_with("choose another run.work_dir (from --set work_dir), or …"));
        let problem = Problem::new("bad")
            .cause("model.pose_landmarks = 13 needs 39")
            .hint("set model.pose_landmarks = 2");
        assert!(noted(problem).ends_with("set model.pose_landmarks = 2; the value now is the default"));
        let problem = Problem::new("bad").cause("optimization.scheduler_gamma is odd");
        assert!(noted(problem).ends_with("hint: optimization.scheduler_gamma is the default"));
        assert_eq!(noted(Problem::new("no key at all")), "error: no key at all");
    }

    #[test]
    fn files_get_their_folder_s_field() {
        let inner = Problem::new("cannot load the clip a").cause("cannot read pose_dir/a.npz").cause("odd");
        assert!(noted(inner).contains("pose_dir/a.npz (data.pose_dir, from --set pose_dir)\n"));
        let what = noted(Problem::new("cannot read the image face_dir/a_f1.jpg"));
        assert_eq!(
            what,
            "error: cannot read the image face_dir/a_f1.jpg (data.face_dir, from --set face_dir)"
        );
    }
}
