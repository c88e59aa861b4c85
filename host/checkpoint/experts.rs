//! One layer's tensors: the router, the experts one by one, their scales, in the layouts that the table of
//! models names.
//!
//! ```text
//! <prefix>.experts.7.gate_proj.weight        [I, H]       \
//! <prefix>.experts.7.up_proj.weight          [I, H]        >  mapped, not copied
//! <prefix>.experts.7.down_proj.weight        [H, I]       /
//!
//! <prefix>.experts.gate_up_proj   Rows       [E, 2I, H]      rows of expert 7: I of gate, I of up; mapped, not copied
//!                                 Columns    [E, H, 2I]      columns of expert 7: I of gate, I of up; transposed here
//! ```
//!
//! A shared expert, `<prefix>.shared_experts.gate_proj.weight` and so on, is read as an expert of a layout of
//! its own, or where it is not quantised as numbers.
//!
//! Every byte of a weight is looked at once, before it is copied to the device: an e4m3 NaN is refused.

use std::borrow::Cow;

use safetensors::Dtype;

use super::files::Files;
use super::models::{Fused, Model, Order, SHARED_PROJECTIONS, Shared};
use super::quantization::{ActivationScales, Scheme, WeightScales};
use super::tensor::Tensor;
use crate::config::SCALE_BLOCK;
use crate::error::{Error, Result};
use crate::fp8::E4m3;
use crate::layer::{
    self, ExpertSource, ExpertWeights, MoeConfig, MoeWeights, RouterWeights, SharedExpert, SharedKind,
    SharedMatrices, SharedWeights,
};

/// Columns and rows of a block as a layer has them.
const BLOCK: usize = SCALE_BLOCK;

/// What may stand beside a matrix, itself included.
const OF_WEIGHTS: [&str; 10] = [
    "weight",
    "weight_scale_inv",
    "weight_scale",
    "scale",
    "qscale_weight",
    "input_scale",
    "activation_scale",
    "qscale_act",
    "output_scale",
    "weight_shape",
];

/// Reads a layer.
pub(crate) struct LayerReader<'a> {
    files: &'a Files,
    model: &'static Model,
    prefix: String,
    config: MoeConfig,
    scheme: Scheme,
    layout: Layout,
    local: Vec<usize>,
    /// The scheme of a shared expert that is quantised.
    shared_scheme: Option<Scheme>,
}

/// How a layer's experts lie in its tensors.
#[derive(Clone, Copy)]
pub(crate) enum Layout {
    /// Gate, up and down of each expert.
    Each([&'static str; 3]),
    /// Gate and up, and down, of all experts.
    Fused([&'static str; 2], Order),
    /// Gate, up and down below this name, of the one expert there is: a shared one.
    One(&'static str),
}

/// One of the three matrices of an expert.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Matrix {
    Gate,
    Up,
    Down,
}

const MATRICES: [Matrix; 3] = [Matrix::Gate, Matrix::Up, Matrix::Down];

impl Matrix {
    /// Which part of a fused tensor it is, and how many there are: gate and up lie side by side, down alone,
    /// and so does up where there is no gate.
    fn place(self, is_gated: bool) -> (usize, usize) {
        match self {
            Matrix::Gate => (0, 2),
            Matrix::Up if is_gated => (1, 2),
            Matrix::Up | Matrix::Down => (0, 1),
        }
    }
}

impl Layout {
    /// The layout of the layer `prefix`; a layer with both is refused.
    pub fn find(files: &Files, model: &'static Model, prefix: &str) -> Result<Layout> {
        let experts = format!("{prefix}.experts.");
        let is_numbered = |name: &str| name[experts.len()..].starts_with(|c: char| c.is_ascii_digit());
        let each = model.tensors.matrices.filter(|_| files.names_under(&experts).any(is_numbered));
        let fused = model.tensors.fused.and_then(|Fused { names, order }| {
            let found = names.iter().find(|[gate_up, _]| files.has(&format!("{prefix}.{gate_up}")))?;
            Some(Layout::Fused(*found, order))
        });
        match (each, fused) {
            (Some(names), None) => Ok(Layout::Each(names)),
            (None, Some(fused)) => Ok(fused),
            (Some(_), Some(Layout::Fused([gate_up, _], _))) => Err(Error::checkpoint(
                files.path(),
                format!("{prefix} has both {gate_up} and tensors of single experts: which are meant?"),
            )),
            _ => Err(Error::checkpoint(files.path(), format!("{prefix} has no experts"))),
        }
    }

    /// The modules that the experts are, as a config may name them.
    pub fn modules(self, prefix: &str) -> Vec<String> {
        match self {
            Layout::Each(names) => names.map(|name| format!("{prefix}.experts.0.{name}")).into(),
            Layout::One(own) => SHARED_PROJECTIONS.map(|name| format!("{prefix}.{own}.{name}")).into(),
            Layout::Fused(names, _) => {
                names.map(|name| format!("{prefix}.{}", name.strip_suffix(".weight").unwrap_or(name))).into()
            }
        }
    }
}

impl<'a> LayerReader<'a> {
    /// A reader of the layer `prefix`, whose experts are quantised by `scheme`, and a shared one by
    /// `shared_scheme` where it is.
    pub fn new(
        files: &'a Files,
        model: &'static Model,
        prefix: &str,
        config: &MoeConfig,
        scheme: Scheme,
        shared_scheme: Option<Scheme>,
    ) -> Result<LayerReader<'a>> {
        let layout = Layout::find(files, model, prefix)?;
        let (local, prefix, config) = (config.local_ids(), prefix.to_owned(), config.clone());
        let reader = LayerReader { files, model, prefix, config, scheme, layout, local, shared_scheme };
        reader.check_names()?;
        Ok(reader)
    }

    fn refuse(&self, what: String) -> Error {
        Error::checkpoint(self.files.path(), what)
    }

    /// Refuses tensors of the layer that nothing here reads: what they stand for would be left out of the
    /// result.
    fn check_names(&self) -> Result<()> {
        let start = format!("{}.", self.prefix);
        let tensors = &self.model.tensors;
        for name in self.files.names_under(&start) {
            let rest = &name[start.len()..];
            let is_known = tensors.router.contains(&rest)
                || tensors.bias.contains(&rest)
                || tensors.router_bias == Some(rest)
                || self.is_known_of_experts(rest)?
                || self.is_known_of_shared(rest);
            if !is_known {
                return Err(
                    self.refuse(format!("{name} is not known as a tensor of {}", self.model.model_type))
                );
            }
        }
        Ok(())
    }

    fn is_known_of_shared(&self, rest: &str) -> bool {
        let Some(shared) = &self.model.tensors.shared else { return false };
        let of_matrix = || {
            let (matrix, what) = rest.strip_prefix(shared.name)?.strip_prefix('.')?.split_once('.')?;
            Some(SHARED_PROJECTIONS.contains(&matrix) && OF_WEIGHTS.contains(&what))
        };
        shared.gate == Some(rest) || of_matrix().unwrap_or(false)
    }

    fn is_known_of_experts(&self, rest: &str) -> Result<bool> {
        match self.layout {
            Layout::One(_) => Ok(false),
            Layout::Each(names) => {
                let Some(rest) = rest.strip_prefix("experts.") else { return Ok(false) };
                let Some((number, matrix)) = rest.split_once('.') else { return Ok(false) };
                let Ok(number) = number.parse::<usize>() else { return Ok(false) };
                let Some((matrix, what)) = matrix.split_once('.') else { return Ok(false) };
                if number >= self.config.experts {
                    let (prefix, experts) = (&self.prefix, self.config.experts);
                    let what =
                        format!("{prefix} has an expert {number}, but the config says there are {experts}");
                    return Err(self.refuse(what));
                }
                let is_bias = what == "bias" && self.model.tensors.biases;
                Ok(names.contains(&matrix) && (OF_WEIGHTS.contains(&what) || is_bias))
            }
            Layout::Fused(names, _) => Ok(names.iter().any(|name| {
                rest == *name
                    || self.model.tensors.biases && rest == format!("{name}_bias")
                    || weight_scale_names(name).iter().any(|other| rest == other)
                    || input_scale_names(name).iter().any(|other| rest == other)
            })),
        }
    }

    /// Everything but the experts' matrices.
    pub fn rest(&self) -> Result<MoeWeights<'a>> {
        Ok(MoeWeights {
            router: Some(self.router()?),
            correction_bias: self.correction_bias()?.map(Cow::Owned),
            experts: Vec::new(),
            input_scales: match self.scheme.activations {
                ActivationScales::TensorStatic => Some(self.input_scales()?),
                _ => None,
            },
            router_bias: match self.model.tensors.router_bias {
                Some(name) => Some(self.biases(name, &[self.config.experts])?.into()),
                None => None,
            },
            expert_biases: self.expert_biases()?.map(|biases| biases.map(Cow::Owned)),
            shared: self.config.shared.map(|shared| self.shared(shared)).transpose()?,
        })
    }

    /// The matrices that an expert has.
    fn matrices(&self) -> &'static [Matrix] {
        if self.config.gated { &MATRICES } else { &MATRICES[1..] }
    }

    /// The numbers of a tensor of biases, which must be finite.
    fn biases(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        let tensor = self.files.tensor(&format!("{}.{name}", self.prefix))?.expect_shape(shape)?;
        let values = tensor.to_f32()?;
        tensor.check_finite(values.iter().copied())?;
        Ok(values)
    }

    /// The biases of this rank's experts: of gate and up, and of down.
    fn expert_biases(&self) -> Result<Option<[Vec<f32>; 2]>> {
        if !self.model.tensors.biases {
            return Ok(None);
        }
        let MoeConfig { experts, hidden_size: h, intermediate_size: i, .. } = self.config;
        let (mut first, mut second) = (Vec::new(), Vec::new());
        match self.layout {
            Layout::Fused([gate_up, down], order) => {
                let columns = self.config.halves() * i;
                let all = self.biases(&format!("{gate_up}_bias"), &[experts, columns])?;
                let of_down = self.biases(&format!("{down}_bias"), &[experts, h])?;
                for &expert in &self.local {
                    let own = &all[expert * columns..(expert + 1) * columns];
                    match order {
                        Order::Interleaved => {
                            first.extend(own.iter().step_by(2));
                            first.extend(own.iter().skip(1).step_by(2));
                        }
                        Order::Rows | Order::Columns => first.extend(own),
                    }
                    second.extend(&of_down[expert * h..(expert + 1) * h]);
                }
            }
            Layout::Each(_) | Layout::One(_) => {
                for &expert in &self.local {
                    for &matrix in self.matrices() {
                        let name = self.tensor_name(matrix, expert);
                        let name = format!("{}.bias", name.strip_suffix(".weight").unwrap_or(&name));
                        let values = self.biases(&name, &self.shape(matrix)[..1])?;
                        if matrix == Matrix::Down { &mut second } else { &mut first }.extend(values);
                    }
                }
            }
        }
        Ok(Some([first, second]))
    }

    /// The weights of the shared expert.
    fn shared(&self, shared: SharedExpert) -> Result<SharedWeights<'a>> {
        let names = self.shared_names()?;
        let gate = match names.gate.filter(|_| shared.gate) {
            Some(gate) => Some(self.numbers(gate, &[1, self.config.hidden_size])?),
            None => None,
        };
        let matrices = match self.shared_reader() {
            Some(reader) => SharedMatrices::Quantised {
                expert: reader.expert(0)?,
                input_scales: match self.config.shared_layer() {
                    Some(layer) if layer.quantization.is_static() => Some(reader.input_scales()?),
                    _ => None,
                },
            },
            None => {
                let MoeConfig { hidden_size: h, .. } = self.config;
                let size = shared.intermediate_size;
                let [gate, up, down] = SHARED_PROJECTIONS.map(|name| format!("{}.{name}.weight", names.name));
                SharedMatrices::Bf16 {
                    gate: match self.config.gated {
                        true => self.numbers(&gate, &[size, h])?,
                        false => RouterWeights::Bf16(Cow::Borrowed(&[])),
                    },
                    up: self.numbers(&up, &[size, h])?,
                    down: self.numbers(&down, &[h, size])?,
                }
            }
        };
        Ok(SharedWeights { matrices, gate })
    }

    fn shared_names(&self) -> Result<&'static Shared> {
        let shared = self.model.tensors.shared.as_ref();
        shared.ok_or_else(|| self.refuse(format!("{} has no shared experts", self.model.model_type)))
    }

    /// A reader of the shared expert as one of a layer, where it is quantised.
    fn shared_reader(&self) -> Option<LayerReader<'a>> {
        let (shared, scheme) = (self.config.shared?, self.shared_scheme.clone()?);
        let SharedKind::Quantised(quantization) = shared.weights else { return None };
        let config = MoeConfig {
            intermediate_size: shared.intermediate_size,
            quantization,
            experts: 1,
            shared: None,
            local_experts: None,
            ..self.config.clone()
        };
        Some(LayerReader {
            files: self.files,
            model: self.model,
            prefix: self.prefix.clone(),
            config,
            scheme,
            layout: Layout::One(self.model.tensors.shared.as_ref()?.name),
            local: vec![0],
            shared_scheme: None,
        })
    }

    /// The tensor `name` of the layer, whose elements are finite numbers that are not quantised.
    fn numbers(&self, name: &str, shape: &[usize]) -> Result<RouterWeights<'a>> {
        let tensor = self.files.tensor(&format!("{}.{name}", self.prefix))?.expect_shape(shape)?;
        finite_numbers(tensor)
    }

    fn router(&self) -> Result<RouterWeights<'a>> {
        let shape = [self.config.experts, self.config.hidden_size];
        let tensor = self.one_of(self.model.tensors.router)?.ok_or_else(|| {
            self.refuse(format!("there is no tensor {}.{}", self.prefix, self.model.tensors.router[0]))
        })?;
        finite_numbers(tensor.expect_shape(&shape)?)
    }

    /// The bias of the scores; zeros where the model has one that the checkpoint lacks.
    fn correction_bias(&self) -> Result<Option<Vec<f32>>> {
        let experts = self.config.experts;
        let Some(tensor) = self.one_of(self.model.tensors.bias)? else {
            return Ok(self.model.has_biased_scores().then(|| vec![0.0; experts]));
        };
        let tensor = if tensor.shape == [1, experts] { tensor } else { tensor.expect_shape(&[experts])? };
        let values = tensor.to_f32()?;
        tensor.check_finite(values.iter().copied())?;
        Ok(Some(values))
    }

    /// The only tensor of the layer under these names, if there is one.
    fn one_of(&self, names: &[impl std::fmt::Display]) -> Result<Option<Tensor<'a>>> {
        let full = names.iter().map(|name| format!("{}.{name}", self.prefix));
        let mut found = full.filter(|name| self.files.has(name));
        let Some(first) = found.next() else { return Ok(None) };
        if let Some(second) = found.next() {
            return Err(self.refuse(format!("there are both {first} and {second}: which is meant?")));
        }
        self.files.tensor(&first).map(Some)
    }

    /// The static scales of the activations, before the first projection and before the second.
    ///
    /// A checkpoint has them per expert and matrix; tokens are quantised once for all experts, so the largest
    /// is taken, over all experts of the model, so that every rank uses the same. An expert that calibration
    /// never reached has none, and takes that of the others.
    fn input_scales(&self) -> Result<[f32; 2]> {
        // A shared expert that is computed as one of them is quantised with them.
        let shared = self.shared_reader().filter(|_| self.config.shared_slots() > 0);
        let largest = |matrix| -> Result<Option<f32>> {
            let own = self.largest_input_scale(matrix)?;
            let other = shared.as_ref().map(|reader| reader.largest_input_scale(matrix)).transpose()?;
            Ok(own.into_iter().chain(other.flatten()).reduce(f32::max))
        };
        let gate = if self.config.gated { largest(Matrix::Gate) } else { Ok(None) };
        let (up, down) = (largest(Matrix::Up), largest(Matrix::Down));
        let first = gate?.into_iter().chain(up?).reduce(f32::max);
        let found = |scale: Option<f32>, matrix| {
            scale.ok_or_else(|| {
                self.refuse(format!(
                    "there is no tensor {}.{}, nor one of another expert; {} needs it",
                    self.prefix,
                    input_scale_names(&self.tensor_name(matrix, 0))[0],
                    self.scheme.said_by
                ))
            })
        };
        Ok([found(first, self.matrices()[0])?, found(down?, Matrix::Down)?])
    }

    fn largest_input_scale(&self, matrix: Matrix) -> Result<Option<f32>> {
        let of_each = !matches!(self.layout, Layout::Fused(..));
        let mut largest: Option<f32> = None;
        for expert in 0..if of_each { self.config.experts } else { 1 } {
            let names = input_scale_names(&self.tensor_name(matrix, expert));
            let Some(tensor) = self.one_of(&names)? else { continue };
            let values = self.scale_values(&tensor)?;
            let is_one = tensor.shape.iter().all(|&size| size == 1);
            if !is_one && (of_each || tensor.shape.iter().product::<usize>() != self.config.experts) {
                return Err(tensor.error(format!("has shape {:?}; one number is expected", tensor.shape)));
            }
            largest = values.into_iter().chain(largest).reduce(f32::max);
        }
        Ok(largest)
    }

    /// The tensor that holds a matrix of an expert, below the prefix.
    fn tensor_name(&self, matrix: Matrix, expert: usize) -> String {
        match self.layout {
            Layout::Each(names) => format!("experts.{expert}.{}.weight", names[matrix as usize]),
            Layout::Fused(names, _) => names[usize::from(matrix == Matrix::Down)].to_owned(),
            Layout::One(own) => format!("{own}.{}.weight", SHARED_PROJECTIONS[matrix as usize]),
        }
    }

    /// Rows and columns of a matrix of an expert.
    fn shape(&self, matrix: Matrix) -> [usize; 2] {
        let MoeConfig { hidden_size, intermediate_size, .. } = self.config;
        match matrix {
            Matrix::Gate | Matrix::Up => [intermediate_size, hidden_size],
            Matrix::Down => [hidden_size, intermediate_size],
        }
    }

    /// Expert `expert` of the model.
    pub fn expert(&self, expert: usize) -> Result<ExpertWeights<'a>> {
        let weights = |matrix| self.weights(matrix, expert);
        let scale = |matrix| self.weight_scale(matrix, expert);
        let expert = ExpertWeights::new()
            .up(weights(Matrix::Up)?, scale(Matrix::Up)?)
            .down(weights(Matrix::Down)?, scale(Matrix::Down)?);
        if !self.config.gated {
            return Ok(expert);
        }
        Ok(expert.gate(weights(Matrix::Gate)?, scale(Matrix::Gate)?))
    }

    /// Checks types and shapes of all tensors, and the values of all but the matrices.
    pub fn check(&self) -> Result<()> {
        self.rest()?;
        for &expert in &self.local {
            for &matrix in self.matrices() {
                self.tensor_of(matrix, expert)?;
                self.weight_scale(matrix, expert)?;
            }
        }
        Ok(())
    }

    /// The tensor that holds a matrix of an expert, of the type and shape that it must have.
    fn tensor_of(&self, matrix: Matrix, expert: usize) -> Result<Tensor<'a>> {
        let tensor = self.files.tensor(&format!("{}.{}", self.prefix, self.tensor_name(matrix, expert)))?;
        if [Dtype::BF16, Dtype::F16, Dtype::F32].contains(&tensor.dtype) {
            return Err(tensor.error(format!(
                "has type {:?}; F8_E4M3 is expected: experts that are not quantised are not supported",
                tensor.dtype
            )));
        }
        match self.layout {
            Layout::Each(_) | Layout::One(_) => tensor.expect(Dtype::F8_E4M3, &self.shape(matrix)),
            Layout::Fused(_, order) => {
                let [outer, inner] = self.fused_shape(matrix, order);
                tensor.expect(Dtype::F8_E4M3, &[self.config.experts, outer, inner])
            }
        }
    }

    /// Outer and inner size of an expert's part of the fused tensor that holds a matrix.
    fn fused_shape(&self, matrix: Matrix, order: Order) -> [usize; 2] {
        let [rows, columns] = self.shape(matrix);
        let all = matrix.place(self.config.gated).1 * rows;
        if order.is_transposed() { [columns, all] } else { [all, columns] }
    }

    fn weights(&self, matrix: Matrix, expert: usize) -> Result<Cow<'a, [E4m3]>> {
        let tensor = self.tensor_of(matrix, expert)?;
        let Layout::Fused(_, order) = self.layout else {
            tensor.check_e4m3(tensor.bytes, 0)?;
            return Ok(Cow::Borrowed(bytemuck::cast_slice(tensor.bytes)));
        };
        let [rows, columns] = self.shape(matrix);
        let [outer, inner] = self.fused_shape(matrix, order);
        let (part, parts) = matrix.place(self.config.gated);
        let start = expert * outer * inner;
        match order {
            Order::Rows => {
                let start = start + part * rows * columns;
                let bytes = &tensor.bytes[start..start + rows * columns];
                tensor.check_e4m3(bytes, start)?;
                Ok(Cow::Borrowed(bytemuck::cast_slice(bytes)))
            }
            Order::Columns | Order::Interleaved => {
                let bytes = &tensor.bytes[start..start + outer * inner];
                // Once for each tensor, not for each part of it.
                if part == 0 {
                    tensor.check_e4m3(bytes, start)?;
                }
                let (first, step) = if order == Order::Columns { (part * rows, 1) } else { (part, parts) };
                Ok(Cow::Owned(transpose(&bytes[first..], [inner, step], columns, rows)))
            }
        }
    }

    /// The scales of a matrix of an expert, as [`ExpertWeights`] has them.
    fn weight_scale(&self, matrix: Matrix, expert: usize) -> Result<Vec<f32>> {
        let name = self.tensor_name(matrix, expert);
        let mut names = weight_scale_names(&name);
        if matches!(self.scheme.weights, WeightScales::Tensor | WeightScales::Channel) {
            names.swap(0, 1);
        }
        let missing = || self.refuse(format!("there is no tensor {}.{}", self.prefix, names[0]));
        let tensor = self.one_of(&names)?.ok_or_else(missing)?;
        let values = self.scale_values(&tensor)?;
        let found = match self.layout {
            Layout::Each(_) | Layout::One(_) => self.scales_of_one(matrix, &tensor, &values),
            Layout::Fused(_, order) => self.scales_of_fused(matrix, expert, order, &tensor, &values),
        }?;
        match (self.scheme.weights, self.config.quantization.weights()) {
            (WeightScales::Tensor, layer::WeightScales::Channel) => Ok(vec![found[0]; self.shape(matrix)[0]]),
            (WeightScales::Block(block), _) => {
                in_blocks(self.shape(matrix), block, &found).map_err(|what| tensor.error(what))
            }
            _ => Ok(found),
        }
    }

    /// The numbers of a tensor of scales, which must be finite and not negative. Zero is one: an all-zero
    /// block may have it.
    fn scale_values(&self, tensor: &Tensor<'_>) -> Result<Vec<f32>> {
        let values = match tensor.dtype {
            Dtype::U8 if self.scheme.byte_exponents => tensor.exponents(),
            _ => tensor.to_f32()?,
        };
        match values.iter().position(|s| !(s.is_finite() && *s >= 0.0)) {
            Some(at) => Err(tensor
                .error(format!("element {at} is {}; a scale must be finite and not negative", values[at]))),
            None => Ok(values),
        }
    }

    /// Scales of a matrix that is a tensor of its own.
    fn scales_of_one(&self, matrix: Matrix, tensor: &Tensor<'_>, values: &[f32]) -> Result<Vec<f32>> {
        let [rows, columns] = self.shape(matrix);
        let (fits, expected) = match self.scheme.weights {
            WeightScales::Tensor => {
                let is_one = tensor.shape.iter().all(|&size| size == 1);
                (is_one, "one number is expected".to_owned())
            }
            WeightScales::Channel => {
                let fits = tensor.shape == [rows] || tensor.shape == [rows, 1];
                (fits, format!("the config says {:?}", [rows, 1]))
            }
            WeightScales::Block([high, wide]) => {
                let blocks = [rows.div_ceil(high), columns.div_ceil(wide)];
                let fits = tensor.shape == blocks || tensor.shape == [blocks[0], 1, blocks[1], 1];
                (fits, format!("the config says {blocks:?}"))
            }
        };
        if !fits {
            return Err(tensor.error(format!("has shape {:?}; {expected}", tensor.shape)));
        }
        Ok(values.to_vec())
    }

    /// Scales of a matrix of expert `expert` in a tensor that holds all experts.
    fn scales_of_fused(
        &self,
        matrix: Matrix,
        expert: usize,
        order: Order,
        tensor: &Tensor<'_>,
        values: &[f32],
    ) -> Result<Vec<f32>> {
        let experts = self.config.experts;
        let [rows, columns] = self.shape(matrix);
        let (part, parts) = matrix.place(self.config.gated);
        let is_interleaved = order == Order::Interleaved && parts > 1;
        let wrong = |expected: String| {
            tensor.error(format!("has shape {:?}; the config says {expected}", tensor.shape))
        };
        match self.scheme.weights {
            WeightScales::Tensor => match tensor.shape {
                [] | [1] => Ok(vec![values[0]]),
                [e] | [e, 1] | [e, 1, 1] if *e == experts => Ok(vec![values[expert]]),
                [e, p] | [e, p, 1] if *e == experts && *p == parts => Ok(vec![values[expert * parts + part]]),
                _ => Err(wrong(format!("[{experts}, {parts}, 1]"))),
            },
            WeightScales::Channel => {
                let all = parts * rows;
                match tensor.shape {
                    [e, n] | [e, n, 1] | [e, 1, n] if *e == experts && *n == all => {
                        let own = &values[expert * all..(expert + 1) * all];
                        Ok(match is_interleaved {
                            true => own.iter().skip(part).step_by(parts).copied().collect(),
                            false => own[part * rows..(part + 1) * rows].to_vec(),
                        })
                    }
                    _ => Err(wrong(format!("[{experts}, {all}, 1]"))),
                }
            }
            WeightScales::Block(_) if is_interleaved => {
                Err(tensor.error("blocks of gate and up in turns are not supported: they share scales"))
            }
            WeightScales::Block([high, wide]) => {
                // Each part has blocks of its own: one never holds rows of both.
                let [down, across] = [rows.div_ceil(high), columns.div_ceil(wide)];
                let all = down * parts;
                let shape = match order.is_transposed() {
                    false => [experts, all, across],
                    true => [experts, across, all],
                };
                if tensor.shape != shape {
                    return Err(wrong(format!("{shape:?}")));
                }
                let of_expert = &values[expert * all * across..][..all * across];
                let at = |row: usize, column: usize| match order.is_transposed() {
                    false => of_expert[(part * down + row) * across + column],
                    true => of_expert[column * all + part * down + row],
                };
                Ok((0..down).flat_map(|row| (0..across).map(move |column| at(row, column))).collect())
            }
        }
    }
}

impl ExpertSource for LayerReader<'_> {
    fn expert(&self, index: usize) -> Result<Cow<'_, ExpertWeights<'_>>> {
        self.expert(self.local[index]).map(Cow::Owned)
    }
}

/// A tensor of finite numbers, as it is where it is bf16.
fn finite_numbers(tensor: Tensor<'_>) -> Result<RouterWeights<'_>> {
    if tensor.dtype == Dtype::BF16 {
        let values = tensor.as_bf16();
        tensor.check_finite(values.iter().map(|value| value.to_f32()))?;
        return Ok(RouterWeights::Bf16(values));
    }
    let values = tensor.to_f32()?;
    tensor.check_finite(values.iter().copied())?;
    Ok(RouterWeights::F32(values.into()))
}

/// The names that the scales of a weight may go by, below the layer's prefix; blocks' names first.
fn weight_scale_names(weight: &str) -> Vec<String> {
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
fn input_scale_names(weight: &str) -> Vec<String> {
    match weight.strip_suffix(".weight") {
        Some(module) => {
            ["input_scale", "activation_scale", "qscale_act"].map(|name| format!("{module}.{name}")).into()
        }
        None => ["input_scale", "activation_scale"].map(|name| format!("{weight}_{name}")).into(),
    }
}

/// The scales of a `[rows, columns]` matrix in blocks of `[high, wide]`, row-major, as those of its blocks of
/// 128 by 128. Each of these must have one scale: a larger block's is repeated, smaller blocks' must agree.
fn in_blocks(
    [rows, columns]: [usize; 2],
    [high, wide]: [usize; 2],
    scales: &[f32],
) -> Result<Vec<f32>, String> {
    let across = columns.div_ceil(wide);
    let mut blocks = Vec::new();
    for top in (0..rows).step_by(BLOCK) {
        for left in (0..columns).step_by(BLOCK) {
            let (bottom, right) = ((top + BLOCK).min(rows) - 1, (left + BLOCK).min(columns) - 1);
            let first = scales[top / high * across + left / wide];
            for row in top / high..=bottom / high {
                for column in left / wide..=right / wide {
                    let other = scales[row * across + column];
                    if other != first {
                        return Err(format!(
                            "the blocks of {high}x{wide} in rows {top}..={bottom} and columns {left}..={right} \
                             have different scales, {first} and {other}: not supported: the kernels have one \
                             for 128x128, and to quantise the weights again would change them"
                        ));
                    }
                }
            }
            blocks.push(first);
        }
    }
    Ok(blocks)
}

/// The transposed matrix `[columns, rows]` of `rows` by `columns` elements, whose rows begin `stride` apart,
/// and whose columns `step`.
fn transpose(bytes: &[u8], [stride, step]: [usize; 2], rows: usize, columns: usize) -> Vec<E4m3> {
    // Squares whose lines stay in the first cache on both sides.
    const SIDE: usize = 64;
    let mut out = vec![E4m3::default(); rows * columns];
    for top in (0..rows).step_by(SIDE) {
        for left in (0..columns).step_by(SIDE) {
            for row in top..(top + SIDE).min(rows) {
                let line = &bytes[row * stride..];
                for column in left..(left + SIDE).min(columns) {
                    out[column * rows + row] = E4m3(line[column * step]);
                }
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_other_sizes_keep_their_scales_or_are_refused() {
        // 256x128: repeated, the last one short. 64x128 and 1x128: merged where they agree.
        assert_eq!(
            in_blocks([272, 130], [256, 128], &[1.0, 2.0, 3.0, 4.0]),
            Ok(vec![1.0, 2.0, 1.0, 2.0, 3.0, 4.0])
        );
        assert_eq!(in_blocks([192, 64], [64, 128], &[1.0, 1.0, 2.0]), Ok(vec![1.0, 2.0]));
        assert_eq!(in_blocks([3, 256], [1, 128], &[1.0, 2.0, 1.0, 2.0, 1.0, 2.0]), Ok(vec![1.0, 2.0]));
        let error = in_blocks([192, 128], [64, 64], &[1.0, 1.0, 1.0, 5.0, 1.0, 1.0]).unwrap_err();
        assert!(error.starts_with("the blocks of 64x64 in rows 0..=127 and columns 0..=127"), "{error}");
    }

    #[test]
    fn transposes() {
        let (rows, columns, stride) = (70, 130, 140);
        let bytes: Vec<u8> = (0..rows * stride).map(|i| (i % 251) as u8).collect();
        for (step, columns) in [(1, columns), (2, columns / 2)] {
            let out = transpose(&bytes, [stride, step], rows, columns);
            for row in 0..rows {
                for column in 0..columns {
                    assert_eq!(out[column * rows + row].0, bytes[row * stride + column * step]);
                }
            }
        }
    }
}
