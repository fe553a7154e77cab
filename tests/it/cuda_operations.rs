//! What the composed form asks of candle, held against what candle's CUDA backend has.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value as Json;

/// Dtypes of numbers, of what is compared, and of places.
const NUMBERS: &[&str] = &["f32", "bf16"];
const WIDE: &[&str] = &["f32"];
const PLACES: &[&str] = &["u32"];

/// An operation: its name in candle, the kernel that runs it on a GPU, and the dtypes in which it is asked for here.
///
/// Layouts: kernels with a name take every layout (they are given dims and strides), but those of `indexing.cu`, which
/// candle refuses to strided operands on both backends alike (`RequiresContiguous`), and the products, whose rule
/// `ml/kernels/product.rs` repeats.
const TABLE: &[(&str, &str, &[&str])] = &[
    ("add", "badd", NUMBERS),
    ("sub", "bsub", NUMBERS),
    ("mul", "bmul", NUMBERS),
    ("mul", "bmul", &["u8"]),
    ("div", "bdiv", NUMBERS),
    ("affine", "affine", NUMBERS),
    ("affine", "affine", PLACES),
    ("maximum", "bmaximum", WIDE),
    ("minimum", "bminimum", WIDE),
    ("clamp", "bminimum", WIDE),
    ("eq", "eq", &["f32", "u32"]),
    ("ne", "ne", WIDE),
    ("lt", "lt", WIDE),
    ("le", "le", WIDE),
    ("gt", "gt", WIDE),
    ("ge", "ge", WIDE),
    ("cmp", "eq", WIDE),
    ("where_cond", "where_u8", &["f32", "u8"]),
    ("exp", "uexp", WIDE),
    ("log", "ulog", WIDE),
    ("sqr", "usqr", NUMBERS),
    ("sqrt", "usqrt", WIDE),
    ("abs", "uabs", WIDE),
    ("neg", "uneg", NUMBERS),
    ("recip", "urecip", WIDE),
    ("tanh", "utanh", NUMBERS),
    ("sin", "usin", WIDE),
    ("cos", "ucos", WIDE),
    ("erf", "uerf", WIDE),
    ("relu", "urelu", NUMBERS),
    ("silu", "usilu", NUMBERS),
    ("gelu", "ugelu", NUMBERS),
    ("gelu_erf", "ugelu_erf", NUMBERS),
    ("powf", "upowf", WIDE),
    ("sum", "fast_sum", WIDE),
    ("sum_all", "fast_sum", WIDE),
    ("sum_keepdim", "fast_sum", WIDE),
    ("mean", "fast_sum", WIDE),
    ("mean_keepdim", "fast_sum", WIDE),
    ("max", "fast_max", WIDE),
    ("max_keepdim", "fast_max", WIDE),
    ("min", "fast_min", WIDE),
    ("log_sum_exp", "fast_sum", WIDE),
    ("argmax", "fast_argmax", WIDE),
    ("argmax_keepdim", "fast_argmax", WIDE),
    ("index_select", "is_u32", NUMBERS),
    ("gather", "gather_u32", WIDE),
    ("index_add", "ia_u32", WIDE),
    ("scatter", "s_u32", WIDE),
    ("scatter_set", "s_u32", NUMBERS),
    ("scatter_add", "sa_u32", WIDE),
    ("contiguous", "ucopy", NUMBERS),
    ("copy", "ucopy", NUMBERS),
    ("force_contiguous", "ucopy", NUMBERS),
    ("cat", "copy2d", NUMBERS),
    ("pad_with_zeros", "copy2d", NUMBERS),
    ("slice_set", "copy2d", NUMBERS),
    ("ones_like", "const_set", WIDE),
    ("to_dtype", "cast_f32", &["bf16", "u32", "u8", "f64"]),
    ("to_dtype", "cast_bf16", &["f32"]),
    ("to_dtype", "cast_u8", &["f32"]),
    ("to_dtype", "cast_u32", &["f32"]),
    ("to_dtype", "cast_f64", &["f32"]),
];

/// Products go to cuBLAS: the arms of `matmul` in `cuda_backend/mod.rs` that they need.
const PRODUCTS: &[&str] = &[
    "CudaStorageSlice::F32(lhs), CudaStorageSlice::F32(rhs)",
    "CudaStorageSlice::BF16(lhs), CudaStorageSlice::BF16(rhs)",
];

/// What runs no kernel of its own: it looks at a tensor otherwise, moves it, or is made of the operations above.
const OTHERS: &[&str] = &[
    "apply",
    "broadcast_as",
    "detach",
    "device",
    "dim",
    "dims",
    "dims1",
    "dims2",
    "dims3",
    "dims4",
    "dtype",
    "elem_count",
    "expand",
    "flatten",
    "flatten_all",
    "flatten_to",
    "get",
    "is_contiguous",
    "layout",
    "matmul",
    "narrow",
    "permute",
    "rank",
    "reshape",
    "shape",
    "squeeze",
    "storage_and_layout",
    "stride",
    "t",
    "to_device",
    "to_scalar",
    "to_vec0",
    "to_vec1",
    "to_vec2",
    "to_vec3",
    "track_op",
    "transpose",
    "unsqueeze",
    "zeros_like",
    "cumsum",
    "apply_op1",
    "apply_op2",
    "apply_op3",
    "apply_op1_no_bwd",
    "inplace_op2",
    "backward",
    "id",
    "is_variable",
    "to_string",
];

/// Names that are those of other things than tensors here: numbers, texts, layers.
const OTHERS_METHODS: &[&str] = &["ceil", "floor", "norm", "repeat", "round", "stack", "var"];

/// The source folders of candle's crates, as cargo has fetched them.
fn sources() -> (PathBuf, PathBuf) {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--features", "cuda"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let found: Json = serde_json::from_slice(&output.stdout).unwrap();
    let of = |name: &str| {
        let packages = found["packages"].as_array().unwrap();
        let package = packages
            .iter()
            .find(|package| package["name"] == name)
            .unwrap();
        let manifest = Path::new(package["manifest_path"].as_str().unwrap());
        manifest.parent().unwrap().join("src")
    };
    (of("candle-core"), of("candle-kernels"))
}

/// The text of the files of a folder with this ending.
fn texts(folder: &Path, ending: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(texts(&path, ending));
        } else if path.to_str().is_some_and(|name| {
            name.ends_with(ending) && !name.contains("test") && !name.contains("fixture")
        }) {
            found.push(fs::read_to_string(&path).unwrap());
        }
    }
    found
}

fn is_word(sign: char) -> bool {
    sign.is_ascii_alphanumeric() || sign == '_'
}

/// The words behind `before` in a text.
fn words_behind(text: &str, before: &str) -> BTreeSet<String> {
    let parts = text.split(before).skip(1);
    let words = parts.map(|part| part.chars().take_while(|sign| is_word(*sign)).collect());
    words.filter(|word: &String| !word.is_empty()).collect()
}

/// The methods of candle's tensors.
fn methods(candle: &Path) -> BTreeSet<String> {
    let text = fs::read_to_string(candle.join("tensor.rs")).unwrap();
    let mut methods = words_behind(&text, "    pub fn ");
    for made_by in [
        "unary_op!(",
        "binary_op!(",
        "binary_op_scalar!(",
        "broadcast_binary_op!(",
    ] {
        methods.extend(words_behind(&text, made_by));
    }
    methods
}

/// What of the models and objectives is no test.
fn own_source() -> String {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ml");
    let texts = texts(&folder, ".rs").into_iter();
    let without_tests = texts.map(|text| {
        text.split("#[cfg(test)]\nmod tests {")
            .next()
            .unwrap()
            .to_owned()
    });
    without_tests.collect()
}

#[test]
#[ignore = "reads candle's sources for CUDA, which cargo fetches"]
fn every_operation_of_the_composed_form_is_one_that_cuda_has() {
    let (candle, kernels) = sources();
    let source = own_source();
    let known: BTreeSet<&str> = TABLE
        .iter()
        .map(|(name, ..)| *name)
        .chain(OTHERS.iter().chain(OTHERS_METHODS).copied())
        .collect();
    let used: Vec<String> = methods(&candle)
        .into_iter()
        .filter(|name| {
            source.contains(&format!(".{name}(")) || source.contains(&format!(".{name}::<"))
        })
        .collect();
    assert!(used.len() > 50, "{used:?}");
    let unknown: Vec<&String> = used
        .iter()
        .filter(|name| {
            !known.contains(name.strip_prefix("broadcast_").unwrap_or(name))
                && !known.contains(name.as_str())
        })
        .collect();
    assert!(
        unknown.is_empty(),
        "operations of which nobody said which kernels they need: {unknown:?}"
    );

    let cuda: String = texts(&kernels, ".cu").concat();
    let has = |kernel: &str| {
        let found = cuda.match_indices(kernel);
        found.into_iter().any(|(at, _)| {
            let around = [
                cuda[..at].chars().next_back(),
                cuda[at + kernel.len()..].chars().next(),
            ];
            around.into_iter().flatten().all(|sign| !is_word(sign))
        })
    };
    let mut missing: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (name, root, dtypes) in TABLE {
        let wanted = dtypes.iter().map(|dtype| format!("{root}_{dtype}"));
        missing
            .entry(name)
            .or_default()
            .extend(wanted.filter(|kernel| !has(kernel)));
    }
    missing.retain(|_, kernels| !kernels.is_empty());
    assert!(missing.is_empty(), "{missing:?}");
    let backend = fs::read_to_string(candle.join("cuda_backend/mod.rs")).unwrap();
    for arm in PRODUCTS {
        assert!(backend.contains(arm), "{arm}");
    }
    assert!(!has("uexp_nothing"), "what is not there is not found");
}
