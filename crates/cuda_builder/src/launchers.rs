//! Generates the host's side of a device crate: what its kernels are called with, and what it knows besides.
//!
//! ```text
//! #[arguments] struct Scale { x: *const Bf16, y: *mut f32, n: u32 }       #[host] const COLUMNS: u32 = 32 * CHUNK;
//! #[kernel(threads = 256)] unsafe fn scale_rows(arguments: Scale)
//!     |
//!     v
//! pub struct Scale { pub x: DevicePtr<half::bf16>, pub y: DevicePtr<f32>, pub n: u32 }
//! unsafe impl Arguments for Scale { fn with_params(..) }                  pub const COLUMNS: u32 = 256;
//! pub const SCALE_ROWS: Kernel<Scale> = unsafe { Kernel::new("scale_rows", ..) };
//! ```
//!
//! A kernel that takes one struct is called with that struct; one that takes anything else, with a struct
//! that is named after it. The generated file expects in scope where it is included: `Arguments`,
//! `DevicePtr`, `Kernel`, `module`, which is passed to every `Kernel`, `TensorMap` (128 bytes, aligned to 64)
//! if a kernel takes one by value, and the crate `half` if a kernel has 16-bit floating-point arguments.
//!
//! `Arguments` is an unsafe trait and `Kernel::new` an unsafe function: that the pointers of `with_params` are
//! to the parameters of the kernel, and that a kernel is as it was declared, follows from the records, which
//! are those of the PTX. The includer's `unsafe` stands on that.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::records::{Arguments, FlatParam, Param, ParamType, Records};
use crate::{Built, Error, KernelInfo};

/// The source for the host of all kernels of `builds`, which hold the same device crate for several families.
///
/// A kernel, a struct or an item may exist for some families only; where it exists for several, it is the
/// same.
pub fn generate(builds: &[Built]) -> Result<String, Error> {
    let kernels = merged("kernel", builds, |built| &built.kernels, |kernel| &kernel.name, interface)?;
    let structs =
        merged("struct", builds, |built| &built.arguments, |arguments| &arguments.name, Clone::clone)?;
    let items = merged("item", builds, |built| &built.items, |item| &item.name, Clone::clone)?;
    let records = Records {
        arguments: structs.values().map(|&structure| structure.clone()).collect(),
        ..Records::default()
    };

    let mut source = String::new();
    for item in items.values() {
        let _ = writeln!(source, "{}", item.source);
    }
    // The structs that kernels are called with, and so what they consist of.
    let mut called = BTreeMap::new();
    let mut entries = String::new();
    for (name, kernel) in &kernels {
        let structure = match &kernel.params[..] {
            [Param { ty: ParamType::Struct(name), .. }] => structs.get(name).copied().cloned(),
            params => Some(Arguments {
                name: type_name(name),
                documentation: format!("#[doc = \" Arguments of the kernel `{name}`.\"]"),
                fields: params.to_vec(),
            }),
        };
        let structure =
            structure.ok_or_else(|| Error::Format(format!("kernel `{name}` takes an unknown struct")))?;
        entry(&mut entries, kernel, &structure.name);
        let mut flat = records.flatten(&kernel.params)?;
        if structs.contains_key(&structure.name) {
            // What the kernel calls the struct, the host does not know.
            flat.iter_mut().for_each(|param| drop(param.path.remove(0)));
        }
        called.insert(structure.name.clone(), (structure, flat));
    }
    for structure in structs.values().filter(|structure| !called.contains_key(&structure.name)) {
        arguments(&mut source, structure)?;
    }
    for (structure, flat) in called.values() {
        arguments(&mut source, structure)?;
        marshalling(&mut source, &structure.name, flat);
    }
    source.push_str(&entries);
    formatted(&source)
}

/// The source of one `static` per build, named after its family (`SM_89`): a slice of `KernelSummary`, which
/// the including file defines with the fields `name`, `threads`, `min_blocks`, `static_shared` and `text:
/// (usize, usize)`, which is [`KernelInfo::text`].
pub fn table(builds: &[Built]) -> Result<String, Error> {
    let mut source = String::new();
    for built in builds {
        let _ = writeln!(source, "static {}: &[KernelSummary] = &[", built.arch.name().to_uppercase());
        for KernelInfo { name, threads, min_blocks, static_shared, text, .. } in &built.kernels {
            let _ = writeln!(
                source,
                "KernelSummary {{ name: \"{name}\", threads: {threads}, min_blocks: {min_blocks}, \
                 static_shared: {static_shared}, text: ({}, {}) }},",
                text.start, text.end
            );
        }
        source.push_str("];\n");
    }
    formatted(&source)
}

/// As `rustfmt` would have it, or nearly.
fn formatted(source: &str) -> Result<String, Error> {
    let file = syn::parse_file(source).map_err(|error| {
        Error::Format(format!("the source for the host does not parse: {error}\n{source}"))
    })?;
    Ok(prettyplease::unparse(&file))
}

/// What all families must agree on.
fn interface(kernel: &KernelInfo) -> impl PartialEq + use<> {
    let KernelInfo { threads, min_blocks, cluster, overlap, dynamic_shared, params, .. } = kernel;
    (*threads, *min_blocks, *cluster, *overlap, *dynamic_shared, params.clone())
}

/// What the builds have of a kind, by name, each once.
fn merged<'a, T: 'a, I: PartialEq>(
    what: &str,
    builds: &'a [Built],
    of: impl Fn(&'a Built) -> &'a Vec<T>,
    name: impl Fn(&T) -> &String,
    interface: impl Fn(&T) -> I,
) -> Result<BTreeMap<String, &'a T>, Error> {
    let mut merged: BTreeMap<String, (&Built, &T)> = BTreeMap::new();
    for built in builds {
        for one in of(built) {
            let (first_build, first) = *merged.entry(name(one).clone()).or_insert((built, one));
            if interface(first) != interface(one) {
                let (name, a, b) = (name(one), first_build.arch, built.arch);
                return Err(Error::Format(format!("the {what} `{name}` is another on {b} than on {a}")));
            }
        }
    }
    Ok(merged.into_iter().map(|(name, (_, one))| (name, one)).collect())
}

/// The struct, with the host's types.
fn arguments(source: &mut String, arguments: &Arguments) -> Result<(), Error> {
    let Arguments { name, documentation, fields } = arguments;
    let _ = writeln!(source, "{documentation}\n#[derive(Clone, Copy, Debug)]\npub struct {name} {{");
    for Param { name: field, documentation, ty } in fields {
        let host = host_type(ty).ok_or_else(|| {
            Error::Format(format!("`{field}` of `{name}` points to what the host has no type for"))
        })?;
        let documentation =
            if documentation.is_empty() { format!("#[doc = \" `{host}`.\"]") } else { documentation.clone() };
        let _ = writeln!(source, "{documentation}\npub {field}: {host},");
    }
    source.push_str("}\n");
    Ok(())
}

/// How a struct's fields become the parameters of an entry.
fn marshalling(source: &mut String, name: &str, params: &[FlatParam]) {
    let _ = writeln!(
        source,
        "unsafe impl Arguments for {name} {{\n\
         fn with_params<R>(&self, f: impl FnOnce(&mut [*mut ::core::ffi::c_void]) -> R) -> R {{\nf(&mut ["
    );
    for FlatParam { path, ty, .. } in params {
        let path = path.join(".");
        let value =
            if *ty == ParamType::Flag { format!("u32::from(self.{path})") } else { format!("self.{path}") };
        let _ = writeln!(source, "::core::ptr::from_ref(&{value}).cast_mut().cast(),");
    }
    source.push_str("])\n}\n}\n");
}

/// The constant that names a kernel.
fn entry(source: &mut String, kernel: &KernelInfo, arguments: &str) {
    let KernelInfo { name, threads, min_blocks, cluster, overlap, dynamic_shared, .. } = kernel;
    let _ = writeln!(
        source,
        "#[doc = \" Kernel `{name}`: {threads} threads per block, at least {min_blocks} blocks per SM.\"]\n\
         pub const {}: Kernel<{arguments}> = unsafe {{\n\
         Kernel::new(\"{name}\", {threads}, {cluster}, {overlap}, {dynamic_shared}, module)\n}};",
        name.to_uppercase()
    );
}

/// `foo_bar` becomes `FooBar`.
fn type_name(kernel: &str) -> String {
    let capitalise = |word: &str| {
        let mut letters = word.chars();
        letters
            .next()
            .map(|first| first.to_ascii_uppercase().to_string() + letters.as_str())
            .unwrap_or_default()
    };
    kernel.split('_').map(capitalise).collect()
}

/// The host type of an argument.
fn host_type(ty: &ParamType) -> Option<String> {
    Some(match ty {
        ParamType::Number(name) | ParamType::Code(name) | ParamType::Struct(name) => name.clone(),
        ParamType::Flag => "bool".to_owned(),
        ParamType::TensorMap => "TensorMap".to_owned(),
        ParamType::Pointer(element) => format!("DevicePtr<{}>", host_element(element)?),
    })
}

fn host_element(element: &str) -> Option<String> {
    const NUMBERS: [&str; 10] = ["u8", "i8", "u16", "i16", "u32", "i32", "u64", "i64", "f32", "f64"];
    match element {
        "Bf16" => Some("half::bf16".to_owned()),
        "F16" => Some("half::f16".to_owned()),
        // What `cuTensorMapEncodeTiled` fills, opaque on both sides.
        "TensorMap" => Some("TensorMap".to_owned()),
        number if NUMBERS.contains(&number) => Some(number.to_owned()),
        array => {
            let (inner, len) = array.strip_prefix('[')?.strip_suffix(']')?.rsplit_once("; ")?;
            let len = len.parse::<u32>().ok()?;
            Some(format!("[{}; {len}]", host_element(inner)?))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Arch;

    /// A build of two kernels that share a struct, and one with parameters of its own.
    fn built(arch: Arch, threads: u32, x: &str, columns: u32) -> Built {
        let assembly = format!(
            "//#kernel scale_rows threads={threads} min_blocks=2 cluster=1 wgmma_n=0 overlap=0 unroll=1 \
             shared=96 (arguments : Scale)\n\
             //#kernel halve_rows threads=32 min_blocks=1 cluster=1 wgmma_n=0 overlap=1 unroll=1 shared=0 \
             (arguments : Scale)\n\
             //#kernel clear threads=32 min_blocks=1 cluster=1 wgmma_n=0 overlap=0 unroll=1 shared=0 \
             (x : * mut f32 , n : u32)\n\
             //#arguments #[doc = r\" Rows.\"] pub struct Scale {{ #[doc = r\" The rows.\"] pub x : {x} , pub to : Target , }}\n\
             //#arguments #[doc = r\" Where.\"] pub struct Target {{ pub tiles : * mut [i32 ; 4] , pub how : Code < How > , \
             pub last : Flag , }}\n\
             //#host #[repr (u32)] pub enum How {{ Fast = 0 , }}\n\
             //#host pub const COLUMNS : u32 = {columns} ;\n"
        );
        let Records { kernels, arguments, items } = Records::read(&assembly).expect("well formed");
        Built { arch, ptx_path: "x.ptx".into(), kernels, arguments, items, remarks: Vec::new(), ptxas: None }
    }

    #[test]
    fn the_host_has_the_same_structs_and_numbers() {
        let builds = Arch::ALL.map(|arch| built(arch, 256, "* const Bf16", 256));
        let source = generate(&builds).expect("valid");
        for wanted in [
            "/// The rows.\n    pub x: DevicePtr<half::bf16>,",
            "pub to: Target,",
            "pub tiles: DevicePtr<[i32; 4]>,",
            "pub how: How,",
            "pub last: bool,",
            "unsafe impl Arguments for Scale {",
            "::core::ptr::from_ref(&self.x).cast_mut().cast(),",
            "::core::ptr::from_ref(&self.to.how).cast_mut().cast(),",
            "::core::ptr::from_ref(&u32::from(self.to.last)).cast_mut().cast(),",
            "pub const COLUMNS: u32 = 256;",
            "pub enum How {",
            "pub struct Clear {",
            "pub const CLEAR: Kernel<Clear> = unsafe {",
            "Kernel::new(\"clear\", 32, 1, false, 0, module)",
            "pub const HALVE_ROWS: Kernel<Scale> =",
        ] {
            assert!(source.contains(wanted), "{wanted} is missing in\n{source}");
        }
        assert_eq!(source.matches("pub struct Scale").count(), 1);
        assert!(!source.contains("Arguments for Target"));
    }

    #[test]
    fn one_table_per_family() {
        let source = table(&[built(Arch::Sm90a, 256, "* const u8", 256)]).expect("valid");
        assert!(source.contains("static SM_90A: &[KernelSummary] = &["), "{source}");
        assert!(source.contains("name: \"scale_rows\",\n        threads: 256,"), "{source}");
    }

    #[test]
    fn refuses_families_that_disagree_and_unknown_types() {
        let sm89 = || built(Arch::Sm89, 256, "* const u8", 256);
        let error = |other: Built| generate(&[sm89(), other]).expect_err("they differ").to_string();
        let threads = error(built(Arch::Sm90a, 128, "* const u8", 256));
        assert!(threads.contains("`scale_rows` is another on sm_90a than on sm_89"), "{threads}");
        assert!(error(built(Arch::Sm90a, 256, "* const i8", 256)).contains("struct `Scale`"));
        assert!(error(built(Arch::Sm90a, 256, "* const u8", 64)).contains("item `COLUMNS`"));
        let unknown = generate(&[built(Arch::Sm89, 256, "* const Tile", 256)]).expect_err("unknown");
        assert!(unknown.to_string().contains("`x` of `Scale` points to"));
    }
}
