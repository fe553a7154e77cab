//! Neighbours, threads and memory change no bit.

use super::super::decoder::{Decoder, HostDecoder};
use super::super::recompute::Recompute;
use super::*;
use crate::ml::models::causal::TokenBatch;

#[test]
fn a_completion_depends_on_no_other_row() {
    let (model, prompts) = (wide_model(), wide_prompts());
    for strategy in STRATEGIES {
        let mut options = GenerateOptions::new(12, &[17, 40, 41, 42, 43, 44, 45]);
        options.batch_size = 16;
        let whole = run(&model, &prompts, &options, strategy);
        for batch_size in [1, 2, 7, 64] {
            options.batch_size = batch_size;
            let found = run(&model, &prompts, &options, strategy);
            assert!(found == whole, "{strategy:?} in batches of {batch_size}");
        }
        let go_on = &mut |_| ControlFlow::Continue(());
        let stream = Stream::new(5, "sampling");
        for (index, expected) in whole.iter().enumerate() {
            let one = &prompts[index..=index];
            let found = generate(
                &model,
                one,
                &options,
                &strategy,
                &stream,
                &[index as u64],
                go_on,
            );
            assert_eq!(&found.unwrap()[0], expected, "{strategy:?} alone");
        }
    }
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let (model, prompts) = (wide_model(), wide_prompts());
    for strategy in STRATEGIES {
        let at = |threads: usize| {
            let pool = rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap();
            pool.install(|| run(&model, &prompts, &GenerateOptions::new(6, &[]), strategy))
        };
        assert!(at(1) == at(2) && at(1) == at(3), "{strategy:?}");
    }
}

#[test]
fn log_probs_are_those_of_a_teacher_forced_pass_to_the_last_bit() {
    let (model, prompts) = (wide_model(), wide_prompts());
    let options = GenerateOptions::new(12, &[17]);
    for strategy in STRATEGIES {
        let found = run(&model, &prompts, &options, strategy);
        let rows: Vec<Vec<u32>> = prompts
            .iter()
            .zip(&found)
            .map(|(prompt, completion)| [prompt.as_slice(), &completion.tokens].concat())
            .collect();
        let batch = TokenBatch::right_padded(&rows);
        let hidden = model.detached().forward(&batch).unwrap();
        let expected: Vec<Vec<f32>> = model
            .detached()
            .next_token_log_probs(&hidden, &batch)
            .unwrap()
            .to_vec2()
            .unwrap();
        for (row, completion) in found.iter().enumerate() {
            for (place, found) in completion.log_probs.iter().enumerate() {
                let expected = expected[row][prompts[row].len() - 1 + place];
                assert_eq!(
                    found.to_bits(),
                    expected.to_bits(),
                    "{found} is not {expected}"
                );
            }
        }
    }
}

/// Returns the hidden states of three more tokens after each prompt.
fn three_steps<D: Decoder>(decoder: &D, prompts: &[&[u32]]) -> Vec<Vec<f32>> {
    let mut memories: Vec<D::Memory> = decoder
        .read(prompts)
        .unwrap()
        .into_iter()
        .map(|(memory, _)| memory)
        .collect();
    let mut out = Vec::new();
    for token in [3, 200, 77] {
        let tokens: Vec<_> = memories.iter().map(|memory| (memory, token)).collect();
        let step = decoder.step(&tokens).unwrap();
        for (index, memory) in memories.iter_mut().enumerate() {
            out.push(decoder.hidden(&step, index));
            decoder.take(memory, &step, index);
        }
    }
    out
}

#[test]
fn decoding_with_memory_is_decoding_anew() {
    let model = wide_model().detached();
    let prompts = wide_prompts();
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let found = three_steps(&HostDecoder::new(&model), &prompts);
    let expected = three_steps(&Recompute::new(&model), &prompts);
    assert_eq!(found.len(), 48);
    for (found, expected) in found.iter().flatten().zip(expected.iter().flatten()) {
        assert_eq!(
            found.to_bits(),
            expected.to_bits(),
            "{found} is not {expected}"
        );
    }
}
