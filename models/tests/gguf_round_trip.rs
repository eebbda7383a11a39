//! What the writer writes, the reader reads; and a file appears whole or not at all.

use std::path::PathBuf;

use farpost_firmware_tests::{golden, model};
use farpost_kernels::tensor::DType;
use farpost_models::gguf::{File, OwnedValue, Value, ValueType, Writer};
use proptest::prelude::*;

/// A folder of its own for one test.
fn folder(name: &str) -> PathBuf {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

fn names_in(folder: &PathBuf) -> Vec<String> {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn rewritten(file: &File) -> Vec<u8> {
    let mut writer = Writer::with_metadata_of(file.metadata());
    for tensor in file.tensors() {
        writer.tensor(tensor.name(), tensor.dtype(), tensor.dims()).unwrap();
    }
    let mut data = writer.start("copy", Vec::new()).unwrap();
    for tensor in file.tensors() {
        for piece in tensor.weight().view().bytes.chunks(100_003) {
            data.append(tensor.name(), piece).unwrap();
        }
    }
    data.finish().unwrap()
}

#[test]
fn files_of_independent_software_are_rewritten_byte_for_byte() {
    let vocabularies = ["llama-bpe", "phi-3"].map(|name| golden(&format!("vocab/{name}.gguf")));
    let models = ["tiny-llama.gguf", "tiny-qwen3moe.gguf", "gemma-3-270m-q4_k_m.gguf"].map(model);
    for path in vocabularies.iter().chain(&models) {
        let original = std::fs::read(path).unwrap();
        let mut copy = rewritten(&File::open(path).unwrap());
        // Without tensors nobody needs the padding after the head, and some writers leave it away.
        copy.truncate(original.len().max(copy.len() - 31));
        assert!(copy == original, "{}", path.display());
    }
}

fn any_value() -> impl Strategy<Value = OwnedValue> {
    let vector = |kind: BoxedStrategy<i64>| proptest::collection::vec(kind, 0..40);
    prop_oneof![
        any::<u8>().prop_map(OwnedValue::from),
        any::<i8>().prop_map(OwnedValue::from),
        any::<u16>().prop_map(OwnedValue::from),
        any::<i16>().prop_map(OwnedValue::from),
        any::<u32>().prop_map(OwnedValue::from),
        any::<i32>().prop_map(OwnedValue::from),
        any::<u64>().prop_map(OwnedValue::from),
        any::<i64>().prop_map(OwnedValue::from),
        any::<f32>().prop_map(OwnedValue::from),
        any::<f64>().prop_map(OwnedValue::from),
        any::<bool>().prop_map(OwnedValue::from),
        ".{0,20}".prop_map(OwnedValue::from),
        proptest::collection::vec(any::<u8>(), 0..20).prop_map(|bytes| OwnedValue::text(&bytes)),
        proptest::collection::vec(".{0,9}", 0..60).prop_map(|texts| OwnedValue::from(&texts[..])),
        proptest::collection::vec(any::<f32>(), 0..40).prop_map(|numbers| OwnedValue::from(&numbers[..])),
        proptest::collection::vec(any::<u16>(), 0..40).prop_map(|numbers| OwnedValue::from(&numbers[..])),
        proptest::collection::vec(any::<bool>(), 0..40).prop_map(|facts| OwnedValue::from(&facts[..])),
        vector(any::<i64>().boxed()).prop_map(|numbers| OwnedValue::from(&numbers[..])),
    ]
}

fn any_tensor() -> impl Strategy<Value = (DType, Vec<usize>)> {
    let types: Vec<DType> = DType::all().collect();
    (proptest::sample::select(types), 0_usize..4, proptest::collection::vec(0_usize..4, 0..4)).prop_map(
        |(dtype, blocks, rest)| {
            let mut dims = vec![blocks * dtype.block_len()];
            dims.extend(rest);
            (dtype, dims)
        },
    )
}

proptest! {
    #[test]
    fn any_head_and_any_tensors_come_back_as_they_were_written(
        values in proptest::collection::vec(any_value(), 0..12),
        tensors in proptest::collection::vec(any_tensor(), 0..9),
        alignment in proptest::option::of(3_u32..13),
        piece in 1_usize..5000,
        seed in any::<u8>(),
    ) {
        let mut writer = Writer::new();
        if let Some(power) = alignment {
            writer.set("general.alignment", 1_u32 << power);
        }
        for (number, value) in values.iter().enumerate() {
            writer.set(&format!("test.key.{number}"), value.clone());
        }
        let mut contents = Vec::new();
        for (number, (dtype, dims)) in tensors.iter().enumerate() {
            let size = writer.tensor(&format!("t{number}"), *dtype, dims).unwrap();
            contents.push((0..size).map(|at| (at as u8).wrapping_mul(31) ^ seed ^ number as u8).collect::<Vec<u8>>());
        }
        let mut data = writer.start("test.gguf", Vec::new()).unwrap();
        for (number, content) in contents.iter().enumerate() {
            for bytes in content.chunks(piece) {
                data.append(&format!("t{number}"), bytes).unwrap();
            }
        }
        let file = File::from_bytes("test.gguf", data.finish().unwrap().into()).unwrap();

        prop_assert_eq!(file.alignment(), alignment.map_or(32, |power| 1 << power));
        let read: Vec<OwnedValue> = file.metadata().iter()
            .filter(|(key, _)| key.starts_with("test.")).map(|(_, value)| value.into()).collect();
        prop_assert_eq!(read, values);
        prop_assert_eq!(file.tensors().len(), tensors.len());
        for ((tensor, (dtype, dims)), content) in file.tensors().iter().zip(&tensors).zip(&contents) {
            prop_assert_eq!((tensor.dtype(), tensor.dims()), (*dtype, &dims[..]));
            prop_assert_eq!(tensor.weight().view().bytes, &content[..]);
            prop_assert!(std::ptr::eq(file.tensor(tensor.name()).unwrap(), tensor.weight()));
        }
    }

    #[test]
    fn every_string_of_an_array_is_found_by_its_number(texts in proptest::collection::vec(".{0,5}", 0..100)) {
        let mut writer = Writer::new();
        writer.set("k", &texts[..]);
        let bytes = writer.start("m", Vec::new()).unwrap().finish().unwrap();
        let file = File::from_bytes("m", bytes.into()).unwrap();
        let strings = file.metadata().required_strings("k").unwrap();
        for (number, text) in texts.iter().enumerate() {
            prop_assert_eq!(strings.get(number), Some(text.as_bytes()));
        }
        prop_assert_eq!(strings.get(texts.len()), None);
        prop_assert_eq!(strings.iter().len(), texts.len());
    }
}

#[test]
fn setting_a_key_again_keeps_its_place_and_removing_it_closes_the_gap() {
    let mut writer = Writer::new();
    writer.set("a", 1_u32).set("b", 2_u32).set("c", 3_u32).set("a", "one").remove("b");
    let file = File::from_bytes("m", writer.start("m", Vec::new()).unwrap().finish().unwrap().into()).unwrap();
    let seen: Vec<(&str, ValueType)> = file.metadata().iter().map(|(key, value)| (key, value.kind())).collect();
    assert_eq!(seen, [("a", ValueType::String), ("c", ValueType::U32)]);
    assert!(matches!(file.metadata().get("c"), Some(Value::U32(3))));
    assert!(file.metadata().get("b").is_none());
}

fn one_tensor() -> Writer {
    let mut writer = Writer::new();
    writer.tensor("empty", DType::F32, &[0, 7]).unwrap();
    writer.tensor("w", DType::F32, &[4, 2]).unwrap();
    writer
}

#[test]
fn a_finished_file_has_its_name_and_leaves_no_other() {
    let folder = folder("finished");
    let path = folder.join("m.gguf");
    std::fs::write(&path, "what was there before").unwrap();
    let mut data = one_tensor().create(&path).unwrap();
    assert_eq!(data.next_tensor(), Some(("w", 32)));
    data.append("w", &[1; 32]).unwrap();
    let size = data.finish().unwrap();
    assert_eq!(size, std::fs::metadata(&path).unwrap().len());
    assert_eq!(names_in(&folder), ["m.gguf"]);
    assert_eq!(File::open(&path).unwrap().tensor("w").unwrap().view().bytes, [1; 32]);
}

#[test]
fn a_file_given_up_leaves_what_was_there_and_nothing_else() {
    let folder = folder("given-up");
    let path = folder.join("m.gguf");
    std::fs::write(&path, "what was there before").unwrap();
    let mut data = one_tensor().create(&path).unwrap();
    data.append("w", &[1; 31]).unwrap();
    let error = data.finish().unwrap_err().to_string();
    assert!(error.ends_with("cannot write tensor 'w': 1 of 32 bytes were not given"), "{error}");
    drop(one_tensor().create(&path).unwrap());
    assert_eq!(names_in(&folder), ["m.gguf"]);
    assert_eq!(std::fs::read(&path).unwrap(), b"what was there before");
}

/// Makes a pipe with a name. Only ever in a folder of the test's own.
#[cfg(unix)]
fn make_pipe(path: &std::path::Path) {
    assert!(std::process::Command::new("mkfifo").arg(path).status().expect("there is mkfifo").success());
}

#[cfg(unix)]
#[test]
fn only_a_plain_file_is_ever_replaced() {
    use std::os::unix::fs::{FileTypeExt, symlink};
    let folder = folder("not-plain");
    let (pipe, link, path) = (folder.join("pipe"), folder.join("link"), folder.join("m.gguf"));
    make_pipe(&pipe);
    symlink("pipe", &link).unwrap();
    symlink("circle", folder.join("circle")).unwrap();
    let refused = |name: &str| one_tensor().create(&folder.join(name)).unwrap_err().to_string();
    for (name, expected) in [
        ("pipe", "pipe: cannot create it: it is not a plain file"),
        ("link", "link: cannot create it: it is not a plain file"),
        (".", "cannot create it: it is a folder"),
        ("circle", "circle: cannot create it: the link leads to no end"),
    ] {
        assert!(refused(name).ends_with(expected), "{}", refused(name));
    }
    // One that comes while the file is written.
    let mut data = one_tensor().create(&path).unwrap();
    data.append("w", &[1; 32]).unwrap();
    make_pipe(&path);
    let error = data.finish().unwrap_err().to_string();
    assert!(error.ends_with("m.gguf: cannot rename into place: it is not a plain file"), "{error}");
    for path in [&pipe, &path] {
        assert!(std::fs::symlink_metadata(path).unwrap().file_type().is_fifo());
    }
    assert_eq!(names_in(&folder).len(), 4, "{:?}", names_in(&folder));
}

#[cfg(unix)]
#[test]
fn links_stay_and_permissions_too() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let folder = folder("links");
    std::fs::create_dir(folder.join("in")).unwrap();
    symlink("in/second", folder.join("first")).unwrap();
    symlink("m.gguf", folder.join("in/second")).unwrap();
    let path = folder.join("in/m.gguf");
    let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
    let write = || {
        let mut data = one_tensor().create(&folder.join("first")).unwrap();
        data.append("w", &[1; 32]).unwrap();
        data
    };
    // A link that leads to nothing yet, and then to a file.
    write().finish().unwrap();
    for wanted in [0o600, 0o666, 0o444] {
        std::fs::set_permissions(&path, PermissionsExt::from_mode(wanted)).unwrap();
        let data = write();
        let partial = names_in(&folder.join("in")).into_iter().find(|name| name.ends_with(".partial")).unwrap();
        let meanwhile = std::fs::metadata(folder.join("in").join(partial)).unwrap().permissions().mode() & 0o777;
        data.finish().unwrap();
        assert_eq!((meanwhile, mode()), (wanted, wanted));
    }
    assert!(folder.join("first").is_symlink() && folder.join("in/second").is_symlink() && !path.is_symlink());
    assert_eq!(File::open(&path).unwrap().tensor("w").unwrap().view().bytes, [1; 32]);
    assert_eq!((names_in(&folder).len(), names_in(&folder.join("in")).len()), (2, 2));
}

#[test]
fn a_writer_refuses_what_no_reader_would_take() {
    let refused = |make: &dyn Fn(&mut Writer) -> Result<u64, farpost_models::gguf::GgufError>| {
        make(&mut one_tensor()).unwrap_err().to_string()
    };
    let cases: [(String, &str); 6] = [
        (refused(&|w| w.tensor("w", DType::F32, &[1])), "declared before"),
        (refused(&|w| w.tensor("", DType::F32, &[1])), "must not be empty"),
        (refused(&|w| w.tensor(&"x".repeat(65), DType::F32, &[1])), "a name of 65 bytes, at most 64"),
        (refused(&|w| w.tensor("x", DType::F32, &[1; 5])), "5 dimensions, at most 4"),
        (refused(&|w| w.tensor("x", DType::Q4_K, &[255])), "rows of 255 weights are not whole blocks of 256"),
        (refused(&|w| w.tensor("x", DType::F32, &[0, usize::MAX, 2])), "overflow the address range"),
    ];
    for (message, expected) in &cases {
        assert!(message.contains(expected), "{message}");
    }
    for value in [OwnedValue::from(0_u32), OwnedValue::from(4_u32), 48_u32.into(), (1_u32 << 21).into(), 32_u64.into()]
    {
        let mut writer = one_tensor();
        writer.set("general.alignment", value);
        let error = writer.start("m", Vec::new()).unwrap_err().to_string();
        assert!(error.contains("power of two from 8 to 1,048,576"), "{error}");
    }
}

#[test]
fn data_out_of_turn_or_too_long_is_refused() {
    let mut data = one_tensor().start("m", Vec::new()).unwrap();
    let error = data.append("empty", &[0]).unwrap_err().to_string();
    assert!(error.ends_with("tensor 'empty': it is the turn of tensor 'w'"), "{error}");
    let error = data.append("w", &[0; 33]).unwrap_err().to_string();
    assert!(error.ends_with("33 more bytes were given, 32 are missing"), "{error}");
    data.append("w", &[0; 32]).unwrap();
    let error = data.append("w", &[0]).unwrap_err().to_string();
    assert!(error.ends_with("all tensors are whole already"), "{error}");
}
