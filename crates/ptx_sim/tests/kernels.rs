//! Small kernels, right ones and wrong ones, as PTX text.

#![allow(clippy::result_large_err)]

mod common;

use common::{Kernel, expect_fault};
use ptx_sim::FaultKind;

#[test]
fn every_thread_writes_its_index() {
    let mut kernel = Kernel::new(
        "
        .param .u64 out
        ---
        mov.u32 %r1, %ctaid.x;
        mov.u32 %r2, %ntid.x;
        mov.u32 %r3, %tid.x;
        mad.lo.u32 %r4, %r1, %r2, %r3;
        ld.param.u64 %rd1, [out];
        mul.wide.u32 %rd2, %r4, 4;
        add.s64 %rd1, %rd1, %rd2;
        st.global.u32 [%rd1], %r4;
        ret;",
    );
    let out = kernel.alloc(4 * 1000);
    kernel.arg(out);
    kernel.run(10, 100).expect("no fault");
    let words = kernel.words(out, 1000);
    assert!(words.iter().enumerate().all(|(i, w)| *w == i as u32));
}

#[test]
fn out_of_bounds_is_caught() {
    let mut kernel = Kernel::new(
        "
        .param .u64 out
        ---
        mov.u32 %r3, %tid.x;
        ld.param.u64 %rd1, [out];
        mul.wide.u32 %rd2, %r3, 4;
        add.s64 %rd1, %rd1, %rd2;
        st.global.u32 [%rd1], %r3;
        ret;",
    );
    let out = kernel.alloc(4 * 99);
    kernel.arg(out);
    let fault = expect_fault(kernel.run(1, 100), FaultKind::OutOfBounds);
    assert_eq!(fault.thread, Some([99, 0, 0]), "{fault}");
    assert!(fault.place.ptx_text.starts_with("st.global"), "{fault}");
}
