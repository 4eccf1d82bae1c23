//! Answers as tables, JSON, YAML or CSV: owns their forms; knows no command and no broker.

use std::io::{self, Write};

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Map, Value};

use crate::arguments::Output;

/// Rows of named values.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Sheet {
    columns: Vec<&'static str>,
    rows: Vec<Vec<Value>>,
}

impl Sheet {
    /// A sheet without rows.
    pub(crate) fn new(columns: &[&'static str]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// One more row: a value for each column.
    pub(crate) fn push(&mut self, row: impl IntoIterator<Item = Value>) {
        let row: Vec<Value> = row.into_iter().collect();
        assert_eq!(row.len(), self.columns.len(), "a row has a value for each column");
        self.rows.push(row);
    }

    /// Every row as an object.
    pub(crate) fn objects(&self) -> Vec<Value> {
        let object = |row: &Vec<Value>| {
            let entries = self.columns.iter().zip(row).map(|(name, value)| ((*name).to_owned(), value.clone()));
            Value::Object(entries.collect::<Map<_, _>>())
        };
        self.rows.iter().map(object).collect()
    }

    /// Writes all rows.
    pub(crate) fn write(&self, output: Output, out: &mut impl Write) -> io::Result<()> {
        match output {
            Output::Table => writeln!(out, "{}", self.table()),
            Output::Csv => self.write_csv(out),
            Output::Jsonl => self.objects().iter().try_for_each(|object| writeln!(out, "{object}")),
            Output::Json | Output::Yaml => write_value(&Value::Array(self.objects()), output, out),
        }
    }

    fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header(self.columns.iter().map(|name| name.to_uppercase()));
        for row in &self.rows {
            table.add_row(row.iter().map(plain));
        }
        for (index, column) in table.column_iter_mut().enumerate() {
            column.set_padding((0, 2));
            if self.rows.iter().any(|row| row[index].is_number()) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned()).collect();
        lines.join("\n")
    }

    fn write_csv(&self, out: &mut impl Write) -> io::Result<()> {
        writeln!(out, "{}", self.columns.join(","))?;
        for row in &self.rows {
            let cells: Vec<String> = row.iter().map(|value| csv_cell(&plain(value))).collect();
            writeln!(out, "{}", cells.join(","))?;
        }
        Ok(())
    }
}

/// Writes one value; a table and CSV have no form for one, so those are JSON.
pub(crate) fn write_value(value: &Value, output: Output, out: &mut impl Write) -> io::Result<()> {
    match output {
        Output::Yaml => {
            let mut text = String::new();
            yaml(value, 0, &mut text);
            out.write_all(text.trim_start_matches('\n').as_bytes())
        }
        Output::Jsonl => writeln!(out, "{value}"),
        Output::Table | Output::Json | Output::Csv => writeln!(out, "{value:#}"),
    }
}

/// A value without quotes; nothing for null.
fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// RFC 4180.
fn csv_cell(text: &str) -> String {
    if text.contains([',', '"', '\n', '\r']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text.to_owned() }
}

/// Block style. A text is quoted as in JSON, which YAML reads the same; so nothing is taken for a number or a word.
fn yaml(value: &Value, depth: usize, text: &mut String) {
    let indent = "  ".repeat(depth);
    match value {
        Value::Object(object) if !object.is_empty() => {
            for (name, value) in object {
                text.push_str(&format!("\n{indent}{name}:"));
                yaml(value, depth + 1, text);
            }
        }
        Value::Array(values) if !values.is_empty() => {
            for value in values {
                text.push_str(&format!("\n{indent}-"));
                let mut inner = String::new();
                yaml(value, depth + 1, &mut inner);
                // The first name of an object stands behind the dash.
                let behind = inner.strip_prefix('\n').map(|rest| format!(" {}", rest.trim_start()));
                text.push_str(&behind.unwrap_or(inner));
            }
        }
        scalar => text.push_str(&format!(" {scalar}")),
    }
    if depth == 0 {
        text.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn written(output: Output) -> String {
        let mut sheet = Sheet::new(&["name", "partitions", "note"]);
        sheet.push([json!("orders"), json!(10), json!("a, \"b\"")]);
        sheet.push([json!("events.raw"), json!(2), Value::Null]);
        let mut out = Vec::new();
        sheet.write(output, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn each_form_looks_as_its_readers_expect() {
        let table = "NAME        PARTITIONS  NOTE\norders              10  a, \"b\"\nevents.raw           2\n";
        assert_eq!(written(Output::Table), table);
        assert_eq!(written(Output::Csv), "name,partitions,note\norders,10,\"a, \"\"b\"\"\"\nevents.raw,2,\n");
        let lines = "{\"name\":\"orders\",\"partitions\":10,\"note\":\"a, \\\"b\\\"\"}\n\
                     {\"name\":\"events.raw\",\"partitions\":2,\"note\":null}\n";
        assert_eq!(written(Output::Jsonl), lines);
        let yaml = "- name: \"orders\"\n  partitions: 10\n  note: \"a, \\\"b\\\"\"\n\
                    - name: \"events.raw\"\n  partitions: 2\n  note: null\n";
        assert_eq!(written(Output::Yaml), yaml);
        let json: Value = serde_json::from_str(&written(Output::Json)).unwrap();
        assert_eq!(json[1]["partitions"], 2);
    }

    #[test]
    fn nested_values_are_yaml_that_keeps_their_shape() {
        let value = json!({"name": "t", "configs": {"a": "1"}, "partitions": [{"index": 0, "tags": []}], "none": {}});
        let mut out = Vec::new();
        write_value(&value, Output::Yaml, &mut out).unwrap();
        let expected = "name: \"t\"\nconfigs:\n  a: \"1\"\npartitions:\n  - index: 0\n    tags: []\nnone: {}\n";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
