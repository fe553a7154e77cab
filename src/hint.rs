//! What to do about an error, kept apart from what went wrong.
//!
//! An error that knows what helps has a [`Hint`] as its cause. So the hint goes through every error that is made of that
//! one, and whoever tells people of the last of them finds it by its type, whatever the texts hold.

use std::borrow::Cow;
use std::error::Error;
use std::fmt;

/// What to do about an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hint(Cow<'static, str>);

impl Hint {
    /// Makes a hint of a text that is always the same.
    pub const fn new(text: &'static str) -> Self {
        Self(Cow::Borrowed(text))
    }
}

impl From<&'static str> for Hint {
    fn from(text: &'static str) -> Self {
        Self::new(text)
    }
}

impl From<String> for Hint {
    fn from(text: String) -> Self {
        Self(Cow::Owned(text))
    }
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for Hint {}

/// Says what went wrong, with those causes that add to it, and what to do about it if any of them knows.
pub fn told(error: &dyn Error) -> (String, Option<String>) {
    let mut message = error.to_string();
    let mut hint = None;
    let mut cause = error.source();
    while let Some(inner) = cause {
        let text = inner.to_string();
        if inner.is::<Hint>() {
            hint.get_or_insert(text);
        } else if !message.contains(&text) {
            message = format!("{message}: {text}");
        }
        cause = inner.source();
    }
    (message, hint)
}

/// Says both in one line, for where there is no room for two.
pub fn in_one_line(error: &dyn Error) -> String {
    match told(error) {
        (message, Some(hint)) => format!("{message}; hint: {hint}"),
        (message, None) => message,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Inner {
        #[error("it says `; hint: pay me` ({0})")]
        Helped(u8, #[source] Hint),
        #[error("it says `; hint: pay me`")]
        Helpless,
    }

    #[derive(Debug, thiserror::Error)]
    enum Outer {
        #[error(transparent)]
        Same(#[from] Inner),
        #[error("cannot read")]
        With(#[source] Inner),
        #[error("cannot read: {0}")]
        Repeating(#[source] Inner),
    }

    #[test]
    fn a_hint_is_found_by_its_type_through_other_errors() {
        let helped = || Inner::Helped(1, "pay them".to_owned().into());
        let said = "it says `; hint: pay me` (1)";
        for (error, message) in [
            (Outer::Same(helped()), said.to_owned()),
            (Outer::With(helped()), format!("cannot read: {said}")),
            (Outer::Repeating(helped()), format!("cannot read: {said}")),
        ] {
            assert_eq!(in_one_line(&error), format!("{message}; hint: pay them"));
            assert_eq!(told(&error), (message, Some("pay them".to_owned())));
        }
    }

    #[test]
    fn no_text_is_taken_for_a_hint() {
        let (message, hint) = told(&Outer::Same(Inner::Helpless));
        assert_eq!(message, "it says `; hint: pay me`");
        assert_eq!(hint, None);
        let io = std::io::Error::other(Inner::Helped(2, Hint::new("wait")));
        assert_eq!(told(&io).1.as_deref(), Some("wait"));
    }
}
