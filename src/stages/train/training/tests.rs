use std::collections::BTreeMap;
use std::sync::Arc;

use candle_core::{Device, Tensor, Var};
use serde_json::json;

use super::*;
use crate::engine::context::tests::context;
use crate::ml::optimizer::{AdamW, AdamWConfig, Gradients, LearningRate, ParameterGroup};
use crate::ml::trainer::StepReport;

/// Learns one number from four rows, of which a GPU has room for `room` at once.
struct Small {
    optimizer: AdamW,
    number: Var,
    micro_batch: usize,
    room: usize,
    /// The update of a step behind which it finds out, if not before all.
    late: Option<u64>,
}

impl Small {
    fn new(room: usize, late: Option<u64>) -> Self {
        let number = Var::new(&[1f32], &Device::Cpu).unwrap();
        let group = ParameterGroup {
            parameters: vec![("number".to_owned(), number.clone())],
            learning_rate: LearningRate::Multiple(1.0),
            weight_decay: 0.0,
        };
        Self {
            optimizer: AdamW::new(vec![group], AdamWConfig::default()).unwrap(),
            number,
            micro_batch: 4,
            room,
            late,
        }
    }

    fn update(&mut self) {
        let loss = self.number.as_tensor().sqr().unwrap().sum_all().unwrap();
        let mut gradients = Gradients::default();
        let parameters = [("number".to_owned(), self.number.clone())];
        gradients.add_of(&loss, &parameters).unwrap();
        self.optimizer.step(&gradients, 0.1).unwrap();
    }
}

impl Trainer for Small {
    fn step(&mut self, step: u64) -> Result<StepReport, TrainError> {
        let lacks_room = self.micro_batch > self.room;
        let error =
            || candle_core::Error::msg("DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")");
        if lacks_room && self.late.is_none() {
            return Err(error().into());
        }
        self.update();
        if lacks_room && self.late.is_some_and(|late| step >= late) {
            return Err(error().into());
        }
        self.update();
        Ok(StepReport::default())
    }

    fn optimizer(&mut self) -> &mut AdamW {
        &mut self.optimizer
    }

    fn cancelled_by(&mut self, _: Cancel) {}

    fn halve_micro_batch(&mut self) -> Option<usize> {
        trainer::halve(&mut self.micro_batch)
    }
}

/// Trains four steps; returns the outcome with what the number has become, and the notes.
fn trained(mut trainer: Small, halves: bool) -> (Result<f32, String>, Vec<String>) {
    let folder = tempfile::tempdir().unwrap();
    let (mut ctx, told) = context(folder.path(), BTreeMap::new(), None);
    let optimizer: OptimizerParams = serde_json::from_value(json!({ "lr": 0.1 })).unwrap();
    let course = Course {
        halves,
        ..Course::new("small", 4, &optimizer)
    };
    let outcome = course.train(&mut trainer, &mut ctx);
    drop(ctx);
    let notes = Arc::into_inner(told).unwrap().into_inner().unwrap().notes;
    let outcome = match outcome {
        Ok(trained) => Ok(number(&trained.end["number"])),
        Err(StageError::Failed { message, .. }) => Err(message),
        Err(StageError::Interrupted) => Err("interrupted".to_owned()),
    };
    (outcome, notes)
}

fn number(tensor: &Tensor) -> f32 {
    tensor.to_vec1::<f32>().unwrap()[0]
}

#[test]
fn micro_batches_are_halved_until_there_is_room_and_nothing_is_lost() {
    let (straight, notes) = trained(Small::new(4, None), true);
    assert_eq!(notes, Vec::<String>::new());
    let (found, notes) = trained(Small::new(1, None), true);
    assert_eq!(found, straight);
    assert_eq!(
        notes,
        [
            "the GPU has no room: micro-batches of 2 from step 0 on",
            "the GPU has no room: micro-batches of 1 from step 0 on"
        ]
    );
    // Found out behind an update of the third step: it goes back to the last checkpoint, and all is made once.
    let (found, notes) = trained(Small::new(2, Some(2)), true);
    assert_eq!(found, straight);
    assert_eq!(
        notes,
        ["the GPU has no room: micro-batches of 2 from step 0 on"]
    );
}

#[test]
fn without_room_for_one_row_or_unasked_it_is_an_error() {
    let (found, _) = trained(Small::new(0, None), true);
    assert!(found.unwrap_err().contains("CUDA_ERROR_OUT_OF_MEMORY"));
    let (found, notes) = trained(Small::new(2, None), false);
    assert!(found.is_err() && notes.is_empty(), "{notes:?}");
}
