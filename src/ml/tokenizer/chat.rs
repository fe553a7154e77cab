//! Chat templates: how a conversation becomes the text that a model was trained on.
//!
//! A template is Jinja, as `transformers` renders it: blocks take the line break behind them and the white space before
//! them, loops can be broken off, and there are `raise_exception`, Python's methods of texts and its JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Write;
use std::sync::Arc;

use fancy_regex::Regex;
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
    /// Whether it has no key `content` at all, which a template can tell from a null.
    pub lacks_content: bool,
    /// What else it holds, such as `tool_calls`, by name and in order, as JSON; none of it is null.
    pub more: Vec<(String, String)>,
}

impl Message {
    /// A message that holds nothing else.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self {
            role: role.into(),
            content: Some(content.into()),
            lacks_content: false,
            more: Vec::new(),
        }
    }

    /// Makes what a template is given.
    fn to_value(&self) -> Result<Value, Error> {
        let mut fields = vec![("role".to_owned(), Value::from(self.role.as_str()))];
        if !self.lacks_content {
            fields.push(("content".to_owned(), Value::from(self.content.clone())));
        }
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
        let mut lacks_content = true;
        while let Some(name) = map.next_key::<String>()? {
            match name.as_str() {
                "role" => role = Some(map.next_value()?),
                "content" => {
                    content = map.next_value()?;
                    lacks_content = false;
                }
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
            lacks_content,
            more,
        })
    }
}

/// A template that is ready to render conversations.
#[derive(Debug, Clone)]
pub struct ChatTemplate {
    environment: Arc<Environment<'static>>,
    tokens: BTreeMap<String, String>,
}

impl ChatTemplate {
    /// Prepares a template; `tokens` are those that it may name, such as `bos_token`, as texts.
    pub fn new(
        template: &str,
        tokens: BTreeMap<String, String>,
    ) -> Result<Self, ChatTemplateError> {
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
            .add_template_owned(NAME, without_generation(template)?)
            .map_err(|error| ChatTemplateError::Parse(in_words(&error)))?;
        Ok(Self {
            environment: Arc::new(environment),
            tokens,
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
            tools => (),
            documents => (),
            ..Value::from_serialize(&self.tokens)
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

/// Makes of `{% generation %}` and its end, by which `transformers` finds what the assistant said, a block that writes what
/// is in it and keeps to itself what is set there.
fn without_generation(template: &str) -> Result<String, ChatTemplateError> {
    let tags = Regex::new(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}");
    let replaced = tags.and_then(|tags| {
        let replaced = tags.try_replacen(template, 0, "{%$1 ${2}with $3%}")?;
        Ok(replaced.into_owned())
    });
    replaced.map_err(|error| ChatTemplateError::Parse(error.to_string()))
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
        let tokens =
            ["bos_token", "eos_token"].map(|name| (name.to_owned(), text(&recorded[name])));
        let tokens = BTreeMap::from(tokens);
        let conversations: Vec<Vec<Message>> =
            serde_json::from_value(recorded["conversations"].clone()).unwrap();
        let mut refused = 0;
        for template in recorded["templates"].as_array().unwrap() {
            let name = &template["name"];
            let rendering =
                ChatTemplate::new(&text(&template["template"]), tokens.clone()).unwrap();
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
        let template = ChatTemplate::new(template, BTreeMap::new()).unwrap();
        let expected =
            r#"user:a;assistant:hm {"name": "f", "arguments": {"z": 1, "a": [true, null, "é"]}};"#;
        assert_eq!(template.render(&messages, false).unwrap(), expected);
        let error = serde_json::from_str::<Message>(r#"{"role": "user"}"#).unwrap_err();
        assert!(
            error.to_string().contains("missing field `content`"),
            "{error}"
        );
    }

    /// Renders two messages, the second of which has no key `content`.
    fn rendered(template: &str) -> String {
        let messages = r#"[{"role": "user", "content": null, "name": "n"},
            {"role": "assistant", "thinking": "hm"}]"#;
        let messages: Vec<Message> = serde_json::from_str(messages).unwrap();
        let tokens = BTreeMap::from([("pad_token".to_owned(), "<pad>".to_owned())]);
        let template = ChatTemplate::new(template, tokens).unwrap();
        template.render(&messages, false).unwrap()
    }

    #[test]
    fn loops_know_the_messages_beside_one() {
        let template = "{% for m in messages %}{{ loop.previtem.role if loop.previtem }}<{{ m.role }}>\
                        {{ loop.nextitem.role if loop.nextitem }};{% endfor %}";
        assert_eq!(rendered(template), "<user>assistant;user<assistant>;");
    }

    #[test]
    fn no_content_is_told_from_null() {
        let template = "{% for m in messages %}{{ 'content' in m }} {{ m.content is none }} \
                        {{ m.content is defined }};{% endfor %}{{ messages[1].content }}";
        assert_eq!(
            rendered(template).to_lowercase(),
            "true true true;false false false;"
        );
    }

    #[test]
    fn tokens_are_known_by_their_names_and_others_are_undefined() {
        let template = "{{ pad_token }}{{ bos_token is defined }}{{ unk_token }}";
        assert_eq!(rendered(template).to_lowercase(), "<pad>false");
    }

    #[test]
    fn what_the_assistant_generates_is_rendered() {
        let template = "{% set a = 1 %}x  \n  {%- generation -%}  \n {{ messages[1].role }}{% set a = 2 %}  \
                        {%-endgeneration%}\n{{ a }}\n  {% generation %}\ny{% endgeneration %}";
        assert_eq!(rendered(template), "xassistant1\ny");
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
            let found = ChatTemplate::new(template, BTreeMap::new());
            let found =
                found.and_then(|template| template.render(std::slice::from_ref(&message), true));
            let error = found.unwrap_err().to_string();
            assert!(error.contains(says), "{template}: {error}");
        }
        let error = ChatTemplate::new("{% for %}", BTreeMap::new()).unwrap_err();
        assert!(matches!(error, ChatTemplateError::Parse(_)), "{error}");
    }
}
