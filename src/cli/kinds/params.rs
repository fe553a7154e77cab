//! The params of a kind for people, with all that is inside of them.

use std::fmt::Write;

use serde_json::Value as Json;

use crate::engine::stage::forms::{
    Form, description, form_of, forms_of, inside, properties, required,
};

/// The indent of the params themselves, whose names make a column.
const OUTERMOST: usize = 2;

/// Describes the params of a schema, one a line, and below each what it can hold.
pub(super) fn describe(schema: &Json) -> String {
    let mut described = Described {
        root: schema,
        open: Vec::new(),
        text: String::new(),
    };
    described.properties(schema, OUTERMOST);
    described.text
}

struct Described<'a> {
    root: &'a Json,
    /// What is being described: it may hold itself.
    open: Vec<&'a Json>,
    text: String,
}

impl<'a> Described<'a> {
    fn line(&mut self, indent: usize, name: &str, about: &str) {
        let about = about.replace('\n', " ");
        let line = format!("{:indent$}{name} {about}", "");
        let _ = writeln!(self.text, "{}", line.trim_end());
    }

    fn properties(&mut self, of: &'a Json, indent: usize) {
        let required = required(of);
        // The tag of a form is told with it.
        for (name, property) in properties(of).filter(|(_, of)| of.get("const").is_none()) {
            let default = match property.get("default") {
                _ if required.contains(&name) => "required".to_owned(),
                Some(default) => format!("default {default}"),
                None => "optional".to_owned(),
            };
            let name = if indent == OUTERMOST {
                format!("{name:<22}")
            } else {
                format!("{name}:")
            };
            let about = format!("{} ({default})", description(property));
            self.line(indent, &name, &about);
            self.inside(property, indent + 2);
        }
    }

    /// Describes what a value can be, where that is more than its type.
    fn inside(&mut self, value: &'a Json, indent: usize) {
        let value = inside(value, self.root);
        if self.open.iter().any(|open| std::ptr::eq(*open, value)) {
            return;
        }
        self.open.push(value);
        self.properties(value, indent);
        if let Form::Names(names) = form_of(value, self.root) {
            self.line(indent, "one of", &names.join(", "));
        }
        for form in forms_of(value) {
            self.form(form, indent);
        }
        self.open.pop();
    }

    fn form(&mut self, form: &'a Json, indent: usize) {
        let about = description(form);
        match form_of(form, self.root) {
            Form::Names(names) => {
                let colon = if about.is_empty() { "" } else { ":" };
                self.line(indent, &format!("{}{colon}", names.join(" or ")), about);
            }
            Form::Tagged(key, name, of) => {
                self.line(indent, &format!("{{ {key}: {name} }}:"), about);
                self.properties(of, indent + 2);
            }
            Form::Keyed(name, of) => {
                self.line(indent, &format!("{name}:"), about);
                self.inside(of, indent + 2);
            }
            Form::Other(of) if of.get("maxProperties").is_some() => {
                self.line(indent, "{ NAME: { ... } }:", about);
            }
            Form::Other(of) if about.is_empty() => self.inside(of, indent),
            Form::Other(of) => {
                let name = match of.get("type").and_then(Json::as_str) {
                    Some("array") => "list",
                    Some("object") => "map",
                    other => other.unwrap_or("other"),
                };
                self.line(indent, &format!("{name}:"), about);
                self.inside(of, indent + 2);
            }
        }
    }
}
