//! ```text
//! routing: softmax T {1,33,56} x E {6,16} x k {3,4}; must hold: ids exact, weights 1e-2
//!     grouped (E,k,groups,topk_group) (16,2,8,2) (128,2,8,2) (256,8,8,4) (384,8,1,1) (512,22,1,1)
//! ```
//!
//! Weights are held to 1e-5. The full size is small enough for the emulated device.

use crate::common::devices;
use crate::common::routing::{GroupedCase, check_grouped, check_softmax};

#[test]
fn softmax() {
    for device in devices() {
        for tokens in [1, 33, 56] {
            for experts in [6, 16] {
                for top_k in [3, 4] {
                    for renormalize in [false, true] {
                        check_softmax(&device, [tokens, experts, top_k], renormalize, false, 1);
                    }
                }
            }
        }
    }
}

/// Every kind of score, with and without a correction bias.
#[track_caller]
fn check(experts: usize, top_k: usize, groups: usize, topk_group: usize) {
    for device in devices() {
        for (sigmoid, bias) in [(true, true), (true, false), (false, false), (false, true)] {
            let case = GroupedCase {
                sizes: [33, experts, top_k],
                groups,
                topk_group,
                sigmoid,
                bias,
                renormalize: true,
                routed_scaling_factor: 2.5,
                wild: false,
            };
            let unresolved = check_grouped(&device, case, 2);
            assert!(unresolved <= 33 / 4 + 2, "{case:?}: {unresolved} tokens are too close to call");
        }
    }
}

#[test]
fn grouped_e16_k2() {
    check(16, 2, 8, 2);
}

#[test]
fn grouped_e128_k2() {
    check(128, 2, 8, 2);
}

#[test]
fn grouped_e256_k8() {
    check(256, 8, 8, 4);
}

#[test]
fn grouped_e384_k8() {
    check(384, 8, 1, 1);
}

#[test]
fn grouped_e512_k22() {
    check(512, 22, 1, 1);
}
