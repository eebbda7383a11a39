//! Reads everything that an opened file offers: what was accepted must be usable to the last byte.

use farpost_kernels::backend::KvType;
use farpost_models::gguf::{File, MemoryNeed, Value};

/// Reads all of `file`; gives the number of bytes in its tensors.
pub fn touch(file: &File) -> u64 {
    let metadata = file.metadata();
    for (key, value) in metadata.iter() {
        assert!(metadata.contains(key));
        // Whether a value is of the type asked for does not matter here, only that asking is safe.
        let _ = (metadata.string(key).is_ok(), metadata.strings(key).is_ok(), metadata.bool(key).is_ok());
        let _ = (metadata.u32(key).is_ok(), metadata.i64(key).is_ok(), metadata.f32(key).is_ok());
        let _ = (metadata.f32s(key).is_ok(), metadata.i32s(key).is_ok(), metadata.bools(key).is_ok());
        let Value::Array(array) = value else { continue };
        assert_eq!(array.values().count(), array.len(), "{key}");
        if let Some(strings) = array.strings() {
            assert!(strings.iter().enumerate().all(|(at, text)| strings.get(at) == Some(text)), "{key}");
        }
    }
    let mut bytes = 0;
    for tensor in file.tensors() {
        assert!(file.tensor(tensor.name()).is_some_and(|found| std::ptr::eq(found, tensor.weight())));
        let view = tensor.weight().view();
        assert_eq!(view.bytes.len(), tensor.weight().bytes().len());
        let sum: u64 = view.bytes.iter().map(|&byte| u64::from(byte)).sum();
        assert!(sum <= 255 * view.bytes.len() as u64);
        bytes += view.bytes.len() as u64;
    }
    assert!(bytes <= file.size_bytes(), "tensors share no bytes");
    if let Ok(need) = MemoryNeed::of(file) {
        need.kv(usize::MAX, KvType::F16);
    }
    bytes
}
