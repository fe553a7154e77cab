//! What the machine offers, and who has it.

use std::collections::BTreeMap;

use crate::engine::machine::DeviceChoice;
use crate::engine::stage::{GpuUse, Resources};

/// What a run may use of the machine.
#[derive(Debug, Clone)]
pub struct Capacity {
    /// Stages at once.
    pub jobs: usize,
    /// Processor cores.
    pub cpus: usize,
    /// Bytes of memory; 0 if unknown.
    pub memory: u64,
    /// Where stages are asked to compute.
    pub device: DeviceChoice,
    /// Ids of the GPUs, as `CUDA_VISIBLE_DEVICES` has them.
    pub gpus: Vec<String>,
    /// Tokens by name; of one that is not named here there is one.
    pub tokens: BTreeMap<String, usize>,
}

/// What a running stage was given.
#[derive(Debug, Clone)]
pub(super) struct Grant {
    pub(super) cpus: usize,
    pub(super) memory: u64,
    pub(super) gpus: Vec<String>,
    tokens: BTreeMap<String, usize>,
}

pub(super) struct Pool {
    total: Capacity,
    free: Capacity,
}

impl Pool {
    pub(super) fn new(capacity: &Capacity) -> Self {
        Self {
            total: capacity.clone(),
            free: capacity.clone(),
        }
    }

    /// Gives a stage what it asks for, or nothing if that is not free now.
    ///
    /// A stage that asks for more than the machine has runs alone, with all there is.
    /// Of the GPUs, it is given those that `fits` says are large enough.
    pub(super) fn take(
        &mut self,
        request: &Resources,
        gpu_use: GpuUse,
        fits: impl Fn(&str) -> bool,
    ) -> Option<Grant> {
        let cpus = request.cpus.min(self.total.cpus);
        let memory = request.memory.min(self.total.memory);
        let gpus = self.total.device.gpus(gpu_use, request.gpus);
        let fits = |gpu: &String| fits(gpu);
        let gpus = match gpus {
            0 => 0,
            gpus => gpus.min(self.total.gpus.iter().filter(|gpu| fits(gpu)).count()),
        };
        let free = &mut self.free;
        let of = |tokens: &BTreeMap<String, usize>, name: &String| {
            tokens.get(name).copied().unwrap_or(1)
        };
        let tokens: BTreeMap<String, usize> = request
            .tokens
            .iter()
            .map(|(name, count)| (name.clone(), (*count).min(of(&self.total.tokens, name))))
            .collect();
        if tokens
            .iter()
            .any(|(name, count)| of(&free.tokens, name) < *count)
        {
            return None;
        }
        if free.jobs == 0 || free.cpus < cpus || free.memory < memory {
            return None;
        }
        let found = free.gpus.iter().filter(|gpu| fits(gpu));
        let given: Vec<String> = found.take(gpus).cloned().collect();
        if given.len() < gpus {
            return None;
        }
        free.gpus.retain(|gpu| !given.contains(gpu));
        free.jobs -= 1;
        free.cpus -= cpus;
        free.memory -= memory;
        for (name, count) in &tokens {
            *free.tokens.entry(name.clone()).or_insert(1) -= count;
        }
        Some(Grant {
            tokens,
            cpus,
            memory,
            gpus: given,
        })
    }

    pub(super) fn give_back(&mut self, grant: &Grant) {
        self.free.jobs += 1;
        self.free.cpus += grant.cpus;
        self.free.memory += grant.memory;
        self.free.gpus.extend(grant.gpus.iter().cloned());
        let place = |id: &String| self.total.gpus.iter().position(|known| known == id);
        self.free.gpus.sort_by_key(place);
        for (name, count) in &grant.tokens {
            *self.free.tokens.entry(name.clone()).or_insert(0) += count;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ANY: fn(&str) -> bool = |_| true;

    fn resources(cpus: usize, memory: u64, gpus: usize) -> Resources {
        Resources {
            cpus,
            memory,
            gpus,
            ..Resources::default()
        }
    }

    #[test]
    fn stages_are_packed_and_gpus_are_given_by_id() {
        let mut pool = Pool::new(&Capacity {
            jobs: 8,
            cpus: 4,
            memory: 100,
            device: DeviceChoice::Auto,
            gpus: vec!["0".to_owned(), "3".to_owned()],
            tokens: BTreeMap::new(),
        });
        let first = pool
            .take(&resources(2, 60, 1), GpuUse::Program, ANY)
            .unwrap();
        assert_eq!(first.gpus, ["0"]);
        assert!(
            pool.take(&resources(1, 60, 0), GpuUse::Program, ANY)
                .is_none(),
            "memory is taken"
        );
        assert!(
            pool.take(&resources(3, 0, 0), GpuUse::Program, ANY)
                .is_none(),
            "cores are taken"
        );
        assert_eq!(
            pool.take(&resources(1, 10, 1), GpuUse::Program, ANY)
                .unwrap()
                .gpus,
            ["3"]
        );
        assert!(
            pool.take(&resources(1, 0, 1), GpuUse::Program, ANY)
                .is_none(),
            "GPUs are taken"
        );
        pool.give_back(&first);
        assert_eq!(
            pool.take(&resources(1, 60, 1), GpuUse::Program, ANY)
                .unwrap()
                .gpus,
            ["0"]
        );
    }

    #[test]
    fn a_gpu_that_is_too_small_is_given_to_others() {
        let mut pool = Pool::new(&Capacity {
            jobs: 8,
            cpus: 8,
            memory: 0,
            device: DeviceChoice::Auto,
            gpus: vec!["0".to_owned(), "1".to_owned(), "2".to_owned()],
            tokens: BTreeMap::new(),
        });
        let one = resources(1, 0, 1);
        let large = pool.take(&one, GpuUse::Tensors, |gpu| gpu == "1");
        assert_eq!(large.unwrap().gpus, ["1"]);
        assert!(
            pool.take(&one, GpuUse::Tensors, |gpu| gpu == "1").is_none(),
            "the large one is taken"
        );
        let any = pool.take(&one, GpuUse::Tensors, ANY).unwrap();
        assert_eq!(any.gpus, ["0"]);
        let none = pool.take(&one, GpuUse::Tensors, |_| false).unwrap();
        assert!(none.gpus.is_empty(), "nothing to wait for");
    }

    #[test]
    fn tensors_lie_on_one_gpu_and_nothing_else_gets_any() {
        let pool = |device| {
            Pool::new(&Capacity {
                jobs: 8,
                cpus: 8,
                memory: 0,
                device,
                gpus: vec!["0".to_owned(), "1".to_owned()],
                tokens: BTreeMap::new(),
            })
        };
        let given = |device, gpu_use, asked| {
            let grant = pool(device).take(&resources(1, 0, asked), gpu_use, ANY);
            grant.unwrap().gpus.len()
        };
        use DeviceChoice::{Auto, Cpu, Cuda};
        for (device, of_tensors, of_two_for_tensors, of_two_for_a_program) in
            [(Auto, 0, 1, 2), (Cuda, 1, 1, 2), (Cpu, 0, 0, 0)]
        {
            assert_eq!(given(device, GpuUse::Tensors, 0), of_tensors);
            assert_eq!(given(device, GpuUse::Tensors, 2), of_two_for_tensors);
            assert_eq!(given(device, GpuUse::Program, 2), of_two_for_a_program);
            assert_eq!(given(device, GpuUse::None, 2), 0);
        }
    }

    #[test]
    fn tokens_are_counted_by_name() {
        let tokens = |counts: &[(&str, usize)]| -> BTreeMap<String, usize> {
            counts
                .iter()
                .map(|(name, count)| ((*name).to_owned(), *count))
                .collect()
        };
        let mut pool = Pool::new(&Capacity {
            jobs: 8,
            cpus: 8,
            memory: 0,
            device: DeviceChoice::Auto,
            gpus: Vec::new(),
            tokens: tokens(&[("judge", 2)]),
        });
        let with = |counts: &[(&str, usize)]| Resources {
            tokens: tokens(counts),
            ..Resources::default()
        };
        let first = pool
            .take(&with(&[("judge", 1), ("license", 1)]), GpuUse::Program, ANY)
            .unwrap();
        assert!(
            pool.take(&with(&[("license", 1)]), GpuUse::Program, ANY)
                .is_none(),
            "of an unnamed one there is one"
        );
        assert!(
            pool.take(&with(&[("judge", 2)]), GpuUse::Program, ANY)
                .is_none(),
            "one of two is taken"
        );
        assert!(
            pool.take(&with(&[("judge", 1)]), GpuUse::Program, ANY)
                .is_some()
        );
        assert!(pool.take(&with(&[]), GpuUse::Program, ANY).is_some());
        pool.give_back(&first);
        // More than there is: all there is.
        assert!(
            pool.take(&with(&[("license", 5)]), GpuUse::Program, ANY)
                .is_some()
        );
    }

    #[test]
    fn a_request_above_the_machine_gets_all_of_it() {
        let mut pool = Pool::new(&Capacity {
            jobs: 2,
            cpus: 2,
            memory: 0,
            device: DeviceChoice::Auto,
            gpus: Vec::new(),
            tokens: BTreeMap::new(),
        });
        let all = pool
            .take(&resources(64, 1 << 40, 8), GpuUse::Program, ANY)
            .unwrap();
        assert_eq!((all.cpus, all.gpus.len()), (2, 0));
    }
}
