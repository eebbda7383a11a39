//! Places in a schema: JSON pointers as URI fragments (RFC 6901), such as `#/properties/a~1b`.

use serde_json::Value as Json;

/// A key as it stands in a pointer.
pub(super) fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
}

/// The place that a local reference names, without percent signs; `None` if it is of another document or a name.
pub(super) fn target(reference: &str) -> Option<String> {
    let fragment = reference.strip_prefix('#')?;
    if fragment.is_empty() || fragment == "/" {
        return Some("#".to_owned());
    }
    let mut bytes = Vec::with_capacity(fragment.len());
    let mut rest = fragment.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next()?, rest.next()?];
            bytes.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    let fragment = String::from_utf8(bytes).ok()?;
    fragment.starts_with('/').then(|| format!("#{fragment}"))
}

/// What stands there.
pub(super) fn find<'j>(root: &'j Json, target: &str) -> Option<&'j Json> {
    root.pointer(target.strip_prefix('#')?)
}
