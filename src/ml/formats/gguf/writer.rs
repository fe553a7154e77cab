//! Writing of small GGUF files, for tests.

/// A metadata value to write.
#[derive(Clone)]
pub(in super::super) enum Field {
    U32(u32),
    F32(f32),
    Flag(bool),
    Text(&'static str),
    Texts(Vec<String>),
    I32s(Vec<i32>),
}

/// A tensor to write: name, sizes (innermost first), encoding code, data.
pub(in super::super) type TensorData = (String, Vec<u64>, u32, Vec<u8>);

fn text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// Returns the bytes of a version 3 file.
pub(in super::super) fn gguf(metadata: &[(&str, Field)], tensors: &[TensorData]) -> Vec<u8> {
    let mut out = b"GGUF".to_vec();
    out.extend(3u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, field) in metadata {
        text(&mut out, key);
        let mut code = |code: u32| out.extend(code.to_le_bytes());
        match field {
            Field::U32(value) => {
                code(4);
                out.extend(value.to_le_bytes());
            }
            Field::F32(value) => {
                code(6);
                out.extend(value.to_le_bytes());
            }
            Field::Flag(value) => {
                code(7);
                out.push(u8::from(*value));
            }
            Field::Text(value) => {
                code(8);
                text(&mut out, value);
            }
            Field::Texts(values) => {
                code(9);
                code(8);
                out.extend((values.len() as u64).to_le_bytes());
                for value in values {
                    text(&mut out, value);
                }
            }
            Field::I32s(values) => {
                code(9);
                code(5);
                out.extend((values.len() as u64).to_le_bytes());
                for value in values {
                    out.extend(value.to_le_bytes());
                }
            }
        }
    }
    let mut data = Vec::new();
    for (name, sizes, code, bytes) in tensors {
        text(&mut out, name);
        out.extend((sizes.len() as u32).to_le_bytes());
        for size in sizes {
            out.extend(size.to_le_bytes());
        }
        out.extend(code.to_le_bytes());
        out.extend((data.len() as u64).to_le_bytes());
        data.extend(bytes);
        data.resize(data.len().next_multiple_of(32), 0);
    }
    out.resize(out.len().next_multiple_of(32), 0);
    out.extend(data);
    out
}
