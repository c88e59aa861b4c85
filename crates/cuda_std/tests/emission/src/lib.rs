//! One small kernel for each item of `cuda_std`, with the instructions it must become.
//!
//! `emit!` makes a kernel named after the item and records the expected instructions in the PTX as a comment
//! (`//#emits name: instruction, instruction`); `cuda_builder`'s test `cuda_std_emission` compiles this crate
//! for every GPU family and looks for them in the kernel's body. Inputs come from memory, so that nothing
//! folds away, and the result goes to memory, so that nothing is dropped. The kernels are never launched.

#![no_std]
#![feature(abi_ptx, asm_experimental_arch)]
#![deny(unsafe_op_in_unsafe_fn, clippy::undocumented_unsafe_blocks)]

use cuda_std::atomic::{self, Order, Scope};
use cuda_std::bf16::{self, Bf16, F16};
use cuda_std::shared::{self, Shared};
use cuda_std::{
    cp_async, fp8, grid, kernel, l2, ldmatrix, math, memory, mma, shared_array, sync, thread, warp,
};

/// A kernel `$name` that computes a `u32` from the words at `$input` and stores it, and what its PTX must
/// hold.
macro_rules! emit {
    ($($name:ident, $instructions:literal, |$input:ident| $body:expr;)+) => {$(
        core::arch::global_asm!(concat!("//#emits ", stringify!($name), ": ", $instructions));

        /// Computes the value of one expression.
        ///
        /// # Safety
        /// Both pointers are to global memory of at least a few words.
        #[kernel(threads = 128)]
        pub unsafe fn $name(input: *mut u32, output: *mut u32) {
            let $input = input;
            // SAFETY: the caller's contract covers the words that the expressions touch.
            unsafe { *output = { $body } as u32 };
        }
    )+};
}

// thread
emit! {
    thread_idx_x, "mov.u32, %tid.x", |_input| thread::thread_idx_x();
    thread_idx_y, "%tid.y", |_input| thread::thread_idx_y();
    block_idx_x, "%ctaid.x", |_input| thread::block_idx_x();
    block_idx_y, "%ctaid.y", |_input| thread::block_idx_y();
    block_idx_z, "%ctaid.z", |_input| thread::block_idx_z();
    block_dim_x, "%ntid.x", |_input| thread::block_dim_x();
    grid_dim_x, "%nctaid.x", |_input| thread::grid_dim_x();
    grid_dim_y, "%nctaid.y", |_input| thread::grid_dim_y();
    index_1d, "%ctaid.x, %ntid.x, %tid.x", |_input| thread::index_1d();
    lane_id, "%laneid", |_input| thread::lane_id();
    warp_id, "%tid.x, shr.u32", |_input| thread::warp_id();
}

// sync
emit! {
    sync_block, "bar.sync 0", |_input| { sync::block(); 0 };
    sync_named, "bar.sync 3 64", |_input| { sync::named(3, 64); 0 };
    sync_named_arrive, "bar.arrive 3 64", |_input| { sync::named_arrive(3, 64); 0 };
    sync_block_count, "bar.red.popc.u32", |input| sync::block_count(*input > 3);
    sync_block_any, "bar.red.or.pred", |input| sync::block_any(*input > 3);
    sync_block_all, "bar.red.and.pred", |input| sync::block_all(*input > 3);
    sync_warp, "bar.warp.sync", |input| { sync::warp(*input); 0 };
}

// warp
emit! {
    warp_shfl_xor, "shfl.sync.bfly.b32", |input| warp::shfl_xor(warp::FULL_MASK, *input, 4);
    warp_shfl_xor_f32, "shfl.sync.bfly.b32", |input| warp::shfl_xor(warp::FULL_MASK, *input as f32, 4).to_bits();
    warp_shfl_up, "shfl.sync.up.b32", |input| warp::shfl_up(warp::FULL_MASK, *input, 4);
    warp_shfl_down, "shfl.sync.down.b32", |input| warp::shfl_down(warp::FULL_MASK, *input, 4);
    warp_shfl_idx, "shfl.sync.idx.b32", |input| warp::shfl_idx(warp::FULL_MASK, *input, 4);
    warp_ballot, "vote.sync.ballot.b32", |input| warp::ballot(warp::FULL_MASK, *input > 3);
    warp_any, "vote.sync.any.pred", |input| warp::any(warp::FULL_MASK, *input > 3);
    warp_all, "vote.sync.all.pred", |input| warp::all(warp::FULL_MASK, *input > 3);
    warp_match_any, "match.any.sync.b32", |input| warp::match_any(warp::FULL_MASK, *input);
    warp_match_any_u64, "match.any.sync.b64", |input| warp::match_any_u64(warp::FULL_MASK, *input.cast::<u64>());
    warp_active_mask, "activemask.b32", |_input| warp::active_mask();
    warp_reduce_add_u32, "redux.sync.add.s32", |input| warp::reduce_add_u32(warp::FULL_MASK, *input);
    warp_reduce_min_u32, "redux.sync.min.u32", |input| warp::reduce_min_u32(warp::FULL_MASK, *input);
    warp_reduce_max_u32, "redux.sync.max.u32", |input| warp::reduce_max_u32(warp::FULL_MASK, *input);
    warp_reduce_min_i32, "redux.sync.min.s32", |input| warp::reduce_min_i32(warp::FULL_MASK, *input as i32);
    warp_reduce_max_i32, "redux.sync.max.s32", |input| warp::reduce_max_i32(warp::FULL_MASK, *input as i32);
    warp_reduce_or, "redux.sync.or.b32", |input| warp::reduce_or(warp::FULL_MASK, *input);
    warp_reduce_and, "redux.sync.and.b32", |input| warp::reduce_and(warp::FULL_MASK, *input);
    warp_reduce_add_f32, "shfl.sync.bfly.b32, add.rn.f32", |input| warp::reduce_add_f32(*input as f32).to_bits();
    warp_reduce_max_f32, "shfl.sync.bfly.b32, max.f32", |input| warp::reduce_max_f32(*input as f32).to_bits();
    warp_reduce_min_f32, "shfl.sync.bfly.b32, min.f32", |input| warp::reduce_min_f32(*input as f32).to_bits();
    warp_inclusive_scan_add, "shfl.sync.up.b32", |input| warp::inclusive_scan_add(*input);
}

// memory
emit! {
    memory_load_u32, "ld.global.b32", |input| memory::load(input);
    memory_load_v4, "ld.global.v4.b32", |input| {
        let [a, b, c, d] = memory::load(input.cast::<[u32; 4]>());
        a ^ b ^ c ^ d
    };
    memory_load_nc_u8, "ld.global.nc.u8", |input| memory::load_nc(input.cast::<u8>());
    memory_load_nc_v2, "ld.global.nc.v2.b32", |input| {
        let [a, b] = memory::load_nc(input.cast::<[u32; 2]>());
        a ^ b
    };
    memory_load_nc_streaming_v4, "ld.global.nc.L1::no_allocate.v4.b32", |input| {
        let [a, b, c, d] = memory::load_nc_streaming(input.cast::<[u32; 4]>());
        a ^ b ^ c ^ d
    };
    memory_load_nc_hinted_v4, "createpolicy.fractional.L2::evict_first.b64 1.0, \
        ld.global.nc.L2::cache_hint.v4.b32", |input| {
        let [a, b, c, d] = memory::load_nc_hinted(input.cast::<[u32; 4]>(), l2::Policy::evict_first());
        a ^ b ^ c ^ d
    };
    l2_evict_last, "createpolicy.fractional.L2::evict_last.L2::evict_unchanged.b64", |input| {
        memory::load_nc_hinted(input, l2::Policy::evict_last())
    };
    memory_load_strong_v4, "ld.relaxed.gpu.global.v4.b32", |input| {
        let [a, b, c, d] = memory::load_strong(input.cast::<[u32; 4]>());
        a ^ b ^ c ^ d
    };
    memory_store_v4, "st.global.v4.b32", |input| { memory::store(input.cast(), [1u32, 2, 3, 4]); 0 };
    memory_store_v2_f32, "st.global.v2.b32", |input| { memory::store(input.cast(), [1f32, 2.0]); 0 };
    memory_store_streaming_u16, "st.global.cs.u16", |input| { memory::store_streaming(input.cast(), 7u16); 0 };
    memory_prefetch_l2, "prefetch.global.L2", |input| { memory::prefetch_l2(input); 0 };
    memory_discard_line, "discard.global.L2 128", |input| { memory::discard_line(input.cast()); 0 };
    memory_fence_block, "fence.acq_rel.cta", |_input| { memory::fence_block(); 0 };
    memory_fence_gpu, "fence.acq_rel.gpu", |_input| { memory::fence_gpu(); 0 };
    memory_fence_system, "fence.acq_rel.sys", |_input| { memory::fence_system(); 0 };
}

// shared
emit! {
    shared_static, "shared_static_tile, st.shared.b32, ld.shared.b32", |input| {
        let tile = shared_array!(shared_static.tile: [u32; 128], align = 128);
        let lane = thread::thread_idx_x();
        tile.add(lane).write(*input);
        sync::block();
        tile.add(lane ^ 1).read()
    };
    shared_dynamic, "dynamic_shared, st.shared.u8, ld.shared.u8", |input| {
        let bytes: Shared<u8> = shared::dynamic();
        let lane = thread::thread_idx_x();
        bytes.add(lane).write(*input as u8);
        sync::block();
        bytes.add(lane ^ 1).read()
    };
    shared_vectors, "st.shared.v4.b32, ld.shared.v4.b32", |input| {
        let tile: Shared<[f32; 4]> = shared::dynamic();
        let lane = thread::thread_idx_x();
        tile.add(lane).write([*input as f32; 4]);
        sync::block();
        let [a, b, c, d] = tile.add(lane ^ 1).read();
        a + b + c + d
    };
    shared_generic, "cvta.shared.u64", |input| *shared::dynamic::<u32>().add(*input).as_ptr();
}

// atomic
emit! {
    atomic_add_u32, "atom.relaxed.gpu.global.add.u32", |input| atomic::add(input, 2, Order::Relaxed, Scope::Gpu);
    atomic_add_i32, "atom.acq_rel.gpu.global.add.s32", |input| {
        atomic::add(input.cast::<i32>(), -2, Order::AcqRel, Scope::Gpu)
    };
    atomic_add_u64, "atom.release.gpu.global.add.u64", |input| {
        atomic::add(input.cast::<u64>(), 2, Order::Release, Scope::Gpu)
    };
    atomic_add_f32, "atom.relaxed.cta.global.add.f32", |input| {
        atomic::add(input.cast::<f32>(), 2.0, Order::Relaxed, Scope::Block)
    };
    atomic_reduce_add, "red.relaxed.gpu.global.add.f32", |input| {
        atomic::reduce_add(input.cast::<f32>(), 2.0, Scope::Gpu);
        0
    };
    atomic_add_shared, "atom.relaxed.cta.shared.add.u32", |input| {
        atomic::add(shared::dynamic::<u32>(), *input, Order::Relaxed, Scope::Block)
    };
    atomic_min_u32, "atom.acquire.gpu.global.min.u32", |input| atomic::min(input, 2, Order::Acquire, Scope::Gpu);
    atomic_max_i32, "atom.relaxed.gpu.global.max.s32", |input| {
        atomic::max(input.cast::<i32>(), 2, Order::Relaxed, Scope::Gpu)
    };
    atomic_or, "atom.relaxed.gpu.global.or.b32", |input| atomic::or(input, 2, Order::Relaxed, Scope::Gpu);
    atomic_and, "atom.relaxed.gpu.global.and.b32", |input| atomic::and(input, 2, Order::Relaxed, Scope::Gpu);
    atomic_exchange, "atom.relaxed.gpu.global.exch.b32", |input| {
        atomic::exchange(input, 2, Order::Relaxed, Scope::Gpu)
    };
    atomic_compare_exchange, "atom.acquire.gpu.global.cas.b32", |input| {
        atomic::compare_exchange(input, 2, 3, Order::Acquire, Scope::Gpu)
    };
    atomic_load, "ld.acquire.gpu.global.b32", |input| atomic::load(input, Order::Acquire, Scope::Gpu);
    atomic_load_shared, "ld.relaxed.cta.shared.b32", |_input| {
        atomic::load(shared::dynamic::<u32>(), Order::Relaxed, Scope::Block)
    };
    atomic_store, "st.release.gpu.global.b32", |input| { atomic::store(input, 3, Order::Release, Scope::Gpu); 0 };
}

// cp_async, ldmatrix, mma
emit! {
    cp_async_copy16, "cp.async.cg.shared.global.L2::128B", |input| {
        cp_async::copy16(shared::dynamic::<u8>().address(), input.cast());
        0
    };
    cp_async_copy16_zfill, "cp.async.cg.shared.global.L2::128B", |input| {
        cp_async::copy16_zfill(shared::dynamic::<u8>().address(), input.cast(), *input > 3);
        0
    };
    cp_async_copy4_zfill, "cp.async.ca.shared.global", |input| {
        cp_async::copy4_zfill(shared::dynamic::<u8>().address(), input.cast(), *input > 3);
        0
    };
    cp_async_commit, "cp.async.commit_group", |_input| { cp_async::commit(); 0 };
    cp_async_wait, "cp.async.wait_group 2", |_input| { cp_async::wait::<2>(); 0 };
    cp_async_wait_all, "cp.async.wait_all", |_input| { cp_async::wait_all(); 0 };
    ldmatrix_x2, "ldmatrix.sync.aligned.m8n8.x2.shared.b16", |_input| {
        let [a, b] = ldmatrix::x2(shared::dynamic::<u8>().address());
        a ^ b
    };
    ldmatrix_x4, "ldmatrix.sync.aligned.m8n8.x4.shared.b16", |_input| {
        let [a, b, c, d] = ldmatrix::x4(shared::dynamic::<u8>().address());
        a ^ b ^ c ^ d
    };
    mma_m16n8k32_e4m3, "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32", |input| {
        let mut accumulator = [0.0; 4];
        mma::m16n8k32_e4m3(&mut accumulator, [*input; 4], [*input; 2]);
        accumulator[0] + accumulator[1] + accumulator[2] + accumulator[3]
    };
    mma_m16n8k16_bf16, "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32", |input| {
        let mut accumulator = [0.0; 4];
        mma::m16n8k16_bf16(&mut accumulator, [*input; 4], [*input; 2]);
        accumulator[0] + accumulator[1] + accumulator[2] + accumulator[3]
    };
    mma_m16n8k16_f16, "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32", |input| {
        let mut accumulator = [0.0; 4];
        mma::m16n8k16_f16(&mut accumulator, [*input; 4], [*input; 2]);
        accumulator[0] + accumulator[1] + accumulator[2] + accumulator[3]
    };
}

// fp8, bf16, math
emit! {
    fp8_e4m3x2_from_f32, "cvt.rn.satfinite.e4m3x2.f32", |input| fp8::e4m3x2_from_f32(*input as f32, 1.0);
    fp8_e5m2x2_from_f32, "cvt.rn.satfinite.e5m2x2.f32", |input| fp8::e5m2x2_from_f32(*input as f32, 1.0);
    fp8_e4m3_from_f32, "cvt.rn.satfinite.e4m3x2.f32", |input| fp8::e4m3_from_f32(*input as f32);
    fp8_e4m3x4_from_f32, "cvt.rn.satfinite.e4m3x2.f32", |input| fp8::e4m3x4_from_f32([*input as f32; 4]);
    fp8_f16x2_from_e4m3x2, "cvt.rn.f16x2.e4m3x2", |input| fp8::f16x2_from_e4m3x2(*input as u16);
    fp8_f16x2_from_e5m2x2, "cvt.rn.f16x2.e5m2x2", |input| fp8::f16x2_from_e5m2x2(*input as u16);
    bf16_from_f32, "cvt.rn.bf16x2.f32", |input| Bf16::from_f32(*input as f32).0;
    bf16_to_f32, "shl.b32", |input| Bf16(*input as u16).to_f32().to_bits();
    f16_from_f32, "cvt.rn.f16x2.f32", |input| F16::from_f32(*input as f32).0;
    f16_to_f32, "cvt.f32.f16", |input| F16(*input as u16).to_f32().to_bits();
    bf16_bf16x2_from_f32, "cvt.rn.bf16x2.f32", |input| bf16::bf16x2_from_f32(*input as f32, 1.0);
    bf16_f16x2_from_f32, "cvt.rn.f16x2.f32", |input| bf16::f16x2_from_f32(*input as f32, 1.0);
    math_fma, "fma.rn.f32", |input| math::fma(*input as f32, 3.0, 1.0).to_bits();
    math_ex2, "ex2.approx.ftz.f32", |input| math::ex2(*input as f32).to_bits();
    math_rcp, "rcp.approx.ftz.f32", |input| math::rcp(*input as f32).to_bits();
}

// grid: nothing on older targets
#[cfg(target_feature = "sm_90")]
emit! {
    grid_wait, "griddepcontrol.wait", |_input| { grid::wait(); 0 };
    grid_launch_dependents, "griddepcontrol.launch_dependents", |_input| { grid::launch_dependents(); 0 };
}

#[cfg(not(target_feature = "sm_90"))]
emit! {
    grid_wait, "ret", |_input| { grid::wait(); 0 };
    grid_launch_dependents, "ret", |_input| { grid::launch_dependents(); 0 };
}

// mbarrier, tma, wgmma: Hopper alone
#[cfg(target_feature = "sm_90a")]
mod hopper {
    use cuda_std::atomic::{self, Scope};
    use cuda_std::bf16::{Bf16, F16};
    use cuda_std::l2::Policy;
    use cuda_std::{bulk, cluster, kernel, mbarrier, tma, unroll, wgmma};

    emit! {
        mbarrier_init, "mbarrier.init.shared::cta.b64", |input| { mbarrier::init(*input, 3); 0 };
        mbarrier_fence_init, "fence.mbarrier_init.release.cluster, fence.proxy.async.shared::cta", |_input| {
            mbarrier::fence_init();
            0
        };
        mbarrier_arrive, "mbarrier.arrive.shared::cta.b64", |input| { mbarrier::arrive(*input); 0 };
        mbarrier_arrive_expect_tx, "mbarrier.arrive.expect_tx.shared::cta.b64", |input| {
            mbarrier::arrive_expect_tx(*input, 4096);
            0
        };
        mbarrier_arrive_at, "mapa.shared::cluster.u32, mbarrier.arrive.shared::cluster.b64", |input| {
            mbarrier::arrive_at(*input, 1);
            0
        };
        mbarrier_arrive_mapped, "mapa.shared::cluster.u32, mbarrier.arrive.shared::cluster.b64", |input| {
            mbarrier::arrive_mapped(cluster::map(*input, 1));
            0
        };
        mbarrier_arrive_after_copies, "cp.async.mbarrier.arrive.noinc.shared::cta.b64", |input| {
            mbarrier::arrive_after_copies(*input);
            0
        };
        mbarrier_hold_for_copies, "cp.async.mbarrier.arrive.shared::cta.b64", |input| {
            mbarrier::hold_for_copies(*input);
            0
        };
        mbarrier_wait, "mbarrier.try_wait.parity.shared::cta.b64", |input| { mbarrier::wait(*input, 1); 0 };
        atomic_reduce_add_two, "red.relaxed.gpu.global.add.v2.f32", |input| {
            atomic::reduce_add(input.cast::<[f32; 2]>(), [2.0, 3.0], Scope::Gpu);
            0
        };
        atomic_reduce_add_four, "red.relaxed.cta.global.add.v4.f32", |input| {
            atomic::reduce_add(input.cast::<[f32; 4]>(), [2.0, 3.0, 4.0, 5.0], Scope::Block);
            0
        };
        cluster_rank, "mov.u32, %cluster_ctarank", |_input| cluster::rank();
        cluster_sync, "barrier.cluster.arrive.aligned, barrier.cluster.wait.aligned", |_input| { cluster::sync(); 0 };
        bulk_fence_shared, "fence.proxy.async.shared::cta", |_input| { bulk::fence_shared(); 0 };
        bulk_load, "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes", |input| {
            bulk::load(*input, input.cast(), 512, *input.add(1));
            0
        };
        bulk_load_hinted, "createpolicy.fractional.L2::evict_first.b64 1.0, \
            cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint", |input| {
            bulk::load_hinted(*input, input.cast(), 512, *input.add(1), Policy::evict_first());
            0
        };
        bulk_prefetch_l2, "cp.async.bulk.prefetch.L2.global", |input| { bulk::prefetch_l2(input.cast(), *input); 0 };
        bulk_store, "cp.async.bulk.global.shared::cta.bulk_group, cp.async.bulk.commit_group, \
            cp.async.bulk.wait_group.read 1, cp.async.bulk.wait_group 0", |input| {
            bulk::store(input.cast(), *input, 512);
            bulk::commit();
            bulk::wait_read::<1>();
            bulk::wait::<0>();
            0
        };
        bulk_reduce_add, "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.u32, \
            cp.reduce.async.bulk.global.shared::cta.bulk_group.add.s32, \
            cp.reduce.async.bulk.global.shared::cta.bulk_group.add.u64, \
            cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32, \
            cp.reduce.async.bulk.global.shared::cta.bulk_group.add.noftz.f16, \
            cp.reduce.async.bulk.global.shared::cta.bulk_group.add.noftz.bf16", |input| {
            bulk::reduce_add(input, *input, 512);
            bulk::reduce_add(input.cast::<i32>(), *input, 512);
            bulk::reduce_add(input.cast::<u64>(), *input, 512);
            bulk::reduce_add(input.cast::<f32>(), *input, 512);
            bulk::reduce_add(input.cast::<F16>(), *input, 512);
            bulk::reduce_add(input.cast::<Bf16>(), *input, 512);
            0
        };
        tma_prefetch_map, "prefetch.tensormap", |input| { tma::prefetch_map(input.cast()); 0 };
        tma_load_2d, "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes", |input| {
            tma::load_2d(*input, input.cast(), *input.add(1), [1, 2]);
            0
        };
        tma_load_3d, "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes", |input| {
            tma::load_3d(*input, input.cast(), *input.add(1), [1, 2, 3]);
            0
        };
        tma_load_2d_multicast, "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster", |input| {
            tma::load_2d_multicast(*input, input.cast(), *input.add(1), [1, 2], 3);
            0
        };
        tma_load_2d_hinted, "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint", |input| {
            tma::load_2d_hinted(*input, input.cast(), *input.add(1), [1, 2], Policy::evict_last());
            0
        };
        tma_load_2d_multicast_hinted, "cp.async.bulk.tensor.2d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint", |input| {
            tma::load_2d_multicast_hinted(*input, input.cast(), *input.add(1), [1, 2], 3, Policy::evict_last());
            0
        };
        tma_load_3d_hinted, "cp.async.bulk.tensor.3d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.L2::cache_hint", |input| {
            tma::load_3d_hinted(*input, input.cast(), *input.add(1), [1, 2, 3], Policy::evict_last());
            0
        };
        tma_store_2d, "cp.async.bulk.tensor.2d.global.shared::cta.tile.bulk_group", |input| {
            tma::store_2d(input.cast(), [1, 2], *input);
            0
        };
        tma_store_3d, "cp.async.bulk.tensor.3d.global.shared::cta.tile.bulk_group", |input| {
            tma::store_3d(input.cast(), [1, 2, 3], *input);
            0
        };
        tma_reduce_add_2d, "cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.tile.bulk_group", |input| {
            tma::reduce_add_2d(input.cast(), [1, 2], *input);
            0
        };
        wgmma_m64n8, "wgmma.fence.sync.aligned, wgmma.mma_async.sync.aligned.m64n8k32.f32.e4m3.e4m3, \
            wgmma.commit_group.sync.aligned, wgmma.wait_group.sync.aligned 0", |input| {
            let mut acc = [0.0f32; 4];
            let (a, b) = (wgmma::descriptor(*input), wgmma::descriptor(*input.add(1)));
            wgmma::fence();
            wgmma::wgmma_e4m3!(8, acc, a, b, *input > 3);
            wgmma::commit();
            wgmma::wait::<0>();
            wgmma::wgmma_tie!(4, acc);
            acc[0] + acc[1] + acc[2] + acc[3]
        };
        wgmma_cores, "wgmma.mma_async.sync.aligned.m64n16k32.f32.e4m3.e4m3", |input| {
            let mut acc = [0.0f32; 8];
            let (a, b) = (wgmma::descriptor(*input), wgmma::Cores::new(*input.add(1), *input.add(2), 128));
            wgmma::fence();
            wgmma::wgmma_e4m3!(16, acc, a, [b.low, b.high, b.step], false);
            wgmma::commit();
            wgmma::wait::<0>();
            wgmma::wgmma_tie!(8, acc);
            acc[0] + acc[1] + acc[2] + acc[3] + acc[4] + acc[5] + acc[6] + acc[7]
        };
        wgmma_m64n256, "wgmma.mma_async.sync.aligned.m64n256k32.f32.e4m3.e4m3", |input| {
            let mut acc = [0.0f32; 128];
            let (a, b) = (wgmma::descriptor(*input), wgmma::descriptor(*input.add(1)));
            wgmma::fence();
            wgmma::wgmma_e4m3!(256, acc, a, b, false);
            wgmma::commit();
            wgmma::wait::<0>();
            wgmma::wgmma_tie!(128, acc);
            let mut sum = 0.0;
            unroll!(for i in 0..128 {
                sum += acc[i];
            });
            sum
        };
        setmaxnreg, "setmaxnreg.inc.sync.aligned.u32, setmaxnreg.dec.sync.aligned.u32", |_input| {
            wgmma::raise_registers::<232>();
            wgmma::release_registers::<40>();
            0
        };
    }
}

/// A loop that LLVM leaves rolled and `ptxas` would unroll.
///
/// # Safety
/// Both pointers are to global memory, of `n` and one words.
#[kernel(threads = 128, unroll = never)]
pub unsafe fn rolled(input: *const u32, output: *mut u32, n: u32) {
    let mut largest = 0;
    for index in 0..n {
        // SAFETY: the test never launches this kernel.
        largest = unsafe { largest.max(input.add(index as usize).read_volatile()) };
    }
    // SAFETY: as above.
    unsafe { *output = largest };
}

/// A barrier below a branch that all threads take alike: LLVM must leave one copy of it.
///
/// # Safety
/// Both pointers are to global memory of at least 128 words.
#[kernel(threads = 128)]
pub unsafe fn barrier_after_branch(input: *const u32, output: *mut u32, n: u32) {
    let tile = shared_array!(barrier_after_branch.tile: [u32; 128]);
    let index = thread::thread_idx_x();
    // SAFETY: the test never launches this kernel.
    unsafe {
        if index < n {
            tile.add(index).write(*input.add(index as usize) * 3);
        } else {
            tile.add(index).write(index);
        }
        sync::block();
        if index < n {
            *output.add(index as usize) = tile.add(index ^ 1).read();
        } else {
            *output.add(index as usize) = tile.add(index ^ 2).read() + 1;
        }
    }
}
