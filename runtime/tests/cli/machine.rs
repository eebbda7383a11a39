//! `farpost doctor`: everything it promises is there, with figures that can be true.

use crate::program::{command, farpost, finish};

#[test]
fn doctor_reports_processor_memory_devices_and_models() {
    let report = farpost(&["doctor", "--json"]).json();
    let (processor, memory) = (&report["processor"], &report["memory"]);
    assert!(processor["cores_usable"].as_u64() >= Some(1));
    let sets = processor["kernels_available"].as_array().unwrap();
    assert!(sets.contains(&"scalar".into()) && sets.contains(&processor["kernels"]), "{processor}");
    assert!(memory["available_bytes"].as_u64() <= memory["total_bytes"].as_u64());
    // From a slow board to a large server; a figure outside is a broken measurement.
    let rate = memory["read_bytes_per_second"].as_f64().unwrap();
    assert!((1e8..1e13).contains(&rate), "{rate}");
    assert!(memory["load_average"].as_f64() >= Some(0.0), "{memory}");
    assert!(memory["read_buffer_bytes"].as_u64() >= Some(256 << 20));
    let backends = report["backends"].as_array().unwrap();
    let state = |name: &str| backends.iter().find(|backend| backend["name"] == name).unwrap();
    assert_eq!(state("cpu")["usable"], true);
    let not_built = [("wgpu", cfg!(feature = "wgpu")), ("cuda", cfg!(feature = "cuda"))];
    for (name, _) in not_built.into_iter().filter(|(_, is_built)| !is_built) {
        assert_eq!(
            (&state(name)["usable"], &state(name)["detail"]),
            (&false.into(), &"not built into this program".into())
        );
    }
    assert_eq!(report["models"]["built_in"]["name"], "pocket");
    assert_eq!(report["models"]["folder"], "/nonexistent/.local/share/farpost/models");
}

#[test]
fn doctor_for_people_says_the_same_on_one_screen() {
    let report = farpost(&["doctor"]);
    let text = report.done();
    assert!(text.lines().count() <= 40, "{text}");
    let is_built = cfg!(all(feature = "cuda", feature = "wgpu"));
    let devices = if is_built { "self-test passed in " } else { "not built into this program" };
    for part in ["Processor", "Memory", "Devices", "Models", " GB/s with ", devices, "pocket, "] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
}

#[test]
fn a_forced_instruction_set_shows() {
    let ran = finish(command(&["doctor", "--quick", "--json"]).env("FARPOST_CPU", "scalar"), b"");
    let report = ran.json();
    assert_eq!(report["processor"]["kernels"], "scalar");
    assert_eq!(report["processor"]["kernels_forced"], "scalar");
    assert!(report["memory"]["read_bytes_per_second"].is_null());
}
