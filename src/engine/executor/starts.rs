//! Starting the workers of queued stages, as far as they fit.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::time::Instant;

use super::Execution;
use super::resources::Grant;
use super::running::Running;
use super::state::Step;
use crate::engine::context::Importance;
use crate::engine::event::RunEvent;
use crate::engine::launch::Order;
use crate::engine::machine::DeviceChoice;
use crate::engine::runs::log_path;
use crate::engine::stage::GpuUse;
use crate::engine::worker::{Job, JobInput, Task};

/// Sources that are fetched at a time: on this machine, wherever stages run.
const FETCHES: usize = 8;

impl Execution<'_> {
    pub(super) fn start_queued(&mut self) {
        let now = Instant::now();
        let mut kept = VecDeque::new();
        while let Some(stage) = self.queue.pop_front() {
            let waits = self.retries.get(&stage).is_some_and(|retry| retry.at > now)
                || self.is_fetch(stage) && self.fetches() >= FETCHES;
            let grant = if waits {
                None
            } else {
                let gpu_use = self.gpu_use(stage);
                let request = &self.pipeline.stages[stage].resources;
                let machine = &self.options.plan.machine;
                self.pool
                    .take(request, gpu_use, |gpu| machine.has(gpu, request.gpu_memory))
            };
            let Some(grant) = grant else {
                kept.push_back(stage);
                continue;
            };
            let order = self.order(stage, &grant);
            let launcher = &mut self.options.launcher;
            match launcher.launch(stage, order, &self.sender) {
                Ok(worker) => {
                    let plan = self.plans[stage].as_ref();
                    let event = RunEvent::StageStarted {
                        stage: self.pipeline.stages[stage].name.clone(),
                        fingerprint: plan.and_then(|plan| plan.fingerprint),
                        causes: plan.map(|plan| plan.causes.clone()).unwrap_or_default(),
                        gpus: grant.gpus.clone(),
                        notes: plan.map(|plan| plan.notes.clone()).unwrap_or_default(),
                    };
                    self.folder.begin_work();
                    self.emit(event);
                    self.step(stage, Step::Start);
                    self.retries.remove(&stage);
                    self.workers.insert(stage, Running::new(worker, grant));
                }
                Err(error) => {
                    self.pool.give_back(&grant);
                    self.fail(stage, &error);
                }
            }
        }
        self.queue = kept;
    }

    /// Whether all that its worker would do is to fetch a source whose digest is open.
    fn is_fetch(&self, stage: usize) -> bool {
        let plan = self.plans[stage].as_ref();
        plan.is_some_and(|plan| plan.fingerprint.is_none())
    }

    fn fetches(&self) -> usize {
        let running = self.workers.keys();
        running.filter(|stage| self.is_fetch(**stage)).count()
    }

    /// What a stage can do with GPUs here. Where tensors may lie on the processor instead, and no GPU can be had, it says so
    /// once and asks for none.
    fn gpu_use(&mut self, stage: usize) -> GpuUse {
        let instance = &self.pipeline.stages[stage];
        let gpu_use = instance.stage.gpu_use();
        let machine = &self.options.plan.machine;
        let may_do_without = gpu_use == GpuUse::Tensors && machine.device() == DeviceChoice::Auto;
        let is_here = !machine.is_cluster();
        if !(is_here && may_do_without && machine.offers_gpus(gpu_use, instance.resources.gpus)) {
            return gpu_use;
        }
        let Err(refusal) = machine.gpu(0) else {
            return gpu_use;
        };
        if !self.told_of_gpus {
            self.told_of_gpus = true;
            let text = format!("it and all others compute on the processor: {refusal}");
            self.emit(RunEvent::StageNote {
                stage: instance.name.clone(),
                importance: Importance::Warning,
                text,
            });
        }
        GpuUse::None
    }

    /// The variables whose values a stage is given: its own, and those that come with its inputs.
    fn secrets(&self, stage: usize) -> Vec<String> {
        let instance = &self.pipeline.stages[stage];
        let items = instance.inputs.iter().flat_map(|input| &input.items);
        let producers = items.map(|item| &self.pipeline.stages[item.producer]);
        let handed_on = producers.flat_map(|producer| producer.stage.secrets_handed_on());
        instance
            .stage
            .secrets()
            .into_iter()
            .chain(handed_on)
            .collect()
    }

    fn order(&self, stage: usize, grant: &Grant) -> Order {
        let instance = &self.pipeline.stages[stage];
        let plan = self.plans[stage].as_ref();
        Order {
            job: self.job(stage, grant),
            run: self.folder.path.clone(),
            log: self.log_path(stage),
            secrets: self.secrets(stage),
            resources: instance.resources.clone(),
            gpus: (self.options.capacity.device)
                .gpus(instance.stage.gpu_use(), instance.resources.gpus),
            timeout: instance.timeout,
            estimate: plan.and_then(|plan| plan.estimate.seconds),
        }
    }

    fn job(&self, stage: usize, grant: &Grant) -> Job {
        let instance = &self.pipeline.stages[stage];
        let plan = self.plans[stage].as_ref();
        let task = plan
            .and_then(|plan| {
                Some(Task::Run {
                    manifest: plan.manifest.clone()?,
                    fingerprint: plan.fingerprint?,
                    rerun: self.options.plan.rerun.get(stage).copied().unwrap_or(false),
                    exact: self.options.plan.exact_numerics,
                })
            })
            .unwrap_or(Task::Fetch);
        let inputs = instance.inputs.iter().flat_map(|input| {
            input.items.iter().filter_map(|item| {
                let outputs = self.known[item.producer].as_ref()?;
                Some(JobInput {
                    port: input.port.clone(),
                    labels: item.labels.clone().into_iter().collect(),
                    artifact: outputs.get(&item.output)?.clone(),
                    handed_on: self.pipeline.stages[item.producer].stage.handed_on(),
                })
            })
        });
        Job {
            task,
            store: self.store.root().to_owned(),
            staging: None,
            inputs_from: (self.recomputed.as_ref()).map(|made| made.inputs_from.clone()),
            pipeline: self.pipeline.name.clone(),
            stage: instance.name.clone(),
            kind: instance.kind.name.to_owned(),
            params: instance.raw_params.clone(),
            inputs: inputs.collect(),
            base_folder: instance.base_folder.to_path_buf(),
            device: self.options.capacity.device,
            gpus: grant.gpus.clone(),
            gpus_asked_for: match instance.stage.gpu_use() {
                // It was said that there are none to be had.
                GpuUse::Tensors if self.told_of_gpus => grant.gpus.len(),
                _ => instance.resources.gpus,
            },
            memory: instance.resources.memory,
            gpu_memory: instance.resources.gpu_memory,
            threads: grant.cpus,
        }
    }

    pub(super) fn log_path(&self, stage: usize) -> PathBuf {
        log_path(&self.folder.path, &self.pipeline.stages[stage].name)
    }
}
