//! Neighbours, threads and memory change no bit.

use super::super::decoder::Decoder;
use super::super::device_decoder::DeviceDecoder;
use super::super::host_decoder::{HostDecoder, numbers};
use super::recompute::Recompute;
use super::*;
use crate::ml::kernels::form::{are_same, bits_are_promised};
use crate::ml::models::causal::TokenBatch;

#[test]
fn a_completion_depends_on_no_other_row() {
    if !bits_are_promised() {
        return;
    }
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
fn the_weights_of_checkpoints_are_packed_for_long_generations_in_small_batches() {
    let packed = |model: CausalLm, steps, rows| {
        let model = model.for_generation(steps, rows).unwrap();
        format!("{model:?}").matches("PackedWeight(").count()
    };
    let expected = if bits_are_promised() { 15 } else { 0 };
    assert_eq!(packed(stored_model(), 16, 64), expected);
    assert_eq!(packed(stored_model(), 15, 64), 0);
    assert_eq!(packed(stored_model(), 16, 65), 0);
    assert_eq!(packed(wide_model(), 16, 64), 0);
}

#[test]
fn log_probs_are_those_of_a_teacher_forced_pass_to_the_last_bit() {
    let prompts = wide_prompts();
    let options = GenerateOptions::new(20, &[17]);
    let models = [wide_model(), stored_model()];
    let both = models
        .iter()
        .flat_map(|model| STRATEGIES.map(|strategy| (model, strategy)));
    for (model, strategy) in both {
        let found = run(model, &prompts, &options, strategy);
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
                assert!(
                    are_same(&[*found], &[expected]),
                    "{found} is not {expected}"
                );
            }
        }
    }
}

/// Returns the hidden states of three more tokens after each prompt.
fn three_steps<D: Decoder>(
    decoder: &D,
    prompts: &[&[u32]],
    numbers: impl Fn(&D::State) -> Vec<f32>,
) -> Vec<Vec<f32>> {
    let mut memories: Vec<D::Memory> = decoder
        .read(prompts, false)
        .unwrap()
        .into_iter()
        .map(|read| read.memory)
        .collect();
    let mut out = Vec::new();
    for token in [3, 200, 77] {
        let tokens: Vec<_> = memories.iter().map(|memory| (memory, token)).collect();
        let step = decoder.step(&tokens).unwrap();
        out.extend((0..memories.len()).map(|index| numbers(&decoder.state(&step, index).unwrap())));
        let taken = memories.iter_mut().enumerate();
        let taken = taken.map(|(index, memory)| (memory, index)).collect();
        decoder.take(taken, &step).unwrap();
    }
    out
}

/// Reads a state back.
fn of_device(state: &candle_core::Tensor) -> Vec<f32> {
    numbers(state).unwrap()
}

/// Compares numbers but for rounding.
#[track_caller]
fn assert_near(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(expected) {
        assert!(
            (found - expected).abs() < 1e-5 * expected.abs().max(1.0),
            "{found} is not {expected}"
        );
    }
}

#[test]
fn decoding_with_memory_is_decoding_anew() {
    let model = wide_model().detached();
    let prompts = wide_prompts();
    let prompts: Vec<&[u32]> = prompts.iter().map(Vec::as_slice).collect();
    let expected = three_steps(&Recompute::new(&model), &prompts, Vec::clone).concat();
    assert_eq!(expected.len(), 48 * model.config().embedding_size);
    if bits_are_promised() {
        let found = three_steps(&HostDecoder::new(&model), &prompts, Vec::clone).concat();
        assert!(are_same(&found, &expected));
    }
    let found = three_steps(&DeviceDecoder::new(&model), &prompts, of_device).concat();
    assert_near(&found, &expected);
}

#[test]
fn a_copied_memory_goes_its_own_way() {
    let model = wide_model().detached();
    let prompts: [&[u32]; 2] = [&[5, 9, 299, 2], &[7, 7]];
    let decoder = DeviceDecoder::new(&model);
    let mut read = decoder.read(&prompts, false).unwrap();
    let (second, first) = (read.pop().unwrap().memory, read.pop().unwrap().memory);
    let mut memories = [first.clone(), second, first.clone(), first];
    // Three rows share a slot, and each takes a token of its own; after more steps than there was room for, each goes on
    // as if it had been alone.
    let mut rows: Vec<Vec<u32>> = [0, 1, 0, 0]
        .map(|prompt: usize| prompts[prompt].to_vec())
        .into();
    let mut found = Vec::new();
    for time in 0..6 {
        let tokens: Vec<u32> = (0..4).map(|row| 20 + 10 * row + time).collect();
        let tried: Vec<_> = memories
            .iter()
            .zip(&tokens)
            .map(|(memory, token)| (memory, *token))
            .collect();
        let step = decoder.step(&tried).unwrap();
        found = (0..4)
            .map(|row| of_device(&decoder.state(&step, row).unwrap()))
            .collect();
        let taken = memories
            .iter_mut()
            .enumerate()
            .map(|(row, memory)| (memory, row));
        decoder.take(taken.collect(), &step).unwrap();
        rows.iter_mut()
            .zip(tokens)
            .for_each(|(row, token)| row.push(token));
    }
    let batch = TokenBatch::right_padded(&rows);
    let expected: Vec<Vec<Vec<f32>>> = model.forward(&batch).unwrap().to_vec3().unwrap();
    for (row, found) in found.iter().enumerate() {
        assert_near(found, &expected[row][rows[row].len() - 1]);
    }
}

#[test]
fn a_slot_that_another_sequence_had_is_like_a_new_one() {
    let model = wide_model().detached();
    let decoder = DeviceDecoder::new(&model);
    let prompt: &[u32] = &[5, 9, 299, 2, 7, 1];
    let first = decoder.read(&[prompt, prompt], false).unwrap();
    drop(first);
    // Shorter ones, in the slots of those.
    let prompts: [&[u32]; 3] = [&[7, 7], &[8], &[9, 2, 3]];
    let found = three_steps(&decoder, &prompts, of_device).concat();
    let expected = three_steps(&Recompute::new(&model), &prompts, Vec::clone).concat();
    assert_near(&found, &expected);
    assert_eq!(decoder.slots_in_all(), 3);
}
