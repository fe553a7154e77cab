//! The templates of chats that loaders name, as other programs take them.

use super::question::Template;

const TURNS: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + \
    '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Returns what renders messages as `template: NAME` of a loader does, in Jinja; nothing if that is no template of chats.
pub fn chat_template(name: &str) -> Option<String> {
    let Ok(Template::Chat(system)) = Template::parse(name) else {
        return None;
    };
    let unsaid = system.map_or_else(String::new, |system| {
        format!(
            "{{% if messages[0]['role'] != 'system' %}}{{{{ '<|im_start|>system\\n{system}<|im_end|>\\n' }}}}{{% endif %}}"
        )
    });
    Some(unsaid + TURNS)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::ml::tokenizer::chat::{ChatTemplate, Message};
    use crate::stages::data::question::Question;

    #[test]
    fn messages_are_rendered_as_the_loaders_do() {
        for name in ["chatml", "smollm2"] {
            let jinja = ChatTemplate::new(&chat_template(name).unwrap(), BTreeMap::new()).unwrap();
            for system in ["", "Be brief."] {
                let system = (!system.is_empty()).then_some(("system", system));
                let said = [
                    ("user", "a 'b'\n"),
                    ("assistant", " c "),
                    ("user", "{{ d }}"),
                ];
                let messages = system.into_iter().chain(said);
                let messages: Vec<Message> = messages
                    .map(|(role, content)| Message::new(role, content))
                    .collect();
                let question = Question::Turns(messages.clone());
                let expected = Template::parse(name).unwrap().prompt(&question);
                assert_eq!(jinja.render(&messages, true).unwrap(), expected);
            }
        }
        for name in ["plain", "stack_llama", "{question} :"] {
            assert_eq!(chat_template(name), None);
        }
    }
}
