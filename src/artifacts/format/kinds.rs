//! The table of formats.

use super::{ArtifactFormat, ColumnFormat, FileFormat, Further, Holds, Presence, RowsFormat};
use crate::artifacts::completions::{COMPLETIONS, SCORES};
use crate::artifacts::curve::{CURVE, SUMMARY};
use crate::artifacts::dataset::DATASET;
use crate::artifacts::embeddings::{EMBEDDINGS, EMBEDDINGS_FILE};
use crate::artifacts::figure::FIGURE;
use crate::artifacts::judgements::{JUDGEMENTS, REPLIES, order_names, verdict_names};
use crate::artifacts::labelled_texts::LABELLED_TEXTS;
use crate::artifacts::language_model::LANGUAGE_MODEL;
use crate::artifacts::reward_model::REWARD_MODEL;
use crate::artifacts::reward_program::REWARD_PROGRAM;
use crate::artifacts::reward_rule::REWARD_RULE;
use crate::artifacts::table::TABLE;
use crate::artifacts::text_encoder::{TEXT_CLASSIFIER, TEXT_ENCODER};
use crate::engine::context::RECEIVED;

const fn file(name: &'static str, about: &'static str) -> FileFormat {
    FileFormat {
        name,
        is_optional: false,
        about,
    }
}

const fn optional(name: &'static str, about: &'static str) -> FileFormat {
    FileFormat {
        is_optional: true,
        ..file(name, about)
    }
}

const fn column(
    name: &'static str,
    holds: Holds,
    about: &'static str,
    example: &'static str,
) -> ColumnFormat {
    ColumnFormat {
        name,
        holds,
        presence: Presence::Required,
        about,
        example,
    }
}

const fn nullable(
    name: &'static str,
    holds: Holds,
    about: &'static str,
    example: &'static str,
) -> ColumnFormat {
    ColumnFormat {
        presence: Presence::MayBeNull,
        ..column(name, holds, about, example)
    }
}

const ROWS: FileFormat = file("table.parquet", "the rows");
const DESCRIPTION: FileFormat = file("table.json", "title, notes and how numbers are shown");
const TABLE_FILES: &[FileFormat] = &[ROWS, DESCRIPTION];

const RECEIVED_REWARDS: FileFormat = optional(
    RECEIVED,
    "rewards of a program that need not answer the same again, an object a line: prompt, completion, finished, prefix, \
     reward",
);

const CONFIG: FileFormat = file(
    "config.json",
    "the shape of the model, as `transformers` writes it",
);
const WEIGHTS: FileFormat = file(
    "model.safetensors",
    "the weights, of the base where there is an adapter",
);
const TOKENIZER: FileFormat = file("tokenizer.json", "the tokenizer");
const TOKENIZER_CONFIG: FileFormat = file(
    "tokenizer_config.json",
    "its special tokens and chat template",
);
const ADAPTER_CONFIG: FileFormat = optional("adapter_config.json", "an adapter in PEFT's layout");
const ADAPTER: FileFormat = optional("adapter_model.safetensors", "its weights");

const QUESTION_ID: ColumnFormat = column(
    "question_id",
    Holds::Whole,
    "which question it is about; rows of one question share it",
    "7",
);
const SAMPLE: ColumnFormat = column(
    "sample",
    Holds::Whole,
    "which sample of that question it is, from 0",
    "0",
);
const QUESTION: ColumnFormat = column(
    "question",
    Holds::Text,
    "the question as it was asked",
    r#""What is 2 + 2?""#,
);
const PROMPT: ColumnFormat = column(
    "prompt",
    Holds::Text,
    "what the model is given: the question in its template",
    r#""Question: What is 2 + 2?\nAnswer:""#,
);

/// The columns of completions; scores have one more.
const COMPLETION_COLUMNS: [ColumnFormat; 11] = [
    QUESTION_ID,
    SAMPLE,
    QUESTION,
    PROMPT,
    nullable(
        "prompt_ids",
        Holds::TokenIds,
        "the tokens of a prompt that was cut",
        "null",
    ),
    column(
        "completion",
        Holds::Text,
        "what the policy wrote, without special tokens",
        r#"" 4.""#,
    ),
    nullable(
        "tokens",
        Holds::Whole,
        "its length in tokens, the end token included, where they were counted",
        "4",
    ),
    nullable(
        "token_ids",
        Holds::TokenIds,
        "the tokens themselves, where a policy chose them",
        "[220, 19, 13, 2]",
    ),
    column(
        "truncated",
        Holds::Truth,
        "whether the horizon ended it",
        "false",
    ),
    nullable(
        "log_prob",
        Holds::Number,
        "its log-probability under the policy, at temperature 1, where that is known",
        "-1.25",
    ),
    ColumnFormat {
        presence: Presence::MayBeLeftOut,
        ..column(
            "reward",
            Holds::Number,
            "the reward of the completion",
            "0.5",
        )
    },
];

/// What each artifact kind is made of.
pub const FORMATS: &[ArtifactFormat] = &[
    ArtifactFormat {
        kind: DATASET,
        about: "prompts with preferred and rejected completions",
        files: TABLE_FILES,
        rows: Some(RowsFormat {
            columns: &[
                QUESTION_ID,
                QUESTION,
                PROMPT,
                nullable(
                    "chosen",
                    Holds::Text,
                    "the completion, or the preferred one of two",
                    r#"" 4.""#,
                ),
                nullable("rejected", Holds::Text, "the other completion", r#"" 5.""#),
            ],
            further: Further::Texts,
        }),
        is_writable: true,
    },
    ArtifactFormat {
        kind: COMPLETIONS,
        about: "what a policy wrote for each prompt",
        files: TABLE_FILES,
        rows: Some(RowsFormat {
            columns: COMPLETION_COLUMNS.split_at(10).0,
            further: Further::Any,
        }),
        is_writable: true,
    },
    ArtifactFormat {
        kind: SCORES,
        about: "completions with rewards, or other numbers about each",
        files: &[ROWS, DESCRIPTION, RECEIVED_REWARDS],
        rows: Some(RowsFormat {
            columns: &COMPLETION_COLUMNS,
            further: Further::SomeNumber,
        }),
        is_writable: true,
    },
    ArtifactFormat {
        kind: JUDGEMENTS,
        about: "which of two completions is better",
        files: &[ROWS, DESCRIPTION, RECEIVED_REWARDS],
        rows: Some(RowsFormat {
            columns: &[
                QUESTION_ID,
                SAMPLE,
                column(
                    "order",
                    Holds::Word(order_names),
                    "how the judge saw the pair",
                    r#""completion_first""#,
                ),
                column(
                    "verdict",
                    Holds::Word(verdict_names),
                    "what it said, from the side of the completion",
                    r#""win""#,
                ),
                nullable("reward", Holds::Number, "the completion's reward", "0.5"),
                nullable(
                    "opponent_reward",
                    Holds::Number,
                    "the other completion's reward",
                    "0.25",
                ),
                nullable(
                    "request",
                    Holds::Text,
                    "the digest of the request, if a server was asked",
                    "null",
                ),
            ],
            further: Further::Refused,
        }),
        is_writable: true,
    },
    ArtifactFormat {
        kind: REPLIES,
        about: "raw replies of a judge",
        files: &[file(
            "replies.jsonl",
            "the digest of a request and the reply on each line",
        )],
        rows: None,
        is_writable: false,
    },
    ArtifactFormat {
        kind: LABELLED_TEXTS,
        about: "texts with a class each",
        files: TABLE_FILES,
        rows: Some(RowsFormat {
            columns: &[
                column("text", Holds::Text, "the text", r#""Glad to hear it.""#),
                column(
                    "label",
                    Holds::Text,
                    "the name of its class",
                    r#""positive""#,
                ),
            ],
            further: Further::Refused,
        }),
        is_writable: true,
    },
    ArtifactFormat {
        kind: EMBEDDINGS,
        about: "one vector for each text, in the order of the texts",
        files: &[file(
            EMBEDDINGS_FILE,
            "the tensor `embeddings`, (texts, dimension), float32",
        )],
        rows: Some(RowsFormat {
            columns: &[column(
                "embedding",
                Holds::Vector,
                "the vector of the text",
                "[0.5, -0.25, 1.0]",
            )],
            further: Further::Refused,
        }),
        is_writable: true,
    },
    ArtifactFormat {
        kind: CURVE,
        about: "metrics of a training, step by step, and how it ended",
        files: &[
            ROWS,
            DESCRIPTION,
            file(
                SUMMARY,
                "how the training ended and what it cost: status (completed or diverged), reason, steps, trained_tokens, \
                 generated_tokens, flops, trained_parameters",
            ),
            RECEIVED_REWARDS,
        ],
        rows: Some(RowsFormat {
            columns: &[column(
                "step",
                Holds::Whole,
                "the step after which the metrics were taken",
                "10",
            )],
            further: Further::Numbers,
        }),
        is_writable: true,
    },
    ArtifactFormat {
        kind: TABLE,
        about: "a table for people",
        files: &[ROWS, DESCRIPTION, file("table.md", "the same as Markdown")],
        rows: Some(RowsFormat {
            columns: &[],
            further: Further::Any,
        }),
        is_writable: true,
    },
    ArtifactFormat {
        kind: FIGURE,
        about: "one or more figures",
        files: &[file("NAME.svg", "a figure; there may be several")],
        rows: None,
        is_writable: true,
    },
    ArtifactFormat {
        kind: LANGUAGE_MODEL,
        about: "a policy with its tokenizer, in the Hugging Face layout",
        files: &[
            CONFIG,
            WEIGHTS,
            TOKENIZER,
            TOKENIZER_CONFIG,
            ADAPTER_CONFIG,
            ADAPTER,
        ],
        rows: None,
        is_writable: true,
    },
    ArtifactFormat {
        kind: REWARD_MODEL,
        about: "a classifier with one class and its tokenizer, in the Hugging Face layout",
        files: &[
            CONFIG,
            WEIGHTS,
            TOKENIZER,
            TOKENIZER_CONFIG,
            ADAPTER_CONFIG,
            ADAPTER,
            optional(
                "reward.json",
                "calibration and accuracy; without it the score of the model is the reward",
            ),
        ],
        rows: None,
        is_writable: true,
    },
    ArtifactFormat {
        kind: REWARD_RULE,
        about: "a rule that rewards texts",
        files: &[file(
            "rule.json",
            "the rule, with the right answers that it needs",
        )],
        rows: None,
        is_writable: false,
    },
    ArtifactFormat {
        kind: REWARD_PROGRAM,
        about: "a program that rewards texts",
        files: &[
            file("program.json", "what it is and how it is asked"),
            optional("code/", "the files that it needs"),
            optional("data/", "what it is told with each prompt, a dataset"),
        ],
        rows: None,
        is_writable: false,
    },
    ArtifactFormat {
        kind: TEXT_ENCODER,
        about: "a text encoder in the Hugging Face layout",
        files: &[
            CONFIG,
            WEIGHTS,
            TOKENIZER,
            optional(
                "modules.json",
                "pooling and further layers as sentence-transformers has them, with their folders",
            ),
        ],
        rows: None,
        is_writable: true,
    },
    ArtifactFormat {
        kind: TEXT_CLASSIFIER,
        about: "a text encoder with a classification head",
        files: &[
            CONFIG,
            WEIGHTS,
            TOKENIZER,
            optional("metrics.json", "how well it does on held-out texts"),
        ],
        rows: None,
        is_writable: true,
    },
    ArtifactFormat {
        kind: "tokenizer",
        about: "a tokenizer",
        files: &[TOKENIZER, TOKENIZER_CONFIG],
        rows: None,
        is_writable: false,
    },
    ArtifactFormat {
        kind: "file",
        about: "whatever a program writes: a file or a folder",
        files: &[file("NAME", "as it was written; there may be several")],
        rows: None,
        is_writable: true,
    },
];
