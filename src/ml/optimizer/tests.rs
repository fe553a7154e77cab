//! AdamW against PyTorch's, and its own promises.

use super::*;

struct Problem {
    a: Var,
    z: Var,
    optimizer: AdamW,
}

fn problem(dtype: DType) -> Problem {
    let var = |values: &[f32]| {
        let tensor = Tensor::new(values, &Device::Cpu).unwrap();
        Var::from_tensor(&tensor.to_dtype(dtype).unwrap()).unwrap()
    };
    let (a, z) = (var(&[1.0, -2.0, 0.5]), var(&[0.25]));
    let group = |name: &str, var: &Var, learning_rate, weight_decay| ParameterGroup {
        parameters: vec![(name.to_owned(), var.clone())],
        learning_rate,
        weight_decay,
    };
    let groups = vec![
        group("a", &a, LearningRate::Multiple(2.0), 0.01),
        group("z", &z, LearningRate::Fixed(0.5), 0.0),
    ];
    let config = AdamWConfig {
        beta2: 0.95,
        // PyTorch decays whatever it is given.
        decay_vectors: true,
        ..AdamWConfig::default()
    };
    let optimizer = AdamW::new(groups, config).unwrap();
    Problem { a, z, optimizer }
}

impl Problem {
    fn gradients(&self) -> Gradients {
        let (a, z) = (self.a.as_tensor(), self.z.as_tensor());
        let slope = Tensor::new(&[1f32, 2.0, 3.0], &Device::Cpu).unwrap();
        let cube = (a.sqr().unwrap() * a).unwrap().sum_all().unwrap();
        let loss = (cube.broadcast_mul(z).unwrap()
            + (a * slope.to_dtype(a.dtype()).unwrap())
                .unwrap()
                .sum_all()
                .unwrap()
                .broadcast_add(&z.sqr().unwrap())
                .unwrap())
        .unwrap();
        let mut gradients = Gradients::default();
        gradients
            .add(&loss.backward().unwrap(), &self.optimizer.parameters())
            .unwrap();
        gradients
    }

    fn step(&mut self) -> f64 {
        match self.optimizer.step(&self.gradients(), 0.05).unwrap() {
            Step::Updated { grad_norm } => grad_norm,
            Step::NonFinite { parameter } => panic!("{parameter}"),
        }
    }

    fn bits(&self) -> Vec<u32> {
        [&self.a, &self.z]
            .iter()
            .flat_map(|var| var.to_vec1::<f32>().unwrap())
            .map(f32::to_bits)
            .collect()
    }
}

fn assert_close(found: &[f32], expected: &[f32], tolerance: f32) {
    for (found, expected) in found.iter().zip(expected) {
        assert!(
            (found - expected).abs() < tolerance,
            "{found} is not {expected}"
        );
    }
}

// a=torch.tensor([1.0,-2.0,0.5],requires_grad=True); z=torch.tensor([0.25],requires_grad=True)
// o=torch.optim.AdamW([{"params":[a],"lr":0.1,"weight_decay":0.01},
//   {"params":[z],"lr":0.5,"weight_decay":0.0}],betas=(0.9,0.95),eps=1e-8)
// for step in range(3):
//     o.zero_grad(); loss=(a**3).sum()*z[0]+(a*torch.tensor([1.,2.,3.])).sum()+z[0]**2
//     loss.backward(); n=torch.nn.utils.clip_grad_norm_([a,z],1.0); o.step()
//     print(n.item(), a.tolist(), z.tolist())
const NORMS: [f64; 3] = [8.880_499_8, 14.461_863_5, 21.795_387_3];
const A: [f32; 3] = [0.698_342_4, -2.291_53, 0.208_492_14];
const Z: [f32; 1] = [1.710_387];

/// As in the Hugging Face Trainer: norms and biases are left alone.
#[test]
fn vectors_decay_only_if_they_are_asked_to() {
    let shrinks = |shape: &[usize], decay_vectors| {
        let one = Tensor::ones(shape, DType::F32, &Device::Cpu).unwrap();
        let var = Var::from_tensor(&one).unwrap();
        let group = ParameterGroup {
            parameters: vec![("w".to_owned(), var.clone())],
            learning_rate: LearningRate::Multiple(1.0),
            weight_decay: 0.1,
        };
        let config = AdamWConfig {
            decay_vectors,
            ..AdamWConfig::default()
        };
        let mut optimizer = AdamW::new(vec![group], config).unwrap();
        let mut gradients = Gradients::default();
        // The update itself adds the learning rate.
        let loss = var.neg().unwrap().sum_all().unwrap();
        let parameters = optimizer.parameters();
        gradients
            .add(&loss.backward().unwrap(), &parameters)
            .unwrap();
        optimizer.step(&gradients, 0.5).unwrap();
        var.flatten_all().unwrap().to_vec1::<f32>().unwrap()[0] < 1.49
    };
    assert!(!shrinks(&[3], false));
    assert!(shrinks(&[3], true));
    assert!(shrinks(&[3, 1], false));
}

#[test]
fn three_steps_are_those_of_torch() {
    let mut problem = problem(DType::F32);
    for expected in NORMS {
        let found = problem.step();
        assert!(
            (found / expected - 1.0).abs() < 1e-6,
            "{found} is not {expected}"
        );
    }
    assert_close(&problem.a.to_vec1().unwrap(), &A, 1e-6);
    assert_close(&problem.z.to_vec1().unwrap(), &Z, 1e-6);
}

#[test]
fn low_precision_parameters_follow_f32_masters() {
    let mut problem = problem(DType::BF16);
    for _ in NORMS {
        problem.step();
    }
    let master = |problem: &Problem| match &problem.optimizer.slots["a"].moments {
        Moments::Tensors { master, .. } => master.clone().expect("a bf16 parameter has a master"),
        Moments::Host { .. } => panic!("a bf16 parameter has a master"),
    };
    let before = master(&problem);
    assert_close(&before.to_vec1().unwrap(), &A, 2e-2);
    let rounded = before.to_dtype(DType::BF16).unwrap();
    let bits = |t: &Tensor| t.to_vec1::<half::bf16>().unwrap();
    assert_eq!(bits(&rounded), bits(&problem.a));
    // Updates far below the spacing of bf16 add up in the master.
    problem.optimizer.step(&problem.gradients(), 1e-6).unwrap();
    let after = master(&problem);
    assert_eq!(bits(&rounded), bits(&problem.a));
    assert_ne!(
        rounded
            .to_dtype(DType::F32)
            .unwrap()
            .to_vec1::<f32>()
            .unwrap(),
        after.to_vec1::<f32>().unwrap()
    );
}

#[test]
fn a_restored_state_continues_bit_by_bit() {
    let mut whole = problem(DType::F32);
    let mut first = problem(DType::F32);
    for _ in 0..2 {
        whole.step();
        first.step();
    }
    let mut second = problem(DType::F32);
    let bytes = super::super::parameters::to_safetensors(&first.optimizer.state().unwrap());
    let state = super::super::parameters::from_safetensors(&bytes.unwrap(), &Device::Cpu);
    second.optimizer.restore(&state.unwrap()).unwrap();
    second.a.set(&first.a.as_detached_tensor()).unwrap();
    second.z.set(&first.z.as_detached_tensor()).unwrap();
    whole.step();
    second.step();
    assert_eq!(whole.bits(), second.bits());
    assert_eq!(second.optimizer.steps(), 3);
    // Without the state it goes elsewhere.
    let mut fresh = problem(DType::F32);
    fresh.a.set(&first.a.as_detached_tensor()).unwrap();
    fresh.z.set(&first.z.as_detached_tensor()).unwrap();
    fresh.step();
    assert_ne!(whole.bits(), fresh.bits());
}

#[test]
fn a_state_that_does_not_fit_is_refused() {
    let mut problem = problem(DType::F32);
    let mut state = problem.optimizer.state().unwrap();
    state.remove("square.z");
    let error = problem.optimizer.restore(&state).unwrap_err();
    assert_eq!(
        error.to_string(),
        "optimiser state: weight `square.z` is missing"
    );
}

#[test]
fn a_gradient_that_is_not_finite_changes_nothing() {
    let mut problem = problem(DType::F32);
    problem
        .z
        .set(&Tensor::new(&[f32::NAN], &Device::Cpu).unwrap())
        .unwrap();
    let before = problem.bits();
    let step = problem.optimizer.step(&problem.gradients(), 0.05).unwrap();
    let parameter = "a".to_owned();
    assert_eq!(step, Step::NonFinite { parameter });
    assert_eq!(before, problem.bits());
    assert_eq!(problem.optimizer.steps(), 0);
}

#[test]
fn a_missing_gradient_is_an_error() {
    let mut problem = problem(DType::F32);
    let store = problem.a.sum_all().unwrap().backward().unwrap();
    let error = Gradients::default()
        .add(&store, &problem.optimizer.parameters())
        .unwrap_err();
    assert_eq!(error.to_string(), "parameter `z` has no gradient");
    assert!(problem.optimizer.step(&Gradients::default(), 0.1).is_err());
}
