//! Pipeline files, from their text to a plan and to what people see of their faults.

use std::path::{Component, Path};

use flowgraph::engine::document::{Document, Invalid, Located};
use flowgraph::engine::overrides::Overrides;
use flowgraph::engine::plan::{PlanOptions, Planner};
use flowgraph::engine::spec::Pipeline;
use flowgraph::engine::store::Store;
use flowgraph::registry::REGISTRY;
use flowgraph::sources::Source;
use miette::{
    GraphicalReportHandler, GraphicalTheme, LabeledSpan, MietteDiagnostic, NamedSource, Report,
};

use crate::watch::Reader;

const SMALL: &str = r#"
name: small
params: { seeds: [1, 2], how: { lr: 1e-3, text: "x ${name} $${y}" }, name: n }
profiles:
  more: { params: { seeds: [1, 2, 3] }, stages: { c: null, a: { params: { run: "echo 2" } } } }
stages:
  a: { kind: command, params: { run: "echo ${how.text} > out", outputs: { out: out, two: d/two }, code: [code.sh], env: [STYLE] } }
  b: { kind: command, matrix: { seed: "${seeds}", x: [p, q], exclude: [{ seed: 1, x: p }], include: [{ seed: 9, x: z }] }, inputs: { x: a.two }, params: { run: "cat $x", outputs: { out: out } }, resources: { cpus: 2, memory: 1GiB }, retries: 1, timeout: 2.5, description: d }
  c: { kind: command, inputs: { x: "b[*]", y: ["b[seed=2,x=q].out", a.out], z: "b[seed=9,x=z]" }, params: { run: "cat $x", outputs: { out: out } } }
"#;

const TRAINING: &str = r"
name: training
params: { steps: 6 }
stages:
  world: { kind: generate_world, params: { seed: 1, pretraining_documents: 100, finetune_pairs: 60, reward_pairs: 60, rl_questions: 20 } }
  tokenizer: { kind: train_tokenizer, inputs: { data: [world.pretrain, world.evaluation] }, params: { algorithm: word_level, vocab_size: 256 } }
  model: { kind: init_model, inputs: { tokenizer: tokenizer }, params: { hidden_size: 16, num_layers: 1, num_heads: 2, intermediate_size: 32, max_position_embeddings: 64, seed: 1 } }
  sft: { kind: train_sft, inputs: { model: model, data: world.finetune }, params: { steps: '${steps}', batch_size: 8, optimizer: { lr: 1e-2, warmup_steps: 3 }, adapter: { rank: 2, alpha: 4, dropout: 0.1, target_modules: [q_proj] }, seed: 1 } }
  reward: { kind: train_reward, inputs: { model: sft, data: world.reward, evaluation: world.validation }, params: { steps: 4, batch_size: 8, optimizer: { lr: 3e-3 }, calibration: standard, seed: 1 } }
  policy: { kind: train_gflownet, inputs: { policy: sft, reward: reward, data: world.rl }, params: { objective: trajectory_balance, steps: 9, prompts_per_step: 2, completions_per_prompt: 4, optimizer: { lr: 1e-3 }, reward_scale: 2, max_new_tokens: 24, checkpoints: { early: 3 }, seed: 1 } }
  samples: { kind: sample, inputs: { policy: policy.early, prompts: world.evaluation }, params: { strategy: sampling, n: 3, max_new_tokens: 8, seed: 1 } }
";

const FAULTY: &str = "
name: [1
stages: {a: {kind: comand, params: {run: 1}, inputs: {x: b}}, a: 2}
";

const ANCHORS: &str = "
name: anchors
params: &p { a: &x [1, 2], b: *x, <<: { c: 3 } }
stages:
  a: { kind: command, params: { run: \"na\u{ef}ve ${a}\", outputs: { out: out } } }
  b: { kind: command, params: { run: | 
      echo \u{65e5}\u{672c}
    , outputs: { out: *x } } }
";

/// Draws each diagnostic under its lines, as the command line does.
fn show(document: &Document, diagnostics: &[Located]) -> Result<(), String> {
    let handler =
        GraphicalReportHandler::new_themed(GraphicalTheme::unicode_nocolor()).with_width(100);
    for located in diagnostics.iter().take(100) {
        let message = &located.diagnostic.message;
        let Some(span) = located.span else { continue };
        let inside =
            document.text.is_char_boundary(span.start) && document.text.is_char_boundary(span.end);
        if !inside {
            return Err(format!("{span:?} cuts a character: {message}"));
        }
        // The command line draws no long lines.
        if document.text.lines().any(|line| line.len() > 2000) {
            continue;
        }
        let label = LabeledSpan::new(None, span.start, span.end.saturating_sub(span.start));
        let shown = MietteDiagnostic::new(message.clone()).with_label(label);
        let source = NamedSource::new("p.yaml", document.text.clone());
        let report = Report::new(shown).with_source_code(source);
        let mut text = String::new();
        if handler.render_report(&mut text, report.as_ref()).is_err() {
            return Err(format!("a diagnostic cannot be shown at {span:?}"));
        }
    }
    Ok(())
}

/// A source outside the test's folder may be the whole disk.
fn stays_here(pipeline: &Pipeline) -> bool {
    let is_here = |path: &Path| {
        let mut parts = path.components();
        parts.all(|part| matches!(part, Component::Normal(_) | Component::CurDir))
    };
    let sources = pipeline
        .stages
        .iter()
        .flat_map(|stage| stage.stage.sources());
    sources.into_iter().all(|param| match param.source {
        Source::File(path) => is_here(&path),
        _ => true,
    })
}

pub(crate) fn pipeline() -> Reader {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("code.sh"), "echo 1\n").unwrap();
    let hello = include_bytes!("../../examples/hello.yaml");
    Reader {
        name: "pipeline",
        corpus: vec![SMALL.into(), TRAINING.into(), hello.to_vec()],
        words: &[
            "${",
            "}",
            "${seeds}",
            "${matrix.seed}",
            "[*]",
            "[seed=1]",
            "&x",
            "*x",
            "<<: ",
            "!!str ",
            "|",
            "- ",
            ": ",
            "? ",
            "{",
            "[",
            "null",
            "~",
            "\"",
            "'",
            "\n",
            "\n  ",
            "#",
            "%",
            "matrix: ",
            "inputs: ",
            "params: ",
            "include: ",
            "import: ",
            "profiles: ",
            "kind: command",
            FAULTY,
            ANCHORS,
        ],
        short: 250,
        read: Box::new(move |bytes| {
            let text = String::from_utf8_lossy(bytes).into_owned();
            let document = Document {
                file: folder.path().join("p.yaml"),
                text,
            };
            let overrides = ["", "more"].map(|profile| Overrides {
                profiles: [profile]
                    .iter()
                    .filter(|name| !name.is_empty())
                    .map(|name| (*name).to_owned())
                    .collect(),
                ..Overrides::default()
            });
            let mut taken = true;
            for overrides in overrides {
                match Pipeline::from_document(document.clone(), &overrides, REGISTRY) {
                    Ok(pipeline) => {
                        show(&document, &pipeline.warnings)?;
                        if stays_here(&pipeline) {
                            let store = Store::new(folder.path().join("store"));
                            let _ = Planner::new(&pipeline, &store, PlanOptions::default()).plan();
                        }
                    }
                    Err(invalid) => {
                        let Invalid { diagnostics, .. } = &*invalid;
                        show(&document, diagnostics)?;
                        if diagnostics.is_empty() || !invalid.to_string().contains("p.yaml") {
                            return Err(format!("a refusal without a reason: {invalid}"));
                        }
                        taken &= !overrides.profiles.is_empty();
                    }
                }
            }
            Ok(taken)
        }),
    }
}
