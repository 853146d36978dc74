//! The reference of all fields in `configs/README.md`, in markdown.

use super::fields::{FIELDS, SECTIONS};

/// A heading, a sentence and a table for each section, made of the fields' own definitions.
#[must_use]
pub fn reference_table() -> String {
    let mut text = String::new();
    for (i, section) in SECTIONS.iter().enumerate() {
        if i > 0 {
            text.push('\n');
        }
        text.extend(["### `[", section.name, "]`\n\n", section.doc, "\n\n"]);
        text.push_str("| field | what it is | values | default | flag |\n|---|---|---|---|---|\n");
        for field in FIELDS.iter().filter(|field| field.section == section.name) {
            let flag = field.flag().unwrap_or_else(|| format!("--set {}=", field.key));
            let cells = [
                format!("`{}`", field.name),
                field.doc.to_owned(),
                field.type_name(),
                field.default_text(),
                format!("`{flag}`"),
            ];
            let cells: Vec<_> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
            text.extend(["| ", &cells.join(" | "), " |\n"]);
        }
    }
    text
}
