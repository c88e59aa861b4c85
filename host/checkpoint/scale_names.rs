//! What the scales of a weight, and of its input, are called: `<module>.weight` has `<module>.weight_scale`,
//! a parameter `<name>` has `<name>_scale`.

/// The names that the scales of a weight may go by, below the layer's prefix; blocks' names first.
pub(super) fn weight_scale_names(weight: &str) -> Vec<String> {
    match weight.strip_suffix(".weight") {
        Some(module) => ["weight_scale_inv", "weight_scale", "scale", "qscale_weight"]
            .map(|name| format!("{module}.{name}"))
            .into(),
        None => ["scale_inv", "scale", "weight_scale_inv", "weight_scale"]
            .map(|name| format!("{weight}_{name}"))
            .into(),
    }
}

/// The names that the scale of a weight's input may go by, below the layer's prefix.
pub(super) fn input_scale_names(weight: &str) -> Vec<String> {
    match weight.strip_suffix(".weight") {
        Some(module) => {
            ["input_scale", "activation_scale", "qscale_act"].map(|name| format!("{module}.{name}")).into()
        }
        None => ["input_scale", "activation_scale"].map(|name| format!("{weight}_{name}")).into(),
    }
}
