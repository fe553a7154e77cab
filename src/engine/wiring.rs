//! Resolving references to the instances and outputs they mean.

use std::collections::BTreeMap;

use indexmap::IndexMap;

use super::context::Labels;
use super::diagnostic::{Diagnostic, Path, SHOWN, did_you_mean};
use super::instance::{Draft, InputItem, Instance, PortInput, Template};
use super::reference::{Reference, Selection, is_name, is_same_value, namespace};
use super::stage::{Output, Port, StageKind, wires};
use super::value::{Map, Value};

/// The stages that a reference can name.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    /// All stages of the file, those that could not be read with them: a reference to a broken stage is no further
    /// error.
    pub(super) names: &'a Map,
    /// Others of imported files, which may have been meant.
    pub(super) near: &'a [String],
}

/// Resolves the inputs of every draft.
pub(super) fn wire(
    drafts: Vec<Draft>,
    templates: &IndexMap<String, Template>,
    known: Known<'_>,
    errors: &mut Vec<Diagnostic>,
) -> Vec<Instance> {
    let outputs: Vec<Vec<Output>> = drafts
        .iter()
        .map(|draft| draft.instance.stage.outputs())
        .collect();
    let lookup: BTreeMap<&str, BTreeMap<Vec<&str>, usize>> = templates
        .iter()
        .filter(|(_, template)| !template.axes.is_empty())
        .map(|(name, template)| {
            let instances = template
                .instances
                .iter()
                .map(|(axes, at)| (axes.values().map(String::as_str).collect(), *at));
            (name.as_str(), instances.collect())
        })
        .collect();
    let wiring = Wiring {
        templates,
        outputs: &outputs,
        lookup: &lookup,
        known,
    };
    drafts
        .into_iter()
        .map(|draft| {
            let inputs = wiring.inputs(&draft, errors);
            let mut instance = draft.instance;
            instance.inputs = inputs;
            instance
        })
        .collect()
}

struct Wiring<'a> {
    templates: &'a IndexMap<String, Template>,
    outputs: &'a [Vec<Output>],
    /// The instances of each template that has a matrix, by their axis values.
    lookup: &'a BTreeMap<&'a str, BTreeMap<Vec<&'a str>, usize>>,
    known: Known<'a>,
}

/// The consumer of a reference, for messages.
struct Consumer<'a> {
    instance: &'a Instance,
    port: &'a Port,
    path: Path,
}

impl Wiring<'_> {
    fn inputs(&self, draft: &Draft, errors: &mut Vec<Diagnostic>) -> Vec<PortInput> {
        let instance = &draft.instance;
        let mut ports = instance.stage.ports();
        let inputs_path = draft.path.key("inputs");
        if instance.stage.has_free_ports() {
            for name in draft.inputs.keys() {
                if ports.iter().all(|port| port.name != name.as_str()) {
                    ports.push(Port {
                        name: name.clone().into(),
                        ..Port::many("", &[], "")
                    });
                }
            }
        }
        for name in draft.inputs.keys() {
            let known = ports.iter().any(|port| port.name == name.as_str());
            if !known {
                let template = &instance.template;
                errors.push(no_port(
                    template,
                    &instance.kind,
                    &ports,
                    &inputs_path,
                    name,
                ));
            } else if !is_name(name) {
                errors.push(
                    Diagnostic::error(
                        inputs_path.key(name),
                        format!("`{name}` cannot name a port"),
                    )
                    .at_key()
                    .hint("names match [a-z][a-z0-9_]*"),
                );
            }
        }
        let mut wired = Vec::with_capacity(draft.inputs.len());
        for port in &ports {
            let given = draft.inputs.get(port.name.as_ref());
            let given = given.filter(|value| **value != Value::Null);
            let Some(value) = given else {
                if !port.arity.is_optional() {
                    errors.push(no_input(
                        &instance.template,
                        &instance.kind,
                        port,
                        &inputs_path,
                    ));
                }
                continue;
            };
            let consumer = Consumer {
                instance,
                port,
                path: inputs_path.key(&port.name),
            };
            let items = self.port(&consumer, value, errors);
            wired.push(PortInput {
                port: port.name.to_string(),
                labelled: port.labelled,
                items,
            });
        }
        wired.sort_by(|a, b| a.port.cmp(&b.port));
        wired
    }

    fn port(
        &self,
        consumer: &Consumer<'_>,
        value: &Value,
        errors: &mut Vec<Diagnostic>,
    ) -> Vec<InputItem> {
        let port = consumer.port;
        let references: Vec<(Path, &Value)> = match value {
            Value::List(list) => list
                .iter()
                .enumerate()
                .map(|(index, item)| (consumer.path.index(index), item))
                .collect(),
            one => vec![(consumer.path.clone(), one)],
        };
        let known = errors.len();
        let mut items = Vec::with_capacity(references.len());
        let mut complete = true;
        for (path, reference) in references {
            match reference.as_str().map(Reference::parse) {
                Some(Ok(reference)) => {
                    let consumer = Consumer { path, ..*consumer };
                    match self.reference(&consumer, &reference, errors) {
                        Some(found) => items.extend(found),
                        None => complete = false,
                    }
                }
                Some(Err(message)) => errors.push(Diagnostic::error(path, message)),
                None => errors.push(
                    Diagnostic::error(path, format!("expected a reference, found {}", reference.type_name()))
                        .hint("a reference looks like `stage`, `stage.output` or `stage[axis=value].output`"),
                ),
            }
        }
        let count = items.len();
        if !complete {
            return items;
        }
        if errors.len() == known && !port.arity.is_list() && count != 1 {
            errors.push(
                Diagnostic::error(
                    consumer.path.clone(),
                    format!(
                        "stage `{}`: port `{}` takes one artifact, found {count}",
                        consumer.instance.template, port.name
                    ),
                )
                .hint("select the axes that this stage lacks, as in `stage[seed=1]`"),
            );
        } else if errors.len() == known && count == 0 {
            errors.push(Diagnostic::error(
                consumer.path.clone(),
                format!(
                    "stage `{}`: port `{}` needs at least one artifact",
                    consumer.instance.template, port.name
                ),
            ));
        }
        items
    }

    /// Resolves one reference; `None` if it is wrong, or its stage is.
    fn reference(
        &self,
        consumer: &Consumer<'_>,
        reference: &Reference,
        errors: &mut Vec<Diagnostic>,
    ) -> Option<Vec<InputItem>> {
        // Stages of an imported file name each other as they do there.
        let name = format!(
            "{}{}",
            namespace(&consumer.instance.template),
            reference.stage
        );
        let Some(template) = self.templates.get(&name) else {
            check_stage(&consumer.path, &name, self.known, errors);
            return None;
        };
        let choices = choices(consumer, reference, template, errors)?;
        let instances = self.lookup.get(name.as_str());
        let only = template.instances.first().map(|(_, at)| *at);
        let mut combinations: Vec<Vec<&str>> = vec![Vec::new()];
        for values in choices.values() {
            combinations = combinations
                .iter()
                .flat_map(|combination| {
                    values
                        .iter()
                        .map(|value| [combination.as_slice(), &[value.as_str()]].concat())
                })
                .collect();
        }
        let single = combinations.len() == 1;
        let mut items = Vec::new();
        for combination in combinations {
            // `exclude` may have removed a combination of a list; a single one must be there.
            let producer = match instances {
                Some(instances) => instances.get(&combination).copied(),
                None => only,
            };
            let Some(producer) = producer else {
                if single {
                    errors.push(Diagnostic::error(
                        consumer.path.clone(),
                        format!(
                            "`{}` has no instance [{}]",
                            reference.stage,
                            combination.join(", ")
                        ),
                    ));
                }
                continue;
            };
            let output = self.output(consumer, reference, producer, errors)?;
            let mut labels = Labels::new();
            if consumer.port.labelled {
                let axes = template.axes.keys().cloned();
                labels.extend(axes.zip(combination.iter().map(ToString::to_string)));
                let stage = reference.output.as_ref().map_or_else(
                    || reference.stage.clone(),
                    |output| format!("{}.{output}", reference.stage),
                );
                labels.insert("stage".to_owned(), stage);
            }
            items.push(InputItem {
                producer,
                output,
                labels,
            });
        }
        Some(items)
    }

    fn output(
        &self,
        consumer: &Consumer<'_>,
        reference: &Reference,
        producer: usize,
        errors: &mut Vec<Diagnostic>,
    ) -> Option<String> {
        let outputs = &self.outputs[producer];
        let found = match &reference.output {
            Some(name) => outputs.iter().find(|output| output.name == *name),
            None => outputs.first(),
        };
        let Some(output) = found else {
            let wanted = reference.output.as_deref().unwrap_or_default();
            errors.push(
                Diagnostic::error(
                    consumer.path.clone(),
                    format!("stage `{}` has no output `{wanted}`", reference.stage),
                )
                .maybe_hint(did_you_mean(
                    wanted,
                    outputs.iter().map(|output| output.name.as_str()),
                )),
            );
            return None;
        };
        let accepts = consumer.port.accepts;
        if !accepts.is_empty() && !accepts.contains(&output.kind.as_ref()) {
            let mut fitting: Vec<String> = self
                .templates
                .iter()
                .filter_map(|(name, template)| Some((name, template.instances.first()?.1)))
                .flat_map(|(name, at)| {
                    let fits = self.outputs[at].iter().enumerate();
                    fits.filter(|(_, output)| accepts.contains(&output.kind.as_ref()))
                        .map(move |(index, output)| {
                            if index == 0 {
                                name.clone()
                            } else {
                                format!("{name}.{}", output.name)
                            }
                        })
                })
                .collect();
            fitting.truncate(8);
            errors.push(
                Diagnostic::error(
                    consumer.path.clone(),
                    format!(
                        "stage `{}`: port `{}` expects {}, but `{reference}` is a {}",
                        consumer.instance.template,
                        consumer.port.name,
                        accepts.join(" or "),
                        output.kind
                    ),
                )
                .hint(if fitting.is_empty() {
                    format!("no stage of this pipeline makes a {}", accepts.join(" or "))
                } else {
                    format!("these would fit: {}", fitting.join(", "))
                }),
            );
            return None;
        }
        Some(output.name.clone())
    }
}

fn no_port(stage: &str, kind: &StageKind, ports: &[Port], inputs: &Path, name: &str) -> Diagnostic {
    let message = format!("stage `{stage}`: `{}` has no port `{name}`", kind.name);
    let near = did_you_mean(name, ports.iter().map(|port| port.name.as_ref()));
    let none = || format!("`{}` takes no inputs", kind.name);
    Diagnostic::error(inputs.key(name), message)
        .at_key()
        .hint(near.unwrap_or_else(none))
}

fn no_input(stage: &str, kind: &StageKind, port: &Port, inputs: &Path) -> Diagnostic {
    let Port { name, about, .. } = port;
    let message = format!(
        "stage `{stage}`: port `{name}` of `{}` has no input",
        kind.name
    );
    let hint = format!("add `{name}: STAGE` to its `inputs`: {about}");
    Diagnostic::error(inputs.clone(), message).hint(hint)
}

/// Checks the ports of a stage whose params are broken against those that its kind can have.
pub(super) fn check_ports(
    stage: &str,
    kind: &StageKind,
    inputs: &Value,
    path: &Path,
    errors: &mut Vec<Diagnostic>,
) {
    // What is not shown need not be looked for: it takes its time.
    if errors.len() > SHOWN {
        return;
    }
    let wires = wires(kind);
    if wires.has_free_ports {
        return;
    }
    let has = |name: &str| {
        inputs
            .get([name])
            .is_some_and(|value| *value != Value::Null)
    };
    for port in wires.needed.iter().filter(|port| !has(&port.name)) {
        errors.push(no_input(stage, kind, port, path));
    }
    let ports: Vec<Port> = wires.ports.into_iter().map(|(port, _)| port).collect();
    for name in inputs.as_map().into_iter().flat_map(Map::keys) {
        if ports.iter().all(|port| port.name != name.as_str()) {
            errors.push(no_port(stage, kind, &ports, path, name));
        }
    }
}

/// Checks the references of a stage that is broken otherwise, as far as that is possible: whether there are such
/// stages.
pub(super) fn check_names(
    consumer: &str,
    inputs: &Value,
    path: &Path,
    known: Known<'_>,
    errors: &mut Vec<Diagnostic>,
) {
    for (port, value) in inputs.as_map().into_iter().flatten() {
        let path = path.key(port);
        let references: Vec<(Path, &Value)> = match value {
            Value::List(list) => list
                .iter()
                .enumerate()
                .map(|(index, item)| (path.index(index), item))
                .collect(),
            one => vec![(path, one)],
        };
        for (path, reference) in references {
            match reference.as_str().map(Reference::parse) {
                Some(Ok(reference)) => {
                    let name = format!("{}{}", namespace(consumer), reference.stage);
                    check_stage(&path, &name, known, errors);
                }
                Some(Err(message)) => errors.push(Diagnostic::error(path, message)),
                None => {}
            }
        }
    }
}

fn check_stage(path: &Path, name: &str, known: Known<'_>, errors: &mut Vec<Diagnostic>) {
    if known.names.contains_key(name) {
        return;
    }
    let error = Diagnostic::error(path.clone(), format!("no stage `{name}`"));
    let imported = known
        .near
        .iter()
        .find(|near| near[namespace(near).len()..] == *name);
    errors.push(error.maybe_hint(match imported {
        Some(imported) => Some(format!("did you mean `{imported}`, of an imported file?")),
        None if errors.len() >= SHOWN => None,
        None => did_you_mean(
            name,
            known.names.keys().chain(known.near).map(String::as_str),
        ),
    }));
}

/// Returns the values that each axis of the referenced stage takes.
fn choices(
    consumer: &Consumer<'_>,
    reference: &Reference,
    template: &Template,
    errors: &mut Vec<Diagnostic>,
) -> Option<IndexMap<String, Vec<String>>> {
    let known = errors.len();
    for axis in reference
        .axes
        .keys()
        .filter(|axis| !template.axes.contains_key(*axis))
    {
        errors.push(
            Diagnostic::error(
                consumer.path.clone(),
                format!("`{}` has no axis `{axis}`", reference.stage),
            )
            .hint(
                did_you_mean(axis, template.axes.keys().map(String::as_str))
                    .unwrap_or_else(|| format!("`{}` has no matrix", reference.stage)),
            ),
        );
    }
    if errors.len() > known {
        return None;
    }
    let mut choices = IndexMap::new();
    for (axis, values) in &template.axes {
        // As it is spelt there.
        let own = |value: &String| {
            let same = |own: &&String| is_same_value(own, value);
            let found = values.iter().find(|own| *own == value);
            vec![found.or(values.iter().find(same)).unwrap_or(value).clone()]
        };
        let chosen = match reference.axes.get(axis) {
            Some(Selection::All) => values.clone(),
            Some(Selection::Value(value)) => own(value),
            None => match consumer.instance.axes.get(axis) {
                Some(value) => own(value),
                None if reference.all => values.clone(),
                None => {
                    errors.push(
                        Diagnostic::error(
                            consumer.path.clone(),
                            format!(
                                "`{}` has an axis `{axis}` that stage `{}` lacks",
                                reference.stage, consumer.instance.template
                            ),
                        )
                        .hint(if consumer.port.arity.is_list() {
                            format!(
                                "select one as `{0}[{axis}={1}]`, or take all with `{0}[*]`",
                                reference.stage, values[0]
                            )
                        } else {
                            format!("select one, as `{}[{axis}={}]`", reference.stage, values[0])
                        }),
                    );
                    continue;
                }
            },
        };
        for value in &chosen {
            if !values.contains(value) {
                errors.push(
                    Diagnostic::error(
                        consumer.path.clone(),
                        format!(
                            "axis `{axis}` of `{}` has no value `{value}`",
                            reference.stage
                        ),
                    )
                    .maybe_hint(did_you_mean(value, values.iter().map(String::as_str))),
                );
            }
        }
        choices.insert(axis.clone(), chosen);
    }
    (errors.len() == known).then_some(choices)
}
