//! Where a completion ends, and what cannot be completed.

use super::*;

#[test]
fn a_completion_ends_at_the_end_token_or_the_horizon() {
    let (model, prompts) = (small_model(), recorded_rows("prompts"));
    let found = run(
        &model,
        &prompts,
        &GenerateOptions::new(16, &[28, 8]),
        Strategy::Greedy,
    );
    assert_eq!(found[0].tokens, recorded_rows("greedy")[0]);
    assert!(found[0].truncated);
    assert_eq!(found[1].tokens, [9, 9, 28]);
    assert!(!found[1].truncated);
    assert_eq!(found[2].tokens, [4, 18, 8]);
    assert_eq!(found[2].log_probs.len(), 3);
    // An end token at the horizon still is one.
    let found = run(
        &model,
        &prompts,
        &GenerateOptions::new(3, &[28, 8]),
        Strategy::Greedy,
    );
    assert_eq!(found[0].tokens.len(), 3);
    assert_eq!(
        found.iter().map(|c| c.truncated).collect::<Vec<_>>(),
        [true, false, false]
    );
}

#[test]
fn progress_counts_and_cancels() {
    let (model, prompts) = (small_model(), recorded_rows("prompts"));
    let stream = Stream::new(5, "sampling");
    let options = GenerateOptions::new(4, &[]);
    let mut seen = Vec::new();
    let count = &mut |progress: Progress| {
        seen.push((progress.finished, progress.tokens));
        ControlFlow::Continue(())
    };
    generate(
        &model,
        &prompts,
        &options,
        &Strategy::Greedy,
        &stream,
        &[0, 1, 2],
        count,
    )
    .unwrap();
    assert_eq!(seen, [(0, 3), (0, 6), (0, 9), (3, 12)]);
    let stop = &mut |progress: Progress| {
        if progress.tokens >= 6 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    };
    let stopped = generate(
        &model,
        &prompts,
        &options,
        &Strategy::Greedy,
        &stream,
        &[0, 1, 2],
        stop,
    );
    assert!(matches!(stopped, Err(GenerateError::Cancelled)));
}

#[test]
fn what_cannot_be_generated_is_an_error_that_names_it() {
    let model = small_model();
    let stream = Stream::new(5, "sampling");
    let error = |prompt: &[u32], options: &GenerateOptions, strategy: Strategy| {
        let go_on = &mut |_| ControlFlow::Continue(());
        generate(
            &model,
            &[prompt.to_vec()],
            options,
            &strategy,
            &stream,
            &[0],
            go_on,
        )
        .unwrap_err()
        .to_string()
    };
    let options = GenerateOptions::new(5, &[]);
    assert_eq!(
        error(&[], &options, Strategy::Greedy),
        "prompt 0: it is empty, expected at least a beginning-of-sequence token"
    );
    assert_eq!(
        error(&[32], &options, Strategy::Greedy),
        "prompt 0: token 32 is outside the vocabulary of 32"
    );
    // Contrastive search reads a token before it takes it, the last one too.
    assert!(error(&[1; 60], &options, STRATEGIES[2]).contains("60 tokens and 5 new ones"));
    assert_eq!(
        error(&[1; 61], &options, Strategy::Greedy),
        "prompt 0: 61 tokens and 5 new ones exceed the model's 64 positions"
    );
    assert_eq!(
        error(&[1], &GenerateOptions::new(0, &[]), Strategy::Greedy),
        "generation: `max_new_tokens` is 0, expected at least 1"
    );
    let colder = |temperature| {
        Strategy::Sampling(Sampling {
            temperature,
            ..Sampling::default()
        })
    };
    for (temperature, found) in [(0.0, "0.0"), (1e-45, "1e-45"), (f64::INFINITY, "inf")] {
        assert_eq!(
            error(&[1], &options, colder(temperature)),
            format!(
                "generation: `temperature` is {found}, expected a number from 1e-6 to 1000000 (or the greedy strategy)"
            )
        );
    }
    let punishing = GenerateOptions {
        repetition_penalty: 1e-45,
        ..GenerateOptions::new(5, &[])
    };
    assert_eq!(
        error(&[1], &punishing, Strategy::Greedy),
        "generation: `repetition_penalty` is 1e-45, expected a number from 1e-6 to 1000000"
    );
}

#[test]
fn a_diverged_model_is_an_error_not_a_story() {
    let mut weights = causal::init(small_config(), &Stream::new(1, "init"), &Device::Cpu).unwrap();
    let norm = Tensor::new(f32::NAN, &Device::Cpu).unwrap();
    weights.insert("model.norm.weight".into(), norm.broadcast_as(16).unwrap());
    let model = CausalLm::new(small_config(), &weights, Training::Frozen).unwrap();
    let stream = Stream::new(5, "sampling");
    for strategy in STRATEGIES {
        let go_on = &mut |_| ControlFlow::Continue(());
        let options = GenerateOptions::new(5, &[]);
        let error = generate(
            &model,
            &[vec![1]],
            &options,
            &strategy,
            &stream,
            &[0],
            go_on,
        )
        .unwrap_err();
        assert_eq!(
            error.to_string(),
            "prompt 0: the logits after 0 new tokens are not finite"
        );
    }
}
