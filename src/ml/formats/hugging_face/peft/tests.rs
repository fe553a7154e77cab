use super::super::super::damage::survives;
use super::super::super::fixture;
use super::super::json::read_object;
use super::*;
use crate::random::Stream;
use candle_core::Device;
use serde_json::Value;
use tempfile::TempDir;

fn adapter(targets: &[&str]) -> PeftAdapter {
    adapter_of(LoraConfig {
        rank: 2,
        alpha: 16.0,
        dropout: 0.05,
        target_modules: targets.iter().map(|target| (*target).into()).collect(),
        ..LoraConfig::default()
    })
}

fn adapter_of(config: LoraConfig) -> PeftAdapter {
    let mut draws = Stream::new(1, "adapter").at(0);
    let model = config::untied(&fixture::config().into());
    let weights = adapter_tensors(&config, &model).map(|(name, shape)| {
        let count = shape.iter().product();
        let values: Vec<_> = (0..count).map(|_| draws.normal() as f32).collect();
        (name, Tensor::from_vec(values, shape, &Device::Cpu).unwrap())
    });
    PeftAdapter {
        weights: weights.collect(),
        config,
        score: None,
    }
}

fn saved(adapter: &PeftAdapter) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    save_peft_adapter(folder.path(), adapter).unwrap();
    folder
}

fn load(folder: &TempDir) -> Result<PeftAdapter, String> {
    load_peft_adapter(folder.path(), fixture::config()).map_err(|error| {
        let folder = folder.path().to_string_lossy();
        error.to_string().replace(&*folder, "DIR")
    })
}

fn edit(folder: &TempDir, key: &str, value: Value) {
    let path = folder.path().join("adapter_config.json");
    let mut config = read_object(&path).unwrap();
    config.insert(key.to_owned(), value);
    fs_err::write(path, Value::Object(config).to_string()).unwrap();
}

#[test]
fn a_saved_adapter_is_read_back() {
    let mut adapter = adapter(&["q_proj", "v_proj", "down_proj"]);
    adapter.score = Some(Tensor::ones((1, 8), candle_core::DType::F32, &Device::Cpu).unwrap());
    let read = load(&saved(&adapter)).unwrap();
    assert_eq!(read.config, adapter.config);
    assert_eq!(read.weights.len(), 2 * 3 * 2);
    assert_eq!(
        read.weights["base_model.model.model.layers.1.self_attn.v_proj.lora_B.weight"].dims(),
        [4, 2]
    );
    fixture::assert_equal(&read.weights, &adapter.weights);
    assert_eq!(fixture::values(&read.score.unwrap()), [1.0; 8]);
}

#[test]
fn the_stabilised_scale_divides_by_the_root() {
    let folder = saved(&adapter(&["q_proj"]));
    edit(&folder, "use_rslora", json!(true));
    let scale = load(&folder).unwrap().config.scale_of("q_proj");
    assert!((scale - 16.0 / 2f64.sqrt()).abs() < 1e-12);
}

#[test]
fn what_is_not_implemented_is_refused() {
    for (key, value, message) in [
        (
            "bias",
            json!("some"),
            "`bias`: \"some\" is not supported; \"none\", \"all\" and \"lora_only\" are",
        ),
        (
            "peft_type",
            json!("IA3"),
            "`peft_type`: \"IA3\" is not supported; only \"LORA\" is",
        ),
        (
            "init_lora_weights",
            json!("pissa_niter_4"),
            "`init_lora_weights`: \"pissa_niter_4\" is not supported; such an adapter fits only \
             the base that its start changed; convert it to plain LoRA with \
             `save_pretrained(..., path_initial_model_for_weight_conversion=...)`",
        ),
        (
            "modules_to_save",
            json!(["mlp"]),
            "`modules_to_save`: `mlp` names `model.layers.0.mlp.gate_proj`, a linear layer of a block, expected modules \
             outside them; put it into `target_modules`",
        ),
        (
            "modules_to_save",
            json!([""]),
            "`modules_to_save`: no module of the model is called ``",
        ),
        (
            "exclude_modules",
            json!(7),
            "`exclude_modules`: 7 is not supported; a list of module names or a pattern is",
        ),
        (
            "exclude_modules",
            json!(["q_proj"]),
            "`target_modules`: [\"q_proj\"] names no linear layer of the model",
        ),
        (
            "layers_to_transform",
            json!("first"),
            "`layers_to_transform`: \"first\" is not supported; a layer's number or a list of them is",
        ),
        (
            "layers_pattern",
            json!("layers"),
            "`layers_pattern` is given without `layers_to_transform`",
        ),
        (
            "alpha_pattern",
            json!({ "(q_proj": 3 }),
            "`alpha_pattern` with \"(q_proj\" is not supported; it is no pattern: Parsing error at position \
             22: Opening parenthesis without closing parenthesis",
        ),
        (
            "rank_pattern",
            json!({ "q_proj": 0 }),
            "`rank_pattern.q_proj` is 0, expected at least 1",
        ),
        (
            "target_modules",
            json!(["q_proj", "lm_head"]),
            "`target_modules` with `lm_head` is not supported; only the linear layers of the \
             blocks are",
        ),
        (
            "target_modules",
            json!(["query"]),
            "`target_modules`: [\"query\"] names no linear layer of the model",
        ),
        (
            "task_type",
            json!("FEATURE_EXTRACTION"),
            "`task_type`: \"FEATURE_EXTRACTION\" is not supported; \"CAUSAL_LM\" and \
             \"SEQ_CLS\" are",
        ),
        (
            "new_scaling",
            json!(2),
            "`new_scaling`: 2 is not supported; merge the adapter in PEFT with \
             `merge_and_unload`, and load the whole model",
        ),
    ] {
        let folder = saved(&adapter(&["q_proj"]));
        edit(&folder, key, value);
        let message = format!("DIR/adapter_config.json: {message}");
        assert_eq!(load(&folder).unwrap_err(), message);
    }
}

/// Starts that take something out of the base weights, and others that are not known to leave them alone.
#[test]
fn what_changes_the_base_is_refused() {
    for way in [
        "pissa",
        "pissa_niter_16",
        "olora",
        "corda",
        "loftq",
        "lora_ga",
        "mica",
    ] {
        let folder = saved(&adapter(&["q_proj"]));
        edit(&folder, "init_lora_weights", json!(way));
        let error = load(&folder).unwrap_err();
        let expected = format!(
            "`init_lora_weights`: \"{way}\" is not supported; such an adapter fits only the base that its start changed"
        );
        assert!(error.contains(&expected), "{error}");
    }
}

/// Keys of PEFT 0.21 at their defaults, and inits that leave the base alone.
#[test]
fn what_asks_for_nothing_is_no_hindrance() {
    for (key, value) in [
        ("init_lora_weights", json!(true)),
        ("init_lora_weights", json!("gaussian")),
        ("loftq_config", json!({})),
        ("qalora_group_size", json!(16)),
        ("layers_to_transform", json!([])),
        ("exclude_modules", json!([])),
        ("rank_pattern", Value::Null),
        ("bias", Value::Null),
        ("modules_to_save", json!(["no_such_module"])),
        ("ensure_weight_tying", json!(true)),
        ("kasa_config", Value::Null),
        ("trained_on_the_moon", json!(false)),
    ] {
        let folder = saved(&adapter(&["q_proj"]));
        edit(&folder, key, value);
        load(&folder).unwrap();
    }
}

/// PEFT writes `all-linear` as whole names for few modules, and as the shortest endings for many.
#[test]
fn modules_are_named_in_every_way_of_peft() {
    let two = [
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.mlp.up_proj",
    ];
    for (targets, resolved) in [
        (json!(two), two),
        (
            json!(["0.self_attn.q_proj", "1.mlp.up_proj", "key_value"]),
            ["0.self_attn.q_proj", "1.mlp.up_proj"],
        ),
        (json!(r".*\.(0\.self_attn\.q|1\.mlp\.up)_proj"), two),
    ] {
        let folder = saved(&adapter(&two));
        edit(&folder, "target_modules", targets);
        let read = load(&folder).unwrap();
        assert_eq!(read.config.target_modules, resolved);
        assert_eq!(read.weights.len(), 4);
    }
    let folder = saved(&adapter(&["_proj"]));
    edit(&folder, "target_modules", json!("all-linear"));
    assert!(load(&folder).unwrap_err().contains("is missing"));
    let every = [
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "gate_proj",
        "up_proj",
        "down_proj",
    ];
    let folder = saved(&adapter(&every));
    edit(&folder, "target_modules", json!("all-linear"));
    assert_eq!(load(&folder).unwrap().config.target_modules.len(), 2 * 7);
}

#[test]
fn pickled_weights_are_refused() {
    let folder = saved(&adapter(&["q_proj"]));
    let weights = folder.path().join("adapter_model.safetensors");
    fs_err::rename(&weights, weights.with_extension("bin")).unwrap();
    assert_eq!(
        load(&folder).unwrap_err(),
        "DIR/adapter_model.bin: a pickled file, which can run code when it is opened, is not \
         supported; load it in PyTorch and save it with `safe_serialization=True`"
    );
}

#[test]
fn factors_must_fit_the_model_and_the_rank() {
    let folder = saved(&adapter(&["q_proj"]));
    edit(&folder, "r", json!(3));
    assert_eq!(
        load(&folder).unwrap_err(),
        "DIR/adapter_model.safetensors: tensor \
         `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight` has shape [2, 8], \
         expected [3, 8]"
    );
    let folder = saved(&adapter(&["q_proj"]));
    edit(&folder, "target_modules", json!(["q_proj", "k_proj"]));
    assert!(load(&folder).unwrap_err().contains("k_proj.lora_A.weight"));
}

#[test]
fn the_adapter_of_a_reward_model_must_carry_its_head() {
    let folder = saved(&adapter(&["q_proj"]));
    edit(&folder, "task_type", json!("SEQ_CLS"));
    let error = load(&folder).unwrap_err();
    assert!(error.contains("must carry its head"), "{error}");
}

/// As PEFT has it, the first pattern of the file that matches counts, wherever another one is more exact.
#[test]
fn patterns_count_in_the_order_of_the_file() {
    let query = "model.layers.1.self_attn.q_proj";
    let write = |pattern: &str, folder: &TempDir| {
        let path = folder.path().join("adapter_config.json");
        let text = fs_err::read_to_string(&path).unwrap();
        let text = text.replacen('{', &format!("{{\"alpha_pattern\": {pattern},"), 1);
        fs_err::write(path, text).unwrap();
    };
    let scale = |pattern: &str| {
        let folder = saved(&adapter(&["q_proj", "v_proj"]));
        write(pattern, &folder);
        load(&folder).unwrap().config
    };
    let config = scale(r#"{"q_proj": 3, "layers.1.self_attn.q_proj": 5}"#);
    assert_eq!(config.scale_of(query), 1.5);
    let config = scale(r#"{"layers.1.self_attn.q_proj": 5, "q_proj": 3}"#);
    assert_eq!(config.scale_of(query), 2.5);
    assert_eq!(config.scale_of("model.layers.0.self_attn.q_proj"), 1.5);
    assert_eq!(config.scale_of("model.layers.0.self_attn.v_proj"), 8.0);
    // Names that say the same by themselves stay.
    let config = scale(r#"{"q_proj": 3, "up_proj": 7}"#);
    assert_eq!(config.alpha_pattern, [("q_proj".to_owned(), 3.0)].into());
    let config = scale(r#"{"[qk]_proj": 3}"#);
    let named = |layer| (format!("model.layers.{layer}.self_attn.q_proj"), 3.0);
    assert_eq!(config.alpha_pattern, [named(0), named(1)].into());
}

#[test]
fn layers_and_exclusions_leave_out_what_peft_leaves_out() {
    let targets = |changes: Value| {
        let folder = saved(&adapter(&["q_proj", "v_proj"]));
        for (key, value) in changes.as_object().unwrap() {
            edit(&folder, key, value.clone());
        }
        let stated = Stated::read(&folder.path().join("adapter_config.json")).unwrap();
        let model = Architecture::from(fixture::config());
        stated
            .resolve(folder.path(), &model)
            .unwrap()
            .target_modules
    };
    let (first, second) = (
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
    );
    let value = "model.layers.1.self_attn.v_proj";
    assert_eq!(
        targets(json!({ "layers_to_transform": 1 })),
        [second, value]
    );
    assert_eq!(
        targets(json!({ "layers_to_transform": [1], "layers_pattern": ["h", "layers"] })),
        [second, value]
    );
    // A whole name is in whatever layer it says.
    assert_eq!(
        targets(json!({ "layers_to_transform": [1], "target_modules": ["v_proj", first] })),
        [first, value]
    );
    assert_eq!(
        targets(json!({ "layers_to_transform": [0, 1] })),
        ["q_proj", "v_proj"]
    );
    assert_eq!(
        targets(json!({ "exclude_modules": ["v_proj"] })),
        ["q_proj"]
    );
    assert_eq!(
        targets(json!({ "exclude_modules": r".*(v_proj|0\.self_attn\.q_proj)" })),
        [second]
    );
    let folder = saved(&adapter(&["q_proj"]));
    edit(&folder, "target_modules", json!(".*q_proj"));
    edit(&folder, "layers_to_transform", json!([1]));
    let error = load(&folder).unwrap_err();
    assert!(
        error.contains("goes with a list of `target_modules` alone"),
        "{error}"
    );
}

#[test]
fn tensors_that_belong_to_an_adapter_must_be_there() {
    let with = |change: fn(&mut LoraConfig)| {
        let mut config = adapter(&["q_proj"]).config;
        change(&mut config);
        adapter_of(config)
    };
    let saved_head = with(|config| config.modules_to_save = vec!["lm_head".to_owned()]);
    let read = load(&saved(&saved_head)).unwrap();
    fixture::assert_equal(&read.weights, &saved_head.weights);
    for (adapter, missing) in [
        (&saved_head, "base_model.model.lm_head.weight"),
        (
            &with(|config| config.use_dora = true),
            "base_model.model.model.layers.1.self_attn.q_proj.lora_magnitude_vector",
        ),
    ] {
        let mut adapter = adapter.clone();
        adapter.weights.remove(missing).unwrap();
        let error = load(&saved(&adapter)).unwrap_err();
        assert!(error.contains(&format!("`{missing}` of shape")), "{error}");
    }
    // What the configuration does not speak of is an error too.
    let folder = saved(&saved_head);
    edit(&folder, "modules_to_save", Value::Null);
    let error = load(&folder).unwrap_err();
    assert!(
        error.contains("unexpected tensor `base_model.model.lm_head.weight`"),
        "{error}"
    );
}

#[test]
fn embeddings_that_stay_tied_are_refused() {
    let mut config = adapter(&["q_proj"]).config;
    config.modules_to_save = vec!["embed_tokens".to_owned()];
    let folder = saved(&adapter_of(config));
    edit(&folder, "ensure_weight_tying", json!(true));
    let tied = crate::ml::models::causal::LlamaConfig {
        tie_word_embeddings: true,
        ..fixture::config()
    };
    let error = load_peft_adapter(folder.path(), &tied)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("`ensure_weight_tying`: true with"),
        "{error}"
    );
    edit(&folder, "ensure_weight_tying", json!(false));
    load_peft_adapter(folder.path(), &tied).unwrap();
}

#[test]
fn damaged_configurations_are_errors() {
    let mut config = adapter(&["q_proj"]).config;
    config.rank_pattern.insert("q_proj".to_owned(), 3);
    config.modules_to_save = vec!["norm".to_owned()];
    let folder = saved(&adapter_of(config));
    let path = folder.path().join("adapter_config.json");
    edit(&folder, "exclude_modules", json!(".*v_proj"));
    edit(&folder, "layers_to_transform", json!([1]));
    edit(&folder, "layers_pattern", json!(["layers"]));
    let model = Architecture::from(fixture::config());
    let bytes = fs_err::read(&path).unwrap();
    survives(bytes.trim_ascii_end(), 3000, |path, bytes| {
        Stated::parse(path, bytes)?.resolve(path, &model)
    });
}
