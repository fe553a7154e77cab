//! Chat templates: how a conversation becomes the text that a model was trained on.
//!
//! A template is Jinja, as `transformers` renders it: blocks take the line break behind them and the white space before
//! them, loops can be broken off, and there are `raise_exception`, Python's methods of texts and its JSON.

use std::fmt;
use std::io::Write;
use std::sync::Arc;

use minijinja::value::{Kwargs, Value};
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior};
use minijinja_contrib::pycompat::unknown_method_callback;
use serde::de::{Error as _, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};
use serde_json::value::RawValue;

/// Steps that one rendering may take: templates come from outside.
const FUEL: u64 = 10_000_000;
/// The name of the template in messages.
const NAME: &str = "chat_template";

/// Why a conversation cannot be rendered.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ChatTemplateError {
    /// The template is none.
    #[error("the chat template cannot be read: {0}")]
    Parse(String),
    /// The template refuses a conversation.
    #[error("the chat template refuses the conversation: {0}")]
    Refused(String),
    /// The template asks for something that is not there.
    #[error("the chat template cannot be rendered: {0}")]
    Render(String),
}

/// A message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Message {
    /// Who says it: `system`, `user` or `assistant`.
    pub role: String,
    /// What is said; `None` of one that, say, only calls a tool.
    pub content: Option<String>,
    /// What else it holds, such as `tool_calls`, by name and in order, as JSON; none of it is null.
    pub more: Vec<(String, String)>,
}

impl Message {
    /// A message that holds nothing else.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: Some(content.into()),
            more: Vec::new(),
        }
    }

    /// Makes what a template is given.
    fn to_value(&self) -> Result<Value, Error> {
        let mut fields = vec![
            ("role".to_owned(), Value::from(self.role.as_str())),
            ("content".to_owned(), Value::from(self.content.clone())),
        ];
        for (name, json) in &self.more {
            let value = serde_json::from_str(json).map_err(|error| {
                Error::new(ErrorKind::CannotDeserialize, format!("`{name}`: {error}"))
            })?;
            fields.push((name.clone(), value));
        }
        Ok(fields.into_iter().collect())
    }
}

impl<'de> Deserialize<'de> for Message {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Fields)
    }
}

/// Takes the fields of a message.
struct Fields;

impl<'de> Visitor<'de> for Fields {
    type Value = Message;

    fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        formatter.write_str("a message with `role` and `content`")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Message, A::Error> {
        let (mut role, mut content, mut more) = (None, None, Vec::new());
        while let Some(name) = map.next_key::<String>()? {
            match name.as_str() {
                "role" => role = Some(map.next_value()?),
                "content" => content = map.next_value()?,
                _ => {
                    let value: Box<RawValue> = map.next_value()?;
                    // Whatever keeps rows in columns has null where a message has nothing.
                    if value.get() != "null" {
                        more.push((name, value.get().to_owned()));
                    }
                }
            }
        }
        if content.is_none() && more.is_empty() {
            return Err(A::Error::missing_field("content"));
        }
        Ok(Message {
            role: role.ok_or_else(|| A::Error::missing_field("role"))?,
            content,
            more,
        })
    }
}

/// A template that is ready to render conversations.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    bos: String,
    eos: String,
}

impl ChatTemplate {
    /// Prepares a template; `bos` and `eos` are the tokens that begin and end a text, as texts.
    pub fn new(template: &str, bos: &str, eos: &str) -> Result<Self, ChatTemplateError> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment.set_fuel(Some(FUEL));
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_unknown_method_callback(unknown_method_callback);
        environment.add_function("raise_exception", raise_exception);
        environment.add_function("strftime_now", strftime_now);
        environment.add_filter("tojson", to_json);
        environment
            .add_template_owned(NAME, template.to_owned())
            .map_err(|error| ChatTemplateError::Parse(in_words(&error)))?;
        Ok(Self {
            environment: Arc::new(environment),
            bos: bos.to_owned(),
            eos: eos.to_owned(),
        })
    }

    /// Renders a conversation; with `is_prompt` the assistant's next message begins at its end.
    pub fn render(
        &self,
        messages: &[Message],
        is_prompt: bool,
    ) -> Result<String, ChatTemplateError> {
        let in_words_of = |error: Error| ChatTemplateError::Render(in_words(&error));
        let messages = messages.iter().map(Message::to_value);
        let messages: Vec<Value> = messages.collect::<Result<_, _>>().map_err(in_words_of)?;
        let variables = minijinja::context! {
            messages,
            add_generation_prompt => is_prompt,
            bos_token => self.bos,
            eos_token => self.eos,
            tools => (),
            documents => (),
        };
        let template = self.environment.get_template(NAME);
        let rendered = template.and_then(|template| template.render(variables));
        rendered.map_err(|error| {
            let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(&error);
            while let Some(inner) = cause {
                if let Some(Refusal(reason)) = inner.downcast_ref() {
                    return ChatTemplateError::Refused(reason.clone());
                }
                cause = inner.source();
            }
            ChatTemplateError::Render(in_words(&error))
        })
    }
}

/// What a template said when it refused a conversation.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Refusal(String);

fn raise_exception(reason: String) -> Result<Value, Error> {
    let error = Error::new(ErrorKind::InvalidOperation, reason.clone());
    Err(error.with_source(Refusal(reason)))
}

fn strftime_now(_: String) -> Result<Value, Error> {
    Err(Error::new(
        ErrorKind::InvalidOperation,
        "`strftime_now` is the time of the day, which would make another text of the same data every time",
    ))
}

/// Writes a value as Python's `json.dumps(..., ensure_ascii=False)` does.
fn to_json(value: &Value, options: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = options.get("indent")?;
    options.assert_all_used()?;
    let failed =
        |error: serde_json::Error| Error::new(ErrorKind::BadSerialization, error.to_string());
    let mut text = Vec::new();
    let written = match indent {
        Some(indent) => {
            let space = " ".repeat(indent.min(64));
            let formatter = PrettyFormatter::with_indent(space.as_bytes());
            value.serialize(&mut Serializer::with_formatter(&mut text, formatter))
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut text, OneLine)),
    };
    written.map_err(failed)?;
    String::from_utf8(text)
        .map_err(|error| Error::new(ErrorKind::BadSerialization, error.to_string()))
}

/// One line with spaces behind commas and colons.
struct OneLine;

fn comma<W: ?Sized + Write>(writer: &mut W, is_first: bool) -> std::io::Result<()> {
    if is_first {
        Ok(())
    } else {
        writer.write_all(b", ")
    }
}

impl Formatter for OneLine {
    fn begin_array_value<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        comma(writer, first)
    }

    fn begin_object_key<W: ?Sized + Write>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        comma(writer, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, writer: &mut W) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

fn in_words(error: &Error) -> String {
    let detail = error.detail().map(|detail| format!(": {detail}"));
    let line = error.line().map(|line| format!(" (line {line})"));
    format!(
        "{}{}{}",
        error.kind(),
        detail.unwrap_or_default(),
        line.unwrap_or_default()
    )
}

#[cfg(test)]
mod tests {
    use serde_json::Value as Json;

    use super::*;

    const RECORDED: &str = include_str!(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/fixtures/chat_templates.json"
    ));

    #[test]
    fn conversations_read_as_transformers_renders_them() {
        let recorded: Json = serde_json::from_str(RECORDED).unwrap();
        let text = |value: &Json| value.as_str().unwrap().to_owned();
        let (bos, eos) = (text(&recorded["bos_token"]), text(&recorded["eos_token"]));
        let conversations: Vec<Vec<Message>> =
            serde_json::from_value(recorded["conversations"].clone()).unwrap();
        let mut refused = 0;
        for template in recorded["templates"].as_array().unwrap() {
            let name = &template["name"];
            let rendering = ChatTemplate::new(&text(&template["template"]), &bos, &eos).unwrap();
            for case in template["cases"].as_array().unwrap() {
                let messages = &conversations[case["conversation"].as_u64().unwrap() as usize];
                let is_prompt = case["add_generation_prompt"].as_bool().unwrap();
                let found = rendering.render(messages, is_prompt);
                if let Some(error) = case["error"].as_str() {
                    refused += 1;
                    assert_eq!(
                        found,
                        Err(ChatTemplateError::Refused(error.to_owned())),
                        "{name}"
                    );
                } else {
                    assert_eq!(found, Ok(text(&case["text"])), "{name}: {case}");
                }
            }
        }
        assert!(refused > 0);
    }

    #[test]
    fn all_that_a_message_holds_is_given_to_the_template() {
        let messages = r#"[{"role": "user", "content": "a", "tool_calls": null},
            {"thinking": "hm", "role": "assistant", "content": null,
             "tool_calls": [{"function": {"name": "f", "arguments": {"z": 1, "a": [true, null, "\u00e9"]}}}]}]"#;
        let messages: Vec<Message> = serde_json::from_str(messages).unwrap();
        let template = "{% for m in messages %}{{ m.role }}:{% if 'tool_calls' in m %}{{ m.thinking }} \
                        {% for call in m.tool_calls %}{{ call.function | tojson }}{% endfor %}\
                        {% else %}{{ m.content }}{% endif %};{% endfor %}";
        let template = ChatTemplate::new(template, "", "").unwrap();
        let expected =
            r#"user:a;assistant:hm {"name": "f", "arguments": {"z": 1, "a": [true, null, "é"]}};"#;
        assert_eq!(template.render(&messages, false).unwrap(), expected);
        let error = serde_json::from_str::<Message>(r#"{"role": "user"}"#).unwrap_err();
        assert!(
            error.to_string().contains("missing field `content`"),
            "{error}"
        );
    }

    #[test]
    fn templates_that_cannot_be_trusted_or_read_are_errors() {
        let message = Message::new("user", "a");
        for (template, says) in [
            ("{{ strftime_now('%d') }}", "is the time of the day"),
            (
                "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
                "fuel",
            ),
            ("{{ nothing.at.all }}", "undefined"),
            ("{{ messages | tojson(sort_keys=true) }}", "sort_keys"),
            ("{{ messages | unheard_of }}", "unheard_of"),
            ("{% include 'other' %}", "other"),
        ] {
            let found = ChatTemplate::new(template, "", "");
            let found =
                found.and_then(|template| template.render(std::slice::from_ref(&message), true));
            let error = found.unwrap_err().to_string();
            assert!(error.contains(says), "{template}: {error}");
        }
        let error = ChatTemplate::new("{% for %}", "", "").unwrap_err();
        assert!(matches!(error, ChatTemplateError::Parse(_)), "{error}");
    }
}
