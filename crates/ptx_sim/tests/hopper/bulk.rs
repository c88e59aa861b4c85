//! Bulk copies of lines and boxes, both ways, and reductions (ISA "cp.async.bulk", "cp.async.bulk.tensor",
//! "cp.reduce.async.bulk").

use super::common::Kernel;
use super::{F32, SEEDS, U8, U32, map, noise, run, upload};
use ptx_sim::counters::{Class, prefetch_digest};
use ptx_sim::formats;

/// One warp; lane 0 loads `bytes` bytes into `data` with the instruction, then all store what came to `out`.
fn loaded(load: &str, bytes: u32) -> Kernel {
    Kernel::new(&format!(
        ".param .u64 in, .param .u64 out
        ---
        .shared .align 1024 .b8 data[{bytes}];
        .shared .align 8 .b64 bar;
        mov.u32 %r1, %tid.x;
        mov.u32 %r2, bar;
        mov.u32 %r3, data;
        ld.param.u64 %rd1, [in];
        setp.ne.u32 %p1, %r1, 0;
        @%p1 bra READY;
        mbarrier.init.shared::cta.b64 [%r2], 1;
        fence.mbarrier_init.release.cluster;
        mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], {bytes};
        {load}
        READY:
        bar.warp.sync -1;
        WAIT:
        mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r2], 0;
        @!%p2 bra WAIT;
        ld.param.u64 %rd2, [out];
        shl.b32 %r4, %r1, 2;
        NEXT:
        add.u32 %r5, %r3, %r4;
        ld.shared.u32 %r6, [%r5];
        cvt.u64.u32 %rd3, %r4;
        add.u64 %rd3, %rd3, %rd2;
        st.global.u32 [%rd3], %r6;
        add.u32 %r4, %r4, 128;
        setp.lt.u32 %p3, %r4, {bytes};
        @%p3 bra NEXT;
        ret;"
    ))
}

fn bytes_at(kernel: &Kernel, at: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    kernel.machine.read(at, &mut bytes).expect("in bounds");
    bytes
}

#[test]
fn lines() {
    for seed in SEEDS {
        for to in ["cluster", "cta"] {
            let load = format!(
                "createpolicy.fractional.L2::evict_first.b64 %rd9, 1.0;
                cp.async.bulk.prefetch.L2.global [%rd1+32], 512;
                cp.async.bulk.shared::{to}.global.mbarrier::complete_tx::bytes.L2::cache_hint [%r3], [%rd1+32], 512, [%r2], %rd9;"
            );
            let mut kernel = loaded(&load, 512);
            let data = noise(1024);
            let from = upload(&mut kernel, &data);
            let out = kernel.alloc(512);
            kernel.arg(from).arg(out).seed = seed;
            let counters = run(&kernel, 1, 32);
            assert_eq!(bytes_at(&kernel, out, 512), &data[32..544]);
            // What was prefetched counts by itself.
            assert_eq!(counters.global_load_bytes, 512);
            assert_eq!(counters.l2_prefetch_bytes, 512);
            assert_eq!(counters.l2_prefetch_digest, prefetch_digest(from + 32..from + 544));
            assert_eq!(counters.of(Class::AsyncCopy), 2);
        }
    }
}

/// Every lane prefetches `size` bytes, `stride` bytes apart; the policy %rd9 is what `hint` makes, if
/// anything.
pub(super) fn prefetching(stride: u64, size: u32, hint: &str) -> Kernel {
    let (modifier, operand) = if hint.is_empty() { ("", "") } else { (".L2::cache_hint", ", %rd9") };
    Kernel::new(&format!(
        ".param .u64 in
        ---
        mov.u32 %r1, %tid.x;
        ld.param.u64 %rd1, [in];
        {hint}
        mul.wide.u32 %rd3, %r1, {stride};
        add.u64 %rd1, %rd1, %rd3;
        mov.u32 %r2, {size};
        cp.async.bulk.prefetch.L2.global{modifier} [%rd1], %r2{operand};
        ret;"
    ))
}

#[test]
fn prefetches_of_lines() {
    // Memory that nobody has written: a prefetch reads nothing that the program sees.
    let hint = "createpolicy.fractional.L2::evict_last.b64 %rd9, 1.0;";
    for (stride, size, hint) in [(96, 48, ""), (1024, 1024, hint), (16, 0, "")] {
        let mut kernel = prefetching(stride, size, hint);
        let from = kernel.alloc(32 << 10);
        kernel.arg(from);
        let counters = run(&kernel, 1, 32);
        let lines = (0..32).map(|lane| from + stride * lane..from + stride * lane + u64::from(size));
        let digest = lines.map(prefetch_digest).fold(0, u64::wrapping_add);
        assert_eq!((counters.l2_prefetch_bytes, counters.l2_prefetch_digest), (32 * u64::from(size), digest));
        assert_eq!((counters.global_load_bytes, counters.global_load_sectors), (0, 0));
    }
}

#[test]
fn digests_add_up() {
    let whole = prefetch_digest(0x1000..0x2000);
    assert_eq!(whole, prefetch_digest(0x1800..0x2000).wrapping_add(prefetch_digest(0x1000..0x1800)));
    assert_ne!(whole, prefetch_digest(0x1010..0x2010));
    assert_eq!(prefetch_digest(0x1000..0x1000), 0);
}

#[test]
fn boxes_with_edges() {
    // A 40 x 20 matrix of words; the box hangs over the lower right corner, or starts before the upper left
    // one.
    for seed in SEEDS {
        for (column, row) in [(4i64, 3i64), (36, 18), (-4, -2)] {
            let load = format!(
                "prefetch.tensormap [%rd1];
                mov.u32 %r20, {column};
                mov.u32 %r21, {row};
                cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r3], [%rd1, {{%r20, %r21}}], [%r2];"
            );
            let mut kernel = loaded(&load, 8 * 4 * 4);
            let words: Vec<u32> = (0..800).collect();
            let from = kernel.upload(&words);
            let map = map(&mut kernel, U32, from, &[40, 20], &[8, 4], 0);
            let out = kernel.alloc(128);
            kernel.arg(map).arg(out).seed = seed;
            run(&kernel, 1, 32);
            let value = |i: i64| {
                let (x, y) = (column + i % 8, row + i / 8);
                if (0..40).contains(&x) && (0..20).contains(&y) { (40 * y + x) as u32 } else { 0 }
            };
            assert_eq!(kernel.words(out, 32), (0..32).map(value).collect::<Vec<_>>());
        }
    }
}

#[test]
fn swizzled_boxes_of_rank_3() {
    // 128-byte rows, 8 of them in each of 2 matrices.
    let load = "mov.u32 %r20, 1;
        cp.async.bulk.tensor.3d.shared::cta.global.mbarrier::complete_tx::bytes [%r3], [%rd1, {128, 2, %r20}], [%r2];";
    for (swizzle, chunks) in [(3u32, 7usize), (0, 0)] {
        let mut kernel = loaded(load, 2048);
        let data = noise(256 * 12 * 4);
        let from = upload(&mut kernel, &data);
        let map = map(&mut kernel, U8, from, &[256, 12, 4], &[128, 8, 2], swizzle);
        let out = kernel.alloc(2048);
        kernel.arg(map).arg(out);
        run(&kernel, 1, 32);
        let result = bytes_at(&kernel, out, 2048);
        for (i, row) in result.chunks(128).enumerate() {
            let source = &data[256 * (2 + i % 8 + 12 * (1 + i / 8)) + 128..][..128];
            for (c, chunk) in row.chunks(16).enumerate() {
                let from = 16 * (c ^ (i & chunks));
                assert_eq!(chunk, &source[from..from + 16], "row {i} chunk {c}");
            }
        }
    }
}

/// 32 threads write word `i` of `data` from `in`, and lane 0 issues `instruction` on it and waits.
fn stored(instruction: &str, wait: &str) -> Kernel {
    Kernel::new(&format!(
        ".param .u64 in, .param .u64 out
        ---
        .shared .align 128 .b8 data[128];
        mov.u32 %r1, %tid.x;
        mov.u32 %r3, data;
        ld.param.u64 %rd1, [in];
        ld.param.u64 %rd2, [out];
        mul.wide.u32 %rd3, %r1, 4;
        add.u64 %rd3, %rd3, %rd1;
        ld.global.u32 %r4, [%rd3];
        shl.b32 %r5, %r1, 2;
        add.u32 %r5, %r5, %r3;
        st.shared.u32 [%r5], %r4;
        fence.proxy.async.shared::cta;
        bar.sync 0;
        setp.ne.u32 %p1, %r1, 0;
        @%p1 bra DONE;
        {instruction}
        cp.async.bulk.commit_group;
        {wait}
        DONE:
        ret;"
    ))
}

#[test]
fn stores_of_lines_and_boxes() {
    let words: Vec<u32> = (1..33).map(|i| i * 0x0101_0101).collect();
    for seed in SEEDS {
        for wait in ["cp.async.bulk.wait_group 0;", "cp.async.bulk.wait_group.read 0;", ""] {
            let line = "cp.async.bulk.global.shared::cta.bulk_group [%rd2+16], [%r3], 128;";
            let mut kernel = stored(line, wait);
            let (from, out) = (kernel.upload(&words), kernel.alloc(160));
            kernel.arg(from).arg(out).seed = seed;
            let counters = run(&kernel, 1, 32);
            assert_eq!(kernel.words(out + 16, 32), words);
            assert_eq!(counters.global_store_bytes, 128);

            // 8 x 4 words at the lower right corner of a 16 x 8 matrix: a quarter is inside.
            let tile = "cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group [%rd2, {12, 6}], [%r3];";
            let mut kernel = stored(tile, wait);
            let (from, out) = (kernel.upload(&words), kernel.upload(&[7; 128]));
            let map = map(&mut kernel, U32, out, &[16, 8], &[8, 4], 0);
            kernel.arg(from).arg(map).seed = seed;
            run(&kernel, 1, 32);
            let value = |i: usize| match (i % 16, i / 16) {
                (x @ 12.., y @ 6..) => words[8 * (y - 6) + x - 12],
                _ => 7,
            };
            assert_eq!(kernel.words(out, 128), (0..128).map(value).collect::<Vec<_>>());
        }
    }
}

#[test]
fn reductions() {
    let f16 = |x: f32| u32::from(formats::f32_to_f16_rn(x.to_bits()));
    let bf16 = |x: f32| u32::from(formats::f32_to_bf16_rn(x.to_bits()));
    let twice = |x: u32| x | x << 16;
    let cases: [(&str, u32, u32, u32); 8] = [
        ("add.f32", 1.5f32.to_bits(), 0.25f32.to_bits(), 1.75f32.to_bits()),
        ("add.noftz.f16", twice(f16(1.5)), twice(f16(0.25)), twice(f16(1.75))),
        ("add.noftz.bf16", twice(bf16(1.5)), twice(bf16(0.25)), twice(bf16(1.75))),
        ("add.u32", 40, 2, 42),
        ("max.s32", 3, (-5i32) as u32, 3),
        ("min.s32", 3, (-5i32) as u32, (-5i32) as u32),
        ("xor.b32", 6, 3, 5),
        ("inc.u32", 6, 9, 7),
    ];
    for (name, old, new, expected) in cases {
        let line = format!("cp.reduce.async.bulk.global.shared::cta.bulk_group.{name} [%rd2], [%r3], 128;");
        let mut kernel = stored(&line, "cp.async.bulk.wait_group 0;");
        let (from, out) = (kernel.upload(&[new; 32]), kernel.upload(&[old; 32]));
        kernel.arg(from).arg(out);
        run(&kernel, 1, 32);
        assert_eq!(kernel.words(out, 32), [expected; 32], "{name}");
    }
}

#[test]
fn reductions_of_boxes_by_many_blocks() {
    for seed in SEEDS {
        let tile =
            "cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group [%rd2, {0, 0}], [%r3];";
        let mut kernel = stored(tile, "cp.async.bulk.wait_group 0;");
        let from = kernel.upload(&[1f32.to_bits(); 32]);
        let out = kernel.upload(&[0; 32]);
        let map = map(&mut kernel, F32, out, &[8, 4], &[8, 4], 0);
        kernel.arg(from).arg(map).seed = seed;
        run(&kernel, 9, 32);
        assert_eq!(kernel.words(out, 32), [9f32.to_bits(); 32]);
    }
}
