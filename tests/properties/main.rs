//! Every operation on random shapes, skews, empties and invalid ids, against its definition; edge shapes;
//! refusals.
//!
//! Cases that failed are kept: proptest writes their seeds into `tests/regressions/`, a file for each of
//! these, tries them first, and they are committed; what was reduced further is a test named `regressions`.
//! `FP8_MOE_CASES` says how many cases each property draws.

#[path = "../common/mod.rs"]
mod common;

mod activation;
mod few_tokens;
mod forward;
mod gated_gemm;
mod grouped_gemm;
mod layer;
mod lookup;
mod order_free;
mod pack_weights;
mod permute;
mod problem_sizes;
mod quantise;
mod router;
mod settled;
mod shared;
mod tuning;
mod unpermute;

/// Properties keep their cases where the next run looks for them.
#[test]
fn failed_cases_are_kept_by_the_file_of_their_property() {
    use proptest::test_runner::FileFailurePersistence;
    let kept = common::cases(1).failure_persistence.expect("a place");
    let place = kept.as_any().downcast_ref::<FileFailurePersistence>().expect("a file");
    assert_eq!(*place, FileFailurePersistence::Direct("tests/regressions/properties/main.txt"));
    assert_eq!(common::regressions("tests/unsound/lists.rs"), "tests/regressions/unsound/lists.txt");
}
