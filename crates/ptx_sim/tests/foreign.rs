//! What other compilers and libraries emit: it loads and computes, or the refusal is of the entry that uses
//! it.

#![allow(clippy::result_large_err)]

mod common;

use common::{Kernel, expect_fault};
use ptx_sim::tensor_map::{TensorMap, TiledArguments};
use ptx_sim::{FaultKind, Machine, MachineConfig};

fn machine() -> Machine {
    Machine::new(MachineConfig { workers: 1, memory_bytes: 1 << 30, ..MachineConfig::default() })
}

/// A kernel of the folder that runs to its end.
fn runs(text: &str) -> Kernel {
    let mut kernel = Kernel::from_module(text);
    let out = kernel.upload(&[0; 2]);
    kernel.arg(out);
    kernel.run(1, 1).unwrap_or_else(|fault| panic!("{fault}"));
    kernel
}

#[test]
fn every_file_loads_and_runs() {
    for text in [
        include_str!("foreign/add_rz_f64.ptx"),
        include_str!("foreign/array_element_address.ptx"),
        include_str!("foreign/envreg.ptx"),
        include_str!("foreign/reg_b32.ptx"),
        include_str!("foreign/reserved_smem.ptx"),
        include_str!("foreign/set_f16x2.ptx"),
    ] {
        runs(text);
    }
}

#[test]
fn rsqrt_f64_has_double_precision() {
    let mut kernel = Kernel::from_module(include_str!("foreign/rsqrt_f64.ptx"));
    let at = kernel.alloc(8);
    kernel.arg(at);
    for x in [2.0, 3.0, 1e-300, 1e300, 0.1, f64::MIN_POSITIVE / 1024.0, f64::INFINITY, 0.0, -0.0] {
        kernel.machine.write(at, &f64::to_le_bytes(x)).expect("in bounds");
        kernel.run(1, 1).unwrap_or_else(|fault| panic!("{fault}"));
        let mut bytes = [0; 8];
        kernel.machine.read(at, &mut bytes).expect("in bounds");
        let (got, exact) = (f64::from_le_bytes(bytes), 1.0 / x.sqrt());
        assert!(got == exact || (got / exact - 1.0).abs() <= f64::EPSILON, "{x:e}: {got:e} is not {exact:e}");
    }
}

#[test]
fn a_call_of_printf_concerns_its_entry() {
    let module =
        machine().load(include_str!("foreign/vprintf.ptx")).unwrap_or_else(|error| panic!("{error}"));
    assert!(module.refusal("other").is_none() && module.refusal("k").is_none());
    // The file prints the text at address 0.
    let kernel = Kernel::from_module(include_str!("foreign/vprintf.ptx"));
    let fault = expect_fault(kernel.run(1, 1), FaultKind::InvalidOperand);
    assert!(fault.detail.contains("vprintf"), "{fault}");
}

/// A module with an entry `good`, an entry `k` with this body, and what stands before both.
fn beside(before: &str, body: &str) -> String {
    format!(
        ".version 8.8\n.target sm_90\n.address_size 64\n{before}\n.visible .entry good() {{ ret; }}\n.visible .entry k() {{\n\
         .reg .b32 r; .reg .b64 d; .reg .f32 f; {body}\n ret; }}\n"
    )
}

#[test]
fn what_is_not_emulated_is_refused_where_it_is_used() {
    let callee = ".func callee() { .reg .b32 r; frobnicate.b32 r, r; ret; }";
    let recursive = ".func callee() { call callee; ret; }";
    for (before, body, reason) in [
        ("", "frobnicate.b32 r, r;", "unknown instruction `frobnicate`"),
        ("", "mov.u32 r, ;", "expected an operand"),
        ("", "proto: .callprototype _ (); call d, (), proto;", "indirect calls are not supported"),
        ("", "mov.u32 r, %no_such_register;", "`%no_such_register` is not declared"),
        (callee, "call callee;", "it calls `callee`, which is refused: PTX line 4: unknown instruction"),
        (recursive, "call callee;", "recursion is not supported"),
        (".extern .func malloc();", "call malloc;", "function `malloc` has no body in this module"),
        (".alias a, b;", "call a;", "function `a` has no body in this module"),
        (".extern .global .b32 x;", "ld.global.u32 r, [x];", "external variable `x` is not defined"),
        (".global .texref x;", "mov.u64 d, x;", "textures and surfaces are not supported"),
        (".global .u64 x = callee;", "ld.global.u64 d, [x];", "`callee` is not a global variable"),
    ] {
        let machine = machine();
        let module = machine.load(&beside(before, body)).unwrap_or_else(|error| panic!("{body}: {error}"));
        assert_eq!(module.refusal("good"), None, "{body}");
        let refusal = module.refusal("k").unwrap_or_else(|| panic!("{body}: not refused")).to_string();
        assert!(refusal.contains(reason), "{body}: {refusal}");
        let launch = |entry| {
            machine.launch(&ptx_sim::Launch {
                module: &module,
                entry,
                grid: [1; 3],
                block: [1; 3],
                cluster: [1; 3],
                dynamic_shared: 0,
                cooperative: false,
                params: &[],
                seed: 0,
                workers: None,
            })
        };
        launch("good").unwrap_or_else(|fault| panic!("{fault}"));
        let fault = expect_fault(launch("k"), FaultKind::InvalidLaunch);
        assert!(fault.detail.contains(reason), "{fault}");
        // Alone, it is a refusal of the module.
        let alone = beside(before, body).replace(".visible .entry good() { ret; }", "");
        let Err(error) = machine.load(&alone) else { panic!("{body}: loads alone") };
        assert!(error.to_string().contains(reason), "{error}");
    }
    // A mistake outside functions concerns all.
    assert!(machine().load(&beside("nonsense", "ret;")).is_err());
}

#[test]
fn pragmas_are_strings() {
    let load = |[module, entry, body]: [&str; 3]| {
        let head = ".version 8.4\n.target sm_90\n.address_size 64";
        let text =
            format!("{head}\n{module}\n.visible .entry k() .maxntid 32\n{entry}\n{{ {body}\n ret; }}\n");
        machine().load(&text).map(|_| ())
    };
    let everywhere = |pragma| [[pragma, "", ""], ["", pragma, ""], ["", "", pragma]].map(load);
    // As for ptxas, a string that means nothing is no mistake.
    for pragma in [".pragma \"nounroll\";", ".pragma \"nounroll\", \"other\";"] {
        let loaded = everywhere(pragma);
        assert!(loaded.iter().all(Result::is_ok), "{pragma}: {loaded:?}");
    }
    for pragma in [".pragma;", ".pragma nounroll;", ".pragma \"nounroll\",;", ".pragma \"nounroll\""] {
        let loaded = everywhere(pragma);
        assert!(loaded.iter().all(Result::is_err), "{pragma}: {loaded:?}");
    }
}

#[test]
fn elements_of_arrays_have_addresses() {
    let mut kernel = Kernel::from_module(
        ".version 7.8\n.target sm_90\n.address_size 64
        .global .align 8 .u64 table[3] = {10, 20, 30};
        .visible .entry k(.param .u64 out) {
            .reg .u64 a, b, c; .reg .u32 x, y, z;
            .shared .align 4 .u32 words[4];
            mov.u32 x, words[0];
            mov.u32 y, words[3];
            sub.u32 y, y, x;
            ld.global.u64 a, table[2];
            cvt.u32.u64 z, a;
            ld.param.u64 b, [out];
            st.global.u32 [b], y;
            st.global.u32 [b+4], z;
            ret;
        }",
    );
    let out = kernel.alloc(8);
    kernel.arg(out);
    kernel.run(1, 1).unwrap_or_else(|fault| panic!("{fault}"));
    assert_eq!(kernel.words(out, 2), [12, 30]);
}

#[test]
fn comparisons_of_pairs_give_pairs() {
    // Halves 1.0 and 2.0 (high) against 1.0 and 3.0, then bf16 likewise.
    let mut kernel = Kernel::new(
        "
        .param .u64 out
        ---
        ld.param.u64 %rd1, [out];
        mov.b32 %r1, 0x40003c00;
        mov.b32 %r2, 0x42003c00;
        set.eq.f16x2.f16x2 %r3, %r1, %r2;
        st.global.u32 [%rd1], %r3;
        set.lt.f16x2.f16x2 %r3, %r1, %r2;
        st.global.u32 [%rd1+4], %r3;
        mov.b32 %r1, 0x40003f80;
        mov.b32 %r2, 0x40403f80;
        set.ge.bf16x2.bf16x2 %r3, %r1, %r2;
        st.global.u32 [%rd1+8], %r3;
        set.ne.bf16x2.bf16x2 %r1, %r1, %r2;
        st.global.u32 [%rd1+12], %r1;
        ret;",
    );
    let out = kernel.alloc(16);
    kernel.arg(out);
    kernel.run(1, 1).unwrap_or_else(|fault| panic!("{fault}"));
    assert_eq!(kernel.words(out, 4), [0x0000_3c00, 0x3c00_0000, 0x0000_3f80, 0x3f80_0000]);
}

#[test]
fn reserved_shared_memory_is_lent_to_who_asks() {
    let text = |at: &str| {
        format!(
            "
            .param .u64 out
            ---
            ld.param.u64 %rd1, [out];
            {at}
            st.shared.u32 [%r1], 77;
            ld.shared.u32 %r2, [%r1];
            st.global.u32 [%rd1], %r2;
            mov.u32 %r3, %reserved_smem_offset_end;
            st.global.u32 [%rd1+4], %r3;
            ret;"
        )
    };
    let mut kernel = Kernel::new(&text("mov.u32 %r1, %reserved_smem_offset_1;"));
    let out = kernel.alloc(8);
    kernel.arg(out);
    kernel.run(1, 1).unwrap_or_else(|fault| panic!("{fault}"));
    assert_eq!(kernel.words(out, 2), [77, 1024]);
    let mut kernel = Kernel::new(&text("mov.u32 %r1, 512;"));
    let out = kernel.alloc(8);
    kernel.arg(out);
    expect_fault(kernel.run(1, 1), FaultKind::OutOfBounds);
}

#[test]
fn an_assertion_tells_its_text() {
    let mut kernel = Kernel::from_module(
        ".version 8.8\n.target sm_90\n.address_size 64
        .extern .func __assertfail(.param .b64 a, .param .b64 b, .param .b32 c, .param .b64 d, .param .b64 e);
        .global .align 1 .b8 text[6] = {120, 32, 62, 32, 48, 0};
        .global .align 1 .b8 file[5] = {97, 46, 99, 117, 0};
        .visible .entry k() {
            .reg .b64 t, f;
            mov.u64 t, text;
            mov.u64 f, file;
            { .param .b64 a; .param .b64 b; .param .b32 c; .param .b64 d; .param .b64 e;
              st.param.b64 [a], t; st.param.b64 [b], f; st.param.b32 [c], 12; st.param.b64 [d], f; st.param.b64 [e], 1;
              call.uni __assertfail, (a, b, c, d, e); }
            ret;
        }",
    );
    kernel.seed = 1;
    let fault = expect_fault(kernel.run(1, 32), FaultKind::Assertion);
    assert_eq!(fault.detail, "a.cu:12: a.cu: assertion `x > 0` failed");
}

#[test]
fn printf_returns_how_much_it_printed() {
    // Text on the stack, as a compiler leaves the arguments: an int, and a double at the next multiple of 8.
    let mut kernel = Kernel::from_module(
        ".version 8.8\n.target sm_90\n.address_size 64
        .extern .func (.param .b32 r) vprintf(.param .b64 a, .param .b64 b);
        .global .align 1 .b8 format[10] = {37, 100, 32, 37, 46, 49, 102, 10, 0, 0};
        .visible .entry k(.param .u64 out) {
            .reg .b64 t, v, o; .reg .b32 n;
            .local .align 8 .b8 values[16];
            mov.u64 t, format;
            mov.u64 v, values;
            cvta.local.u64 v, v;
            st.u32 [v], 7;
            st.f64 [v+8], 0d3ff8000000000000;
            { .param .b64 a; .param .b64 b; .param .b32 r;
              st.param.b64 [a], t; st.param.b64 [b], v;
              call.uni (r), vprintf, (a, b);
              ld.param.b32 n, [r]; }
            ld.param.u64 o, [out];
            st.global.u32 [o], n;
            ret;
        }",
    );
    let out = kernel.alloc(4);
    kernel.arg(out);
    kernel.run(1, 1).unwrap_or_else(|fault| panic!("{fault}"));
    assert_eq!(kernel.words(out, 1), [2]);
}

/// What ThunderKittens (a stride below the extent inside) and CUTLASS (a stride of 0, for a batch of one)
/// encode, and NVIDIA's driver takes.
#[test]
fn tensor_maps_whose_lines_share_bytes() {
    let cases: [(&[u64], &[u64], &[u32]); 4] = [
        (&[128, 256, 2, 1, 1], &[256, 128, 65536, 65536], &[128, 64, 1, 1, 1]),
        (&[128, 256, 2], &[256, 128], &[128, 64, 1]),
        (&[128, 256, 1], &[256, 256], &[128, 64, 1]),
        (&[256, 256, 1], &[256, 0], &[128, 64, 1]),
    ];
    for (dims, strides, box_dims) in cases {
        let map = TensorMap::tiled(&TiledArguments {
            data_type: 0,
            address: 0x1000,
            dims,
            strides,
            box_dims,
            element_strides: &[1; 5],
            interleave: 0,
            swizzle: 3,
            l2_promotion: 0,
            oob_fill: 0,
        });
        let map = map.unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(TensorMap::decode(&map.encode()), Ok(map.clone()));
        let mut first = Vec::new();
        let mut at = vec![0; dims.len()];
        // The second index of the last dimension that has one.
        at[2] = dims[2] as i32 - 1;
        map.visit_box::<ptx_sim::tensor_map::TensorMapError>(&at, 0, |chunk| {
            first.push(chunk.global);
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(first[0], 0x1000 + (dims[2] - 1) * strides[1]);
        assert_eq!(first[8], first[0] + strides[0], "the next line");
    }
}
