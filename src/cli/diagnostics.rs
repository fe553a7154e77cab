//! Showing what is wrong with a pipeline, with the lines it is about.

use std::fmt;

use miette::{GraphicalReportHandler, GraphicalTheme, LabeledSpan, NamedSource, SourceCode};
use serde_json::json;

use super::output::{Output, counted};
use super::text::visible;
use crate::engine::diagnostic::{SHOWN, Severity};
use crate::engine::document::{Document, Located, Span};

/// Lines longer than this many bytes are not shown: the place is given all the same.
const LONGEST_LINE: usize = 2000;

#[derive(Debug)]
struct Shown {
    message: String,
    hint: Option<String>,
    severity: Severity,
    source: NamedSource<String>,
    /// What of the source is underlined: its first byte and its length.
    span: Option<(usize, usize)>,
}

impl Shown {
    /// The handler draws a frame around what it is given, and is given nothing that acts on a terminal.
    fn new(file: &str, text: &str, located: &Located) -> Self {
        let diagnostic = &located.diagnostic;
        let mut shown = Self {
            message: visible(&diagnostic.message).into_owned(),
            hint: diagnostic
                .hint
                .as_ref()
                .map(|hint| visible(hint).into_owned()),
            severity: diagnostic.severity,
            source: NamedSource::new(file, String::new()),
            span: None,
        };
        if let Some(span) = located.span.filter(|span| fits(text, *span))
            && let Some(marked) = text.get(span.start..span.end)
        {
            let mut source = visible(&text[..span.start]).into_owned();
            let start = source.len();
            source.push_str(&visible(marked));
            shown.span = Some((start, source.len() - start));
            source.push_str(&visible(&text[span.end..]));
            shown.source = NamedSource::new(file, source).with_language("yaml");
        }
        shown
    }
}

/// Whether the lines around `span` are short enough to be shown.
fn fits(text: &str, span: Span) -> bool {
    let is_short = |line: &str| line.len() <= LONGEST_LINE;
    let around = text.get(..span.start).zip(text.get(span.start..));
    around.is_some_and(|(before, after)| {
        before.rsplit('\n').take(2).all(is_short) && after.split('\n').take(2).all(is_short)
    })
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Shown {}

impl miette::Diagnostic for Shown {
    fn severity(&self) -> Option<miette::Severity> {
        Some(match self.severity {
            Severity::Error => miette::Severity::Error,
            Severity::Warning => miette::Severity::Warning,
        })
    }

    fn help<'a>(&'a self) -> Option<Box<dyn fmt::Display + 'a>> {
        let hint = self.hint.as_ref()?;
        Some(Box::new(hint))
    }

    fn source_code(&self) -> Option<&dyn SourceCode> {
        self.span.map(|_| &self.source as &dyn SourceCode)
    }

    fn labels(&self) -> Option<Box<dyn Iterator<Item = LabeledSpan> + '_>> {
        let (start, length) = self.span?;
        let label = LabeledSpan::new(None, start, length);
        Some(Box::new(std::iter::once(label)))
    }
}

/// Writes diagnostics: as JSON to standard output, or with snippets to standard error.
pub(super) fn report(document: &Document, diagnostics: &[Located], output: &Output) {
    let file = document.file.display().to_string();
    if output.json {
        let rows: Vec<_> = diagnostics
            .iter()
            .map(|located| {
                json!({
                    "severity": match located.diagnostic.severity {
                        Severity::Error => "error",
                        Severity::Warning => "warning",
                    },
                    "file": file,
                    "line": located.span.map(|span| span.line),
                    "column": located.span.map(|span| span.column),
                    "path": located.diagnostic.path.to_string(),
                    "message": located.diagnostic.message,
                    "hint": located.diagnostic.hint,
                })
            })
            .collect();
        output.json(&json!({ "diagnostics": rows }));
        return;
    }
    let theme = match anstream::AutoStream::choice(&std::io::stderr()) {
        anstream::ColorChoice::Never => GraphicalTheme::unicode_nocolor(),
        _ => GraphicalTheme::unicode(),
    };
    // The frame is drawn around what is written here, which comes from the file.
    let name = visible(&file).into_owned();
    let handler = GraphicalReportHandler::new_themed(theme).with_width(100);
    for located in diagnostics.iter().take(SHOWN) {
        let shown = Shown::new(&name, &document.text, located);
        let mut text = String::new();
        if handler.render_report(&mut text, &shown).is_ok() {
            let severity = match located.diagnostic.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
            };
            let place = located.span.map_or_else(
                || file.clone(),
                |span| format!("{file}:{}:{}", span.line, span.column),
            );
            output.line(&format!("{severity}: {place}"));
            output.rendered(text.trim_end());
            output.line("");
        }
    }
    if diagnostics.len() > SHOWN {
        let more = diagnostics.len() - SHOWN;
        output.line(&format!("and {more} more; `--json` lists them all"));
        output.line("");
    }
    let errors = diagnostics
        .iter()
        .filter(|d| d.diagnostic.severity == Severity::Error)
        .count();
    let warnings = diagnostics.len() - errors;
    if errors > 0 {
        output.line(&format!(
            "{file}: {}, {}",
            counted(errors, "error"),
            counted(warnings, "warning")
        ));
    }
}
