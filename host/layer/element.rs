//! The types of a layer's output.

use half::{bf16, f16};

use crate::gpu::buffer::SliceMut;
use crate::ops::quantize::ActivationsMut;

/// Types that a layer can write: bf16, f16, f32.
pub trait OutputElement: bytemuck::Pod + sealed::Sealed {}

impl OutputElement for bf16 {}
impl OutputElement for f16 {}
impl OutputElement for f32 {}

mod sealed {
    use super::{ActivationsMut, SliceMut, bf16, f16};

    pub trait Sealed: Sized {
        fn erase(slice: SliceMut<'_, Self>) -> ActivationsMut<'_>;
    }

    impl Sealed for bf16 {
        fn erase(slice: SliceMut<'_, Self>) -> ActivationsMut<'_> {
            ActivationsMut::Bf16(slice)
        }
    }

    impl Sealed for f16 {
        fn erase(slice: SliceMut<'_, Self>) -> ActivationsMut<'_> {
            ActivationsMut::F16(slice)
        }
    }

    impl Sealed for f32 {
        fn erase(slice: SliceMut<'_, Self>) -> ActivationsMut<'_> {
            ActivationsMut::F32(slice)
        }
    }
}
