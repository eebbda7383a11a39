//! The CUDA backend against the plain definitions, its kernels run by the processor: see `tests/emulator`.

use farpost_kernels::backend::{Activations, KvType};
use farpost_kernels::cuda::Cuda;
use farpost_kernels::reference::Reference;
use farpost_kernels::tensor::DType;

use crate::drive::{error, limits, results};
use crate::emulator;
use crate::models::{FAMILIES, Shape, model, shape};

/// Sums in another order and functions of the device: of squared errors over squares.
const EXACT: f64 = 1e-9;

fn check(device: &Cuda, shape: Shape, kv_type: KvType, bound: f64) {
    let (graph, limits) = (model(shape, 5), limits(kv_type, 1, Activations::Auto));
    let expected = results(&Reference, &graph, &limits);
    let found = results(device, &graph, &limits);
    let error = error(&expected, &found);
    println!("{shape:?} {kv_type:?}: error {error:.1e}");
    assert!(error <= bound, "{shape:?} {kv_type:?}: error {error:.2e}, bound {bound:e}");
}

#[test]
fn every_family_computes_what_its_ops_say_on_cuda() {
    let Some(device) = emulator::open(90) else { return };
    for family in FAMILIES {
        check(&device, shape(DType::F32, family), KvType::F32, EXACT);
        let odd = Shape { width: 75, n_heads: 3, n_kv_heads: 3, head_dim: 20, ff: 37, ..shape(DType::F32, family) };
        check(&device, odd, KvType::F32, EXACT);
    }
}
